"""Several processes score at one port, with one copy of the tables: each version whole, in all of
them."""

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
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from niwaki.serving.app import ServeConfig
from niwaki.serving.errors import ServingError
from niwaki.serving.store import CheckpointStore
from niwaki.serving.workers.team import Team
from niwaki.stream.offline.local import free_port
from tests.support.publisher import rows

ROOT = Path(__file__).parents[2]
SERVE = """
import logging, sys
from niwaki.serving.app import ServeConfig
from niwaki.serving.server import run
from niwaki.serving.store import StoreConfig
logging.basicConfig(level=logging.INFO)
run(ServeConfig(port=int(sys.argv[1]), workers=2), StoreConfig(url=sys.argv[2], name=sys.argv[3]))
print("ended well")
"""


class Service:
    """A server with two workers."""

    def __init__(self, stack: ExitStack, redis_url: str):
        self.name, self.port = f"model-{secrets.token_hex(4)}", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.store = stack.enter_context(CheckpointStore.from_url(redis_url, self.name))
        self._redis_url = redis_url
        self.log: list[str] = []

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.port), self._redis_url, self.name],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.read_until("with 2 workers")

    def read_until(self, text: str) -> None:
        for line in self.process.stderr:
            self.log.append(line)
            if text in line:
                return
        raise AssertionError("".join(self.log))

    def workers(self) -> list[int]:
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=30)

    def score(self, events: list[dict]) -> dict:
        """The answer at a connection of its own, so that any worker may give it."""
        return httpx.post(f"{self.url}/score", json={"events": events}, timeout=20).json()

    def metrics(self) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return {(sample.name, *sample.labels.values()): sample.value for sample in samples}

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, "".join(self.log)


@pytest.fixture(scope="module")
def service(redis_url, publisher) -> Iterator[Service]:
    """A server that runs, and has a first version."""
    with ExitStack() as stack:
        service = Service(stack, redis_url)
        service.store.publish(*publisher.first)
        service.start()
        yield service
        service.stop()


@pytest.fixture
def unpublished(redis_url) -> Iterator[Service]:
    """A server that runs, and has no version."""
    with ExitStack() as stack:
        service = Service(stack, redis_url)
        service.start()
        yield service
        service.stop()


def test_every_answer_is_of_one_whole_version_while_versions_change(service, publisher):
    first = service.score([])["version"]
    last = first + 18
    events = rows(publisher.events)

    def ask() -> list[int]:
        versions = []
        with httpx.Client(base_url=service.url, timeout=20) as client:
            while not versions or versions[-1] < last:
                answer = client.post("/score", json={"events": events}).json()
                assert answer["probabilities"] == publisher.answers[answer["version"]]
                versions.append(answer["version"])
        return versions

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask) for _ in range(8)]
        for version in range(first + 1, last + 1):
            service.store.publish(*publisher.checkpoint(version))
            service.until(lambda v=version: service.score([])["version"] >= v)
        for client in clients:
            seen = client.result(timeout=60)
            assert seen == sorted(seen)


def test_counts_are_those_of_all_workers_whichever_is_asked(service):
    names = [
        ("niwaki_requests_total", "score", "scored"),
        ("niwaki_scored_events_total",),
        ("niwaki_scoring_seconds_count",),
    ]
    before = service.metrics()
    for _ in range(40):
        service.score([{}, {}])
    for _ in range(5):
        found = service.metrics()
        assert [found[name] - before[name] for name in names] == [40, 80, 40]
        assert found["niwaki_served_version",] == service.score([])["version"]
        before[names[0]] += 1
        before[names[2]] += 1
    service.until(lambda: service.metrics()["niwaki_swaps_total",] >= 1)


def test_all_processes_map_the_same_tables_of_which_there_are_two_sets_at_most(service):
    def mapped(pid: int) -> set[str]:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {line.split()[4] for line in lines if "memfd:niwaki-tables" in line}

    one, other = (mapped(pid) for pid in service.workers())
    followers = mapped(service.process.pid)
    assert one & other & followers and len(one | other | followers) <= 2


def test_a_worker_that_is_killed_is_started_again_and_has_the_newest_version(service, publisher):
    before, version = set(service.workers()), service.score([])["version"] + 1
    assert len(before) == 2
    for killed in before:
        os.kill(killed, signal.SIGKILL)
        service.read_until("by SIGKILL, and is started again")
    service.store.publish(*publisher.checkpoint(version))

    def is_new() -> bool:
        try:
            answer = service.score(rows(publisher.events))
        except httpx.TransportError:  # none of the two listens yet
            return False
        assert answer["probabilities"] == publisher.answers[answer["version"]]
        return answer["version"] == version and len(set(service.workers()) - before) == 2

    service.until(is_new)


def test_before_the_first_checkpoint_they_live_and_after_a_signal_they_end_cleanly(
    unpublished, publisher
):
    service = unpublished
    assert httpx.get(f"{service.url}/v2/health/live").status_code == 200
    assert httpx.get(f"{service.url}/v2/health/ready").status_code == 503
    service.store.publish(*publisher.first)
    ready = f"{service.url}/v2/health/ready"  # each time asked of any of them
    service.until(lambda: all(httpx.get(ready).status_code == 200 for _ in range(20)))
    workers = service.workers()
    body = json.dumps({"events": rows(publisher.events)}).encode()
    head = b"POST /score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(head % len(body) + body[:10])
        assert service.score([])["version"] == 12
        service.process.terminate()
        connection.sendall(body[10:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["probabilities"] == publisher.answers[12]
    out, rest = service.process.communicate(timeout=30)
    assert (service.process.returncode, out) == (0, "ended well\n"), rest
    assert "stopped serving" in rest and "Traceback" not in rest
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_when_the_process_that_follows_is_killed(unpublished):
    workers = unpublished.workers()
    unpublished.process.kill()
    unpublished.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_worker_that_never_listens_stops_the_server_with_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    team = Team(ServeConfig(workers=2), free_port(), "model", str(tmp_path))
    with closing(team), pytest.raises(ServingError, match="ended with exit code 1 before"):
        team.start()
