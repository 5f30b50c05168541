"""All masks that are learned in one pruning: those of the network's units, and those of the tables'
columns.

In: gradients in the masks, weights, and the shares allowed. Out: the units and columns that live. A
`MaskKind` names one way to choose them; each policy has one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from niwaki.pruning.auxiliary import AuxiliaryConfig, AuxiliaryMasks
from niwaki.pruning.columns import ColumnMasks, MagnitudeColumns, Tables
from niwaki.pruning.unit_masks import MagnitudeMasks, UnitMasks
from niwaki.pruning.units import Cost, Group, MaskGradient, Tensors, UnitGroup


class MaskKind(NamedTuple):
    """One way to choose the units and columns that live."""

    name: str
    """Name in a snapshot."""
    units: Callable[[Sequence[Group], Cost, AuxiliaryConfig], UnitMasks]
    columns: Callable[[UnitGroup, Tables, AuxiliaryConfig], ColumnMasks]


AUXILIARY = MaskKind("auxiliary", AuxiliaryMasks, ColumnMasks)
"""Importance for the loss, learned from the stream."""
MAGNITUDE = MaskKind(
    "magnitude", lambda groups, cost, _: MagnitudeMasks(groups, cost), MagnitudeColumns
)
"""Size of the weights, the same share in each layer."""


class MaskSet:
    """The masks of the units and, where the tables have a budget, too, of their columns. The
    columns are chosen first; the units share the multiply-adds that those leave."""

    def __init__(
        self,
        kind: MaskKind,
        groups: Sequence[Group],
        cost: Cost,
        config: AuxiliaryConfig,
        columns: UnitGroup | None,
        tables: Tables,
    ):
        """`columns`: the columns that may be pruned; None: all stay. All units live at first."""
        self.kind = kind
        self.units = kind.units(groups, cost, config)
        self.columns = kind.columns(columns, tables, config) if columns else None

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self.units.steps

    def masks(self) -> dict[str, torch.Tensor]:
        """By group, 0 or 1 as float32 (U,)."""
        columns = self.columns
        found = {columns.group.name: columns.alive_X.float()} if columns else {}
        return self.units.masks() | found

    def update(
        self,
        gradients: Mapping[str, MaskGradient],
        target_ratio: float,
        table_ratio: float,
        weights: Tensors,
    ) -> None:
        """Learn from the gradients in the masks; then let multiply-adds fall to `target_ratio` of
        the dense network's, and the bytes of the tables to `table_ratio` of all, both (0, 1]."""
        gradients = dict(gradients)
        if self.columns:
            gradient = gradients.pop(self.columns.group.name)
            self.columns.update(gradient, table_ratio, weights)
            self._fix(self.columns)
        self.units.update(gradients, target_ratio, weights)

    def kept(self) -> dict[str, torch.Tensor]:
        """By group, the sorted indices of the units and columns alive."""
        columns = self.columns
        found = {columns.group.name: columns.alive_X.nonzero().squeeze(1)} if columns else {}
        return self.units.kept() | found

    def state(self) -> dict[str, torch.Tensor]:
        """All tensors, for a snapshot."""
        return self.units.state() | (self.columns.state() if self.columns else {})

    def restore(self, tensors: Tensors, steps: int) -> None:
        """Continue where `state` was taken. Where no columns were masked then, they all live."""
        self.units.restore(tensors, steps)
        if self.columns and f"alive.{self.columns.group.name}" in tensors:
            self.columns.restore(tensors, steps)
            self._fix(self.columns)

    def _fix(self, columns: ColumnMasks) -> None:
        """Let the units reckon with the columns alive."""
        self.units.fixed = {columns.group.name: int(columns.alive_X.sum())}
