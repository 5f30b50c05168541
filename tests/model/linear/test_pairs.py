"""Pairs of columns: their rows, what they are worth, and which of them live."""

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.errors import CheckpointError
from niwaki.model.evaluation import log_losses
from niwaki.model.features.encoder import Encoder
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.learner import Learner
from niwaki.model.linear.pairs import Candidates, PairBudget, PairChoice
from niwaki.model.published.served import ModelFrame
from tests.support.publisher import published
from tests.support.streams import LISTS, SMALL, differing, list_events
from tests.support.trainers import learn_all

FEW = msgspec.structs.replace(
    SMALL, pair_rows=2**16, max_pairs=4, max_list_pairs=2, pair_trial_events=256, network_rate=0.0
)
WIDE = Schema(categorical=tuple("abcdefg"), timestamp=None)
"""21 pairs of fields."""


def wide_events(count: int, of: tuple[int, int], seed: int = 0) -> EventBatch:
    """Events of `WIDE`, with clicks that two columns decide, and neither of them alone."""
    rng = np.random.default_rng(seed)
    values_BF = rng.integers(0, 4, (count, 7))
    odd_B = (values_BF[:, of[0]] + values_BF[:, of[1]]) % 2
    labels_B = (rng.random(count) < 0.1 + 0.8 * odd_B).astype(np.float32)
    columns = tuple(pa.array([f"v{v}" for v in column]) for column in values_BF.T)
    return EventBatch(labels_B, np.zeros(count), columns, np.empty((count, 0), np.float32))


def living(learner: Learner) -> set[tuple[str, str]]:
    return {learner.slots.candidates.names[one] for one in learner.slots.living.tolist()}


def test_pairs_of_fields_have_rows_of_their_own_wherever_they_stand():
    schema = Schema(categorical=("a", "b", "c"), timestamp=None)
    learner = Learner(schema, msgspec.structs.replace(SMALL, pair_rows=2**20))
    batch = rows_to_batch([{"a": i, "b": i % 3, "c": None} for i in range(60)], schema)

    def pairs(batch: EventBatch) -> torch.Tensor:
        features = learner.memory.complete(learner.encoder.encode(batch))
        return learner._assemble(features).slot_rows_BS[:, 3:6]

    rows_BP = pairs(batch)
    assert len(rows_BP[:, 0].unique()) == 60 and len(rows_BP[:, 2].unique()) == 3
    assert len(rows_BP.unique()) == 60 + 60 + 3
    assert pairs(batch.slice(7, 9)).equal(rows_BP[7:9])


def test_a_pair_with_a_list_contributes_the_mean_of_what_its_values_do_together_with_the_field():
    learner, batch = Learner(LISTS, FEW), list_events(2_000)
    learn_all(learner, batch)
    features = learner.memory.complete(learner.encoder.encode(batch))
    inputs, slots = learner._assemble(features), learner.slots
    flat, columns = inputs.slot_lists, slots.pair_columns[4:]
    b_X, q_X = learner.linear.evidence_R2K.numpy()[flat.rows_X, :, 0].T
    prior_S = learner.linear.prior_SK().numpy()[:, 0]
    each_X = b_X / (prior_S[flat.slots_X] + q_X) * flat.values_X
    events_X = np.repeat(np.arange(2_000), np.diff(flat.offsets))
    for column, pair in zip(columns, slots.living[4:].tolist(), strict=True):
        own_X = flat.slots_X == column
        expected_B = np.bincount(events_X[own_X], each_X[own_X], 2_000)
        found_B = inputs.contributions_BS[:, column].numpy()
        np.testing.assert_allclose(found_B, expected_B, atol=1e-5)
        # A row for each value of the field with each value of the list.
        field, place = slots.candidates.fields_C2[pair]
        of_list = features.lists[place].rows_V
        of_field = np.repeat(
            features.hashes_BF[:, field].numpy(), np.diff(features.lists[place].offsets)
        )
        rows_X = flat.rows_X[own_X].tolist()
        together = set(zip(of_field.tolist(), of_list.tolist(), rows_X, strict=True))
        assert len({one[:2] for one in together}) == len(together)
        assert len({row for *_, row in together}) > 0.99 * len(together)


def test_the_pair_that_says_something_is_found_among_many_and_stays():
    learner = Learner(WIDE, FEW)
    assert ("f", "g") not in living(learner)
    learn_all(learner, wide_events(8_000, (5, 6)))
    worth = learner.pairs.worth()
    assert next(iter(worth)) == "f*g" and worth["f*g"] > 0.05
    never = Learner(WIDE, msgspec.structs.replace(FEW, pair_trial_events=0))
    others = learn_all(never, wide_events(8_000, (5, 6)))
    assert learn_all(learner, wide_events(2_000, (5, 6), 1)).log_loss < others.log_loss - 0.1
    assert living(learner) >= {("f", "g")}


def test_every_candidate_has_its_turn_and_trials_become_longer_until_the_stream_changes():
    learner, seen, lengths, before = Learner(WIDE, FEW), set(), [], None
    for step in range(400):
        learn_all(learner, wide_events(64, (0, 1), step))
        if living(learner) != before:
            lengths.append(0)
            before = living(learner)
        lengths[-1] += 64
        seen |= before
    assert len(seen) == 21 and lengths[1] == 256 < lengths[-2]
    learner.pairs.hurry()
    learn_all(learner, wide_events(256, (0, 1), 999))
    assert living(learner) != before


def test_what_a_pair_is_worth_is_the_loss_that_its_contribution_saves():
    learner, batch = Learner(WIDE, FEW), wide_events(4_000, (0, 1))
    learn_all(learner, batch.slice(0, 3_000))
    rest = batch.slice(3_000, 3_128)
    choice = PairChoice(learner.slots.candidates, 0)
    features = learner.memory.complete(learner.encoder.encode(rest))
    inputs = learner._assemble(features)
    contributions_BS, logits_B = inputs.contributions_BS.numpy(), inputs.linear_BK[:, 0].numpy()
    columns, arrays = learner.slots.pair_columns, Outcomes.of(rest).arrays
    choice.living = learner.pairs.living
    choice.update(contributions_BS, columns, logits_B, arrays)
    names = ["*".join(learner.slots.candidates.names[pair]) for pair in choice.living]
    for column, worth in zip(columns, map(choice.worth().get, names), strict=True):
        without_B = logits_B - contributions_BS[:, column]
        saved_B = log_losses(without_B, rest.labels_B) - log_losses(logits_B, rest.labels_B)
        assert worth == pytest.approx(saved_B.mean(), rel=0.3, abs=1e-4)


def test_a_restored_learner_goes_on_bit_for_bit_with_pairs_that_come_and_go():
    first, second, batch = Learner(LISTS, FEW), Learner(LISTS, FEW), list_events(3_000)
    learn_all(first, batch.slice(0, 1_400))
    second.restore(*first.state())
    assert living(first) == living(second) != living(Learner(LISTS, FEW))
    for learner in (first, second):
        learn_all(learner, batch.slice(1_400, 3_000))
    assert differing(first.state()[1], second.state()[1]) == []


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
@settings(deadline=None, max_examples=20)
def test_slots_always_have_different_candidates_of_their_own_kind(singles, with_lists, steps):
    encoder = Encoder(LISTS, rows=64)
    candidates = Candidates(LISTS, encoder, PairBudget(64, singles, with_lists))
    choice, rng = PairChoice(candidates, 2), np.random.default_rng(steps)
    count = sum(candidates.slots)
    assert candidates.slots == (min(3, singles), min(6, with_lists))
    for _ in range(steps):
        parts = rng.normal(size=(2, count)).astype(np.float32), np.arange(count)
        outcomes = Outcomes.made(np.ones(2, np.float32)).arrays
        choice.update(*parts, np.zeros(2, np.float32), outcomes)
        assert candidates.broken_rule(choice.living) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda pairs: pairs[:-1],
        lambda pairs: pairs.int(),
        lambda pairs: pairs[[0, 0, *range(2, len(pairs))]],
        lambda pairs: pairs + 100,
        lambda pairs: pairs.flip(0),
        None,
    ],
)
def test_a_checkpoint_whose_living_pairs_cannot_be_is_refused(damage):
    learner = Learner(LISTS, FEW)
    learn_all(learner, list_events(600))
    header, tensors = published(learner, 1)
    frame = ModelFrame.of(header)
    frame.check(header, tensors)
    if damage is None:
        del tensors["linear.pairs"]
    else:
        tensors["linear.pairs"] = damage(tensors["linear.pairs"])
    with pytest.raises(CheckpointError, match=r"linear\.pairs"):
        frame.check(header, tensors)
