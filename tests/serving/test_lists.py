"""Lists in requests: as JSON, as tensors, and as the server describes them."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.serving.bodies.inference import model_metadata, read_infer
from niwaki.serving.bodies.wire import RequestError, read_score
from niwaki.serving.openapi import document
from tests.support.served import tensor

SCHEMA = Schema(categorical=("user",), lists=("seen",), timestamp=None, weight="w")
HEADER = SimpleNamespace(schema=SCHEMA, version=12)


def names(batch: EventBatch) -> list:
    """The lists of events, without weights."""
    found = batch.lists[0].to_pylist()
    return [one and [name for name, _ in one] for one in found]


def score(body: dict) -> EventBatch:
    return read_score(json.dumps(body).encode(), SCHEMA, 100)


def infer(*tensors: dict, binary: bytes | None = None) -> EventBatch:
    text = json.dumps({"inputs": tensors}).encode()
    json_bytes = None if binary is None else len(text)
    return read_infer(text + (binary or b""), json_bytes, SCHEMA, 100).batch


def test_lists_of_events_of_a_context_and_of_candidates_are_read():
    batch = score({"events": [{"seen": ["a", 1]}, {}, {"seen": {"b": 0.5}}, {"seen": "c|d"}]})
    assert batch.lists[0].to_pylist() == [
        [("a", 1.0), ("1", 1.0)],
        None,
        [("b", 0.5)],
        [("c", 1.0), ("d", 1.0)],
    ]
    assert score({"events": [{"w": 2}, {"w": "x"}, {}]}).weights_B is None
    batch = score({"context": {"seen": ["a"]}, "candidates": [{"user": 1}, {"user": 2}]})
    assert names(batch) == [["a"], ["a"]]
    batch = score({"context": {"user": 1}, "candidates": [{"seen": ["a"]}, {"seen": []}]})
    assert names(batch) == [["a"], []]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"events": [{}, {"seen": [["a"]]}]}, "events[1].seen"),
        ({"events": [{"seen": {"a": -1}}]}, "events[0].seen"),
        ({"context": {"seen": {"a": "x"}}, "candidates": [{}]}, "context.seen"),
    ],
)
def test_a_wrong_list_is_the_clients_mistake_and_is_named(body, field):
    with pytest.raises(RequestError) as raised:
        score(body)
    assert (raised.value.status, raised.value.field) == (400, field)
    assert raised.value.rule and raised.value.value


@pytest.mark.parametrize(
    ("shape", "data", "lists"),
    [
        ([2], [["a", "b"], ["c"]], [["a", "b"], ["c"]]),
        ([2, -1], [["a", "b"], []], [["a", "b"], []]),
        ([2, 2], [["a", "b"], None], [["a", "b"], None]),
        ([2, 2], [["a", None], ["b", "c|d"]], [["a"], ["b", "c|d"]]),
        ([2, 2], ["a", "b", "c", None], [["a", "b"], ["c"]]),
        ([2, 1], ["a|b", "c"], [["a|b"], ["c"]]),
        ([2, 0], [], [[], []]),
        ([2], ["a|b", None], [["a", "b"], None]),
        ([2], [{"a": 0.5}, ["b"]], [["a"], ["b"]]),
    ],
)
def test_a_tensor_in_json_holds_lists_of_any_length(shape, data, lists):
    assert names(infer(tensor("seen", "BYTES", data, shape))) == lists
    user = tensor("user", "BYTES", ["u", "v"])
    assert names(infer(user, tensor("seen", "BYTES", data, shape))) == lists


@pytest.mark.parametrize(
    ("shape", "data", "field"),
    [
        ([2, 2], ["a", "b", "c"], "inputs[0].data"),
        ([2], ["a", "b", "c"], "inputs[0].data"),
        ([2, -2], [], "inputs[0].shape"),
        ([-1, -1], ["a"], "inputs[0].shape"),
        ([2, 1, 1], ["a", "b"], "inputs[0].shape"),
        ([2], [["a"], [1]], "inputs[0].data[1][0]"),
        ([2, 1], ["a", 1], "inputs[0].data[1]"),
        ([2], [["a"], [["b"]]], "inputs[0].data[1][0]"),
        ([2], [["a"], {"b": -1}], "inputs[0].data[1] (seen)"),
    ],
)
def test_a_tensor_of_another_form_is_refused(shape, data, field):
    with pytest.raises(RequestError) as raised:
        infer(tensor("seen", "BYTES", data, shape))
    assert raised.value.field == field


def sized(shape: list[int], datatype: str, packed: bytes) -> dict:
    size = {"parameters": {"binary_data_size": len(packed)}}
    return {"name": "seen", "datatype": datatype, "shape": shape, **size}


def texts(*values: str) -> bytes:
    return b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)


def test_a_binary_tensor_is_a_matrix_that_empty_texts_fill_up():
    packed = texts("a", "b", "ñ", "")
    assert names(infer(sized([2, 2], "BYTES", packed), binary=packed)) == [["a", "b"], ["ñ"]]
    packed = texts("a|b", "")
    assert names(infer(sized([2], "BYTES", packed), binary=packed)) == [["a", "b"], []]
    packed = np.array([1, 2, 3, 4], "<i8").tobytes()
    assert names(infer(sized([2, 2], "INT64", packed), binary=packed)) == [["1", "2"], ["3", "4"]]
    packed = np.array([1, np.nan], "<f4").tobytes()
    assert names(infer(sized([1, 2], "FP32", packed), binary=packed)) == [["1"]]
    for shape in ([2, 3], [2, -1], [2]):
        with pytest.raises(RequestError):
            infer(sized(shape, "INT64", packed), binary=packed)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=6,
)


@given(st.lists(st.integers(-2, 4), max_size=3), st.lists(values, max_size=5))
def test_no_tensor_of_lists_is_more_than_a_clients_error(shape, data):
    try:
        batch = infer(tensor("seen", "BYTES", data, shape))
    except RequestError as error:
        assert 400 <= error.status < 500
        return
    assert len(batch) == len(batch.lists[0]) == (shape or [len(data)])[0]


def test_the_descriptions_name_list_columns():
    described = {one["name"]: one for one in model_metadata(HEADER, "m")["inputs"]}
    assert described["seen"] == {"name": "seen", "datatype": "BYTES", "shape": [-1, -1]}
    paths = document("m", 10, HEADER)["paths"]
    content = paths["/score"]["post"]["requestBody"]["content"]["application/json"]
    event = content["schema"]["oneOf"][0]["properties"]["events"]["items"]["properties"]
    assert {"array", "object", "string", "null"} <= set(event["seen"]["type"])
    assert set(event) == {"user", "seen", "w", "label"}
    for example in content["examples"].values():
        assert set(names(score(example["value"]))[0]) == {"a", "b"}
    content = paths["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    example = content["application/json"]["examples"]["events"]["value"]
    assert names(infer(*example["inputs"])) == [["a", "b"]]
