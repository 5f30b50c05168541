"""One network that learns: its parameters, and Adam's moments beside them.

The dense and the sparse branch of a learner are each one of these, at their own widths. Parameters,
gradients and moments each lie in one flat buffer, so that a step is one pass over them.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from niwaki.model.deep import layers
from niwaki.model.deep.network import Network
from niwaki.model.deep.passes import Passes
from niwaki.pruning.compaction import Kept, compact, expand
from niwaki.pruning.units import MaskGradient

_PARTS = ("weight", "first", "second")
_ALIGNED = 16
"""Each parameter begins at a multiple of so many floats: a cache line."""


class Branch:
    """One network with its parameters and Adam (Kingma & Ba, arXiv:1412.6980)."""

    def __init__(self, network: Network, parameters: Mapping[str, torch.Tensor]):
        """`parameters` are copied."""
        self.network, self.steps = network, 0.0
        """`steps`: optimizer steps taken."""
        self._flat, self.parameters = _flat(network.shapes)
        flat_gradients, (self.gradients, second_gradients) = zip(
            *(_flat(network.shapes) for _ in range(2)), strict=True
        )
        self._flat_first, self._first = _flat(network.shapes)
        self._flat_second, self._second = _flat(network.shapes)
        self.passes = Passes(network, self.parameters, self.gradients)
        self.halves = self.passes, Passes(network, self.parameters, second_gradients)
        """For the two halves of a batch, which may be passed through at the same time; their
        gradients are added in `step`. `passes` and `gradients` are those of the first."""
        for name, parameter in self.parameters.items():
            parameter.copy_(parameters[name])
        self._arrays = [
            b.numpy() for b in (self._flat, *flat_gradients, self._flat_first, self._flat_second)
        ]
        self.multiply_adds = network.cost.total({})
        """Of one forward pass of an event."""

    def step(self, rate: float, events: Sequence[int]) -> None:
        """One optimizer step on the gradient of the mean loss. `events`: of each half, over which
        `gradients` are summed; a second half may have none."""
        self.steps += 1
        parameters, first, second, *moments = self._arrays
        layers.adam(
            parameters,
            first,
            second if events[1] else second[:0],
            *moments,
            1 / sum(events),
            rate,
            self.steps,
        )

    def mask_gradients(self, events: Sequence[int]) -> dict[str, MaskGradient]:
        """By group: what the last backward passes of both halves say of its units. `events`: of
        each half."""
        said = [
            (n / sum(events), half.mask_gradients())
            for n, half in zip(events, self.halves, strict=True)
            if n
        ]
        return {
            name: MaskGradient(
                *(sum(share * of[name][part] for share, of in said) for part in range(2))
            )
            for name in said[0][1]
        }

    def parts(self) -> tuple[dict[str, torch.Tensor], ...]:
        """The parameters, and Adam's two moments, each by name; views."""
        return self.parameters, self._first, self._second

    def restore(
        self, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], steps: float
    ) -> "Branch":
        """Set Adam's moments and step count."""
        for moments, given in ((self._first, first), (self._second, second)):
            for name, moment in moments.items():
                moment.copy_(given[name])
        self.steps = steps
        return self

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of all parts, for a snapshot."""
        parts = zip(_PARTS, self.parts(), strict=True)
        return {
            f"{part}.{name}": tensor.clone()
            for part, tensors in parts
            for name, tensor in tensors.items()
        }

    @classmethod
    def restored(
        cls, network: Network, tensors: Mapping[str, torch.Tensor], steps: float
    ) -> "Branch":
        """Undo `state`."""
        weights, *moments = (
            {name: tensors[f"{part}.{name}"] for name in network.shapes} for part in _PARTS
        )
        return cls(network, weights).restore(*moments, steps)

    def narrowed(self, kept: Kept) -> "Branch":
        """Only the units in `kept`, cut out: what Adam knows of them comes along exactly."""
        weights, first, second = (compact(part, self.network.units, kept) for part in self.parts())
        return Branch(self.network.cut_to(kept), weights).restore(first, second, self.steps)

    def widened(
        self, network: Network, kept: Kept, regrown: Mapping[str, torch.Tensor]
    ) -> "Branch":
        """This branch as the units `kept` of `network`; the others begin as in `regrown`, and Adam
        knows nothing of them."""
        nothing = {name: torch.zeros_like(tensor) for name, tensor in regrown.items()}
        weights, first, second = (
            expand(part, store, network.units, kept)
            for part, store in zip(self.parts(), (regrown, nothing, nothing), strict=True)
        )
        return Branch(network, weights).restore(first, second, self.steps)


def _flat(shapes: Mapping[str, tuple[int, ...]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A buffer of zeros, and a view of each shape into it, by name."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    buffer = torch.zeros(sum(-(-size // _ALIGNED) * _ALIGNED for size in sizes.values()))
    views, at = {}, 0
    for name, shape in shapes.items():
        views[name] = buffer[at : at + sizes[name]].view(shape)
        at += -(-sizes[name] // _ALIGNED) * _ALIGNED
    return buffer, views
