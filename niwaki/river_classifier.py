"""niwaki's learner as a classifier of River: its pipelines, evaluations and checks take it like one
of their own.

In: dictionaries of features, or a DataFrame or Arrow table of them. Out: probabilities of False and
True. Told no schema, it makes one of the columns that it meets in the first events, sorted by name,
and learns those events again whenever there is a new one: so it is what it would be had it known
the schema from the start. It prunes nothing and watches for nothing, which is what
`stream.training.trainer` does.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from river import base

from niwaki.model.errors import FeatureError
from niwaki.model.features.schema import Schema, rows_to_batch
from niwaki.model.learner import Learner, LearnerConfig, LearnerState
from niwaki.model.published.checkpoint import pack_as, unpack_as

Row = dict[str, str | int | float | None]
_UNKNOWN = 0.5


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a classifier's bytes say of it."""

    schema: Schema | None
    model: LearnerConfig | None
    growing_events: int
    columns: Schema | None
    learner: LearnerState | None
    events: int
    first: list[list[tuple[Row, float]]]


class RiverClassifier(base.MiniBatchClassifier):
    """Niwaki's dense learner, one step of learning for each event or mini-batch.

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
        """`schema`: what to read of the features; other columns are not read. None: made of what is
        seen.

        `model`: as in the `[model]` section; None: its defaults. `growing_events`: without a
        schema, columns that first appear after so many events are not read, and those events are
        kept until then; >= 1.
        """
        if growing_events < 1:
            raise ValueError(f"growing_events must be >= 1, got {growing_events}")
        self.schema, self.model, self.growing_events = schema, model, growing_events
        self._begin(schema)
        self._events = 0
        self._first: list[list[tuple[Row, float]]] = []

    def learn_one(self, x: Mapping[Any, Any], y: bool) -> None:
        """Learn one event. `y`: a boolean, or a number in [0, 1]. Raises `FeatureError` for a value
        that the column does not allow."""
        self._learn([(x, y)])

    def predict_proba_one(self, x: Mapping[Any, Any], **kwargs: Any) -> dict[bool, float]:
        """Probabilities of False and True."""
        (p,) = self._predict([x]).tolist()
        return {False: 1 - p, True: p}

    def learn_many(self, X: Any, y: Any) -> None:
        """Learn a mini-batch, a pandas DataFrame or an Arrow table, in one step: not what as many
        steps would do."""
        labels = y.to_pylist() if isinstance(y, pa.Array | pa.ChunkedArray) else list(y)
        if len(labels):
            self._learn(list(zip(_rows(X), labels, strict=True)))

    def predict_proba_many(self, X: Any) -> Any:
        """A DataFrame with the columns False and True, or, of an Arrow table, a table with "False"
        and "True"."""
        p_B = self._predict(_rows(X))
        if isinstance(X, pa.Table):
            return pa.table({"False": 1 - p_B, "True": p_B})
        return type(X)({False: 1 - p_B, True: p_B}, index=X.index)

    def to_bytes(self) -> bytes:
        """All that it is, as a snapshot: nothing in it is executable."""
        state, tensors = self._learner.state() if self._learner else (None, {})
        header = _Header(
            schema=self.schema,
            model=self.model,
            growing_events=self.growing_events,
            columns=self._columns,
            learner=state,
            events=self._events,
            first=self._first,
        )
        return pack_as(header, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> "RiverClassifier":
        """Undo `to_bytes`. Raises `model.published.checkpoint.CheckpointError` for anything
        else."""
        classifier = cls.__new__(cls)
        classifier.__setstate__({"snapshot": data})
        return classifier

    def __getstate__(self) -> dict[str, bytes]:
        return {"snapshot": self.to_bytes()}

    def __setstate__(self, state: dict[str, bytes]) -> None:
        header, tensors = unpack_as(state["snapshot"], _Header)
        RiverClassifier.__init__(self, header.schema, header.model, header.growing_events)
        self._begin(header.columns)
        if header.learner:
            self._learner.restore(header.learner, tensors)
        self._events, self._first = header.events, header.first

    @classmethod
    def _unit_test_skips(cls) -> set[str]:
        return {"check_learn_many_matches_learn_one"}  # one step a batch is another way to learn

    def _begin(self, columns: Schema | None) -> None:
        """Anew, with these columns."""
        self._columns = columns
        self._learner = Learner(columns, self.model or LearnerConfig()) if columns else None

    def _learn(self, events: Sequence[tuple[Mapping[Any, Any], Any]]) -> None:
        batch = [(_plain(x), _value(y)) for x, y in events]
        growing = self.schema is None and self._events < self.growing_events
        if growing:
            columns = _grown(self._columns, [row for row, _ in batch])
            if columns != self._columns:
                self._begin(columns)
                for earlier in self._first:
                    self._step(earlier)
        self._step(batch)
        self._events += len(batch)
        if growing:
            self._first = [*self._first, batch] if self._events < self.growing_events else []

    def _step(self, batch: Sequence[tuple[Row, float]]) -> None:
        if self._learner is None:
            return  # nothing but missing values so far
        rows = [self._read(row) | {self._columns.label: y} for row, y in batch]
        events = rows_to_batch(rows, self._columns, labelled=True)
        self._learner.learn(self._learner.encoder.encode(events), events.labels_B)

    def _predict(self, events: Sequence[Mapping[Any, Any]]) -> np.ndarray:
        """(B,) float64 probabilities of True."""
        if self._learner is None or not events:
            return np.full(len(events), _UNKNOWN)
        batch = rows_to_batch([self._read(_plain(x)) for x in events], self._columns)
        logits_B = self._learner.predict(self._learner.encoder.encode(batch))
        return 1 / (1 + np.exp(-logits_B.astype(np.float64)))

    def _read(self, row: Row) -> Row:
        """Of a row, what the schema names."""
        columns = self._columns
        names = (columns.timestamp, *columns.categorical, *columns.numeric)
        return {name: row[name] for name in names if name in row}


def _rows(X: Any) -> list[dict[Any, Any]]:
    return X.to_pylist() if isinstance(X, pa.Table) else X.to_dict("records")


def _plain(x: Mapping[Any, Any]) -> Row:
    return {str(name): _value(value) for name, value in x.items()}


def _value(value: Any) -> Any:
    """As an event has it: no numpy, numbers for booleans, None for not a number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _grown(columns: Schema | None, rows: Sequence[Row]) -> Schema | None:
    """The schema with what `rows` bring: strings are categorical, numbers numeric; sorted, so order
    means nothing."""
    categorical, numeric = (
        (set(columns.categorical), set(columns.numeric)) if columns else (set(), set())
    )
    for row in rows:
        for name, value in row.items():
            if value is None or name in categorical or name in numeric:
                continue
            if not isinstance(value, str | int | float):
                raise FeatureError(name, "must be a string or a number", value)
            (categorical if isinstance(value, str) else numeric).add(name)
    if not categorical and not numeric:
        return None
    label = "label"
    while label in categorical or label in numeric:
        label = f"_{label}"
    return Schema(
        label=label,
        timestamp=None,
        categorical=tuple(sorted(categorical)),
        numeric=tuple(sorted(numeric)),
    )
