"""A look at recorded events or a topic: what its columns are, what they would be used as, and what
would be left out.

In: files or a topic, and the roles that a user asks for. Out: a report of the columns, notes, and
the account of the first events as they would be read.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import NiwakiError
from niwaki.stream.config import Config
from niwaki.stream.errors import BrokerError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.rejects import Tally
from niwaki.stream.kafka.connection import KafkaConfig, Record
from niwaki.stream.kafka.registry import RegistryDecoder, new_decoder
from niwaki.stream.kafka.source import EventSource
from niwaki.stream.recordings.proposal import Asked, Proposal, Sample, propose
from niwaki.stream.recordings.recording import SAMPLE_EVENTS, Recording
from niwaki.stream.recordings.replay import at_end

_POLL_S = 0.5
T = TypeVar("T")


class Check(NamedTuple):
    """The findings of a look at events."""

    name: str
    """The files or the topic."""
    schema: Schema
    events: EventsConfig
    report: list[dict[str, Any]]
    """One for each column; see `proposal.ColumnReport`."""
    notes: list[str]
    tally: Tally
    """The account of the first events, as they are read with the schema."""

    def as_dict(self) -> dict[str, Any]:
        """The findings as JSON has them."""
        return {
            "name": self.name,
            "schema": msgspec.to_builtins(self.schema),
            "envelope": self.events.envelope,
            "columns": self.report,
            "notes": self.notes,
            "events": self.tally.events,
        } | self.tally.as_dict()


def check_files(
    files: Sequence[Path], config: Config, asked: Asked, events: int = SAMPLE_EVENTS
) -> Check:
    """A look at the first `events` events of files. Raises `ConfigError` where no schema can be
    proposed."""
    recording = Recording(files, config.events)
    proposal = recording.propose(asked, events)
    given = proposal.settings(config.events)
    tally, schema = Tally(), config.schema or proposal.schema
    for chunk in recording.read_with(given).read(schema, limit_events=events):
        tally.add(len(chunk.batch), chunk.rejects, chunk.odd)
    return _found(recording.name, proposal, schema, given, tally)


def check_topic(kafka: KafkaConfig, config: Config, asked: Asked, events: int) -> Check:
    """A look at the first `events` messages of a topic. Raises `ConfigError` where no schema can be
    proposed, and `NiwakiError` for an empty topic."""
    with EventSource(msgspec.structs.replace(kafka, start="earliest")) as source:
        records = _first_records(source, events)
    if not records:
        raise NiwakiError(f"topic {kafka.topic} has no messages that can be read")
    values = [record.value for record in records]
    proposal = propose(Sample.of_messages(_unwrapped(kafka, values)), asked)
    schema = config.schema or proposal.schema
    given, tally = proposal.settings(config.events), Tally()
    decoder = new_decoder(kafka, schema, given)
    decoded = _patiently(kafka, lambda: decoder.decode(values))
    rejects = [reject._replace(place=records[reject.position].place) for reject in decoded.rejects]
    tally.add(len(decoded.batch), rejects, decoded.odd)
    return _found(kafka.topic, proposal, schema, given, tally)


def _unwrapped(kafka: KafkaConfig, values: list[bytes | None]) -> list[bytes | None]:
    """The messages as JSON, by the registry's schemas where there is one."""
    if not kafka.schema_registry_url:
        return values
    decoder = RegistryDecoder(kafka, EventDecoder(Schema(numeric=("_",))))
    return _patiently(kafka, lambda: decoder.unwrap(values)).values


def _patiently(kafka: KafkaConfig, ask: Callable[[], T | None]) -> T:
    """The answer of `ask`, which is asked again until the registry answers."""
    deadline_s = time.monotonic() + kafka.connect_timeout_s
    while (answer := ask()) is None:
        if time.monotonic() > deadline_s:
            within = f"within {kafka.connect_timeout_s:g} s"
            raise BrokerError(f"no schema registry answered at kafka.schema_registry_url {within}")
    return answer


def _first_records(source: EventSource, count: int) -> list[Record]:
    records: list[Record] = []
    while len(records) < count:
        polled = source.poll(_POLL_S)
        records += polled
        if not polled and at_end(source):
            break
    return records[:count]


def _found(
    name: str, proposal: Proposal, schema: Schema, events: EventsConfig, tally: Tally
) -> Check:
    report = [column.as_dict() for column in proposal.columns]
    return Check(name, schema, events, report, list(proposal.notes), tally)
