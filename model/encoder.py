"""From columns of events to what the network reads: table rows for categorical fields, floats for numerics.

First stop of a batch. In: an `EventBatch`. Out: `Features`, flat row ids and raw numerics as tensors. Hashing is seeded
by field name, and the same on every machine and in every version of this file's `HASH_VERSION`. It refuses to look at
labels.
"""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from model import kernels
from model.features import TIME_FEATURES, EventBatch, Schema

HASH_VERSION = 1


class Features(NamedTuple):
    """What the model reads of B events."""

    rows_BF: torch.Tensor
    """int64, flat row of each field's value in the embedding tables; a field's first row stands for "missing"."""
    pairs_BP: torch.Tensor
    """int64, row of each pair of fields in the table of pairs; P = 0 where pairs are not made."""
    numerics_BN: torch.Tensor
    """float32, NaN = missing."""


class Encoder:
    """Maps an `EventBatch` to `Features`: each value of a field is hashed to one of the rows of the field's table."""

    def __init__(self, schema: Schema, *, rows: int, pair_rows: int = 0, seed: int = 0):
        """`rows`: of each field's table. `pair_rows`: of the one table of all pairs of fields; 0: no pairs."""
        self.schema, self.rows, self.pair_rows = schema, rows, pair_rows
        names = schema.fields
        self.pairs = tuple(itertools.combinations(range(len(names)), 2)) if pair_rows else ()
        self._seeds_F = np.array([_seed(f"{HASH_VERSION}:{seed}:{name}") for name in names], np.uint64)
        self._pairs_P2 = np.array(self.pairs, np.int64).reshape(-1, 2)
        self._seeds_P = np.array(
            [_seed(f"{HASH_VERSION}:{seed}:{names[i]}:{names[j]}") for i, j in self.pairs], np.uint64
        )
        self._crosses_CX = np.full((len(schema.crosses), max(map(len, schema.crosses), default=0)), -1)
        for c, cross in enumerate(schema.crosses):
            self._crosses_CX[c, : len(cross)] = [schema.categorical.index(name) for name in cross]
        self._times_T = np.array([TIME_FEATURES.index(name) for name in schema.time_features], np.int64)

    def encode(self, batch: EventBatch) -> Features:
        """The rows and numerics of `batch`."""
        events, columns = len(batch), len(self.schema.categorical)
        hashes_BF = np.empty((events, len(self._seeds_F)), np.uint64)
        rows_BF = np.empty(hashes_BF.shape, np.int64)
        pairs_BP = np.empty((events, len(self.pairs)), np.int64)
        if columns and events:
            strings = pa.concat_arrays(batch.categorical)
            valid, offsets, text = (np.frombuffer(buffer or b"", np.uint8) for buffer in strings.buffers())
            seeds_F = self._seeds_F[:columns]
            kernels.hash_strings(valid, offsets.view(np.int32), text, strings.offset, seeds_F, hashes_BF)
        kernels.rows_of_hashes(
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
        numerics_BN = torch.from_numpy(np.ascontiguousarray(batch.numerics_BN))
        return Features(torch.from_numpy(rows_BF), torch.from_numpy(pairs_BP), numerics_BN)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
