"""The quality of a sparse model that regrows and is pruned anew, beside the dense one and every
other policy.

In: drifting synthetic streams whose drifts are known, and recordings (`--recordings DIR`). Out: a
line for each stream, budget and policy: normalized entropy in training and as served at several
intervals of publication, the gap to `dense` with its spread over seeds, the same in the 50,000
events after each true drift, how soon a drift's loss is won back, sparsity, and what learning cost;
and the claims that the lines bear out or not.

`--rows FILE` keeps each measured row, with its commit, as soon as it is there, and does not measure
it again; `--streams`, `--only`, `--budgets` and `--seeds` split a run, and `--print` prints what is
there. `--plots DIR` draws the course of the served loss.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.frame import Findings, Rows, at_least, at_most, commit, main, seeds_of
from benchmarks.quality.runs import (
    AFTER_EVENTS,
    ALSO_SERVED,
    BIN_EVENTS,
    COST_STREAM,
    ONCE,
    POLICIES,
    SERVED,
    SYNTHETIC,
    UNIFORM,
    Batches,
    Stream,
    naive,
    run,
    streams,
)
from benchmarks.quality.tables import tables
from niwaki.stream.offline.figures import Line, write_gaps

EVENTS, QUICK_EVENTS = 160_000, 120_000
QUICK_POLICIES = ("dense", "static", "adaptive")
BUDGETS = {0.1: POLICIES, **dict.fromkeys((0.2, 0.05, 0.02), ("adaptive", "static"))}
"""The policies that are run at each budget."""
COST_POLICIES = ("dense", "adaptive")
ROW_FIELDS = ("stream", "events", "policy", "budget", "seed")
"""Fields that identify a measured row."""


def won_back(drifts: list[int], course: list[float], dense: list[float]) -> float:
    """Events from a drift until the served loss, over the last 5,000 events, has won back 90 % of
    what the drift cost `dense`: from its worst 5,000 events down to its level in the last 10,000 of
    the 50,000 after it. Mean over drifts; 50,000 where that is never.

    Both are of the same events, and that level is one for all policies: to settle soon at a worse
    one is not to win back.
    """
    spans, width = [], 5_000 // BIN_EVENTS
    for drift in drifts:
        first = -(-drift // BIN_EVENTS)
        window = slice(first, first + AFTER_EVENTS // BIN_EVENTS)
        ours, theirs = (
            np.convolve(losses[window], np.ones(width) / width, "valid")
            for losses in (course, dense)
        )
        if len(theirs) < 2 * width:
            continue
        level = float(np.mean(dense[window][-2 * width :]))
        bound = level + 0.1 * (theirs.max() - level)
        # Events differ in how hard they are: beside `dense`, which meets the same ones, that shows
        # least.
        reached = np.flatnonzero(ours - theirs + np.minimum.accumulate(theirs) <= bound)
        spans.append((reached[0] + width) * BIN_EVENTS if len(reached) else AFTER_EVENTS)
    return float(np.mean(spans)) if spans else math.nan


def asked_for(
    stream: Stream, quick: bool, options: argparse.Namespace
) -> Iterator[tuple[str, float, int]]:
    """Policy, budget and seed of each row that is wanted, the first seed of all of them first."""
    for seed in range(1) if quick else options.seeds:
        for budget, policies in BUDGETS.items():
            few = budget != 0.1 and (quick or seed > 2)
            if budget not in options.budgets or few or (stream.name == COST_STREAM and seed):
                continue
            for policy in policies:
                wanted = options.only or (QUICK_POLICIES if quick else None)
                costed = stream.name != COST_STREAM or (policy in COST_POLICIES and budget == 0.1)
                if costed and (not wanted or policy in wanted):
                    yield policy, budget, seed


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every row that is asked for, and the claims that they bear out or not."""
    torch.set_num_threads(1)
    kept = Rows(options.rows, ROW_FIELDS)
    lines = []
    at_commit = commit()
    events = QUICK_EVENTS if quick else options.events
    for stream in streams(
        options.recordings, events, options.streams or (["abrupt"] if quick else None)
    ):
        batches, found = Batches(stream), {}
        for policy, budget, seed in asked_for(stream, quick, options):
            row = kept.get(stream.name, len(stream.events), policy, budget, seed)
            if row is None:
                if options.print:
                    continue
                started_s = time.perf_counter()
                key = {"stream": stream.name, "events": len(stream.events), "policy": policy}
                row = (
                    key
                    | {"budget": budget, "seed": seed}
                    | run(stream, batches, policy, budget, seed)
                )
                row |= {"seconds": time.perf_counter() - started_s, "commit": at_commit}
                kept.add(row)
                print(
                    msgspec.json.encode(row | {"course": None}).decode(),
                    file=sys.stderr,
                    flush=True,
                )
            found.setdefault((policy, budget), []).append(row)
        lines += summarise(stream, found)
        if options.plots and found:
            draw(stream, found, options.plots)
    setting = {
        "events": events,
        "published every": SERVED,
        "commits": ", ".join(sorted({row["commit"] for row in kept})),
    }
    return Findings(lines, claims(lines), setting, tables(lines))


def summarise(
    stream: Stream, found: dict[tuple[str, float], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """A line for each policy and budget: medians over seeds, gaps to dense of the same seed in
    percent."""
    dense = {row["seed"]: row for row in found.get(("dense", 0.1), [])}
    lines = []
    for (policy, budget), seeds in found.items():
        line: dict[str, Any] = {
            "stream": stream.name,
            "policy": policy,
            "budget": budget,
            "seeds": len(seeds),
        }
        for name in ("ne", *(f"served_{every}" for every in sorted({SERVED, *ALSO_SERVED[0.1]}))):
            line[name] = _median(row.get(name) for row in seeds)
        beside = [(row, dense[row["seed"]]) for row in seeds if row["seed"] in dense]
        for name, of in (
            ("gap_percent", f"served_{SERVED}"),
            ("gap_after_drift_percent", "after_drift"),
        ):
            gaps = [100 * (row[of] / other[of] - 1) for row, other in beside if row[of]]
            line[name] = _median(gaps)
            line[name.replace("percent", "low")] = min(gaps, default=math.nan)
            line[name.replace("percent", "high")] = max(gaps, default=math.nan)
        line["won_back_events"] = _median(
            won_back(stream.drifts, row["course"], other["course"]) for row, other in beside
        )
        line |= {name: median(row[name] for row in seeds) for name in ("sparsity", "cost")}
        line["by_layer"] = ", ".join(
            f"{layer} {median(row['by_layer'][layer] for row in seeds):.0%}"
            for layer in seeds[0]["by_layer"]
        )
        line["served_by_seed"] = {row["seed"]: row[f"served_{SERVED}"] for row in seeds}
        # Older rows have no such ratio.
        line["table_ratio"] = _median(row.get("table_ratio") for row in seeds)
        if line["table_ratio"] < 1:
            line["by_layer"] += f", table bytes {1 - line['table_ratio']:.0%}"
        line |= {"drifts_found": _median(len(row["drifts_found"]) for row in seeds)}
        line |= {"forced": sum(row["forced"] for row in seeds)}
        lines.append(line)
    for name, entropy in naive(stream).items():
        empty = dict.fromkeys(lines[0], math.nan) | {"by_layer": ""} if lines else {}
        lines.append(
            empty | {"stream": stream.name, "policy": name, f"served_{SERVED}": entropy, "seeds": 1}
        )
    return lines


def _median(values: Any) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return median(known) if known else math.nan


def claims(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims about `adaptive`, as far as there are lines."""
    made, served = [], f"served_{SERVED}"
    by_stream: dict[str, dict[tuple[str, float], dict[str, Any]]] = {}
    for line in lines:
        by_stream.setdefault(line["stream"], {})[line["policy"], line["budget"]] = line
    pruned = [line for line in lines if line["sparsity"] > 0]
    for budget in sorted({line["budget"] for line in pruned}, reverse=True):
        off = max(abs(line["sparsity"] - 1 + budget) for line in pruned if line["budget"] == budget)
        made.append(
            at_most(
                f"{1 - budget:.0%} sparse: furthest from it on {len(by_stream)} streams", off, 0.01
            )
        )
    for stream, found in by_stream.items():
        ours = found.get(("adaptive", 0.1))
        if stream == COST_STREAM and ours:
            made.append(
                at_most(
                    "four drifts in 2 million events: learning cost over dense", ours["cost"], 0.45
                )
            )
        if not SYNTHETIC.get(stream):
            continue
        for budget, bound in ((0.1, 0.2), (0.05, 0.5)):
            if line := found.get(("adaptive", budget)):
                at = f"{stream}, {1 - budget:.0%} sparse: adaptive over dense, percent"
                made.append(at_most(at, line["gap_percent"], bound))
        if not ours:
            continue
        lost = ours["gap_after_drift_percent"]
        if _abrupt(stream):
            made.append(
                at_most(f"{stream}: the same in the 50,000 events after a drift", lost, 1.0)
            )
        for other in ("static", "magnitude"):
            if line := found.get((other, 0.1)):
                ratio = _times(line["gap_after_drift_percent"], lost)
                made.append(
                    at_least(f"{stream}: {other} loses this many times as much then", ratio, 3.0)
                )
        for other in ("rigl", "magnitude", "small"):
            if line := found.get((other, 0.1)):
                ratio = ours[served] / line[served]
                made.append(
                    at_most(f"{stream}: adaptive's served entropy over that of {other}", ratio, 1.0)
                )
        if line := found.get((UNIFORM, 0.1)):
            of = line["served_by_seed"]
            won = [
                entropy <= of[seed]
                for seed, entropy in ours["served_by_seed"].items()
                if seed in of
            ]
            made.append(
                at_least(
                    f"{stream}: share of {len(won)} seeds that beat uniform layers", mean(won), 0.8
                )
            )
        static = found.get(("static", 0.1))
        if _abrupt(stream) and static and static["won_back_events"] > 0:
            ratio = ours["won_back_events"] / static["won_back_events"]
            made.append(
                at_most(f"{stream}: events to win back 90 %, adaptive over static", ratio, 0.5)
            )
    return made


def _abrupt(stream: str) -> bool:
    return any(drift.startswith("abrupt") for drift in SYNTHETIC[stream])


def _times(more: float, less: float) -> float:
    """The ratio of `more` to `less`; infinite where nothing is lost."""
    return more / less if less > 0 else math.inf if more > 0 else math.nan


def draw(
    stream: Stream, found: dict[tuple[str, float], list[dict[str, Any]]], directory: Path
) -> None:
    """The gap to dense over the events, in percent of dense's loss, over the last 5,000: medians
    over seeds."""
    dense = {row["seed"]: np.array(row["course"]) for row in found.get(("dense", 0.1), [])}
    width, lines = 5, []
    for policy in ("static", "small", "rigl", ONCE, "adaptive"):
        gaps = []
        for row in found.get((policy, 0.1), []):
            if row["seed"] in dense:
                ours, theirs = (
                    np.convolve(c, np.ones(width), "valid")
                    for c in (row["course"], dense[row["seed"]])
                )
                gaps.append(100 * (ours / theirs - 1))
        if gaps:
            ends = [BIN_EVENTS * (at + width) for at in range(len(gaps[0]))]
            name = "no replays" if policy == ONCE else policy
            lines.append(Line(name, ends, np.median(gaps, 0).tolist()))
    if lines:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{stream.name.replace(' ', '_')}.png"
        write_gaps(path, lines, events=len(stream.events), drifts=stream.drifts)


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recordings", type=Path, help="folder of recorded streams")
    parser.add_argument("--events", type=int, default=EVENTS, help="length of a stream, at most")
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument(
        "--print", action="store_true", help="measure nothing: print what the rows say"
    )
    parser.add_argument("--plots", type=Path, help="folder for plots")
    parser.add_argument(
        "--seeds", type=seeds_of, default=seeds_of("0-4"), help="A-B; seeds above 2 at 90 %% only"
    )
    parser.add_argument(
        "--budgets", type=float, nargs="*", default=list(BUDGETS), help="of 0.2, 0.1, 0.05, 0.02"
    )
    parser.add_argument("--streams", nargs="*", help="streams whose names contain one of these")
    parser.add_argument("--only", nargs="*", choices=POLICIES, help="policies")
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("quality", measured, rest, parser)


if __name__ == "__main__":
    run_main()
