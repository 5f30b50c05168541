"""The embedding tables of all fields as one flat table.

In: flat row ids. Out: the rows themselves, for the network to differentiate through; `update` then
takes their gradient. Rows start at zero, so a row never touched need not be stored, published or
sent. Gradients of one id are summed over the batch, so a rare id is not slowed down by averaging.
"""

import numpy as np
import torch

from niwaki.model.deep import layers
from niwaki.model.rows import lazy_zeros


class EmbeddingTables:
    """R rows of D floats, learned by row-wise Adagrad (Duchi et al., JMLR 2011; one accumulator a
    row)."""

    def __init__(self, fields: int, rows: int, embedding_dim: int, rate: float):
        """`rows`: of each field's table, R = `fields` * `rows` in all. `rate`: learning rate, >
        0."""
        self._field_rows = rows
        rows *= fields
        self.weight_RD = lazy_zeros(rows, embedding_dim)
        self.squares_R = lazy_zeros(rows)
        self.touched_F = np.zeros(fields, np.int64)
        """How many rows of each field `touched` would name."""
        self._rate = rate
        self._arrays = self.weight_RD.numpy(), self.squares_R.numpy()

    def update(self, *parts: tuple[np.ndarray, np.ndarray]) -> None:
        """One step, which a batch may take in parts. Of each: rows (B, F), and the gradient of the
        summed loss in each event's copies of them, the first F of its (B, V, D). First come the
        squares of all events, then the steps, so that a row's steps in one batch are equally
        long."""
        weight_RD, squares_R = self._arrays
        for part in parts:
            layers.learn_squares(squares_R, *part, self.touched_F)
        for part in parts:
            layers.learn_rows(weight_RD, squares_R, *part, self._rate)

    @property
    def touched_rows(self) -> int:
        """How many rows `touched` would name."""
        return int(self.touched_F.sum())

    def rows(self, rows_U: torch.Tensor, mask_FD: torch.Tensor | None = None) -> torch.Tensor:
        """(U, D): these rows, a copy. `mask_FD`: columns of a field with a 0 there come as zero."""
        values_UD = self.weight_RD.index_select(0, rows_U)
        return (
            values_UD
            if mask_FD is None
            else values_UD.masked_fill_(mask_FD[rows_U // self._field_rows] == 0, 0.0)
        )

    def clear(self, mask_FD: torch.Tensor | None) -> None:
        """Set the columns whose mask is 0 to zero; None: there are none."""
        if mask_FD is not None:
            rows_U = self.touched()
            self.weight_RD[rows_U] = self.rows(rows_U, mask_FD)

    def column_norms(self) -> torch.Tensor:
        """(F * D,): the Euclidean norm of each field's columns."""
        rows_U = self.touched()
        squares_FD = torch.zeros(len(self.touched_F), self.weight_RD.shape[1])
        return (
            squares_FD.index_add_(0, rows_U // self._field_rows, self.weight_RD[rows_U].square_())
            .sqrt_()
            .flatten()
        )

    def decay_accumulators(self, ratio: float) -> None:
        """Keep only `ratio` of the squared gradients so far, (0, 1]: the world has changed, and
        steps grow again."""
        touched_U = self.touched()
        # Never to zero, which says that a row has not been touched.
        self.squares_R[touched_U] = (self.squares_R[touched_U] * ratio).clamp(min=1e-30)

    def touched(self) -> torch.Tensor:
        """Sorted ids of every row that has ever been updated; the others are zero."""
        return self.squares_R.nonzero().squeeze(1)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, for a snapshot."""
        rows_U = self.touched()
        return {"rows": rows_U, "weight": self.weight_RD[rows_U], "squares": self.squares_R[rows_U]}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undo `state`."""
        rows_U = tensors["rows"]
        self.weight_RD[rows_U], self.squares_R[rows_U] = tensors["weight"], tensors["squares"]
        self.touched_F[:] = np.bincount(
            rows_U.numpy() // self._field_rows, minlength=len(self.touched_F)
        )
