"""What the HTTP server promises: every answer by one version, every mistake named, no request that breaks it."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from publisher import Publisher, rows

from serving.errors import ServingError
from serving.scorer import Scorer
from serving.server import ServeConfig, running
from serving.store import CheckpointStore
from stream.local import free_port

ROOT = Path(__file__).parent.parent
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def publisher() -> Publisher:
    publisher = Publisher()
    publisher.first = publisher.checkpoint(12)
    return publisher


class Served:
    """A store, the scorer that follows it, and a client of the server around it."""

    def __init__(self, store: CheckpointStore, scorer: Scorer, client: httpx.Client):
        self.store, self.scorer, self.client = store, scorer, client

    def publish(self, header, data: bytes) -> None:
        assert self.store.publish(header, data)
        assert self.scorer.wait(header.version, timeout_s=10)

    def score(self, body: object) -> httpx.Response:
        return self.client.post("/score", json=body)

    def infer(self, body: object) -> httpx.Response:
        return self.client.post(f"/v2/models/{self.scorer.name}/infer", json=body)

    def metrics(self) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


@pytest.fixture(scope="module")
def serve(redis_url) -> Iterator[Callable[..., Served]]:
    """Starts a server for a model of its own, with any settings."""
    with ExitStack() as stack:

        def factory(**settings) -> Served:
            name = f"model-{secrets.token_hex(4)}"
            store = stack.enter_context(CheckpointStore.from_url(redis_url, name))
            scorer = stack.enter_context(Scorer.from_redis(redis_url, name))
            url = stack.enter_context(running(scorer, ServeConfig(port=0, **settings)))
            client = stack.enter_context(httpx.Client(base_url=url, timeout=20))
            return Served(store, scorer, client)

        yield factory


@pytest.fixture(scope="module")
def served(serve, publisher) -> Served:
    """One server for those who change nothing about it; it serves version 12."""
    served = serve(max_events=100, max_body_bytes=100_000)
    served.publish(*publisher.first)
    return served


def error(response: httpx.Response) -> tuple[int, str, str, str]:
    reason = response.json()["error"]
    return response.status_code, reason["field"], reason["rule"], reason["value"]


# Answers


def test_events_are_scored_in_order_by_the_version_that_is_named(served, publisher):
    answer = served.score({"events": rows(publisher.events)})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert answer.json() == {"version": 12, "probabilities": publisher.answers[12]}


def test_candidates_complete_one_context(served):
    context = {"user": "u1", "age": 0.5}
    candidates = [{"item": "i1", "price": 10}, {"item": "i2", "price": -300}, {}]
    together = served.score({"context": context, "candidates": candidates}).json()
    apart = served.score({"events": [context | candidate for candidate in candidates]}).json()
    assert together == apart and len(set(together["probabilities"])) == 3
    assert served.score({"candidates": candidates[2:]}).json() == served.score({"events": [{}]}).json()


def test_no_events_have_no_probabilities(served):
    for body in ({"events": []}, {"candidates": []}, {"context": {"user": "a"}, "candidates": []}):
        assert served.score(body).json() == {"version": 12, "probabilities": []}


def test_missing_null_label_and_time_are_all_the_same_to_a_score(served):
    events = [{}, {"user": None, "price": None}, {"label": 1, "ts": 1_700_000_000_000}]
    assert len(set(served.score({"events": events}).json()["probabilities"])) == 1


def test_an_integer_and_its_text_are_one_value(served):
    same = [{"user": 12}, {"user": "12"}]
    assert len(set(served.score({"events": same}).json()["probabilities"])) == 1


def test_long_bodies_are_scored_just_the_same(serve, publisher):
    events = rows(publisher.events)
    for inline_bytes in (0, 10_000_000):
        served = serve(inline_bytes=inline_bytes, max_events=10_000)
        served.publish(*publisher.first)
        assert served.score({"events": events * 30}).json()["probabilities"] == publisher.answers[12] * 30


# Mistakes

MISTAKES = [
    ({"events": [{}, {"colour": "red"}]}, 400, "events[1].colour", "must be a column of the schema", "'red'"),
    ({"events": [{"age": "old"}]}, 400, "events[0].age", "must be a number", "'old'"),
    ({"events": [{"age": True}]}, 400, "events[0].age", "must be a number", "True"),
    ({"events": [{"age": 1e39}]}, 400, "events[0].age", "must be finite in 32 bits", "1e+39"),
    ({"events": [{"age": 10**100}]}, 400, "events[0].age", "must be finite in 32 bits", None),
    ({"events": [{"user": 1.5}]}, 400, "events[0].user", "must be a string or an integer", "1.5"),
    ({"events": [{"user": ["u"]}]}, 400, "events[0].user", "must be a string or an integer", "['u']"),
    ({"events": [{"label": 2}]}, 400, "events[0].label", "must be a number in [0, 1]", "2"),
    ({"events": [{"ts": "now"}]}, 400, "events[0].ts", None, "'now'"),
    ({"events": [{"ts": 10**30}]}, 400, "events[0].ts", None, None),
    ({"context": {"age": []}, "candidates": [{}]}, 400, "context.age", "must be a number", "[]"),
    ({"context": {}, "candidates": [{}, {"age": []}]}, 400, "candidates[1].age", "must be a number", "[]"),
    (
        {"context": {"age": 1}, "candidates": [{"age": 2}]},
        400,
        "candidates[0].age",
        "must not be in the context too",
        "2",
    ),
    ({"events": [], "candidates": []}, 400, "events", "must stand alone, without context and candidates", ""),
    ({"context": {}}, 400, "events", "must be there, or candidates must", ""),
    ({}, 400, "events", "must be there, or candidates must", ""),
    ({"event": []}, 400, "body", "object contains unknown field `event`", ""),
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
        b'{"events": [{"age": NaN}]}',
        b'{"events": [{"age": Infinity}]}',
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


def test_repeated_keys_count_by_their_last_value(served):
    body = b'{"events": [{"age": "x"}], "events": [{"age": 7, "age": 1}]}'
    answer = served.client.post("/score", content=body, headers=JSON)
    assert answer.json() == served.score({"events": [{"age": 1}]}).json()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
columns = st.sampled_from(["user", "item", "noise", "age", "price", "label", "ts", "other"])
events = st.dictionaries(columns, json_values, max_size=4)
score_bodies = st.fixed_dictionaries(
    {}, optional={"events": st.lists(events, max_size=3), "context": events, "candidates": st.lists(events, max_size=3)}
)
tensors = st.fixed_dictionaries(
    {
        "name": columns,
        "shape": st.lists(st.integers(-1, 3), max_size=2),
        "datatype": st.sampled_from(["BYTES", "FP32", "INT64", "BOOL", "x"]),
        "data": st.lists(json_values, max_size=3),
    }
)
infer_bodies = st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=3)}, optional={"id": json_values})


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


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, "content-type"),
        ({"content-type": "text/plain"}, "content-type"),
        ({"content-type": ""}, "content-type"),
        ({"content-type": "application/json; charset=latin-1"}, "content-type"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "content-encoding"),
    ],
)
def test_another_type_of_content_is_415(served, headers, field):
    response = served.client.post("/score", content=b'{"events": []}', headers=headers)
    assert error(response)[:2] == (415, field)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_json_may_say_that_it_is_utf_8(served, kind):
    assert served.client.post("/score", content=b'{"events": []}', headers={"content-type": kind}).status_code == 200


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


@pytest.mark.parametrize("request_line", [b"POST /score HTTP/9.9", b"\x16\x03\x01\x02", b"POST /score", b"GET  / x y"])
def test_what_is_not_http_is_400(served, request_line):
    url = served.client.base_url
    with socket.create_connection((url.host, url.port), timeout=10) as connection:
        connection.sendall(request_line + b"\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_unknown_paths_and_methods_are_named(served):
    assert error(served.client.get("/scores"))[:2] == (404, "path")
    response = served.client.get("/score")
    assert error(response)[:2] == (405, "method") and response.headers["allow"] == "POST"
    assert served.client.get("/v2/models/another").json()["error"].startswith("name: must be model-")
    assert served.client.get("/v2/models/another").status_code == 404
    assert served.client.post("/v2/models/another/infer", json={}).status_code == 404


# The Open Inference Protocol


def test_a_model_says_its_columns_and_version(served):
    metadata = served.client.get(f"/v2/models/{served.scorer.name}").json()
    assert metadata["versions"] == ["12"] and metadata["name"] == served.scorer.name
    assert {(column["name"], column["datatype"]) for column in metadata["inputs"]} == {
        ("user", "BYTES"),
        ("item", "BYTES"),
        ("noise", "BYTES"),
        ("age", "FP32"),
        ("price", "FP32"),
        ("ts", "INT64"),
    }
    assert served.client.get("/v2").json()["name"] == "niwaki"


def tensor(name: str, datatype: str, data: list, shape: list[int] | None = None) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def test_tensors_are_scored_as_the_same_events_are(served, publisher):
    events = rows(publisher.events)
    kinds = {"user": "BYTES", "item": "BYTES", "noise": "BYTES", "age": "FP32", "price": "FP64"}
    inputs = [tensor(name, kind, [event.get(name) for event in events]) for name, kind in kinds.items()]
    answer = served.infer({"inputs": inputs, "id": "q1", "outputs": [{"name": "probability"}]}).json()
    assert answer["outputs"] == [tensor("probability", "FP32", publisher.answers[12])]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == (served.scorer.name, "12", "q1")


def test_a_column_may_be_a_matrix_of_one_column(served):
    flat = [tensor("user", "BYTES", ["u1", "u2"]), tensor("age", "INT64", [1, 2])]
    tall = [tensor("user", "BYTES", [["u1"], ["u2"]], [2, 1]), tensor("age", "INT64", [1, 2], [2, 1])]
    assert served.infer({"inputs": flat}).json() == served.infer({"inputs": tall}).json()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"inputs": []}, 400, "inputs: must hold at least one tensor"),
        ({}, 400, "body: object missing required field `inputs`"),
        ({"inputs": [tensor("user", "FP8", ["a"])]}, 400, "inputs[0].datatype: must be one of BYTES, INT8"),
        (
            {"inputs": [tensor("user", "BYTES", [1])]},
            400,
            "inputs[0].data[0]: must be of datatype BYTES, or null, got 1",
        ),
        ({"inputs": [tensor("age", "FP32", [True])]}, 400, "inputs[0].data[0]: must be of datatype FP32"),
        ({"inputs": [tensor("age", "FP32", [1, 2], [3])]}, 400, "inputs[0].data: must hold 3 values"),
        ({"inputs": [tensor("age", "FP32", [1], [-1])]}, 400, "inputs[0].data: must hold -1 values"),
        ({"inputs": [tensor("age", "FP32", [1], [1, 2])]}, 400, "inputs[0].shape: must be [1] or [1, 1]"),
        ({"inputs": [tensor("age", "FP32", [1])] * 2}, 400, "inputs[1].name: must differ from those before"),
        (
            {"inputs": [tensor("age", "FP32", [1]), tensor("price", "FP32", [1, 2])]},
            400,
            "inputs[1].shape: must be [1] or [1, 1], as the first is, got [2]",
        ),
        ({"inputs": [tensor("hue", "FP32", [1, 2])]}, 400, "inputs[0].data[0] (hue): must be a column of the schema"),
        ({"inputs": [tensor("user", "FP32", [1.5])]}, 400, "inputs[0].data[0] (user): must be a string or an integer"),
        ({"inputs": [tensor("age", "FP32", [1] * 101)]}, 413, "inputs[0].shape: must be at most 100, got 101"),
        (
            {"inputs": [tensor("age", "FP32", [1])], "outputs": [{"name": "logit"}]},
            400,
            "outputs[0].name: must be probability, got 'logit'",
        ),
    ],
)
def test_a_mistake_in_a_tensor_is_named(served, body, status, text):
    response = served.infer(body)
    assert response.status_code == status
    assert response.json()["error"].startswith(text)


# Health, metrics, OpenAPI


def test_before_the_first_checkpoint_it_lives_but_is_not_ready(serve, publisher):
    served = serve()
    assert served.client.get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", f"/v2/models/{served.scorer.name}/ready"):
        response = served.client.get(path)
        assert (response.status_code, response.json()["ready"]) == (503, False)
    assert error(served.score({"events": []}))[:2] == (503, "model")
    assert served.client.get(f"/v2/models/{served.scorer.name}").status_code == 503
    assert served.client.get("/openapi.json").status_code == 200
    assert served.metrics()["niwaki_served_version",] == 0
    served.publish(*publisher.first)
    assert served.client.get("/v2/health/ready").json()["version"] == 12
    assert served.metrics()["niwaki_served_version",] == 12


def test_past_the_configured_age_it_is_no_longer_ready_but_scores_on(serve, publisher):
    served = serve(max_age_s=100.0)
    served.publish(*publisher.checkpoint(13, created_s=time.time() - 101))
    response = served.client.get("/v2/health/ready")
    assert response.status_code == 503 and "at most 100 s" in response.json()["reason"]
    assert served.score({"events": [{}]}).status_code == 200
    served.publish(*publisher.checkpoint(14))
    assert served.client.get("/v2/health/ready").status_code == 200


def test_metrics_count_what_happened(serve, publisher):
    served = serve(max_events=5)
    served.publish(*publisher.first)
    served.score({"events": [{}, {}, {}]})
    served.infer({"inputs": [tensor("age", "FP32", [1, 2])]})
    served.score({"events": [{}] * 6})
    served.score({"events": 1})
    header, data = publisher.checkpoint(15)
    served.store.publish(header, data[:-1])
    served.publish(*publisher.checkpoint(16))
    metrics = served.metrics()
    assert metrics["niwaki_requests_total", "score", "scored"] == 1
    assert metrics["niwaki_requests_total", "infer", "scored"] == 1
    assert metrics["niwaki_requests_total", "score", "too_large"] == 1
    assert metrics["niwaki_requests_total", "score", "refused"] == 1
    assert metrics["niwaki_requests_total", "score", "failed"] == 0
    assert metrics["niwaki_scored_events_total",] == 5
    assert metrics["niwaki_scoring_seconds_count",] == 2
    assert metrics["niwaki_served_version",] == 16
    assert 0 <= metrics["niwaki_served_age_seconds",] < 60
    assert metrics["niwaki_swaps_total",] == 2
    assert metrics["niwaki_refused_checkpoints_total",] == 1


def test_every_example_in_the_openapi_document_is_answered(served):
    document = served.client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    asked = 0
    for path, operations in document["paths"].items():
        path = path.replace("{name}", served.scorer.name)
        for operation in operations.get("post", {}).get("requestBody", {}).get("content", {}).values():
            for example in operation["examples"].values():
                assert served.client.post(path, json=example["value"]).status_code == 200
                asked += 1
        if "get" in operations:
            assert served.client.get(path).status_code == 200
    assert asked == 3


def test_the_openapi_document_names_the_columns_that_serve(served):
    document = served.client.get("/openapi.json").json()
    body = document["paths"]["/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    event = body["oneOf"][0]["properties"]["events"]["items"]
    assert set(event["properties"]) == {"user", "item", "noise", "age", "price", "ts", "label"}
    assert event["additionalProperties"] is False


# Swaps under load, and the end


def test_answers_under_concurrent_publication_are_whole_and_of_one_version(serve, publisher):
    served, first, last = serve(), 100, 140
    served.publish(*publisher.checkpoint(first))
    body = {"events": rows(publisher.events)}

    def ask() -> list[int]:
        seen = [0]
        with httpx.Client(base_url=served.client.base_url, timeout=20) as client:
            while seen[-1] < last:
                response = client.post("/score", json=body)
                assert response.status_code == 200
                answer = response.json()
                assert answer["probabilities"] == publisher.answers[answer["version"]]
                seen.append(answer["version"])
        return seen

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(ask) for _ in range(3)]
        for version in range(first + 1, last + 1):
            served.publish(*publisher.checkpoint(version))
        for client in clients:
            seen = client.result(timeout=30)
            assert seen == sorted(seen) and len(set(seen)) > 3


SERVE = """
import logging, sys
from serving.server import ServeConfig, run
from serving.store import StoreConfig
logging.basicConfig(level=logging.INFO)
run(ServeConfig(port=int(sys.argv[1])), StoreConfig(url=sys.argv[2], name=sys.argv[3]))
print("ended well")
"""


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_after_the_request_in_flight(redis_url, publisher, stop):
    port, name = free_port(), f"model-{secrets.token_hex(4)}"
    with CheckpointStore.from_url(redis_url, name) as store:
        store.publish(*publisher.first)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port), redis_url, name],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        log = []
        for line in process.stderr:
            log.append(line)
            if f"on http://127.0.0.1:{port}" in line:
                break
        assert log and str(port) in log[-1], "".join(log)
        body = json.dumps({"events": rows(publisher.events)}).encode()
        head = b"POST /score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(head + body[:10])
            assert httpx.get(f"http://127.0.0.1:{port}/v2/health/live").status_code == 200
            process.send_signal(stop)
            connection.sendall(body[10:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        out, rest = process.communicate(timeout=20)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["probabilities"] == publisher.answers[12]
    assert (process.returncode, out) == (0, "ended well\n"), rest
    assert "Traceback" not in rest and "stopped serving" in rest


def test_a_port_that_is_taken_is_said(serve, redis_url):
    taken = serve().client.base_url.port
    with Scorer.from_redis(redis_url) as scorer, pytest.raises(ServingError, match=f"127.0.0.1:{taken}"):
        with running(scorer, ServeConfig(port=taken)):
            pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65_536},
        {"max_body_bytes": 0},
        {"max_events": 0},
        {"threads": 0},
        {"inline_bytes": -1},
        {"max_age_s": -1.0},
        {"read_timeout_s": 0.0},
        {"stop_timeout_s": -1.0},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"serve.{name} must"):
        ServeConfig(**wrong)
    with pytest.raises(msgspec.ValidationError, match=f"serve.{name} must"):
        msgspec.convert(wrong, ServeConfig)
