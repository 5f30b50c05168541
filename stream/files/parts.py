"""Beneath `pieces`: the parts of a recording, in the order in which they are read.

In: paths of files, folders and zip archives. Out: a `Part` for each file, with the columns that
its folders stand for. Folders are read as Spark and Hive write them: names that begin with `_` or
`.` are no data, and a folder `key=value` is a column of one value.
"""

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError
from niwaki.stream.files.content import Part, translated_file_errors

_NULL = "__HIVE_DEFAULT_PARTITION__"
_NO_DATA = frozenset(
    ".crc .gif .htm .html .ipynb .jpeg .jpg .log .md .pdf .png .py .rst .sh .toml .yaml".split()
)
"""Suffixes of what lies beside data in a folder."""
_TABLES = (
    ("_delta_log", "is a Delta table, whose folder holds old rows too; export it as Parquet first"),
    (".hoodie", "is a Hudi table, whose folder holds old rows too; export it as Parquet first"),
    ("metadata/version-hint.text", "is an Iceberg table; export it as Parquet first"),
)
"""What lies in folders that are more than their files."""


def parts(paths: Sequence[str | Path]) -> list[Part]:
    """The files that `paths` stand for: of a folder or a zip archive those in it, by name, where
    part-2 comes before part-10.

    Several paths keep their order, unless it is that of the alphabet, as a shell has it: then
    part-2 comes before part-10, too. Raises `ConfigError` for what is not there, with the nearest
    name, and for a folder or an archive without files.
    """
    given = [Path(path) for path in paths]
    if list(map(str, given)) == sorted(map(str, given)):
        given.sort(key=_natural)
    return [part for path in given for part in _parts_of(path)]


def _parts_of(path: Path) -> list[Part]:
    with translated_file_errors(path):
        if not path.exists():
            raise ConfigError(str(path), f"is not there; {_nearest_file(path)}")
        if not path.is_dir():
            return _members(Part(path)) if _is_zip(path) else [Part(path)]
        for inside, rule in _TABLES:
            if (path / inside).exists():
                raise ConfigError(str(path), rule)
        found: list[Part] = []
        for file in sorted(_files(path), key=lambda file: _natural(file.relative_to(path))):
            part = Part(file, "", _constants(file.relative_to(path).parts[:-1]))
            found += _members(part) if _is_zip(file) else [part]
    if not found:
        raise ConfigError(str(path), "has no files with data in it")
    return found


def _files(folder: Path) -> Iterator[Path]:
    """The files in a folder and in the folders within, but for empty ones and what is no data."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _is_data(name)]
        for name in filter(_is_data, names):
            file = Path(place, name)
            if file.suffix.lower() not in _NO_DATA and file.is_file() and file.stat().st_size:
                yield file


def _members(archive: Part) -> list[Part]:
    """The files in a zip archive, each as a part."""
    with zipfile.ZipFile(archive.path) as opened:
        names = {info.filename: info.file_size for info in opened.infolist() if not info.is_dir()}
    if "[Content_Types].xml" in names:
        raise ConfigError(str(archive.path), "is an Office document; save its sheet as CSV")
    found = []
    for name in sorted(names, key=lambda name: _natural(PurePosixPath(name))):
        parents = PurePosixPath(name).parts[:-1]
        if all(map(_is_data, PurePosixPath(name).parts)) and names[name]:
            constants = (*archive.constants, *_constants(parents))
            found.append(archive._replace(member=name, constants=constants))
    if not found:
        raise ConfigError(str(archive.path), "has no files with data in it")
    return found


def _is_zip(path: Path) -> bool:
    if not path.is_file():  # a pipe, of which nothing may be lost
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def _is_data(name: str) -> bool:
    return not name.startswith((".", "_"))


def _constants(folders: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
    """The columns that folders called `key=value` stand for."""
    pairs = [folder.partition("=") for folder in folders if "=" in folder]
    return tuple((unquote(key), None if text == _NULL else unquote(text)) for key, _, text in pairs)


def _natural(path: Path | PurePosixPath) -> list[list[str | int]]:
    """A key by which part-2 comes before part-10."""
    return [
        [int(piece) if at % 2 else piece for at, piece in enumerate(re.split(r"(\d+)", name))]
        for name in path.parts
    ]


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"nor is the folder {folder}"
    meant = nearest(path.name, sorted(file.name for file in folder.iterdir()), cutoff=0)
    return f"the nearest in {folder} is {meant!r}" if meant else f"{folder} is empty"
