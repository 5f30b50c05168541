"""How long ago a value was first seen: numerics made from the event time, for the columns that the
schema asks for.

In: `Features`, whose age columns the encoder has left empty. Out: the same with log1p of the
seconds since the value's row was first seen: 0 the first time, NaN where the value or the event
time is missing. First-seen times take one float64 for each row of the column's table, so memory is
bounded, and values that share a row share its age. A learner fills the table; a published model has
the part of it that was published.

Shapes: A columns with an age, R rows of all their tables.
"""

import torch

from niwaki.model.features.encoder import Features
from niwaki.model.features.schema import Schema
from niwaki.model.rows import lazy_zeros


class Ages:
    """The time, in seconds since the epoch, at which each row was first seen; 0: not yet."""

    def __init__(self, schema: Schema, rows: int):
        """`rows`: of each column's table."""
        self._fields_A = torch.tensor(
            [schema.categorical.index(name) for name in schema.ages], dtype=torch.int64
        )
        self._missing_A = self._fields_A * rows
        self._shift_A = torch.arange(len(schema.ages)) * rows - self._missing_A
        self.sizes = {"age": len(schema.ages) * rows} if schema.ages else {}
        """Rows by table, as other tables have them."""
        self.first_s_R1 = self.empty()

    def empty(self) -> torch.Tensor:
        """A table of this shape in which nothing has been seen."""
        return lazy_zeros(self.sizes.get("age", 0), 1, dtype=float)

    def fill(self, features: Features, first_s_R1: torch.Tensor | None = None) -> Features:
        """`features` with ages, by this table or another."""
        if not self.sizes:
            return features
        first_s_BA, known_BA = self._look_up(
            features, self.first_s_R1 if first_s_R1 is None else first_s_R1
        )
        ages_BA = (features.times_s_B[:, None] - first_s_BA).clamp(min=0).log1p().float()
        ages_BA[first_s_BA == 0] = 0
        ages_BA[~known_BA] = torch.nan
        numerics = features.numerics_BN.shape[1] - len(self._fields_A)
        return features._replace(
            numerics_BN=torch.cat([features.numerics_BN[:, :numerics], ages_BA], 1)
        )

    def see(self, features: Features) -> dict[str, torch.Tensor]:
        """Remember when the rows that are new were first seen, in the order of events; returns them
        by table."""
        if not self.sizes:
            return {}
        first_s_BA, known_BA = self._look_up(features, self.first_s_R1)
        new_BA = known_BA & (first_s_BA == 0)
        rows_X = (features.rows_BF[:, self._fields_A] + self._shift_A)[new_BA]
        times_s_X = features.times_s_B[:, None].expand_as(new_BA)[new_BA]
        self.first_s_R1[rows_X.flip(0), 0] = times_s_X.flip(
            0
        )  # of several, the last to be written is the first seen
        return {"age": rows_X}

    def export(self, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint: all rows that have been seen, or those named for a delta."""
        if not self.sizes:
            return {}
        rows_U = rows["age"] if "age" in rows else self.first_s_R1[:, 0].nonzero().squeeze(1)
        return {"age.rows": rows_U, "age.values": self.first_s_R1[rows_U]}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undo a full `export`."""
        if self.sizes:
            self.first_s_R1[tensors["age.rows"]] = tensors["age.values"]

    def _look_up(
        self, features: Features, first_s_R1: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """When each value was first seen, and where value and time are known, both (B, A)."""
        rows_BA = features.rows_BF[:, self._fields_A]
        known_BA = (rows_BA != self._missing_A) & (features.times_s_B[:, None] > 0)
        return first_s_R1[rows_BA + self._shift_A, 0], known_BA
