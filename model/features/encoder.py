"""From columns of events to what the network reads: table rows for categorical fields, floats for
numerics.

First stop of a batch. In: an `EventBatch`. Out: `Features`, flat row ids and raw numerics as
tensors. Hashing is seeded by field name, and the same on every machine and in every version of this
file's `HASH_VERSION`. It refuses to look at labels.

Shapes: B events, F fields, P pairs of fields, C crosses of up to X fields, T time features.
"""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from niwaki.model.features.schema import TIME_FEATURES, EventBatch, Schema
from niwaki.model.jit import kernel

HASH_VERSION = 1


class Features(NamedTuple):
    """What the model reads of B events."""

    rows_BF: torch.Tensor
    """int64, flat row of each field's value in the embedding tables; a field's first row stands for
    "missing"."""
    pairs_BP: torch.Tensor
    """int64, row of each pair of fields in the table of pairs; P = 0 where pairs are not made."""
    numerics_BN: torch.Tensor
    """float32, NaN = missing; ages are filled in where it is known what was seen
    (`model.features.ages`)."""
    times_s_B: torch.Tensor
    """float64, event time in seconds since the epoch; 0: not known."""


class Encoder:
    """Maps an `EventBatch` to `Features`: each value of a field is hashed to one of the rows of the
    field's table."""

    def __init__(self, schema: Schema, *, rows: int, pair_rows: int = 0, seed: int = 0):
        """`rows`: of each field's table. `pair_rows`: of the one table of all pairs of fields; 0:
        no pairs."""
        self.schema, self.rows, self.pair_rows = schema, rows, pair_rows
        names = schema.fields
        self.pairs = tuple(itertools.combinations(range(len(names)), 2)) if pair_rows else ()
        self._seeds_F = np.array(
            [_seed(f"{HASH_VERSION}:{seed}:{name}") for name in names], np.uint64
        )
        self._pairs_P2 = np.array(self.pairs, np.int64).reshape(-1, 2)
        self._seeds_P = np.array(
            [_seed(f"{HASH_VERSION}:{seed}:{names[i]}:{names[j]}") for i, j in self.pairs],
            np.uint64,
        )
        self._crosses_CX = np.full(
            (len(schema.crosses), max(map(len, schema.crosses), default=0)), -1
        )
        for c, cross in enumerate(schema.crosses):
            self._crosses_CX[c, : len(cross)] = [schema.categorical.index(name) for name in cross]
        self._times_T = np.array(
            [TIME_FEATURES.index(name) for name in schema.time_features if name in TIME_FEATURES],
            np.int64,
        )

    def encode(self, batch: EventBatch) -> Features:
        """The rows and numerics of `batch`."""
        events, columns = len(batch), len(self.schema.categorical)
        hashes_BF = np.empty((events, len(self._seeds_F)), np.uint64)
        rows_BF = np.empty(hashes_BF.shape, np.int64)
        pairs_BP = np.empty((events, len(self.pairs)), np.int64)
        if columns and events:
            strings = pa.concat_arrays(batch.categorical)
            valid, offsets, text = (
                np.frombuffer(buffer or b"", np.uint8) for buffer in strings.buffers()
            )
            seeds_F = self._seeds_F[:columns]
            _hash_strings(valid, offsets.view(np.int32), text, strings.offset, seeds_F, hashes_BF)
        _rows_of_hashes(
            hashes_BF,
            self._seeds_F,
            columns,
            self._crosses_CX,
            self._times_T,
            batch.times_s_B,
            self.rows,
            rows_BF,
            self._pairs_P2,
            self._seeds_P,
            self.pair_rows,
            pairs_BP,
        )
        numerics_BN = np.ascontiguousarray(batch.numerics_BN)
        if ages := len(self.schema.ages):
            numerics_BN = np.concatenate(
                [numerics_BN, np.full((events, ages), np.nan, np.float32)], 1
            )
        return Features(
            *map(torch.from_numpy, (rows_BF, pairs_BP, numerics_BN, np.array(batch.times_s_B)))
        )


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@kernel("uint64(uint64)")
def _mix(h):
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): every input bit reaches every
    output bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return max(h ^ (h >> np.uint64(31)), np.uint64(1))  # 0 is kept for "missing"


@kernel(
    "void(Array(uint8, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(uint8, 1, 'C', readonly=True), int64, uint64[::1], uint64[:,::1])"
)
def _hash_strings(valid, offsets, text, first, seeds_F, hashes_BF):
    """Of each string of an Arrow array, eight bytes at a time, beginning with its length; 0 where
    it is null.

    `valid`, `offsets`, `text`: the array's buffers, the first empty where nothing is null. `first`:
    the array's offset. The array holds B strings of the first field, then B of the second, and so
    on.
    """
    events = len(hashes_BF)
    for f in range(len(seeds_F)):
        for b in range(events):
            i = first + f * events + b
            if len(valid) and not valid[i >> 3] >> (i & 7) & 1:
                hashes_BF[b, f] = 0
                continue
            start, stop = np.int64(offsets[i]), np.int64(offsets[i + 1])
            h = _mix(seeds_F[f] ^ np.uint64(stop - start))
            for at in range(start, stop, 8):
                word = np.uint64(0)
                for j in range(min(8, stop - at)):
                    word |= np.uint64(text[at + j]) << np.uint64(8 * j)
                h = _mix(h ^ word)
            hashes_BF[b, f] = h


@kernel(
    "void(uint64[:,::1], uint64[::1], int64, int64[:,::1], int64[::1], Array(float64, 1, 'C', readonly=True), int64,"
    " int64[:,::1], int64[:,::1], uint64[::1], int64, int64[:,::1])"
)
def _rows_of_hashes(
    hashes_BF,
    seeds_F,
    columns,
    crosses_CX,
    times_T,
    times_s_B,
    rows,
    rows_BF,
    pairs_P2,
    seeds_P,
    pair_rows,
    pairs_BP,
):
    """Hash crosses and time features, the fields after the first `columns`, then find every field's
    and pair's row.

    `crosses_CX`: the members of each cross, then -1. `times_T`: 0 for the hour, 1 for the day of
    the week.
    """
    crosses, members = crosses_CX.shape
    for b in range(len(hashes_BF)):
        for c in range(crosses):
            h, missing = seeds_F[columns + c], False
            for x in range(members):
                member = crosses_CX[c, x]
                if member >= 0:
                    missing |= hashes_BF[b, member] == 0
                    h = _mix(h ^ hashes_BF[b, member])
            hashes_BF[b, columns + c] = np.uint64(0) if missing else h
        hours = np.int64(times_s_B[b] // 3600.0)
        for t in range(len(times_T)):
            value = (hours // 24 + 4) % 7 if times_T[t] else hours % 24  # 1970-01-01 was a Thursday
            f = columns + crosses + t
            hashes_BF[b, f] = _mix(np.uint64(value) ^ seeds_F[f])
        for f in range(len(seeds_F)):
            h = hashes_BF[b, f]
            row = np.int64(0) if h == 0 else np.int64(np.uint64(1) + h % np.uint64(rows - 1))
            rows_BF[b, f] = f * rows + row
        for p in range(len(pairs_P2)):
            first, second = hashes_BF[b, pairs_P2[p, 0]], hashes_BF[b, pairs_P2[p, 1]]
            pairs_BP[b, p] = np.int64(
                _mix(_mix(first ^ seeds_P[p]) ^ second) % np.uint64(pair_rows)
            )
