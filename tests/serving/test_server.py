"""What the HTTP server promises: every answer by one version, health that tells, a clean end."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import pytest

from niwaki.serving.app import ServeConfig
from niwaki.serving.errors import ServingError
from niwaki.serving.scorer import Scorer
from niwaki.serving.server import running
from niwaki.serving.store import CheckpointStore
from niwaki.stream.offline.local import free_port
from tests.support.publisher import rows
from tests.support.served import error, tensor

ROOT = Path(__file__).parents[2]


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
    assert (
        served.score({"candidates": candidates[2:]}).json() == served.score({"events": [{}]}).json()
    )


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
        assert (
            served.score({"events": events * 30}).json()["probabilities"]
            == publisher.answers[12] * 30
        )


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
    assert metrics["niwaki_refused_checkpoints_total", "bytes"] == 1


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
from niwaki.serving.app import ServeConfig
from niwaki.serving.server import run
from niwaki.serving.store import StoreConfig
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
        head = (
            b"POST /score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            % len(body)
        )
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
    with (
        Scorer.from_redis(redis_url) as scorer,
        pytest.raises(ServingError, match=f"127.0.0.1:{taken}"),
    ):
        with running(scorer, ServeConfig(port=taken)):
            pass


def test_compact_tables_are_for_one_worker():
    with pytest.raises(ValueError, match="compact_tables: needs workers = 1"):
        ServeConfig(compact_tables=True, workers=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 65_536},
        {"max_body_bytes": 0},
        {"max_events": 0},
        {"threads": 0},
        {"workers": 0},
        {"inline_bytes": -1},
        {"max_age_s": -1.0},
        {"read_timeout_s": 0.0},
        {"stop_timeout_s": -1.0},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: must"):
        ServeConfig(**wrong)
    with pytest.raises(msgspec.ValidationError, match=f"{name}: must"):
        msgspec.convert(wrong, ServeConfig)
