"""The schema of an event, and batches of events as typed columns.

In: dictionaries, as a scoring request has them (decoders of messages and files make such columns
by themselves). Out: an `EventBatch`, checked against the `Schema`. This module imports no torch, so
a process that only reads events starts quickly.

Shapes: B events, N numeric columns.
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
from niwaki.pruning.errors import RuleError

TIME_FEATURES = ("hour", "weekday")
_AGE = "age:"
_LARGEST_NUMERIC = float(np.finfo(np.float32).max)


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns of an event and the role of each (the `[schema]` section)."""

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
    """Features made from the event time (UTC): the fields "hour" and "weekday"; and "age:COLUMN", a
    numeric for a categorical column: log1p of the seconds since its value was first seen."""

    def __post_init__(self) -> None:
        if self.timestamp == "":  # TOML has no null
            msgspec.structs.force_setattr(self, "timestamp", None)
        self._check_roles()
        for cross in self.crosses:
            if len(cross) < 2 or not set(cross) <= set(self.categorical):
                raise RuleError(
                    "crosses", "takes two or more categorical columns each", list(cross)
                )
        self._check_time_features()
        if len(set(self.fields)) != len(self.fields):
            raise RuleError("crosses", "two fields have the same name", list(self.fields))

    def _check_roles(self) -> None:
        """Raise `RuleError` unless each column has one role, and at least one is a feature."""
        roles: dict[str, Sequence[str]] = {
            "label": [self.label],
            "timestamp": [] if self.timestamp is None else [self.timestamp],
            "categorical": self.categorical,
            "numeric": self.numeric,
        }
        all_names = [name for names in roles.values() for name in names] + list(self.ignore)
        for role, names in reversed(roles.items()):
            for name in names:
                if not name:
                    raise RuleError(role, "a column name is empty")
                if all_names.count(name) > 1:
                    raise RuleError(role, f"column {name!r} has more than one role")
        if not self.categorical and not self.numeric:
            raise RuleError("categorical", "needs at least one column, or numeric does")

    def _check_time_features(self) -> None:
        """Raise `RuleError` unless all time features can be made."""
        ages = {_AGE + name for name in self.categorical}
        for name in self.time_features:
            if name not in TIME_FEATURES and name not in ages:
                allowed = f"{', '.join(TIME_FEATURES)} and {_AGE}COLUMN of a categorical column"
                raise RuleError("time_features", f"takes {allowed}", name)
        if self.time_features and self.timestamp is None:
            raise RuleError("time_features", "needs a timestamp column")
        if len(set(self.time_features)) != len(self.time_features):
            raise RuleError(
                "time_features", "must not name a feature twice", list(self.time_features)
            )

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
        """The names of the numerics that the model reads, in their order: columns, ages."""
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
    """Columns from dictionaries, one for each event, as a scoring request or River's API has them.

    `labelled`: a label must be present; otherwise an absent one becomes NaN. An absent timestamp
    becomes 0. `shared`: columns that all events have in common and that no row has. Raises
    `FeatureError` for a key that the schema does not know and for a value that it does not allow.
    """
    count = len(rows)
    given: set[str] = set().union(*rows)
    known = {schema.label, schema.timestamp, *schema.categorical, *schema.numeric, *schema.ignore}
    for row in (shared, *(() if given <= known else rows)):
        if not row.keys() <= known:
            name = next(name for name in row if name not in known)
            raise FeatureError(str(name), "must be a column of the schema", row[name])

    def column(name: str) -> list[Any]:
        """The values of all events, or the one value that they share."""
        if name not in given:
            return [shared.get(name)]
        try:
            return list(map(itemgetter(name), rows))
        except KeyError:
            return [row.get(name) for row in rows]

    labels_B = np.full(count, np.nan, np.float32)
    times_s_B = np.zeros(count)
    if labelled or schema.label in given or schema.label in shared:
        labels_B[:] = [_label(value, schema.label, labelled) for value in column(schema.label)]
    timestamp = schema.timestamp
    if timestamp is not None and (timestamp in given or timestamp in shared):
        times_s_B[:] = [_time(value, timestamp) for value in column(timestamp)]
    categorical = []
    for name in schema.categorical:
        values = _categories(column(name), name)
        categorical.append(values if len(values) == count else pa.repeat(values[0], count))
    numerics_BN = np.empty((count, len(schema.numeric)), np.float32)
    for i, name in enumerate(schema.numeric):
        numerics_BN[:, i] = _numerics(column(name), name)
    return EventBatch(labels_B, times_s_B, tuple(categorical), numerics_BN)


def _label(value: object, name: str, required: bool) -> float:
    """The label 0..1, or NaN for an absent one that is not required."""
    if value is None and not required:
        return float("nan")
    if isinstance(value, bool | np.bool_):  # River's targets are booleans
        return float(value)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise FeatureError(name, "must be a number in [0, 1]", value)
    return float(value)


def _time(value: object, name: str) -> float:
    """Seconds since the epoch from milliseconds; 0 for an absent time."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**53) <= value <= 2**53:
        raise FeatureError(name, "must be an integer number of milliseconds since the epoch", value)
    return value / 1000


def _categories(values: list[Any], name: str) -> pa.Array:
    """Strings or null. Whole columns are checked by their types first, since most are clean."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return pa.array(list(map(str, values)), pa.string())
    try:
        if kinds <= {str, NoneType}:
            return pa.array(values, pa.string())
    except UnicodeEncodeError:
        pass  # the loop below finds the value and names it
    return pa.array([_category(value, name) for value in values], pa.string())


def _numerics(values: list[Any], name: str) -> np.ndarray:
    """float64, NaN for a missing value."""
    if set(map(type, values)) <= {float, int, NoneType}:
        with contextlib.suppress(OverflowError):
            found_B = np.array(values, np.float64)  # None becomes NaN
            if not (np.abs(found_B) > _LARGEST_NUMERIC).any():
                return found_B
    return np.array([_numeric(value, name) for value in values])


def _category(value: object, name: str) -> str | None:
    """A value as the string that is hashed."""
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
    """A number that is finite in 32 bits, or NaN for a missing one."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FeatureError(name, "must be a number", value)
    if abs(value) > _LARGEST_NUMERIC:
        raise FeatureError(name, "must be finite in 32 bits", value)
    return float(value)
