"""Lists, weights and sampling ratios of messages and tables: every way in reads the same."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import Schema
from niwaki.model.features.values import Odd
from niwaki.stream.errors import EventError
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import encode_arrow
from niwaki.stream.events.tables import TableEvents, table_to_batch
from tests.support.messages import decode, same

SCHEMA = Schema(lists=("seen",), timestamp=None)
FULL = Schema(lists=("seen",), timestamp=None, weight="w", sampling_ratio="kept")
NESTED = Schema(lists=("user.seen",), timestamp=None)
"""As `SCHEMA`, but that no message is plain."""


def table_of(column: pa.Array) -> pa.Table:
    return pa.table({"label": np.ones(len(column)), "seen": column})


def events_of(column: pa.Array, schema: Schema = SCHEMA) -> TableEvents:
    return table_to_batch(table_of(column), schema)


def lists_of(column: pa.Array) -> list:
    return events_of(column).batch.lists[0].to_pylist()


words = st.text(max_size=4)
KINDS = {
    "strings": (words, [pa.list_(pa.string()), pa.large_list(pa.large_string())]),
    "codes": (words, [pa.list_(pa.dictionary(pa.int8(), pa.string()))]),
    "views": (words, [pa.list_view(pa.string()), pa.list_(pa.string_view())]),
    "integers": (st.integers(-9, 99), [pa.list_(pa.int64()), pa.list_(pa.int8())]),
    "floats": (st.sampled_from([1.0, 2.0, 0.5, math.nan]), [pa.list_(pa.float64())]),
    "booleans": (st.booleans(), [pa.list_(pa.bool_())]),
}
weights = st.none() | st.floats(0, 10, width=32)
PAIR = [("value", pa.string()), ("weight", pa.float64())]
MAPS = [pa.map_(pa.string(), pa.float32()), pa.map_(pa.string(), pa.float64())]


@st.composite
def columns(draw) -> tuple[list, pa.Array]:
    """The lists of some events, and as a column of Arrow."""
    kind = draw(st.sampled_from([*KINDS, "map", "pairs"]))
    if kind in KINDS:
        one, types = KINDS[kind]
        values = draw(st.lists(st.none() | st.lists(st.none() | one, max_size=4), max_size=6))
        return values, pa.array(values, draw(st.sampled_from(types)))
    maps = draw(st.lists(st.none() | st.dictionaries(words, weights, max_size=3), max_size=6))
    if kind == "map":
        pairs = [None if one is None else list(one.items()) for one in maps]
        return maps, pa.array(pairs, draw(st.sampled_from(MAPS)))
    rows = [one and [{"value": k, "weight": v} for k, v in one.items()] for one in maps]
    rows = [[] if one == {} else one for one in rows]
    return rows, pa.array(rows, pa.list_(pa.struct(PAIR)))


@given(columns(), st.integers(1, 3), st.integers(0, 3))
def test_a_request_a_message_and_a_table_give_the_same_lists(column, most, start):
    values, array = column
    values, array = values[start:], array[start:]
    rows = [{"label": 1, "seen": value} for value in values]
    schema = Schema(lists=("seen",), timestamp=None, max_list_values=most)
    expected = rows_to_batch(rows, schema, labelled=True) if rows else decode(schema=schema)[0]
    messages = [json.dumps(row).encode() for row in rows]
    assert same(decode(*messages, schema=schema)[0], expected)
    batch, rejects, odd = table_to_batch(table_of(array), schema)
    assert (same(batch, expected), rejects) == (True, [])
    if rows:
        (message,) = encode_arrow(table_of(array), len(rows))
        assert same(decode(message, schema=schema)[0], expected)
    if all(value is None or isinstance(value, list) for value in values):
        text = [None if value is None else json.dumps(value) for value in values]
        by_text = table_to_batch(table_of(pa.array(text, pa.string())), schema)
        assert (same(by_text.batch, expected), by_text.odd) == (True, odd)
    nested = [json.dumps({"label": 1, "user": {"seen": value}}).encode() for value in values]
    slow = Schema(lists=("user.seen",), timestamp=None, max_list_values=most)
    assert decode(*nested, schema=slow)[0].lists == expected.lists


texts = st.text(st.sampled_from("ab1 |,[]{}\"':"), max_size=12)


@given(st.lists(st.none() | texts, min_size=1, max_size=5), st.sampled_from(["|", ",", " ", "ab"]))
def test_text_is_split_in_a_table_as_in_a_message(values, separator):
    schema = Schema(lists=("seen",), timestamp=None, list_separator=separator)
    batch, places, rejects = decode(
        *(json.dumps({"label": 1, "seen": value}).encode() for value in values), schema=schema
    )
    found, wrong, _ = table_to_batch(table_of(pa.array(values, pa.string())), schema)
    assert same(found, batch)
    assert [(one.position, one.rule, one.value) for one in wrong] == [
        (one.position, one.rule, one.value) for one in rejects
    ]
    assert len(places) == len(batch)


def test_columns_of_single_values_structs_and_nothing_are_lists_too():
    assert lists_of(pa.array([4711.0, None])) == [[("4711", 1.0)], None]
    assert lists_of(pa.array([[1, 2], None], pa.list_(pa.int8(), 2))) == [
        [("1", 1.0), ("2", 1.0)],
        None,
    ]
    structs = pa.array([{"a": 1, "b": None}, None, {"a": 0.0, "b": 2}])
    assert lists_of(structs) == [[("a", 1.0)], None, [("b", 2.0)]]
    assert lists_of(pa.array([{"a": 2**60 + 1}])) == [[("a", 2.0**60)]]
    assert lists_of(structs[1:]) == [None, [("b", 2.0)]]
    assert lists_of(pa.nulls(2)) == [None, None]
    absent = table_to_batch(pa.table({"label": [1, 0]}), SCHEMA).batch
    assert absent.lists[0].to_pylist() == [None, None]


MAP = pa.map_(pa.string(), pa.float64())
BAD_ROWS = {
    "weight below 0": (pa.array([[], [("a", -1.0)], None], MAP), "{'a': -1.0}"),
    "weight not finite": (pa.array([[], [("a", math.nan)], None], MAP), "{'a': nan}"),
    "struct": (pa.array([{"a": 1}, {"a": -1}, None]), "{'a': -1.0}"),
    "bytes": (pa.array([[], [b"a", b"\xff"], None], pa.list_(pa.binary())), "b'\\xff'"),
    "text": (pa.array(["a", '[["b"]]', None]), "['b']"),
    "bytes of text": (pa.array([b"a", b"\xff", None]), "b'\\xff'"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_row_with_a_wrong_list_is_left_out_and_named(kind):
    column, value = BAD_ROWS[kind]
    batch, rejects, _ = events_of(column)
    assert len(batch) == 2
    assert [(one.position, one.kind, one.field, one.value) for one in rejects] == [
        (1, "list", "seen", value)
    ]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[["a"]]]),
        pa.array([[{"a": 1}]]),
        pa.array([[{"a": "x", "b": "y"}]]),
        pa.array([{"a": "x"}]),
        pa.DictionaryArray.from_arrays(pa.array([0, 0]), pa.array([["a"]])),
        pa.RunEndEncodedArray.from_arrays([2], ["a"]),
    ],
)
def test_a_column_that_holds_no_lists_is_refused(column):
    with pytest.raises(EventError, match=r"^seen: must (be a list of strings|have weights)"):
        events_of(column)
    (message,) = encode_arrow(table_of(column), len(column))
    batch, _, rejects = decode(message, b'{"label": 1, "seen": ["a"]}', schema=SCHEMA)
    assert (len(batch), [one.kind for one in rejects]) == (1, ["list"])
    with pytest.raises(EventError, match="must be"):
        table_to_batch(table_of(column), Schema(categorical=("seen",), timestamp=None))


def test_lists_that_share_their_values_are_refused_since_they_may_be_endless():
    offsets, sizes = np.zeros(1000, np.int32), np.full(1000, 1000, np.int32)
    views = pa.ListViewArray.from_arrays(offsets, sizes, pa.array(["a"] * 1000))
    with pytest.raises(EventError, match="seen: must not have lists that share their values"):
        events_of(views)


BAD = {
    "nested": ([["a"]], "seen: must be a list of strings or numbers, or a map from such values"),
    "nested text": ("[[1]]", "seen: must be a list of strings or numbers, or a map from such"),
    "weight": ({"a": -1}, "seen: must have weights that are numbers >= 0, finite in 32 bits, got"),
    "too large": ({"a": 1e39}, "seen: must have weights that are numbers >= 0, finite in 32 bits"),
    "surrogate": (["\ud800"], "seen: must be valid Unicode, got '\\ud800'"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("schema", [SCHEMA, NESTED])
def test_a_message_with_a_wrong_list_is_rejected_and_costs_no_other(kind, schema):
    value, reason = BAD[kind]
    rows = [{"label": 1, "seen": one} for one in (["a"], value, "b|c", None)]
    if schema is NESTED:
        rows = [{"label": 1, "user": {"seen": row["seen"]}} for row in rows]
        reason = f"user.{reason}"
    batch, places, rejects = decode(*(json.dumps(row).encode() for row in rows), schema=schema)
    assert places.tolist() == [0, 2, 3]
    assert batch.lists[0].to_pylist() == [[("a", 1.0)], [("b", 1.0), ("c", 1.0)], None]
    assert [(one.position, one.kind) for one in rejects] == [(1, "list")]
    assert rejects[0].reason.startswith(reason)


LISTS = Schema(lists=("codes", "map", "views", "struct"), timestamp=None, weight="w")
WHOLE = encode_arrow(
    pa.table(
        {
            "label": [0, 1, 1],
            "w": [1.0, 2.0, 3.0],
            "codes": pa.array([["a", "b"], None, []], pa.list_(pa.dictionary(pa.int8(), "str"))),
            "map": pa.array([[("a", 1.0)], [], None], MAP),
            "views": pa.array([["x"], ["yy"], None], pa.list_view(pa.string())),
            "struct": pa.array([{"eins": 1}, None, {"eins": 2}]),
        }
    ),
    3,
)[0]


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=3))
@example([(WHOLE.index(b"eins"), 255)])
@settings(max_examples=300)
def test_a_damaged_message_with_lists_costs_no_other(damage):
    message = bytearray(WHOLE)
    for place, byte in damage:
        message[place] = byte
    good = b'{"label": 1, "w": 1, "codes": ["good"]}'
    batch, places, _ = decode(bytes(message), good, schema=LISTS)
    assert len(batch) == len(places)
    assert batch.lists[0].to_pylist()[-1] == [("good", 1.0)]


def test_how_many_lists_were_too_long_is_told():
    schema = Schema(lists=("seen",), timestamp=None, max_list_values=2)
    values = [["a", "b", "c"], ["a"], ["a"] * 7]
    told = Odd(
        "seen", 2, "3 values", "lists had more than 2 values, of which the last ones were read"
    )
    messages = [json.dumps({"label": 1, "seen": value}).encode() for value in values]
    assert EventDecoder(schema).decode(messages).odd == [told]
    assert events_of(pa.array(values), schema).odd == [told]
    assert events_of(pa.array(["a|b|c", "a", "|".join("a" * 7)]), schema).odd == [told]
    again = events_of(pa.array(["[1,2,3]", "[1]", "[1,2,3]"]), schema)
    assert again.odd == [told]


GOOD = {"label": 1, "seen": ["a"], "w": 2, "kept": 0.25}
WRONG = [
    *(("w", "weight", value) for value in (None, -1, 1e39, "x", [1])),
    *(("kept", "sampling_ratio", value) for value in (None, 0, 1.5, 1e-60, "x")),
]


@pytest.mark.parametrize(("column", "kind", "value"), WRONG)
def test_an_event_without_a_right_weight_or_sampling_ratio_is_rejected(column, kind, value):
    rows = [GOOD, GOOD | {column: value}, GOOD | {column: "0.5"}]
    batch, places, rejects = decode(*(json.dumps(row).encode() for row in rows), schema=FULL)
    assert places.tolist() == [0, 2]
    assert {"w": batch.weights_B, "kept": batch.sampling_B}[column].tolist() == [GOOD[column], 0.5]
    assert [(one.position, one.kind, one.field) for one in rejects] == [(1, kind, column)]
    assert "; 1: " in rejects[0].rule
    if not isinstance(value, list):
        values = [GOOD[column], value, 0.5]
        typed = pa.array(values if value != "x" else list(map(str, values)))
        columns = {name: [GOOD[name]] * 3 for name in GOOD} | {column: typed}
        found, wrong, _ = table_to_batch(pa.table(columns), FULL)
        assert same(found, batch)
        assert [(one.position, one.kind, one.field) for one in wrong] == [(1, kind, column)]


def test_a_table_without_weights_that_the_schema_names_is_refused():
    columns = {name: [value] for name, value in GOOD.items()}
    for column, kind in (("w", "weight"), ("kept", "sampling_ratio")):
        rest = {name: value for name, value in columns.items() if name != column}
        with pytest.raises(EventError, match=f"^{column}: must be there") as raised:
            table_to_batch(pa.table(rest), FULL)
        assert raised.value.kind == kind
        with pytest.raises(EventError, match=f"^{column}: must be a number .*got a column of list"):
            table_to_batch(pa.table(rest | {column: [[1]]}), FULL)
