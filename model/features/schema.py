"""What an event consists of, and many events as typed columns, checked against the `Schema`.

In: dictionaries, as a request has them; decoders of messages and files make the same columns. Out:
an `EventBatch`. It knows no tensors: what reads events, in a process of its own, need not wait for
torch.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType, NoneType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError

TIME_FEATURES = ("hour", "weekday")
_AGE = "age:"
_LARGEST_NUMERIC = float(np.finfo(np.float32).max)


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns an event has and what each of them is (the `[schema]` section)."""

    label: str = "label"
    """Column with the outcome: 0 or 1, or any real number between them."""
    timestamp: str | None = "ts"
    """Column with the event time, integer milliseconds since the epoch. None or "": events carry no
    time."""
    categorical: tuple[str, ...] = ()
    """Columns of strings or integers; 12 and "12" are one value. Null or absent is missing; "" is a
    value."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers. Null, absent or NaN is missing."""
    ignore: tuple[str, ...] = ()
    """Columns that events may carry and that are not read."""
    crosses: tuple[tuple[str, ...], ...] = ()
    """Combinations of categorical columns that become fields of their own, such as [["user",
    "genre"]]."""
    time_features: tuple[str, ...] = ()
    """What is made from the event time (UTC): fields "hour" and "weekday"; for a categorical column
    "age:COLUMN", a numeric: log1p of the seconds since its value was first seen."""

    def __post_init__(self) -> None:
        if self.timestamp == "":  # TOML has no null
            msgspec.structs.force_setattr(self, "timestamp", None)
        read = [
            self.label,
            *([self.timestamp] if self.timestamp else []),
            *self.categorical,
            *self.numeric,
        ]
        for name in read:
            if not name:
                raise ValueError("schema: a column name is empty")
            if (read + list(self.ignore)).count(name) > 1:
                raise ValueError(f"schema: column {name!r} has more than one role")
        if not self.categorical and not self.numeric:
            raise ValueError("schema: needs at least one categorical or numeric column")
        for cross in self.crosses:
            if len(cross) < 2 or not set(cross) <= set(self.categorical):
                raise ValueError(
                    f"schema: crosses takes two or more categorical columns each, got {list(cross)}"
                )
        for name in self.time_features:
            if name not in TIME_FEATURES and not (
                name.startswith(_AGE) and name[len(_AGE) :] in self.categorical
            ):
                allowed = f"{', '.join(TIME_FEATURES)} and {_AGE}COLUMN of a categorical column"
                raise ValueError(f"schema: time_features takes {allowed}, got {name!r}")
        if self.time_features and self.timestamp is None:
            raise ValueError("schema: time_features needs a timestamp column")
        if len(set(self.time_features)) != len(self.time_features) or len(set(self.fields)) != len(
            self.fields
        ):
            raise ValueError(f"schema: two fields have the same name among {list(self.fields)}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the embedded fields, in the order of their tables: columns, crosses, time
        features."""
        crosses = ("*".join(cross) for cross in self.crosses)
        times = (f"time:{name}" for name in self.time_features if name in TIME_FEATURES)
        return (*self.categorical, *crosses, *times)

    @property
    def ages(self) -> tuple[str, ...]:
        """The columns whose values have an age."""
        return tuple(name[len(_AGE) :] for name in self.time_features if name.startswith(_AGE))

    @property
    def numerics(self) -> tuple[str, ...]:
        """The names of the numerics that are learned from, in their order: columns, ages."""
        return (*self.numeric, *(_AGE + name for name in self.ages))


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
        return EventBatch(
            self.labels_B[start:stop],
            self.times_s_B[start:stop],
            columns,
            self.numerics_BN[start:stop],
        )

    @staticmethod
    def concat(batches: Sequence["EventBatch"]) -> "EventBatch":
        """The events of `batches`, one after the other."""
        if len(batches) == 1:
            return batches[0]
        return EventBatch(
            np.concatenate([batch.labels_B for batch in batches]),
            np.concatenate([batch.times_s_B for batch in batches]),
            tuple(
                pa.concat_arrays(columns)
                for columns in zip(*(batch.categorical for batch in batches), strict=True)
            ),
            np.concatenate([batch.numerics_BN for batch in batches]),
        )


def rows_to_batch(
    rows: Sequence[Mapping[str, Any]],
    schema: Schema,
    *,
    labelled: bool = False,
    shared: Mapping[str, Any] = MappingProxyType({}),
) -> EventBatch:
    """Columns from dictionaries, one an event, as a scoring request or River's API hands them over.

    Unless `labelled`, a label may be absent (it becomes NaN); the timestamp may always be (it
    becomes 0). `shared`: the columns that all events have in common and no row has. Raises
    `FeatureError` for a key that the schema does not know and for a value that it does not allow.
    """
    count, given = len(rows), set().union(*rows)
    known = {schema.label, schema.timestamp, *schema.categorical, *schema.numeric, *schema.ignore}
    for row in (shared, *(() if given <= known else rows)):
        if not row.keys() <= known:
            name = next(name for name in row if name not in known)
            raise FeatureError(str(name), "must be a column of the schema", row[name])

    def column(name: str) -> list[Any]:
        """The values of all events, or the one that they share."""
        if name not in given:
            return [shared.get(name)]
        try:
            return list(map(itemgetter(name), rows))
        except KeyError:
            return [row.get(name) for row in rows]

    labels_B, times_s_B = np.full(count, np.nan, np.float32), np.zeros(count)
    if labelled or schema.label in given or schema.label in shared:
        labels_B[:] = [_label(value, schema.label, labelled) for value in column(schema.label)]
    if schema.timestamp in given or schema.timestamp in shared:
        times_s_B[:] = [_time(value, schema.timestamp) for value in column(schema.timestamp)]
    categorical = []
    for name in schema.categorical:
        values = _categories(column(name), name)
        categorical.append(values if len(values) == count else pa.repeat(values[0], count))
    numerics_BN = np.empty((count, len(schema.numeric)), np.float32)
    for i, name in enumerate(schema.numeric):
        numerics_BN[:, i] = _numerics(column(name), name)
    return EventBatch(labels_B, times_s_B, tuple(categorical), numerics_BN)


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


def _categories(values: list[Any], name: str) -> pa.Array:
    kinds = set(map(type, values))
    if kinds == {int}:
        return pa.array(list(map(str, values)), pa.string())
    try:
        if kinds <= {str, NoneType}:
            return pa.array(values, pa.string())
    except UnicodeEncodeError:
        pass  # which value it is, is said below
    return pa.array([_category(value, name) for value in values], pa.string())


def _numerics(values: list[Any], name: str) -> np.ndarray:
    if set(map(type, values)) <= {float, int, NoneType}:
        with contextlib.suppress(OverflowError):
            found_B = np.array(values, np.float64)  # None becomes NaN
            if not (np.abs(found_B) > _LARGEST_NUMERIC).any():
                return found_B
    return np.array([_numeric(value, name) for value in values])


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
