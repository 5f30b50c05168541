"""Wire formats: what is an event, what is not and why, and that nothing bad costs anything good."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.schema import EventBatch, Schema, rows_to_batch
from niwaki.stream.errors import ConfigError, EventError
from niwaki.stream.events import EventDecoder, encode_arrow, encode_json
from niwaki.stream.tables import RULES, table_to_batch

SCHEMA = Schema(categorical=("c_user", "c_item"), numeric=("n_age", "n_price"), ignore=("trace",))
GOOD = {
    "label": 1,
    "ts": 1_700_000_000_123,
    "c_user": "ann",
    "c_item": 7,
    "n_age": 30,
    "n_price": 1.5,
}


def event(**changes: object) -> bytes:
    """A good event but for `changes`; a change to `...` leaves the field out."""
    return json.dumps(
        {name: value for name, value in (GOOD | changes).items() if value is not ...}
    ).encode()


def decode(*values: bytes | None, schema: Schema = SCHEMA, max_event_bytes: int = 1_000_000):
    return EventDecoder(schema, max_event_bytes=max_event_bytes).decode(values)


def same(one: EventBatch, other: EventBatch) -> bool:
    columns = zip(one.categorical, other.categorical, strict=True)
    return (
        np.array_equal(one.labels_B, other.labels_B)
        and np.array_equal(one.times_s_B, other.times_s_B)
        and np.array_equal(one.numerics_BN, other.numerics_BN, equal_nan=True)
        and all(a.equals(b) for a, b in columns)
    )


def texts(batch: EventBatch) -> list[list[str | None]]:
    return [column.to_pylist() for column in batch.categorical]


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


def test_a_name_that_cannot_be_a_key_is_the_users_mistake():
    with pytest.raises(ConfigError, match='schema: .*quo"te'):
        EventDecoder(Schema(categorical=('quo"te',)))


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
    "label a boolean": (event(label=True), "label", "label: must be a number in [0, 1], got True"),
    "label a string": (event(label="1"), "label", "label: must be a number in [0, 1], got '1'"),
    "no timestamp": (event(ts=...), "timestamp", "ts: must be an integer number of milliseconds"),
    "timestamp a float": (
        event(ts=1.5),
        "timestamp",
        "ts: must be an integer number of milliseconds",
    ),
    "timestamp too large": (
        event(ts=10**17),
        "timestamp",
        "ts: must be an integer number of milliseconds",
    ),
    "unknown column": (
        event(c_usr="ann"),
        "column",
        "c_usr: must be a column of the schema, got 'ann'",
    ),
    "categorical a list": (
        event(c_user=["a"]),
        "categorical",
        "c_user: must be a string or an integer, got ['a']",
    ),
    "categorical a float": (
        event(c_user=1.5),
        "categorical",
        "c_user: must be a string or an integer, got 1.5",
    ),
    "half a surrogate pair": (
        event(c_user="\ud800x"),
        "categorical",
        "c_user: must be valid Unicode",
    ),
    "endless integer": (event().replace(b'"ann"', b"1" * 5000), "json", "value: must be JSON"),
    "numeric a string": (event(n_age="30"), "numeric", "n_age: must be a number, got '30'"),
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
    assert [(reject.position, reject.rule, reject.events) for reject in rejects] == [(1, rule, 1)]
    assert rejects[0].reason.startswith(reason)
    assert rule in RULES


def test_a_long_value_is_shortened_in_the_reason():
    _, _, rejects = decode(event(n_age="9" * 100_000), event(**{"x" * 100_000: 1}))
    assert all(len(reject.reason) <= 400 for reject in rejects)
    assert len(rejects[0].reason) < 150


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist([GOOD | row for row in rows])


def test_an_arrow_message_carries_many_events_which_share_its_index():
    messages = encode_arrow(table(*({"c_user": str(user)} for user in range(5))), 2)
    batch, index_B, rejects = decode(*messages)
    assert texts(batch)[0] == ["0", "1", "2", "3", "4"]
    assert index_B.tolist() == [0, 0, 1, 1, 2]
    assert rejects == []


def test_events_keep_the_order_of_their_messages_whatever_the_format():
    arrow = encode_arrow(table({"c_user": "b"}, {"c_user": "c"}), 2)
    batch, index_B, _ = decode(event(c_user="a"), *arrow, event(c_user="d"), *arrow, b"bad")
    assert texts(batch)[0] == ["a", "b", "c", "d", "b", "c"]
    assert index_B.tolist() == [0, 1, 1, 2, 3, 3]


def test_bad_rows_of_an_arrow_message_make_one_reject_and_the_others_are_read():
    rows = [
        {"c_user": "a"},
        {"label": None},
        {"n_age": 1e39},
        {"ts": None},
        {"label": 2},
        {"c_user": "b"},
    ]
    table_ = table(*rows).set_column(4, "n_age", pa.array([30, 30, 1e39, 30, 30, 30], pa.float64()))
    batch, index_B, rejects = decode(
        event(c_user="first"), *encode_arrow(table_, 6), event(c_user="last")
    )
    assert texts(batch)[0] == ["first", "a", "b", "last"]
    assert index_B.tolist() == [0, 1, 1, 2]
    assert [(reject.position, reject.rule, reject.events) for reject in rejects] == [
        (1, "label", 4)
    ]
    assert (
        rejects[0].reason
        == "4 of its events, first row 1: label: must be a number in [0, 1], got nan"
    )


def test_an_arrow_message_with_a_wrong_column_is_rejected_whole_and_only_it():
    wrong = encode_arrow(pa.table({"label": ["yes", "no"], "ts": [1, 2]}), 2)
    unknown = encode_arrow(pa.table({"label": [1], "ts": [1], "surprise": [1]}), 1)
    good = encode_arrow(table({}), 1)
    batch, index_B, rejects = decode(*wrong, *unknown, *good)
    assert index_B.tolist() == [2]
    assert [(reject.position, reject.rule, reject.events) for reject in rejects] == [
        (0, "label", 2),
        (1, "column", 1),
    ]


def test_an_arrow_message_may_be_long_if_its_events_are_not():
    many = table(*[{}] * 200)
    batch, _, rejects = decode(*encode_arrow(many, 200), max_event_bytes=500)
    assert (len(batch), rejects) == (200, [])
    _, _, rejects = decode(*encode_arrow(table({"c_user": "a" * 2_000_000}), 1))
    assert [reject.rule for reject in rejects] == ["size"]


def test_metadata_of_a_schema_does_not_matter():
    tables = [table({"c_user": name}).replace_schema_metadata({"pandas": name}) for name in "ab"]
    batch, _, rejects = decode(*(message for one in tables for message in encode_arrow(one, 1)))
    assert texts(batch)[0] == ["a", "b"]
    assert rejects == []


values = st.one_of(st.none(), st.text(max_size=5), st.integers(-(2**70), 2**70))
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


columns = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.integers(0, 2**45),
        st.none() | st.text(max_size=5),
        st.none() | st.integers(0, 9),
    ),
    min_size=1,
    max_size=20,
)


@given(columns, st.integers(1, 7))
def test_json_and_arrow_of_one_table_decode_to_the_same_batch(many, events_per_message):
    label, ts, user, age = zip(*many, strict=True)
    typed = {"c_user": pa.array(user, pa.string()), "n_age": pa.array(age, pa.int8())}
    table_ = pa.table({"label": label, "ts": ts} | typed)
    by_json, _, _ = decode(*encode_json(table_))
    by_arrow, _, _ = decode(*encode_arrow(table_, events_per_message))
    direct, _ = table_to_batch(table_, SCHEMA)
    assert same(by_json, by_arrow)
    assert same(by_json, direct)


messages = st.one_of(
    st.binary(max_size=40), st.sampled_from([event(), *encode_arrow(table({}, {}), 2)])
)


@given(st.lists(messages, max_size=6))
def test_whatever_arrives_each_message_is_decoded_or_rejected(many):
    batch, index_B, rejects = decode(*many)
    assert len(batch) == len(index_B)
    assert sorted({*index_B.tolist(), *(reject.position for reject in rejects)}) == list(
        range(len(many))
    )


@given(st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6))
def test_a_damaged_arrow_message_is_harmless(place, byte, length):
    message = bytearray(
        encode_arrow(table({"c_user": "ann"}, {"c_user": None}, {"c_item": 12}), 3)[0]
    )
    message[place % len(message)] = byte
    batch, index_B, _ = decode(
        bytes(message), bytes(message[: length % len(message)]), event(c_user="good")
    )
    assert texts(batch)[0][-1] == "good"
    assert len(index_B) == len(batch)


def test_a_table_may_hold_every_type_that_means_a_string_a_number_or_a_time():
    moment = datetime(2024, 5, 1, tzinfo=UTC)
    table_ = pa.table(
        {
            "label": pa.array([True, False, True]),
            "ts": pa.array([moment] * 3, pa.timestamp("us", "UTC")),
            "c_user": pa.array(["x", None, "x"]).dictionary_encode(),
            "c_item": pa.array([1, None, 3], pa.uint8()),
            "n_age": pa.array([Decimal("1.25"), None, Decimal("2.50")]),
            "n_price": pa.array([1, None, 3], pa.float16()),
            "trace": pa.array([b"1", b"2", b"3"]),
        }
    )
    batch, rejects = table_to_batch(table_, SCHEMA)
    assert batch.labels_B.tolist() == [1, 0, 1]
    assert batch.times_s_B.tolist() == [moment.timestamp()] * 3
    assert texts(batch) == [["x", None, "x"], ["1", None, "3"]]
    numerics_BN = np.array([[1.25, 1], [math.nan] * 2, [2.5, 3]], np.float32)
    assert np.array_equal(batch.numerics_BN, numerics_BN, equal_nan=True)
    assert rejects == []
    strings = [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.int64()), pa.null()]
    for kind in strings:
        column = pa.array([None, None, None], kind)
        assert (
            texts(table_to_batch(table_.set_column(2, "c_user", column), SCHEMA)[0])[0]
            == [None] * 3
        )


def test_rows_that_break_the_schema_are_left_out_and_named():
    table_ = pa.table(
        {
            "label": [1, None, 0.5, math.nan],
            "ts": [1, 2, None, 4],
            "n_age": [1.0, 2.0, 3.0, math.inf],
        }
    )
    batch, rejects = table_to_batch(table_, SCHEMA)
    assert batch.times_s_B.tolist() == [0.001]
    assert [(reject.position, reject.rule) for reject in rejects] == [
        (1, "label"),
        (2, "timestamp"),
        (3, "label"),
    ]


@pytest.mark.parametrize(
    ("columns", "rule", "message"),
    [
        ({"ts": [1]}, "label", "label: must be there"),
        ({"label": [1]}, "timestamp", "ts: must be there"),
        ({"label": ["1"], "ts": [1]}, "label", "label: must be numbers, got a column of string"),
        ({"label": [1], "ts": [1.5]}, "timestamp", "ts: must be an integer"),
        (
            {"label": [1], "ts": [1], "c_user": [1.5]},
            "categorical",
            "c_user: must be strings or integers, got a column",
        ),
        (
            {"label": [1], "ts": [1], "n_age": ["1"]},
            "numeric",
            "n_age: must be numbers, got a column of string",
        ),
        (
            {"label": [1], "ts": [1], "c_usr": ["1"]},
            "column",
            "'c_usr': must be a column of the schema",
        ),
    ],
)
def test_a_table_with_a_wrong_column_is_refused(columns, rule, message):
    with pytest.raises(EventError, match=f"^{message}") as raised:
        table_to_batch(pa.table(columns), SCHEMA)
    assert raised.value.kind == rule


def test_tables_are_written_as_json_that_is_read_back():
    moment = datetime(2024, 5, 1, tzinfo=UTC)
    columns = {
        "label": [True],
        "ts": [moment],
        "c_user": ['a"\n\u2028é'],
        "c_item": [None],
        "n_age": [Decimal("1.5")],
    }
    (value,) = encode_json(pa.table(columns))
    assert json.loads(value) == {
        "label": 1,
        "ts": 1714521600000,
        "c_user": 'a"\n\u2028é',
        "n_age": 1.5,
    }
    batch, _, rejects = decode(value)
    assert texts(batch)[0] == ['a"\n\u2028é']
    assert rejects == []


def test_an_empty_table_makes_no_messages():
    assert encode_json(table({}).slice(0, 0)) == []
    assert encode_arrow(table({}).slice(0, 0), 10) == []
