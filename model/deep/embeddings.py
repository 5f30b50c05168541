"""The embedding tables of all fields, as one flat table, and their optimizer.

In: row ids of events and lists, and the gradients of the loss in their vectors. Out: rows for the
network to read, and for checkpoints. Rows begin at zero, so a row that was never updated is neither
stored nor published. Gradients of one row are summed over a batch, not averaged, so that a rare id
learns as fast as a frequent one.

A field may read the rows of another one, its owner; then it has none of its own. The vector of a
list is the mean of its values' rows.

Shapes: B events, F fields, lists among them, which are the last, R rows of all fields, D floats a
row, V vectors of an event's gradient, of which the first F are those of its fields, U different
rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.features.encoder import Features
from niwaki.model.features.lists import ListRows
from niwaki.model.rows import lazy_zeros


class Embedded(NamedTuple):
    """The rows of B events in the embedding tables."""

    rows_BF: np.ndarray
    """int64, of the fields with one value."""
    lists: tuple[ListRows, ...] = ()

    @classmethod
    def of(cls, features: Features) -> "Embedded":
        """The rows that `features` read."""
        return cls(features.embedded_BF.numpy(), features.lists)

    def part(self, start: int, stop: int) -> "Embedded":
        """Events `start` to `stop` (exclusive), as views."""
        lists = tuple(rows.part(start, stop) for rows in self.lists)
        return Embedded(self.rows_BF[start:stop], lists)

    def write_vectors(self, table_RD: np.ndarray, out_BX: np.ndarray) -> None:
        """Write the vectors of each event's fields, one after the other, to the first columns of
        `out_BX`."""
        kernels.gather_embeddings(table_RD, self.rows_BF, out_BX)
        for field, rows in enumerate(self.lists, self.rows_BF.shape[1]):
            kernels.pool_embeddings(table_RD, *rows.pooled, out_BX, field)


class EmbeddingTables:
    """R rows of D floats, learned by Adagrad (Duchi et al., JMLR 2011) with one accumulator a
    row."""

    def __init__(self, owners: Sequence[int], rows: int, embedding_dim: int, rate: float):
        """`owners`: for each field, the field whose rows it reads. `rows`: rows of each field's
        table, so that R = F * `rows`. `rate`: learning rate, > 0."""
        fields = len(owners)
        self._owners_F = np.array(owners, np.int64)
        self._field_rows = rows
        rows *= fields
        self.weight_RD = lazy_zeros(rows, embedding_dim)
        self.squares_R = lazy_zeros(rows)
        self.touched_F = np.zeros(fields, np.int64)
        """Number of each field's rows that have been updated."""
        self._rate = rate

    def update(self, *parts: tuple[Embedded, np.ndarray]) -> None:
        """One step. Each part of a batch: rows, and the gradient (B, V, D) of the summed loss in
        each event's vectors of them.

        The squares of all events are added before the first row moves, so that all steps of a row
        in one batch have one length.
        """
        squares_R, owners_F = self.squares_R.numpy(), self._owners_F
        for embedded, gradient_BVD in parts:
            rows_BF = embedded.rows_BF
            kernels.add_squares(squares_R, rows_BF, gradient_BVD, owners_F, self.touched_F)
            for field, rows in enumerate(embedded.lists, rows_BF.shape[1]):
                places = gradient_BVD, field, int(owners_F[field])
                kernels.add_list_squares(squares_R, *rows.pooled, *places, self.touched_F)
        weight_RD = self.weight_RD.numpy()
        for embedded, gradient_BVD in parts:
            rows_BF = embedded.rows_BF
            kernels.step_rows(weight_RD, squares_R, rows_BF, gradient_BVD, self._rate)
            for field, rows in enumerate(embedded.lists, rows_BF.shape[1]):
                step = gradient_BVD, field, self._rate
                kernels.step_list_rows(weight_RD, squares_R, *rows.pooled, *step)

    @property
    def touched_rows(self) -> int:
        """Number of rows that have been updated."""
        return int(self.touched_F.sum())

    def rows(self, rows_U: torch.Tensor, mask_FD: torch.Tensor | None = None) -> torch.Tensor:
        """(U, D): copies of rows. `mask_FD`: columns of a field whose mask is 0, and that of every
        field that shares its rows, are zero in the copies; None: no column is masked."""
        values_UD = self.weight_RD.index_select(0, rows_U)
        if mask_FD is None:
            return values_UD
        mask_FD = of_owners(mask_FD, self._owners_F)
        return values_UD.masked_fill_(mask_FD[rows_U // self._field_rows] == 0, 0.0)

    def vectors(self, embedded: Embedded, mask_FD: torch.Tensor | None = None) -> torch.Tensor:
        """(B, F, D): the vectors of events' fields. `mask_FD`: columns of a field whose mask is 0
        are zero in them."""
        return vectors_of(self.weight_RD, embedded, mask_FD)

    def alive_ratio(self, mask_FD: torch.Tensor) -> float:
        """Share of the numbers in all updated rows that are in a column whose mask is 1, for a
        field that reads the rows, 0..1."""
        alive_F = of_owners(mask_FD, self._owners_F).sum(1).numpy()
        every = self.touched_rows * mask_FD.shape[1]
        return int(self.touched_F @ alive_F) / max(every, 1)

    def clear_columns(self, mask_FD: torch.Tensor | None) -> None:
        """Set the columns whose mask is 0 to zero. None: no column is masked."""
        if mask_FD is not None:
            rows_U = self.touched()
            self.weight_RD[rows_U] = self.rows(rows_U, mask_FD)

    def column_norms(self) -> torch.Tensor:
        """(F * D,): the Euclidean norm of each column, field by field; of a field that shares
        another's rows, of those."""
        rows_U = self.touched()
        squares_FD = torch.zeros(len(self.touched_F), self.weight_RD.shape[1])
        fields_U = rows_U // self._field_rows
        norms_FD = squares_FD.index_add_(0, fields_U, self.weight_RD[rows_U].square_()).sqrt_()
        return norms_FD[torch.from_numpy(self._owners_F)].flatten()

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


def of_owners(mask_FD: torch.Tensor, owners_F: Sequence[int] | np.ndarray) -> torch.Tensor:
    """The mask of each field's table, where `mask_FD` is that of its vectors: a column is left
    wherever a field that reads the table has it."""
    owners = torch.as_tensor(owners_F)
    places_FD = owners[:, None].expand_as(mask_FD)
    return torch.zeros_like(mask_FD).scatter_reduce_(0, places_FD, mask_FD, "amax")


def vectors_of(
    table_RD: torch.Tensor, embedded: Embedded, mask_FD: torch.Tensor | None = None
) -> torch.Tensor:
    """(B, F, D): the vectors of events' fields. `mask_FD`: columns of a field whose mask is 0 are
    zero in them; None: no column is masked."""
    events, single = embedded.rows_BF.shape
    fields, width = single + len(embedded.lists), table_RD.shape[1]
    vectors_BX = torch.empty(events, fields * width)
    embedded.write_vectors(table_RD.numpy(), vectors_BX.numpy())
    vectors_BFD = vectors_BX.view(events, fields, width)
    return vectors_BFD if mask_FD is None else vectors_BFD.mul_(mask_FD)
