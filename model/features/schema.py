"""The schema of an event, and batches of events as typed columns.

`niwaki.model.features.event_rows` makes batches of dictionaries, `niwaki.stream.events.tables` of
Arrow tables. This module imports no torch, so a process that only reads events starts quickly.

Shapes: B events, N numeric columns, L list columns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.pruning.errors import RuleError

TIME_FEATURES = ("hour", "weekday")
LIST = pa.map_(pa.string(), pa.float32())
"""Type of a list column in a batch: the values of each list, in order, each with its weight, which
is 1 in a list without weights. Null = missing."""
_AGE = "age:"


class History(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A list that is made in the stream: the latest values of one column for each value of another
    one, strictly from the past."""

    name: str
    """The name of the list."""
    of: str
    """The categorical column whose values it has, and whose embeddings it reads."""
    by: str
    """The categorical column that it is kept by, such as a user."""
    where: Literal["label", "all"] = "label"
    """label: values of events with a click (a label of at least 0.5); all: of all events."""
    last: int = 20
    """Values that are kept, >= 1: the latest ones."""


class Schema(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns of an event and the role of each (the `[schema]` section)."""

    label: str = "label"
    """Column with the outcome: 0 or 1, or any real number between them; or true and false, yes and
    no."""
    label_threshold: float | None = None
    """A label of at least so much is a click (1), a smaller one is none (0): for ratings, counts,
    and -1 and 1. None: labels are as they are."""
    label_positive: tuple[str, ...] = ()
    """Values of the label that are a click, where labels are names; all others are none."""
    missing_label: Literal["reject", "negative"] = "reject"
    """Treatment of an event without a label: it is left out, or it is no click."""
    timestamp: str | None = "ts"
    """Column with the event time. None or "": events carry no time. A column may be a path into
    nested objects, names separated by points: "user.id"."""
    timestamp_format: str = "ms"
    """Form of the event time: "s", "ms", "us" or "ns", a number of that unit since the epoch;
    "iso", text in ISO 8601, of UTC where it names no zone; or a format of strptime, such as
    "%y%m%d%H". Arrow timestamps are read by their own type."""
    categorical: tuple[str, ...] = ()
    """Columns of strings, integers or booleans; 12, 12.0 and "12" are one value. Null or absent is
    missing; "" is a value."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers or booleans, also as text. Null, absent or NaN is missing."""
    lists: tuple[str, ...] = ()
    """Columns of lists of strings, integers or booleans, or of maps from such values to weights
    >= 0. Null or absent is missing, which is not the same as an empty list."""
    list_separator: str = "|"
    """Text in a list column is split at this, unless it is a JSON array or object."""
    max_list_values: int = 100
    """Values of a list that are read, >= 1: the last ones. How many lists are longer is told."""
    shares: dict[str, str] = {}
    """For a list or categorical column, the categorical column whose embeddings it reads, since
    their values are the same things: {"history": "item"}."""
    histories: tuple[History, ...] = ()
    """Lists that are made in the stream, for producers that have none; a scorer has them, too."""
    rates: tuple[str | tuple[str, ...], ...] = ()
    """Click rates that are made in the stream, by the values of a categorical column or of several,
    such as ["item", ["user", "genre"]]: two numerics each, the rate in log odds and the evidence
    for it."""
    rate_half_life_s: float = 604_800.0
    """Half-life of the counts behind rates, seconds, > 0."""
    rate_evidence: float = 10.0
    """Evidence for the click rate of the whole stream, to which rates are drawn, events, > 0."""
    max_keys: int = 1_000_000
    """Keys that each history and each rate remembers at once, >= 1. The ones that nothing was
    remembered of for longest go first."""
    weight: str | None = None
    """Column with the weight of an event, >= 0, in all that is learned and measured. None or "":
    all weigh 1."""
    sampling_ratio: str | None = None
    """Column with the share of events without a click that were kept, (0, 1], where a producer
    left others out: predictions are for the stream before that. None or "": all were kept."""
    ignore: tuple[str, ...] = ()
    """Columns that events may carry and that are not read."""
    crosses: tuple[tuple[str, ...], ...] = ()
    """Combinations of categorical columns that become fields of their own, such as [["user",
    "genre"]]."""
    time_features: tuple[str, ...] = ()
    """Features made from the event time (UTC): the fields "hour" and "weekday"; and "age:COLUMN", a
    numeric for a categorical column: log1p of the seconds since its value was first seen."""

    def __post_init__(self) -> None:
        for option in ("timestamp", "weight", "sampling_ratio"):
            if getattr(self, option) == "":  # TOML has no null
                msgspec.structs.force_setattr(self, option, None)
        shape = self.timestamp_format
        if shape not in ("s", "ms", "us", "ns", "iso") and "%" not in shape:
            rule = 'must be "s", "ms", "us", "ns", "iso" or a format of strptime'
            raise RuleError("timestamp_format", rule, shape)
        if self.label_positive and self.label_threshold is not None:
            raise RuleError("label_positive", "can't be set together with label_threshold")
        self._check_roles()
        for cross in self.crosses:
            if len(cross) < 2 or not set(cross) <= set(self.categorical):
                raise RuleError(
                    "crosses", "takes two or more categorical columns each", list(cross)
                )
        self._check_time_features()
        self._check_lists()
        self._check_memory()
        if len(set(self.fields)) != len(self.fields):
            raise RuleError("crosses", "two fields have the same name", list(self.fields))

    def _check_roles(self) -> None:
        """Raise `RuleError` unless each column has one role, and at least one is a feature."""
        roles: dict[str, Sequence[str]] = {
            "label": [self.label],
            **{
                option: [] if getattr(self, option) is None else [getattr(self, option)]
                for option in ("timestamp", "weight", "sampling_ratio")
            },
            "categorical": self.categorical,
            "numeric": self.numeric,
            "lists": self.lists,
        }
        all_names = [name for names in roles.values() for name in names] + list(self.ignore)
        for role, names in reversed(roles.items()):
            for name in names:
                if not name:
                    raise RuleError(role, "a column name is empty")
                if all_names.count(name) > 1:
                    raise RuleError(role, f"column {name!r} has more than one role")
        if not self.categorical and not self.numeric and not self.lists:
            raise RuleError("categorical", "needs at least one column, or numeric does, or lists")

    def _check_lists(self) -> None:
        """Raise `RuleError` unless the settings of lists and of shared embeddings can be used."""
        if not self.list_separator:
            raise RuleError("list_separator", "must not be empty")
        if self.max_list_values < 1:
            raise RuleError("max_list_values", "must be >= 1", self.max_list_values)
        for name, owner in self.shares.items():
            if name not in (*self.lists, *self.categorical):
                raise RuleError("shares", "takes list and categorical columns", name)
            if owner not in self.categorical or owner in self.shares:
                rule = f"{name!r} takes a categorical column with embeddings of its own"
                raise RuleError("shares", rule, owner)

    def _check_memory(self) -> None:
        """Raise `RuleError` unless all histories and rates can be made."""
        for option in ("rate_half_life_s", "rate_evidence"):
            if not getattr(self, option) > 0:
                raise RuleError(option, "must be > 0", getattr(self, option))
        if self.max_keys < 1:
            raise RuleError("max_keys", "must be >= 1", self.max_keys)
        columns = set(self.categorical)
        for history in self.histories:
            for option in ("of", "by"):
                if getattr(history, option) not in columns:
                    rule = f"{option} must be a categorical column"
                    raise RuleError("histories", rule, getattr(history, option))
            if history.last < 1:
                raise RuleError("histories", "last must be >= 1", history.last)
            if not history.name or history.name in self.columns:
                raise RuleError("histories", "name must not be that of a column", history.name)
        for names in self.rate_columns:
            if not names or not set(names) <= columns:
                raise RuleError("rates", "takes categorical columns", list(names))
        if len(set(self.rate_columns)) != len(self.rate_columns):
            raise RuleError("rates", "must not name a rate twice", list(self.rates))
        for option in ("histories", "rates"):
            if getattr(self, option) and self.timestamp is None:
                raise RuleError(option, "needs a timestamp column")

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
        features, lists."""
        return (*self.single_fields, *self.list_fields)

    @property
    def list_fields(self) -> tuple[str, ...]:
        """The names of the fields that are lists: columns, then histories."""
        return (*self.lists, *(history.name for history in self.histories))

    @property
    def single_fields(self) -> tuple[str, ...]:
        """The names of the fields with one value each: all but lists."""
        crosses = ("*".join(cross) for cross in self.crosses)
        times = (f"time:{name}" for name in self.time_features if name in TIME_FEATURES)
        return (*self.categorical, *crosses, *times)

    @property
    def owners(self) -> tuple[int, ...]:
        """For each of `fields`, the place of the field whose embeddings it reads: its own, unless
        it shares another's."""
        fields, reads = self.fields, {one.name: one.of for one in self.histories}
        names = (reads.get(name, name) for name in fields)
        return tuple(fields.index(self.shares.get(name, name)) for name in names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, label and event time first."""
        others = (self.timestamp, self.weight, self.sampling_ratio)
        named = (self.label, *(name for name in others if name))
        return (*named, *self.categorical, *self.numeric, *self.lists)

    @property
    def ages(self) -> tuple[str, ...]:
        """The columns whose values have an age."""
        return tuple(name[len(_AGE) :] for name in self.time_features if name.startswith(_AGE))

    @property
    def numerics(self) -> tuple[str, ...]:
        """The names of the numerics that the model reads, in their order: columns, ages, and two
        for each rate."""
        kinds = ("rate", "evidence")
        rates = (f"{kind}:{'*'.join(names)}" for names in self.rate_columns for kind in kinds)
        return (*self.numeric, *(_AGE + name for name in self.ages), *rates)

    @property
    def rate_columns(self) -> tuple[tuple[str, ...], ...]:
        """The columns by which each rate is counted."""
        return tuple((one,) if isinstance(one, str) else one for one in self.rates)


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
    lists: tuple[pa.Array, ...] = ()
    """One array of type `LIST` and length B for each of `schema.lists`."""
    weights_B: np.ndarray | None = None
    """float32, >= 0, the weight of each event; None: all weigh 1."""
    sampling_B: np.ndarray | None = None
    """float32, (0, 1], the share of events without a click that were kept beside each event; None:
    all were kept."""

    def __len__(self) -> int:
        return len(self.labels_B)

    def slice(self, start: int, stop: int) -> "EventBatch":
        """Events `start` to `stop` (exclusive), without a copy."""
        return self._mapped(
            lambda column: column.slice(start, stop - start), lambda array: array[start:stop]
        )

    def take(self, order_B: np.ndarray) -> "EventBatch":
        """The events at the indices `order_B`, in that order."""
        indices = pa.array(order_B)
        return self._mapped(lambda column: column.take(indices), lambda array: array[order_B])

    def _mapped(
        self,
        of_column: Callable[[pa.Array], pa.Array],
        of_array: Callable[[np.ndarray], np.ndarray],
    ) -> "EventBatch":
        """Every column after a function."""
        return EventBatch(
            of_array(self.labels_B),
            of_array(self.times_s_B),
            tuple(map(of_column, self.categorical)),
            of_array(self.numerics_BN),
            tuple(map(of_column, self.lists)),
            None if self.weights_B is None else of_array(self.weights_B),
            None if self.sampling_B is None else of_array(self.sampling_B),
        )

    @staticmethod
    def concat(batches: Sequence["EventBatch"]) -> "EventBatch":
        """The events of `batches`, one after the other. A column that one has, all have."""
        if len(batches) == 1:
            return batches[0]

        def columns(column_lists: Iterable[tuple[pa.Array, ...]]) -> tuple[pa.Array, ...]:
            return tuple(map(pa.concat_arrays, zip(*column_lists, strict=True)))

        def arrays(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
            found = [part for part in parts if part is not None]
            return np.concatenate(found) if found else None

        return EventBatch(
            np.concatenate([batch.labels_B for batch in batches]),
            np.concatenate([batch.times_s_B for batch in batches]),
            columns(batch.categorical for batch in batches),
            np.concatenate([batch.numerics_BN for batch in batches]),
            columns(batch.lists for batch in batches),
            arrays(batch.weights_B for batch in batches),
            arrays(batch.sampling_B for batch in batches),
        )
