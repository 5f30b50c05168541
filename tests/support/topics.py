"""What a test reads from a topic of Kafka: the records, and the numbers in them."""

import time
from collections.abc import Sequence

from niwaki.stream.kafka.source import EventSource, Record


def read(source: EventSource, count: int) -> list[Record]:
    """At least `count` records, as far as they come within half a minute."""
    records: list[Record] = []
    deadline_s = time.monotonic() + 30
    while len(records) < count and time.monotonic() < deadline_s:
        records += source.poll(0.2)
    return records


def numbers(records: Sequence[Record]) -> list[int]:
    return [int(record.value) for record in records]
