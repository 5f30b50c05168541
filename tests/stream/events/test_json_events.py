"""JSON messages: what is an event, what is not and why, and nothing bad costs anything good."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import Schema
from niwaki.stream.events.encoders import encode_json
from niwaki.stream.events.rejects import KINDS
from tests.support.messages import SCHEMA, decode, event, same, texts


def test_json_objects_become_columns_of_the_types_that_the_schema_asks_for():
    batch, index_B, rejects = decode(
        event(), event(label=0.25, c_user=None, n_age=None, trace={"any": [1]})
    )
    assert batch.labels_B.dtype == np.float32
    assert batch.labels_B.tolist() == [1, 0.25]
    assert batch.times_s_B.tolist() == [1_700_000_000.123] * 2
    assert [column.type for column in batch.categorical] == [pa.string(), pa.string()]
    assert texts(batch) == [["ann", None], ["7", "7"]]
    assert batch.numerics_BN.dtype == np.float32
    assert np.array_equal(
        batch.numerics_BN, np.array([[30, 1.5], [math.nan, 1.5]], np.float32), equal_nan=True
    )
    assert index_B.tolist() == [0, 1]
    assert rejects == []


def test_the_same_number_as_integer_and_as_string_is_one_categorical_value():
    batch, _, _ = decode(
        event(c_user=12), event(c_user="12"), event(c_user=None), event(c_user=10**30)
    )
    assert texts(batch)[0] == ["12", "12", None, str(10**30)]


def test_absent_is_missing_and_the_empty_string_is_a_value():
    batch, _, _ = decode(event(c_user=..., n_price=...), event(c_user=""))
    assert texts(batch)[0] == [None, ""]
    assert np.isnan(batch.numerics_BN[:, 1]).tolist() == [True, False]


def test_nan_which_python_writes_into_json_is_missing_in_a_numeric_field():
    batch, _, rejects = decode(event(n_age=math.nan), event())
    assert np.isnan(batch.numerics_BN[:, 0]).tolist() == [True, False]
    assert rejects == []


def test_columns_may_have_any_name():
    schema = Schema(label="class", timestamp="a b", categorical=("f0", "ключ"))
    value = json.dumps({"class": 0, "a b": 5, "f0": "x", "ключ": "y"}).encode()
    batch, _, rejects = decode(value, schema=schema)
    assert texts(batch) == [["x"], ["y"]]
    assert rejects == []


def test_columns_may_have_names_that_json_escapes():
    names = ('quo"te', "back\\slash", "tab\tnew\nline", "\x7f")
    table = pa.table({"label": [1], "ts": [5]} | {name: ["x"] for name in names})
    batch, _, rejects = decode(*encode_json(table), schema=Schema(categorical=names))
    assert (texts(batch), rejects) == ([["x"]] * 4, [])


def test_without_a_timestamp_column_all_times_are_zero():
    schema = Schema(timestamp=None, numeric=("n",))
    batch, _, _ = decode(b'{"label":1,"n":2}', schema=schema)
    assert batch.times_s_B.tolist() == [0]


def test_no_messages_make_an_empty_batch():
    batch, index_B, rejects = decode()
    assert (len(batch), batch.numerics_BN.shape, len(index_B), rejects) == (0, (0, 2), 0, [])


BAD = {
    "null value": (None, "null", "value: must not be null"),
    "empty": (b"", "json", "value: must be JSON"),
    "not JSON": (b"GET / HTTP/1.1", "json", "value: must be JSON"),
    "cut short": (event()[:-1], "json", "value: must be JSON"),
    "two objects": (event() + event(), "json", "value: must be JSON"),
    "not an object": (b"[1]", "json", "value: must be a JSON object, got [1]"),
    "not UTF-8": (event().replace(b"ann", b"\xff"), "json", "value: must be JSON"),
    "endless nesting": (
        event(trace=...)[:-1] + b',"trace":' + b"[" * 100_000,
        "json",
        "value: must be JSON",
    ),
    "2 MB long": (
        event(c_user="a" * 2_000_000),
        "size",
        "value: must be at most 1000000 bytes, got 2000",
    ),
    "no label": (event(label=...), "label", "label: must be a number in [0, 1], got None"),
    "null label": (event(label=None), "label", "label: must be a number in [0, 1], got None"),
    "NaN label": (event(label=math.nan), "label", "label: must be a number in [0, 1], got nan"),
    "label too large": (event(label=2), "label", "label: must be a number in [0, 1], got 2"),
    "label a word": (event(label="a"), "label", "label: must be a number in [0, 1], got 'a'"),
    "no timestamp": (
        event(ts=...),
        "timestamp",
        "ts: must be a number of milliseconds since the epoch",
    ),
    "timestamp a date": (
        event(ts="2023-11-14"),
        "timestamp",
        "ts: must be a number of milliseconds since the epoch",
    ),
    "timestamp too large": (
        event(ts=10**17),
        "timestamp",
        "ts: must be a number of milliseconds since the epoch",
    ),
    "unknown column": (
        event(c_usr="ann"),
        "column",
        "c_usr: must be a column of the schema, got 'ann'",
    ),
    "categorical a list": (
        event(c_user=["a"]),
        "categorical",
        "c_user: must be a string or a number, got ['a']",
    ),
    "half a surrogate pair": (
        event(c_user="\ud800x"),
        "categorical",
        "c_user: must be valid Unicode",
    ),
    "endless integer": (event().replace(b'"ann"', b"1" * 5000), "json", "value: must be JSON"),
    "numeric a list": (event(n_age=[30]), "numeric", "n_age: must be a number, got [30]"),
    "numeric infinite": (
        event(n_age=math.inf),
        "numeric",
        "n_age: must be finite in 32 bits, got inf",
    ),
    "numeric beyond 32 bits": (
        event(n_age=1e39),
        "numeric",
        "n_age: must be finite in 32 bits, got 1e+39",
    ),
    "numeric beyond 64 bits": (
        event().replace(b"30", b"1e999"),
        "numeric",
        "n_age: must be finite in 32 bits",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_event_is_rejected_with_field_rule_and_value_and_costs_no_other(kind):
    value, rule, reason = BAD[kind]
    batch, index_B, rejects = decode(event(c_user="before"), value, event(c_user="after"))
    assert texts(batch)[0] == ["before", "after"]
    assert index_B.tolist() == [0, 2]
    assert [(reject.position, reject.kind, reject.events) for reject in rejects] == [(1, rule, 1)]
    assert rejects[0].reason.startswith(reason)
    assert rule in KINDS


def test_a_long_value_is_shortened_in_the_reason():
    _, _, rejects = decode(event(n_age="9" * 100_000), event(**{"x" * 100_000: 1}))
    assert all(len(reject.reason) <= 400 for reject in rejects)
    assert len(rejects[0].reason) < 150


values = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.5, 1.5, 2.0, -1.0]),
)
numbers = st.one_of(
    st.none(), st.floats(width=32, allow_infinity=False), st.integers(-(2**40), 2**40)
)
rows = st.fixed_dictionaries(
    {"label": st.sampled_from([0, 1, 0.5]), "ts": st.integers(0, 2**45)},
    optional={"c_user": values, "c_item": values, "n_age": numbers, "n_price": numbers},
)


@given(st.lists(rows, max_size=8))
def test_a_message_is_read_as_the_scoring_interface_reads_the_row(many):
    batch, index_B, rejects = decode(*(json.dumps(row).encode() for row in many))
    assert same(batch, rows_to_batch(many, SCHEMA))
    assert index_B.tolist() == list(range(len(many)))
    assert rejects == []
