"""Arrow messages and tables of events, alone and beside JSON: what is read, and what is refused."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import EventError
from niwaki.stream.events.encoders import encode_arrow, encode_json
from niwaki.stream.events.tables import table_to_batch
from tests.support.messages import GOOD, SCHEMA, decode, event, same, texts


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
    assert [(reject.position, reject.kind, reject.events) for reject in rejects] == [
        (1, "label", 4)
    ]
    assert rejects[0].reason == (
        "label: must be a number in [0, 1] (row 1, the first of 4 wrong ones), got None"
    )


def test_an_arrow_message_with_a_wrong_column_is_rejected_whole_and_only_it():
    wrong = encode_arrow(pa.table({"label": [[1], [0]], "ts": [1, 2]}), 2)
    unknown = encode_arrow(pa.table({"label": [1], "ts": [1], "surprise": [1]}), 1)
    good = encode_arrow(table({}), 1)
    batch, index_B, rejects = decode(*wrong, *unknown, *good)
    assert index_B.tolist() == [2]
    assert [(reject.position, reject.kind, reject.events) for reject in rejects] == [
        (0, "label", 2),
        (1, "column", 1),
    ]


def test_an_arrow_message_may_be_long_if_its_events_are_not():
    many = table(*[{}] * 200)
    batch, _, rejects = decode(*encode_arrow(many, 200), max_event_bytes=500)
    assert (len(batch), rejects) == (200, [])
    _, _, rejects = decode(*encode_arrow(table({"c_user": "a" * 2_000_000}), 1))
    assert [reject.kind for reject in rejects] == ["size"]


def test_metadata_of_a_schema_does_not_matter():
    tables = [table({"c_user": name}).replace_schema_metadata({"pandas": name}) for name in "ab"]
    batch, _, rejects = decode(*(message for one in tables for message in encode_arrow(one, 1)))
    assert texts(batch)[0] == ["a", "b"]
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
    direct, _ = table_to_batch(table_, SCHEMA)[:2]
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
    batch, rejects = table_to_batch(table_, SCHEMA)[:2]
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


def test_hours_as_numbers_of_pandas_are_times_of_a_format():
    schema = Schema(label="label", timestamp_format="%y%m%d%H", numeric=("n_age",))
    times = pa.array([14102100.0, None, 14102101.0])
    batch, rejects = table_to_batch(
        pa.table({"label": [1, 0, 1], "ts": times, "n_age": [1, 2, 3]}), schema
    )[:2]
    first_s = datetime(2014, 10, 21, tzinfo=UTC).timestamp()
    assert batch.times_s_B.tolist() == [first_s, first_s + 3600]
    assert [reject.field for reject in rejects] == ["ts"]


def test_rows_that_break_the_schema_are_left_out_and_named():
    table_ = pa.table(
        {
            "label": [1, None, 0.5, math.nan],
            "ts": [1, 2, None, 4],
            "n_age": [1.0, 2.0, 3.0, math.inf],
        }
    )
    batch, rejects = table_to_batch(table_, SCHEMA)[:2]
    assert batch.times_s_B.tolist() == [0.001]
    assert [(reject.position, reject.kind) for reject in rejects] == [
        (1, "label"),
        (2, "timestamp"),
        (3, "label"),
    ]


@pytest.mark.parametrize(
    ("columns", "rule", "message"),
    [
        ({"ts": [1]}, "label", "label: must be there"),
        ({"label": [1]}, "timestamp", "ts: must be there"),
        (
            {"label": [[1]], "ts": [1]},
            "label",
            r"label: must be a number in \[0, 1\], got a column of",
        ),
        ({"label": [1], "ts": [[1]]}, "timestamp", "ts: must be a number of milliseconds"),
        (
            {"label": [1], "ts": [1], "c_user": [[1]]},
            "categorical",
            "c_user: must be strings or integers, got a column",
        ),
        (
            {"label": [1], "ts": [1], "n_age": [[1]]},
            "numeric",
            "n_age: must be numbers, got a column of list",
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
