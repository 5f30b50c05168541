from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.pieces import Part, Piece, column_names, read_pieces

ROWS = 5000
TABLE = pa.table(
    {
        "ts": pa.array(np.arange(ROWS) * 1000, pa.timestamp("us", "UTC")),
        "label": np.arange(ROWS) % 3 == 0,
        "user": pa.array([f"u{at % 50}" for at in range(ROWS)]).dictionary_encode(),
        "tags": pa.array([["a", "b"][: at % 3] for at in range(ROWS)]),
        "user.geo": pa.array([{"land": "se", "at": [at]} for at in range(ROWS)]),
        "price": pa.array([None if at % 7 == 0 else at / 8 for at in range(ROWS)], pa.float32()),
    }
)


def write_ipc(path: Path, table: pa.Table, opener=pa.ipc.new_file, **options) -> None:
    with opener(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=1300)


WRITERS = {
    "parquet": lambda path, table: pq.write_table(table, path, row_group_size=1300),
    "parquet with gzip": lambda path, table: pq.write_table(
        table, path, row_group_size=999, compression="gzip", data_page_version="2.0"
    ),
    "arrow": write_ipc,
    "arrow with lz4": lambda path, table: write_ipc(path, table, compression="lz4"),
    "arrow with zstd": lambda path, table: write_ipc(path, table, compression="zstd"),
    "arrow stream": lambda path, table: write_ipc(path, table, pa.ipc.new_stream),
    "arrow stream with zstd": lambda path, table: write_ipc(
        path, table, pa.ipc.new_stream, compression="zstd"
    ),
    "feather": lambda path, table: feather.write_feather(table, str(path), chunksize=1300),
}


def pieces(path: Path, **options) -> list[Piece]:
    return list(read_pieces(Part(path), EventsConfig(), **options))


@pytest.fixture(params=WRITERS)
def writer(request):
    return WRITERS[request.param]


def test_rows_are_read_with_the_types_of_the_file(tmp_path, writer):
    path = tmp_path / "events.csv"  # the name does not matter
    writer(path, TABLE)
    for chunk_rows, limit in ((700, None), (1300, 3000), (10_000, None)):
        found = pieces(path, chunk_rows=chunk_rows, limit=limit)
        rows = pa.concat_tables([piece.rows for piece in found])
        count = limit or ROWS
        assert rows.to_pylist() == TABLE.slice(0, count).to_pylist()
        assert rows.schema.equals(TABLE.schema)
        assert {len(piece.rows) for piece in found[:-1]} <= {chunk_rows}
        assert [place for piece in found for place in piece.places_B] == [*range(1, count + 1)]
        assert {(piece.unit, len(piece.rejects)) for piece in found} == {("row", 0)}
    assert column_names(Part(path), EventsConfig()) == TABLE.column_names


def test_only_the_columns_that_are_asked_for_are_read(tmp_path, writer):
    writer(tmp_path / "events", TABLE)
    wanted = ["price", "user", "none"]
    rows = pa.concat_tables(
        [piece.rows for piece in pieces(tmp_path / "events", columns=wanted, chunk_rows=900)]
    )
    assert rows.to_pylist() == TABLE.select(["user", "price"]).to_pylist()
    found = pieces(tmp_path / "events", columns=[])
    assert sum(len(piece.places_B) for piece in found) == ROWS


def test_a_file_without_rows_has_columns(tmp_path, writer):
    writer(tmp_path / "events", TABLE.slice(0, 0))
    (piece,) = pieces(tmp_path / "events")
    assert piece.rows.column_names == TABLE.column_names and len(piece.places_B) == 0


def test_two_columns_of_one_name_are_said_in_one_line(tmp_path, writer):
    writer(tmp_path / "events", pa.table([[1], [2]], names=["user", "user"]))
    with pytest.raises(ConfigError, match="has two columns called 'user'"):
        pieces(tmp_path / "events")


def test_a_damaged_file_is_an_error_that_names_it(tmp_path, writer):
    path = tmp_path / "events"
    writer(path, TABLE)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ConfigError, match=f"^{path}: is damaged"):
        pieces(path)


def test_no_damage_of_an_arrow_file_does_harm(tmp_path):
    path = tmp_path / "events"
    write_ipc(path, TABLE.slice(0, 50))
    data = path.read_bytes()
    random = np.random.default_rng(5)
    for _ in range(150):
        damaged = bytearray(data)
        for at in random.integers(8, len(data), 3):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            for piece in pieces(path):
                piece.rows.to_pylist()
        except (ConfigError, UnicodeDecodeError, OverflowError):
            pass  # the last one of a time that Python does not have; and no crash


def test_the_index_that_pandas_stored_is_left_as_it_is(tmp_path):
    table = pa.table({"label": [1, 0], "__index_level_0__": [7, 9]})
    pq.write_table(table.replace_schema_metadata({"pandas": "{}"}), tmp_path / "events")
    (piece,) = pieces(tmp_path / "events")
    assert piece.rows.to_pylist() == table.to_pylist()


def test_a_name_with_a_point_is_a_column_and_not_a_member(tmp_path):
    table = pa.table({"user.id": [1], "user": [{"id": 2}]})
    pq.write_table(table, tmp_path / "events")
    for name in table.column_names:
        (piece,) = pieces(tmp_path / "events", columns=[name])
        assert piece.rows.to_pylist() == table.select([name]).to_pylist()
