"""The runs of the quality benchmark: streams whose drifts are known, policies, and controls that
show the causes of a gain.

In: the name of a stream, a policy or a control, a budget, a seed. Out: a row of what one run came
to. `benchmarks.quality` says what the rows mean.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import Evaluation, binary_entropy, log_losses
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning import policies
from niwaki.pruning.auxiliary import AuxiliaryConfig
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policies import Adaptive
from niwaki.pruning.policy import ALONE, Comparison, Move
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import (
    bayes_log_loss,
    drift_points,
    generate,
    true_probabilities,
)
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.trainer import (
    ServedReplica,
    Step,
    Trainer,
    TrainerConfig,
    TrainingConfig,
)

SERVED = 1_000
"""Events between the publications that gaps and claims are of."""
ALSO_SERVED = {0.1: (128, 5_000)}
"""Further intervals, for the first seed of a budget only: each costs about as much as learning."""
AFTER_EVENTS, BIN_EVENTS = 50_000, 1_000
SYNTHETIC: dict[str, tuple[str, ...]] = {
    "stationary": (),
    "abrupt": ("abrupt:concept@50%",),
    "gradual": ("gradual:concept@40%+20%",),
    "recurring": ("abrupt:concept@40%", "recurring:concept@70%"),
    "new items": ("abrupt:new_items@50%:0.9:0.03",),
    "all at once": ("abrupt:concept@50%", "abrupt:new_items@50%:0.5", "abrupt:base_rate@50%:0.2"),
}
COST_STREAM, COST_EVENTS = "four drifts", 2_000_000
COST_DRIFTS = tuple(f"abrupt:concept@{at}%" for at in (20, 40, 60, 80))


class Stream(NamedTuple):
    """A stream in memory, and where it is known to drift."""

    name: str
    schema: Schema
    events: EventBatch
    drifts: list[int]
    bayes: float | None = None
    """Log loss of who knows the true click probabilities; None: nobody does."""


def streams(recordings: Path | None, events: int, wanted: list[str] | None) -> Iterator[Stream]:
    """The synthetic streams, `events` long, and the recordings, at most so long; one at a time."""

    def asked(name: str) -> bool:
        return not wanted or any(part in name for part in wanted)

    for name, drifts in SYNTHETIC.items():
        if asked(name):
            yield _synthetic(name, events, drifts)
    for path in sorted(recordings.iterdir()) if recordings else ():
        name = path.name.split(".")[0]
        if path.is_file() and path.suffix != ".md" and asked(name):
            schema = propose_schema(path)
            chunks = (chunk.batch for chunk in read_recording(path, schema))
            yield Stream(name, schema, EventBatch.concat(list(rebatch(chunks, 65_536, events))), [])
    if wanted and asked(COST_STREAM):
        yield _synthetic(COST_STREAM, COST_EVENTS, COST_DRIFTS)


def _synthetic(name: str, events: int, drifts: tuple[str, ...]) -> Stream:
    config = SyntheticConfig(events=events, seed=1, drifts=drifts)
    batch = EventBatch.concat([table_to_batch(table, SCHEMA)[0] for table in generate(config)])
    places = sorted({point["event"] for point in drift_points(config)})
    return Stream(name, SCHEMA, batch, places, bayes_log_loss(true_probabilities(config)))


class Batches:
    """The batches of a stream, hashed once for all runs."""

    def __init__(self, stream: Stream):
        self.batches = list(rebatch([stream.events], 128))
        self._features: dict[int, HashedEvents] = {}

    def attach(self, trainer: Trainer) -> None:
        """Let `trainer` find its features here. All trainers hash alike: same schema, same
        tables."""
        encode = trainer.learner.encoder.encode
        known = self._features

        def remembered(batch: EventBatch) -> HashedEvents:
            if id(batch) not in known:
                known[id(batch)] = encode(batch)
            return known[id(batch)]

        trainer.learner.encoder.encode = remembered


class Control(NamedTuple):
    """A variation of a policy that tells what its gain is due to."""

    policy: str
    model: Mapping[str, Any] = {}
    """Settings of the model."""
    pruning: Mapping[str, Any] = {}
    """Settings of pruning."""
    change: Callable[[Trainer], None] = lambda trainer: None
    """Changes of the trainer."""
    anew: bool = False
    """At each true drift a new learner takes the place of the old one: it knows nothing of what was
    before."""


class Forgetting(Adaptive):
    """The dense network, never pruned, that forgets after a drift as `adaptive` does: what of that
    policy's gain is not due to regrowing and pruning."""

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        return Move.STAY


def _only_forgets(trainer: Trainer) -> None:
    trainer.policy = Forgetting(trainer.policy.config)


def _regrows_fresh_units(trainer: Trainer) -> None:
    """Let pruned units come back fresh, with outgoing weights of zero."""
    learner = trainer.learner
    branches = learner.branches
    branches.regrow = lambda: branches._widen(branches._fresh(learner.events))


def _regrows_zeros(trainer: Trainer) -> None:
    """Let pruned units come back with weights of zero, in and out; only their biases are fresh, or
    nothing could ever wake them."""
    learner = trainer.learner
    branches = learner.branches

    def regrow() -> None:
        fresh = branches._fresh(learner.events).items()
        branches._widen(
            {name: tensor if name.endswith("bias") else tensor.zero_() for name, tensor in fresh}
        )

    branches.regrow = regrow


HALF, QUARTER = "adaptive, half the table bytes", "adaptive, a quarter of the table bytes"
BLOCKS = "adaptive, blocks of 8 x 8"
WEIGHTS = "adaptive, single weights"
RIGL_WEIGHTS = "rigl, single weights"
UNIFORM = "adaptive, uniform layers"
RANDOM = "random fixed, single weights"
ONCE = "adaptive, each event once"
FASTER = "dense, twice the rate"
FORGETTING = "dense, forgetting"
ANEW = "dense, begun anew"
CONTROLS = {
    UNIFORM: Control("adaptive", model={"auxiliary": AuxiliaryConfig(uniform=True)}),
    "adaptive, fresh units": Control("adaptive", change=_regrows_fresh_units),
    "adaptive, units of zeros": Control("adaptive", change=_regrows_zeros),
    FORGETTING: Control("adaptive", change=_only_forgets),
    ANEW: Control("dense", anew=True),
    HALF: Control("adaptive", pruning={"table_budget": 0.5}),
    QUARTER: Control("adaptive", pruning={"table_budget": 0.25}),
    BLOCKS: Control("adaptive", pruning={"unit": "block"}),
    WEIGHTS: Control("adaptive", pruning={"unit": "weight"}),
    RIGL_WEIGHTS: Control("rigl", pruning={"unit": "weight"}),
    RANDOM: Control("rigl", pruning={"unit": "weight", "exchange_ratio": 0.0}),
    ONCE: Control("adaptive", model={"replays": 0}),
    FASTER: Control("dense", model={"network_rate": 0.002}),
}
POLICIES = (*policies.POLICIES, *CONTROLS)


def trainer_for(stream: Stream, policy: str, budget: float, seed: int) -> Trainer:
    """The trainer that runs a policy or a control."""
    control = CONTROLS.get(policy) or Control(policy)
    model = LearnerConfig(seed=seed, **control.model)
    warmup = min(PruningConfig().warmup_events, len(stream.events) // 3)
    pruning = PruningConfig(
        policy=control.policy, budget=budget, warmup_events=warmup, **control.pruning
    )
    trainer = Trainer(
        TrainerConfig(
            schema=stream.schema,
            model=model,
            pruning=pruning,
            drift=DriftConfig(),
            training=TrainingConfig(),
        )
    )
    control.change(trainer)
    return trainer


class Run:
    """A trainer, and what its publications predict."""

    def __init__(self, trainer: Trainer, batches: Batches, intervals: tuple[int, ...]):
        self.trainer = trainer
        batches.attach(trainer)
        self.publications: dict[int, ServedReplica] = {
            every: trainer.add_replica(every) for every in intervals
        }

    def step(self, batch: EventBatch) -> Step:
        """Predict, learn, and publish what is due."""
        step = self.trainer.step(batch)
        for replica in self.publications.values():
            if replica.due(step.move):
                replica.refresh()
        return step

    @property
    def served(self) -> Evaluation:
        """Of the predictions served at the interval that gaps and claims are of."""
        return self.publications[SERVED].evaluation.total

    def succeed(self, other: "Run") -> "Run":
        """Go on with the evaluations of the run before."""
        self.trainer.prequential = other.trainer.prequential
        for every, replica in self.publications.items():
            replica.evaluation = other.publications[every].evaluation
        return self


def run(stream: Stream, batches: Batches, policy: str, budget: float, seed: int) -> dict[str, Any]:
    """One policy over a stream: the trainer itself, and what its publications predicted."""
    short = len(stream.events) < COST_EVENTS
    intervals = (SERVED, *(ALSO_SERVED.get(budget, ()) if seed == 0 and short else ()))

    def begin() -> Run:
        return Run(trainer_for(stream, policy, budget, seed), batches, intervals)

    runs = begin()
    totals = [0.0]
    found = []
    cuts = []
    anew = list(stream.drifts) if policy in CONTROLS and CONTROLS[policy].anew else []
    for batch in batches.batches:
        if anew and runs.served.events >= anew[0]:
            runs, anew = begin().succeed(runs), anew[1:]
        step = runs.step(batch)
        found += [drift.event for drift in step.drifts]
        if step.move is Move.CUT:
            cuts.append(round(runs.trainer.learner.table_ratio, 4))
        totals.append(runs.served.loss_sum)
    trainer = runs.trainer
    learner = trainer.learner
    sizes = np.array([len(batch) for batch in batches.batches])
    ends = np.cumsum(sizes)
    inside = np.zeros(len(ends), bool)
    for drift in stream.drifts:
        inside |= (ends > drift) & (ends <= drift + AFTER_EVENTS)
    sums, entropy = np.diff(totals), binary_entropy(runs.served.base_rate)
    bins = (ends - sizes) // BIN_EVENTS
    course = np.bincount(bins, sums) / np.bincount(bins, sizes)
    return {
        "ne": trainer.prequential.total.normalized_entropy,
        **{
            f"served_{every}": p.evaluation.total.normalized_entropy
            for every, p in runs.publications.items()
        },
        "after_drift": float(sums[inside].sum() / sizes[inside].sum() / entropy)
        if inside.any()
        else math.nan,
        "sparsity": 1 - learner.multiply_adds / learner.branches.dense_cost,
        "by_layer": learner.branches.sparsity_by_layer(),
        "table_ratio": learner.table_ratio,
        "table_ratios": cuts,
        "embedding_bytes": round(
            4 * learner.tables.touched_rows * learner.config.embedding_dim * learner.table_ratio
        ),
        "cost": learner.learned_multiply_adds / (trainer.events * learner.branches.dense_cost),
        "drifts_found": found,
        "forced": trainer.policy.state.forced,
        "course": [round(float(loss), 5) for loss in course],
    }


def naive(stream: Stream) -> dict[str, float]:
    """Normalized entropy of the click rate so far, and of that of the last 5,000 events, always
    1,000 events late; and of the true click probabilities where they are known."""
    labels = stream.events.labels_B.astype(np.float64)
    clicks = np.concatenate([[0.0], np.cumsum(labels)])
    known = np.arange(len(labels)) // SERVED * SERVED
    measures = {}
    for name, first in (
        ("constant CTR", np.zeros_like(known)),
        ("CTR of the last 5,000", np.maximum(known - 5_000, 0)),
    ):
        rate = (clicks[known] - clicks[first] + 0.5) / (known - first + 1)
        loss = log_losses(np.log(rate / (1 - rate)), labels).mean()
        measures[name] = float(loss / binary_entropy(float(labels.mean())))
    if stream.bayes is not None:
        measures["the true probabilities"] = stream.bayes / binary_entropy(float(labels.mean()))
    return measures
