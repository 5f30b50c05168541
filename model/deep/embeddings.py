"""The embedding tables of all fields, as one flat table, and their optimizer.

In: row ids of events, and the gradients of the loss in those rows. Out: rows for the network to
read, and for checkpoints. Rows begin at zero, so a row that was never updated is neither stored nor
published. Gradients of one row are summed over a batch, not averaged, so that a rare id learns as
fast as a frequent one.

Shapes: B events, F fields, R rows of all fields, D floats a row, V vectors of an event's gradient,
of which the first F are those of its rows, U different rows.
"""

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.rows import lazy_zeros


class EmbeddingTables:
    """R rows of D floats, learned by Adagrad (Duchi et al., JMLR 2011) with one accumulator a
    row."""

    def __init__(self, fields: int, rows: int, embedding_dim: int, rate: float):
        """`rows`: rows of each field's table, so that R = `fields` * `rows`. `rate`: learning rate,
        > 0."""
        self._field_rows = rows
        rows *= fields
        self.weight_RD = lazy_zeros(rows, embedding_dim)
        self.squares_R = lazy_zeros(rows)
        self.touched_F = np.zeros(fields, np.int64)
        """Number of each field's rows that have been updated."""
        self._rate = rate

    def update(self, *parts: tuple[np.ndarray, np.ndarray]) -> None:
        """One step. Each part of a batch: rows (B, F) int64, and the gradient (B, V, D) of the
        summed loss in each event's copies of them.

        The squares of all events are added before the first row moves, so that all steps of a row
        in one batch have one length.
        """
        squares_R = self.squares_R.numpy()
        for rows_BF, gradient_BVD in parts:
            kernels.add_squares(squares_R, rows_BF, gradient_BVD, self.touched_F)
        weight_RD = self.weight_RD.numpy()
        for rows_BF, gradient_BVD in parts:
            kernels.step_rows(weight_RD, squares_R, rows_BF, gradient_BVD, self._rate)

    @property
    def touched_rows(self) -> int:
        """Number of rows that have been updated."""
        return int(self.touched_F.sum())

    def rows(self, rows_U: torch.Tensor, mask_FD: torch.Tensor | None = None) -> torch.Tensor:
        """(U, D): copies of rows. `mask_FD`: columns of a field whose mask is 0 are zero in the
        copies; None: no column is masked."""
        values_UD = self.weight_RD.index_select(0, rows_U)
        return (
            values_UD
            if mask_FD is None
            else values_UD.masked_fill_(mask_FD[rows_U // self._field_rows] == 0, 0.0)
        )

    def vectors(self, rows_BF: torch.Tensor, mask_FD: torch.Tensor | None = None) -> torch.Tensor:
        """(B, F, D): copies of events' rows. `mask_FD`: as in `rows`."""
        width = self.weight_RD.shape[1]
        return self.rows(rows_BF.flatten(), mask_FD).view(*rows_BF.shape, width)

    def clear_columns(self, mask_FD: torch.Tensor | None) -> None:
        """Set the columns whose mask is 0 to zero. None: no column is masked."""
        if mask_FD is not None:
            rows_U = self.touched()
            self.weight_RD[rows_U] = self.rows(rows_U, mask_FD)

    def column_norms(self) -> torch.Tensor:
        """(F * D,): the Euclidean norm of each column, field by field."""
        rows_U = self.touched()
        squares_FD = torch.zeros(len(self.touched_F), self.weight_RD.shape[1])
        return (
            squares_FD.index_add_(0, rows_U // self._field_rows, self.weight_RD[rows_U].square_())
            .sqrt_()
            .flatten()
        )

    def decay_accumulators(self, ratio: float) -> None:
        """Multiply all accumulators by `ratio`, (0, 1], so that steps grow again after a drift."""
        touched_U = self.touched()
        # Zero would mark a row as never updated.
        self.squares_R[touched_U] = (self.squares_R[touched_U] * ratio).clamp(min=1e-30)

    def touched(self) -> torch.Tensor:
        """Sorted ids of every row that has been updated; all others are zero."""
        return self.squares_R.nonzero().squeeze(1)

    def state(self) -> dict[str, torch.Tensor]:
        """Rows that have been updated, and their accumulators, for a snapshot."""
        rows_U = self.touched()
        return {"rows": rows_U, "weight": self.weight_RD[rows_U], "squares": self.squares_R[rows_U]}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from `state`. No row may have been updated yet."""
        rows_U = tensors["rows"]
        self.weight_RD[rows_U], self.squares_R[rows_U] = tensors["weight"], tensors["squares"]
        self.touched_F[:] = np.bincount(
            rows_U.numpy() // self._field_rows, minlength=len(self.touched_F)
        )
