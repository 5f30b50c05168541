"""Several processes score at one port, with one copy of the tables: each version whole, in all of
them."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from niwaki.serving.store import CheckpointStore
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


@pytest.fixture
def service(redis_url) -> Iterator[Service]:
    with ExitStack() as stack:
        service = Service(stack, redis_url)
        yield service
        service.stop()


def test_every_answer_is_of_one_whole_version_while_versions_change(service, publisher):
    first, last = 12, 30
    events = rows(publisher.events)
    service.store.publish(*publisher.first)
    service.start()

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


def test_counts_are_those_of_all_workers_whichever_is_asked(service, publisher):
    service.store.publish(*publisher.first)
    service.start()
    for _ in range(40):
        service.score([{}, {}])
    for _ in range(5):
        found = service.metrics()
        assert found["niwaki_requests_total", "score", "scored"] == 40
        assert found["niwaki_scored_events_total",] == 80
        assert found["niwaki_scoring_seconds_count",] == 40
        assert found["niwaki_served_version",] == 12
        service.until(lambda: service.metrics()["niwaki_swaps_total",] == 1)


def test_a_worker_that_is_killed_is_started_again_and_has_the_newest_version(service, publisher):
    service.store.publish(*publisher.first)
    service.start()
    before = set(service.workers())
    assert len(before) == 2
    for killed in before:
        os.kill(killed, signal.SIGKILL)
        service.read_until("by SIGKILL, and is started again")
    service.store.publish(*publisher.checkpoint(13))

    def is_new() -> bool:
        try:
            return service.score([])["version"] == 13 and len(set(service.workers()) - before) == 2
        except httpx.TransportError:  # none of the two listens yet
            return False

    service.until(is_new)
    answer = service.score(rows(publisher.events))
    assert answer["probabilities"] == publisher.answers[13]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_workers_after_requests_in_flight(service, publisher, stop):
    service.store.publish(*publisher.first)
    service.start()
    workers = service.workers()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(service.score, rows(publisher.events)) for _ in range(20)]
        for answer in answers:
            assert answer.result(timeout=20)["probabilities"] == publisher.answers[12]
    service.process.send_signal(stop)
    out, rest = service.process.communicate(timeout=30)
    assert (service.process.returncode, out) == (0, "ended well\n"), rest
    assert "stopped serving" in rest and "Traceback" not in rest
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_when_the_process_that_follows_is_killed(service, publisher):
    service.store.publish(*publisher.first)
    service.start()
    workers = service.workers()
    service.process.kill()
    service.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_before_the_first_checkpoint_they_live_but_are_not_ready(service, publisher):
    service.start()
    assert httpx.get(f"{service.url}/v2/health/live").status_code == 200
    assert httpx.get(f"{service.url}/v2/health/ready").status_code == 503
    service.store.publish(*publisher.first)
    service.until(lambda: httpx.get(f"{service.url}/v2/health/ready").status_code == 200)
