"""The folder of snapshots: the last few files, each with a sha256 at its end.

In: the parts of a new snapshot. Out: the newest snapshot that is whole. A file is written beside
its name, synced and renamed, so that a crash at any moment leaves those before. Numbers in names
only grow, also past a damaged file. A damaged file is renamed once an older whole one is found, and
is left to a person.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from niwaki.pruning.errors import RuleError
from niwaki.stream.errors import ConfigError

log = logging.getLogger("niwaki")

_NAME = re.compile(r"snapshot(?:-(\d+))?\.niwaki(\.damaged)?")
"""Versions before this one had a single file, without a number and a sha256."""
_UNFINISHED = "snapshot.unfinished-"
_SHA256_BYTES = 32


class SnapshotConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Place and interval of snapshots (the `[snapshot]` section)."""

    directory: str = "niwaki-snapshots"
    """Folder of the snapshot files; made if it is not there. One trainer's alone."""
    keep: int = 3
    """Number of snapshots that are kept, >= 1: the last ones. A restart takes the newest whole
    one."""
    every_s: float = 60.0
    """Seconds from one snapshot to the next, > 0; it is taken after a publication, or where no
    events come. One is also taken after that of a newly cut network, and at the end."""
    every_events: int = 0
    """Events from one snapshot to the next at the most, >= 0; 0: any number."""
    strict_schema: bool = False
    """True: a snapshot of another schema stops the trainer. False: the model goes on with what both
    schemas know."""

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise RuleError("every_s", "must be greater than 0", self.every_s)
        if self.keep < 1:
            raise RuleError("keep", "must be at least 1", self.keep)
        if self.every_events < 0:
            raise RuleError("every_events", "must be at least 0", self.every_events)


class _Named(NamedTuple):
    """A file of the folder."""

    number: int
    path: Path
    damaged: bool


class Damaged(Exception):
    """A snapshot file is not as it was written."""


class SnapshotFiles:
    """The files of one trainer's folder. Nothing is opened before it is needed."""

    def __init__(self, config: SnapshotConfig):
        self.directory = Path(config.directory)
        self._keep = config.keep

    def paths(self) -> list[Path]:
        """The snapshots, newest first; those that were set aside are not among them."""
        return [one.path for one in self._named() if not one.damaged]

    def read(self, path: Path) -> memoryview:
        """The content of a snapshot, without its sha256. Raises `Damaged`, or `OSError`."""
        data = memoryview(path.read_bytes())
        if path.name == "snapshot.niwaki":  # it has a CRC inside, and no sha256
            return data
        content, digest = data[:-_SHA256_BYTES], data[-_SHA256_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise Damaged("its sha256 does not match")
        return content

    def unfinished(self, owner: int) -> Path:
        """The path at which process `owner` writes a snapshot; its folder is made."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / f"{_UNFINISHED}{owner}"

    def finish(self, unfinished: Path) -> Path:
        """Give a synced snapshot its name, for good, and remove the oldest ones."""
        number = max((one.number for one in self._named()), default=0) + 1
        path = self.directory / f"snapshot-{number:08d}.niwaki"
        os.replace(unfinished, path)
        folder = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
        for old in self.paths()[self._keep :]:
            old.unlink(missing_ok=True)
        self.clear()
        return path

    def set_aside(self, path: Path) -> Path:
        """Rename a damaged snapshot, so that nobody takes it for one."""
        return path.rename(path.with_name(f"{path.name}.damaged"))

    def clear(self) -> None:
        """Remove what a trainer that died had begun to write."""
        for path in self.directory.glob(f"{_UNFINISHED}*"):
            path.unlink(missing_ok=True)

    def check_not_only_damaged(self) -> None:
        """Raise `ConfigError` where files were set aside and none is left: going on would forget,
        or repeat, events."""
        damaged = self._named()
        if damaged:
            raise ConfigError(
                "snapshot.directory",
                f"{damaged[0].path} is damaged, and there is no other; move the folder away to"
                " start anew",
            )

    def _named(self) -> list[_Named]:
        if not self.directory.is_dir():
            return []
        found = []
        for path in self.directory.iterdir():
            if match := _NAME.fullmatch(path.name):
                found.append(_Named(int(match[1] or 0), path, bool(match[2])))
        return sorted(found, reverse=True)


def write_synced(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write the parts and their sha256, and wait until the disk has them."""
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for part in parts:
            left = memoryview(part)
            if not left.nbytes:
                continue
            left = left.cast("B")
            digest.update(left)
            while left:
                left = left[file.write(left) :]
        file.write(digest.digest())
        os.fsync(file.fileno())
