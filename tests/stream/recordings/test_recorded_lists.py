"""Lists, weights and sampling ratios in files: what is written is read back, in every format, and
on the way through Kafka."""

import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import ENCODERS
from niwaki.stream.events.rejects import Tally
from niwaki.stream.recordings import writing
from niwaki.stream.recordings.recording import Recording, read_recording
from niwaki.stream.recordings.replay import replay
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from tests.support.messages import same

SCHEMA = Schema(categorical=("user",), lists=("seen", "tags"), weight="w", sampling_ratio="kept")
FORMATS = ["parquet", "jsonl", "csv"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
LISTS = st.none() | st.lists(TEXT | st.integers(0, 9), max_size=3)
MAPS = st.none() | st.dictionaries(TEXT, st.floats(0, 9, width=32), max_size=3)


def row(**changes: object) -> dict:
    good = {"label": 1, "ts": 5, "user": "ann", "w": 1.0, "kept": 1.0, "seen": ["a", "b"]}
    return good | changes


def batch_of(rows: list[dict]) -> EventBatch:
    return rows_to_batch(rows, SCHEMA, labelled=True, timed=True)


ROWS = st.lists(
    st.builds(
        row,
        seen=LISTS,
        tags=LISTS | MAPS,
        w=st.floats(0, 9, width=32),
        kept=st.floats(0.125, 1, width=32),
    ),
    min_size=1,
    max_size=6,
)


def read(path: Path, schema: Schema = SCHEMA) -> EventBatch:
    chunks = list(read_recording(path, schema))
    assert not any(chunk.rejects for chunk in chunks)
    return EventBatch.concat([chunk.batch for chunk in chunks])


class Outbox:
    """A sink that keeps what it is sent."""

    def __init__(self):
        self.values: list[bytes] = []

    def send(self, value: bytes) -> None:
        self.values.append(value)

    def flush(self) -> None:
        pass


@given(ROWS, st.integers(1, 6))
@settings(max_examples=60)
def test_events_are_read_back_from_every_format_and_from_messages(rows, cut):
    batch = batch_of(rows)
    parts = [batch.slice(at, min(at + cut, len(rows))) for at in range(0, len(rows), cut)]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in FORMATS:
            path = Path(folder) / f"events.{suffix}"
            with write_recording(path) as recording:
                for part in parts:
                    recording.write(batch_to_table(part, SCHEMA))
            assert same(read(path), batch), suffix
            for wire in ENCODERS:
                outbox = Outbox()
                replay(Recording(path), outbox, SCHEMA, tally=Tally(), wire=wire)
                decoded = EventDecoder(SCHEMA).decode(outbox.values)
                assert same(decoded.batch, batch), (suffix, wire)
                assert decoded.rejects == []


@pytest.mark.parametrize("suffix", ["parquet", "parquet.gz"])
def test_a_file_of_lists_becomes_one_of_maps_with_the_first_weight(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(writing, "_ROW_GROUP_EVENTS", 4)
    plain = [row(seen=["a", str(at)] if at % 3 else None, tags=["x"]) for at in range(10)]
    weighted = [row(tags={"x": 0.5}), row(seen={"y": 2})]
    for name, rows in (("plain", plain), ("mixed", [*plain, *weighted, *plain])):
        files = []
        for cut in (1, 7, 100):
            path = tmp_path / f"{name}{cut}.{suffix}"
            with write_recording(path) as recording:
                for at in range(0, len(rows), cut):
                    recording.write(batch_to_table(batch_of(rows[at : at + cut]), SCHEMA))
            assert same(read(path), batch_of(rows))
            files.append(path.read_bytes())
        assert len(set(files)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}{cut}.{suffix}" for name in ("plain", "mixed") for cut in (1, 7, 100)
    )
    if suffix == "parquet":
        kinds = [pq.read_schema(tmp_path / f"{name}1.parquet") for name in ("plain", "mixed")]
        assert kinds[0].field("seen").type == pa.list_(pa.string())
        assert pa.types.is_map(kinds[1].field("seen").type)


def test_csv_has_lists_as_json_and_tells_missing_from_empty(tmp_path):
    path = tmp_path / "events.csv"
    rows = [row(seen=["a", "b|c"]), row(seen=None), row(seen=[]), row(seen=["d"], tags={"x": 0.5})]
    with write_recording(path) as recording:
        recording.write(batch_to_table(batch_of(rows), SCHEMA))
    found = list(csv.DictReader(path.read_text().splitlines()))
    assert [one["seen"] for one in found] == ['["a","b|c"]', "", "[]", '["d"]']
    assert json.loads(found[3]["tags"]) == {"x": 0.5}
    assert read(path).lists[0].to_pylist() == [
        [("a", 1.0), ("b|c", 1.0)],
        None,
        [],
        [("d", 1.0)],
    ]


def test_a_bare_empty_field_is_missing_and_a_quoted_one_is_an_empty_list(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text('label,genres\n1,Action|Comedy\n0,\n1,""\n0,\\N\n1," Drama | "\n')
    batch = read(path, Schema(timestamp=None, lists=("genres",)))
    names = [one and [name for name, _ in one] for one in batch.lists[0].to_pylist()]
    assert names == [["Action", "Comedy"], None, [], None, ["Drama"]]


def test_maps_of_json_are_found_by_their_name(tmp_path):
    path = tmp_path / "events.jsonl"
    schema = Schema(timestamp=None, lists=("interests",), weight="w")
    path.write_text('{"label": 1, "w": 1, "interests": {"a": 0.5, "b.c": 2}}\n')
    assert read(path, schema).lists[0].to_pylist() == [[("a", 0.5), ("b.c", 2.0)]]
    path.write_text('{"label": 1, "w": 1, "interest": {"a": 0.5}}\n')
    with pytest.raises(ConfigError, match="has no column 'interests'"):
        read(path, schema)
    path.write_text('{"label": 1, "interests": ["a"]}\n')
    with pytest.raises(ConfigError, match="has no column 'w', which the schema names"):
        read(path, schema)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("column", ["w", "kept", "seen"])
def test_a_file_without_a_column_that_must_be_there_is_refused(tmp_path, suffix, column):
    path = tmp_path / f"events.{suffix}"
    table = batch_to_table(batch_of([row(), row()]), SCHEMA).drop_columns([column])
    with write_recording(path) as recording:
        recording.write(table)
    if suffix == "jsonl" and column == "seen":  # null may be left out of JSON
        assert read(path).lists[0].to_pylist() == [None, None]
        return
    with pytest.raises(ConfigError, match=f"has no column '{column}'"):
        read(path)


def test_a_map_that_has_a_value_twice_is_written_as_pairs(tmp_path):
    path = tmp_path / "events.jsonl"
    lists = pa.array([[("a", 0.5), ("a", 2.0)]], pa.map_(pa.string(), pa.float32()))
    with write_recording(path) as recording:
        recording.write(pa.table({"label": [1], "seen": lists}))
    batch = read(path, Schema(timestamp=None, lists=("seen",)))
    assert batch.lists[0].to_pylist() == [[("a", 0.5), ("a", 2.0)]]


def test_the_bytes_of_many_lists_do_not_depend_on_how_they_came(tmp_path):
    counts = np.random.default_rng(0).integers(0, 30, 20_000)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    values = pa.array(np.arange(offsets[-1]).astype(str))
    table = pa.table({"seen": pa.ListArray.from_arrays(pa.array(offsets), values)})
    files = []
    for cut in (1_000, 777, len(table)):
        path = tmp_path / f"{cut}.parquet"
        with write_recording(path) as recording:
            for at in range(0, len(table), cut):
                recording.write(table.slice(at, cut))
        files.append(path.read_bytes())
    assert len(set(files)) == 1
