"""How soon each detector setting notices a drift, how many it misses, and how often it cries wolf.

In: synthetic streams whose drifts are known, long ones that have none, and recordings (`--recordings DIR`). Out: a row
for each stream and setting, and the claims that they bear out or not. The protocol is that of CapyMOA's
`EvaluateDriftDetector`: an alarm from the start of a drift to `MAX_DELAY` events after its end is a true one, the first
of them says the delay; an earlier alarm is a false one, and a drift without an alarm is missed.

Everything goes through the learner. It learns a stream once, and every setting watches what it predicted then; all
streams of one click rate and seed are the same up to the drift, and that part is learned once, too. Phases are those of
a network that is pruned after the warm-up. The rows called `adaptive` are whole runs instead, in which each drift
regrows the network. `--rows FILE` keeps each measured row and does not measure it again; `--seeds 0-9` and `--parts`
split a run.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from benchmarks.frame import Findings, Rows, at_most, commit, main, seeds_of
from model.evaluation import log_losses
from model.features import EventBatch, Schema
from model.learner import LearnerConfig
from pruning.policy import Move, PruningConfig
from stream.backtest import rebatch
from stream.click_world import SCHEMA, SyntheticConfig, World
from stream.drift import DetectorConfig, DriftConfig, DriftMonitor
from stream.events import table_to_batch
from stream.recording import propose_schema, read_recording
from stream.signals import Signals
from stream.trainer import Trainer, TrainingConfig

AT, AGAIN, PREFIX = 100_000, 140_000, 98_304
"""Events of the drift and of its return; up to the last one, a whole block of the stream's, nothing differs."""
MAX_DELAY = 10_000
RATES = (0.01, 0.05, 0.2)
EVENTS_PER_S = 0.5  # a day is 43,200 events: the daily cycle is known before the drift
BATCH = 512
STATIONARY_EVENTS, WHOLE_EVENTS = 2_000_000, 300_000
DAILY_CYCLE = 0.4
OFTEN = 50_000
"""Expected events between false alarms in a setting that has some, so that their number can be checked."""
ROW_FIELDS = ("stream", "rate", "seed", "setting")
PARTS = ("drifts", "stationary", "adaptive")


class Kind(NamedTuple):
    """A kind of drift."""

    drifts: str
    """In the language of `stream.drift_plan`; {rate} is the click rate before."""
    last: int = AT
    """Where the last change is over."""


KINDS = {
    "concept, half": Kind(f"abrupt:concept@{AT}:0.5"),
    "concept, all": Kind(f"abrupt:concept@{AT}"),
    "concept, gradual": Kind(f"gradual:concept@{AT}+50000", AT + 50_000),
    "concept, recurring": Kind(f"abrupt:concept@{AT} recurring:concept@{AGAIN}", AGAIN),
    "rate x 1.4": Kind(f"abrupt:base_rate@{AT}:{{more}}"),
    "rate x 2": Kind(f"abrupt:base_rate@{AT}:{{twice}}"),
    "values renamed": Kind(f"abrupt:values@{AT}:c_category"),
    "new items": Kind(f"abrupt:new_items@{AT}:0.9"),
}


def _one(detector: str, signal: str, direction: str | None = None, **parameters: Any) -> DriftConfig:
    return DriftConfig(
        detectors=(DetectorConfig(detector=detector, signal=signal, direction=direction, parameters=parameters),)
    )


SETTINGS = {
    "default": DriftConfig(),
    "default, one in 50,000": DriftConfig(expected_events_between_false_alarms=OFTEN),
    "staleness": _one("PageHinkley", "staleness"),
    "adjusted label": _one("PageHinkley", "adjusted_label"),
    "surprise": _one("PageHinkley", "surprise"),
    "excess loss": _one("PageHinkley", "excess_loss"),
    "ADWIN, log loss": _one("ADWIN", "log_loss"),
    "ADWIN, label": _one("ADWIN", "label"),
    "DDM, label": _one("DDM", "label"),
    "PageHinkley of River, log loss": _one("PageHinkley", "log_loss", threshold=50.0),
    "every 20,000": _one("DummyDriftDetector", "log_loss", "both", t_0=20_000),
    "never": _one("NoDrift", "log_loss"),
}
LONG_SETTINGS = ("default", "default, one in 50,000", "surprise", "excess loss", "ADWIN, log loss", "ADWIN, label")


class Trace(NamedTuple):
    """What the learner predicted of consecutive events, and what came of it."""

    labels_B: np.ndarray
    times_s_B: np.ndarray
    experts_BE: np.ndarray
    logits_B: np.ndarray
    exchanged: list[int]
    """Events before which another network took over."""


class Recorder:
    """Stands where the signals of a trainer do: keeps what they are made of."""

    def __init__(self):
        self.parts: list[tuple[np.ndarray, ...]] = []

    def compute(self, _: Any, batch: EventBatch, experts_BE: np.ndarray, logits_B: np.ndarray, __: Any) -> dict:
        """Nothing for a detector."""
        self.parts.append((batch.labels_B, batch.times_s_B, experts_BE[:, :2].copy(), logits_B.copy()))
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """None."""
        return {}


def new_trainer() -> Trainer:
    """One that is pruned after the warm-up and watches nothing."""
    training = TrainingConfig(batch_events=BATCH)
    return Trainer(SCHEMA, LearnerConfig(), PruningConfig(policy="static"), SETTINGS["never"], training)


def learn(trainer: Trainer, config: SyntheticConfig, first_event: int = 0, stop: int | None = None) -> Trace:
    """Let it learn the events from `first_event`, a multiple of a block, to `stop`."""
    trainer.signals, exchanged = Recorder(), []
    for batch in batches(config, first_event, stop):
        if trainer.step(batch).move in (Move.CUT, Move.REGROW):
            exchanged.append(trainer.events)
    return Trace(*(np.concatenate(parts) for parts in zip(*trainer.signals.parts, strict=True)), exchanged)


def batches(config: SyntheticConfig, first_event: int = 0, stop: int | None = None) -> Iterator[EventBatch]:
    """The stream from `first_event` to `stop`."""
    world = World(config)
    block_events = len(world.draw(0).labels_B)
    blocks = range(first_event // block_events, world.blocks)
    tables = (table_to_batch(world.table(world.draw(block)), SCHEMA)[0] for block in blocks)
    return rebatch(tables, BATCH, None if stop is None else stop - first_event)


class Watcher:
    """One setting, watching traces that follow on each other."""

    def __init__(self, config: DriftConfig):
        self.config = config
        self.monitor = DriftMonitor(config)
        self.signals = Signals(SCHEMA, 2, [one.signal for one in config.detectors])
        self.events, self.seconds, self.alarms = 0, 0.0, []

    def branch(self) -> "Watcher":
        """Another one that goes on from here."""
        other = Watcher(self.config)
        other.monitor.restore(self.monitor.state())
        other.signals.restore(self.signals.state())
        other.events, other.seconds, other.alarms = self.events, self.seconds, list(self.alarms)
        return other

    def watch(self, trace: Trace) -> "Watcher":
        """Read on."""
        losses_B = log_losses(trace.logits_B, trace.labels_B)
        for start in range(0, len(losses_B), BATCH):
            cut = slice(start, start + BATCH)
            batch = EventBatch(trace.labels_B[cut], trace.times_s_B[cut], (), np.empty((0, 0), np.float32))
            started_s = time.perf_counter()
            signals = self.signals.compute(None, batch, trace.experts_BE[cut], trace.logits_B[cut], losses_B[cut])
            found = self.monitor.update(signals, self.events, batch.times_s_B)
            self.seconds += time.perf_counter() - started_s
            self.alarms += sorted({drift.event for drift in found})
            self.events += len(batch.labels_B)
            if self.events in trace.exchanged:
                self.monitor.reset(exchanged=True)
        return self

    def row(self, starts: Sequence[int] = (), end: int = 0) -> dict[str, Any]:
        """By the protocol: delays of the drifts from `starts` on, the last one over at `end`, and false alarms."""
        spans = [(start, max(start, end if start == starts[-1] else 0) + MAX_DELAY) for start in starts]
        first = [next((alarm - a for alarm in self.alarms if a <= alarm <= b), None) for a, b in spans]
        false = [alarm for alarm in self.alarms if not any(a <= alarm <= b for a, b in spans)]
        achieved = self.monitor.achieved()
        return {
            "events": self.events,
            "delays": first,
            "false_alarms": false,
            "watched": achieved["watched_events"],
            "microseconds": 1e6 * self.seconds / self.events / len(self.config.detectors),
        }


def stream(rate: float, seed: int, name: str) -> SyntheticConfig:
    """The stream with a drift of this kind."""
    kind = KINDS[name]
    drifts = tuple(kind.drifts.format(more=round(1.4 * rate, 4), twice=2 * rate).split())
    return SyntheticConfig(
        events=kind.last + MAX_DELAY, seed=seed, base_rate=rate, drifts=drifts, events_per_s=EVENTS_PER_S
    )


def measure_drifts(kept: Rows, seeds: Sequence[int], rates: Sequence[float], kinds: Sequence[str]) -> list[dict]:
    """A row for each kind of drift, click rate, seed and setting."""
    rows = []
    for rate, seed in ((rate, seed) for seed in seeds for rate in rates):
        known = [kept.get(name, rate, seed, setting) for name in kinds for setting in SETTINGS]
        if not all(known):
            known = list(_measure_drifts(rate, seed, kinds))
            for row in known:
                keep(kept, row)
        rows += known
    return rows


def _measure_drifts(rate: float, seed: int, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    before = new_trainer()
    prefix = learn(before, stream(rate, seed, kinds[0]), stop=PREFIX)
    state, tensors = before.state()
    watchers = {name: Watcher(config).watch(prefix) for name, config in SETTINGS.items()}
    for name in kinds:
        trainer = new_trainer()
        trainer.restore(
            msgspec.convert(msgspec.to_builtins(state), type(state)),
            {key: tensor.clone() for key, tensor in tensors.items()},
        )
        rest = learn(trainer, stream(rate, seed, name), PREFIX)
        starts = (AT, AGAIN) if "recurring" in name else (AT,)
        for setting, watcher in watchers.items():
            found = watcher.branch().watch(rest).row(starts, KINDS[name].last)
            yield {"stream": name, "rate": rate, "seed": seed, "setting": setting} | found


def measure_stationary(kept: Rows, seeds: Sequence[int], events: int) -> list[dict]:
    """A row for each seed and setting; click rates take turns, and every other seed has a daily cycle."""
    rows = []
    for seed in seeds:
        name, rate = ("daily cycle", "stationary")[seed % 2], RATES[seed % 3]
        known = [kept.get(name, rate, seed, setting) for setting in LONG_SETTINGS]
        if not all(known):
            cycle = DAILY_CYCLE if name == "daily cycle" else 0.0
            config = SyntheticConfig(
                events=events,
                seed=1_000 + seed,
                base_rate=rate,
                drifts=(),
                daily_cycle=cycle,
                events_per_s=EVENTS_PER_S,
            )
            trace = learn(new_trainer(), config)
            known = [
                {"stream": name, "rate": rate, "seed": seed, "setting": setting}
                | Watcher(SETTINGS[setting]).watch(trace).row()
                for setting in LONG_SETTINGS
            ]
            for row in known:
                keep(kept, row)
        rows += known
    return rows


def measure_adaptive(kept: Rows, seeds: Sequence[int], events: int, recordings: Path | None) -> list[dict]:
    """Whole runs of the default system, each drift answered: on synthetic streams with two drifts, and on recordings,
    of whose drifts nothing is known."""
    rows = []
    for seed in seeds:
        row = kept.get("adaptive: two concepts", 0.1, seed, "default")
        if row is None:
            config = SyntheticConfig(events=events, seed=seed)
            found = _whole(SCHEMA, batches(config), [point.event for point in config.plan()])
            row = {"stream": "adaptive: two concepts", "rate": 0.1, "seed": seed, "setting": "default"} | found
            keep(kept, row)
        rows.append(row)
    for path in sorted(recordings.glob("*.parquet")) if recordings else ():
        name = f"adaptive: {path.stem}"
        row = kept.get(name, 0.0, 0, "default")
        if row is None:
            schema = propose_schema(path)
            found = _whole(schema, (batch for batch, _ in read_recording(path, schema)), [])
            row = {"stream": name, "rate": 0.0, "seed": 0, "setting": "default"} | found
            keep(kept, row)
        rows.append(row)
    return rows


def _whole(schema: Schema, events: Iterator[EventBatch], starts: list[int]) -> dict[str, Any]:
    trainer = Trainer(schema, LearnerConfig(), PruningConfig(), DriftConfig(), TrainingConfig())
    watcher, total_s = Watcher(DriftConfig()), 0.0
    for batch in rebatch(events, TrainingConfig().batch_events):
        step = trainer.step(batch)
        total_s += sum(step.seconds.values())
        watcher.seconds += step.seconds["watch"]
        watcher.alarms += sorted({drift.event for drift in step.drifts})
    watcher.monitor, watcher.events = trainer.monitor, trainer.events
    return watcher.row(starts) | {"share": watcher.seconds / total_s}


def keep(kept: Rows, row: dict[str, Any]) -> None:
    """Keep a row, and say it."""
    kept.add(row | {"commit": commit()})
    print(msgspec.json.encode(row).decode(), file=sys.stderr, flush=True)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each stream, click rate and setting."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["stream"], row["rate"], row["setting"]), []).append(row)
    lines = []
    for (name, rate, setting), seeds in groups.items():
        drifts = [delay for row in seeds for delay in row["delays"]]
        delays = [delay for delay in drifts if delay is not None]
        false, watched = sum(len(row["false_alarms"]) for row in seeds), sum(row["watched"] for row in seeds)
        lines.append(
            {
                "stream": name,
                "rate": rate,
                "setting": setting,
                "seeds": len(seeds),
                "mean_delay": mean(delays) if delays else math.nan,
                "median_delay": float(median(delays)) if delays else math.nan,
                "missed": 1 - len(delays) / len(drifts) if drifts else math.nan,
                "false_alarms": false,
                "false_per_million": 1e6 * false / sum(row["events"] for row in seeds),
                "watched_per_false_alarm": watched / false if false else math.nan,
                "microseconds_per_detector": median(row["microseconds"] for row in seeds),
            }
        )
    return lines


def claims(rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is promised of the default setting, as far as there are rows to tell."""
    made = []
    at = {(line["stream"], line["rate"], line["setting"]): line for line in lines}
    calm = [line for line in lines if line["stream"] in ("stationary", "daily cycle")]
    if default := [
        row for row in rows if row["stream"] in ("stationary", "daily cycle") and row["setting"] == "default"
    ]:
        false, events = sum(len(row["false_alarms"]) for row in default), sum(row["events"] for row in default)
        made.append(at_most(f"default: false alarms per million of {events:,} calm events", 1e6 * false / events, 1.0))
    for line in calm:
        if line["setting"] == "default, one in 50,000":
            ratio = line["watched_per_false_alarm"] / OFTEN
            where = f"{line['stream']}, {line['rate']:.0%} clicks"
            off = max(ratio, 1 / ratio) if ratio > 0 else math.inf
            made.append(at_most(f"{where}: run time between false alarms, times too long or short", off, 2.0))
    for name, bound in (("rate x 2", 1_000), ("rate x 1.4", 5_000)):
        if line := at.get((name, 0.05, "default")):
            delays = [r for row in rows if (row["stream"], row["rate"]) == (name, 0.05) for r in _delays(row)]
            made.append(at_most(f"default: median delay of {name} from 5 %", float(median(delays)), bound))
            made.append(at_most(f"default: share of {name} from 5 % missed", line["missed"], 0.0))
    for line in lines:
        if line["setting"] == "default" and line["stream"] in ("concept, half", "concept, all", "concept, recurring"):
            where = f"default: {line['stream']}, {line['rate']:.0%} clicks"
            made.append(at_most(f"{where}: share missed", line["missed"], 0.0))
    for line in lines:
        if line["setting"] == "default" and line["stream"] == "adaptive: two concepts":
            made.append(
                at_most("adaptive, two concepts: false alarms, phase changes included", line["false_alarms"], 0)
            )
            made.append(at_most("adaptive, two concepts: share missed", line["missed"], 0.0))
    if shares := [row["share"] for row in rows if "share" in row]:
        made.append(at_most("share of detection in what a trainer does", max(shares), 0.05))
    if costs := [line["microseconds_per_detector"] for line in lines if line["setting"] == "default"]:
        made.append(at_most("default: microseconds an event and detector, signals included", max(costs), 2.0))
    return made


def _delays(row: dict[str, Any]) -> list[float]:
    """Those of the default setting; a missed drift takes for ever."""
    if row["setting"] != "default":
        return []
    return [math.inf if delay is None else delay for delay in row["delays"]]


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every part that is asked for."""
    torch.set_num_threads(1)
    kept, rows, seeds = Rows(options.rows, ROW_FIELDS), [], options.seeds
    if quick:
        seeds = seeds[:1]
    if "drifts" in options.parts:
        rows += measure_drifts(kept, seeds, RATES[1:2] if quick else RATES, list(KINDS)[4:5] if quick else list(KINDS))
    if "stationary" in options.parts and not quick:
        rows += measure_stationary(kept, seeds, options.events)
    if "adaptive" in options.parts and not quick:
        rows += measure_adaptive(kept, [seed for seed in seeds if seed < 3], WHOLE_EVENTS, options.recordings)
    lines = summarise(rows)
    setting = {"seeds": len(seeds), "stationary_events": options.events, "max_delay": MAX_DELAY, "batch": BATCH}
    return Findings(lines, claims(rows, lines), setting)


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recordings", type=Path, help="folder of recorded streams")
    parser.add_argument("--events", type=int, default=STATIONARY_EVENTS, help="length of a stationary stream")
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument("--seeds", type=seeds_of, default=list(range(20)), help="as in 0-9")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what to measure")
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("drift", measured, rest)


if __name__ == "__main__":
    run_main()
