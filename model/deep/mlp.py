"""Stacks of layers: at least one that is rectified, and a linear one at the end.

In: the inputs of some events as rows, then the gradient in the outputs. Out: outputs as rows, then
all gradients. Dense, masked and sparse layers have one interface, so this is the only place where
stacks are run: `predict` keeps nothing between two calls, and an `Mlp` keeps what its backward pass
needs.

Shapes: B events, I inputs, O outputs of a stack, X some of the inputs.
"""

from collections.abc import Mapping, Sequence

import torch

from niwaki.model.deep.layers import (
    BlockMaskedLayer,
    DenseLayer,
    EventColumns,
    Layer,
    LearningDenseLayer,
    LearningLayer,
)
from niwaki.model.deep.network import Network, Parameters, Stack
from niwaki.model.deep.sparse import LearningSparseLayer, SparseLayer
from niwaki.pruning.units import MaskGradient

Masks = Mapping[str, torch.Tensor]
"""By group: float32 (units,), 0 or 1."""


def predict(layers: Sequence[Layer], x_BI: torch.Tensor) -> torch.Tensor:
    """(B, O): the outputs of a stack. Calls may run at the same time."""
    x = layers[0].read(x_BI)
    for layer in layers[:-1]:
        x = layer.rectified(x, None)
    return layers[-1].linear(x, None)


class Mlp:
    """A stack that learns: both passes, with their buffers."""

    def __init__(self, layers: Sequence[LearningLayer]):
        self._layers = layers
        self._events = -1
        self._active: list[EventColumns] = []
        """Outputs of the hidden layers, before masks."""
        self._errors: list[EventColumns] = []
        """Gradients in them."""
        self._inputs: list[EventColumns] = []
        """Inputs of all layers."""
        self._masked = False

    def forward(self, x_BI: torch.Tensor, out_BO: torch.Tensor, masks: Masks | None) -> None:
        """Write the outputs to `out_BO`. `masks`: of some groups; None: nothing is masked."""
        if len(x_BI) != self._events:
            self._events = len(x_BI)
            widths = [layer.outputs for layer in self._layers[:-1]]
            self._active = [EventColumns.empty(width, self._events) for width in widths]
            self._errors = [EventColumns.empty(width, self._events) for width in widths]
        if masks or self._masked:
            for layer in self._layers:
                layer.set_mask(masks.get(layer.name) if masks else None)
            self._masked = bool(masks)
        self._inputs = [self._layers[0].read(x_BI)]
        for layer, active in zip(self._layers, self._active, strict=False):  # all but the last
            self._inputs.append(layer.rectified(self._inputs[-1], active))
        self._layers[-1].linear(self._inputs[-1], out_BO)

    def backward(self, errors_BO: torch.Tensor) -> None:
        """Write all gradients but those in the inputs, after a forward pass. `errors_BO`: gradient
        in the outputs."""
        errors = self._layers[-1].linear_backward(errors_BO)
        for i in reversed(range(len(self._active))):
            above = self._layers[i + 1]
            above.weight_backward(errors, self._inputs[i + 1])
            above.input_backward(errors, self._errors[i])
            errors = self._errors[i]
            self._layers[i].rectified_backward(errors, self._active[i])
        self._layers[0].weight_backward(errors, self._inputs[0])

    def input_gradient(self, inputs: slice, out_BX: torch.Tensor) -> torch.Tensor:
        """Write the gradient in some of the inputs, after a backward pass; returns `out_BX`."""
        return self._layers[0].input_gradient(self._errors[0], inputs, out_BX)

    def mask_gradients(self) -> dict[str, MaskGradient]:
        """Gradients in the masks of the last passes, by group."""
        return {
            name: gradient
            for layer in self._layers
            for name, gradient in layer.mask_gradients().items()
        }


def layers_of(network: Network, stack: Stack, parameters: Parameters) -> list[Layer]:
    """The layers of one stack of a network, to predict with. `stack`: bottom or top."""
    layers: list[Layer] = []
    for name in network.layer_names(stack):
        values, bias_O = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        pattern = network.patterns.get(f"{name}.weight")
        layers.append(
            DenseLayer(values, bias_O) if pattern is None else SparseLayer(pattern, values, bias_O)
        )
    return layers


def mlp_of(network: Network, stack: Stack, parameters: Parameters, gradients: Parameters) -> Mlp:
    """One stack of a network that learns, over parameters and gradients of the caller. `stack`:
    bottom or top."""
    blocks = {group.name: group for group in network.block_groups}
    layers: list[LearningLayer] = []
    for name in network.layer_names(stack):
        pattern = network.patterns.get(f"{name}.weight")
        if pattern is not None:
            layers.append(LearningSparseLayer(name, pattern, parameters, gradients))
        elif name in blocks:
            layers.append(BlockMaskedLayer(blocks[name], parameters, gradients))
        else:
            layers.append(LearningDenseLayer(name, parameters, gradients))
    return Mlp(layers)
