"""A sparse network learns again from earlier events, as they were read, and nothing else does."""

import msgspec
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.deep import kernels
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.network import NetworkShape
from niwaki.model.deep.replay import Inputs, Replay
from niwaki.model.features.outcomes import OutcomeArrays
from niwaki.model.learner import Learner
from tests.support.networks import branch_of, forward, inputs_of, shapes
from tests.support.streams import SCHEMA, SMALL, click_events, differing
from tests.support.trainers import learn_all

RATE = 0.01


def events_of(shape: NetworkShape, events: int, seed: int) -> tuple[list[torch.Tensor], Inputs]:
    """Random events whose inputs lose nothing in 16 bits: as passes read them, and to be kept."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [part.half().float() for part in inputs_of(shape, events, generator)]
    vectors_BFD, numerics_BM, contributions_BS = inputs
    rng = np.random.default_rng(seed)
    labels_B, weights_B, offsets_B, logits_B = rng.random((4, events)).astype(np.float32)
    rows_BF = np.arange(events * shape.fields).reshape(events, shape.fields)
    kept = Inputs(
        vectors_BFD.flatten(0, 1).contiguous().numpy(),
        Embedded(rows_BF),
        numerics_BM.numpy(),
        contributions_BS.numpy(),
        logits_B,
        OutcomeArrays(labels_B, weights_B, offsets_B),
    )
    return inputs, kept


def step_on(branch: Branch, inputs: list[torch.Tensor], kept: Inputs, events: int) -> None:
    """One step on new events."""
    correction_B = forward(branch.passes, inputs).numpy()
    logits_B, errors_B = np.empty((2, events), np.float32)
    linear_B1 = kept.logits_B[:, None]
    kernels.corrected_loss(linear_B1, correction_B, *kept.outcomes, logits_B, errors_B)
    branch.passes.backward(torch.from_numpy(errors_B))
    branch.step(RATE, (events, 0))


@given(shapes(), st.integers(1, 40), st.booleans(), st.integers(0, 9))
def test_a_step_on_all_events_that_are_kept_is_the_step_on_them_when_they_were_new(
    shape, events, split, seed
):
    inputs, kept = events_of(shape, events, seed)
    branch = branch_of(shape, torch.Generator().manual_seed(1))
    again = branch.copy()
    step_on(branch, inputs, kept, events)
    replay = Replay(branch.network, events, steps=1, seed=seed)
    replay.add(kept)
    micro_batches = (events // 2 + 1, events - events // 2 - 1) if split else (events, 0)
    cost = replay.learn(again, micro_batches, RATE, learned=77)
    assert cost == events * branch.multiply_adds
    # Adam divides each gradient by its own size, so the sums' last bits can show where that is 0.
    for moments, others in zip(branch.tensors()[1:], again.tensors()[1:], strict=True):
        for name, tensor in moments.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-6)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(30, 50))
def test_the_last_events_are_kept_whatever_the_batches(batches, size):
    shape = NetworkShape(
        fields=1, numerics=0, slots=1, embedding_dim=2, bottom=(), top=(3,), interaction="none"
    )
    branch = branch_of(shape, torch.Generator().manual_seed(0))
    replay, logits = Replay(branch.network, size, steps=1, seed=0), []
    for seed, events in enumerate(batches):
        kept = events_of(shape, events, seed)[1]
        replay.add(kept)
        logits += kept.logits_B.tolist()
    found = replay.state()["outcomes"][:, 0].tolist()
    assert sorted(found) == sorted(logits[-size:])


def test_after_a_restart_the_same_events_are_learned_again():
    shape = NetworkShape(
        fields=2, numerics=0, slots=3, embedding_dim=4, bottom=(), top=(8,), interaction="cosine"
    )
    one = branch_of(shape, torch.Generator().manual_seed(0))
    other = one.copy()
    replay = Replay(one.network, 100, steps=3, seed=5)
    for seed in range(7):
        replay.add(events_of(shape, 20, seed)[1])
    restored = Replay(one.network, 100, steps=3, seed=5)
    restored.restore(replay.state())
    for learned in (1000, 1010):
        replay.learn(one, (10, 0), RATE, learned)
        restored.learn(other, (10, 0), RATE, learned)
        new = events_of(shape, 15, learned)[1]
        replay.add(new)
        restored.add(new)
    assert differing(one.state(), other.state()) == []
    assert differing(replay.state(), restored.state()) == []


def sparse_learner(replays: int) -> Learner:
    learner = Learner(SCHEMA, msgspec.structs.replace(SMALL, replays=replays))
    learn_all(learner, click_events(500))
    learner.branches.prune()
    learn_all(learner, click_events(500, seed=1), target_ratio=0.3)
    learner.branches.cut()
    return learner


def test_only_the_network_learns_again_and_each_step_is_counted():
    once, again = sparse_learner(0), sparse_learner(1)
    before = once.learned_multiply_adds
    assert again.learned_multiply_adds == before
    for learner in (once, again):
        learn_all(learner, click_events(3000, seed=2))
    spent = again.learned_multiply_adds - before
    assert 1.5 < spent / (once.learned_multiply_adds - before) < 2
    states = [learner.state()[1] for learner in (once, again)]
    changed = {name.split(".")[0] for name in differing(*states)}
    assert "sparse" in changed
    assert not changed & {"linear", "numerics", "pairs"}


def test_a_drift_empties_the_buffer():
    learner = sparse_learner(1)
    learn_all(learner, click_events(1500, seed=2))
    assert len(learner.state()[1]["replay.outcomes"]) == 2000
    learner.check_evidence(1000, 0.1, 0.1)
    assert not len(learner.state()[1]["replay.outcomes"])
