"""Lists as their owners write them: arrays, maps to weights, and text."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.errors import FeatureError
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.list_values import ListValue, read_list, read_lists
from niwaki.model.features.schema import LIST, Schema
from niwaki.model.features.values import Odd

SCHEMA = Schema(lists=("seen",), timestamp=None)


def read(value: object, schema: Schema = SCHEMA) -> ListValue | None:
    return read_list(value, "seen", schema)


def packed(*values: object, schema: Schema = SCHEMA) -> list:
    return read_lists(values, "seen", schema).to_pylist()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["a", "b"], ["a", "b"]),
        ([4711, 4711.0, "4711", 1.5, True, None, math.nan], ["4711"] * 3 + ["1.5", "true"]),
        ((), []),
        ({3, 1, 2}, ["1", "2", "3"]),
        (np.array(["x", "y"]), ["x", "y"]),
        (7, ["7"]),
        (False, ["false"]),
        ("Action|Comedy", ["Action", "Comedy"]),
        (" Action | Sci-Fi||", ["Action", "Sci-Fi"]),
        ("", []),
        (" ", []),
        ("[]", []),
        ('["a", 1, 2.0, null]', ["a", "1", "2"]),
        ("['a', 'b']", ["a", "b"]),
        (r"['it\'s', 'a\\b', 'ñ\xe9\u00e9']", ["it's", "a\\b", "ñéé"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),
        ("[1 2 3.]", ["1", "2", "3"]),
        ("[1, None, nan, True]", ["1", "true"]),
        ("{'b', 'a'}", ["a", "b"]),
        ("[a, b]", ["[a, b]"]),
        ("[1,2", ["[1,2"]),
        ("{x}", ["{x}"]),
        ("NA", ["NA"]),
    ],
)
def test_a_list_is_read_from_every_form(value, names):
    assert read(value) == ListValue(names, None)


@pytest.mark.parametrize(
    "value",
    [
        {"a": 0.5, "b": True, "c": None},
        '{"a": 0.5, "b": 1}',
        "{'a': 0.5, 'b': 1.0}",
        [{"key": "a", "value": 0.5}, None, {"key": "b", "value": 1}],
    ],
)
def test_a_map_gives_each_value_its_weight(value):
    assert read(value) == ListValue(["a", "b"], [0.5, 1.0])


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_missing_list_is_not_an_empty_one(value):
    assert read(value) is None
    assert packed(value, []) == [None, []]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ([["a"]], "['a']"),
        ('[["a"]]', "['a']"),
        ("[['a'], ['b']]", "['a']"),
        ("[['a' 'b']]", "\"[['a' 'b']]\""),
        ({"a": -1}, "{'a': -1}"),
        ({"a": math.inf}, "{'a': inf}"),
        ({"a": 1e39}, "{'a': 1e+39}"),
        ({"a": "1"}, "{'a': '1'}"),
        ({"a": 10**400}, "{'a': 1000"),
        ([{"a": 1}], "{'a': 1}"),
        (["\ud800"], "'\\ud800'"),
        (r"['\ud800']", "'\\ud800'"),
        ("[" * 100_000 + "]", "'[[[["),
    ],
)
def test_a_wrong_list_is_refused_with_its_column_rule_and_value(value, shown):
    with pytest.raises(FeatureError) as raised:
        read(value)
    assert raised.value.field == "seen"
    assert raised.value.value.startswith(shown)
    with pytest.raises(FeatureError):
        packed(["good"], value)


def test_values_of_weight_zero_are_left_out():
    assert packed({"a": 0, "b": 2, "c": 1e-60}, {"a": 0}, {}) == [[("b", 2.0)], [], []]


def test_of_a_long_list_the_last_values_count_and_that_is_told():
    odd: list[Odd] = []
    schema = Schema(lists=("seen",), timestamp=None, max_list_values=2)
    values = [["a", "b", None, "c"], ["a", "b"], None, "a|b|c|d", [None] * 9]
    found = read_lists(values, "seen", schema, odd)
    assert [one and [name for name, _ in one] for one in found.to_pylist()] == [
        ["b", "c"],
        ["a", "b"],
        None,
        ["c", "d"],
        [],
    ]
    done = "lists had more than 2 values, of which the last ones were read"
    assert odd == [Odd("seen", 2, "3 values", done)]


names = st.text(max_size=4)
plain = names | st.integers(-5, 5) | st.sampled_from([0.5, 1.0, True, None])
weights = st.floats(0, 10, width=32) | st.integers(0, 3)
lists = st.none() | st.lists(plain, max_size=4) | st.dictionaries(names, weights, max_size=3)


@given(st.lists(lists, max_size=6), st.integers(1, 5))
def test_a_column_is_read_as_its_values_are(values, most):
    schema = Schema(lists=("seen",), timestamp=None, max_list_values=most)
    together = read_lists(values, "seen", schema)
    assert together.type == LIST
    together.validate(full=True)
    assert len(together) == len(values)
    for value, found in zip(values, together.to_pylist(), strict=True):
        one = read(value)
        if one is None:
            assert found is None
            continue
        pairs = zip(one.names, one.weights or [1.0] * len(one.names), strict=True)
        assert found == [(name, weight) for name, weight in pairs if weight][-most:]


@given(st.lists(names.filter(lambda name: name.isprintable()), max_size=5), st.booleans())
def test_what_python_and_json_write_is_read_back(values, as_json):
    text = json.dumps(values) if as_json else str(values)
    assert read(text) == ListValue(values, None)
    weighed = {name: 0.5 for name in values}
    text = json.dumps(weighed) if as_json else str(weighed)
    assert read(text) == ListValue(list(weighed), [0.5] * len(weighed))


@pytest.mark.parametrize("depth", [10, 300, 600, *range(900, 1000, 7), 10_000])
def test_lists_are_refused_however_deep_they_are_nested(depth):
    failed: dict[int, FeatureError] = {}
    read_lists(["[" * depth + "]" * depth, "a"], "seen", SCHEMA, failed=failed)
    assert [error.field for error in failed.values()] == ["seen"]


@given(st.text(st.sampled_from("[]{}'\"\\,: a1|.-\n"), max_size=30))
def test_any_text_is_a_list_or_is_refused(text):
    try:
        found = read(text)
    except FeatureError:
        return
    assert isinstance(found, ListValue)


def test_lists_of_a_request_may_be_shared_by_its_events():
    schema = Schema(lists=("seen",), categorical=("item",), timestamp=None)
    batch = rows_to_batch([{"item": 1}, {"item": 2}], schema, shared={"seen": ["a", "b"]})
    assert batch.lists[0].to_pylist() == [[("a", 1.0), ("b", 1.0)]] * 2
    batch = rows_to_batch([{"item": 1}, {"item": 2, "seen": {}}], schema)
    assert batch.lists[0].to_pylist() == [None, []]


def test_weights_and_sampling_ratios_must_be_there_in_events_to_learn_from_only():
    schema = Schema(categorical=("item",), timestamp=None, weight="w", sampling_ratio="kept")
    good = {"label": 1, "w": "2.5", "kept": 0.25}
    batch = rows_to_batch([good, good | {"w": 0}], schema, labelled=True)
    assert batch.weights_B.tolist() == [2.5, 0]
    assert batch.sampling_B.tolist() == [0.25, 0.25]
    assert batch.weights_B.dtype == batch.sampling_B.dtype == np.float32
    request = rows_to_batch([{"item": 1}, {"w": 2, "kept": 7}], schema)
    assert request.weights_B is request.sampling_B is None
    for column, value in [
        *(("w", value) for value in (None, -1, math.inf, 1e39, "much", [1])),
        *(("kept", value) for value in (None, 0, 1.5, math.nan, 1e-60)),
    ]:
        with pytest.raises(FeatureError, match=f"{column}: must be a number .*; 1: ") as raised:
            rows_to_batch([good, good | {column: value}], schema, labelled=True)
        assert raised.value.value == repr(value)


def test_an_array_of_lists_is_one_of_arrow_that_can_be_cut_and_joined():
    found = read_lists([["a"], None, [], {"b": 2}], "seen", SCHEMA)
    order = pa.array([3, 1, 0])
    assert found.take(order).to_pylist() == [[("b", 2.0)], None, [("a", 1.0)]]
    assert pa.concat_arrays([found[1:], found[:1]]).to_pylist() == [
        None,
        [],
        [("b", 2.0)],
        [("a", 1.0)],
    ]
