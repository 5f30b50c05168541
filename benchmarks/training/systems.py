"""The systems of the training benchmark: niwaki's learner, the plain PyTorch loop, Vowpal Wabbit
and River, each in the state in which it is to be measured.

In: a stream and the events that a system learns before it is measured. Out: a `Runner`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from river import linear_model

from benchmarks.baselines.linear import River, VowpalWabbit
from benchmarks.baselines.networks import PlainDLRM
from benchmarks.baselines.stream import Stream, System
from benchmarks.training.events import SCHEMA
from niwaki.model.config import LearnerConfig
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.step import ParallelCall, run_in_turn

DEFAULTS = "niwaki, defaults"
ALONE = "niwaki, network only"
PLAIN = "plain PyTorch loop"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    ALONE: {
        "half_lives_events": (100_000.0,),
        "numeric_codes": False,
        "shrinkage_rate": 0.0,
        "mixture_half_life_events": 0.0,
        "debt_rate": 0.0,
    },
}
"""Network only: as little of the linear expert as the settings allow, one time scale, and no say in
the prediction beyond what the network adds to. There are more pairs of fields than `max_pairs`, so
none are made in either."""
UNITS = {"niwaki, blocks of 8 x 8": (8, 8), "niwaki, single weights": (1, 1)}
"""Units other than neurons, all else as in the defaults: 90 % pruned, with the smaller top network.
"""
VW_LINEAR = "Vowpal Wabbit, linear"
RIVER_LOGISTIC = "River, logistic regression"
RIVER_ADPREDICTOR = "River, AdPredictor"
OTHERS: dict[str, Callable[[Stream], System]] = {
    VW_LINEAR: VowpalWabbit,
    "Vowpal Wabbit, -q ::": lambda stream: VowpalWabbit(stream, "-q ::"),
    "Vowpal Wabbit, --nn 20 --inpass": lambda stream: VowpalWabbit(stream, "--nn 20 --inpass"),
    RIVER_LOGISTIC: lambda stream: River(stream, linear_model.LogisticRegression()),
    RIVER_ADPREDICTOR: lambda stream: River(stream, linear_model.AdPredictor()),
}
OTHERS_BATCH = 512


Batch = tuple[HashedEvents, np.ndarray]


class Runner(NamedTuple):
    """A system in the state in which it is to be measured."""

    name: str
    top: str
    phase: str
    learn: Callable[[int, int, Sequence[Batch]], list[np.ndarray]]
    """Learns events from one place to another, which are also at hand as batches; their logits,
    where learning tells them."""
    predict: Callable[[int, int], list[np.ndarray]] | None
    """Logits of systems whose `learn` returns none; called right before `learn`, and not timed."""
    multiply_adds: int | None


def copy_of(learner: Learner, run_parallel: ParallelCall = run_in_turn) -> Learner:
    block = learner.branches.dense.network.shape.block
    copied = Learner(SCHEMA, learner.config, block=block, run_parallel=run_parallel)
    copied.restore(*learner.state())
    return copied


def learn_all(learner: Learner, batches: Sequence[Batch]) -> list[np.ndarray]:
    return [
        learner.learn(features, Outcomes.made(labels_B)).logits_B for features, labels_B in batches
    ]


def batches_of(
    learner: Learner, stream: Stream, start: int, stop: int, batch_events: int
) -> list[Batch]:
    cut = [
        stream.events.slice(at, min(at + batch_events, stop))
        for at in range(start, stop, batch_events)
    ]
    return [(learner.encoder.encode(events), events.labels_B) for events in cut]


def ours(name: str, top: str, phase: str, learner: Learner, together: ParallelCall) -> Runner:
    own = copy_of(learner, together)

    def learn(start: int, stop: int, batches: Sequence[Batch]) -> list[np.ndarray]:
        return learn_all(own, batches)

    return Runner(name, top, phase, learn, None, own.multiply_adds)


def plain(threads: int) -> str:
    """The name of the plain loop whose tensor operations run on so many threads."""
    return f"{PLAIN}, {threads} thread{'s' if threads > 1 else ''}"


def plain_loop(
    config: LearnerConfig, stream: Stream, top: str, batch: int, before: int, threads: int
) -> Runner:
    """Its rate grows with the root of the batch, as ours does."""
    loop = PlainDLRM(stream, config=config, network_rate=0.001 * (batch / 128) ** 0.5)

    def learn(start: int, stop: int, batches: Sequence[Batch]) -> list[np.ndarray]:
        torch.set_num_threads(threads)
        try:
            return [loop.step(f, torch.from_numpy(labels_B)) for f, labels_B in batches]
        finally:
            torch.set_num_threads(1)

    learn(0, before, batches_of(Learner(SCHEMA, config), stream, 0, before, batch))
    products = sum(
        p.numel()
        for name, p in loop.named_parameters()
        if p.dim() == 2 and not name.startswith("table")
    )
    return Runner(plain(threads), top, "dense", learn, None, products)


def other(name: str, stream: Stream, before: int) -> Runner:
    """A system of others: the timed one takes an event from text or values to changed weights, and
    a twin predicts beside it."""
    timed, twin = OTHERS[name](stream), OTHERS[name](stream)

    def learn(start: int, stop: int, batches: Sequence[Batch]) -> list[np.ndarray]:
        timed.learn(start, stop)
        return []

    def predict(start: int, stop: int) -> list[np.ndarray]:
        if isinstance(timed, VowpalWabbit):
            timed.write(start, stop)
        logits = []
        for at in range(start, stop, OTHERS_BATCH):
            logits.append(twin.predict(at, min(at + OTHERS_BATCH, stop)))
            twin.learn(at, min(at + OTHERS_BATCH, stop))
        return logits

    for system in (timed, twin):
        system.learn(0, before)
    return Runner(name, "", "", learn, predict, None)
