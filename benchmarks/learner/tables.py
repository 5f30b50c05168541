"""Measures of a run, tables of all runs, and the claims of the learner's benchmark.

In: logits by delay with their labels; rows of measures. Out: plain numbers, and Markdown that can
stand in a README as it is. A cell has the median over seeds and, where there are several, the
lowest and the highest in brackets.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.frame import at_most
from niwaki.model.evaluation import Evaluation

LEAST_RANKED = 0.01
"""Share of the events that have to be in requests with both classes."""
DELAYS = (128, 1_000, 5_000)
WINDOW_EVENTS = 20_000
ANY_WINDOW_EVENTS = 1_000
FEWEST_EVENTS = 20_000
"""Of a shorter stream, whose start weighs too much, nothing is claimed."""
NIWAKI, DLRM, INTEREST = "niwaki, dense", "DLRM, plain", "DIN"
BATCHES = {32: "niwaki, batches of 32", 512: "niwaki, batches of 512"}
Row = dict[str, Any]


def summarise(
    predictions: dict[int, np.ndarray], labels_B: np.ndarray, times_s_B: np.ndarray
) -> Row:
    """The measures of one run: by delay, and at 1,000 those that the table has once. None: not
    measured."""
    half, measures = len(labels_B) // 2, {}
    for delay in DELAYS:
        logits_B = predictions.get(delay)
        measured = logits_B is not None
        measures[f"ne_{delay}"] = (
            evaluate(logits_B, labels_B).normalized_entropy if measured else None
        )
        later = evaluate(logits_B[half:], labels_B[half:]).normalized_entropy if measured else None
        measures[f"second_half_{delay}"] = later
        measures[f"window_error_{delay}"] = worst_window(logits_B, labels_B) if measured else None
    at_1000 = evaluate(predictions[1_000], labels_B)
    measures["any_window_error_1000"] = worst_window(
        predictions[1_000], labels_B, ANY_WINDOW_EVENTS
    )
    measures |= {
        "auc": at_1000.auc,
        "request_auc": request_auc(predictions[1_000], labels_B, times_s_B),
        "calibration": at_1000.calibration,
        "decile_error": decile_error(at_1000),
    }
    return {
        key: float(value) if value is not None and math.isfinite(value) else None
        for key, value in measures.items()
    }


def worst_window(
    logits_B: np.ndarray, labels_B: np.ndarray, every_events: int = WINDOW_EVENTS
) -> float | None:
    """Over windows of 20,000 events, but the first, that begin every so many events: how far the
    mean prediction is from the click rate at most, beyond three standard errors of that rate,
    relative to it. None: no such window."""
    errors = []
    for start in range(WINDOW_EVENTS, len(labels_B) - WINDOW_EVENTS + 1, every_events):
        window = slice(start, start + WINDOW_EVENTS)
        found = evaluate(logits_B[window], labels_B[window])
        if rate := found.base_rate:
            beyond = abs(found.calibration - 1) * rate - 3 * math.sqrt(
                rate * (1 - rate) / WINDOW_EVENTS
            )
            errors.append(max(0.0, beyond / rate))
    return max(errors, default=None)


def request_auc(logits_B: np.ndarray, labels_B: np.ndarray, times_s_B: np.ndarray) -> float | None:
    """AUC within a request, which is all events of one time: the mean over the requests that have
    both classes, weighted by their events (Zhou et al. 2018, arXiv:1706.06978, section 5.3, who
    weight by impressions, too). None where less than a hundredth of the events are in those."""
    order = np.lexsort((logits_B, times_s_B))
    logits_B, clicked_B, times_s_B = logits_B[order], labels_B[order] >= 0.5, times_s_B[order]
    starts_B = np.diff(times_s_B, prepend=np.nan) != 0
    requests_B = np.cumsum(starts_B) - 1
    ties_B = np.cumsum(starts_B | (np.diff(logits_B, prepend=np.nan) != 0)) - 1
    # Equal predictions share the mean of their ranks.
    ranks_B = (np.bincount(ties_B, np.arange(len(order))) / np.bincount(ties_B))[ties_B]
    ranks_B -= np.flatnonzero(starts_B)[requests_B]
    events = np.bincount(requests_B)
    clicks = np.bincount(requests_B, clicked_B)
    above = np.bincount(requests_B, ranks_B * clicked_B) - clicks * (clicks - 1) / 2
    mixed = (clicks > 0) & (clicks < events)
    if events[mixed].sum() < LEAST_RANKED * len(labels_B):
        return None
    aucs = above[mixed] / (clicks * (events - clicks))[mixed]
    return float(np.average(aucs, weights=events[mixed]))


def decile_error(evaluation: Evaluation) -> float:
    """Mean distance of the prediction from the click rate over ten slices by prediction, relative
    to the click rate."""
    deciles = evaluation.calibration_by_decile()
    apart = sum(abs(one.predicted - one.clicked) * one.events for one in deciles)
    return apart / max(evaluation.label_sum, 1.0)


def evaluate(logits_B: np.ndarray, labels_B: np.ndarray) -> Evaluation:
    """All events at once."""
    evaluation = Evaluation()
    evaluation.update(logits_B, labels_B)
    return evaluation


def merged(rows: Sequence[Row]) -> list[Row]:
    """One row for all seeds of a system on a stream: of each measure the median, and the lowest and
    the highest as `_low` and `_high`."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["stream"], row["events"], row["system"]), []).append(row)
    together = []
    for (stream, events, system), group in groups.items():
        one = {"stream": stream, "events": events, "system": system, "seeds": len(group)}
        for name in {name for row in rows for name in row} - {
            "stream",
            "events",
            "system",
            "seed",
            "commit",
            "wide",
        }:
            known = [row[name] for row in group if row.get(name) is not None]
            for key, of in (("", median), ("_low", min), ("_high", max)):
                one[name + key] = of(known) if known else None
        one["wide"] = any(row.get("wide") for row in group)
        one["commit"] = ", ".join(sorted({row["commit"] for row in group}))
        together.append(one)
    return [{key: one.get(key) for key in sorted(one, key=_order)} for one in together]


def _order(key: str) -> tuple[int, str]:
    first = ("stream", "events", "system", "seeds")
    return (first.index(key) if key in first else len(first), key)


def tables(rows: Sequence[Row], systems: Sequence[str]) -> str:
    """A table of normalized entropy for each delay, and tables of the other measures; `systems` in
    this order. Streams with lists or many columns have tables of their own, after the others."""
    blocks = [[row for row in rows if bool(row["wide"]) == wide] for wide in (False, True)]
    titles = ("", "**Recordings with lists and more columns**\n\n")
    return "\n".join(
        title + _block(block, systems) for title, block in zip(titles, blocks, strict=True) if block
    )


def _block(rows: Sequence[Row], systems: Sequence[str]) -> str:
    """The tables of some streams."""
    names = {
        stream: _column(stream, rows)
        for stream in dict.fromkeys((row["stream"], row["events"]) for row in rows)
    }
    found = {(row["stream"], row["events"], row["system"]): row for row in rows}
    shown = [system for system in systems if any(system == row["system"] for row in rows)]

    def table(title: str, measure: str, form: str) -> list[str]:
        lines = [f"| {title} | {' | '.join(names.values())} |", f"|---|{'---|' * len(names)}"]
        for system in shown:
            cells = [_cell(found.get((*stream, system), {}), measure, form) for stream in names]
            if any(cells):
                lines.append(f"| {system} | {' | '.join(cells)} |")
        return [*lines, ""] if len(lines) > 2 else []

    lines = []
    for delay in DELAYS:
        lines += table(f"NE, a publication every {delay:,}", f"ne_{delay}", ".4f")
    lines += table("AUC at 1,000", "auc", ".4f")
    lines += table("AUC within a request at 1,000", "request_auc", ".4f")
    lines += table("predicted over actual clicks at 1,000", "calibration", ".3f")
    lines += table("error by decile at 1,000", "decile_error", ".3f")
    for delay in DELAYS:
        lines += table(f"worst window at {delay:,}", f"window_error_{delay}", ".3f")
    lines += table("the same at 1,000, begun every 1,000 events", "any_window_error_1000", ".3f")
    for delay in DELAYS:
        lines += table(f"NE, second half, at {delay:,}", f"second_half_{delay}", ".4f")
    return "\n".join([*lines, *table("events per s", "events_per_s", ",.0f")])


def _column(stream: tuple[str, int], rows: Sequence[Row]) -> str:
    name, events = stream
    lengths = {row["events"] for row in rows if row["stream"] == name}
    return name if len(lengths) == 1 else f"{name}, {events:,} events"


def _cell(row: Row, measure: str, form: str) -> str:
    if row.get(measure) is None:
        return ""
    cell = format(row[measure], form)
    if row["seeds"] == 1:
        return cell
    return (
        f"{cell} ({format(row[f'{measure}_low'], form)} to {format(row[f'{measure}_high'], form)})"
    )


def claims(rows: Sequence[Row], synthetic: set[str]) -> list[dict[str, Any]]:
    """The claims, as far as there are rows: of each claim the worst case, niwaki's worst seed."""
    by_stream: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["events"] >= FEWEST_EVENTS:
            by_stream.setdefault(row["stream"], {})[row["system"]] = row
    cases: dict[str, list[tuple[float, str]]] = {claim: [] for claim in _BOUNDS}
    distances: list[dict[str, Any]] = []
    for stream, found in by_stream.items():
        if ours := found.get(NIWAKI):
            wide = ours["wide"]
            peers = {name: row for name, row in found.items() if not name.startswith("niwaki")}
            simple = [row for name, row in peers.items() if name != DLRM and not wide]
            for delay in DELAYS:
                where, worst = f"{stream} at {delay:,}", ours[f"ne_{delay}_high"]
                if simple and stream not in synthetic:
                    cases[_OTHERS].append(
                        (worst / min(row[f"ne_{delay}"] for row in simple), where)
                    )
                if DLRM in found:
                    cases[_DLRM].append((worst / found[DLRM][f"ne_{delay}_low"], where))
                cases[_HALF].append((ours[f"second_half_{delay}_high"], where))
            if stream not in synthetic and ours["window_error_1000"] is not None:
                cases[_WINDOW].append((ours["window_error_1000_high"], stream))
        if all(name in found for name in BATCHES.values()):
            served = [found[name]["ne_5000"] for name in BATCHES.values()]
            cases[_BATCHES].append((max(served) / min(served) - 1, stream))
        if ours and ours["wide"]:
            distances += _distances(stream, ours, peers)
    worst = {claim: max(found) for claim, found in cases.items() if found}
    return [
        at_most(f"{claim}; worst of {len(cases[claim])}: {where}", value, _BOUNDS[claim])
        for claim, (value, where) in worst.items()
    ] + distances


def _distances(stream: str, ours: Row, peers: dict[str, Row]) -> list[dict[str, Any]]:
    """The claims on one stream with lists or many columns: niwaki's worst seed over the best seed
    of the best peer, at the shortest and the longest delay."""
    made = []
    for delay in (DELAYS[0], DELAYS[-1]) if peers else ():
        best = min(peers, key=lambda name: peers[name][f"ne_{delay}_low"])
        ratio = ours[f"ne_{delay}_high"] / peers[best][f"ne_{delay}_low"]
        made.append(at_most(f"{stream} at {delay:,}: over the best peer, {best}", ratio, 0.99))
    return made


_OTHERS = "on each recording and at each delay: over the best of the others, the DLRM apart"
_DLRM = "on each stream and at each delay: over the plain DLRM"
_HALF = "NE over the second half of each stream, where 1 is the best constant of that half"
_WINDOW = (
    "on each recording at 1,000: how far a window's mean is from its click rate, beyond three"
    " standard errors"
)
_BATCHES = "at 5,000: how far batches of 32 and of 512 are apart"
_BOUNDS = {_OTHERS: 0.99, _DLRM: 1.0, _HALF: 1.0, _WINDOW: 0.03, _BATCHES: 0.01}
