"""Fixtures for tests over HTTP: a server around a scorer that follows a store, and a client of
it."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from niwaki.serving.app import ServeConfig
from niwaki.serving.scorer import Scorer
from niwaki.serving.server import running
from niwaki.serving.store import CheckpointStore
from tests.support.publisher import Publisher

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


def tensor(name: str, datatype: str, data: list, shape: list[int] | None = None) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
