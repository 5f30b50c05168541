"""What breaks on the way to the store: nothing is published by halves, and what can be tried again
is told apart."""

import socket
import threading
from collections.abc import Iterator

import pytest
import redis

from niwaki.model.errors import CheckpointError
from niwaki.serving.errors import StoreRefused, StoreUnavailable
from niwaki.serving.store import CheckpointStore, StoreConfig
from tests.support.proxy import Proxy
from tests.support.redis_server import RedisServer
from tests.support.stored import blob, header, keys, with_config


class CuttingProxy(Proxy):
    """Between a client and Redis; cuts the connection before or after Redis hears of the next
    swap."""

    cut, cuts_left = "", 0

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.upstream)) as redis_side:
            while request := client.recv(2**20):
                swap = b"EVAL" in request and self.cuts_left > 0
                self.cuts_left -= swap
                if swap and self.cut == "before":
                    return
                redis_side.sendall(request)
                answer = redis_side.recv(2**20)
                if swap:
                    return
                client.sendall(answer)


@pytest.fixture
def cutting(
    store: CheckpointStore, server: RedisServer
) -> Iterator[tuple[CuttingProxy, CheckpointStore]]:
    proxy = CuttingProxy(server.port)
    with with_config(store, url=f"redis://127.0.0.1:{proxy.port}/0") as through:
        yield proxy, through
    proxy.close()


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_lost_around_the_swap_is_tried_again_and_publishes_once(store, cutting, cut):
    proxy, through = cutting
    store.publish(header(1), blob(1))
    proxy.cut, proxy.cuts_left = cut, 1
    assert through.publish(header(2), blob(2))
    assert proxy.cuts_left == 0
    assert store.fetch() == blob(2)
    assert len(keys(store)) == 2 + 2


def test_a_writer_that_dies_before_the_swap_changes_nothing_and_its_bytes_expire(store, cutting):
    proxy, through = cutting
    store.publish(header(1), blob(1))
    proxy.cut, proxy.cuts_left = "before", 1000
    with pytest.raises(StoreUnavailable):
        through.publish(header(2), blob(2))
    assert store.fetch() == blob(1)
    with redis.Redis.from_url(store.config.url) as client:
        lifetimes = [client.ttl(key) for key in keys(store)]
    assert sorted(lifetimes)[:3] == [-1, -1, -1] and 0 < max(lifetimes) <= 900


def test_bytes_lost_before_the_swap_are_noticed(store, server):
    """As an eviction would take them."""
    chunk = f"niwaki:{{{store.name}}}:blob:*:0"
    with redis.Redis.from_url(server.url) as client:
        thief = threading.Event()

        def steal() -> None:
            while not thief.is_set():
                for key in client.scan_iter(chunk):
                    if client.ttl(key) > 0:
                        client.delete(key)

        thread = threading.Thread(target=steal)
        thread.start()
        try:
            lost = pytest.raises(StoreUnavailable, match="before it was whole")
            with with_config(store, chunk_bytes=10) as slow, lost:
                slow.publish(header(1), blob(1, 8000))
        finally:
            thief.set()
            thread.join()
    assert store.head() is None and keys(store) == []


def test_bytes_lost_after_the_swap_are_a_checkpoint_that_can_not_be_trusted(store):
    store.publish(header(1), blob(1))
    with redis.Redis.from_url(store.config.url) as client:
        client.delete(f"niwaki:{{{store.name}}}:blob:{store.head().upload}:0")
    for pointer in (None, store.head()):
        with pytest.raises(CheckpointError, match="version 1: are missing"):
            store.fetch(pointer)


def test_an_outage_is_worth_trying_again_and_publication_goes_on_after_it(start):
    server = start()
    with CheckpointStore(StoreConfig(url=server.url, timeout_s=0.5)) as store:
        assert store.publish(header(1), blob(1))
        server.kill()
        for call in (
            store.head,
            store.fetch,
            store.versions,
            lambda: store.publish(header(2), blob(2)),
        ):
            with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{server.port}"):
                call()
        with pytest.raises(StoreUnavailable), store.watch():
            pass
        server.start()
        assert store.publish(header(3), blob(3)) and store.fetch() == blob(3)


def test_a_full_redis_is_worth_trying_again_and_keeps_what_it_has(start):
    server = start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    with CheckpointStore.from_url(server.url) as store:
        assert store.publish(header(1), blob(1))
        with pytest.raises(StoreUnavailable):
            for version in range(2, 40):
                store.publish(header(version), blob(version, 500_000))
        assert store.fetch() == blob(store.head().version, store.head().bytes)


def test_a_key_of_somebody_else_is_left_alone(store):
    with redis.Redis.from_url(store.config.url) as client:
        pointer = f"niwaki:{{{store.name}}}:pointer"
        for value in (b"not json", b'{"version": "x"}', b"[]"):
            client.set(pointer, value)
            with pytest.raises(StoreRefused):
                store.head()
            with pytest.raises(StoreRefused):
                store.publish(header(1), blob(1))
            assert client.get(pointer) == value
        client.delete(pointer)
        client.lpush(pointer, "x")
        with pytest.raises(StoreRefused, match="WRONGTYPE"):
            store.publish(header(1), blob(1))
        client.delete(pointer)
