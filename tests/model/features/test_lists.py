"""Lists on their way to the model: flat, by the rules for missing, empty and weighted ones."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.lists import Crossed, ListSlots
from niwaki.model.features.schema import LIST, EventBatch, Schema
from niwaki.pruning.errors import RuleError

SCHEMA = Schema(categorical=("item",), lists=("history", "tags"), shares={"history": "item"})
NO_PAIRS = Crossed(np.empty((0, 2), np.int64), np.empty(0, np.uint64), 0, 1, 1)
ROWS = 1_000
VALUES = st.lists(
    st.tuples(
        st.sampled_from([*"abcdef", "12", "12.0", ""]), st.sampled_from([0.0, 0.5, 1.0, 3.0])
    ),
    max_size=5,
)
COLUMNS = st.lists(st.tuples(st.none() | VALUES, st.none() | VALUES), min_size=1, max_size=12)


def events(lists) -> EventBatch:
    count = len(lists)
    columns = tuple(pa.array(list(column), LIST) for column in zip(*lists, strict=True))
    items = pa.array(["a"] * count)
    zeros_B = np.zeros(count, np.float32)
    return EventBatch(zeros_B, np.ones(count), (items,), np.empty((count, 0), np.float32), columns)


def row_of(encoder: Encoder, name: str) -> int:
    """The row of an item, without its field."""
    one = EventBatch(
        np.zeros(1, np.float32),
        np.ones(1),
        (pa.array([name]),),
        np.empty((1, 0), np.float32),
        (pa.nulls(1, LIST), pa.nulls(1, LIST)),
    )
    return int(encoder.encode(one).rows_BF[0, 0])


@given(COLUMNS, st.data())
@settings(deadline=None)
def test_each_list_has_its_values_in_order_and_shares_that_sum_to_one(lists, data):
    encoder = Encoder(SCHEMA, rows=ROWS)
    hashed = encoder.encode(events(lists))
    start = data.draw(st.integers(0, len(lists)))
    pieces = [hashed.part(0, start), hashed.part(start, len(lists))]
    for found in (
        hashed,
        HashedEvents.concat(pieces),
        encoder.encode(events([*lists, *lists][: len(lists)])),
    ):
        for place, rows in enumerate(found.lists):
            for b, each in enumerate(lists):
                span = slice(rows.offsets[b], rows.offsets[b + 1])
                first = (1 + place) * ROWS
                total = sum(weight for _, weight in each[place] or [])
                if each[place] is None or not total:
                    assert rows.shares_V[span].tolist() == [1]
                    assert (rows.rows_V[span][0] == first) == (each[place] is None)
                    continue
                expected = [weight / total for _, weight in each[place]]
                np.testing.assert_allclose(rows.shares_V[span], expected, rtol=1e-6)
                if place == 0:
                    known = [first + row_of(encoder, name) for name, _ in each[0]]
                    assert rows.rows_V[span].tolist() == known
                    assert rows.embedded_V[span].tolist() == [row - first for row in known]
                else:
                    assert rows.embedded_V is rows.rows_V or (rows.embedded_V == rows.rows_V).all()
    slots = ListSlots.of(hashed.lists, 7, hashed.hashes_BF.numpy(), NO_PAIRS)
    for b in range(len(lists)):
        span = slice(slots.offsets[b], slots.offsets[b + 1])
        own = [rows.rows_V[rows.offsets[b] : rows.offsets[b + 1]] for rows in hashed.lists]
        assert slots.rows_X[span].tolist() == np.concatenate(own).tolist()
        assert slots.slots_X[span].tolist() == [7] * len(own[0]) + [8] * len(own[1])


def test_a_slice_of_a_batch_is_encoded_as_the_same_events_alone():
    lists = [
        ([("a", 1.0)], None),
        ([], [("b", 2.0), ("c", 1.0)]),
        (None, []),
        ([("d", 1.0)] * 3, []),
    ]
    encoder = Encoder(SCHEMA, rows=ROWS)
    part, alone = encoder.encode(events(lists).slice(1, 4)), encoder.encode(events(lists[1:]))
    for first, second in zip(part.lists, alone.lists, strict=True):
        assert all(map(np.array_equal, first, second))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lists": ("item",)}, "lists"),
        ({"lists": ("history",), "shares": {"other": "item"}}, "shares"),
        ({"lists": ("history",), "shares": {"history": "nothing"}}, "shares"),
        ({"lists": ("history",), "shares": {"history": "item", "item": "item"}}, "shares"),
        ({"lists": ("history",), "max_list_values": 0}, "max_list_values"),
        ({"lists": ("history",), "list_separator": ""}, "list_separator"),
        ({"weight": "label"}, "weight"),
        ({"sampling_ratio": "label"}, "sampling_ratio"),
    ],
)
def test_settings_of_lists_that_cannot_be_used_are_named(changes, field):
    with pytest.raises(RuleError) as raised:
        Schema(categorical=("item",), **changes)
    assert raised.value.field == field
