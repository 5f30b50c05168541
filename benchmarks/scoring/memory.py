"""Resident memory of a scorer's tables, beside dense float32 rows ever touched.

A process of its own reads a full checkpoint and two deltas, as a scorer does, and says by how much
its resident memory has grown, once with compact rows and once with plain tables, of which there are
two sets. Both include the network's weights, some ten or hundred kilobytes.
"""

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.published import tensors as names
from niwaki.model.published.checkpoint import pack, unpack
from niwaki.serving.double_buffer import CompactShelf, DoubleBuffer

_DELTAS = 2
_OF_ROWS = 30
"""A delta changes one of so many rows."""


def resident(full: bytes, dense_touched_bytes: int) -> dict[str, int | float]:
    """Resident bytes of a scorer's tables, for the model in a full checkpoint."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "full"
        path.write_bytes(full)
        for kind in ("compact", "plain"):
            command = [sys.executable, "-m", "benchmarks.scoring.memory", kind, str(path)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[f"{kind}_tables_bytes"] = int(said)
            found[f"{kind}_tables_of_touched"] = int(said) / dense_touched_bytes
    return found


def _grown_bytes(kind: str, full: bytes) -> int:
    buffer = DoubleBuffer(CompactShelf() if kind == "compact" else None)
    header, tensors = unpack(full)
    # All that a first prediction loads is loaded before anything is measured.
    small = {name: tensor[:1] if _in_rows(name) else tensor for name, tensor in tensors.items()}
    model = DoubleBuffer(CompactShelf()).make([(header, small)])
    batch = rows_to_batch([{}, {}], header.schema)
    model.predict(batch)
    del model, tensors, small
    before = _resident_bytes()
    _take_over(buffer, full)
    assert buffer.model is not None
    buffer.model.predict(batch)
    return _resident_bytes() - before


def _take_over(buffer: DoubleBuffer, full: bytes) -> None:
    header, tensors = unpack(full)
    changes = {
        name: tensor[::_OF_ROWS].clone() if _in_rows(name) else tensor
        for name, tensor in tensors.items()
    }
    path = [(header, tensors)]
    buffer.adopt(buffer.make(path), path)
    del tensors
    for version in range(header.version + 1, header.version + 1 + _DELTAS):
        delta = msgspec.structs.replace(
            header, version=version, parent=version - 1, base=header.version
        )
        path = [unpack(pack(delta, changes))]
        buffer.adopt(buffer.make(path), path)


def _in_rows(name: str) -> bool:
    table = name.removesuffix(".rows").removesuffix(".values")
    return name in (names.rows_of(table), names.values_of(table))


def _resident_bytes() -> int:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(_grown_bytes(sys.argv[1], Path(sys.argv[2]).read_bytes()))
