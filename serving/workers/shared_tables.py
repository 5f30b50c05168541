"""Tables in memory that several processes map.

In: the shapes of a model's tables. Out: the tables, in an anonymous file that takes memory only
where it is written to or read, and that lives as long as a process maps it or has it open. Only the
process that follows the store writes to them.
"""

import mmap
import os
import weakref

import torch

from niwaki.model.published.served import ModelFrame, Tables

_ALIGNED_BYTES = 64  # a line of the processor's cache


class SharedTables(Tables):
    """One set of tables."""

    def __init__(self, frame: ModelFrame, serial: int, descriptor: int):
        """Maps the file `descriptor`, which is this object's from then on; the file is as long as
        `size_bytes` says."""
        self.serial = serial
        """Number of the set, different for each."""
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        memory = mmap.mmap(descriptor, size_bytes(frame))
        at = 0
        tables: Tables = {}
        for name, table in frame.empty_tables().items():
            if table.numel():  # else there is nothing to map
                flat = torch.frombuffer(memory, dtype=table.dtype, count=table.numel(), offset=at)
                at += _room_bytes(table)
                table = flat.view(table.shape)
            tables[name] = table
        super().__init__(tables)

    @classmethod
    def empty(cls, frame: ModelFrame, serial: int) -> "SharedTables":
        """Fresh tables, all zero."""
        descriptor = os.memfd_create(f"niwaki-tables-{serial}", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size_bytes(frame))
        return cls(frame, serial, descriptor)


def size_bytes(frame: ModelFrame) -> int:
    """Length of the file that holds the tables of a model, > 0."""
    return max(sum(map(_room_bytes, frame.empty_tables().values())), mmap.PAGESIZE)


def _room_bytes(table: torch.Tensor) -> int:
    used = table.numel() * table.element_size()
    return -(-used // _ALIGNED_BYTES) * _ALIGNED_BYTES
