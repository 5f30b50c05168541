"""Clients of Redis: one server, Sentinel, or a Cluster, behind one typed interface.

In: a URL. Out: a client that answers in bytes, or an error that names the rule which the URL
breaks.
"""

import re
from typing import Any, Protocol, cast
from urllib.parse import unquote, urlsplit

import redis
from redis import exceptions as rex
from redis.backoff import ExponentialWithJitterBackoff
from redis.client import PubSub
from redis.cluster import RedisCluster
from redis.connection import PythonRespSerializer
from redis.retry import Retry
from redis.sentinel import Sentinel

from niwaki.pruning.errors import RuleError

_OF_A_CLUSTER = (rex.AskError, rex.TryAgainError, rex.ClusterDownError, rex.ClusterCrossSlotError)
"""Errors that only a node of a cluster answers; MOVED is an `AskError`, too."""


class Client(Protocol):
    """The commands of redis-py that the store uses, as a synchronous client answers them in
    bytes."""

    def set(self, key: str, value: bytes, *, ex: int) -> object: ...
    def get(self, key: str) -> bytes | None: ...
    def mget(self, keys: list[str]) -> list[bytes | None]: ...
    def hget(self, key: str, field: str) -> bytes | None: ...
    def hvals(self, key: str) -> list[bytes]: ...
    def eval(self, script: str, count: int, *arguments: object) -> int: ...
    def unlink(self, *keys: str) -> object: ...
    def pubsub(self, *, ignore_subscribe_messages: bool) -> PubSub: ...
    def close(self) -> None: ...


def address(url: str) -> str:
    """`url` without its credentials, fit for a log. Raises `RuleError` where it is no URL of a
    store."""
    parts = urlsplit(url)
    if parts.scheme not in (
        "redis",
        "rediss",
        "unix",
        "redis+sentinel",
        "redis+cluster",
        "rediss+cluster",
    ):
        schemes = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
        raise RuleError("url", f"must begin with {schemes}")
    if parts.scheme == "redis+sentinel" and (
        parts.query or not re.fullmatch(r"/[^/]+(/\d+)?", parts.path)
    ):
        raise RuleError("url", "for Sentinel must end with /service or /service/db")
    hosts = parts.netloc.rpartition("@")[2]
    if not all(
        re.fullmatch(r"([^\s:\[\]]*|\[[\da-fA-F:.]+\])(:\d{1,5})?", host)
        for host in hosts.split(",")
    ):
        rule = "must name host:port; special characters in a password are written %XX"
        raise RuleError("url", rule)
    return f"{parts.scheme}://{hosts}{parts.path}"


def cluster_address(url: str, error: Exception) -> str:
    """The `redis+cluster://` address to write in the place of `url`, where `error` is the answer of
    a node of a Redis Cluster to a client that knows no cluster; else empty."""
    parts = urlsplit(url)
    of_a_replica = isinstance(error, rex.MasterDownError)  # a kind of `ClusterDownError`
    told = isinstance(error, _OF_A_CLUSTER) and not of_a_replica
    if "+" in parts.scheme or not (told or "cluster mode" in str(error)):
        return ""
    hosts = parts.netloc.rpartition("@")[2] or "host:port"  # a socket has neither
    return f"{'rediss' if parts.scheme == 'rediss' else 'redis'}+cluster://{hosts}"


_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (rex.BusyLoadingError, "loading"),
    (rex.AuthenticationError, "auth"),
    (rex.AuthorizationError, "auth"),
    (rex.NoPermissionError, "auth"),
    (rex.TimeoutError, "timeout"),
    (rex.ConnectionError, "connection"),
    (rex.ReadOnlyError, "readonly"),
    (rex.OutOfMemoryError, "memory"),
)
"""Kinds by class, derived classes first."""
_WORDS = {
    **{"NOREPLICAS": "noreplicas", "MISCONF": "misconf", "NOAUTH": "auth", "WRONGPASS": "auth"},
    **{"OOM": "memory", "READONLY": "readonly", "LOADING": "loading", "MOVED": "moved"},
}
"""Kinds by the first word of an answer, of which the client makes no class of its own."""


def failure_kind(error: Exception) -> str:
    """The kind of a client's error, one of `serving.errors.STORE_KINDS`."""
    for kind_of_error, kind in _KINDS:
        if isinstance(error, kind_of_error):
            return kind
    if "unauthenticated" in str(error):  # a long value is cut off before it is asked for a password
        return "auth"
    word = str(error).lstrip("-").partition(" ")[0]
    return _WORDS.get(word, "other")


_COPIED_BYTES = 6_000
"""Longer values are written to the socket as they are. The packer of hiredis copies them, which
takes a third of the time to write a checkpoint."""


def _encode(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _packer() -> PythonRespSerializer:
    return PythonRespSerializer(_COPIED_BYTES, _encode)


def _options(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": 15,
        "protocol": 2,  # whose errors are the clearer ones
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), 3),
    }


def connect(url: str, timeout_s: float) -> Client:
    """A client of one server, or of the master that Sentinel names; it connects when first used.
    `timeout_s`: longest wait for a connection, or for an answer. Raises `RuleError` where redis-py
    does not understand `url`."""
    options = _options(timeout_s)
    if url.startswith("redis+sentinel:"):
        return _connect_by_sentinel(url, options)
    try:
        client = redis.Redis.from_url(url, **options, command_packer=_packer())
        client.connection_pool.make_connection()  # opens nothing, but reads the options
    except (TypeError, ValueError) as error:
        raise RuleError("url", f"must be understood by redis-py ({error})") from error
    return _synchronous(client)


def _synchronous(client: object) -> Client:
    """`client` with the types of its synchronous answers: redis-py's own types mix them with those
    of its asynchronous client, and with those of strings."""
    return cast(Client, client)


def connect_cluster(url: str, timeout_s: float) -> Client:
    """A client of a Redis Cluster, which asks it at once for its nodes."""
    plain = url.replace("+cluster", "", 1)
    return _synchronous(RedisCluster.from_url(plain, **_options(timeout_s)))


def _connect_by_sentinel(url: str, options: dict[str, Any]) -> Client:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    service, _, db = parts.path.strip("/").partition("/")
    places = [urlsplit(f"//{place}") for place in hosts.split(",")]
    sentinels = [(place.hostname or "127.0.0.1", place.port or 26379) for place in places]
    access = {
        "username": unquote(user) or None,
        "password": unquote(password) or None,
        "db": int(db or 0),
    }
    # Sentinel has no types in redis-py.
    sentinel = Sentinel(sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
    settings = {**options, **access, "command_packer": _packer()}
    master = sentinel.master_for(service, **settings)  # type: ignore[no-untyped-call]
    return _synchronous(master)
