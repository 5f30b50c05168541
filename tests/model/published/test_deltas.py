"""A full checkpoint and its deltas are, bit for bit, the full checkpoint of the same version,
however they arrive."""

import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.published.checkpoint import pack, unpack
from niwaki.model.published.served import PublishedModel, ServedModel
from niwaki.model.published.table_codes import Precision
from niwaki.pruning.config import PruningConfig, Unit
from niwaki.serving.double_buffer import Checkpoint, CompactShelf, DoubleBuffer, Shelf
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events, differing

EVENTS = click_events(4096, seed=5)
SCORED = click_events(32, seed=6)


class Follower:
    """A scorer's memory, and what it has last taken over."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self.versions, self.version, self.held = DoubleBuffer(shelf), 0, []

    def follow(self, published: list[Checkpoint]) -> None:
        """Go to the newest version, by what has been missed, or by the last full one and its
        deltas."""
        missed = [checkpoint for checkpoint in published if checkpoint[0].version > self.version]
        full = max(place for place, (header, _) in enumerate(published) if not header.base)
        path = missed if self.version and missed[0][0].base else published[full:]
        if any(not header.base for header, _ in path[1:]):
            path = published[full:]
        model = self.versions.make(path)
        self.versions.adopt(model, path)
        self.version = model.header.version

    def hold(self) -> None:
        """Keep using the present model, whatever comes."""
        model = self.versions.model
        self.held.append((model, state(model), model.predict(SCORED).tolist()))

    def check(self) -> None:
        """Every model that is held is still what it was."""
        for model, before, predictions in self.held:
            assert (
                differing(state(model), before) == []
                and model.predict(SCORED).tolist() == predictions
            )


def state(model: ServedModel) -> dict[str, torch.Tensor]:
    """All of a model, to the bit."""
    return {name: tensor.clone() for name, tensor in model.tensors().items()}


class World:
    """One trainer that publishes, and scorers that follow with more and less zeal; one of them has
    compact tables."""

    def __init__(
        self, precision: Precision = "float32", table_budget: float = 1.0, unit: Unit = "neuron"
    ) -> None:
        training = TrainingConfig(table_precision=precision)
        pruning = PruningConfig(policy="dense", table_budget=table_budget, unit=unit, block=(4, 4))
        self.trainer = Trainer(
            TrainerConfig(
                schema=SCHEMA, model=SMALL, pruning=pruning, drift=DriftConfig(), training=training
            )
        )
        # The policy makes no move, so the masks of those that are made here would have no budget.
        self.trainer.policy.target_ratio = lambda events: 0.4
        self.trainer.policy.table_ratio = lambda events: table_budget
        self.replica, self.published = self.trainer.add_replica(64), []
        self.eager, self.lazy = Follower(), Follower()
        self.compact = Follower(CompactShelf())
        self.base = 0

    def learn(self, events: int) -> None:
        start = self.trainer.events % 3968
        self.trainer.step(EVENTS.slice(start, start + events))

    def move(self) -> None:
        """The next of prune, cut, regrow that is possible."""
        learner = self.trainer.learner
        if learner.branches.masks:
            learner.branches.cut()
        elif learner.branches.dense_live:
            learner.branches.prune()
        else:
            learner.branches.regrow()

    def publish(self, full: bool, lost: bool) -> None:
        """`lost`: the store was away. What was to be published then is in the next replica."""
        if not self.trainer.events:
            return
        version = len(self.published) + 1
        base = 0 if full or not self.published else self.base
        about = {"version": version, "parent": version - 1, "offsets": {}, "created_s": 1.0}
        checkpoint = unpack(
            pack(*self.replica.checkpoint(self.trainer.status(), base=base, **about))
        )
        if lost:
            return
        self.replica.refresh()
        self.published.append(checkpoint)
        self.base = checkpoint[0].base or version
        whole = PublishedModel.from_checkpoint(
            *unpack(pack(*self.replica.checkpoint(self.trainer.status(), **about)))
        )
        self.replica.refresh()
        self.eager.follow(self.published)
        self.compact.follow(self.published)
        late, late_compact = Follower(), Follower(CompactShelf())
        late.follow(self.published)
        late_compact.follow(self.published)
        followers = self.eager, self.compact, late, late_compact
        for model in (*(one.versions.model for one in followers), self.replica.served):
            assert differing(state(model), state(whole)) == []
        expected = whole.predict(SCORED).tolist()
        assert self.compact.versions.model.predict(SCORED).tolist() == expected
        assert self.eager.versions.model.predict(SCORED).tolist() == expected

    def catch_up(self) -> None:
        if self.published and self.lazy.version < len(self.published):
            self.lazy.follow(self.published)
            assert (
                differing(state(self.lazy.versions.model), state(self.eager.versions.model)) == []
            )

    def hold(self) -> None:
        if self.published:
            self.eager.hold()
            self.compact.hold()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), st.integers(1, 64)),
        st.tuples(
            st.just("publish"),
            st.integers(0, 3).map(lambda n: n == 3),
            st.integers(0, 2).map(lambda n: n == 2),
        ),
        st.tuples(st.sampled_from(["catch_up", "hold", "move"])),
    ),
    min_size=4,
    max_size=16,
)


PRECISIONS = st.sampled_from(["float32", "float16", "int8", "int4"])


PRUNINGS = st.sampled_from(
    [(1.0, "neuron"), (0.5, "neuron"), (0.3, "neuron"), (1.0, "block"), (1.0, "weight")]
)
"""Budgets of the tables, and units."""


def follow_through(steps: list[tuple], precision: Precision, pruning: tuple[float, Unit]) -> None:
    world = World(precision, *pruning)
    world.learn(32)
    for name, *arguments in steps:
        getattr(world, name)(*arguments)
        world.eager.check()
        world.compact.check()


@given(STEPS, PRECISIONS, PRUNINGS)
@settings(max_examples=60)
def test_deltas_are_the_full_checkpoint_of_the_same_version_to_the_bit(steps, precision, pruning):
    follow_through(steps, precision, pruning)


@pytest.mark.slow
@given(STEPS, PRECISIONS, PRUNINGS)
@settings(max_examples=3000)
def test_deltas_are_the_full_checkpoint_of_the_same_version_in_thousands_of_sequences(
    steps, precision, pruning
):
    follow_through(steps, precision, pruning)


@pytest.mark.slow
def test_ten_thousand_swaps_under_scoring_tear_nothing_and_take_no_memory():
    """Each answer is, to the bit, that of the version that the model names; one caller always holds
    an older model."""
    world = World()
    world.learn(64)
    world.publish(full=True, lost=False)
    header, tensors = world.published[0]
    reference, versions = PublishedModel.from_checkpoint(header, tensors), world.eager.versions
    expected, finished = {1: reference.predict(SCORED).tobytes()}, threading.Event()

    def score() -> int:
        answers, held = 0, versions.model
        while not finished.is_set():
            model = versions.model
            assert model.predict(SCORED).tobytes() == expected[model.header.version]
            answers += 1
            if answers % 50 == 0:
                assert held.predict(SCORED).tobytes() == expected[held.header.version]
                held = model
        return answers

    generator, memory = torch.Generator().manual_seed(1), []
    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(score) for _ in range(2)]
        try:
            for version in range(2, 10_002):
                full = version % 500 == 0
                base = 0 if full else header.base or header.version
                header = msgspec.structs.replace(
                    header, version=version, parent=version - 1, base=base
                )
                changes = dict(tensors)
                for name in ("embedding", "linear"):
                    noise = torch.rand(tensors[f"{name}.values"].shape, generator=generator)
                    changes[f"{name}.values"] = tensors[f"{name}.values"] + 0.1 * noise
                path = [(header, changes)]
                reference = PublishedModel.after(path, reference.frame, reference.tables, reference)
                expected[version] = reference.predict(SCORED).tobytes()
                versions.adopt(versions.make(path), path)
                if version in (2_000, 10_000):
                    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        finally:
            finished.set()
        assert all(caller.result() > 100 for caller in callers)
    assert len(set(expected.values())) == len(expected) == 10_001
    assert memory[1] < 1.05 * memory[0] + 10_000, (
        "kilobytes at the peak, after 2,000 swaps and after 10,000"
    )
