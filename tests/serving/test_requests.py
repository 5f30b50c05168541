"""What the HTTP server makes of a bad request: every mistake is named, and none is more than the
client's."""

import json
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niwaki.serving.bodies import wire
from tests.support.served import JSON, error
from tests.support.streams import SCHEMA

MISTAKES = [
    (
        {"events": [{}, {"colour": "red"}]},
        400,
        "events[1].colour",
        "must be a column of the schema",
        "'red'",
    ),
    ({"events": [{"age": "old"}]}, 400, "events[0].age", "must be a number", "'old'"),
    ({"events": [{"age": [1]}]}, 400, "events[0].age", "must be a number", "[1]"),
    ({"events": [{"age": 1e39}]}, 400, "events[0].age", "must be finite in 32 bits", "1e+39"),
    ({"events": [{"age": 10**100}]}, 400, "events[0].age", "must be finite in 32 bits", None),
    (
        {"events": [{"user": ["u"]}]},
        400,
        "events[0].user",
        "must be a string or a number",
        "['u']",
    ),
    ({"events": [{"label": 2}]}, 400, "events[0].label", "must be a number in [0, 1]", "2"),
    ({"events": [{"ts": "now"}]}, 400, "events[0].ts", None, "'now'"),
    ({"events": [{"ts": 10**30}]}, 400, "events[0].ts", None, None),
    ({"context": {"age": []}, "candidates": [{}]}, 400, "context.age", "must be a number", "[]"),
    (
        {"context": {}, "candidates": [{}, {"age": []}]},
        400,
        "candidates[1].age",
        "must be a number",
        "[]",
    ),
    (
        {"context": {"age": 1}, "candidates": [{"age": 2}]},
        400,
        "candidates[0].age",
        "must not be in the context too",
        "2",
    ),
    (
        {"events": [], "candidates": []},
        400,
        "events",
        "must stand alone, without context and candidates",
        "",
    ),
    ({"context": {}}, 400, "events", "must be there, or candidates must", ""),
    ({}, 400, "events", "must be there, or candidates must", ""),
    ({"event": []}, 400, "event", "must be a field that is known", ""),
    ({"events": {}}, 400, "events", "expected `array`, got `object`", ""),
    ({"events": None}, 400, "events", "expected `array`, got `null`", ""),
    ({"events": [3]}, 400, "events[0]", "expected `object`, got `int`", ""),
    ([], 400, "body", "expected `object`, got `array`", ""),
    ({"events": [{}] * 101}, 413, "events", "must be at most 100", "101"),
    ({"candidates": [{}] * 101}, 413, "candidates", "must be at most 100", "101"),
]


@pytest.mark.parametrize(("body", "status", "field", "rule", "value"), MISTAKES)
def test_a_mistake_is_named_with_field_rule_and_value(served, body, status, field, rule, value):
    got = error(served.score(body))
    assert got[:2] == (status, field)
    assert rule is None or got[2] == rule
    assert value is None or got[3] == value
    assert len(got[3]) <= 80


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"events": [{"age": Infinity}]}',
        b'{"events": [{"age": NaN}',
        b'{"events": [{"age": nan}]}',
        b'{"events": [{"age": -NaN}]}',
        b'{"events": NaN}',
        b"NaN",
        b'{"events": [{"age": NaN}, {"user": "\\ud800"}]}',
        b'{"events": [{"age": NaN}, {"\\ud800": 1}]}',
        b'{"events": [{"age": NaN}], "inputs": [], "id": "\\ud800"}',
        b'{"inputs": [{"name": "\\udc00", "shape": [1], "datatype": "FP32", "data": [NaN]}]}',
        b'{"events": [{"age": NaN, "user":' + b"[" * 40_000 + b"]" * 40_000 + b"}]}",
        b'{"events": [{"age": NaN, "user":' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"events": [{"age": NaN, "user": 1' + b"0" * 10_000 + b"}]}",
        b'{"events": [{"age": 1e999}]}',
        b'{"events": [{"age": 1' + b"0" * 10_000 + b"}]}",
        b'{"events": [{"user": 1' + b"0" * 10_000 + b"}]}",
        b'{"events": [{"user": "\xff"}]}',
        b'{"events": [{"\xff": 1}]}',
        b'{"events": [{"user": "\\ud800"}]}',
        b'{"events": [{"user": "\\udc00\\ud800"}]}',
        b'\xef\xbb\xbf{"events": []}',
        '{"events": []}'.encode("utf-16"),
        b'{"events": [{}]} {"events": [{}]}',
        b"[" * 90_000,
        b'{"events": [{"user":' + b"[" * 40_000 + b"]" * 40_000 + b"}]}",
        b'{"events": [{"user":' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"events": [{"a":' * 5_000,
        b'{"events":[' + b'{"' + b"k" * 50_000 + b'": 1}]}',
        b"\x00" * 1000,
        b'{"events": [{"age": -}]}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_no_malformed_body_is_more_than_a_client_error(served, body):
    for path in ("/score", f"/v2/models/{served.scorer.name}/infer"):
        response = served.client.post(path, content=body, headers=JSON)
        assert response.status_code == 400, response.text
        assert len(response.content) < 1000
        assert response.json()["error"]


def test_nan_as_python_writes_it_is_a_missing_value(served):
    nan = float("nan")
    events = [{"age": nan, "user": "NaN", "item": "\xe9"}, {"age": 2.5, "user": nan}]
    assert b"NaN" in (body := json.dumps({"events": events}).encode())
    answer = served.client.post("/score", content=body, headers=JSON)
    same = [{"user": "NaN", "item": "\xe9"}, {"age": 2.5}]
    assert answer.json() == served.score({"events": same}).json()
    body = json.dumps({"context": {"price": nan}, "candidates": [{"item": "a"}]})
    answer = served.client.post("/score", content=body, headers=JSON)
    assert answer.json() == served.score({"events": [{"item": "a"}]}).json()


@pytest.mark.parametrize(("sign", "value"), [("", "inf"), ("-", "-inf")])
@pytest.mark.parametrize("column", ["age", "user", "noise"])
def test_infinity_is_refused_with_its_place(served, column, sign, value):
    events = f'{{"events": [{{"age": NaN}}, {{"{column}": {sign}Infinity}}]}}'
    got = error(served.client.post("/score", content=events, headers=JSON))
    assert got == (400, f"events[1].{column}", "must be finite", value)
    data = f'"datatype": "FP64", "shape": [2], "data": [1, {sign}Infinity]'
    path = f"/v2/models/{served.scorer.name}/infer"
    body = f'{{"inputs": [{{"name": "{column}", {data}}}]}}'
    got = served.client.post(path, content=body, headers=JSON).json()
    assert (got["field"], got["rule"]) == ("inputs[0].data[1]", "must be finite")


def test_a_number_too_large_for_64_bits_beside_nan_is_refused_as_without(served):
    for beside in ("NaN", "null"):
        body = f'{{"events": [{{"age": {beside}, "user": 1e999}}]}}'
        assert served.client.post("/score", content=body, headers=JSON).status_code == 400


def test_a_mistake_beside_nan_is_named_as_without_it(served):
    for wrong in ('{"event": [NaN]}', '{"events": [3, NaN]}', '{"events": [{"age": NaN}, 3]}'):
        with_nan = error(served.client.post("/score", content=wrong, headers=JSON))
        assert with_nan == error(served.client.post("/score", content=wrong.replace("NaN", "null")))


@pytest.mark.parametrize("datatype", ["FP32", "INT64"])
def test_nan_in_a_tensor_is_missing_as_null_is(served, datatype):
    path = f"/v2/models/{served.scorer.name}/infer"

    def ask(data: str):
        column = f'"name": "age", "datatype": "{datatype}", "shape": [2], "data": {data}'
        return served.client.post(path, content=f'{{"inputs": [{{{column}}}]}}', headers=JSON)

    assert ask("[NaN, 1]").json() == ask("[null, 1]").json()
    assert ask("[NaN, 1]").json()["outputs"] != ask("[0, 1]").json()["outputs"]


def test_repeated_keys_count_by_their_last_value(served):
    body = b'{"events": [{"age": "x"}], "events": [{"age": 7, "age": 1}]}'
    answer = served.client.post("/score", content=body, headers=JSON)
    assert answer.json() == served.score({"events": [{"age": 1}]}).json()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
columns = st.sampled_from(["user", "item", "noise", "age", "price", "label", "ts", "other"])
events = st.dictionaries(columns, json_values, max_size=4)
score_bodies = st.fixed_dictionaries(
    {},
    optional={
        "events": st.lists(events, max_size=3),
        "context": events,
        "candidates": st.lists(events, max_size=3),
    },
)
tensors = st.fixed_dictionaries(
    {
        "name": columns,
        "shape": st.lists(st.integers(-1, 3), max_size=2),
        "datatype": st.sampled_from(["BYTES", "FP32", "INT64", "BOOL", "x"]),
        "data": st.lists(json_values, max_size=3),
    }
)
infer_bodies = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3)}, optional={"id": json_values}
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=score_bodies | infer_bodies | json_values)
def test_no_json_whatever_is_more_than_a_client_error(served, body):
    text = json.dumps(body)
    for path in ("/score", f"/v2/models/{served.scorer.name}/infer"):
        response = served.client.post(path, content=text, headers=JSON)
        assert response.status_code in (200, 400), response.text
        assert response.json()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=200))
def test_no_bytes_whatever_are_more_than_a_client_error(served, body):
    assert served.client.post("/score", content=body, headers=JSON).status_code == 400


def test_a_body_beyond_the_limit_is_413_whether_or_not_its_length_is_said(served):
    body = b'{"events": [' + b" " * 200_000 + b"]}"
    assert error(served.client.post("/score", content=body, headers=JSON))[:2] == (413, "body")
    pieces = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
    assert error(served.client.post("/score", content=pieces, headers=JSON))[:2] == (413, "body")
    assert served.score({"events": []}).status_code == 200


def test_a_body_that_does_not_come_is_408(serve):
    url = serve(read_timeout_s=0.2).client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_hangs_up_leaves_no_trace_but_a_count(served):
    url, before = served.client.base_url, served.metrics()["niwaki_requests_total", "score", "gone"]
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
    deadline_s = time.monotonic() + 10
    while served.metrics()["niwaki_requests_total", "score", "gone"] == before:
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize(
    "request_line", [b"POST /score HTTP/9.9", b"\x16\x03\x01\x02", b"POST /score", b"GET  / x y"]
)
def test_what_is_not_http_is_400(served, request_line):
    url = served.client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(request_line + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_unknown_paths_and_methods_are_named(served):
    assert error(served.client.get("/scores"))[:2] == (404, "path")
    response = served.client.get("/score")
    assert error(response)[:2] == (405, "method") and response.headers["allow"] == "POST"
    assert (
        served.client.get("/v2/models/another").json()["error"].startswith("name: must be model-")
    )
    assert served.client.get("/v2/models/another").status_code == 404
    assert served.client.post("/v2/models/another/infer", json={}).status_code == 404


def test_an_id_or_a_number_is_one_value_however_a_client_writes_it():
    users = ["4001", 4001, 4001.0]
    ages = [30, 30.0, "30"]
    events = [{"user": user, "age": age} for user, age in zip(users, ages, strict=True)]
    batch = wire.read_score(json.dumps({"events": events}).encode(), SCHEMA, 10)
    assert batch.categorical[SCHEMA.categorical.index("user")].to_pylist() == ["4001"] * 3
    assert batch.numerics_BN[:, SCHEMA.numeric.index("age")].tolist() == [30] * 3
