"""The sparse checkpoint: bytes <-> a typed header and named tensors.

The last stop of learning, the first of serving. A full checkpoint stands alone; a delta holds what
has changed since the version before it: the changed rows of the tables, and everything else as a
whole. Layout, all integers little-endian:

    8 bytes   magic  b"NIWAKI" + format version (uint16), which is 3
    4 bytes   length of the header (uint32)
    header    JSON of `Header`
    tensors   safetensors
    4 bytes   CRC-32C of everything before it (uint32)

Nothing in a checkpoint is executable. `unpack` refuses bytes that are damaged, cut short or of
another format. The rows of tables are coded by `model.published.table_codes`. Columns of the
embedding tables that the network does not read are left out, and so are weights of pruned blocks.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from crc32c import crc32c
from safetensors import SafetensorError
from safetensors.torch import load

from niwaki.model.deep.embeddings import of_owners
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
FORMAT_VERSION = 3
"""Version 3 ends with a CRC-32C, those before with a sha256. Version 2 names the pairs of fields
that live; in one of version 1 all pairs of fields do."""
_READABLE_VERSIONS = (1, 2, FORMAT_VERSION)
_PREFIX = struct.Struct("<6sHI")


class _Prefix(NamedTuple):
    """The fields of `_PREFIX`."""

    magic: bytes
    version: int
    header_bytes: int


_CHECKSUM = struct.Struct("<I")
_SHA256_BYTES = 32
_NUMBERS = {
    np.dtype(kind): name
    for kind, name in (
        (np.bool_, "BOOL"),
        (np.uint8, "U8"),
        (np.int8, "I8"),
        (np.int16, "I16"),
        (np.uint16, "U16"),
        (np.float16, "F16"),
        (np.int32, "I32"),
        (np.uint32, "U32"),
        (np.float32, "F32"),
        (np.float64, "F64"),
        (np.int64, "I64"),
        (np.uint64, "U64"),
    )
}
"""The names of types in safetensors, which orders tensors by them, the last first."""
_RANKS = {kind: rank for rank, kind in enumerate(_NUMBERS)}
_FIXED = (
    "schema",
    "table_rows",
    "pair_rows",
    "max_pairs",
    "max_list_pairs",
    "half_lives_events",
    "hash_seed",
    "dense_shape",
    "table_precision",
)
"""The fields of a header that a delta cannot change."""
H = TypeVar("H", bound=msgspec.Struct)


class ModelDescription(NamedTuple):
    """The part of a header that a learner knows; see `Header` for the fields."""

    schema: Schema
    table_rows: int
    pair_rows: int
    max_pairs: int | None
    max_list_pairs: int
    half_lives_events: tuple[float, ...]
    hash_seed: int
    dense_shape: NetworkShape
    multiply_adds: int
    dense_multiply_adds: int
    sparsity_by_layer: dict[str, float]
    events: int
    dense_bytes: int


class TrainingStatus(NamedTuple):
    """The part of a header that a trainer knows; see `Header` for the fields."""

    phase: str
    policy: str
    budget: float
    event_time_s: float = 0.0
    evaluation: dict[str, float] = {}


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The description of a checkpoint, readable without its tensors."""

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
    max_pairs: int | None = None
    """Pairs of fields with one value each that live at once at the most; None: all do."""
    max_list_pairs: int = 0
    """Pairs of such a field and a list that live at once at the most."""
    half_lives_events: tuple[float, ...]
    """Half-lives of the linear expert's time scales, events."""
    hash_seed: int
    """Seed of the hash from values to rows."""
    table_precision: Precision = "float32"
    """Precision of the values in the rows of tables."""
    shape: NetworkShape
    """The widths of the network in this checkpoint (after compaction)."""
    dense_shape: NetworkShape
    """The widths of the network before pruning."""
    phase: str
    """Phase of the trainer: dense, pruning or sparse."""
    policy: str
    budget: float
    """Share of the dense multiply-adds that a pruned network may take, 0..1: as set, or as chosen
    last."""
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
    """Wall-clock time of its making, seconds since the epoch."""
    evaluation: dict[str, float] = {}
    """Evaluation over the last complete window."""
    dense_bytes: int
    """Size of the dense model's tensors as float32, bytes."""

    @classmethod
    def of(
        cls,
        model: ModelDescription,
        status: TrainingStatus,
        *,
        shape: NetworkShape,
        version: int,
        parent: int,
        base: int = 0,
        offsets: dict[str, int] | None = None,
        created_s: float = 0.0,
        table_precision: Precision = "float32",
    ) -> "Header":
        """The header of a checkpoint of `model`, whose published network has `shape`. The other
        arguments: see the fields."""
        return cls(
            **model._asdict(),
            **status._asdict(),
            shape=shape,
            version=version,
            parent=parent,
            base=base,
            offsets=offsets or {},
            created_s=created_s,
            table_precision=table_precision,
        )

    @property
    def sparsity_ratio(self) -> float:
        """Share of the dense multiply-adds that is pruned, 0..1."""
        return 1 - self.multiply_adds / self.dense_multiply_adds

    def check_follows(self, before: "Header") -> None:
        """Raise `CheckpointError` unless this delta changes `before`, and nothing that a delta
        cannot change."""
        field = f"delta {self.version}"
        changed = [name for name in _FIXED if getattr(self, name) != getattr(before, name)]
        if self.shape.columns != before.shape.columns:
            changed.append("choice of columns")
        if changed:
            names = " and ".join(changed)
            raise CheckpointError(field, f"has another {names} than version {before.version}")
        if self.parent != before.version or self.base != (before.base or before.version):
            raise CheckpointError(field, f"does not change version {before.version}")


def pack(header: Header, tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a checkpoint, with the values of tables in `header.table_precision`."""
    stored = encode(tensors, header.table_precision)
    if header.shape.columns is not None:
        stored = drop_columns(stored, _alive_in_tables(header), header.table_rows)
    return pack_as(header, stored)


def _alive_in_tables(header: Header) -> torch.Tensor:
    """bool (F, D): the columns of each field's table that a field which reads it has."""
    return of_owners(header.shape.alive_FD().float(), header.schema.owners) > 0


def pack_as(header: msgspec.Struct, tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a file of this layout with another typed header, such as a snapshot; every
    tensor as it is."""
    return b"".join(parts_as(header, tensors))


def parts_as(
    header: msgspec.Struct, tensors: dict[str, torch.Tensor]
) -> Sequence[bytes | memoryview]:
    """The parts of such a file, one after the other; nothing is copied."""
    text = msgspec.json.encode(header)
    parts = [_PREFIX.pack(MAGIC, FORMAT_VERSION, len(text)), text, *_as_safetensors(tensors)]
    checksum = 0
    for part in parts:
        checksum = crc32c(part, checksum)
    return [*parts, _CHECKSUM.pack(checksum)]


def tensors_only(tensors: dict[str, torch.Tensor]) -> bytes:
    """The tensors as safetensors, and nothing else."""
    return b"".join(_as_safetensors(tensors))


def _as_safetensors(tensors: dict[str, torch.Tensor]) -> Sequence[bytes | memoryview]:
    """The parts of a file of safetensors, one after the other: the very bytes of the library, which
    copies each tensor twice to make them."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    names = sorted(arrays, key=lambda name: (-_RANKS[arrays[name].dtype], name))
    header, at = {}, 0
    for name in names:
        array = arrays[name]
        end = at + array.nbytes
        header[name] = {
            "dtype": _NUMBERS[array.dtype],
            "shape": array.shape,
            "data_offsets": (at, end),
        }
        at = end
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *(arrays[name].data for name in names)]


def unpack(data: bytes) -> tuple[Header, dict[str, torch.Tensor]]:
    """The header and tensors in `data`. Raises `CheckpointError` unless every byte is as it was
    packed."""
    header, stored = unpack_as(data, Header)
    try:
        if header.shape.columns is not None:
            stored = restore_columns(stored, _alive_in_tables(header), header.table_rows)
        return header, decode(stored)
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError("tables", f"must be readable ({error})") from error


def unpack_as(data: bytes | memoryview, header_type: type[H]) -> tuple[H, dict[str, torch.Tensor]]:
    """The header and tensors of a file that `pack_as` made. Raises `CheckpointError`."""
    header, at, end = _open(data, header_type)
    try:
        return header, load(bytes(data[at:end]))
    except SafetensorError as error:
        raise CheckpointError("tensors", f"must be readable ({error})") from error


def read_header(data: bytes) -> Header:
    """The header in `data`, whose checksum is verified and whose tensors are not read. Raises
    `CheckpointError`."""
    return _open(data, Header)[0]


def _open(data: bytes | memoryview, header_type: type[H]) -> tuple[H, int, int]:
    """The header in `data`, and where the tensors begin and end."""
    if len(data) < _PREFIX.size + _CHECKSUM.size:
        raise CheckpointError("checkpoint", "must not be cut short", f"{len(data)} bytes")
    prefix = _Prefix(*_PREFIX.unpack_from(data))
    if prefix.magic != MAGIC:
        raise CheckpointError("checkpoint", f"must begin with {MAGIC!r}", prefix.magic)
    if prefix.version not in _READABLE_VERSIONS:
        rule = f"must be {' or '.join(map(str, _READABLE_VERSIONS))} for this program"
        raise CheckpointError("checkpoint format version", rule, prefix.version)
    end = len(data) - (_CHECKSUM.size if prefix.version >= 3 else _SHA256_BYTES)
    content = memoryview(data)[: max(end, 0)]
    if prefix.version >= 3:
        checksum = _CHECKSUM.pack(crc32c(content))
    else:
        checksum = hashlib.sha256(content).digest()
    if checksum != data[end:]:
        raise CheckpointError("checkpoint", "is damaged: its checksum does not match")
    start = _PREFIX.size + prefix.header_bytes
    try:
        return msgspec.json.decode(data[_PREFIX.size : start], type=header_type), start, end
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError) as error:
        raise CheckpointError("header", f"must be readable ({error})") from error
