"""Checkpoints in Redis: publish, fetch, watch. The Redis client is in `serving.redis_client`.

In: the bytes of a checkpoint and its header. Out: the same bytes, in another process. It refuses to
read what it moves.

Keys, for a model named NAME (the braces keep all of them in one slot of a Redis Cluster):

    niwaki:{NAME}:pointer          JSON of `Pointer`: the checkpoint to serve now
    niwaki:{NAME}:checkpoints      hash, version -> JSON of `Pointer`: every checkpoint that is kept
    niwaki:{NAME}:blob:UPLOAD:I    chunk I = 0, 1, ... of the bytes; UPLOAD is random, so
                                   no two writers share a key
    niwaki:{NAME}:published        channel; the message is the version that has just become
                                   the pointer

To publish: (1) write the chunks, with an expiry; (2) one script makes sure that the version is
greater than the present one, that a delta changes the present one and no other, and that every byte
has arrived; it makes the chunks permanent, swaps the pointer, drops what is no longer kept, and
tells subscribers. So readers never see a pointer before its bytes, nor a delta without what it
changes, an older trainer never replaces a newer one, and a writer that dies leaves nothing behind.

ACL rights, beside ~niwaki:{NAME}:* &niwaki:{NAME}:* +ping: a trainer needs +eval +get +set +unlink
+strlen +persist +hset +hdel +hvals +publish, a scorer +get +mget +hget +hvals +subscribe
+unsubscribe; in a Redis Cluster both also +cluster|slots.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import msgspec
from redis import exceptions as rex
from redis.client import PubSub

from niwaki.model.errors import CheckpointError
from niwaki.model.published.checkpoint import Header
from niwaki.pruning.errors import RuleError
from niwaki.serving.errors import StoreRefused, StoreUnavailable
from niwaki.serving.redis_client import (
    Client,
    address,
    cluster_address,
    connect,
    connect_cluster,
    failure_kind,
)

_UPLOAD_EXPIRES_S = 900
_PROBE_EXPIRES_S = 10
_MOST_CHUNKS = 2**20
_GREATEST_VERSION = 2**53 - 1  # numbers in Lua are doubles

_SWAP = """
-- KEYS: pointer, checkpoints, then the chunks.
-- ARGV: the new pointer, versions to keep, prefix of blobs, channel.
-- 1: published. 0: not newer than what is, or a delta to something else. -1: bytes are missing.
-- -2: so are bytes of what a delta goes back to.
local new = cjson.decode(ARGV[1])
local present = redis.call('GET', KEYS[1])
if present then
    present = cjson.decode(present)
    -- a second try: the first one's answer was lost on its way
    if present.upload == new.upload then return 1 end
    if present.version >= new.version then return 0 end
end
if new.parent ~= '' and not (present and present.upload == new.parent) then return 0 end

local bytes = 0
for i = 3, #KEYS do bytes = bytes + redis.call('STRLEN', KEYS[i]) end
if bytes ~= new.bytes then return -1 end

local others = {}
for _, text in ipairs(redis.call('HVALS', KEYS[2])) do others[#others + 1] = cjson.decode(text) end
table.sort(others, function(a, b) return a.version > b.version end)

if new.parent ~= '' then
    local parent = new.parent
    for _, other in ipairs(others) do
        if other.upload == parent then
            bytes = 0
            for i = 0, other.chunks - 1 do
                bytes = bytes + redis.call('STRLEN', ARGV[3] .. other.upload .. ':' .. i)
            end
            if bytes ~= other.bytes then return -2 end
            parent = other.parent
        end
    end
    if parent ~= '' then return -2 end
end

for i = 3, #KEYS do redis.call('PERSIST', KEYS[i]) end
redis.call('SET', KEYS[1], ARGV[1])

local places, oldest = tonumber(ARGV[2]) - 1, new.base
for _, other in ipairs(others) do
    if other.version < new.version and places > 0 then
        places, oldest = places - 1, math.min(oldest, other.base)
    end
end
for _, other in ipairs(others) do
    -- one that is not older is left from before somebody deleted the pointer
    if other.version < oldest or other.version >= new.version then
        for i = 0, other.chunks - 1 do redis.call('UNLINK', ARGV[3] .. other.upload .. ':' .. i) end
        redis.call('HDEL', KEYS[2], string.format('%.0f', other.version))
    end
end
redis.call('HSET', KEYS[2], string.format('%.0f', new.version), ARGV[1])
redis.call('PUBLISH', ARGV[4], string.format('%.0f', new.version))
return 1
"""

# Redis will answer again without anybody's help: it is starting, failing over, busy, or out of
# memory for now.
_PASSING = (
    rex.ConnectionError,
    rex.TimeoutError,
    rex.ReadOnlyError,
    rex.ClusterDownError,
    rex.TryAgainError,
    rex.OutOfMemoryError,
    rex.RedisClusterException,
)
_REFUSING = (
    rex.AuthenticationError,
    rex.AuthorizationError,
)  # the client derives these from ConnectionError


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The Redis to which checkpoints are published (the `[redis]` section)."""

    url: str = "redis://127.0.0.1:6379/0"
    """redis://[user:password@]host:port/db, rediss:// for TLS, unix:///path/to.sock?db=0, or
    redis+sentinel://[user:password@]host:port[,host:port...]/service[/db], or redis+cluster://
    (rediss+cluster:// for TLS) and [user:password@]host:port of any node of a Redis Cluster.
    Options of redis-py may follow after `?`."""
    name: str = "niwaki"
    """The model's name, part of every key: letters, digits, `_`, `-` and `.`."""
    keep_versions: int = 5
    """Checkpoints kept, the present one included, >= 1. What a kept one is based on is kept too."""
    chunk_bytes: int = 64 * 2**20
    """Longest value written under one key, 1 .. 512 MiB."""
    timeout_s: float = 5.0
    """Longest wait for a connection, or for an answer, > 0."""
    poll_interval_s: float = 1.0
    """A scorer looks at the pointer this often even if it is told nothing, > 0."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", self.name):
            raise RuleError("name", "must be 1 to 100 letters, digits, '_', '-' or '.'", self.name)
        if self.keep_versions < 1:
            raise RuleError("keep_versions", "must be at least 1", self.keep_versions)
        if not 1 <= self.chunk_bytes <= 512 * 2**20:
            raise RuleError("chunk_bytes", f"must be in 1 .. {512 * 2**20}", self.chunk_bytes)
        for name in ("timeout_s", "poll_interval_s"):
            if not getattr(self, name) > 0:
                raise RuleError(name, "must be greater than 0", getattr(self, name))
        address(self.url)


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """One published checkpoint: which it is, and where its bytes are."""

    version: int
    kind: str
    """"full": stands alone. "delta": changes to the checkpoint `parent`."""
    base: int
    """Version of the full checkpoint that it needs; its own when it is one."""
    upload: str
    """Names the keys of its chunks."""
    parent: str = ""
    """`upload` of the checkpoint that a delta changes."""
    chunks: int
    bytes: int
    created_s: float
    """When the trainer made it, seconds since the epoch."""

    def __post_init__(self) -> None:
        if not 0 < self.chunks <= max(self.bytes, 1):
            raise RuleError("chunks", "must be 1 to one for each byte", self.chunks)
        if self.chunks > _MOST_CHUNKS:
            raise RuleError("chunks", f"must be at most {_MOST_CHUNKS}", self.chunks)


class CheckpointStore:
    """The published checkpoints of one model. Threads may share it."""

    def __init__(self, config: StoreConfig):
        self.config = config
        self.name = config.name
        self.address = address(config.url)
        prefix = f"niwaki:{{{config.name}}}"
        self._pointer, self._checkpoints = f"{prefix}:pointer", f"{prefix}:checkpoints"
        self._blob, self._channel = f"{prefix}:blob:", f"{prefix}:published"
        self._connected: Client | None = (
            None if "+cluster:" in config.url else connect(config.url, config.timeout_s)
        )
        self._published: Pointer | None = None
        """The checkpoint that this store published last."""

    @classmethod
    def from_url(cls, url: str, name: str = "niwaki") -> Self:
        """A store with the defaults of `StoreConfig`. Connects when first used."""
        return cls(StoreConfig(url=url, name=name))

    def publish(self, header: Header, data: bytes) -> bool:
        """Make `data` the checkpoint to serve. False: what is published is not older than
        `header.version`, or a delta does not change what we published last; nothing has changed
        then.

        After `StoreUnavailable` either nothing has changed or, if only the answer was lost, the
        whole checkpoint is published.
        """
        if not 1 <= header.version <= _GREATEST_VERSION:
            raise RuleError("version", f"must be in 1 .. {_GREATEST_VERSION}", header.version)
        before, self._published = self._published, None
        if header.base and not (
            before and before.version == header.parent and before.base == header.base
        ):
            return False
        step = self.config.chunk_bytes
        # A slice is a copy, and the client copies a view of bytes once more.
        chunks = [data[at : at + step] for at in range(0, max(len(data), 1), step)]
        pointer = Pointer(
            version=header.version,
            kind="delta" if header.base else "full",
            base=header.base or header.version,
            upload=secrets.token_hex(8),
            parent=before.upload if before and header.base else "",
            chunks=len(chunks),
            bytes=len(data),
            created_s=header.created_s,
        )
        keys = self._keys(pointer)
        with self._translated():
            for key, chunk in zip(keys, chunks, strict=True):
                self._client.set(key, chunk, ex=_UPLOAD_EXPIRES_S)
            names = [self._pointer, self._checkpoints, *keys]
            arguments = [
                msgspec.json.encode(pointer),
                self.config.keep_versions,
                self._blob,
                self._channel,
            ]
            answer = self._client.eval(_SWAP, len(names), *names, *arguments)
            if answer != 1:
                self._client.unlink(*keys)
        if answer < 0:
            what = "was lost in Redis before it was whole"
            if answer == -2:
                what = "changes one of which Redis has lost bytes; does it evict keys?"
            text = f"{self.address}: version {header.version} {what}"
            raise StoreUnavailable(text, "evicted")
        self._published = pointer if answer == 1 else None
        return answer == 1

    def probe(self) -> Pointer | None:
        """As `head`, once the store has taken a write, too."""
        with self._translated():
            self._client.set(f"{self._blob}probe", b"", ex=_PROBE_EXPIRES_S)
        return self.head()

    def head(self) -> Pointer | None:
        """The checkpoint to serve now; None before the first."""
        with self._translated():
            text = self._client.get(self._pointer)
        return self._decode(text) if text is not None else None

    def versions(self) -> list[Pointer]:
        """Every checkpoint that is kept, oldest first."""
        with self._translated():
            kept = self._client.hvals(self._checkpoints)
        return sorted((self._decode(text) for text in kept), key=lambda pointer: pointer.version)

    def path(self, pointer: Pointer, held: str = "") -> list[Pointer]:
        """The checkpoints to fetch for `pointer`, in order: a full one and its deltas, or only
        those that come after the one whose `upload` is `held`. Empty where one of them is no
        longer kept."""
        path = [pointer]
        kept: dict[str, Pointer] = {}
        while path[-1].kind == "delta" and path[-1].parent != held:
            kept = kept or {other.upload: other for other in self.versions()}
            before = kept.get(path[-1].parent)
            if before is None:
                return []
            path.append(before)
        return path[::-1]

    def fetch(self, pointer: Pointer | None = None) -> bytes | None:
        """The bytes of the checkpoint to serve now, or of `pointer`; None where there is none, or
        it is no longer kept.

        Raises `CheckpointError` where Redis lost bytes that it still promises.
        """
        wanted = pointer or self.head()
        while wanted is not None:
            with self._translated():
                found = self._client.mget(self._keys(wanted))
                chunks = [chunk for chunk in found if chunk is not None]
                if len(chunks) == len(found) and sum(map(len, chunks)) == wanted.bytes:
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
                kept = self._client.hget(self._checkpoints, str(wanted.version))
            if kept is not None and self._decode(kept) == wanted:
                rule = f"are missing from {self.address}: {self._lack(wanted, found)}"
                raise CheckpointError(f"bytes of version {wanted.version}", rule)
            # The checkpoint was dropped meanwhile: the pointer has moved on.
            wanted = None if pointer else self.head()
        return None

    def _lack(self, pointer: Pointer, found: list[bytes | None]) -> str:
        """The keys of a checkpoint that are not in the store as they were written, in words."""
        missing = [k for k, chunk in zip(self._keys(pointer), found, strict=True) if chunk is None]
        if not missing:
            bytes_there = sum(len(chunk or b"") for chunk in found)
            return f"the keys from {self._keys(pointer)[0]} on hold {bytes_there} of them"
        others = f" and {len(missing) - 1} more keys" if missing[1:] else ""
        return f"there is no key {missing[0]}{others}"

    @contextmanager
    def watch(self) -> Iterator["Watch"]:
        """Subscribe to publications. Those before are not told: look with `head` once inside."""
        with (
            self._translated(),
            self._client.pubsub(ignore_subscribe_messages=True) as subscription,
        ):
            subscription.subscribe(self._channel)
            subscription.get_message(ignore_subscribe_messages=False, timeout=self.config.timeout_s)
            yield Watch(subscription)

    def close(self) -> None:
        """Drop the connections."""
        if self._connected:
            self._connected.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _client(self) -> Client:
        if self._connected is None:  # the client of a cluster asks it at once for its nodes
            self._connected = connect_cluster(self.config.url, self.config.timeout_s)
        return self._connected

    def _keys(self, pointer: Pointer) -> list[str]:
        return [f"{self._blob}{pointer.upload}:{i}" for i in range(pointer.chunks)]

    def _decode(self, text: bytes) -> Pointer:
        try:
            return msgspec.json.decode(text, type=Pointer)
        except msgspec.DecodeError as error:
            raise StoreRefused(
                f"{self.address}: {self._pointer} is not niwaki's: {error}"
            ) from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The one boundary at which the client's errors become ours."""
        try:
            yield
        except (rex.RedisError, rex.RedisClusterException) as error:
            text = f"{self.address}: {error}"
            cluster = cluster_address(self.config.url, error)
            if cluster:
                rule = f"is a node of a Redis Cluster, so redis.url must be {cluster}"
                raise StoreRefused(f"{self.address}: {rule}", "moved") from error
            kind = failure_kind(error)
            if kind in ("noreplicas", "misconf") or (
                isinstance(error, _PASSING) and not isinstance(error, _REFUSING)
            ):
                raise StoreUnavailable(text, kind) from error
            raise StoreRefused(text, kind) from error


class Watch:
    """A subscription to publications."""

    def __init__(self, subscription: PubSub):
        self._subscription = subscription

    def wait(self, timeout_s: float) -> bool:
        """True as soon as a publication is told, False after `timeout_s` without one."""
        return self._subscription.get_message(timeout=timeout_s) is not None
