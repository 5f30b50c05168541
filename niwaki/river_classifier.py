"""niwaki's learner as a classifier of River, for River's pipelines, evaluations and checks.

In: dictionaries of features, or a DataFrame or an Arrow table of them; a feature may be a list, a
tuple, a set, or a dictionary from values to weights. Out: probabilities of False
and True. Without a schema, the classifier makes one of the columns in the first events, sorted by
name, and learns those events again whenever a new column appears; so it equals a classifier that
knew the schema from the start. It neither prunes nor looks for drift, as
`niwaki.stream.training.trainer` does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from river import base
from river.base.typing import ClfTarget

from niwaki.model.config import LearnerConfig
from niwaki.model.errors import FeatureError
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.list_values import read_list
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema
from niwaki.model.learner import Learner, LearnerState
from niwaki.model.published.checkpoint import pack_as, unpack_as

Row = dict[str, str | int | float | list[str] | dict[str, float] | None]
_UNKNOWN = 0.5
_ROLES = ("categorical", "numeric", "lists")
_LISTS = Schema(lists=("list",), timestamp=None)


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The header of a classifier's bytes."""

    schema: Schema | None
    model: LearnerConfig | None
    growing_events: int
    columns: Schema | None
    learner: LearnerState | None
    events: int
    first: list[list[tuple[Row, float]]]


class _SchemaLearner:
    """A learner, and the schema of the events that it reads."""

    def __init__(self, schema: Schema, config: LearnerConfig):
        self.schema = schema
        self.learner = Learner(schema, config)
        self._names = tuple(name for name in schema.columns if name != schema.label)

    def learn(self, batch: Sequence[tuple[Row, float]]) -> None:
        """Learn a mini-batch of features and labels in one step."""
        rows = [self._read(row) | {self.schema.label: y} for row, y in batch]
        events = rows_to_batch(rows, self.schema, labelled=True)
        self.learner.learn(self.learner.encoder.encode(events), Outcomes.of(events))

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        """Probabilities of True, float64 (B,)."""
        batch = rows_to_batch([self._read(row) for row in rows], self.schema)
        logits_B = self.learner.predict(self.learner.encoder.encode(batch))
        return 1 / (1 + np.exp(-logits_B.astype(np.float64)))

    def _read(self, row: Row) -> Row:
        """The row's columns that the schema names."""
        return {name: row[name] for name in self._names if name in row}


class RiverClassifier(base.MiniBatchClassifier):
    """Niwaki's dense learner, which takes one learning step for each event or mini-batch.

    >>> from river import evaluate, metrics
    >>> clicks = [({"user": f"u{i % 3}", "price": float(i % 5)}, i % 3 == 0) for i in range(600)]
    >>> evaluate.progressive_val_score(clicks, RiverClassifier(), metrics.ROCAUC()).get() > 0.9
    True
    """

    def __init__(
        self,
        schema: Schema | None = None,
        model: LearnerConfig | None = None,
        growing_events: int = 1_000,
    ):
        """`schema`: columns to read, and their roles; other columns are not read. None: the schema
        is made of the columns in the first `growing_events` events.

        `model`: as in the `[model]` section; None: its defaults. `growing_events`: number of first
        events whose columns make the schema, and which are kept until then; >= 1. Columns that
        first appear later are not read. Raises `ValueError` for a smaller number.
        """
        if growing_events < 1:
            raise ValueError(f"growing_events must be >= 1, got {growing_events}")
        self.schema = schema
        self.model = model
        self.growing_events = growing_events
        self._known = self._schema_learner(schema)
        """The learner; None before any column is known."""
        self._events = 0
        self._first: list[list[tuple[Row, float]]] = []

    def learn_one(self, x: Mapping[Any, Any], y: ClfTarget | float) -> None:
        """Learn one event. `y`: a boolean, or a number in [0, 1].

        Raises `FeatureError` for a value that the column does not allow.
        """
        self._learn([(x, y)])

    def predict_proba_one(self, x: Mapping[Any, Any], **kwargs: Any) -> dict[ClfTarget, float]:
        """Probabilities of False and True."""
        (p,) = self._predict([x]).tolist()
        return {False: 1 - p, True: p}

    def learn_many(self, X: Any, y: Any) -> None:
        """Learn a mini-batch, a pandas DataFrame or an Arrow table, in one step. The result differs
        from that of one step an event."""
        labels = y.to_pylist() if isinstance(y, pa.Array | pa.ChunkedArray) else list(y)
        if len(labels):
            self._learn(list(zip(_rows(X), labels, strict=True)))

    def predict_proba_many(self, X: Any) -> Any:
        """Probabilities of a mini-batch: of a DataFrame, a DataFrame with the columns False and
        True; of an Arrow table, a table with the columns "False" and "True"."""
        p_B = self._predict(_rows(X))
        if isinstance(X, pa.Table):
            return pa.table({"False": 1 - p_B, "True": p_B})
        return type(X)({False: 1 - p_B, True: p_B}, index=X.index)

    def to_bytes(self) -> bytes:
        """The classifier's parameters and everything that it has learned; nothing in the bytes is
        executable."""
        known = self._known
        state, tensors = known.learner.state() if known else (None, {})
        header = _Header(
            schema=self.schema,
            model=self.model,
            growing_events=self.growing_events,
            columns=known.schema if known else None,
            learner=state,
            events=self._events,
            first=self._first,
        )
        return pack_as(header, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> "RiverClassifier":
        """The classifier of `to_bytes`. Raises `model.errors.CheckpointError` for other bytes."""
        classifier = cls.__new__(cls)
        classifier.__setstate__({"snapshot": data})
        return classifier

    def __getstate__(self) -> dict[str, bytes]:
        return {"snapshot": self.to_bytes()}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        header, tensors = unpack_as(state["snapshot"], _Header)
        RiverClassifier.__init__(self, header.schema, header.model, header.growing_events)
        self._known = self._schema_learner(header.columns)
        if header.learner and self._known:
            self._known.learner.restore(header.learner, tensors)
        self._events = header.events
        self._first = header.first

    @classmethod
    def _unit_test_skips(cls) -> set[str]:
        return {"check_learn_many_matches_learn_one"}  # one step a batch is another way to learn

    def _schema_learner(self, schema: Schema | None) -> _SchemaLearner | None:
        """A fresh learner for this schema; None without one."""
        return _SchemaLearner(schema, self.model or LearnerConfig()) if schema else None

    def _learn(self, events: Iterable[tuple[Mapping[Any, Any], Any]]) -> None:
        batch = [(_plain(x), _value(y)) for x, y in events]
        growing = self.schema is None and self._events < self.growing_events
        if growing:
            before = self._known.schema if self._known else None
            schema = _grown(before, [row for row, _ in batch])
            if schema != before:
                self._known = self._schema_learner(schema)
                for earlier in self._first:
                    self._step(earlier)
        self._step(batch)
        self._events += len(batch)
        if growing:
            self._first = [*self._first, batch] if self._events < self.growing_events else []

    def _step(self, batch: Sequence[tuple[Row, float]]) -> None:
        """Learn a mini-batch, unless no column is known yet: then all its values are missing."""
        if self._known:
            self._known.learn(batch)

    def _predict(self, events: Sequence[Mapping[Any, Any]]) -> np.ndarray:
        """Probabilities of True, float64 (B,)."""
        if self._known is None or not events:
            return np.full(len(events), _UNKNOWN)
        return self._known.predict([_plain(x) for x in events])


def _rows(X: Any) -> list[dict[Any, Any]]:
    """The rows of an Arrow table or a DataFrame."""
    rows: list[dict[Any, Any]]
    if not isinstance(X, pa.Table):
        rows = X.to_dict("records")
        return rows
    rows = X.to_pylist()
    for name in (field.name for field in X.schema if pa.types.is_map(field.type)):
        for row in rows:
            row[name] = None if row[name] is None else dict(row[name])
    return rows


def _plain(x: Mapping[Any, Any]) -> Row:
    """The features with strings for names and plain values, lists by the names of their values."""
    return {str(name): _feature(str(name), value) for name, value in x.items()}


def _feature(column: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        value = {_scalar(one): _scalar(weight) for one, weight in value.items()}
    elif isinstance(value, list | tuple | set | frozenset | np.ndarray):
        items = value.tolist() if isinstance(value, np.ndarray) else map(_scalar, value)
        value = set(items) if isinstance(value, set | frozenset) else list(items)
    else:
        return _value(value)
    found = read_list(value, column, _LISTS)
    if found is None or found.weights is None:
        return found and found.names
    return dict(zip(found.names, found.weights, strict=True))


def _scalar(value: Any) -> Any:
    """One of numpy's scalars as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _value(value: Any) -> Any:
    """The value as an event has it: numpy's scalars as Python's, booleans as numbers, NaN as
    None."""
    value = _scalar(value)
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _grown(columns: Schema | None, rows: Sequence[Row]) -> Schema | None:
    """The schema with the columns of `rows` added: strings are categorical, numbers numeric, and
    lists are lists, whatever else their column has. The columns are sorted, so their order in the
    rows does not matter.

    Raises `FeatureError` for a value of another type.
    """
    roles = {role: set(getattr(columns, role) if columns else ()) for role in _ROLES}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list | dict):
                roles["lists"].add(name)
            elif value is None or any(name in names for names in roles.values()):
                continue
            elif not isinstance(value, str | int | float):
                raise FeatureError(name, "must be a string, a number or a list", value)
            else:
                roles["categorical" if isinstance(value, str) else "numeric"].add(name)
    roles["categorical"] -= roles["lists"]
    roles["numeric"] -= roles["lists"]
    names: set[str] = set().union(*roles.values())
    if not names:
        return None
    label = "label"
    while label in names:
        label = f"_{label}"
    return Schema(
        label=label,
        timestamp=None,
        categorical=tuple(sorted(roles["categorical"])),
        numeric=tuple(sorted(roles["numeric"])),
        lists=tuple(sorted(roles["lists"])),
    )
