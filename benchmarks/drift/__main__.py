"""Delay, misses, false alarms and cost of each detector setting, on streams with known drifts.

In: synthetic streams whose drifts are known, long ones that have none (`benchmarks.drift.streams`),
and recordings (`--recordings DIR`). Out: a row for each stream and setting, and the claims that
they bear out or not.

Everything goes through the learner. The rows called `adaptive` are whole runs, in which each drift
regrows the network; they say, too, what detection costs. `--rows FILE` keeps each measured row and
does not measure it again, `--traces DIR` keeps what the learner predicted; `--seeds 0-9` and
`--parts` split a run.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import torch

from benchmarks.drift.claims import OFTEN, claims, summarise
from benchmarks.drift.streams import (
    AGAIN,
    AT,
    BATCH,
    DAILY_CYCLE,
    FIRST_DAY_KINDS,
    KINDS,
    MAX_DELAY,
    RATES,
    Trace,
    Traces,
    batches,
    judge,
)
from benchmarks.frame import Findings, Rows, commit, main, seeds_of
from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import log_losses
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policy import Move, Phase
from niwaki.stream.drift.click_rate import Changed, ClickRate
from niwaki.stream.drift.monitor import DetectorConfig, Drift, DriftConfig, DriftMonitor
from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.signals import Signals
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig

STATIONARY_EVENTS, WHOLE_EVENTS = 2_000_000, 300_000
COST_ROUNDS = 3
ROW_FIELDS = ("stream", "rate", "seed", "setting")
PARTS = ("drifts", "stationary", "first day", "adaptive")


def _one(
    detector: str, signal: str, direction: str | None = None, **parameters: Any
) -> DriftConfig:
    return DriftConfig(
        detectors=(
            DetectorConfig(
                detector=detector, signal=signal, direction=direction, parameters=parameters
            ),
        )
    )


SETTINGS = {
    "default": DriftConfig(),
    "default, one in 1,000,000": DriftConfig(expected_events_between_false_alarms=1_000_000),
    "default, one in 50,000": DriftConfig(expected_events_between_false_alarms=OFTEN),
    "staleness": _one("PageHinkley", "staleness"),
    "recent staleness": _one("PageHinkley", "recent_staleness"),
    "adjusted label": _one("PageHinkley", "adjusted_label"),
    "excess loss": _one("PageHinkley", "excess_loss"),
    "ADWIN, log loss": _one("ADWIN", "log_loss"),
    "ADWIN, label": _one("ADWIN", "label"),
    "DDM, label": _one("DDM", "label"),
    "PageHinkley of River, log loss": _one("PageHinkley", "log_loss", threshold=50.0),
    "every 20,000": _one("DummyDriftDetector", "log_loss", "both", t_0=20_000),
    "never": _one("NoDrift", "log_loss"),
}
LONG_SETTINGS = (
    "default",
    "default, one in 1,000,000",
    "default, one in 50,000",
    "excess loss",
    "ADWIN, log loss",
    "ADWIN, label",
)


class Watcher:
    """One setting, watching traces that follow on each other."""

    def __init__(self, config: DriftConfig):
        self.config = config
        self.monitor = DriftMonitor(config)
        self.signals = Signals(SCHEMA, 2, [one.signal for one in config.detectors])
        self.click_rate = ClickRate()
        self.events = self.read = 0
        self.seconds = 0.0
        self.alarms = []
        self.answered = []
        """Alarms that are not of the click rate alone: an adaptive policy would answer them."""

    def branch(self) -> "Watcher":
        """Another one that goes on from here."""
        other = Watcher(self.config)
        other.monitor.restore(self.monitor.state())
        other.signals.restore(self.signals.state())
        other.click_rate.restore(self.click_rate.state())
        other.events = self.events
        other.seconds = self.seconds
        other.alarms = list(self.alarms)
        other.answered = list(self.answered)
        return other

    def watch(self, trace: Trace) -> "Watcher":
        """Read on."""
        losses_B = log_losses(trace.logits_B, trace.labels_B)
        for start in range(0, len(losses_B), BATCH):
            cut = slice(start, start + BATCH)
            labels_B, times_s_B = trace.labels_B[cut], trace.times_s_B[cut]
            predicted = trace.experts_BE[cut], trace.logits_B[cut], losses_B[cut]
            seen = Observations(labels_B, times_s_B, *predicted)
            started_s = time.perf_counter()
            signals = self.signals.compute(seen)
            self.monitor.begin_anew(self.signals.begun)
            self.click_rate.add(seen)
            self.read = self.events + len(labels_B)
            found = self.monitor.update(
                signals,
                self.events,
                times_s_B,
                losses_B[cut],
                lambda drift: self.changed(drift) != "nothing",
            )
            more = {drift.sign_of for drift in found if self.changed(drift) == "more"}
            if more:
                self.monitor.reset()
            self.answered += sorted(more)
            self.seconds += time.perf_counter() - started_s
            self.alarms += sorted({drift.event for drift in found if drift.event == drift.sign_of})
            self.events += len(labels_B)
            if self.events in trace.exchanged:
                self.monitor.reset(network_replaced=True)
        return self

    def changed(self, drift: Drift) -> Changed:
        """The verdict on a drift, as a trainer asks for it."""
        return self.click_rate.changed(self.read - drift.began, drift.signal)

    def row(
        self, starts: Sequence[int] = (), end: int = 0, of_the_rate: bool = False
    ) -> dict[str, Any]:
        """The alarms as a row, for drifts that start at `starts`, the last one over at `end`.
        `for_nothing`: answers that follow no drift, or one `of_the_rate` alone."""
        delays, false = judge(self.alarms, starts, end)
        after = len(self.answered) if of_the_rate else len(judge(self.answered, starts, end)[1])
        return {
            "events": self.events,
            "delays": delays,
            "false_alarms": false,
            "answers": len(self.answered),
            "for_nothing": after,
            "watched": self.monitor.achieved()["watched_events"],
            "microseconds": 1e6 * self.seconds / self.events / len(self.config.detectors),
        }


def measure_drifts(
    kept: Rows,
    traces: Traces,
    seeds: Sequence[int],
    rates: Sequence[float],
    kinds: Sequence[str],
    settings: Sequence[str],
) -> list[dict]:
    """A row for each kind of drift, click rate, seed and setting."""
    rows = []
    for seed, rate in ((seed, rate) for seed in seeds for rate in rates):
        known = [kept.get(name, rate, seed, setting) for name in kinds for setting in settings]
        if not all(known):
            prefix, rests = traces.drifting(rate, seed, kinds)
            watchers = {name: Watcher(SETTINGS[name]).watch(prefix) for name in settings}
            known = []
            for name, rest in rests:
                starts = (AT, AGAIN) if "recurring" in name else (AT,)
                end, of_the_rate = KINDS[name].last, name.startswith("rate")
                known += [
                    {"stream": name, "rate": rate, "seed": seed, "setting": setting}
                    | watcher.branch().watch(rest).row(starts, end, of_the_rate)
                    for setting, watcher in watchers.items()
                ]
            keep(kept, known)
        rows += known
    return rows


def measure_stationary(
    kept: Rows, traces: Traces, seeds: Sequence[int], events: int, settings: Sequence[str]
) -> list[dict]:
    """A row for each seed and setting; click rates take turns, and every other seed has a daily
    cycle."""
    rows = []
    for seed in seeds:
        name, rate = ("daily cycle", "stationary")[seed % 2], RATES[seed % 3]
        known = [kept.get(name, rate, seed, setting) for setting in settings]
        if not all(known):
            trace = traces.calm(rate, seed, DAILY_CYCLE if name == "daily cycle" else 0.0, events)
            known = [
                {"stream": name, "rate": rate, "seed": seed, "setting": setting}
                | Watcher(SETTINGS[setting]).watch(trace).row()
                for setting in settings
            ]
            keep(kept, known)
        rows += known
    return rows


def measure_first_day(kept: Rows, traces: Traces, seeds: Sequence[int], events: int) -> list[dict]:
    """Rows of the default setting within the first day of event time, at many events a second: a
    drift of each kind, and a calm stream with a daily cycle; click rates take turns in that."""
    rows = []
    cases = [(name, rate, seed) for seed in seeds for rate in RATES for name in FIRST_DAY_KINDS]
    cases += [(None, RATES[seed % 3], seed) for seed in seeds]
    for name, rate, seed in cases:
        row = {"stream": f"first day: {name or 'daily cycle'}", "rate": rate, "seed": seed}
        row |= {"setting": "default"}
        found = kept.get(*row.values())
        if found is None:
            watcher = Watcher(SETTINGS["default"])
            watcher.watch(traces.first_day(rate, seed, name, events))
            found = row | (watcher.row((AT,), AT, "rate" in name) if name else watcher.row())
            keep(kept, [found])
        rows.append(found)
    return rows


def measure_adaptive(
    kept: Rows, seeds: Sequence[int], events: int, recordings: Path | None
) -> list[dict]:
    """Whole runs of the default system, each drift answered: on synthetic streams with two drifts,
    and on recordings, of whose drifts nothing is known."""
    rows = []
    for seed in seeds:
        config = SyntheticConfig(events=events, seed=seed)
        row = {"stream": "adaptive: two concepts", "rate": 0.1, "seed": seed, "setting": "default"}
        found = kept.get(*row.values())
        if found is None:
            found = row | _whole(
                SCHEMA, list(batches(config)), [point.event for point in config.plan()]
            )
            keep(kept, [found])
        rows.append(found)
    for path in sorted(recordings.glob("*.parquet")) if recordings else ():
        row = {"stream": f"adaptive: {path.stem}", "rate": 0.0, "seed": 0, "setting": "default"}
        found = kept.get(*row.values())
        if found is None:
            schema = propose_schema(path)
            found = row | _whole(
                schema, [chunk.batch for chunk in read_recording(path, schema)], []
            )
            keep(kept, [found])
        rows.append(found)
    return rows


def _whole(schema: Schema, events: Sequence[EventBatch], starts: list[int]) -> dict[str, Any]:
    """`answers`: regrowths; `for_nothing`: those that follow no known drift. `share` is that of
    detection in the loop of a trainer that publishes as it does by default, while the network is
    pruned: the median over what lies between two publications, since what else the machine does
    falls on a few of them; `share_mean` is that of all of it."""
    watched_s, loop_s = [0.0], [0.0]
    regrown: list[int] = []
    for _ in range(COST_ROUNDS):
        trainer = Trainer(
            TrainerConfig(
                schema=schema,
                model=LearnerConfig(),
                pruning=PruningConfig(),
                drift=DriftConfig(),
                training=TrainingConfig(),
            )
        )
        replica = trainer.add_replica(TrainingConfig().publish_every_events)
        watcher = Watcher(DriftConfig())  # all rounds notice the same
        regrown = []
        for batch in rebatch(events, TrainingConfig().batch_events):
            started_s = time.perf_counter()
            step = trainer.step(batch)
            published = replica.due(step.move)
            if published:
                replica.refresh()
            if step.phase is Phase.SPARSE:
                watched_s[-1] += step.seconds["watch"]
                loop_s[-1] += time.perf_counter() - started_s
            if published and loop_s[-1]:
                watched_s.append(0.0)
                loop_s.append(0.0)
            watcher.seconds += step.seconds["watch"]
            if step.move is Move.REGROW:
                regrown.append(trainer.events)
            watcher.alarms += sorted({d.event for d in step.drifts if d.event == d.sign_of})
    watcher.monitor, watcher.events = trainer.monitor, trainer.events
    parts = [watched / whole for watched, whole in zip(watched_s, loop_s, strict=True) if whole]
    shares = {"share": median(parts), "share_mean": sum(watched_s) / sum(loop_s)}
    for_nothing = judge(regrown, starts)[1]
    return watcher.row(starts) | shares | {"answers": len(regrown), "for_nothing": len(for_nothing)}


def keep(kept: Rows, rows: Sequence[dict[str, Any]]) -> None:
    """Keep rows, and say them."""
    for row in rows:
        kept.add(row | {"commit": commit()})
        print(msgspec.json.encode(row).decode(), file=sys.stderr, flush=True)


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every part that is asked for."""
    torch.set_num_threads(1)
    kept = Rows(options.rows, ROW_FIELDS)
    traces = Traces(options.traces)
    seeds = options.seeds[: 1 if quick else None]
    rates, kinds = (RATES[1:2], list(KINDS)[4:5]) if quick else (RATES, list(KINDS))
    rows = []
    if "stationary" in options.parts and not quick:
        long = [name for name in LONG_SETTINGS if name in options.settings]
        rows += measure_stationary(kept, traces, seeds, options.events, long)
    if "drifts" in options.parts:
        rows += measure_drifts(kept, traces, seeds, rates, kinds, options.settings)
    if "first day" in options.parts and not quick:
        rows += measure_first_day(kept, traces, seeds, options.events)
    if "adaptive" in options.parts and not quick:
        rows += measure_adaptive(
            kept, [seed for seed in seeds if seed < 5], WHOLE_EVENTS, options.recordings
        )
    lines = summarise(rows)
    setting = {
        "seeds": len(seeds),
        "stationary_events": options.events,
        "max_delay": MAX_DELAY,
        "batch": BATCH,
    }
    return Findings(lines, claims(rows, lines), setting)


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recordings", type=Path, help="folder of recorded streams")
    parser.add_argument(
        "--events", type=int, default=STATIONARY_EVENTS, help="length of a stationary stream"
    )
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument(
        "--traces", type=Path, help="folder that traces of the learner are kept in, some gigabytes"
    )
    parser.add_argument("--seeds", type=seeds_of, default=list(range(20)), help="as in 0-9")
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what to measure"
    )
    parser.add_argument(
        "--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="detectors to try"
    )
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("drift", measured, rest, parser)


if __name__ == "__main__":
    run_main()
