"""The drift benchmark's rows as lines of a table, and the claims about them.

In: measured rows, one for each stream and seed. Out: a line for each stream, click rate and
setting, and the claims about the default setting, whether they hold or not.
"""

import math
from statistics import mean, median
from typing import Any

from benchmarks.drift.limits import limit
from benchmarks.frame import at_most

CALM = ("stationary", "daily cycle", "first day: daily cycle")
OFTEN = 50_000
"""Expected events between false alarms in a setting that has some, so that their number can be
checked."""


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each stream, click rate and setting."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["stream"], row["rate"], row["setting"]), []).append(row)
    lines = []
    for (name, rate, setting), seeds in groups.items():
        drifts = [delay for row in seeds for delay in row["delays"]]
        delays = [delay for delay in drifts if delay is not None]
        false, watched = (
            sum(len(row["false_alarms"]) for row in seeds),
            sum(row["watched"] for row in seeds),
        )
        lines.append(
            {
                "stream": name,
                "rate": rate,
                "setting": setting,
                "seeds": len(seeds),
                "limit": limit(name, rate),
                "mean_delay": mean(delays) if delays else math.nan,
                "median_delay": float(median(delays)) if delays else math.nan,
                "missed": 1 - len(delays) / len(drifts) if drifts else math.nan,
                "false_alarms": false,
                "false_per_million": 1e6 * false / sum(row["events"] for row in seeds),
                "watched_per_false_alarm": watched / false if false else math.nan,
                "answers": sum(row.get("answers", math.nan) for row in seeds),
                "answers_for_nothing": sum(row.get("for_nothing", math.nan) for row in seeds),
                "microseconds_per_detector": median(row["microseconds"] for row in seeds),
                "share_of_loop": median(row.get("share", math.nan) for row in seeds),
            }
        )
    return lines


def claims(rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims about the default setting, as far as there are rows."""
    made = []
    at = {(line["stream"], line["rate"], line["setting"]): line for line in lines}
    calm = [line for line in lines if line["stream"] in CALM]
    if default := [row for row in rows if row["stream"] in CALM and row["setting"] == "default"]:
        false, events = (
            sum(len(row["false_alarms"]) for row in default),
            sum(row["events"] for row in default),
        )
        made.append(
            at_most(
                f"default: false alarms per million of {events:,} calm events",
                1e6 * false / events,
                0.5,
            )
        )
    for line in calm:
        if line["setting"] == "default, one in 50,000":
            ratio = line["watched_per_false_alarm"] / OFTEN
            where = f"{line['stream']}, {line['rate']:.0%} clicks"
            off = max(ratio, 1 / ratio) if ratio > 0 else math.inf
            made.append(
                at_most(
                    f"{where}: run time between false alarms, times too long or short", off, 2.0
                )
            )
    for name, bound in (
        ("rate x 2", 1_000),
        ("rate x 1.4", 5_000),
        ("first day: rate x 2", 1_000),
        ("first day: rate x 1.4", 5_000),
    ):
        if line := at.get((name, 0.05, "default")):
            delays = [
                r
                for row in rows
                if (row["stream"], row["rate"]) == (name, 0.05)
                for r in _delays(row)
            ]
            made.append(
                at_most(f"default: median delay of {name} from 5 %", float(median(delays)), bound)
            )
            made.append(at_most(f"default: share of {name} from 5 % missed", line["missed"], 0.0))
    for line in lines:
        if line["setting"] == "default" and line["stream"] in (
            "concept, half",
            "concept, all",
            "concept, recurring",
        ):
            where = f"default: {line['stream']}, {line['rate']:.0%} clicks"
            made.append(at_most(f"{where}: share missed", line["missed"], 0.0))
    for line in lines:
        if line["setting"] == "default" and line["stream"] == "adaptive: two concepts":
            made.append(
                at_most(
                    "adaptive, two concepts: false alarms, phase changes included",
                    line["false_alarms"],
                    0,
                )
            )
            made.append(at_most("adaptive, two concepts: share missed", line["missed"], 0.0))
        if line["setting"] == "default" and line["share_of_loop"] > 0:
            claim = "share of detection in the loop of a trainer with a pruned network"
            claim = f"{line['stream']}: {claim}"
            made.append(at_most(claim, line["share_of_loop"], 0.05))
    if costs := [
        line["microseconds_per_detector"] for line in lines if line["setting"] == "default"
    ]:
        made.append(
            at_most(
                "default: microseconds an event and detector, signals included", max(costs), 2.0
            )
        )
    return made


def _delays(row: dict[str, Any]) -> list[float]:
    """Those of the default setting; a missed drift takes for ever."""
    if row["setting"] != "default":
        return []
    return [math.inf if delay is None else delay for delay in row["delays"]]
