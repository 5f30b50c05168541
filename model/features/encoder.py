"""From columns of events to table rows: each value of a categorical field is hashed to a row.

The first stop of a batch. In: an `EventBatch`. Out: `HashedEvents`, flat row numbers and raw
numerics as tensors, which `niwaki.model.features.memory` completes to the `Features` that the model
reads. Hashes are seeded by field name; they are equal on every machine and for every version of
this file with the same `HASH_VERSION`. Labels are not read.

Shapes: B events, F fields with one value each, P pairs of those, N numerics, C crosses of up to X
fields, T time features, L lists, V values of a list column.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from niwaki.model.features.hashing import hash_strings, mix_bits
from niwaki.model.features.lists import ListRows, count_values, flat_list, locate_values
from niwaki.model.features.schema import TIME_FEATURES, EventBatch, Schema
from niwaki.model.jit import kernel

HASH_VERSION = 1
_EMPTY = 0xFFFFFFFFFFFFFFFF
"""Stands for an empty list among the lengths from which hashes begin."""


class HashedEvents(NamedTuple):
    """B events after hashing, before ages, histories and rates are known. The model takes finished
    `Features` only."""

    rows_BF: torch.Tensor
    """int64, flat row of each field's value in the linear expert's table; a field's first row
    stands for "missing"."""
    embedded_BF: torch.Tensor
    """int64, its row in the embedding tables: the very same, unless a field shares another's."""
    hashes_BF: torch.Tensor
    """int64, the bits of the hash of each field's value, of which rows of pairs are made; 0 =
    missing."""
    raw_numerics_BN: torch.Tensor
    """float32, NaN = missing; the columns of ages and rates come last, and are NaN."""
    times_s_B: torch.Tensor
    """float64, event time in seconds since the epoch; 0: not known."""
    keys_BM: torch.Tensor
    """int64, key of each history and of each rate; 0 = missing."""
    values_BH: torch.Tensor
    """int32, row of the value that each history may remember, within the table of its column; 0 =
    missing."""
    lists: tuple[ListRows, ...] = ()
    """The values of each list column."""

    def part(self, start: int, stop: int) -> "HashedEvents":
        """Events `start` to `stop` (exclusive), as views."""
        lists = tuple(rows.part(start, stop) for rows in self.lists)
        return self._of([tensor[start:stop] for tensor in self.tensors], lists)

    @classmethod
    def concat(cls, batches: Sequence["HashedEvents"]) -> "HashedEvents":
        """The events of `batches`, one after the other."""
        return cls.of_parts([(batch, (0, len(batch.rows_BF))) for batch in batches])

    @classmethod
    def of_parts(cls, parts: Sequence[tuple["HashedEvents", tuple[int, int]]]) -> "HashedEvents":
        """Some events of each of some batches, from a first to a last (exclusive), one after the
        other."""
        events = sum(stop - start for _, (start, stop) in parts)

        def joined(column: int) -> torch.Tensor:
            found = [(batch.tensors[column], *span) for batch, span in parts]
            first = found[0][0]
            if not first.shape[1:].numel():  # most schemas have no keys, and many no numerics
                return first.new_empty(events, *first.shape[1:])
            arrays = [tensor.numpy()[start:stop] for tensor, start, stop in found]
            return torch.from_numpy(np.concatenate(arrays))

        tensors = [joined(column) for column in range(len(parts[0][0].tensors)) if column != 1]
        shares = any(batch.embedded_BF is not batch.rows_BF for batch, _ in parts)
        tensors.insert(1, joined(1) if shares else tensors[0])
        lists = zip(*([r.part(*span) for r in batch.lists] for batch, span in parts), strict=True)
        return cls._of(tensors, tuple(map(ListRows.concat, lists)))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All but lists."""
        return self[:-1]

    @classmethod
    def _of(cls, tensors: Iterable[torch.Tensor], lists: tuple[ListRows, ...]) -> "HashedEvents":
        return cls._make([*tensors, lists])


class Features(NamedTuple):
    """The inputs of the model for B events, complete; made by `niwaki.model.features.memory`."""

    rows_BF: torch.Tensor
    """int64, as in `HashedEvents`."""
    embedded_BF: torch.Tensor
    """int64, as in `HashedEvents`."""
    hashes_BF: torch.Tensor
    """int64, as in `HashedEvents`."""
    numerics_BN: torch.Tensor
    """float32, NaN = missing, ages and rates included."""
    times_s_B: torch.Tensor
    """float64, as in `HashedEvents`."""
    lists: tuple[ListRows, ...] = ()
    """As in `HashedEvents`."""


class _Hashing(NamedTuple):
    """The constants by which one encoder hashes, as its kernels read them."""

    seeds_F: np.ndarray
    """uint64, seed of each field."""
    columns: int
    """Number of categorical columns, which are the first fields."""
    crosses_CX: np.ndarray
    """int64, the members of each cross, then -1."""
    times_T: np.ndarray
    """int64, 0 for the hour, 1 for the day of the week."""
    rows: int
    """Rows of each field's table."""


class Encoder:
    """Hashes each value of a field to one of the rows of the field's table."""

    def __init__(self, schema: Schema, *, rows: int, seed: int = 0):
        """`rows`: of each field's table."""
        self.schema = schema
        self.rows = rows
        self._prefix = f"{HASH_VERSION}:{seed}"
        names = schema.single_fields
        # A field that shares another's embeddings hashes as that one does.
        field_seeds = [self.seed_of(schema.fields[owner]) for owner in schema.owners]
        seeds, list_seeds = field_seeds[: len(names)], field_seeds[len(names) :]
        self._made_numerics = len(schema.numerics) - len(schema.numeric)
        self._first_list = len(names)
        self._list_seeds_L = np.array(list_seeds, np.uint64)
        owners_F = np.array(schema.owners, np.int64)
        self._shifts_F = (owners_F - np.arange(len(owners_F))) * rows
        """For each field and list: from its own rows to those that it reads embeddings from."""
        self._shares = bool(self._shifts_F[: len(names)].any())
        times = [
            TIME_FEATURES.index(name) for name in schema.time_features if name in TIME_FEATURES
        ]
        crosses_CX = np.full((len(schema.crosses), max(map(len, schema.crosses), default=0)), -1)
        for c, cross in enumerate(schema.crosses):
            crosses_CX[c, : len(cross)] = [schema.categorical.index(name) for name in cross]
        empty = [mix_bits(np.uint64(seed ^ _EMPTY)) for seed in list_seeds]
        self.empty_rows_L = np.array([1 + int(h) % (rows - 1) for h in empty], np.int64)
        """For each list, the row that stands for an empty one, within the table of its field."""
        by = [(history.by,) for history in schema.histories]
        keys = [
            [schema.categorical.index(name) for name in names]
            for names in (*by, *schema.rate_columns)
        ]
        self._keys_MX = np.full((len(keys), max(map(len, keys), default=0)), -1)
        for m, members in enumerate(keys):
            self._keys_MX[m, : len(members)] = members
        values = [schema.categorical.index(history.of) for history in schema.histories]
        self._values_H = np.array(values, np.int64)
        self._hashing = _Hashing(
            seeds_F=np.array(seeds, np.uint64),
            columns=len(schema.categorical),
            crosses_CX=crosses_CX,
            times_T=np.array(times, np.int64),
            rows=rows,
        )

    def seed_of(self, name: str) -> int:
        """The seed, of 64 bits, from which the values of what has this name are hashed."""
        text = f"{self._prefix}:{name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")

    def hash_column(self, column: pa.Array, place: int) -> np.ndarray:
        """(B,) uint64: the hashes of the categorical column at `place`, an array of strings."""
        hashes_B1 = np.empty((len(column), 1), np.uint64)
        buffers = [np.frombuffer(buffer or b"", np.uint8) for buffer in column.buffers()]
        if len(column):
            offsets, seed_1 = buffers[1].view(np.int32), self.column_seeds[place : place + 1]
            hash_strings(buffers[0], offsets, buffers[2], column.offset, seed_1, hashes_B1)
        return hashes_B1[:, 0]

    @property
    def column_seeds(self) -> np.ndarray:
        """uint64, the seed of each categorical column's hashes."""
        return self._hashing.seeds_F[: self._hashing.columns]

    def empty_hashes(self, events: int) -> np.ndarray:
        """(B, F) uint64 with undefined contents: room for the hashes of all fields, of which the
        categorical columns are the first."""
        return np.empty((events, len(self._hashing.seeds_F)), np.uint64)

    def encode(self, batch: EventBatch) -> HashedEvents:
        """The rows and raw numerics of the events of `batch`."""
        hashes_BF = self.empty_hashes(len(batch))
        if self._hashing.columns and len(batch):
            strings = pa.concat_arrays(batch.categorical)
            buffers = [np.frombuffer(buffer or b"", np.uint8) for buffer in strings.buffers()]
            valid, text = buffers[0], buffers[2]
            offsets = buffers[1].view(np.int32)
            hash_strings(valid, offsets, text, strings.offset, self.column_seeds, hashes_BF)
        numerics_BN = np.ascontiguousarray(batch.numerics_BN)
        times_s_B = np.array(batch.times_s_B)
        lists = tuple(map(self.encode_list, batch.lists, range(len(batch.lists))))
        return self.encode_hashes(hashes_BF, numerics_BN, times_s_B, lists)

    def encode_hashes(
        self,
        hashes_BF: np.ndarray,
        numerics_BN: np.ndarray,
        times_s_B: np.ndarray,
        lists: tuple[ListRows, ...],
    ) -> HashedEvents:
        """The rows of events whose categorical columns are hashed already, as the first columns of
        `hashes_BF`; the others are written. The arrays are the result's from then on."""
        events = len(hashes_BF)
        rows_BF = np.empty((events, len(self._hashing.seeds_F)), np.int64)
        _locate_rows(hashes_BF, times_s_B, *self._hashing, rows_BF)
        if self._made_numerics:
            empty_BA = np.full((events, self._made_numerics), np.nan, np.float32)
            numerics_BN = np.concatenate([numerics_BN, empty_BA], 1)
        keys_BM = np.empty((events, len(self._keys_MX)), np.int64)
        values_BH = np.empty((events, len(self._values_H)), np.int32)
        if keys_BM.size:
            _write_keys(hashes_BF, self._keys_MX, keys_BM.view(np.uint64))
            values_BH[:] = rows_BF[:, self._values_H] - self._values_H * self.rows
        embedded_BF = rows_BF
        if self._shares:
            embedded_BF = rows_BF + self._shifts_F[: rows_BF.shape[1]]
        rows = torch.from_numpy(rows_BF)
        return HashedEvents(
            rows_BF=rows,
            embedded_BF=torch.from_numpy(embedded_BF) if self._shares else rows,
            hashes_BF=torch.from_numpy(hashes_BF.view(np.int64)),
            raw_numerics_BN=torch.from_numpy(numerics_BN),
            times_s_B=torch.from_numpy(times_s_B),
            keys_BM=torch.from_numpy(keys_BM),
            values_BH=torch.from_numpy(values_BH),
            lists=lists,
        )

    def encode_list(self, column: pa.Array, place: int) -> ListRows:
        """The rows of the list column at `place`, an array of type `LIST`."""
        field = self._first_list + place
        seeds_1 = self._list_seeds_L[place : place + 1]
        values, weights_V, offsets, known_B = flat_list(column)
        hashes_V1 = np.empty((len(values), 1), np.uint64)
        if len(values):
            buffers = [np.frombuffer(buffer or b"", np.uint8) for buffer in values.buffers()]
            text = buffers[1].view(np.int32), buffers[2]
            hash_strings(buffers[0], *text, values.offset, seeds_1, hashes_V1)
        out_offsets = np.empty(len(column) + 1, np.int64)
        count_values(weights_V, offsets, known_B, out_offsets)
        rows_V = np.empty(out_offsets[-1], np.int64)
        shares_V = np.empty(out_offsets[-1], np.float32)
        empty = self.empty_rows_L[place]
        found = hashes_V1.ravel(), weights_V, offsets, known_B, empty, self.rows
        locate_values(*found, out_offsets, rows_V, shares_V)
        rows_V += field * self.rows
        shift = int(self._shifts_F[field])
        return ListRows(rows_V, rows_V + shift if shift else rows_V, shares_V, out_offsets)


@kernel("void(uint64[:,::1], int64[:,::1], uint64[:,::1])")
def _write_keys(hashes_BF: np.ndarray, keys_MX: np.ndarray, out_BM: np.ndarray) -> None:
    """Write the key of each combination of columns, -1 where there is none: the hash of its only
    column, or one of all; 0 where a value is missing."""
    combinations, members = keys_MX.shape
    for b in range(len(hashes_BF)):
        for m in range(combinations):
            h = hashes_BF[b, keys_MX[m, 0]]
            missing = h == 0
            for x in range(1, members):
                member = keys_MX[m, x]
                if member >= 0:
                    missing |= hashes_BF[b, member] == 0
                    h = mix_bits(h ^ mix_bits(hashes_BF[b, member]))
            out_BM[b, m] = np.uint64(0) if missing else h


@kernel(
    "void(uint64[:,::1], Array(float64, 1, 'C', readonly=True),"
    " uint64[::1], int64, int64[:,::1], int64[::1], int64, int64[:,::1])"
)
def _locate_rows(
    hashes_BF: np.ndarray,
    times_s_B: np.ndarray,
    seeds_F: np.ndarray,
    columns: int,
    crosses_CX: np.ndarray,
    times_T: np.ndarray,
    rows: int,
    rows_BF: np.ndarray,
) -> None:
    """Hash crosses and time features, the fields after the first `columns`; then write the row of
    every field. From `seeds_F` to `rows`: see `_Hashing`."""
    crosses, members = crosses_CX.shape
    for b in range(len(hashes_BF)):
        for c in range(crosses):
            h = seeds_F[columns + c]
            missing = False
            for x in range(members):
                member = crosses_CX[c, x]
                if member >= 0:
                    missing |= hashes_BF[b, member] == 0
                    h = mix_bits(h ^ hashes_BF[b, member])
            hashes_BF[b, columns + c] = np.uint64(0) if missing else h
        hours = np.int64(times_s_B[b] // 3600.0)
        for t in range(len(times_T)):
            value = (hours // 24 + 4) % 7 if times_T[t] else hours % 24  # 1970-01-01 was a Thursday
            f = columns + crosses + t
            hashes_BF[b, f] = mix_bits(np.uint64(value) ^ seeds_F[f])
        for f in range(len(seeds_F)):
            h = hashes_BF[b, f]
            row = np.int64(0) if h == 0 else np.int64(np.uint64(1) + h % np.uint64(rows - 1))
            rows_BF[b, f] = f * rows + row
