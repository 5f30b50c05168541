"""Fixtures for tests of the store: Redis servers of each version that is here, a model of one's
own, short blobs."""

import secrets
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import msgspec
import pytest
import redis

from niwaki.serving.store import CheckpointStore
from tests.support.redis_server import RedisServer, binaries


@pytest.fixture(
    scope="module", params=list(binaries().items()), ids=lambda item: f"redis-{item[0]}"
)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(binary=request.param[1]) as server:
        yield server


@pytest.fixture
def start() -> Iterator[Callable[..., RedisServer]]:
    """Starts a server of one's own, with any options."""
    servers: list[RedisServer] = []

    def factory(*options: str, **arguments) -> RedisServer:
        servers.append(RedisServer(*options, **arguments))
        return servers[-1]

    yield factory
    for server in servers:
        server.kill()


@pytest.fixture
def store(server: RedisServer) -> Iterator[CheckpointStore]:
    """A model of its own in a shared server."""
    with CheckpointStore.from_url(server.url, f"model-{secrets.token_hex(4)}") as store:
        yield store


def header(version: int, base: int = 0) -> SimpleNamespace:
    """All that the store reads of a checkpoint's header."""
    return SimpleNamespace(
        version=version, parent=version - 1, base=base, created_s=1_700_000_000.0 + version
    )


def blob(version: int, size: int = 1000) -> bytes:
    return version.to_bytes(8, "big") * (size // 8)


def keys(store: CheckpointStore) -> list[str]:
    with redis.Redis.from_url(store.config.url) as client:
        return sorted(key.decode() for key in client.scan_iter(f"niwaki:{{{store.name}}}:*"))


def with_config(store: CheckpointStore, **changes) -> CheckpointStore:
    return CheckpointStore(msgspec.structs.replace(store.config, **changes))
