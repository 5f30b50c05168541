"""The systems of the learner's benchmark, and how each is run over a stream: others', niwaki, and
niwaki without each of its parts.

In: a stream and a seed. Out: the logits of every event at each delay, as the model would have been
that was published last.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from river import linear_model

from benchmarks.baselines.linear import RecentRate, River, VowpalWabbit
from benchmarks.baselines.networks import DIN, PlainDLRM
from benchmarks.baselines.stream import Stream, System
from benchmarks.learner.tables import BATCHES, DELAYS, DLRM, INTEREST, NIWAKI
from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig

BATCH_EVENTS = 128
NO_NETWORK = "the deep expert"
MAY_REST = "niwaki, the network may rest"
PARTS: dict[str, dict[str, Any]] = {
    NO_NETWORK: {"network_rate": 0.0},
    "embeddings": {"embedding_dim": 0},
    "products of vectors": {"interaction": "none"},
    "the bottom MLP": {"bottom": ()},
    "pairs": {"pair_rows": 0},
    "faster time scales": {"half_lives_events": (100_000.0,)},
    "codes of numerics": {"numeric_codes": False},
    "learned shrinkage": {"shrinkage_rate": 0.0},
    "the mixture": {"mixture_half_life_events": 0.0},
    "the debt": {"debt_rate": 0.0},
}
"""By part of the learner: the settings that leave it out."""
LIST_PARTS: dict[str, dict[str, Any]] = {"pairs with lists": {"max_list_pairs": 0}}
"""Likewise, of streams with lists."""
WIDE_PARTS = (NO_NETWORK, "pairs")
"""Parts that are left out, each in turn, on wide streams, too."""
NARROW_COLUMNS = 12
"""A stream with more categorical columns, or with lists, is wide."""
Predictions = dict[int, np.ndarray]


def is_wide(schema: Schema) -> bool:
    """True for a stream with lists or many columns."""
    return bool(schema.lists) or len(schema.categorical) > NARROW_COLUMNS


Suits = Callable[[Schema], bool]
"""True for streams on which a system is run."""


def _any(schema: Schema) -> bool:
    return True


class Contestant(NamedTuple):
    """A system of the table."""

    run: Callable[[Stream, int], Predictions]
    """Runs it over a stream, given a seed."""
    suits: Suits = _any
    """Of which streams."""


def systems() -> dict[str, Contestant]:
    """By name, in the order of the table."""

    def peer(make: Callable[[Stream, int], System], suits: Suits = _any) -> Contestant:
        return Contestant(lambda stream, seed: serve(make(stream, seed), stream), suits)

    def ours(
        changes: Mapping[str, Any],
        suits: Suits = _any,
        batch_events: int = BATCH_EVENTS,
    ) -> Contestant:
        return Contestant(partial(run_niwaki, changes, batch_events), suits)

    def has_lists(schema: Schema) -> bool:
        return bool(schema.lists)

    def has_crosses(schema: Schema) -> bool:
        return bool(schema.lists and schema.categorical)

    def shares_lists(schema: Schema) -> bool:
        return any(name in schema.shares for name in schema.lists)

    def is_narrow(schema: Schema) -> bool:
        return not is_wide(schema)

    found = {
        "constant CTR": peer(lambda stream, seed: RecentRate(stream)),
        "CTR of the last 5,000": peer(lambda stream, seed: RecentRate(stream, 5_000)),
        "River, logistic regression": peer(
            lambda stream, seed: River(stream, linear_model.LogisticRegression())
        ),
        "River, AdPredictor": peer(lambda stream, seed: River(stream, linear_model.AdPredictor())),
        "Vowpal Wabbit, linear, without lists": peer(
            lambda stream, seed: VowpalWabbit(stream.without_lists()), has_lists
        ),
        "Vowpal Wabbit, linear": peer(lambda stream, seed: VowpalWabbit(stream)),
        # All pairs of namespaces take for ever where there are many, or lists among them.
        "Vowpal Wabbit, -q ::": peer(lambda stream, seed: VowpalWabbit(stream, "-q ::"), is_narrow),
        "Vowpal Wabbit, -q item x lists": peer(
            lambda stream, seed: VowpalWabbit(
                stream, crosses=[(stream.candidate, name) for name in stream.schema.lists]
            ),
            has_crosses,
        ),
        "Vowpal Wabbit, -q first column x lists": peer(
            lambda stream, seed: VowpalWabbit(
                stream,
                crosses=[(stream.schema.categorical[0], name) for name in stream.schema.lists],
            ),
            has_crosses,
        ),
        "Vowpal Wabbit, -q columns x lists": peer(
            lambda stream, seed: VowpalWabbit(
                stream, crosses=list(product(stream.schema.categorical, stream.schema.lists))
            ),
            has_crosses,
        ),
        "Vowpal Wabbit, --nn 20 --inpass": peer(
            lambda stream, seed: VowpalWabbit(stream, "--nn 20 --inpass")
        ),
        DLRM: peer(PlainDLRM),
        INTEREST: peer(DIN, shares_lists),
        NIWAKI: ours({}),
    }
    for part, changes in PARTS.items():
        everywhere = part in WIDE_PARTS
        found[f"niwaki without {part}"] = ours(changes) if everywhere else ours(changes, is_narrow)
    for part, changes in LIST_PARTS.items():
        found[f"niwaki without {part}"] = ours(changes, has_lists)
    found["niwaki without lists"] = Contestant(
        lambda stream, seed: run_niwaki({}, BATCH_EVENTS, stream.without_lists(), seed), has_lists
    )
    found["niwaki with dot products"] = ours({"interaction": "dot"})
    found[MAY_REST] = ours({"network_rate": "auto"}, is_narrow)
    for events, name in BATCHES.items():
        found[name] = ours({}, is_narrow, events)
    return found


def is_random(name: str) -> bool:
    """True if that system depends on the seed."""
    return name in (DLRM, INTEREST) or (
        name.startswith("niwaki") and name != f"niwaki without {NO_NETWORK}"
    )


def serve(system: System, stream: Stream) -> Predictions:
    """Logits of every event at each delay; before the first model, the click rate so far, as a
    niwaki that has published nothing predicts it."""
    events, labels = len(stream.events), stream.events.labels_B
    logits = {delay: np.zeros(events, np.float32) for delay in DELAYS}
    for start in range(0, events, BATCH_EVENTS):
        for delay in DELAYS:
            block = -(-delay // BATCH_EVENTS) * BATCH_EVENTS
            if start and start % block == 0:
                stop = min(start + block, events)
                logits[delay][start:stop] = system.predict(start, stop)
            elif start < block:
                clicks = labels[:start].sum() + 0.5
                rate_logit = np.log(clicks / (start + 1 - clicks))
                logits[delay][start : start + BATCH_EVENTS] = rate_logit
        system.learn(start, min(start + BATCH_EVENTS, events))
    return logits


class _Kept(WindowedEvaluation):
    """An evaluation that keeps the logits."""

    def __init__(self) -> None:
        super().__init__(BATCH_EVENTS)
        self.logits: list[np.ndarray] = []

    def update(self, logits_B: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        self.logits.append(logits_B)
        return super().update(logits_B, outcomes)


def run_niwaki(
    changes: Mapping[str, Any], batch_events: int, stream: Stream, seed: int
) -> Predictions:
    """The trainer itself, unpruned. At 128 what counts is each batch predicted right before it is
    learned; with other batches there is nothing at that delay."""
    model = LearnerConfig(**({"seed": seed} | dict(changes)))
    training = TrainingConfig(batch_events=batch_events)
    trainer = Trainer(
        TrainerConfig(
            schema=stream.schema,
            model=model,
            pruning=PruningConfig(policy="dense"),
            drift=DriftConfig(detectors=()),
            training=training,
        )
    )
    publications = {delay: trainer.add_replica(delay) for delay in DELAYS[1:]}
    evaluations = {
        delay: _Kept() for delay in DELAYS if delay != BATCH_EVENTS or batch_events == BATCH_EVENTS
    }
    trainer.prequential = evaluations.get(BATCH_EVENTS, trainer.prequential)
    for delay, replica in publications.items():
        replica.evaluation = evaluations[delay]
    for batch in rebatch([stream.events], batch_events):
        step = trainer.step(batch)
        for replica in publications.values():
            if replica.due(step.move):
                replica.refresh()
    for replica in publications.values():
        replica.settle()
    return {delay: np.concatenate(evaluation.logits) for delay, evaluation in evaluations.items()}
