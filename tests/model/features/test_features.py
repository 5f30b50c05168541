"""From columns to table rows: hashing is stable, seeded by field, and blind to how a batch is
cut."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.errors import FeatureError
from niwaki.model.features.encoder import Encoder
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch, Schema
from tests.support.streams import SCHEMA, click_events

GOLDEN = [
    [847440, 1160318, 2895171],
    [123104, 1160318, 2895171],
    [580502, 1160318, 2895171],
    [527113, 1160318, 2895171],
    [106871, 1160318, 2895171],
    [792980, 1160318, 2895171],
    [37109, 1160318, 2895171],
]
values = st.none() | st.text(max_size=40) | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_a_value_has_the_same_row_wherever_it_stands(pairs, data):
    schema = Schema(categorical=("a", "b"), crosses=(("a", "b"),))
    encoder = Encoder(schema, rows=1000)
    batch = rows_to_batch([{"a": a, "b": b} for a, b in pairs], schema)
    rows = encoder.encode(batch).rows_BF
    start = data.draw(st.integers(0, len(pairs) - 1))
    stop = data.draw(st.integers(start + 1, len(pairs)))
    assert encoder.encode(batch.slice(start, stop)).rows_BF.equal(rows[start:stop])
    pieces = [batch.slice(i, i + 1) for i in range(len(pairs))]
    assert encoder.encode(EventBatch.concat(pieces)).rows_BF.equal(rows)
    missing = np.array([[a is None, b is None, a is None or b is None] for a, b in pairs])
    assert ((rows.numpy() % 1000 == 0) == missing).all()
    assert ((rows.numpy() // 1000) == [0, 1, 2]).all()


def test_rows_are_the_same_on_every_machine_and_in_every_version():
    schema = Schema(categorical=("user",), crosses=(), time_features=("hour", "weekday"))
    texts = ["", "a", "12345678", "123456789", "grüße", "x" * 100, "0"]
    batch = rows_to_batch([{"user": text, "ts": 1_700_000_000_000} for text in texts], schema)
    rows = Encoder(schema, rows=2**20).encode(batch).rows_BF
    assert rows.tolist() == GOLDEN

    schema = Schema(categorical=("a", "b", "c"))


def test_integers_and_their_decimal_strings_are_one_value():
    schema = Schema(categorical=("user",))
    rows = (
        Encoder(schema, rows=1000)
        .encode(rows_to_batch([{"user": 12}, {"user": "12"}, {"user": -5}], schema))
        .rows_BF
    )
    assert rows[0] == rows[1] != rows[2]


def test_fields_with_equal_values_and_other_seeds_hash_apart():
    schema = Schema(categorical=("a", "b"))
    batch = rows_to_batch([{"a": str(i), "b": str(i)} for i in range(200)], schema)
    first, second = Encoder(schema, rows=2**20).encode(batch).rows_BF.T % 2**20
    assert (first != second).all()
    assert (Encoder(schema, rows=2**20, seed=1).encode(batch).rows_BF.T[0] != first).all()


def test_hashing_spreads_values_evenly():
    schema = Schema(categorical=("a",))
    batch = rows_to_batch([{"a": i} for i in range(50_000)], schema)
    counts = np.bincount(
        Encoder(schema, rows=101).encode(batch).rows_BF.numpy()[:, 0], minlength=101
    )[1:]
    chi_square = ((counts - 500) ** 2 / 500).sum()
    assert chi_square < 160  # 99 degrees of freedom: 1 in 10,000


def test_a_sliced_arrow_column_is_hashed_from_its_own_offset():
    schema = Schema(categorical=("a",))
    column = pa.array(["one", None, "three", "four"], pa.string()).slice(1)
    batch = EventBatch(
        np.zeros(3, np.float32), np.zeros(3), (column,), np.zeros((3, 0), np.float32)
    )
    direct = rows_to_batch([{"a": None}, {"a": "three"}, {"a": "four"}], schema)
    encoder = Encoder(schema, rows=1000)
    assert encoder.encode(batch).rows_BF.equal(encoder.encode(direct).rows_BF)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user": ["x"]}, "user: must be a string or a number"),
        ({"user": "\ud800"}, "user: must be valid Unicode"),
        ({"age": "old"}, "age: must be a number, got 'old'"),
        ({"age": 1e300}, "age: must be finite in 32 bits"),
        ({"age": float("inf")}, "age: must be finite in 32 bits"),
        ({"label": 2}, r"label: must be a number in \[0, 1\], got 2"),
        ({"ts": "now"}, "ts: must be a number of milliseconds since the epoch"),
        ({"colour": "red"}, "colour: must be a column of the schema, got 'red'"),
        ({"user": "x" * 1000, "age": "y" * 1000}, "age: must be a number, got 'yyy.*\\.\\.\\.$"),
    ],
)
def test_a_row_that_breaks_the_schema_names_field_rule_and_value(row, message):
    with pytest.raises(FeatureError, match=message):
        rows_to_batch([row], SCHEMA)


def test_a_label_is_required_only_where_events_are_learned():
    assert np.isnan(rows_to_batch([{}], SCHEMA).labels_B[0])
    with pytest.raises(FeatureError, match="label"):
        rows_to_batch([{}], SCHEMA, labelled=True)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"categorical": ("a", "a")}, "'a' has more than one role"),
        ({"categorical": ("label",)}, "'label' has more than one role"),
        ({}, "at least one"),
        ({"categorical": ("a", "b"), "crosses": (("a", "c"),)}, "crosses"),
        ({"categorical": ("a",), "time_features": ("minute",)}, "minute"),
        ({"categorical": ("a",), "numeric": ("b",), "time_features": ("age:b",)}, "age:b"),
        ({"categorical": ("a",), "timestamp": None, "time_features": ("hour",)}, "timestamp"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused(settings_, message):
    with pytest.raises(ValueError, match=message):
        Schema(**settings_)


def test_an_empty_timestamp_means_that_events_carry_none():
    assert Schema(timestamp="", categorical=("a",)) == Schema(timestamp=None, categorical=("a",))


def test_slices_and_concatenation_keep_every_column():
    batch = click_events(50)
    parts = EventBatch.concat([batch.slice(0, 20), batch.slice(20, 50)])
    assert np.array_equal(parts.labels_B, batch.labels_B)
    assert np.array_equal(parts.numerics_BN, batch.numerics_BN, equal_nan=True)
    assert all(a.equals(b) for a, b in zip(parts.categorical, batch.categorical, strict=True))
