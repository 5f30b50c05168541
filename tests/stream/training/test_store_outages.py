"""Redis refuses, hangs, loses bytes or is not there: learning goes on to the bit, and publication
in full as soon as it can."""

import itertools
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import redis

from niwaki.model.errors import CheckpointError
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.training.publisher import Publisher
from niwaki.stream.training.telemetry import Telemetry
from tests.support.pipelines import new_trainer
from tests.support.proxy import AnsweringProxy
from tests.support.redis_server import RedisServer
from tests.support.streams import click_events, differing

BATCH = 64
OUTAGE_EVENTS = 1536
MOST_BATCHES = 20_000


class Learning:
    """A trainer that publishes, without Kafka."""

    def __init__(self, url: str, timeout_s: float = 5.0):
        self.trainer = new_trainer()
        self.replica = self.trainer.add_replica(256, evaluates_all=False)
        self.telemetry = Telemetry()
        self.store = CheckpointStore(StoreConfig(url=url, timeout_s=timeout_s))
        self.publisher = Publisher(self.replica, self.store, self.telemetry)
        self.publisher._retry_s = 0.0
        self.publisher.resume(0)

    def learn(self, events: int) -> None:
        for _ in range(events // BATCH):
            at = self.trainer.events
            batch = click_events(BATCH, seed=at)
            self.publisher.settle(wait=False)
            move = self.trainer.step(batch).move
            self.publisher.publish_if_due(move, self.trainer.status(), {0: at + BATCH})

    def learn_until_published(self) -> None:
        """Learn on until nothing is interrupted, and the last version has arrived."""
        for _ in range(MOST_BATCHES):
            self.learn(BATCH)
            if not self.shown("niwaki_publication_interrupted"):
                break
        assert not self.shown("niwaki_publication_interrupted")
        self.publisher.settle()

    def shown(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, labels)

    def close(self) -> None:
        self.publisher.close()
        self.store.close()


@pytest.fixture
def learning() -> Iterator[Callable[..., Learning]]:
    made: list[Learning] = []

    def factory(url: str, **options) -> Learning:
        made.append(Learning(url, **options))
        return made[-1]

    yield factory
    for one in made:
        one.close()


def ask(server: RedisServer, *command: object, password: str | None = None) -> object:
    with redis.Redis(port=server.port, password=password) as client:
        return client.execute_command(*command)


@contextmanager
def noreplicas(server: RedisServer) -> Iterator[None]:
    ask(server, "CONFIG", "SET", "min-replicas-to-write", "1")
    yield
    ask(server, "CONFIG", "SET", "min-replicas-to-write", "0")


@contextmanager
def misconf(server: RedisServer) -> Iterator[None]:
    """A background save fails, as on a full disk."""
    ask(server, "CONFIG", "SET", "save", "3600 1")
    shutil.rmtree(server._directory)
    ask(server, "BGSAVE")
    while ask(server, "INFO", "persistence")["rdb_bgsave_in_progress"]:
        pass
    yield
    ask(server, "CONFIG", "SET", "stop-writes-on-bgsave-error", "no")


@contextmanager
def auth(server: RedisServer) -> Iterator[None]:
    ask(server, "CONFIG", "SET", "requirepass", "secret")
    with suppress(redis.RedisError):
        ask(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no", password="secret")
    yield
    ask(server, "CONFIG", "SET", "requirepass", "", password="secret")


@contextmanager
def memory(server: RedisServer) -> Iterator[None]:
    ask(server, "CONFIG", "SET", "maxmemory", "1000")
    yield
    ask(server, "CONFIG", "SET", "maxmemory", "0")


@contextmanager
def readonly(server: RedisServer) -> Iterator[None]:
    ask(server, "REPLICAOF", "127.0.0.1", "1")
    yield
    ask(server, "REPLICAOF", "NO", "ONE")


@contextmanager
def connection(server: RedisServer) -> Iterator[None]:
    server.kill()
    yield
    server.start()


@contextmanager
def evicted(server: RedisServer) -> Iterator[None]:
    """As an allkeys policy would."""
    with redis.Redis(port=server.port) as client:
        names = sorted(client.scan_iter("niwaki:{niwaki}:blob:*"))
        client.delete(*names)
    yield


def assert_scorer_has_what_is_served(url: str, learning: Learning) -> None:
    events = click_events(200, seed=3)
    with Scorer.from_redis(url) as scorer:
        assert scorer.version == learning.publisher.version
        assert (
            scorer.score_batch(events).tolist() == learning.replica.served.predict(events).tolist()
        )


def assert_learned_as_without_redis(learning: Learning) -> None:
    alone = new_trainer()
    while alone.events < learning.trainer.events:
        alone.step(click_events(BATCH, seed=alone.events))
    assert differing(alone.state()[1], learning.trainer.state()[1]) == []


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("publication ")]


@pytest.mark.parametrize(
    "fault", [noreplicas, misconf, auth, memory, readonly, connection, evicted]
)
def test_while_redis_refuses_learning_goes_on_and_then_a_full_version_is_published(
    start, learning, caplog, fault
):
    caplog.set_level(logging.INFO, "niwaki")
    kind, server = fault.__name__, start()
    one = learning(server.url)
    one.learn(512)
    one.publisher.settle()
    assert one.publisher.version >= 1 and lines(caplog) == []
    with fault(server):
        before = one.trainer.events
        one.learn(OUTAGE_EVENTS)
        if fault is not evicted:
            assert one.shown("niwaki_publication_interrupted") == 1
            assert one.trainer.events == before + OUTAGE_EVENTS
    one.learn_until_published()
    assert one.shown("niwaki_publication_failures_total", kind=kind) >= 1
    begun, over = lines(caplog)
    assert begun.startswith(f"publication is interrupted ({kind}), learning goes on: ")
    resumed = int(over.removeprefix("publication goes on with version ").split(",")[0])
    kept = {pointer.version: pointer.kind for pointer in one.store.versions()}
    assert kept.get(resumed, "full") == "full"
    assert_scorer_has_what_is_served(server.url, one)
    assert_learned_as_without_redis(one)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("loading", b"-LOADING Redis is loading the dataset in memory\r\n"),
        ("moved", b"-MOVED 1234 127.0.0.1:7001\r\n"),
    ],
)
def test_answers_of_a_redis_that_is_not_the_right_one_yet_interrupt_nothing_but_publication(
    start, learning, caplog, kind, answer
):
    caplog.set_level(logging.INFO, "niwaki")
    server = start()
    proxy = AnsweringProxy(server.port)
    one = learning(f"redis://127.0.0.1:{proxy.port}/0")
    one.learn(512)
    one.publisher.settle()
    proxy.answer = answer
    one.learn(512)
    one.publisher.settle()
    one.learn(512)
    assert one.shown("niwaki_publication_failures_total", kind=kind) >= 1
    proxy.answer = b""
    one.learn_until_published()
    assert len(lines(caplog)) == 2
    assert_scorer_has_what_is_served(server.url, one)
    proxy.close()


def test_a_redis_that_hangs_is_not_waited_for(start, learning, caplog):
    """Its answers may take ten minutes: a loop that waited for one would not end."""
    caplog.set_level(logging.INFO, "niwaki")
    server = start()
    one = learning(server.url, timeout_s=600.0)
    one.learn(512)
    one.publisher.settle()
    version = one.publisher.version
    os.kill(server._process.pid, signal.SIGSTOP)
    before = one.trainer.events
    one.learn(2048)
    served = one.replica.latest
    assert one.trainer.events == before + 2048 and one.publisher.version == version
    assert one.replica.evaluation.total.events and served is not None  # scoring goes on, too
    os.kill(server._process.pid, signal.SIGCONT)
    one.publisher.settle()
    one.learn(512)
    one.publisher.settle()
    assert one.publisher.version > version
    assert_scorer_has_what_is_served(server.url, one)
    assert_learned_as_without_redis(one)


def test_a_redis_that_hangs_for_longer_than_an_answer_may_take_interrupts_publication(
    start, learning, caplog
):
    caplog.set_level(logging.INFO, "niwaki")
    server = start()
    one = learning(server.url, timeout_s=0.2)
    one.learn(512)
    one.publisher.settle()
    os.kill(server._process.pid, signal.SIGSTOP)
    for _ in itertools.takewhile(
        lambda _: not one.shown("niwaki_publication_interrupted"), range(MOST_BATCHES)
    ):
        one.learn(BATCH)
    one.learn(1024)
    os.kill(server._process.pid, signal.SIGCONT)
    one.learn_until_published()
    assert one.shown("niwaki_publication_failures_total", kind="timeout") >= 1
    assert [line.split(" ")[1] for line in lines(caplog)] == ["is", "goes"]
    assert_scorer_has_what_is_served(server.url, one)


def test_a_trainer_begins_without_redis_and_publishes_once_it_is_there(start, learning, caplog):
    caplog.set_level(logging.INFO, "niwaki")
    server = start()
    server.kill()
    one = learning(server.url)
    assert one.shown("niwaki_publication_interrupted") == 1
    one.learn(1024)
    assert one.replica.served is None
    server.start()
    one.learn_until_published()
    assert one.store.head().kind == "full" or one.publisher.version > 1
    assert len(lines(caplog)) == 2
    assert_scorer_has_what_is_served(server.url, one)
    assert_learned_as_without_redis(one)


def test_a_version_that_is_not_taken_in_an_outage_changes_nothing_that_is_served(start, learning):
    """The store takes a small write, but not a checkpoint."""
    server = start()
    one = learning(server.url)
    one.learn(512)
    one.publisher.settle()
    used = ask(server, "INFO", "memory")["used_memory"]
    ask(server, "CONFIG", "SET", "maxmemory", "1000")
    one.learn(512)
    served = one.replica.served
    ask(server, "CONFIG", "SET", "maxmemory", str(used + 20_000))
    one.learn(1024)
    events = click_events(64, seed=3)
    if one.shown("niwaki_publication_interrupted"):
        assert np.array_equal(one.replica.served.predict(events), served.predict(events))
    ask(server, "CONFIG", "SET", "maxmemory", "0")
    one.learn_until_published()
    one.learn(512)
    one.publisher.settle()
    assert_scorer_has_what_is_served(server.url, one)


def test_a_delta_is_not_put_on_a_checkpoint_that_redis_has_lost_a_part_of(start, learning):
    server = start()
    one = learning(server.url)
    one.learn(1024)
    one.publisher.settle()
    with redis.Redis(port=server.port) as client:
        full = min(one.store.versions(), key=lambda pointer: pointer.version)
        key = f"niwaki:{{niwaki}}:blob:{full.upload}:0"
        client.delete(key)
    with pytest.raises(CheckpointError, match=f"there is no key {key}"):
        one.store.fetch(full)
    one.learn(512)
    one.publisher.settle()
    assert one.shown("niwaki_publication_failures_total", kind="evicted") == 1
    one.learn_until_published()
    assert_scorer_has_what_is_served(server.url, one)
