"""The binary tensor data extension of the Open Inference Protocol: the bytes of tensors after the
JSON, in requests and answers."""

import gzip
import json
import struct

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.publisher import rows
from tests.support.served import tensor

HEADER = "inference-header-content-length"
LAYOUTS = {"BOOL": "?", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
LAYOUTS |= {f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)}
LAYOUTS |= {f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)}


def to_bytes(datatype: str, data: list) -> bytes:
    if datatype == "BYTES":
        texts = [text.encode() if isinstance(text, str) else text for text in data]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.array(data, LAYOUTS[datatype]).tobytes()


def binary(name: str, datatype: str, data: list, packed: bytes | None = None) -> tuple[dict, bytes]:
    """The JSON of an input, and its bytes."""
    packed = to_bytes(datatype, data) if packed is None else packed
    size = {"parameters": {"binary_data_size": len(packed)}}
    return {"name": name, "datatype": datatype, "shape": [len(data)], **size}, packed


def post(
    served, body: dict, data: bytes = b"", json_bytes: object = None, **headers: str
) -> httpx.Response:
    text = json.dumps(body).encode()
    said = {HEADER: str(len(text) if json_bytes is None else json_bytes), **headers}
    content = text + data
    if said.get("content-encoding") == "gzip":
        content = gzip.compress(content)
    path = f"/v2/models/{served.scorer.name}/infer"
    return served.client.post(path, content=content, headers=said)


def ask(served, *inputs: tuple[dict, bytes], **more: object) -> httpx.Response:
    body = {"inputs": [description for description, _ in inputs], **more}
    return post(served, body, b"".join(packed for _, packed in inputs))


def test_the_extension_is_announced(served):
    assert served.client.get("/v2").json()["extensions"] == ["binary_tensor_data"]


def test_binary_tensors_are_scored_as_the_same_events_are(served, publisher):
    events = rows(publisher.events)
    events = [event for event in events if {"user", "item", "noise"} <= event.keys()]
    assert len(events) > 10
    nan = float("nan")
    inputs = [
        binary(name, "BYTES", [event[name] for event in events])
        for name in ("user", "item", "noise")
    ]
    inputs += [
        binary("age", "FP32", [event.get("age", nan) for event in events]),
        binary("price", "FP64", [event.get("price", nan) for event in events]),
    ]
    expected = served.score({"events": events}).json()["probabilities"]
    answer = ask(served, *inputs, id="q1")
    assert answer.headers["content-type"] == "application/json" and HEADER not in answer.headers
    assert answer.json()["outputs"] == [tensor("probability", "FP32", expected)]
    mixed = [(tensor("user", "BYTES", [event["user"] for event in events]), b""), *inputs[1:]]
    assert ask(served, *mixed, id="q1").json() == answer.json()


@pytest.mark.parametrize(
    ("parameters", "of_output", "is_binary"),
    [
        ({"binary_data_output": True}, None, True),
        ({"binary_data_output": True}, {}, True),
        ({"binary_data_output": True}, {"binary_data": False}, False),
        ({"binary_data_output": False}, {"binary_data": True}, True),
        ({}, {"binary_data": True}, True),
        ({}, {"binary_data": False}, False),
    ],
)
def test_an_answer_is_binary_where_that_is_asked_for(served, parameters, of_output, is_binary):
    body = {"inputs": [tensor("age", "FP32", [1.5, 2.5])], "parameters": parameters, "id": "q"}
    plain = served.infer(body | {"parameters": {}}).json()
    if of_output is not None:
        body["outputs"] = [{"name": "probability", "parameters": of_output}]
    answer = served.infer(body)
    if not is_binary:
        assert answer.json() == plain
        return
    assert answer.headers["content-type"] == "application/octet-stream"
    json_bytes = int(answer.headers[HEADER])
    (output,) = json.loads(answer.content[:json_bytes])["outputs"]
    assert output.pop("parameters") == {"binary_data_size": 8}
    assert output == {"name": "probability", "datatype": "FP32", "shape": [2]}
    data = np.frombuffer(answer.content[json_bytes:], "<f4")
    assert data.tolist() == plain["outputs"][0]["data"]
    assert json.loads(answer.content[:json_bytes])["id"] == "q"


@pytest.mark.parametrize(
    ("column", "datatype", "data"),
    [
        *(("age", datatype, [1, 0, 3]) for datatype in LAYOUTS if datatype != "BOOL"),
        *(("user", datatype, [1, 0, 3]) for datatype in LAYOUTS if "INT" in datatype),
        ("user", "UINT64", [2**64 - 1, 0, 1]),
        ("user", "INT8", [-128, 127, 0]),
        ("age", "FP16", [0.5, -1.25, 65504.0]),
        ("user", "BYTES", ["", "\xe9\u6728", "u" * 300]),
        ("age", "BOOL", [True, False, True]),
        ("user", "BOOL", [True, False, True]),
        ("user", "FP64", [4001.0, -3.0, 2.0**53]),
        ("user", "FP32", [4001.0, 0.0, 2.0**24]),
        ("ts", "INT64", [1_700_000_000_000, 0, -1]),
    ],
)
def test_binary_values_of_every_datatype_mean_what_those_in_json_mean(
    served, column, datatype, data
):
    apart = served.infer({"inputs": [tensor(column, datatype, data)]})
    together = ask(served, binary(column, datatype, data))
    assert together.json() == apart.json()


def test_nan_in_binary_floats_is_missing_and_infinity_refused_with_its_place(served):
    for datatype in ("FP16", "FP32", "FP64"):
        answer = ask(served, binary("age", datatype, [1.0, float("nan")]))
        assert answer.json() == served.infer({"inputs": [tensor("age", "FP32", [1, None])]}).json()
        for column in ("age", "user"):
            refused = ask(served, binary(column, datatype, [float("nan"), float("-inf")])).json()
            assert refused["error"] == "inputs[0].data[1]: must be finite, got -inf"
    missing = ask(served, binary("user", "FP64", [float("nan")]))
    assert missing.json() == served.infer({"inputs": [tensor("user", "BYTES", [None])]}).json()


def test_no_events_are_no_bytes(served):
    for datatype in ("BYTES", "FP32"):
        answer = ask(served, binary("age", datatype, []), parameters={"binary_data_output": True})
        json_bytes = int(answer.headers[HEADER])
        assert json_bytes == len(answer.content)


def test_a_binary_request_may_be_compressed_and_its_length_is_that_of_the_json_in_it(served):
    description, packed = binary("age", "FP32", [1.5, 2.5])
    plain = post(served, {"inputs": [description]}, packed)
    for kind in ("application/octet-stream", "application/json"):
        headers = {"content-encoding": "gzip", "content-type": kind}
        assert post(served, {"inputs": [description]}, packed, **headers).json() == plain.json()


def test_json_alone_may_come_as_octets(served):
    body = json.dumps({"inputs": [tensor("age", "FP32", [1.5])]})
    path = f"/v2/models/{served.scorer.name}/infer"
    headers = {"content-type": "application/octet-stream"}
    assert served.client.post(path, content=body, headers=headers).status_code == 200
    assert served.client.post("/score", content=body, headers=headers).status_code == 415


AGE, AGES = binary("age", "FP32", [1.5, 2.5])
MISTAKES = [
    ([(AGE, AGES[:-1])], "inputs[0].parameters.binary_data_size", "must be in the body"),
    ([(AGE, AGES + b"x")], "body", "must end with its last binary tensor"),
    ([(AGE, b"")], "inputs[0].parameters.binary_data_size", "must be in the body"),
    ([binary("age", "FP32", [1, 2], b"1234567")], "inputs[0].parameters.binary_data_size", "2 x 4"),
    ([binary("age", "FP64", [1, 2], AGES)], "inputs[0].parameters.binary_data_size", "2 x 8"),
    ([(AGE | {"data": [1, 2]}, AGES)], "inputs[0].data", "must not be beside"),
    ([({**AGE, "parameters": {}}, b"")], "inputs[0].data", "must be there, or binary_data_size"),
    (
        [({**AGE, "parameters": {"binary_data_size": -1}}, b"")],
        "inputs[0].parameters.binary_data_size",
        "expected `int` >= 0",
    ),
    (
        [({**AGE, "parameters": {"binary_data_size": 2**62}}, AGES)],
        "inputs[0].parameters.binary_data_size",
        "must be in the body",
    ),
    ([binary("age", "BOOL", [1, 0], b"\1\2")], "inputs[0].data[1]", "must be 0 or 1"),
    ([binary("user", "BYTES", [b"a", b"\xff"])], "inputs[0].data[1]", "must be UTF-8"),
    ([binary("user", "BYTES", ["a", "b"], b"\1\0\0\0a")], "inputs[0].data", "2 elements"),
    ([binary("user", "BYTES", ["a"], b"\1\0\0\0ab")], "inputs[0].data", "1 elements"),
    ([binary("user", "BYTES", ["a"], b"\xff\xff\xff\xffa")], "inputs[0].data", "1 elements"),
    ([binary("user", "BYTES", ["a"], b"\1\0\0")], "inputs[0].data", "1 elements"),
    ([(AGE | {"shape": [-1]}, AGES)], "inputs[0].parameters.binary_data_size", "must be -1 x 4"),
    ([(AGE, AGES), (AGE, AGES)], "inputs[1].name", "must differ"),
    ([binary("user", "BYTES", ["a"] * 101)], "inputs[0].shape", "must be at most 100"),
]


@pytest.mark.parametrize(("inputs", "field", "rule"), MISTAKES)
def test_a_mistake_in_binary_data_is_named(served, inputs, field, rule):
    response = ask(served, *inputs)
    assert response.status_code == (413 if "at most" in rule else 400)
    assert response.json()["field"] == field and rule in response.json()["rule"]


@pytest.mark.parametrize("said", ["0", "-1", "x", "1.5", "", "9" * 30, "100000000"])
def test_a_wrong_length_of_the_json_is_named(served, said):
    refused = post(served, {"inputs": [AGE]}, AGES, json_bytes=said)
    assert (refused.status_code, refused.json()["field"]) == (400, HEADER)


def test_binary_data_without_the_length_of_the_json_is_a_client_error(served):
    path = f"/v2/models/{served.scorer.name}/infer"
    body = json.dumps({"inputs": [AGE]})
    refused = served.client.post(path, content=body)
    assert refused.status_code == 400
    assert HEADER in refused.json()["rule"]
    assert served.client.post(path, content=body.encode() + AGES).status_code == 400


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["user", "age", "ts", "other"]),
    datatype=st.sampled_from([*LAYOUTS, "BYTES", "BF16"]),
    count=st.integers(-1, 4),
    size=st.integers(-1, 40),
    data=st.binary(max_size=40),
    json_bytes=st.none() | st.integers(-1, 400),
)
def test_no_bytes_of_tensors_whatever_are_more_than_a_client_error(
    served, name, datatype, count, size, data, json_bytes
):
    parameters = {"binary_data_size": size}
    column = {"name": name, "datatype": datatype, "shape": [count], "parameters": parameters}
    response = post(served, {"inputs": [column]}, data, json_bytes)
    assert response.status_code in (200, 400), response.text
    assert response.json()
