"""Columns of the embedding tables as units: which of them live, within a budget of the tables'
bytes.

A unit is one embedding dimension of one field, and its mask acts on that field's vectors (Xiao et
al., Field-wise Embedding Size Search via Structural Hard Auxiliary Mask Pruning, arXiv:2208.08004).
A column costs as many bytes as its field has rows that were ever learned, so a dimension of a large
table must be worth more than one of a small table. Importance is learned as that of any unit
(`pruning.auxiliary`); what a byte must be worth is solved at each step. Every field keeps one
column at least, so a budget below 1 / D cannot be reached.

Shapes: F fields, D columns of each table, X = F * D of them in all.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from niwaki.pruning.auxiliary import AuxiliaryConfig, average_importance
from niwaki.pruning.units import MaskGradient, Tensors, UnitGroup

_CLOSE_RATIO = 0.01
"""Share of the tables' bytes that may stay unused without a search for other columns."""


class Tables(Protocol):
    """The part of the embedding tables that masks of their columns read."""

    touched_F: np.ndarray
    """int64, rows of each field learned so far; they may become more while masks are learned."""

    def column_norms(self) -> torch.Tensor:
        """(X,): the norm of each column's values."""


class ColumnMasks:
    """The auxiliary parameters of the columns, and the masks that follow from them."""

    def __init__(self, group: UnitGroup, tables: Tables, config: AuxiliaryConfig):
        self.group = group
        self._tables = tables
        self._config = config
        self._fields = len(tables.touched_F)
        self._importance_X = torch.zeros(group.size)
        self.alive_X = torch.ones(group.size, dtype=torch.bool)
        self.steps = 0

    def update(self, gradient: MaskGradient, target_ratio: float, weights: Tensors) -> None:
        """Learn from the gradients in the masks, then let the bytes of the tables fall to
        `target_ratio` of all, (0..1]. `weights` are not read."""
        self.steps += 1
        worth_X = self.group.importance(gradient, self.alive_X, self._config.curvature)
        average_importance(self._importance_X, worth_X, self.steps, self._config)
        if self._config.uniform:
            self.alive_X = self._largest(self._importance_X, target_ratio)
        else:
            self.alive_X = torch.from_numpy(self._worth_their_price(target_ratio))

    def ratio(self) -> float:
        """Bytes of the columns alive, as a share of all."""
        price_X = self._price_X()
        return float(price_X[self.alive_X.numpy()].sum() / price_X.sum())

    def state(self) -> dict[str, torch.Tensor]:
        """Importance and liveness, for a snapshot."""
        return {
            f"importance.{self.group.name}": self._importance_X,
            f"alive.{self.group.name}": self.alive_X,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """Continue where `state` was taken."""
        self.steps = steps
        self._importance_X = tensors[f"importance.{self.group.name}"].clone()
        self.alive_X = tensors[f"alive.{self.group.name}"].clone()

    def _price_X(self) -> np.ndarray:
        rows_F = np.maximum(self._tables.touched_F, 1).astype(np.float64)
        return np.repeat(rows_F, self.group.size // self._fields)

    def _worth_their_price(self, target_ratio: float) -> np.ndarray:
        """The best column of each field, then those that are worth the most for a byte, as long as
        they fit. If that leaves more than a hundredth of all bytes unused, since one field's
        columns are dear, columns are exchanged."""
        price_X, worth_X = self._price_X(), self._importance_X.numpy()
        worth_FD = worth_X.reshape(self._fields, -1)
        first_X = np.zeros(len(price_X), bool)
        first_X[worth_FD.argmax(1) + np.arange(self._fields) * worth_FD.shape[1]] = True
        ordered = np.argsort(-worth_X / price_X, kind="stable")
        alive_X, total = first_X.copy(), price_X.sum()
        left = _buy(alive_X, ordered, price_X, target_ratio * total - price_X[first_X].sum())
        close = _CLOSE_RATIO * total
        while left > close:
            spared_X = first_X | ~alive_X
            found = [
                _exchange(x, alive_X, spared_X, ordered, price_X, left)
                for x in self._best_dead(ordered, alive_X)
            ]
            # the fullest; of those that are close enough, the one worth the most
            best = min(
                found,
                key=lambda one: (max(one[1], close), -worth_X[one[0]].sum()),
                default=(alive_X, left),
            )
            if best[1] >= left:
                break
            alive_X, left = best
        return alive_X

    def _best_dead(self, ordered: np.ndarray, alive_X: np.ndarray) -> np.ndarray:
        """Of each field that has one, the dead column that is worth the most."""
        dead = ordered[~alive_X[ordered]]
        fields = dead // (self.group.size // self._fields)
        _, first = np.unique(fields, return_index=True)
        best: np.ndarray = dead[first]
        return best

    def _largest(self, size_X: torch.Tensor, ratio: float) -> torch.Tensor:
        """Equally many columns of each field, those of the largest size."""
        size_FD = size_X.view(self._fields, -1)
        count = self._of_each_field(ratio)
        chosen_FD = torch.zeros_like(size_FD, dtype=torch.bool).scatter_(
            1, size_FD.topk(count, 1).indices, True
        )
        return chosen_FD.flatten()

    def _of_each_field(self, ratio: float) -> int:
        return max(1, int(ratio * (self.group.size // self._fields) + 1e-9))


def _buy(alive_X: np.ndarray, ordered: np.ndarray, price_X: np.ndarray, left: float) -> float:
    """Let every dead column live, in the order given, that fits what is `left`, in place; what is
    left then."""
    for x in ordered[~alive_X[ordered]]:
        if price_X[x] <= left:
            alive_X[x] = True
            left -= price_X[x]
    return left


def _exchange(
    x: int,
    alive_X: np.ndarray,
    spared_X: np.ndarray,
    ordered: np.ndarray,
    price_X: np.ndarray,
    left: float,
) -> tuple[np.ndarray, float]:
    """Column x in the place of cheaper ones, those first that are worth the least for a byte; who
    is alive then, and what is left. The same as before, where all of them together do not make room
    for it."""
    given_up = ordered[::-1]
    given_up = given_up[~spared_X[given_up] & (price_X[given_up] < price_X[x])]
    freed = np.cumsum(price_X[given_up])
    enough = int(np.searchsorted(freed, price_X[x] - left)) + 1
    if enough > len(freed):
        return alive_X, left
    other_X = alive_X.copy()
    other_X[given_up[:enough]], other_X[x] = False, True
    return other_X, _buy(other_X, ordered, price_X, left + freed[enough - 1] - price_X[x])


class MagnitudeColumns(ColumnMasks):
    """The columns with the largest values and outgoing weights live, the same share of each field;
    one that is gone stays gone."""

    def update(self, gradient: MaskGradient, target_ratio: float, weights: Tensors) -> None:
        """Update the masks as `ColumnMasks.update` does, by the size of the values and of
        `weights`; `gradient` is not read."""
        self.steps += 1
        if self._of_each_field(target_ratio) * self._fields < int(self.alive_X.sum()):
            size_X = self.group.magnitudes(weights) * self._tables.column_norms()
            self.alive_X = self._largest(size_X.masked_fill(~self.alive_X, -1.0), target_ratio)
