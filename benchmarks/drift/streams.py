"""The streams of the drift benchmark, what the learner predicts of them, and what counts as
noticing a drift.

In: a kind of drift, a click rate, a seed. Out: traces of the learner; it learns a stream once, and
every detector setting then watches the trace. All streams of one click rate and seed are the same
up to the drift, and that part is learned once, too. Phases are those of a network that is pruned
after the warm-up. The protocol is that of CapyMOA's `EvaluateDriftDetector`: an alarm from the
start of a drift to `MAX_DELAY` events after its end is a true one, the first of them says the
delay; an earlier alarm is a false one, and a drift without an alarm is missed.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import EventBatch
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policy import Move
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.drift.observations import Observations
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.world import SyntheticConfig, World
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig

AT = 100_000
AGAIN = 140_000
PREFIX = 98_304
"""Events of the drift, of its return, and of the part before both, which is a whole number of the
stream's blocks."""
MAX_DELAY = 10_000
RATES = (0.01, 0.05, 0.2)
EVENTS_PER_S = 0.5  # a day is 43,200 events: the daily cycle is known before the drift
BATCH = 512
DAILY_CYCLE = 0.4
FIRST_DAY_EVENTS_PER_S = 50.0  # a day is 4,320,000 events: all of a stream lies in the first one
FIRST_DAY_KINDS = ("rate x 2", "rate x 1.4", "concept, all")


class Kind(NamedTuple):
    """A kind of drift."""

    drifts: str
    """In the language of `stream.synthetic.drift_plan`; {rate} is the click rate before."""
    last: int = AT
    """Event at which the last change is over."""


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


class Trace(NamedTuple):
    """Predictions of the learner for consecutive events, and their labels."""

    labels_B: np.ndarray
    times_s_B: np.ndarray
    experts_BE: np.ndarray
    logits_B: np.ndarray
    exchanged: np.ndarray
    """Events before which another network took over."""


class Traces:
    """Traces of the learner, each learned when it is first asked for."""

    def __init__(self, folder: Path | None):
        """`folder`: where they are kept from one run to the next. They hold for one version of the
        learner."""
        self._folder = folder

    def calm(self, rate: float, seed: int, daily_cycle: float, events: int) -> Trace:
        """A stream without a drift. Its world is none of those that drift."""
        config = SyntheticConfig(
            events=events,
            seed=1_000 + seed,
            base_rate=rate,
            drifts=(),
            daily_cycle=daily_cycle,
            events_per_s=EVENTS_PER_S,
        )
        return self._kept(
            f"calm {rate} {seed} {daily_cycle} {events}", lambda: learn(new_trainer(), config)
        )

    def first_day(self, rate: float, seed: int, name: str | None, events: int) -> Trace:
        """A stream with a daily cycle, all in its first day, with a drift of this kind or none; it
        begins at any hour."""
        config = stream(rate, seed, name) if name else SyntheticConfig(events=events, drifts=())
        config = msgspec.structs.replace(
            config,
            seed=2_000 + seed,
            base_rate=rate,
            daily_cycle=DAILY_CYCLE,
            events_per_s=FIRST_DAY_EVENTS_PER_S,
            start_s=config.start_s + 3_600 * (5 * seed % 24),
        )
        what = f"{name} {rate} {seed}" if name else f"calm {rate} {seed} {events}"
        return self._kept(f"first day {what}", lambda: learn(new_trainer(), config))

    def drifting(
        self, rate: float, seed: int, kinds: Sequence[str]
    ) -> tuple[Trace, Iterator[tuple[str, Trace]]]:
        """The part that all streams of a seed share, and the rest of each kind."""
        before = new_trainer()

        def learn_prefix() -> Trace:
            return learn(before, stream(rate, seed, kinds[0]), stop=PREFIX)

        def learn_rest(name: str) -> Trace:
            if not before.events:
                learn_prefix()
            state, tensors = before.state()
            trainer = new_trainer()
            trainer.restore(
                msgspec.convert(msgspec.to_builtins(state), type(state)),
                {key: tensor.clone() for key, tensor in tensors.items()},
            )
            return learn(trainer, stream(rate, seed, name), PREFIX)

        prefix = self._kept(f"before {rate} {seed}", learn_prefix)
        rests = (
            (name, self._kept(f"{name} {rate} {seed}", lambda name=name: learn_rest(name)))
            for name in kinds
        )
        return prefix, rests

    def _kept(self, name: str, learned: Callable[[], Trace]) -> Trace:
        path = self._folder and self._folder / f"{name}.npz"
        if path and path.exists():
            with np.load(path) as arrays:
                return Trace(*(arrays[field] for field in Trace._fields))
        trace = learned()
        if path:
            partial = path.with_suffix(".part")
            with partial.open("wb") as file:  # so that it is complete or not there
                np.savez(file, **trace._asdict())
            partial.rename(path)
        return trace


class Recorder:
    """Stands where the signals of a trainer do: keeps what they are made of."""

    reads_columns = False
    begun: frozenset[str] = frozenset()

    def __init__(self):
        self.parts: list[tuple[np.ndarray, ...]] = []

    def compute(self, seen: Observations) -> dict:
        """Nothing for a detector."""
        self.parts.append((seen.labels_B, seen.times_s_B, seen.experts_BE, seen.logits_B))
        return {}

    def state(self) -> dict[str, np.ndarray]:
        """None."""
        return {}


def new_trainer() -> Trainer:
    """One that is pruned after the warm-up and watches nothing."""
    nothing = DriftConfig(detectors=(DetectorConfig(detector="NoDrift", signal="log_loss"),))
    training = TrainingConfig(batch_events=BATCH)
    return Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=LearnerConfig(),
            pruning=PruningConfig(policy="static"),
            drift=nothing,
            training=training,
        )
    )


def learn(
    trainer: Trainer, config: SyntheticConfig, first_event: int = 0, stop: int | None = None
) -> Trace:
    """Let it learn the events from `first_event`, a multiple of a block, to `stop`."""
    trainer.signals, exchanged = Recorder(), []
    for batch in batches(config, first_event, stop):
        if trainer.step(batch).move in (Move.CUT, Move.REGROW):
            exchanged.append(trainer.events)
    trainer.detect()
    parts = (np.concatenate(parts) for parts in zip(*trainer.signals.parts, strict=True))
    return Trace(*parts, np.array(exchanged, np.int64))


def batches(
    config: SyntheticConfig, first_event: int = 0, stop: int | None = None
) -> Iterator[EventBatch]:
    """The stream from `first_event` to `stop`."""
    world = World(config)
    block_events = len(world.draw(0).labels_B)
    blocks = range(first_event // block_events, world.blocks)
    tables = (table_to_batch(world.table(world.draw(block)), SCHEMA)[0] for block in blocks)
    return rebatch(tables, BATCH, None if stop is None else stop - first_event)


def stream(rate: float, seed: int, name: str) -> SyntheticConfig:
    """The stream with a drift of this kind."""
    kind = KINDS[name]
    drifts = tuple(kind.drifts.format(more=round(1.4 * rate, 4), twice=2 * rate).split())
    return SyntheticConfig(
        events=kind.last + MAX_DELAY,
        seed=seed,
        base_rate=rate,
        drifts=drifts,
        events_per_s=EVENTS_PER_S,
    )


def judge(
    alarms: Sequence[int], starts: Sequence[int] = (), end: int = 0
) -> tuple[list[int | None], list[int]]:
    """By the protocol: the delays of the drifts from `starts` on, the last one over at `end`; and
    the false alarms."""
    spans = [(start, max(start, end if start == starts[-1] else 0) + MAX_DELAY) for start in starts]
    delays = [
        next((alarm - first for alarm in alarms if first <= alarm <= last), None)
        for first, last in spans
    ]
    return delays, [
        alarm for alarm in alarms if not any(first <= alarm <= last for first, last in spans)
    ]
