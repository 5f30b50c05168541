"""Layers of an MLP, each one matrix and its biases: the interface, and the dense kinds.

In: a micro-batch of inputs, or the gradient in a layer's outputs. Out: outputs, or the gradients in
inputs, weights, biases and masks. Hidden layers hold events as columns: products, above all those
of narrow layers, are up to a third faster than with events as rows. The sparse kind is in
`niwaki.model.deep.sparse`, and `niwaki.model.deep.mlp` runs stacks of layers of any kind.

Shapes: B events, I inputs, O outputs of a layer, H units of any layer, U units that a mask governs.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.pruning.blocks import BlockGroup
from niwaki.pruning.units import MaskGradient


class EventColumns:
    """A number for each of H units and B events: as columns, as rows, and as an array for kernels.
    Views are made when they are first read, and kept: the pass of a small network takes hardly
    longer than making them."""

    __slots__ = ("columns_HB", "_rows_BH", "_array_HB")

    def __init__(self, columns_HB: torch.Tensor):
        self.columns_HB = columns_HB
        self._rows_BH: torch.Tensor | None = None
        self._array_HB: np.ndarray | None = None

    @classmethod
    def empty(cls, units: int, events: int) -> "EventColumns":
        """A buffer whose contents are undefined."""
        return cls(torch.empty(units, events))

    @property
    def rows_BH(self) -> torch.Tensor:
        if self._rows_BH is None:
            self._rows_BH = self.columns_HB.T
        return self._rows_BH

    @property
    def array_HB(self) -> np.ndarray:
        if self._array_HB is None:
            self._array_HB = self.columns_HB.numpy()
        return self._array_HB


class Layer(Protocol):
    """One matrix and its biases, forward only. Calls may run at the same time."""

    outputs: int

    def read(self, x_BI: torch.Tensor) -> EventColumns:
        """The inputs of an MLP as its first layer takes them: views of `x_BI`, or a copy."""
        ...

    def rectified(self, x: EventColumns, out: EventColumns | None) -> EventColumns:
        """Compute max(0, W x + b) in `out`, or in a new buffer; returns the columns that the next
        layer reads."""
        ...

    def linear(self, x: EventColumns, out_BO: torch.Tensor | None) -> torch.Tensor:
        """(B, O): W x + b, in `out_BO` or in a new buffer."""
        ...


class LearningLayer(Layer, Protocol):
    """A layer whose gradients are computed, after each forward pass. Gradients are sums over the
    events, and overwrite those of the pass before."""

    name: str

    def set_mask(self, mask_U: torch.Tensor | None) -> None:
        """Mask the units of the layer, float32 0 or 1, from the next forward pass on. Masks are
        straight-through: a masked unit gets a gradient in its mask, and passes nothing on."""
        ...

    def mask_gradients(self) -> dict[str, MaskGradient]:
        """Gradient in the mask after a backward pass, by the layer's name; empty without a mask."""
        ...

    def linear_backward(self, errors_BO: torch.Tensor) -> EventColumns:
        """Gradient in linear outputs, as columns; writes the gradient in the biases."""
        ...

    def rectified_backward(self, errors: EventColumns, active: EventColumns) -> None:
        """Turn the gradient in what the next layer read into that before the rectifier, in place;
        writes the gradient in the biases. `active`: the `out` of `rectified`."""
        ...

    def weight_backward(self, errors: EventColumns, x: EventColumns) -> None:
        """Write the gradient in the weights, and in their masks."""
        ...

    def input_backward(self, errors: EventColumns, out: EventColumns) -> None:
        """Write the gradient in all inputs."""
        ...

    def input_gradient(
        self, errors: EventColumns, inputs: slice, out_BX: torch.Tensor
    ) -> torch.Tensor:
        """Write the gradient in some of the inputs, events as rows; returns `out_BX`."""
        ...


class DenseLayer:
    """A whole matrix, forward only."""

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor):
        """Reads both tensors at each call, and copies neither."""
        self.outputs = len(bias_O)
        self._weight_OI = weight_OI
        self._weight_IO = weight_OI.T
        self._bias_O = bias_O
        self._bias_array_O: np.ndarray = bias_O.numpy()

    def read(self, x_BI: torch.Tensor) -> EventColumns:
        return EventColumns(x_BI.T)

    def rectified(self, x: EventColumns, out: EventColumns | None) -> EventColumns:
        if out is None:
            out = EventColumns(torch.mm(self._weight_OI, x.columns_HB))
        else:
            torch.mm(self._weight_OI, x.columns_HB, out=out.columns_HB)
        kernels.rectify(out.array_HB, self._bias_array_O)
        return out

    def linear(self, x: EventColumns, out_BO: torch.Tensor | None) -> torch.Tensor:
        return torch.addmm(self._bias_O, x.rows_BH, self._weight_IO, out=out_BO)


class LearningDenseLayer(DenseLayer):
    """A whole matrix that learns. A mask governs the outputs of the layer."""

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
    ):
        """`name`: of the layer, and of the group of its outputs."""
        super().__init__(parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        self.name = name
        self._weight_gradient_OI = gradients[f"{name}.weight"]
        self._bias_gradient_O = gradients[f"{name}.bias"]
        self._bias_gradient_array_O: np.ndarray = self._bias_gradient_O.numpy()
        self._x_BI = self._errors_BO = torch.empty(0, 0)
        self._x = self._errors = EventColumns.empty(0, 0)
        """Views of the inputs and errors that came last."""
        self._mask: _OutputMask | None = None

    def read(self, x_BI: torch.Tensor) -> EventColumns:
        if x_BI is not self._x_BI:
            self._x_BI = x_BI
            self._x = super().read(x_BI)
        return self._x

    def set_mask(self, mask_U: torch.Tensor | None) -> None:
        if mask_U is None:
            self._mask = None
        else:
            self._mask = self._mask or _OutputMask(self.outputs)
            self._mask.mask_H = mask_U.numpy()

    def mask_gradients(self) -> dict[str, MaskGradient]:
        return {} if self._mask is None else {self.name: self._mask.gradient}

    def rectified(self, x: EventColumns, out: EventColumns | None) -> EventColumns:
        active = super().rectified(x, out)
        return active if self._mask is None else self._mask.forward(active)

    def linear_backward(self, errors_BO: torch.Tensor) -> EventColumns:
        torch.sum(errors_BO, 0, out=self._bias_gradient_O)
        if errors_BO is not self._errors_BO:
            self._errors_BO = errors_BO
            self._errors = EventColumns(errors_BO.T)
        return self._errors

    def rectified_backward(self, errors: EventColumns, active: EventColumns) -> None:
        if self._mask is not None:
            self._mask.backward(errors, active)
        kernels.rectify_backward(errors.array_HB, active.array_HB, self._bias_gradient_array_O)

    def weight_backward(self, errors: EventColumns, x: EventColumns) -> None:
        torch.mm(errors.columns_HB, x.rows_BH, out=self._weight_gradient_OI)

    def input_backward(self, errors: EventColumns, out: EventColumns) -> None:
        torch.mm(self._weight_IO, errors.columns_HB, out=out.columns_HB)

    def input_gradient(
        self, errors: EventColumns, inputs: slice, out_BX: torch.Tensor
    ) -> torch.Tensor:
        return torch.mm(errors.rows_BH, self._weight_OI[:, inputs], out=out_BX)


class BlockMaskedLayer(LearningDenseLayer):
    """A whole matrix that learns, and whose mask governs blocks of its weights."""

    def __init__(
        self,
        group: BlockGroup,
        parameters: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
    ):
        super().__init__(group.name, parameters, gradients)
        self._group = group
        self._every_OI = self._weight_OI
        """All weights; `_weight_OI` are those times the mask."""
        self._mask_OI: torch.Tensor | None = None
        """The mask of each weight."""
        self._gradients: dict[str, MaskGradient] = {}

    def set_mask(self, mask_U: torch.Tensor | None) -> None:
        self._mask_OI = None if mask_U is None else self._group.spread(mask_U)
        self._gradients = {}
        every_OI = self._every_OI
        self._weight_OI = every_OI if self._mask_OI is None else every_OI * self._mask_OI
        self._weight_IO = self._weight_OI.T

    def mask_gradients(self) -> dict[str, MaskGradient]:
        return self._gradients

    def weight_backward(self, errors: EventColumns, x: EventColumns) -> None:
        super().weight_backward(errors, x)
        if self._mask_OI is not None:
            gradient_OI, events = self._weight_gradient_OI, errors.columns_HB.shape[1]
            mean_U = self._group.sums(self._every_OI * gradient_OI) / events
            # The mean of squares, as if events were independent and the true mean zero: the
            # gradient of each single event would take another pass.
            self._gradients[self.name] = MaskGradient(mean_U, events * mean_U.square())
            gradient_OI *= self._mask_OI


class _OutputMask:
    """The mask of a layer's outputs, with its buffers."""

    def __init__(self, units: int):
        self.mask_H: np.ndarray = np.ones(units, np.float32)
        self.gradient = MaskGradient(torch.zeros(units), torch.zeros(units))
        self._passed = EventColumns.empty(units, 0)

    def forward(self, active: EventColumns) -> EventColumns:
        """The outputs that pass the mask."""
        if self._passed.array_HB.shape != active.array_HB.shape:
            self._passed = EventColumns.empty(*active.array_HB.shape)
        kernels.apply_mask(active.array_HB, self.mask_H, self._passed.array_HB)
        return self._passed

    def backward(self, errors: EventColumns, active: EventColumns) -> None:
        """Turn the gradient behind the mask into that before it, in place."""
        kernels.apply_mask_backward(
            errors.array_HB,
            active.array_HB,
            self.mask_H,
            self.gradient.mean_U.numpy(),
            self.gradient.square_U.numpy(),
        )
