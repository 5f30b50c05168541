"""A network that learns: parameters, gradients, and the state of Adam.

The dense, the sparse and the reference branch of a learner are each a `Branch`, at their own
widths. In: gradients, which the passes leave behind, and indices of surviving units. Out: new
parameters, and narrowed or widened branches. A branch never decides which units survive.

Parameters, gradients and moments each lie in one flat buffer, so that an optimizer step is one pass
over memory.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.deep.network import Network
from niwaki.model.deep.passes import Passes
from niwaki.pruning.compaction import Kept, compact, expand
from niwaki.pruning.units import MaskGradient

_ALIGNED_FLOATS = 16
"""Each parameter begins at a multiple of a cache line."""


class BranchTensors(NamedTuple):
    """The learned tensors of a branch, each by the name of its parameter."""

    weights: Mapping[str, torch.Tensor]
    first_moments: Mapping[str, torch.Tensor]
    second_moments: Mapping[str, torch.Tensor]


_PREFIXES = ("weight", "first", "second")
"""Names of the three kinds of `BranchTensors` in a snapshot."""


class Branch:
    """One network with its parameters and its optimizer, Adam (Kingma & Ba, arXiv:1412.6980)."""

    def __init__(self, network: Network, parameters: Mapping[str, torch.Tensor]):
        """Copy `parameters`; all moments are zero."""
        self.network = network
        self.steps = 0.0
        """Optimizer steps taken."""
        self.multiply_adds = network.cost.total({})
        """Multiply-adds of one event's forward pass."""
        self._weights = _FlatTensors(network.shapes)
        self._first_moments = _FlatTensors(network.shapes)
        self._second_moments = _FlatTensors(network.shapes)
        self._gradients = _FlatTensors(network.shapes), _FlatTensors(network.shapes)
        self.parameters = self._weights.views
        self.gradients = self._gradients[0].views
        """Gradients that the passes of the first micro-batch write."""
        self.passes_by_micro_batch = tuple(
            Passes(network, self.parameters, gradients.views) for gradients in self._gradients
        )
        """The passes of two micro-batches, which may run at the same time."""
        self.passes = self.passes_by_micro_batch[0]
        self._weights.copy_from(parameters)

    def step(self, rate: float, events: Sequence[int]) -> None:
        """One optimizer step on the gradient of the mean loss. `events`: of each micro-batch, whose
        gradients are sums; the second micro-batch may be empty. `rate`: learning rate, >= 0."""
        self.steps += 1
        second = self._gradients[1].buffer_X
        kernels.adam(
            self._weights.buffer_X,
            self._gradients[0].buffer_X,
            second if events[1] else second[:0],
            self._first_moments.buffer_X,
            self._second_moments.buffer_X,
            1 / sum(events),
            rate,
            self.steps,
        )

    def has_finite_gradients(self, events: Sequence[int]) -> bool:
        """True where the gradients of a step, and the squares that Adam adds up, are finite.
        `events`: see `step`."""
        buffers = [
            part.buffer_X for part, count in zip(self._gradients, events, strict=True) if count
        ]
        return all(bool(np.isfinite(np.dot(buffer_X, buffer_X))) for buffer_X in buffers)

    def mask_gradients(self, events: Sequence[int]) -> dict[str, MaskGradient]:
        """Gradients in the masks after the backward passes of a step, by group, averaged over both
        micro-batches. `events`: of each micro-batch; the first has at least one."""
        parts = [
            (count / sum(events), passes.mask_gradients())
            for count, passes in zip(events, self.passes_by_micro_batch, strict=True)
            if count
        ]
        return {
            name: MaskGradient(
                _sum(share * gradients[name].mean_U for share, gradients in parts),
                _sum(share * gradients[name].square_U for share, gradients in parts),
            )
            for name in parts[0][1]
        }

    def tensors(self) -> BranchTensors:
        """Views of everything that the branch has learned."""
        return BranchTensors(
            self._weights.views, self._first_moments.views, self._second_moments.views
        )

    @classmethod
    def resumed(cls, network: Network, tensors: BranchTensors, steps: float) -> "Branch":
        """A branch that goes on from copies of `tensors` after `steps` optimizer steps."""
        branch = cls(network, tensors.weights)
        branch._first_moments.copy_from(tensors.first_moments)
        branch._second_moments.copy_from(tensors.second_moments)
        branch.steps = steps
        return branch

    def copy(self) -> "Branch":
        """A branch that learns on from here independently."""
        return self.resumed(self.network, self.tensors(), self.steps)

    def silence(self) -> None:
        """Set the weights of the output to zero, with their moments: the network contributes
        nothing until it has learned again."""
        for part in self.tensors():
            for name in self.network.output_names:
                part[name].zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all tensors, for a snapshot."""
        return {
            f"{prefix}.{name}": tensor.clone()
            for prefix, tensors in zip(_PREFIXES, self.tensors(), strict=True)
            for name, tensor in tensors.items()
        }

    @classmethod
    def restored(
        cls, network: Network, state: Mapping[str, torch.Tensor], steps: float
    ) -> "Branch":
        """The branch whose `state` a snapshot holds."""
        tensors = BranchTensors(
            *({name: state[f"{prefix}.{name}"] for name in network.shapes} for prefix in _PREFIXES)
        )
        return cls.resumed(network, tensors, steps)

    def narrowed(self, kept: Kept) -> "Branch":
        """A branch of the units `kept` alone, with their weights and moments."""
        units = self.network.units
        tensors = BranchTensors(*(compact(part, units, kept) for part in self.tensors()))
        return self.resumed(self.network.cut_to(kept), tensors, self.steps)

    def widened(
        self, network: Network, kept: Kept, regrown: Mapping[str, torch.Tensor]
    ) -> "Branch":
        """A branch of the wider `network`, in which this branch is the units `kept`. The other
        units begin with the weights in `regrown` and with moments of zero."""
        zeros = {name: torch.zeros_like(tensor) for name, tensor in regrown.items()}
        dormant = BranchTensors(regrown, zeros, zeros)
        tensors = BranchTensors(
            *(
                expand(part, others, network.units, kept)
                for part, others in zip(self.tensors(), dormant, strict=True)
            )
        )
        return self.resumed(network, tensors, self.steps)


class _FlatTensors:
    """Tensors in one buffer of zeros: the buffer, and a view of each tensor by name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        sizes = {
            name: -(-math.prod(shape) // _ALIGNED_FLOATS) * _ALIGNED_FLOATS
            for name, shape in shapes.items()
        }
        buffer = torch.zeros(sum(sizes.values()))
        self.buffer_X: np.ndarray = buffer.numpy()
        self.views: dict[str, torch.Tensor] = {}
        start = 0
        for name, shape in shapes.items():
            self.views[name] = buffer[start : start + math.prod(shape)].view(shape)
            start += sizes[name]

    def copy_from(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite all tensors."""
        for name, view in self.views.items():
            view.copy_(tensors[name])


def _sum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return sum(tensors, start=torch.zeros(()))
