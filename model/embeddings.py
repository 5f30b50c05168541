"""The embedding tables of all fields as one flat table: row = [first-order weight | D-dimensional embedding].

In: flat row ids. Out: the rows themselves, for the network to differentiate through; `update` then takes their
gradient. Rows start at zero, so a row never touched need not be stored, published or sent. Gradients of one id are
summed over the batch, so a rare id is not slowed down by averaging. Measured: as fast as FBGEMM's fused CPU tables at
these sizes, in plain torch.
"""

import torch


class EmbeddingTables:
    """R rows of K = 1 + D floats, with Adagrad (Duchi et al., JMLR 2011) for the first-order weight and row-wise
    Adagrad for the rest."""

    def __init__(self, rows: int, embedding_dim: int, *, first_order_rate: float, embedding_rate: float):
        """`rows`: R, over all fields. Rates: learning rates of the two parts, > 0."""
        self.weight_RK = torch.zeros(rows, 1 + embedding_dim)
        self.accumulator_R2 = torch.zeros(rows, 2)
        self._touched_R = torch.zeros(rows, dtype=torch.bool)
        self._followers: list[Changes] = []
        self._rates = torch.tensor([first_order_rate, embedding_rate])

    def lookup(self, rows_BF: torch.Tensor) -> torch.Tensor:
        """(B, F, K): the rows, a copy."""
        return self.weight_RK[rows_BF]

    def update(self, rows_BF: torch.Tensor, gradient_BFK: torch.Tensor) -> None:
        """One step against the gradient of the summed loss with respect to what `lookup` returned."""
        rows_U, place = torch.unique(rows_BF, return_inverse=True)
        width = self.weight_RK.shape[1]
        gradient_UK = torch.zeros(len(rows_U), width).index_add_(0, place.view(-1), gradient_BFK.reshape(-1, width))
        squares_U2 = torch.stack([gradient_UK[:, 0].square(), gradient_UK[:, 1:].square().mean(1)], 1)
        accumulator_U2 = self.accumulator_R2[rows_U] + squares_U2
        self.accumulator_R2[rows_U] = accumulator_U2
        steps_U2 = self._rates / (accumulator_U2.sqrt() + 1e-8)
        gradient_UK[:, 0] *= steps_U2[:, 0]
        gradient_UK[:, 1:] *= steps_U2[:, 1:]
        self.weight_RK.index_add_(0, rows_U, gradient_UK, alpha=-1)
        self._touched_R[rows_U] = True
        for changes in self._followers:
            changes.rows.append(rows_U)

    def touched(self) -> torch.Tensor:
        """Sorted ids of every row that has ever been updated; the others are zero."""
        return self._touched_R.nonzero().squeeze(1)

    def follow(self) -> "Changes":
        """A log of every row updated from now on, for one reader."""
        self._followers.append(Changes())
        return self._followers[-1]

    def restore(self, rows_U: torch.Tensor, weight_UK: torch.Tensor, accumulator_U2: torch.Tensor) -> None:
        """Set the rows of a snapshot."""
        self.weight_RK[rows_U], self.accumulator_R2[rows_U], self._touched_R[rows_U] = weight_UK, accumulator_U2, True


class Changes:
    """Which rows were updated since its reader last asked."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    def take(self) -> torch.Tensor:
        """Sorted ids of the rows updated since the last call."""
        rows, self.rows = self.rows, []
        return torch.unique(torch.cat(rows)) if rows else torch.empty(0, dtype=torch.int64)
