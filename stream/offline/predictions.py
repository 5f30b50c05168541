"""The predictions of a backtest, one row an event, as a Parquet file.

In: each batch with what was predicted of it: by the checkpoint that was served, and by the learner
just before it learned the batch. Out: a file that gets its name once it is complete. Rows are in
the order of the events, policy by policy. Memory does not grow with the file.

Shapes: B events.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.recording import Recording
from niwaki.stream.recordings.writing import RecordingWriter, batch_to_table
from niwaki.stream.training.served_replica import ServedReplica

OPTION = "--predictions"
COLUMNS = ("policy", "version", "prediction", "learned")
"""Columns that the file has beside those of the events."""
_ROWS_AT_ONCE = 8_192


class _Waiting(NamedTuple):
    """A batch whose served predictions are not known yet."""

    batch: EventBatch
    learned_B: np.ndarray
    version: int


class PredictionsFile:
    """A file of predictions that is being written."""

    def __init__(self, writer: RecordingWriter, schema: Schema):
        self._writer = writer
        self._schema = schema

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._writer.events

    def of_policy(self, policy: str, served: ServedReplica) -> "PolicyPredictions":
        """The rows of one policy, as `served` predicts them."""
        return PolicyPredictions(self._writer, self._schema, policy, served)


@contextmanager
def predictions_file(path: Path, recording: Recording, schema: Schema) -> Iterator[PredictionsFile]:
    """For a `with` statement: the rows written in it become the file `path`; after an error there
    is none. Raises `ConfigError` where the file can't be written, or can't be what was meant."""
    if path.suffix.lower() != ".parquet":
        raise ConfigError(OPTION, "writes Parquet: the name must end in .parquet", str(path))
    if any(path.resolve() == part.path.resolve() for part in recording.parts):
        raise ConfigError(OPTION, "must not name a file of the recording", str(path))
    taken = [name for name in COLUMNS if name in schema.columns]
    if taken:
        rule = "adds a column of this name, and the events have one: rename it, or --ignore it"
        raise ConfigError(OPTION, rule, taken[0])
    with RecordingWriter(path) as writer:
        yield PredictionsFile(writer, schema)


class PolicyPredictions:
    """Pairs the predictions of the learner with those of what is served, which arrive later, from
    the replica's thread. For one thread, but for that."""

    def __init__(self, writer: RecordingWriter, schema: Schema, policy: str, served: ServedReplica):
        self._writer = writer
        self._schema = schema
        self._policy = policy
        self._replica = served
        self._waiting: deque[_Waiting] = deque()
        self._served: deque[np.ndarray] = deque()
        self._rows: list[pa.Table] = []
        served.observe(self._served.append)

    def add(self, batch: EventBatch, learned_B: np.ndarray, version: int) -> None:
        """Add a batch, with the learner's logits and the number of the publication that served it;
        0: nothing was published yet, and the prediction is an even chance."""
        self._waiting.append(_Waiting(batch, learned_B, version))
        while self._served:
            self._take()

    def finish(self) -> None:
        """Write the rest."""
        self._replica.settle()
        while self._served:
            self._take()
        self._write()

    def _take(self) -> None:
        waiting, logits_B = self._waiting.popleft(), self._served.popleft()
        self._rows.append(self._table(waiting, logits_B))
        if sum(map(len, self._rows)) >= _ROWS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._writer.write(pa.concat_tables(self._rows))
            self._rows = []

    def _table(self, waiting: _Waiting, logits_B: np.ndarray) -> pa.Table:
        batch, count = waiting.batch, len(waiting.batch)
        columns = _events(batch, self._schema)
        columns["policy"] = pa.repeat(self._policy, count)
        columns["version"] = pa.repeat(waiting.version, count)
        columns["prediction"] = pa.array(_probabilities(logits_B))
        columns["learned"] = pa.array(_probabilities(waiting.learned_B))
        return pa.table(columns)


def _events(batch: EventBatch, schema: Schema) -> dict[str, pa.Array]:
    """The events as the model gets them: times as times, labels as 0..1, names as text."""
    table = batch_to_table(batch, schema)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if schema.timestamp:
        times_us_B = np.round(batch.times_s_B * 1e6).astype(np.int64)
        columns[schema.timestamp] = pa.array(times_us_B).cast(pa.timestamp("us", "UTC"))
    columns[schema.label] = pa.array(batch.labels_B)
    return columns


def _probabilities(logits_B: np.ndarray) -> np.ndarray:
    """Probabilities in 64 bits: a log loss of them is that of the logits."""
    logits_B = logits_B.astype(np.float64)
    probabilities_B: np.ndarray = np.exp(-np.logaddexp(0.0, -logits_B))
    return probabilities_B
