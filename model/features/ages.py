"""Ages of values: numerics made from the event time, for the columns that the schema names.

In: `HashedEvents`. Out: finished `Features`, with log1p of the seconds since each value's row was
first seen: 0 the first time, NaN where the value or the event time is missing. Times of first sight
take one float64 for each row of the column's table, so memory is bounded, and values that share a
row share its age. A learner fills the table; a published model has the published part of it.
Hashing does not depend on this table, so a learner and the model that it has published share the
hashed events of a batch, and each completes them by its own table.

Shapes: B events, F fields, A columns with an age, R rows of all their tables.
"""

from collections.abc import Mapping

import torch

from niwaki.model.features.encoder import Features, HashedEvents
from niwaki.model.features.event_clock import BEHIND_S
from niwaki.model.features.schema import Schema
from niwaki.model.rows import lazy_zeros


class Ages:
    """Times of first sight by row, seconds since the epoch; 0: not seen yet."""

    def __init__(self, schema: Schema, rows: int):
        """`rows`: of each column's table."""
        columns = [schema.categorical.index(name) for name in schema.ages]
        self._first = len(schema.numeric)
        self._fields_A = torch.tensor(columns, dtype=torch.int64)
        self._missing_A = self._fields_A * rows
        self._shift_A = torch.arange(len(columns)) * rows - self._missing_A
        self.sizes = {"age": len(columns) * rows} if columns else {}
        """Number of rows by table, as other tables have it; empty: the schema names no column."""
        self.first_s_R1 = self.empty()

    def empty(self) -> torch.Tensor:
        """A table (R, 1) of this shape in which nothing has been seen."""
        return lazy_zeros(self.sizes.get("age", 0), 1, dtype=float)

    def complete(self, hashed: HashedEvents, first_s_R1: torch.Tensor | None = None) -> Features:
        """Finished features of B events, nothing remembered. `first_s_R1`: the table to read; None:
        this object's own."""
        numerics_BN = hashed.raw_numerics_BN
        if not self.sizes:
            return _features(hashed, numerics_BN)
        table = self.first_s_R1 if first_s_R1 is None else first_s_R1
        first_s_BA = self._first_s(hashed.rows_BF, table)
        ages_BA = (hashed.times_s_B[:, None] - first_s_BA).clamp(min=0).log1p().float()
        ages_BA[first_s_BA == 0] = 0
        ages_BA[~self._known(hashed.rows_BF, hashed.times_s_B)] = torch.nan
        after = self._first + len(self._fields_A)
        parts = numerics_BN[:, : self._first], ages_BA, numerics_BN[:, after:]
        return _features(hashed, torch.cat(parts, 1))

    def see(self, features: Features) -> dict[str, torch.Tensor]:
        """Remember the time of first sight of each new row, in the order of events; returns the new
        rows by table."""
        if not self.sizes:
            return {}
        new_BA = self._known(features.rows_BF, features.times_s_B)
        first_s_BA = self._first_s(features.rows_BF, self.first_s_R1)
        # A first sight far ahead is one of before the stream began anew at an earlier time.
        new_BA &= (first_s_BA == 0) | (features.times_s_B[:, None] < first_s_BA - BEHIND_S)
        rows_X = (features.rows_BF[:, self._fields_A] + self._shift_A)[new_BA]
        times_s_X = features.times_s_B[:, None].expand_as(new_BA)[new_BA]
        # Of several events of a row, the last to be written must be the first in the stream.
        self.first_s_R1[rows_X.flip(0), 0] = times_s_X.flip(0)
        return {"age": rows_X}

    def export(self, rows: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint: all rows that have been seen or, for a delta, those that
        `rows` has under "age"."""
        if not self.sizes:
            return {}
        rows_U = rows["age"] if "age" in rows else self.first_s_R1[:, 0].nonzero().squeeze(1)
        return {"age.rows": rows_U, "age.values": self.first_s_R1[rows_U]}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `export` was taken of all rows."""
        if self.sizes:
            self.first_s_R1[tensors["age.rows"]] = tensors["age.values"]

    def _first_s(self, rows_BF: torch.Tensor, first_s_R1: torch.Tensor) -> torch.Tensor:
        """(B, A): the time of first sight of each value's row."""
        return first_s_R1[rows_BF[:, self._fields_A] + self._shift_A, 0]

    def _known(self, rows_BF: torch.Tensor, times_s_B: torch.Tensor) -> torch.Tensor:
        """(B, A) bool: true where neither the value nor the time is missing."""
        return (rows_BF[:, self._fields_A] != self._missing_A) & (times_s_B[:, None] > 0)


def _features(hashed: HashedEvents, numerics_BN: torch.Tensor) -> Features:
    rows = hashed.rows_BF, hashed.embedded_BF, hashed.hashes_BF
    return Features(*rows, numerics_BN, hashed.times_s_B, hashed.lists)
