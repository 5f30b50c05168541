"""Beneath `recording`: formats by a file's name, plain and gzipped files, tables cut to size.

Errors of the file system, gzip and Arrow become a `ConfigError` that names the file.
"""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError

_FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


def recording_format(path: Path) -> tuple[str, bool]:
    """Format (parquet, jsonl or csv), and True for a gzipped file, by the end of the name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    suffix = "".join(suffixes[:-1][-1:] if gzipped else suffixes[-1:])
    if suffix not in _FORMATS:
        raise ConfigError(
            str(path), f"the name must end in {', '.join(_FORMATS)}, or in one of these and .gz"
        )
    return _FORMATS[suffix], gzipped


def is_recording(path: Path) -> bool:
    """True for a file whose name stands for a format."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return path.is_file() and suffixes[-1:] != [] and suffixes[-1] in _FORMATS


@contextmanager
def translated_file_errors(path: Path) -> Iterator[None]:
    """Context in which any error of the file becomes a `ConfigError` about `path`."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            str(path), f"can't be read or written ({error.strerror or error})"
        ) from error
    except (pa.ArrowException, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            str(path), f"is damaged or not of the kind that its name says ({reason:.200})"
        ) from error


@contextmanager
def open_recording(path: Path) -> Iterator[BufferedIOBase]:
    """The file's bytes from the first to the last, uncompressed."""
    with gzip.open(path) if recording_format(path)[1] else path.open("rb") as file:
        yield file


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file; a gzipped one is unpacked into a temporary file, since Parquet is not read in
    order."""
    with open_recording(path) as file:
        if not recording_format(path)[1]:
            yield pq.ParquetFile(file)
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(file, unpacked)
            yield pq.ParquetFile(unpacked)


def schema_columns(schema: Schema) -> list[str]:
    """The columns that the schema reads."""
    return [
        schema.label,
        *([schema.timestamp] if schema.timestamp else []),
        *schema.categorical,
        *schema.numeric,
    ]


def require_columns(path: Path, wanted: Sequence[str], names: Sequence[str]) -> None:
    """Raise `ConfigError` unless each wanted column is in the file, once."""
    for name in wanted:
        if name not in names:
            meant = nearest(name, names, cutoff=0) or "none"
            rule = f"has no column {name!r}, which the schema names; the nearest is {meant!r}"
            raise ConfigError(str(path), rule)
        if names.count(name) > 1:
            raise ConfigError(str(path), f"has more than one column {name!r}")


def rechunk(
    tables: Iterable[pa.Table], chunk_events: int, limit_events: int | None = None
) -> Iterator[pa.Table]:
    """Rows of `tables`, in tables of `chunk_events` except for the last one; `limit_events` in
    all."""
    held: list[pa.Table] = []
    length, left = 0, limit_events
    for table in tables:
        if left is not None:
            table = table.slice(0, left)
            left -= len(table)
        held.append(table)
        length += len(table)
        if length >= chunk_events:
            whole = pa.concat_tables(held)
            for start in range(0, length - chunk_events + 1, chunk_events):
                yield whole.slice(start, chunk_events)
            held, length = [whole.slice(length - length % chunk_events)], length % chunk_events
        if left == 0:
            break
    if length:
        yield pa.concat_tables(held)
