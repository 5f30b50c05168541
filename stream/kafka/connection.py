"""Connections to Kafka: settings, clients that wait for a broker, topics, committed offsets.

Beneath `source`, which reads, and `sink`, which writes. Each function succeeds or raises one of
this room's errors; the client's own errors leave these three modules from `connect_once` only.
"""

import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NoError,
    RetriableError,
    TopicAlreadyExistsError,
)
from kafka.structs import OffsetAndMetadata

from niwaki.pruning.errors import RuleError, check_rules, nearest
from niwaki.stream.errors import BrokerError, ConfigError
from niwaki.stream.events.config import MAX_EVENT_BYTES

log = logging.getLogger("niwaki.kafka")
# The client logs every failed attempt at length; this module logs one line instead. An explicit
# level of the client's logger is kept.
if not logging.getLogger("kafka").level:
    logging.getLogger("kafka").setLevel(logging.CRITICAL)

MAX_MESSAGE_BYTES = 8 * 2**20
"""The largest message that a topic made by `ensure_topic` takes, after compression."""
REQUEST_MS = 10_000
_ATTEMPT_S = 3.0
_PAUSE_S = 0.3
_COMMIT_S = 5.0
_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:,\[\]]+):\d{1,5}")
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_Client = TypeVar("_Client", KafkaConsumer, KafkaProducer, KafkaAdminClient)


class KafkaConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the `[kafka]` section: brokers, topics, and the way that events are read."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """host:port of one or more brokers, separated by commas."""
    topic: str = "events"
    """Topic that carries the events."""
    create_topics: bool = False
    """True: a trainer makes the topic where there is none. False: it waits for it, at most
    `connect_timeout_s`. It always makes those that it writes: dead letters and drifts."""
    dead_letter_topic: str = ""
    """Topic for messages that cannot be learned from; "" = the topic's name + ".dead-letters"."""
    group_id: str = "niwaki"
    """Consumer group under which offsets are committed, for lag dashboards only; "" = they are
    not."""
    start: Literal["earliest", "latest"] = "earliest"
    """Position in each partition at which a learner without a snapshot begins."""
    isolation_level: Literal["read_committed", "read_uncommitted"] = "read_committed"
    """Events of transactions: those of committed ones only, or all, aborted ones too."""
    rank: int = 0
    """This trainer's number among `world_size`: partition p is ours when p % world_size == rank."""
    world_size: int = 1
    """Number of trainers that share the topic's partitions, >= 1."""
    reader: Literal["process", "inline"] = "process"
    """Place where messages are polled and decoded: a process beside the learner, or the learner's
    own between its batches."""
    max_poll_messages: int = 8192
    """Messages taken at once, >= 1."""
    max_event_bytes: int = MAX_EVENT_BYTES
    """A message that needs more bytes for an event is dead-lettered, >= 1."""
    max_rejected_ratio: float = 0.5
    """Share of the last 10,000 events that may be rejected, (0, 1]; with more, the trainer saves
    and stops. 1: it never does."""
    connect_timeout_s: float = 30
    """Longest wait for a first answer, seconds, > 0."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = ""
    sasl_username: str = ""
    sasl_password: str = ""
    """Better given as NIWAKI_KAFKA__SASL_PASSWORD than in a file."""
    ssl_cafile: str = ""
    """PEM file with the authorities to trust; "" = those of the system."""
    ssl_certfile: str = ""
    """PEM file with our own certificate, where brokers ask for one."""
    ssl_keyfile: str = ""
    """PEM file with its key."""
    schema_registry_url: str = ""
    """http:// or https:// URL of the schema registry of messages in Confluent's wire format (Avro,
    Protobuf, JSON Schema); "": there are none. `ssl_cafile` is trusted here, too."""
    schema_registry_username: str = ""
    """Name, or API key, for basic authentication there; "": none."""
    schema_registry_password: str = ""
    """Better given as NIWAKI_KAFKA__SCHEMA_REGISTRY_PASSWORD than in a file."""

    def __post_init__(self) -> None:
        servers = [server.strip() for server in self.bootstrap_servers.split(",")]
        sasl = self.security_protocol.startswith("SASL")
        credentials = all((self.sasl_mechanism, self.sasl_username, self.sasl_password))
        rules = {
            "bootstrap_servers": (
                all(map(_SERVER.fullmatch, servers)),
                "must be host:port[,host:port...]",
            ),
            "topic": (
                _TOPIC.fullmatch(self.topic),
                "must be 1 to 249 letters, digits, '.', '_' or '-'",
            ),
            "dead_letter_topic": (
                _TOPIC.fullmatch(self.dead_letters) and self.dead_letters != self.topic,
                "must be the name of another topic",
            ),
            "world_size": (self.world_size >= 1, "must be >= 1"),
            "rank": (0 <= self.rank < self.world_size, f"must be in 0..{self.world_size - 1}"),
            "max_poll_messages": (self.max_poll_messages >= 1, "must be >= 1"),
            "max_event_bytes": (self.max_event_bytes >= 1, "must be >= 1"),
            "max_rejected_ratio": (0 < self.max_rejected_ratio <= 1, "must be in (0, 1]"),
            "connect_timeout_s": (0 < self.connect_timeout_s < 1e6, "must be > 0"),
            "sasl_mechanism": (
                credentials or not sasl,
                f"{self.security_protocol} needs it, username and password",
            ),
        }
        check_rules(self, rules)
        if self.schema_registry_url and not _is_registry(self.schema_registry_url):
            # Without the value: it may hold a password.
            rule = "must be http[s]://host[:port][/path]; a login has settings of its own"
            raise RuleError("schema_registry_url", rule)
        if self.schema_registry_password and not self.schema_registry_username:
            raise RuleError("schema_registry_username", "must be set with schema_registry_password")

    @property
    def dead_letters(self) -> str:
        """The topic for dead letters."""
        return self.dead_letter_topic or f"{self.topic}.dead-letters"

    def __repr__(self) -> str:
        shown = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if not name.endswith("password")
        }
        return f"KafkaConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Record(NamedTuple):
    """One message as Kafka holds it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """Milliseconds since the epoch, as the producer or the broker set it; -1 = none."""
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()

    @property
    def place(self) -> str:
        """The place of the message as it is shown."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


def is_topic(name: str) -> bool:
    """True if `name` is a valid name of a topic."""
    return bool(_TOPIC.fullmatch(name))


def _is_registry(url: str) -> bool:
    """True for the URL of a server that is spoken to over HTTP, without a login or a query."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isprintable() and not any(mark in url for mark in "@?# \\")
    return bool(plain and parts.scheme in ("http", "https") and parts.hostname and port != 0)


def connect(kind: type[_Client], config: KafkaConfig, **settings: Any) -> _Client:
    """A client that a broker has answered. Logs a line if it must wait; raises `BrokerError` after
    `connect_timeout_s`."""
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if (path := getattr(config, name)) and not os.access(path, os.R_OK):
            raise ConfigError(f"kafka.{name}", "must be a file that can be read", path)
    deadline_s, logged = time.monotonic() + config.connect_timeout_s, False
    where = f"{config.bootstrap_servers} over {config.security_protocol}"
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            return connect_once(kind, config, min(_ATTEMPT_S, max(left_s, 0.001)), **settings)
        except KafkaError as error:
            reason = str(error)
            if isinstance(
                error, KafkaTimeoutError
            ):  # `_knock` got through, and the client keeps its reasons to itself
                reason = (
                    "it takes connections; is it Kafka, and are protocol and credentials right?"
                )
            if time.monotonic() >= deadline_s:
                within = f"within {config.connect_timeout_s:g} s"
                raise BrokerError(f"no Kafka answered at {where} {within}: {reason}") from error
            if not logged:
                log.warning(
                    "no Kafka answers at %s (%s); waiting for up to %.0f s", where, reason, left_s
                )
                logged = True
        time.sleep(max(0, min(_PAUSE_S, deadline_s - time.monotonic())))


def connect_once(
    kind: type[_Client], config: KafkaConfig, timeout_s: float, **settings: Any
) -> _Client:
    """One attempt; raises the client's own error."""
    servers = [server.strip() for server in config.bootstrap_servers.split(",")]
    _knock(servers, timeout_s)
    opened = []

    def network(**arguments: Any) -> Any:
        opened.append(kind.DEFAULT_CONFIG["kafka_client"](**arguments))
        return opened[-1]

    security = {
        "security_protocol": config.security_protocol,
        "sasl_mechanism": config.sasl_mechanism or None,
        "sasl_plain_username": config.sasl_username or None,
        "sasl_plain_password": config.sasl_password or None,
        "ssl_cafile": config.ssl_cafile or None,
        "ssl_certfile": config.ssl_certfile or None,
        "ssl_keyfile": config.ssl_keyfile or None,
    }
    try:
        return kind(
            bootstrap_servers=servers,
            bootstrap_timeout_ms=int(timeout_s * 1000),
            reconnect_backoff_max_ms=2_000,
            kafka_client=network,
            **security,
            **settings,
        )
    except BaseException:
        for client in opened:  # a client that fails to start leaves its thread and sockets behind
            client.close()
        raise


def _knock(servers: list[str], timeout_s: float) -> None:
    """Raise unless a server takes connections; the client itself would give no reason and leave
    sockets open."""
    reason = OSError("there is none")
    for server in servers:
        host, _, port = server.rpartition(":")
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
        except OSError as error:
            reason = error
    raise KafkaConnectionError(reason.strerror or str(reason)) from reason


@contextmanager
def translated_kafka_errors(what: str) -> Iterator[None]:
    """Turn the client's errors into `BrokerError`: \"{what}: {error}\"."""
    try:
        yield
    except KafkaError as error:
        raise BrokerError(f"{what}: {error}") from error


def partitions_of(config: KafkaConfig, name: str, wait_s: float = 0) -> set[int]:
    """The topic's partitions. Raises `BrokerError` if it does not exist and is not made within
    `wait_s`, with the name of the nearest one that does.

    Does not make it, unlike a consumer or producer that asks about it (the client does not pass its
    own setting on).
    """
    deadline_s = time.monotonic() + wait_s
    with (
        closing(connect(KafkaAdminClient, config)) as admin,
        translated_kafka_errors(f"no partitions of {name}"),
    ):
        waiting = False
        while name not in (topics := admin.list_topics()):
            missing = f"Kafka at {config.bootstrap_servers} has no topic {name}"
            meant = nearest(name, (topic for topic in topics if not topic.startswith("__")))
            hint = f"; did you mean {meant}?" if meant else ""
            if time.monotonic() >= deadline_s:
                raise BrokerError(missing + hint)
            if not waiting:
                log.warning("%s; waiting for up to %.0f s for it%s", missing, wait_s, hint)
                waiting = True
            time.sleep(_PAUSE_S)
        (topic,) = admin.describe_topics([name])
    return {partition["partition_index"] for partition in topic["partitions"]}


def ensure_topic(
    config: KafkaConfig,
    name: str,
    partitions: int = 1,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> None:
    """Make the topic unless it exists. One that exists is left as it is."""
    settings = {
        "num_partitions": partitions,
        "configs": {"max.message.bytes": str(max_message_bytes)},
    }
    with (
        closing(connect(KafkaAdminClient, config)) as admin,
        translated_kafka_errors(f"topic {name} can't be made"),
    ):
        if name in admin.list_topics():
            return
        try:
            admin.create_topics({name: settings}, timeout_ms=REQUEST_MS)
            log.info("made topic %s with %d partition(s)", name, partitions)
        except TopicAlreadyExistsError:
            pass  # somebody was faster
        admin.wait_for_topics([name])


class Committer:
    """Commits offsets from a thread of its own, the newest if several wait: no answer is worth
    waiting for."""

    def __init__(self, config: KafkaConfig):
        self._config = config
        self._newest: deque[dict[TopicPartition, OffsetAndMetadata]] = deque(maxlen=1)
        self._thread = ThreadPoolExecutor(1, "niwaki-commit")
        self._admin: KafkaAdminClient | None = None
        self._failed = False

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Queue a commit of the offset of each partition's next message. A failed commit is logged
        and not repeated."""
        topic = self._config.topic
        self._newest.append(
            {TopicPartition(topic, p): OffsetAndMetadata(n, "", -1) for p, n in offsets.items()}
        )
        self._thread.submit(self._send)

    def close(self) -> None:
        """Send the commit that waits, and disconnect."""
        self._thread.shutdown()
        if self._admin:
            self._admin.close()

    def _send(self) -> None:
        if not self._newest:
            return
        offsets, group = self._newest.pop(), self._config.group_id
        deadline_s = time.monotonic() + _COMMIT_S
        while True:
            try:
                if self._admin is None:
                    self._admin = connect_once(
                        KafkaAdminClient, self._config, _ATTEMPT_S, request_timeout_ms=5_000
                    )
                for at, error in self._admin.alter_group_offsets(group, offsets).items():
                    if error is not NoError:
                        raise error(f"{at.topic}[{at.partition}]")
                self._failed = False
                return
            except RetriableError as error:
                if time.monotonic() > deadline_s or self._newest:
                    return self._give_up(error)
                # A cluster's first commit waits until the cluster has made its topic for offsets.
                time.sleep(_PAUSE_S)
            except KafkaError as error:
                return self._give_up(error)

    def _give_up(self, error: KafkaError) -> None:
        if not self._failed:
            group = self._config.group_id
            log.warning(
                "offsets of group %s are not committed, so lag dashboards stand still: %s",
                group,
                str(error),
            )
        self._failed = True
