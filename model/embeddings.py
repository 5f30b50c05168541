"""The embedding tables of all fields as one flat table.

In: flat row ids. Out: the rows themselves, for the network to differentiate through; `update` then takes their
gradient. Rows start at zero, so a row never touched need not be stored, published or sent. Gradients of one id are
summed over the batch, so a rare id is not slowed down by averaging. Measured: as fast as FBGEMM's fused CPU tables at
these sizes, in plain torch.
"""

import torch

from model.linear import lazy_zeros


class EmbeddingTables:
    """R rows of D floats, learned by row-wise Adagrad (Duchi et al., JMLR 2011; one accumulator a row)."""

    def __init__(self, rows: int, embedding_dim: int, rate: float):
        """`rows`: R, over all fields. `rate`: learning rate, > 0."""
        self.weight_RD = lazy_zeros(rows, embedding_dim)
        self.squares_R = lazy_zeros(rows)
        self.touched_rows = 0
        """How many rows `touched` would name."""
        self._rate = rate

    def lookup(self, rows_BF: torch.Tensor) -> torch.Tensor:
        """(B, F, D): the rows, a copy."""
        return self.weight_RD[rows_BF]

    def update(self, rows_BF: torch.Tensor, gradient_BFD: torch.Tensor) -> torch.Tensor:
        """One step against the gradient of the summed loss in what `lookup` returned; the sorted ids of the rows,
        (U,)."""
        rows_U, place_BF = torch.unique(rows_BF, return_inverse=True)
        width = self.weight_RD.shape[1]
        gradient_XD = gradient_BFD.reshape(-1, width)
        gradient_UD = torch.zeros(len(rows_U), width).index_add_(0, place_BF.view(-1), gradient_XD)
        # Squares of each event's own gradient: the step does not depend on how events are cut into batches.
        before_U = self.squares_R[rows_U]
        squares_U = before_U.index_add(0, place_BF.view(-1), gradient_XD.square().mean(1))
        self.touched_rows += int((squares_U > 0).sum() - (before_U > 0).sum())
        self.squares_R[rows_U] = squares_U
        gradient_UD *= (self._rate / (squares_U + 1e-2).sqrt())[:, None]
        self.weight_RD.index_add_(0, rows_U, gradient_UD, alpha=-1)
        return rows_U

    def quicken(self, ratio: float) -> None:
        """Keep only `ratio` of the squared gradients so far, (0, 1]: the world has changed, and steps grow again."""
        touched_U = self.touched()
        # Never to zero, which says that a row has not been touched.
        self.squares_R[touched_U] = (self.squares_R[touched_U] * ratio).clamp(min=1e-30)

    def touched(self) -> torch.Tensor:
        """Sorted ids of every row that has ever been updated; the others are zero."""
        return self.squares_R.nonzero().squeeze(1)

    def restore(self, rows_U: torch.Tensor, weight_UD: torch.Tensor, squares_U: torch.Tensor) -> None:
        """Set the rows of a snapshot."""
        self.weight_RD[rows_U], self.squares_R[rows_U] = weight_UD, squares_U
        self.touched_rows = len(rows_U)
