"""How good a sparse model is that regrows and is pruned anew, beside the dense one and every other policy.

In: drifting synthetic streams whose drifts are known, and recordings (`--recordings DIR`). Out: a row for each stream,
budget and policy: normalized entropy in training and as served at three intervals of publication, the gap to `dense`
with its spread over seeds, the same in the 50,000 events after each true drift, what learning cost; and the claims that
the rows bear out or not.

A whole run takes hours. `--rows FILE` keeps each measured row, with its commit, as soon as it is there, and does not
measure it again; `--streams` and `--only` (policies) split a run.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import msgspec
import numpy as np
import torch

from benchmarks.frame import Findings, Rows, at_least, at_most, commit, main
from model.evaluation import binary_entropy, log_losses
from model.features import EventBatch, Schema
from model.learner import LearnerConfig
from pruning.policy import PolicyName, PruningConfig
from stream.backtest import rebatch
from stream.drift import DriftConfig
from stream.events import table_to_batch
from stream.recording import propose_schema, read_recording
from stream.synthetic import SCHEMA, SyntheticConfig, drift_points, generate
from stream.trainer import Trainer, TrainingConfig

INTERVALS = (1_000, 128, 5_000)
"""Events between publications; the first is the one that gaps and claims are of."""
AFTER_EVENTS = 50_000
QUICK_EVENTS, QUICK_POLICIES = 40_000, ("dense", "static", "adaptive")
BUDGETS = {0.1: tuple(get_args(PolicyName)), **dict.fromkeys((0.2, 0.05, 0.02), ("static", "adaptive"))}
SYNTHETIC: dict[str, tuple[str, ...]] = {
    "stationary": (),
    "abrupt": ("abrupt:concept@50%",),
    "gradual": ("gradual:concept@40%+20%",),
    "recurring": ("abrupt:concept@40%", "recurring:concept@70%"),
    "new items": ("abrupt:new_items@50%:0.9:0.03",),
    "all at once": ("abrupt:concept@50%", "abrupt:new_items@50%:0.5", "abrupt:base_rate@50%:0.2"),
}
ROW_FIELDS = ("stream", "events", "policy", "budget", "seed")
"""What tells one measured row from another."""


class Stream(NamedTuple):
    """A stream in memory, and where it is known to drift."""

    name: str
    schema: Schema
    events: EventBatch
    drifts: list[int]


def streams(recordings: Path | None, events: int, wanted: list[str] | None) -> Iterator[Stream]:
    """The synthetic streams, `events` long, and the recordings, at most so long; one at a time."""

    def asked(name: str) -> bool:
        return not wanted or any(part in name for part in wanted)

    for name, drifts in SYNTHETIC.items():
        if asked(name):
            config = SyntheticConfig(events=events, seed=1, drifts=drifts)
            batch = EventBatch.concat([table_to_batch(table, SCHEMA)[0] for table in generate(config)])
            yield Stream(name, SCHEMA, batch, sorted({point["event"] for point in drift_points(config)}))
    for path in sorted(recordings.iterdir()) if recordings else ():
        name = path.name.split(".")[0]
        if path.is_file() and path.suffix != ".md" and asked(name):
            schema = propose_schema(path)
            chunks = (batch for batch, _ in read_recording(path, schema))
            yield Stream(name, schema, EventBatch.concat(list(rebatch(chunks, 65_536, events))), [])


def run(stream: Stream, policy: str, budget: float, seed: int) -> dict[str, Any]:
    """One policy over a stream: the trainer itself, and what its publications predicted."""
    events, warmup = len(stream.events), PruningConfig().warmup_events
    pruning = PruningConfig(policy=policy, budget=budget, warmup_events=min(warmup, events // 5))
    trainer = Trainer(stream.schema, LearnerConfig(seed=seed), pruning, DriftConfig(), TrainingConfig())
    publications = {every: trainer.follow(every) for every in INTERVALS}
    losses, found = [], []
    served = publications[INTERVALS[0]].evaluation
    for batch in rebatch([stream.events], 128):
        before = served.total.loss_sum
        step = trainer.step(batch)
        losses.append((len(batch), served.total.loss_sum - before))
        found += [drift.event for drift in step.drifts]
        for publication in publications.values():
            if publication.due(step):
                publication.refresh()
    learner, entropy = trainer.learner, binary_entropy(served.total.base_rate)
    sizes, sums = np.array(losses).T
    ends = np.cumsum(sizes)
    inside = np.zeros(len(ends), bool)
    for drift in stream.drifts:
        inside |= (ends > drift) & (ends <= drift + AFTER_EVENTS)
    return {
        "ne": trainer.prequential.total.normalized_entropy,
        **{f"served_{every}": p.evaluation.total.normalized_entropy for every, p in publications.items()},
        "after_drift": float(sums[inside].sum() / sizes[inside].sum() / entropy) if inside.any() else math.nan,
        "won_back_events": _won_back(ends, sums / sizes, stream.drifts),
        "sparsity": 1 - learner.multiply_adds / learner.dense_cost,
        "by_layer": learner.sparsity_by_layer(),
        "cost": learner.learned_multiply_adds / (trainer.events * learner.dense_cost),
        "drifts_found": found,
        "forced": trainer.policy.state.forced,
    }


def _won_back(ends: np.ndarray, losses: np.ndarray, drifts: list[int]) -> float:
    """Events from the first true drift until served loss, over 5,000 events, has won back 90 % of what the drift cost:
    from the worst 5,000 events after it down to the level of the 10,000 at the end of its 50,000."""
    if not drifts:
        return math.nan
    start = int(np.searchsorted(ends, drifts[0]))
    stop = int(np.searchsorted(ends, drifts[0] + AFTER_EVENTS))
    width = 40  # batches of 128: about 5,000 events
    smooth = np.convolve(losses[start:stop], np.ones(width) / width, "valid")
    if len(smooth) < 2 * width:
        return math.nan
    level = losses[max(stop - 2 * width, start) : stop].mean()
    bound = level + 0.1 * (smooth.max() - level)
    reached = np.flatnonzero(smooth[smooth.argmax() :] <= bound)
    return float((smooth.argmax() + (reached[0] if len(reached) else len(smooth))) * 128)


def naive(stream: Stream) -> dict[str, float]:
    """Normalized entropy of the click rate so far, and of that of the last 5,000 events, always 1,000 events late."""
    labels = stream.events.labels_B.astype(np.float64)
    clicks = np.concatenate([[0.0], np.cumsum(labels)])
    known = np.arange(len(labels)) // INTERVALS[0] * INTERVALS[0]
    measures = {}
    for name, first in (
        ("constant CTR", np.zeros_like(known)),
        ("CTR of the last 5,000", np.maximum(known - 5_000, 0)),
    ):
        rate = (clicks[known] - clicks[first] + 0.5) / (known - first + 1)
        loss = log_losses(np.log(rate / (1 - rate)), labels).mean()
        measures[name] = float(loss / binary_entropy(float(labels.mean())))
    return measures


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every row that is asked for, and the claims that they bear out or not."""
    torch.set_num_threads(1)
    kept, rows, at_commit = Rows(options.rows, ROW_FIELDS), [], commit()
    events = QUICK_EVENTS if quick else options.events
    wanted = options.streams or (["abrupt"] if quick else None)
    policies = options.only or (list(QUICK_POLICIES) if quick else None)
    for stream in streams(options.recordings, events, wanted):
        found: dict[tuple[str, float], list[dict[str, Any]]] = {}
        for seed in range(1 if quick else options.seeds):
            for budget, run_at in BUDGETS.items():
                for policy in run_at:
                    if (policies and policy not in policies) or budget not in options.budgets:
                        continue
                    row = kept.get(stream.name, len(stream.events), policy, budget, seed)
                    if row is None:
                        started_s = time.perf_counter()
                        key = {"stream": stream.name, "events": len(stream.events), "policy": policy}
                        row = key | {"budget": budget, "seed": seed} | run(stream, policy, budget, seed)
                        row |= {"seconds": time.perf_counter() - started_s, "commit": at_commit}
                        kept.add(row)
                        print(msgspec.json.encode(row).decode(), file=sys.stderr, flush=True)
                    found.setdefault((policy, budget), []).append(row)
        rows += summarise(stream, found)
    setting = {"events": events, "seeds": options.seeds if not quick else 1, "publications": str(INTERVALS)}
    return Findings(rows, claims(rows), setting)


def summarise(stream: Stream, found: dict[tuple[str, float], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A line for each policy and budget: medians over seeds, gaps to dense of the same seed in percent."""
    dense = {row["seed"]: row for row in found.get(("dense", 0.1), [])}
    lines = []
    for (policy, budget), seeds in found.items():
        line = {"stream": stream.name, "policy": policy, "budget": budget, "seeds": len(seeds)}
        for name in ("ne", *(f"served_{every}" for every in sorted(INTERVALS))):
            line[name] = median(row[name] for row in seeds)
        for name, measure_ in (("gap_percent", f"served_{INTERVALS[0]}"), ("gap_after_drift_percent", "after_drift")):
            gaps = [
                100 * (row[measure_] / dense[row["seed"]][measure_] - 1)
                for row in seeds
                if row["seed"] in dense and row[measure_] is not None and not math.isnan(row[measure_])
            ]
            line[name] = median(gaps) if gaps else math.nan
            line[name.replace("percent", "low")] = min(gaps, default=math.nan)
            line[name.replace("percent", "high")] = max(gaps, default=math.nan)
        back = [row["won_back_events"] for row in seeds if row["won_back_events"] is not None]
        line |= {"won_back_events": median(back) if back else math.nan}
        line |= {name: median(row[name] for row in seeds) for name in ("sparsity", "cost")}
        lines.append(line)
    for name, entropy in naive(stream).items():
        empty = dict.fromkeys(lines[0], math.nan) if lines else {}
        lines.append(empty | {"stream": stream.name, "policy": name, f"served_{INTERVALS[0]}": entropy, "seeds": 1})
    return lines


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What niwaki promises of `adaptive`, as far as there are rows to tell."""
    made, served = [], f"served_{INTERVALS[0]}"
    by_stream: dict[str, dict[tuple[str, float], dict[str, Any]]] = {}
    for row in rows:
        by_stream.setdefault(row["stream"], {})[row["policy"], row["budget"]] = row
    for stream, found in by_stream.items():
        for budget, bound in ((0.1, 0.2), (0.05, 0.5)):
            ours, static = found.get(("adaptive", budget)), found.get(("static", budget))
            if stream not in SYNTHETIC or not SYNTHETIC[stream] or not ours:
                continue
            at = f"{stream}, {1 - budget:.0%} sparse"
            made.append(at_most(f"{at}: adaptive over dense, percent", ours["gap_percent"], bound))
            after = ours["gap_after_drift_percent"]
            made.append(at_most(f"{at}: the same in the 50,000 events after a drift", after, 1.0))
            if static:
                lost = static["gap_after_drift_percent"]
                made.append(at_least(f"{at}: static loses this many times as much then", _times(lost, after), 3.0))
            for other in ("rigl", "magnitude", "small"):
                if (other, budget) in found:
                    ratio = ours[served] / found[other, budget][served]
                    made.append(at_most(f"{at}: adaptive's served entropy over that of {other}", ratio, 1.0))
            if static and static["won_back_events"] > 0:
                ratio = ours["won_back_events"] / static["won_back_events"]
                made.append(at_most(f"{at}: events to win back 90 %, adaptive over static", ratio, 0.5))
    return made


def _times(more: float, less: float) -> float:
    """How many times `less` goes into `more`; without end where nothing is lost."""
    return more / less if less > 0 else math.inf if more > 0 else math.nan


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recordings", type=Path, help="folder of recorded streams")
    parser.add_argument("--events", type=int, default=200_000, help="length of a stream, at most")
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each policy on each stream")
    parser.add_argument("--budgets", type=float, nargs="*", default=[0.1], help="of 0.2, 0.1, 0.05, 0.02")
    parser.add_argument("--streams", nargs="*", help="streams whose names contain one of these")
    parser.add_argument("--only", nargs="*", choices=get_args(PolicyName), help="policies")
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("quality", measured, rest)


if __name__ == "__main__":
    run_main()
