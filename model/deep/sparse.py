"""Layers whose matrices have only some of their weights, as a pruning in blocks leaves them.

In and out as in `niwaki.model.deep.layers`, whose interface these layers implement; the places of
weights and the products with them are in `niwaki.model.deep.pattern`. Such layers are cut already:
they have no masks.

Shapes: B events, I inputs and O outputs of a matrix, N weights left in it, H units of a layer, U
units that a mask would govern, X some of the inputs.
"""

from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.deep.layers import EventColumns
from niwaki.model.deep.pattern import Pattern
from niwaki.model.jit import kernel
from niwaki.pruning.units import MaskGradient


class SparseLayer:
    """A `Layer` whose matrix has a pattern, forward only."""

    def __init__(self, pattern: Pattern, values_N: torch.Tensor, bias_O: torch.Tensor):
        """Reads both tensors at each call, and copies neither."""
        self.outputs = len(bias_O)
        self._pattern = pattern
        self._values_N: np.ndarray = values_N.numpy()
        self._bias_O: np.ndarray = bias_O.numpy()

    def read(self, x_BI: torch.Tensor) -> EventColumns:
        return EventColumns(x_BI.T.contiguous())

    def rectified(self, x: EventColumns, out: EventColumns | None) -> EventColumns:
        out = out or EventColumns.empty(self.outputs, x.columns_HB.shape[1])
        self._pattern.product(self._values_N, self._bias_O, x.array_HB, True, out.array_HB)
        return out

    def linear(self, x: EventColumns, out_BO: torch.Tensor | None) -> torch.Tensor:
        out = EventColumns.empty(self.outputs, x.columns_HB.shape[1])
        self._pattern.product(self._values_N, self._bias_O, x.array_HB, False, out.array_HB)
        return out.rows_BH if out_BO is None else out_BO.copy_(out.rows_BH)


class LearningSparseLayer(SparseLayer):
    """A `LearningLayer` whose matrix has a pattern."""

    def __init__(
        self,
        name: str,
        pattern: Pattern,
        parameters: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
    ):
        super().__init__(pattern, parameters[f"{name}.weight"], parameters[f"{name}.bias"])
        self.name = name
        self._value_gradient_N: np.ndarray = gradients[f"{name}.weight"].numpy()
        self._bias_gradient_O = gradients[f"{name}.bias"]
        self._x = EventColumns.empty(0, 0)
        self._input_errors = EventColumns.empty(0, 0)
        self._output_errors = EventColumns.empty(self.outputs, 0)

    def set_mask(self, mask_U: torch.Tensor | None) -> None:
        assert mask_U is None, f"{self.name} is cut: it has no masks"

    def mask_gradients(self) -> dict[str, MaskGradient]:
        return {}

    def read(self, x_BI: torch.Tensor) -> EventColumns:
        events, inputs = x_BI.shape
        if self._x.array_HB.shape != (inputs, events):
            self._x = EventColumns.empty(inputs, events)
            self._input_errors = EventColumns.empty(inputs, events)
        self._x.rows_BH.copy_(x_BI)
        return self._x

    def linear_backward(self, errors_BO: torch.Tensor) -> EventColumns:
        if self._output_errors.rows_BH.shape != errors_BO.shape:
            self._output_errors = EventColumns.empty(self.outputs, len(errors_BO))
        self._output_errors.rows_BH.copy_(errors_BO)
        torch.sum(self._output_errors.columns_HB, 1, out=self._bias_gradient_O)
        return self._output_errors

    def rectified_backward(self, errors: EventColumns, active: EventColumns) -> None:
        zero_inactive(errors.array_HB, active.array_HB)
        torch.sum(errors.columns_HB, 1, out=self._bias_gradient_O)

    def weight_backward(self, errors: EventColumns, x: EventColumns) -> None:
        self._pattern.gradient(errors.array_HB, x.array_HB, self._value_gradient_N)

    def input_backward(self, errors: EventColumns, out: EventColumns) -> None:
        every = slice(0, len(out.array_HB))
        self._pattern.product_back(self._values_N, errors.array_HB, every, out.array_HB)

    def input_gradient(
        self, errors: EventColumns, inputs: slice, out_BX: torch.Tensor
    ) -> torch.Tensor:
        out = self._input_errors
        self._pattern.product_back(self._values_N, errors.array_HB, inputs, out.array_HB)
        return out_BX.copy_(out.rows_BH[:, inputs])


@kernel("void(float32[:,::1], float32[:,::1])")
def zero_inactive(errors_HB: np.ndarray, active_HB: np.ndarray) -> None:
    """Turn the gradient behind a rectifier into that before it, in place. `active_HB`: outputs of
    the rectifier."""
    for h in range(len(errors_HB)):
        for b in range(errors_HB.shape[1]):
            errors_HB[h, b] = errors_HB[h, b] if active_HB[h, b] > 0 else np.float32(0)
