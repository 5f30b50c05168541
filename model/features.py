"""From columns of events to what the network reads: table rows for categorical fields, floats for numerics.

First stop after decoding in the walk. In: an `EventBatch`, typed columns that a decoder has already checked against
the `Schema`. Out: `Features`, flat row ids and raw numerics as tensors. Hashing is seeded by field name, and the same
on every machine and in every version of this file's `HASH_VERSION`. It refuses to look at labels.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import torch

from model import kernels

HASH_VERSION = 1
TIME_FEATURES = ("hour", "weekday")
_LARGEST_NUMERIC = float(np.finfo(np.float32).max)


class FeatureError(ValueError):
    """A row that the schema does not allow. Names the field, the rule and the value."""

    def __init__(self, field: str, rule: str, value: object):
        self.field, self.rule, self.value = field, rule, shorten(value)
        super().__init__(f"{field}: {rule}, got {self.value}")


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns an event has and what each of them is (the `[schema]` section)."""

    label: str = "label"
    """Column with the outcome: 0 or 1, or any real number between them."""
    timestamp: str | None = "ts"
    """Column with the event time, integer milliseconds since the epoch. None or "": events carry no time."""
    categorical: tuple[str, ...] = ()
    """Columns of strings or integers; 12 and "12" are one value. Null or absent is missing; "" is a value."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers. Null, absent or NaN is missing."""
    ignore: tuple[str, ...] = ()
    """Columns that events may carry and that are not read."""
    crosses: tuple[tuple[str, ...], ...] = ()
    """Combinations of categorical columns that become fields of their own, such as [["user", "genre"]]."""
    time_features: tuple[str, ...] = ()
    """Fields made from the event time (UTC): any of "hour", "weekday"."""

    def __post_init__(self) -> None:
        if self.timestamp == "":  # TOML has no null
            msgspec.structs.force_setattr(self, "timestamp", None)
        read = [self.label, *([self.timestamp] if self.timestamp else []), *self.categorical, *self.numeric]
        for name in read:
            if not name:
                raise ValueError("schema: a column name is empty")
            if (read + list(self.ignore)).count(name) > 1:
                raise ValueError(f"schema: column {name!r} has more than one role")
        if not self.categorical and not self.numeric:
            raise ValueError("schema: needs at least one categorical or numeric column")
        for cross in self.crosses:
            if len(cross) < 2 or not set(cross) <= set(self.categorical):
                raise ValueError(f"schema: crosses takes two or more categorical columns each, got {list(cross)}")
        for name in self.time_features:
            if name not in TIME_FEATURES:
                raise ValueError(f"schema: time_features takes {', '.join(TIME_FEATURES)}, got {name!r}")
        if self.time_features and self.timestamp is None:
            raise ValueError("schema: time_features needs a timestamp column")
        if len(set(self.fields)) != len(self.fields):
            raise ValueError(f"schema: two fields have the same name among {list(self.fields)}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the embedded fields, in the order of their tables: columns, crosses, time features."""
        crosses = ("*".join(cross) for cross in self.crosses)
        return (*self.categorical, *crosses, *(f"time:{name}" for name in self.time_features))


@dataclass(frozen=True, slots=True)
class EventBatch:
    """B events in order, as columns."""

    labels_B: np.ndarray
    """float32, 0..1; NaN only where the label is unknown (a scoring request)."""
    times_s_B: np.ndarray
    """float64, event time in seconds since the epoch; 0 where the schema has no timestamp."""
    categorical: tuple[pa.Array, ...]
    """One `pa.string()` array of length B for each of `schema.categorical`; null = missing."""
    numerics_BN: np.ndarray
    """float32, NaN = missing, never infinite."""

    def __len__(self) -> int:
        return len(self.labels_B)

    def slice(self, start: int, stop: int) -> "EventBatch":
        """Events `start` to `stop` (exclusive), without a copy."""
        columns = tuple(column.slice(start, stop - start) for column in self.categorical)
        return EventBatch(self.labels_B[start:stop], self.times_s_B[start:stop], columns, self.numerics_BN[start:stop])

    @staticmethod
    def concat(batches: Sequence["EventBatch"]) -> "EventBatch":
        """The events of `batches`, one after the other."""
        if len(batches) == 1:
            return batches[0]
        return EventBatch(
            np.concatenate([batch.labels_B for batch in batches]),
            np.concatenate([batch.times_s_B for batch in batches]),
            tuple(pa.concat_arrays(columns) for columns in zip(*(batch.categorical for batch in batches), strict=True)),
            np.concatenate([batch.numerics_BN for batch in batches]),
        )


class Features(NamedTuple):
    """What the model reads of B events."""

    rows_BF: torch.Tensor
    """int64, flat row of each field's value in the embedding tables; a field's first row stands for "missing"."""
    pairs_BP: torch.Tensor
    """int64, row of each pair of fields in the table of pairs; P = 0 where pairs are not made."""
    numerics_BN: torch.Tensor
    """float32, NaN = missing."""


class Encoder:
    """Maps an `EventBatch` to `Features`: each value of a field is hashed to one of the rows of the field's table."""

    def __init__(self, schema: Schema, *, rows: int, pair_rows: int = 0, seed: int = 0):
        """`rows`: of each field's table. `pair_rows`: of the one table of all pairs of fields; 0: no pairs."""
        self.schema, self.rows, self.pair_rows = schema, rows, pair_rows
        names = schema.fields
        self.pairs = tuple(itertools.combinations(range(len(names)), 2)) if pair_rows else ()
        self._seeds_F = np.array([_seed(f"{HASH_VERSION}:{seed}:{name}") for name in names], np.uint64)
        self._pairs_P2 = np.array(self.pairs, np.int64).reshape(-1, 2)
        self._seeds_P = np.array(
            [_seed(f"{HASH_VERSION}:{seed}:{names[i]}:{names[j]}") for i, j in self.pairs], np.uint64
        )
        self._crosses_CX = np.full((len(schema.crosses), max(map(len, schema.crosses), default=0)), -1)
        for c, cross in enumerate(schema.crosses):
            self._crosses_CX[c, : len(cross)] = [schema.categorical.index(name) for name in cross]
        self._times_T = np.array([TIME_FEATURES.index(name) for name in schema.time_features], np.int64)

    def encode(self, batch: EventBatch) -> Features:
        """The rows and numerics of `batch`."""
        events, columns = len(batch), len(self.schema.categorical)
        hashes_BF = np.empty((events, len(self._seeds_F)), np.uint64)
        rows_BF = np.empty(hashes_BF.shape, np.int64)
        pairs_BP = np.empty((events, len(self.pairs)), np.int64)
        if columns and events:
            strings = pa.concat_arrays(batch.categorical)
            valid, offsets, text = (np.frombuffer(buffer or b"", np.uint8) for buffer in strings.buffers())
            seeds_F = self._seeds_F[:columns]
            kernels.hash_strings(valid, offsets.view(np.int32), text, strings.offset, seeds_F, hashes_BF)
        kernels.rows_of_hashes(
            hashes_BF,
            self._seeds_F,
            columns,
            self._crosses_CX,
            self._times_T,
            batch.times_s_B,
            self.rows,
            rows_BF,
            self._pairs_P2,
            self._seeds_P,
            self.pair_rows,
            pairs_BP,
        )
        numerics_BN = torch.from_numpy(np.ascontiguousarray(batch.numerics_BN))
        return Features(torch.from_numpy(rows_BF), torch.from_numpy(pairs_BP), numerics_BN)


def rows_to_batch(rows: Sequence[Mapping[str, Any]], schema: Schema, *, labelled: bool = False) -> EventBatch:
    """Columns from dictionaries, one an event, as a scoring request or River's API hands them over.

    Unless `labelled`, a label may be absent (it becomes NaN); the timestamp may always be (it becomes 0).
    Raises `FeatureError` for a key that the schema does not know and for a value that it does not allow.
    """
    known = {schema.label, schema.timestamp, *schema.categorical, *schema.numeric, *schema.ignore}
    for row in rows:
        if not row.keys() <= known:
            name = next(name for name in row if name not in known)
            raise FeatureError(str(name), "must be a column of the schema", row[name])
    labels = [_label(row.get(schema.label), schema.label, labelled) for row in rows]
    times = [_time(row.get(schema.timestamp), schema.timestamp) if schema.timestamp else 0.0 for row in rows]
    categorical = tuple(
        pa.array([_category(row.get(name), name) for row in rows], pa.string()) for name in schema.categorical
    )
    numerics = [[_numeric(row.get(name), name) for name in schema.numeric] for row in rows]
    numerics_BN = np.array(numerics, dtype=np.float32).reshape(len(rows), len(schema.numeric))
    return EventBatch(np.array(labels, np.float32), np.array(times, np.float64), categorical, numerics_BN)


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut to `limit` characters for an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _label(value: object, name: str, required: bool) -> float:
    if value is None and not required:
        return float("nan")
    if isinstance(value, bool | np.bool_):  # River's targets are booleans
        return float(value)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FeatureError(name, "must be a number in [0, 1]", value)
    return float(value)


def _time(value: object, name: str) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**53) <= value <= 2**53:
        raise FeatureError(name, "must be an integer number of milliseconds since the epoch", value)
    return value / 1000


def _category(value: object, name: str) -> str | None:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise FeatureError(name, "must be valid Unicode", value) from None
        return value
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return None if value is None else str(value)
    raise FeatureError(name, "must be a string or an integer", value)


def _numeric(value: object, name: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FeatureError(name, "must be a number", value)
    if abs(value) > _LARGEST_NUMERIC:
        raise FeatureError(name, "must be finite in 32 bits", value)
    return float(value)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
