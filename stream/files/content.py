"""Beneath `recording` and `pieces`: files of any kind opened, formats by content and by name,
tables cut to size.

In: a `Part`. Out: its uncompressed bytes in order (`Content`), whose first ones tell the kind of
file, whatever its name; a kind that is known and not read is named, with the way on. Errors of the
file system, of decompression and of Arrow become a `ConfigError` that names the file.
"""

import bz2
import gzip
import lzma
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.stream.errors import ConfigError
from niwaki.stream.events.rejects import Reject

_FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_HEAD_BYTES = 4096  # tell the kind of a file
_READ_BYTES = 2**18
_COPY_BYTES = 2**22
_DEPTH = 3  # of compressed files in one another
_UNPACKERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (rb"\x1f\x8b\x08", lambda file: gzip.GzipFile(fileobj=file)),
    (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", bz2.BZ2File),
    (rb"\xfd7zXZ\0", lzma.LZMAFile),
    (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", lambda file: _arrow_unpacker(file, "zstd")),
    (rb"\x04\x22\x4d\x18", lambda file: _arrow_unpacker(file, "lz4")),
)
"""First bytes of compressed files, and what unpacks these."""
_KINDS = (
    (rb"PAR1([^ -~\t\r\n]|$)", "parquet"),
    (rb"ARROW1\0\0", "arrow"),
    (rb"\xff\xff\xff\xff", "arrow stream"),
)
_REFUSED = (
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive in another file; unpack it first"),
    (rb"PARE[^ -~\t\r\n]", "an encrypted Parquet file; write it without encryption"),
    (rb"FEA1\0", "a Feather file of version 1; write it as Parquet, or as Feather of version 2"),
    (rb"ORC(?=[^\0]*\0)", "an ORC file; write it as Parquet, with Spark or pyarrow.orc"),
    (rb"Obj\x01", "an Avro file; write it as Parquet or JSON Lines"),
    (rb"SEQ[\x04-\x06]", "a Hadoop sequence file; write it as Parquet"),
    (rb"SQLite format 3\0", "an SQLite database; export its table as CSV"),
    (rb".{8}DUCK[^ -~]", "a DuckDB database; export its table as Parquet"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook; save its sheet as CSV"),
    (rb"\x89HDF\r\n", "an HDF5 file; write its table as Parquet"),
    (rb"\x93NUMPY", "a NumPy array; write it as Parquet or CSV"),
    (
        rb"\x80[\x02-\x05][\x80-\xff}\](cX]",
        "a pickle, which can run code; write it as Parquet or CSV",
    ),
    (rb"RDX[23]\n", "a data file of R; write it as Parquet or CSV"),
    (rb".{257}ustar", "a tar archive; unpack it, and give the folder"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a", "an archive of 7z or RAR; unpack it first"),
    (rb"\xff\x06\0\0sNaPpY", "compressed with snappy; unpack it first"),
    (rb"%PDF-|\x89PNG|\xff\xd8\xff", "a document or an image; give the data that it shows"),
    (rb"version https://git-lfs", "a pointer of Git LFS; get the file itself with git lfs pull"),
    (rb"(?i)\s*<(!doctype html|html)", "a web page; does the download need a login?"),
    (rb"\s*<\?xml", "an XML file; write it as CSV or JSON Lines"),
)
"""First bytes of files that are known and not read, what they are, and the way on."""


class Part(NamedTuple):
    """A file of a recording, or a member of a zip archive."""

    path: Path
    member: str = ""
    """Name in the archive `path`; empty: the part is the file itself."""
    constants: tuple[tuple[str, str | None], ...] = ()
    """Names and values of the columns that its folders stand for; None: null."""

    @property
    def name(self) -> Path:
        """The path as it is shown, with the member."""
        return self.path / self.member if self.member else self.path

    @property
    def size_bytes(self) -> int:
        """Size on disk, of a member that in its archive: the sum of what `on_bytes` learns."""
        with translated_file_errors(self.name):
            if not self.member:
                return self.path.stat().st_size
            with zipfile.ZipFile(self.path) as archive:
                return archive.getinfo(self.member).compress_size


class Rows(NamedTuple):
    """Rows of a part as its owner has them: the columns of a table, or the bytes of JSON values."""

    rows: pa.Table | list[bytes]
    places_B: np.ndarray
    """int64, the line or row in the part at which each of `rows` begins, from 1."""
    rejects: list[Reject]


class Bytes:
    """Bytes in order, of which the next ones can be looked at before they are read. A binary file
    to those who only read."""

    closed = False

    def __init__(self, read: Callable[[int], bytes]):
        """`read`: about as many of the next bytes as asked for; none only at the end."""
        self._read, self._ahead = read, b""

    def peek(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        while len(self._ahead) < size and (more := self._read(size - len(self._ahead))):
            self._ahead = self._ahead + more if self._ahead else more
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """The next `size` bytes, once; fewer only at the end."""
        found = self.peek(size)
        self._ahead = self._ahead[size:]
        return found

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""


class Content(Bytes):
    """The uncompressed bytes of a part. `name`: the path as it is shown."""

    def __init__(self, name: Path, read: Callable[[int], bytes]):
        super().__init__(read)
        self.name = name
        self.plain: tuple[Path, _Progress] | None = None
        """The file on disk with the very same bytes, where there is one."""

    def kind(self) -> str:
        """The format that the first bytes tell: parquet, arrow, arrow stream or text. Raises
        `ConfigError` for an empty file, and for one of a kind that is known and not read."""
        head = self.peek(_HEAD_BYTES)
        if not head:
            raise ConfigError(str(self.name), "is empty")
        for start, what in _REFUSED:
            if re.match(start, head, re.DOTALL):
                raise ConfigError(str(self.name), f"is {what}")
        return next((kind for start, kind in _KINDS if re.match(start, head)), "text")

    @contextmanager
    def seekable(self) -> Iterator[tuple[pa.NativeFile, Callable[[float], object]]]:
        """All bytes as a file that need not be read in order, and a function that is to learn which
        share of it is read, 0..1.

        What is compressed is unpacked into a temporary file, and counts as read from then on.
        """
        if self.plain:
            path, progress = self.plain
            with pa.OSFile(str(path)) as file:
                yield file, progress.reach
            return
        with tempfile.NamedTemporaryFile() as unpacked:
            while block := self.read(_COPY_BYTES):
                unpacked.write(block)
            unpacked.flush()
            with pa.OSFile(unpacked.name) as file:
                yield file, lambda share: None


class _Progress:
    """The bytes on disk that are read so far, each told once."""

    def __init__(self, stored_bytes: int, unpacked_bytes: int, on_bytes: Callable[[int], object]):
        self._stored, self._unpacked, self._on_bytes = stored_bytes, unpacked_bytes, on_bytes
        self._read = self._told = 0

    def add(self, count: int) -> None:
        """So many more bytes are read."""
        self._read += count
        self.reach(self._read / self._unpacked if self._unpacked else 0)

    def reach(self, share: float) -> None:
        """This share of all bytes is read, 0..1."""
        done = int(self._stored * share)
        if done > self._told:
            self._on_bytes(done - self._told)
            self._told = done


@contextmanager
def open_part(
    part: Part, on_bytes: Callable[[int], object] = lambda count: None
) -> Iterator[Content]:
    """The content of a part, whatever it is compressed with.

    `on_bytes` learns how many more bytes on disk are read. Errors of the file, in the body of the
    `with` statement too, become a `ConfigError`.
    """
    with translated_file_errors(part.name), ExitStack() as stack:
        stored_bytes = part.size_bytes
        if part.member:
            file, unpacked_bytes = _open_member(part, stack)
        else:
            file = stack.enter_context(part.path.open("rb", _READ_BYTES))
            unpacked_bytes = stored_bytes
        progress = _Progress(stored_bytes, unpacked_bytes, on_bytes)

        def read(size: int) -> bytes:
            block: bytes = file.read(size)
            progress.add(len(block))
            return block

        content = Content(part.name, read)
        if not part.member and part.path.is_file():
            content.plain = part.path, progress
        for _ in range(_DEPTH):
            head = content.peek(16)
            unpack = next((unpack for start, unpack in _UNPACKERS if re.match(start, head)), None)
            if unpack is None:
                break
            content = Content(part.name, stack.enter_context(unpack(content)).read)
        yield content


def _open_member(part: Part, stack: ExitStack) -> tuple[Any, int]:
    """A member of a zip archive as a file, and its size."""
    archive = stack.enter_context(zipfile.ZipFile(part.path))
    try:
        file = stack.enter_context(archive.open(part.member))
    except RuntimeError as error:  # encrypted, or a rare compression
        raise ConfigError(
            str(part.name), f"can't be unpacked ({error}); unpack it first"
        ) from error
    return file, archive.getinfo(part.member).file_size


def _arrow_unpacker(file: Bytes, codec: str) -> pa.NativeFile:
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)


def written_format(path: Path) -> tuple[str, bool]:
    """Format in which a recording is written (parquet, jsonl or csv), and True for a gzipped file,
    by the end of its name."""
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
        if error.errno is None:  # of a library that unpacks or of Arrow, not of the system
            raise _damaged(path, error) from error
        raise ConfigError(
            str(path), f"can't be read or written ({error.strerror or error})"
        ) from error
    except (pa.ArrowException, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    rule = f"is damaged or not of the kind that its name says ({reason:.200})"
    return ConfigError(str(path), rule)


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
