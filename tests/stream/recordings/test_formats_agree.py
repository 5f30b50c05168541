"""Any table gives one schema and the same events, whether it is CSV, JSON Lines or Parquet, and
every one of its rows is learned or told."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.proposal import Asked
from niwaki.stream.recordings.recording import Recording

WORDS = st.text(st.sampled_from("abcXYZ 0123456789,;|\"'\n-_.é漢%$"), min_size=1, max_size=8)
KINDS = {
    "integer": (pa.int64(), st.integers(-5, 100_000)),
    "id": (pa.int64(), st.integers(10**6, 10**9)),
    "few": (pa.int32(), st.integers(0, 5)),
    "float": (pa.float64(), st.floats(-1e6, 1e6, allow_nan=False)),
    "whole": (pa.float64(), st.integers(0, 500).map(float)),
    "boolean": (pa.bool_(), st.booleans()),
    "string": (pa.string(), WORDS),
    "digits": (pa.string(), st.integers(0, 999).map(lambda number: f"{number:05}")),
    "number": (pa.string(), st.integers(0, 10**6).map(lambda number: f"{number:,}")),
    "odd": (pa.string(), st.sampled_from(["1.5", "2.5", "3", "4", "7", "NA", "x", "null", ""])),
}
NAMES = st.sampled_from(
    "user item price n_views c_type a_b ad_id Age count 'q' prix(€) a,b two|bars semi;colon".split()
)


@st.composite
def tables(draw) -> pa.Table:
    """A table with a label, event times and columns of all kinds, some values missing."""
    rows = draw(st.integers(2, 40))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    labels = draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    kind = draw(st.sampled_from([pa.int64(), pa.float64(), pa.bool_()]))
    columns = {
        "ts": pa.array([1_700_000_000_000 + 977 * at for at in range(rows)]),
        "label": pa.array(labels).cast(kind),
    }
    for name in names:
        kind, values = KINDS[draw(st.sampled_from(sorted(KINDS)))]
        filled = st.lists(st.none() | values, min_size=rows, max_size=rows)
        columns[name] = pa.array(draw(filled.filter(any_known)), kind)
    return pa.table(columns)


def any_known(values: list) -> bool:
    return any(value is not None for value in values)


def written(table: pa.Table, folder: Path) -> list[Path]:
    files = [folder / f"events.{suffix}" for suffix in ("csv", "jsonl", "parquet")]
    pyarrow.csv.write_csv(table, files[0])
    rows = ({k: v for k, v in row.items() if v is not None} for row in table.to_pylist())
    files[1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(table, files[2])
    return files


def read(path: Path) -> tuple[Schema, str, EventBatch, int]:
    """The schema that a file suggests, its decimal mark, its events, and those left out."""
    recording = Recording(path)
    proposal = recording.propose(Asked())
    chunks = list(recording.read(proposal.schema))
    rejected = sum(len(chunk.rejects) for chunk in chunks)
    batch = EventBatch.concat([chunk.batch for chunk in chunks])
    return proposal.schema, proposal.decimal, batch, rejected


@given(tables())
@settings(max_examples=150)
def test_three_formats_of_one_table_give_one_schema_and_the_same_events(table):
    with tempfile.TemporaryDirectory() as folder:
        files = written(table, Path(folder))
        try:
            found = [read(path) for path in files]
        except ConfigError as error:
            # All columns may be of no use; then all three say so.
            for path in files:
                try:
                    read(path)
                except ConfigError:
                    continue
                raise AssertionError(f"{path.name} can be read: {error}") from error
            return
    schema, decimal, batch, rejected = found[0]
    assert len(batch) + rejected == len(table)
    for other, mark, events, left_out in found[1:]:
        assert (ordered(other), mark, left_out) == (ordered(schema), decimal, rejected)
        np.testing.assert_array_equal(events.labels_B, batch.labels_B)
        np.testing.assert_array_equal(events.times_s_B, batch.times_s_B)
        assert by_name(other, events) == by_name(schema, batch)


def ordered(schema: Schema) -> Schema:
    """The schema with its columns by name: in JSON a column is known by the first row that has
    it."""
    roles = ("categorical", "numeric", "ignore")
    return msgspec.structs.replace(
        schema, **{role: tuple(sorted(getattr(schema, role))) for role in roles}
    )


def by_name(schema: Schema, batch: EventBatch) -> dict[str, list]:
    columns = [column.to_pylist() for column in batch.categorical]
    numbers = [list(map(str, column)) for column in batch.numerics_BN.T]
    return dict(zip((*schema.categorical, *schema.numeric), columns + numbers, strict=True))


def test_times_are_one_event_time_in_three_formats(tmp_path):
    moments = [datetime(2026, 11, 28, 10, at, tzinfo=UTC) for at in range(30)]
    table = pa.table(
        {
            "when": pa.array(moments, pa.timestamp("us", "UTC")),
            "click": [at % 2 for at in range(30)],
            "user": [f"u{at % 7}" for at in range(30)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "a.csv")
    rows = [row | {"when": row["when"].isoformat()} for row in table.to_pylist()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for suffix in ("parquet", "csv", "jsonl"):
        schema, _, batch, _ = read(tmp_path / f"a.{suffix}")
        assert (schema.timestamp, schema.timestamp_format) == ("when", "iso")
        assert batch.times_s_B.tolist() == [moment.timestamp() for moment in moments]
