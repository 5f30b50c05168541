"""The sparse checkpoint: bytes <-> a typed header and named tensors.

The last stop of learning, the first of serving. A full one stands alone; a delta holds what has
changed since the version before it: the changed rows of the tables, and everything else as a whole.
Layout, all integers little-endian:

    8 bytes   magic  b"NIWAKI" + format version (uint16)
    4 bytes   length of the header (uint32)
    header    JSON of `Header`
    tensors   safetensors
    32 bytes  sha256 of everything before it

Nothing in it is executable. `unpack` refuses what is damaged, cut short or of a format that it does
not know. How the rows of tables are written is in `model.published.table_codes`. Format 1 had no
deltas, and row numbers of 64 bits; format 2 had plain row numbers. Both are still read. Format 4 is
format 3 without the columns of the embedding tables that nothing reads, or with the blocks of
weights that are left in the place of whole matrices; it is written where there are any, and format
3 otherwise.
"""

import hashlib
import struct
from typing import TypeVar

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.numpy import save
from safetensors.torch import load

from niwaki.model.deep.network import NetworkShape
from niwaki.model.errors import CheckpointError
from niwaki.model.features.schema import Schema
from niwaki.model.published.table_codes import (
    Precision,
    decode,
    drop_columns,
    encode,
    restore_columns,
)

MAGIC = b"NIWAKI"
FORMAT_VERSION, _PARTS_VERSION = 3, 4
_READABLE = (1, 2, 3, 4)
_PREFIX = struct.Struct("<6sHI")
_DIGEST_BYTES = 32
H = TypeVar("H", bound=msgspec.Struct)


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint says of itself."""

    version: int
    """1, 2, 3, ...: greater than that of every checkpoint published before it."""
    parent: int = 0
    """The version published before it; 0 for the first. A delta changes that one."""
    base: int = 0
    """0: a full checkpoint. Otherwise a delta, and this is the version of the full one that it goes
    back to."""
    schema: Schema
    table_rows: int
    """Rows of each field's embedding table."""
    pair_rows: int
    """Rows of the linear expert's table of pairs of fields; 0: there are no pairs."""
    half_lives_events: tuple[float, ...]
    """Half-lives of the linear expert's time scales, events."""
    hash_seed: int
    """Seed of the hash from values to rows."""
    table_precision: Precision = "float32"
    """How exactly the rows of tables are given."""
    shape: NetworkShape
    """The widths of the network in this checkpoint (after compaction)."""
    dense_shape: NetworkShape
    """The widths of the network before pruning."""
    phase: str
    """Phase of the trainer: dense, pruning or sparse."""
    policy: str
    budget: float | None = None
    """Share of the dense multiply-adds that a pruned network may take, 0..1: as set, or as chosen
    last. None: not told, in checkpoints of before."""
    multiply_adds: int
    """Multiply-adds of one prediction with this network."""
    dense_multiply_adds: int
    sparsity_by_layer: dict[str, float]
    """Share of units removed, by prunable layer, 0..1."""
    events: int
    """Events learned before this checkpoint."""
    offsets: dict[str, int] = {}
    """Next Kafka offset by partition: every event before it is in this model."""
    event_time_s: float = 0.0
    """Event time of the last event learned, seconds since the epoch."""
    created_s: float = 0.0
    """Wall-clock time at which it was made, seconds since the epoch."""
    evaluation: dict[str, float] = {}
    """Evaluation over the last complete window."""
    dense_bytes: int
    """What the dense model's tensors would take as float32, bytes."""

    @property
    def sparsity_ratio(self) -> float:
        """Share of the dense multiply-adds that is gone, 0..1."""
        return 1 - self.multiply_adds / self.dense_multiply_adds

    def check_follows(self, before: "Header") -> None:
        """Raise `CheckpointError` unless this delta changes `before`, and nothing that a delta
        can't change."""
        names = (
            "schema",
            "table_rows",
            "pair_rows",
            "half_lives_events",
            "hash_seed",
            "dense_shape",
            "table_precision",
        )
        changed = [name for name in names if getattr(self, name) != getattr(before, name)]
        if self.shape.columns != before.shape.columns:
            changed.append("choice of columns")
        if changed or self.parent != before.version or self.base != (before.base or before.version):
            what = f"has another {' and '.join(changed)} than" if changed else "does not change"
            raise CheckpointError(
                f"checkpoint: delta {self.version} {what} version {before.version}"
            )


def pack(header: Header, tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a checkpoint, tables as exact as `header.table_precision` says."""
    stored, shape = encode(tensors, header.table_precision), header.shape
    if shape.columns is not None:
        stored = drop_columns(stored, shape.alive_FD(), header.table_rows)
    parts = shape.columns is not None or shape.block is not None
    return pack_as(header, stored, _PARTS_VERSION if parts else FORMAT_VERSION)


def pack_as(
    header: msgspec.Struct, tensors: dict[str, torch.Tensor], version: int = FORMAT_VERSION
) -> bytes:
    """The same for a file with another typed header (a learner's snapshot): every tensor as it
    is."""
    text = msgspec.json.encode(header)
    parts = [_PREFIX.pack(MAGIC, version, len(text)), text, tensors_only(tensors)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def tensors_only(tensors: dict[str, torch.Tensor]) -> bytes:
    """safetensors, and nothing else."""
    return save(
        {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    )  # faster than from tensors


def unpack(data: bytes) -> tuple[Header, dict[str, torch.Tensor]]:
    """The header and tensors in `data`. Raises `CheckpointError` unless every byte is as it was
    packed."""
    header, stored = unpack_as(data, Header)
    try:
        if header.shape.columns is not None:
            stored = restore_columns(stored, header.shape.alive_FD(), header.table_rows)
        return header, decode(stored)
    except ValueError as error:
        raise CheckpointError(f"checkpoint: tables are unreadable: {error}") from error


def unpack_as(data: bytes, header_type: type[H]) -> tuple[H, dict[str, torch.Tensor]]:
    """Like `unpack`, for what `pack_as` made."""
    header, at = _open(data, header_type)
    try:
        return header, load(bytes(data[at:-_DIGEST_BYTES]))
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint: tensors are unreadable: {error}") from error


def read_header(data: bytes) -> Header:
    """The header in `data`, digest verified, tensors left alone. Raises `CheckpointError`."""
    return _open(data, Header)[0]


def _open(data: bytes, header_type: type) -> tuple[msgspec.Struct, int]:
    if len(data) < _PREFIX.size + _DIGEST_BYTES:
        raise CheckpointError(f"checkpoint: too short, {len(data)} bytes")
    magic, version, length = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CheckpointError(f"checkpoint: not one, it begins with {bytes(magic)!r}")
    if version not in _READABLE:
        raise CheckpointError(
            f"checkpoint: format version {version}, this program reads {_READABLE}"
        )
    if hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise CheckpointError("checkpoint: damaged, its sha256 does not match")
    end = _PREFIX.size + length
    try:
        return msgspec.json.decode(data[_PREFIX.size : end], type=header_type), end
    except (msgspec.DecodeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: header is unreadable: {error}") from error
