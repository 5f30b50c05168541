"""Compact rows are, to the bit, the rows of a plain table, whatever changes come one after the
other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.published.checkpoint import pack, unpack
from niwaki.model.published.compact import CompactRows, last_of_each
from niwaki.model.published.served import PublishedModel
from niwaki.model.published.table_codes import encode_values, rounded
from niwaki.serving.double_buffer import CompactShelf, DoubleBuffer
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import LISTS, SMALL, list_events

ROWS = 3_000
PRECISIONS = ["float32", "float16", "int8", "int4"]


def drawn_change(generator, count, shape, precision):
    """Some rows with values of all sizes, as they come out of a checkpoint."""
    rows = np.sort(generator.choice(ROWS, count, replace=False))
    sizes = np.exp2(generator.uniform(-40, 9, (count, *[1] * len(shape))))
    values = generator.standard_normal((count, *shape)) * sizes
    if len(shape) == 2:
        values[:, 1] = np.abs(values[:, 1])  # a precision is not negative
    values[::7] = 0
    tensors = {
        "linear.values": torch.zeros(0, 2, 3),
        "embedding.values": torch.zeros(0, 4),
    }
    name = "linear.values" if len(shape) == 2 else "embedding.values"
    tensors[name] = torch.from_numpy(values.astype(np.float32))
    return torch.from_numpy(rows), rounded(tensors, encode_values(tensors, precision))[name]


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (4,)])
@pytest.mark.parametrize("precision", PRECISIONS)
@given(st.lists(st.sampled_from([0, 1, 64, 700, ROWS]), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=15)
def test_compact_rows_are_those_of_a_plain_table(shape, precision, counts, seed):
    generator = np.random.default_rng(seed)
    width = int(np.prod(shape))
    plain = np.zeros((ROWS, width), np.float32)
    compact = CompactRows.empty(ROWS, width, len(shape) == 2, precision)
    before, kept = compact, plain.copy()
    for count in counts:
        before, kept = compact, plain.copy()
        rows, values = drawn_change(generator, count, shape, precision)
        plain[rows] = values.flatten(1)
        compact = compact.changed(rows, values, precision)
    assert np.array_equal(compact.gather(np.arange(ROWS)), plain)
    assert np.array_equal(before.gather(np.arange(ROWS)), kept), "an older one has changed"
    numbers, values = compact.rows()
    assert np.array_equal(numbers, np.flatnonzero(plain.any(1)))
    assert np.array_equal(values, plain[numbers])


def test_rows_of_few_events_take_less_than_six_bytes_each():
    generator = np.random.default_rng(1)
    rows = np.flatnonzero(generator.random(1_000_000) < 0.3)
    values = torch.from_numpy(generator.random((len(rows), 2, 3)).astype(np.float32))
    compact = CompactRows.empty(1_000_000, 6, True, "int4")
    compact = compact.changed(torch.from_numpy(rows), values, "int4")
    assert compact.nbytes < 6 * len(rows)


def test_of_several_changes_a_row_has_the_last():
    first = torch.tensor([1, 4, 6]), torch.tensor([[1.0], [4.0], [6.0]])
    second = torch.tensor([0, 4]), torch.tensor([[10.0], [14.0]])
    rows, values = last_of_each([first, second])
    assert rows.tolist() == [0, 1, 4, 6]
    assert values[:, 0].tolist() == [10, 1, 14, 6]


def test_rows_that_do_not_ascend_are_put_in_order():
    rows, values = last_of_each([(torch.tensor([6, 1, 6]), torch.tensor([[6.0], [1.0], [7.0]]))])
    assert rows.tolist() == [1, 6]
    assert values[:, 0].tolist() == [1, 7]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_with_lists_on_compact_tables_predicts_to_the_bit_what_a_plain_one_does(precision):
    training = TrainingConfig(table_precision=precision)
    trainer = Trainer(
        TrainerConfig(schema=LISTS, model=SMALL, drift=DriftConfig(), training=training)
    )
    replica = trainer.add_replica(10**9)
    events, scored = list_events(1_024, seed=3), list_events(700, seed=4)
    for start in range(0, len(events), 64):
        trainer.step(events.slice(start, start + 64))
    about = {"version": 1, "parent": 0, "created_s": 1.0}
    checkpoint = unpack(pack(*replica.checkpoint(trainer.status(), **about)))
    plain = PublishedModel.from_checkpoint(*checkpoint)
    compact = DoubleBuffer(CompactShelf()).make([checkpoint])
    assert set(compact.compact) == {"embedding", "linear"}
    hashed = compact.encoder.encode(scored)
    assert np.array_equal(compact.experts(hashed), plain.experts(hashed))
    assert torch.equal(compact.vectors(hashed), plain.vectors(hashed))
    ours, theirs = (model.contributions(model.inputs(hashed)) for model in (compact, plain))
    assert torch.equal(ours, theirs)
