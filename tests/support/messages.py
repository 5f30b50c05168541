"""Messages of a small schema, and what decoding makes of them."""

import json

import numpy as np

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.events.decoder import EventDecoder

SCHEMA = Schema(categorical=("c_user", "c_item"), numeric=("n_age", "n_price"), ignore=("trace",))
GOOD = {
    "label": 1,
    "ts": 1_700_000_000_123,
    "c_user": "ann",
    "c_item": 7,
    "n_age": 30,
    "n_price": 1.5,
}


def event(**changes: object) -> bytes:
    """A good event but for `changes`; a change to `...` leaves the field out."""
    return json.dumps(
        {name: value for name, value in (GOOD | changes).items() if value is not ...}
    ).encode()


def decode(*values: bytes | None, schema: Schema = SCHEMA, max_event_bytes: int = 1_000_000):
    """Batch, index of each event's message, and rejects."""
    return EventDecoder(schema, max_event_bytes=max_event_bytes).decode(values)[:3]


def same(one: EventBatch, other: EventBatch) -> bool:
    columns = zip((*one.categorical, *one.lists), (*other.categorical, *other.lists), strict=True)
    return (
        np.array_equal(one.labels_B, other.labels_B)
        and np.array_equal(one.times_s_B, other.times_s_B)
        and np.array_equal(one.numerics_BN, other.numerics_BN, equal_nan=True)
        and np.array_equal(one.weights_B, other.weights_B)
        and np.array_equal(one.sampling_B, other.sampling_B)
        and all(a.equals(b) for a, b in columns)
    )


def texts(batch: EventBatch) -> list[list[str | None]]:
    return [column.to_pylist() for column in batch.categorical]
