import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import Odd
from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from tests.support.streams import SCHEMA, click_events

FORMATS = ["parquet", "jsonl", "csv", "ndjson", "parquet.gz", "jsonl.gz", "csv.gz"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOAT = st.floats(width=32, allow_infinity=False, allow_nan=False)
EVENT = st.fixed_dictionaries(
    {
        "ts": st.integers(-(10**12), 10**13),
        "label": st.floats(0, 1, width=32),
        "user": st.none() | TEXT,
        "item": st.none() | TEXT,
        "age": st.none() | FLOAT,
        "price": st.none() | FLOAT,
    }
)
SMALL = Schema(categorical=("user", "item"), numeric=("age", "price"))


def table_of(rows: list[dict]) -> pa.Table:
    strings, floats = pa.string(), pa.float32()
    types = {
        "ts": pa.int64(),
        "label": floats,
        "user": strings,
        "item": strings,
        "age": floats,
        "price": floats,
    }
    return pa.table(
        {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    )


def write(path: Path, *tables: pa.Table) -> Path:
    with write_recording(path) as recording:
        for table in tables:
            recording.write(table)
    return path


def read(path: Path, schema: Schema = SMALL, **options) -> tuple[EventBatch, list]:
    chunks = list(read_recording(path, schema, **options))
    rejects = [reject for chunk in chunks for reject in chunk.rejects]
    return EventBatch.concat([chunk.batch for chunk in chunks]), rejects


def same(one: EventBatch, other: EventBatch) -> bool:
    return (
        np.array_equal(one.labels_B, other.labels_B)
        and np.array_equal(one.times_s_B, other.times_s_B)
        and all(
            a.to_pylist() == b.to_pylist()
            for a, b in zip(one.categorical, other.categorical, strict=True)
        )
        and np.array_equal(one.numerics_BN, other.numerics_BN, equal_nan=True)
    )


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(EVENT, min_size=1, max_size=20))
def test_what_is_written_is_read_back_whatever_it_is(tmp_path_factory, suffix, rows):
    path = write(tmp_path_factory.mktemp("recording") / f"events.{suffix}", table_of(rows))
    batch, rejects = read(path)
    assert rejects == []
    assert batch.labels_B.tolist() == [row["label"] for row in rows]
    assert batch.times_s_B.tolist() == [row["ts"] / 1000 for row in rows]
    assert [column.to_pylist() for column in batch.categorical] == [
        [r["user"] for r in rows],
        [r["item"] for r in rows],
    ]
    expected = [
        [np.nan if row[name] is None else row[name] for name in ("age", "price")] for row in rows
    ]
    np.testing.assert_array_equal(batch.numerics_BN, np.array(expected, np.float32))


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_bytes_of_a_file_do_not_depend_on_how_the_tables_were_cut(tmp_path, suffix):
    table = batch_to_table(click_events(140_000 if "parquet" in suffix else 3000), SCHEMA)
    whole = write(tmp_path / f"whole.{suffix}", table).read_bytes()
    for cut in (1, 999, 132_000):
        assert (
            write(tmp_path / f"cut.{suffix}", table.slice(0, cut), table.slice(cut)).read_bytes()
            == whole
        )


@pytest.mark.parametrize("suffix", FORMATS)
def test_chunks_are_no_larger_than_asked_for_and_have_the_same_events(tmp_path, suffix):
    batch = click_events(2500)
    path = write(tmp_path / f"events.{suffix}", batch_to_table(batch, SCHEMA))
    for chunk_events in (1, 7, 1000, 2500, 10_000):
        chunks = read_recording(path, SCHEMA, chunk_events=chunk_events)
        sizes = [len(chunk.batch) for chunk in chunks]
        assert max(sizes) <= chunk_events and sum(sizes) == 2500
    assert same(read(path, SCHEMA, chunk_events=33)[0], batch)
    assert same(read(path, SCHEMA, chunk_events=33, limit_events=100)[0], batch.slice(0, 100))


@pytest.mark.parametrize("suffix", FORMATS)
def test_only_the_columns_of_the_schema_are_read(tmp_path, suffix):
    path = write(tmp_path / f"events.{suffix}", batch_to_table(click_events(50), SCHEMA))
    batch, rejects = read(path, Schema(categorical=("item",), numeric=("price",)))
    assert (len(batch), len(batch.categorical), batch.numerics_BN.shape, rejects) == (
        50,
        1,
        (50, 1),
        [],
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_column_that_is_not_there_is_named_with_the_nearest_one(tmp_path, suffix):
    path = write(tmp_path / f"events.{suffix}", batch_to_table(click_events(50), SCHEMA))
    for schema in (
        Schema(categorical=("usr",)),
        Schema(numeric=("age", "prize")),
        Schema(label="labels", numeric=("age",)),
    ):
        with pytest.raises(
            ConfigError,
            match="has no column '(usr|prize|labels)'.* nearest is '(user|price|label)'",
        ):
            read_recording(path, schema)


def test_json_lines_may_leave_a_column_out_as_long_as_none_is_called_nearly_the_same(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"ts": 1, "label": 0, "user": "a"}\n')
    batch, rejects = read(path)
    assert (batch.categorical[1].to_pylist(), rejects) == ([None], [])


def test_an_integer_is_as_good_as_its_digits(tmp_path):
    path = tmp_path / "events.parquet"
    pq.write_table(
        pa.table(
            {
                "ts": [1, 2],
                "label": [0, 1],
                "user": pa.array([12, None], pa.int32()),
                "item": ["x", ""],
            }
        ),
        path,
    )
    batch, _ = read(path, Schema(categorical=("user", "item")))
    assert [column.to_pylist() for column in batch.categorical] == [["12", None], ["x", ""]]


def test_a_bad_row_of_csv_costs_one_event_and_is_told_with_its_line(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(
        "ts,label,user,item,age,price\n"
        "1,0,a,,1.5,\n"  # line 2
        "2,0,a,b,much,2\n"
        "3,0,a,b\n"
        "4,1,,\"\",NA, 3 \n"
        "5,2,a,b,1,2\n"
        "soon,1,a,b,1,2\n"
        "6,1,a,b,1,inf\n"
        "\n"
        '7,1,"a, ""b""\nc",b,nan,1e3\n'
        "8,1,a,b,1,2,3\n"
    )  # fmt: skip
    batch, rejects = read(path)
    assert (batch.times_s_B * 1000).tolist() == [1, 2, 4, 7]
    assert [column.to_pylist() for column in batch.categorical] == [
        ["a", "a", None, 'a, "b"\nc'],
        [None, "b", "", "b"],
    ]
    expected_BN = [[1.5, np.nan], [np.nan, 2], [np.nan, 3], [np.nan, 1000]]
    np.testing.assert_array_equal(batch.numerics_BN, expected_BN)
    assert sorted((reject.position, reject.kind) for reject in rejects) == [
        (4, "row"), (6, "label"), (7, "timestamp"), (8, "numeric"), (12, "row")
    ]  # fmt: skip
    reasons = {reject.position: reject.reason for reject in rejects}
    assert "must have 6 fields, has 4" in reasons[4]
    assert reasons[7].startswith("ts: must be a number of milliseconds since the epoch")
    assert {reject.place for reject in rejects} >= {"events.csv, line 4", "events.csv, line 12"}
    (odd,) = next(iter(read_recording(path, SMALL))).odd
    assert odd == Odd("age", 1, "'much'")
    for chunk_events in (1, 2, 3, 5):
        pieces, told = read(path, chunk_events=chunk_events)
        assert same(pieces, batch) and sorted(told) == sorted(rejects)


def test_csv_may_tell_the_time_as_text(tmp_path):
    for time in ("2024-01-01 00:00:01.5", "2024-01-01T01:00:01.5+01:00"):
        path = tmp_path / "events.csv"
        path.write_text(f"time,click,user,n\n{time},1,a,3.5\n")
        schema = propose_schema(path)
        expected = {"label": "click", "timestamp": "time", "timestamp_format": "iso"}
        assert schema == Schema(**expected, categorical=("user",), numeric=("n",))
        assert read(path, schema)[0].times_s_B.tolist() == [1_704_067_201.5]


def test_lines_that_are_no_events_are_rejects_with_their_line(tmp_path):
    path = tmp_path / "events.jsonl"
    good = '{"ts": 1, "label": 1, "user": "a", "item": 3, "age": 1, "price": null}'
    path.write_text(f'{good}\n\nnonsense\n{good}\n{{"ts": 1, "label": 5}}\n')
    batch, rejects = read(path, chunk_events=2)
    assert len(batch) == 2
    assert [(reject.position, reject.kind) for reject in rejects] == [(3, "json"), (5, "label")]


def test_a_column_of_the_wrong_type_is_said_at_once(tmp_path):
    path = write(
        tmp_path / "events.parquet",
        pa.table({"ts": [1], "label": [1], "user": [[1]], "item": ["a"]}),
    )
    with pytest.raises(
        ConfigError,
        match="events.parquet: user: must be strings or integers, got a column of list",
    ):
        read_recording(path, Schema(categorical=("user", "item")))


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("events.txt", b"", "is empty"),
        ("absent.csv", None, "is not there; "),
        ("events.parquet", b"PAR1\0\0ts,label\n", "is damaged or not of the kind"),
        ("events.jsonl.gz", gzip.compress(b'{"ts": 1}\n' * 9999)[:-20], "is damaged"),
        ("events.csv", b"\n\n", "is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, name, content, text):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for use in (propose_schema, lambda path: read_recording(path, SMALL)):
        with pytest.raises(ConfigError, match=text) as caught:
            use(path)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_gets_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "events.parquet"
    table = batch_to_table(click_events(10), SCHEMA)
    write(path, table)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), write_recording(path) as recording:
        recording.write(table)
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_events_there_is_no_file(tmp_path, suffix):
    write(tmp_path / f"events.{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="can't be read or written .No such file"):
        write(tmp_path / "nowhere" / "events.csv")


@pytest.mark.parametrize(
    "columns, expected",
    [
        (
            {
                "ts": [10**12],
                "label": [1.0],
                "c_hour": [3],
                "n_temp": [0.5],
                "c_user": ["a"],
                "weight": [1.0],
            },
            Schema(categorical=("c_hour", "c_user", "weight"), numeric=("n_temp",)),
        ),
        (
            {
                "User": ["a"],
                "Clicked": [True],
                "Event_Time": pa.array([10**15], pa.timestamp("us")),
                "age": [3.5],
                "ok": [True],
            },
            Schema(
                label="Clicked",
                timestamp="Event_Time",
                timestamp_format="iso",
                categorical=("User",),
                numeric=("age", "ok"),
            ),
        ),
        (
            {
                "y": [1.0],
                "click": [1],
                "target": [2.5],
                "time": [1.5],
                "nothing": pa.nulls(1),
                "tags": [["a"]],
            },
            Schema(
                label="click",
                timestamp=None,
                categorical=("y",),
                numeric=("target", "time"),
                lists=("tags",),
                ignore=("nothing",),
            ),
        ),
        (
            {"label": [1] * 3000, "user_id": range(3000), "views": range(3000), "hour": [5] * 3000},
            Schema(timestamp=None, categorical=("user_id", "hour"), numeric=("views",)),
        ),
        (
            {
                "label": [1],
                "city": pa.array(["a"]).dictionary_encode(),
                "price": pa.array([1.5]).cast(pa.float16()),
            },
            Schema(timestamp=None, categorical=("city",), numeric=("price",)),
        ),
    ],
)
def test_a_schema_is_proposed_from_names_and_types(tmp_path, columns, expected):
    path = tmp_path / "events.parquet"
    pq.write_table(
        pa.table({name: list(c) if isinstance(c, range) else c for name, c in columns.items()}),
        path,
    )
    assert propose_schema(path) == expected


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_suggests_the_same_schema_and_can_be_read_with_it(tmp_path, suffix):
    path = write(tmp_path / f"events.{suffix}", batch_to_table(click_events(3000), SCHEMA))
    schema = propose_schema(path)
    assert (set(schema.categorical), set(schema.numeric)) == (
        set(SCHEMA.categorical),
        set(SCHEMA.numeric),
    )
    batch, rejects = read(path, schema)
    assert (len(batch), rejects) == (3000, [])


def test_values_of_several_types_in_json_lines_suggest_a_categorical_column(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"label": 1, "item": 3, "n": 1}\nnonsense\n{"label": 0, "item": "x", "n": 2.5}\n'
    )
    assert propose_schema(path) == Schema(timestamp=None, categorical=("item",), numeric=("n",))


def test_without_a_label_or_anything_to_learn_from_no_schema_is_proposed(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("ts,user\n1,a\n")
    with pytest.raises(
        ConfigError, match="no column called label, click, .* --label COLUMN; .* others: ts, user"
    ):
        propose_schema(path)
    path.write_text("ts,label\n1700000000,0\n")
    with pytest.raises(ConfigError, match="have no column to learn from beside 'label'"):
        propose_schema(path)
