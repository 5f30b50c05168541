"""Messages in Confluent's wire format, read with the schemas of a schema registry.

Step before the events' decoder. In: message values; one that begins with a byte 0 and the id of a
schema (4 bytes, big-endian) is Avro, Protobuf, or JSON with a schema, and any other goes on as it
is. Out: what the events' decoder makes of them as JSON. A schema is fetched once. While the
registry does not answer, messages wait: nothing is rejected for its absence.
"""

import logging
import ssl
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import BrokerError, ConfigError, EventError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.decoder import (
    CONFLUENT_BYTES,
    Decoded,
    EventDecoder,
    confluent_id,
)
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.connection import KafkaConfig
from niwaki.stream.kafka.schema_formats import ToJson, avro_to_json, protobuf_to_json

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("niwaki.kafka")
# The client logs every request; this module logs what a person must know. An explicit level of the
# client's logger is kept.
if not logging.getLogger("httpx").level:
    logging.getLogger("httpx").setLevel(logging.WARNING)

_PACKAGES = {"httpx": "httpx", "fastavro": "fastavro", "google.protobuf": "protobuf"}
_TIMEOUT_S = 5.0
_BACKOFF_S = (0.5, 8.0)
_PAUSE_S = 0.1


class MessageDecoder(Protocol):
    """A decoder of the values of messages."""

    def decode(self, values: Sequence[bytes | None]) -> Decoded | None:
        """The events of the messages. None: not yet; call again with the same values."""


def new_decoder(config: KafkaConfig, schema: Schema, events: EventsConfig) -> MessageDecoder:
    """The decoder of a topic's messages, with the registry that `config` names, if any."""
    decoder = EventDecoder(schema, events, max_event_bytes=config.max_event_bytes)
    return RegistryDecoder(config, decoder) if config.schema_registry_url else decoder


def check_packages(config: KafkaConfig) -> None:
    """Raise `ConfigError` if `config` names a registry and a package that reading it needs is
    missing."""
    for module, package in _PACKAGES.items():
        if config.schema_registry_url and not _installed(module):
            rule = f"needs the package {package}: pip install 'niwaki[registry]'"
            raise ConfigError("kafka.schema_registry_url", rule)


class Unwrapped(NamedTuple):
    """Messages without their wire format."""

    values: list[bytes | None]
    """JSON, or what was in no such format."""
    places: list[int]
    """The index of each one's message."""
    rejects: list[Reject]
    """Messages that could not be unwrapped."""


class RegistryDecoder:
    """A `MessageDecoder` of messages in Confluent's wire format and of all others."""

    def __init__(self, config: KafkaConfig, decoder: EventDecoder):
        check_packages(config)
        self._decoder = decoder
        self._registry = _Registry(config)
        self._readers: dict[int, ToJson | EventError] = {}

    def decode(self, values: Sequence[bytes | None]) -> Decoded | None:
        """The events of the messages. None while the registry does not answer, after a short wait:
        call again with the same values. Raises `BrokerError` if it refuses to answer."""
        unwrapped = self.unwrap(values)
        if unwrapped is None:
            return None
        decoded = self._decoder.decode(unwrapped.values)
        places = unwrapped.places
        rejects = [one._replace(position=places[one.position]) for one in decoded.rejects]
        message_B = np.array(places, np.int64)[decoded.message_B]
        rejects = sorted(unwrapped.rejects + rejects)
        return decoded._replace(message_B=message_B, rejects=rejects)

    def unwrap(self, values: Sequence[bytes | None]) -> Unwrapped | None:
        """The messages as JSON; see `decode`."""
        ids = [self._schema_id(value) for value in values]
        readers = self._readers_of(ids)
        if readers is None:
            return None
        plain: list[bytes | None] = []
        places: list[int] = []
        rejects: list[Reject] = []
        for at, (value, schema_id) in enumerate(zip(values, ids, strict=True)):
            if value is not None and schema_id is not None:
                try:
                    value = _read(value, schema_id, readers[schema_id])
                except EventError as error:
                    rejects.append(Reject.of(at, error))
                    continue
            plain.append(value)
            places.append(at)
        return Unwrapped(plain, places, rejects)

    def _schema_id(self, value: bytes | None) -> int | None:
        """The id of a message's schema; None: it has none, or is too long to be looked at."""
        if value is None or len(value) > self._decoder.max_event_bytes:
            return None
        return confluent_id(value)

    def _readers_of(self, ids: Sequence[int | None]) -> dict[int, ToJson | EventError] | None:
        """Readers of all `ids`, or the reason why there is none; None if some can't be fetched now.

        An id that the registry does not know is asked for again with the next messages.
        """
        wanted = {one for one in ids if one is not None}
        unknown: dict[int, ToJson | EventError] = {}
        try:
            for one in sorted(wanted - self._readers.keys()):
                try:
                    reader = self._registry.reader(one)
                except _Unknown as error:
                    unknown[one] = EventError("registry", "value", str(error))
                else:
                    self._readers[one] = reader
        except _Away:
            return None
        return self._readers | unknown if unknown else self._readers


def _read(value: bytes, schema_id: int, reader: ToJson | EventError) -> bytes:
    if isinstance(reader, EventError):
        raise reader
    try:
        return reader(value[CONFLUENT_BYTES:])
    except Exception as error:  # of a library that reads bytes of anybody's
        why = f"{type(error).__name__}: {error}"
        rule = f"must fit schema {schema_id} of the registry ({why})"
        raise EventError("registry", "value", rule, value[:80]) from error


class _Away(Exception):
    """The registry does not answer now."""


class _Unknown(Exception):
    """The registry has no such schema."""


class _Reference(msgspec.Struct):
    name: str
    subject: str
    version: int


class _Answer(msgspec.Struct):
    """The parts of the registry's answers that are read here."""

    schema: str | None = None
    kind: str | None = msgspec.field(default=None, name="schemaType")
    """AVRO where it is absent."""
    references: list[_Reference] | None = None
    id: int = 0
    error_code: int = 0


class _Registry:
    """A schema registry, as far as it answers."""

    def __init__(self, config: KafkaConfig):
        self._url = config.schema_registry_url.rstrip("/")
        self._login = (config.schema_registry_username, config.schema_registry_password)
        self._trusted = ssl.create_default_context()
        if config.ssl_cafile:
            self._trusted.load_verify_locations(config.ssl_cafile)
        self._lost_s: float | None = None
        self._retry_s = self._backoff_s = 0.0

    def reader(self, schema_id: int) -> ToJson | EventError:
        """The reader of a schema, or the reason why it can't be read.

        Raises `_Away`, after a short wait, while the registry does not answer; `_Unknown`; and
        `BrokerError` if it refuses.
        """
        import httpx

        if (wait_s := self._retry_s - time.monotonic()) > 0:
            time.sleep(min(wait_s, _PAUSE_S))
            if wait_s > _PAUSE_S:
                raise _Away
        login = self._login if any(self._login) else None
        try:
            with httpx.Client(verify=self._trusted, auth=login, timeout=_TIMEOUT_S) as client:
                reader = self._fetch(client, schema_id)
        except (httpx.RequestError, _Away) as error:
            self._lose(str(error) or type(error).__name__)
            raise _Away from error
        if self._lost_s is not None:
            log.info("the schema registry is back after %.1f s", time.monotonic() - self._lost_s)
        self._lost_s, self._backoff_s = None, 0.0
        return reader

    def _lose(self, why: str) -> None:
        now_s = time.monotonic()
        if self._lost_s is None:
            self._lost_s = now_s
            log.warning(
                "no schema registry answers at %s (%s); holding messages and trying again",
                self._url,
                why,
            )
        self._backoff_s = min(max(2 * self._backoff_s, _BACKOFF_S[0]), _BACKOFF_S[1])
        self._retry_s = now_s + self._backoff_s

    def _fetch(self, client: "httpx.Client", schema_id: int) -> ToJson | EventError:
        path = f"/schemas/ids/{schema_id}"
        found = self._get(client, path)
        kind = found.kind or "AVRO"
        if kind == "JSON":
            return bytes
        if kind == "PROTOBUF":
            found = self._get(client, path, format="serialized")
        others: dict[str, str] = {}
        self._add_references(client, found, kind, others, ())
        try:
            if kind == "AVRO":
                return avro_to_json(found.schema or "", list(others.items()))
            if kind == "PROTOBUF":
                return protobuf_to_json(found.schema or "", list(others.items()))
            why = f"its type {kind} is none of AVRO, JSON and PROTOBUF"
        except Exception as error:  # of a library that reads a schema of anybody's
            why = f"{type(error).__name__}: {error}"
        log.warning("schema %d of the registry can't be used: %s", schema_id, why)
        rule = f"must have a schema that can be used, unlike {schema_id} of the registry ({why})"
        return EventError("registry", "value", rule)

    def _add_references(
        self,
        client: "httpx.Client",
        schema: _Answer,
        kind: str,
        others: dict[str, str],
        within: tuple[str, ...],
    ) -> None:
        """Put the schemas that `schema` refers to into `others`, by name, each after its own.
        `within`: names of those that are being put there."""
        for one in schema.references or []:
            if one.name in others or one.name in within:
                continue
            subject = quote(one.subject, safe="")
            found = self._get(client, f"/subjects/{subject}/versions/{one.version}")
            if kind == "PROTOBUF":  # in this form by id only, in older registries
                found = self._get(client, f"/schemas/ids/{found.id}", format="serialized")
            self._add_references(client, found, kind, others, (*within, one.name))
            others[one.name] = found.schema or ""

    def _get(self, client: "httpx.Client", path: str, **parameters: Any) -> _Answer:
        answer = client.get(self._url + path, params=parameters)
        status = answer.status_code
        if status in (401, 403):
            what = "kafka.schema_registry_username and kafka.schema_registry_password"
            raise BrokerError(
                f"the schema registry at {self._url} refuses access ({status}): check {what}"
            )
        if status == 429 or status >= 500:
            raise _Away(f"status {status}")
        try:
            found = msgspec.json.decode(answer.content, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = _Answer()
        if status == 404 and found.error_code // 100 == 404:  # 404 alone: there is no such path
            raise _Unknown(f"must have a schema that the registry knows; it answers 404 to {path}")
        if status != 200 or found.schema is None:
            raise BrokerError(
                f"{self._url} answers {status} to {path}, unlike a schema registry:"
                " check kafka.schema_registry_url"
            )
        return found


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # `google` itself is missing
        return False
