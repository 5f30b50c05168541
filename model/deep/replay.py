"""Earlier events from which a narrow network learns again.

In: each step's inputs of the network, as they were read before anything learned from them. Out:
further optimizer steps on events of the past. A narrow network learns more slowly than a wide one;
these steps, each of which costs as little as the network does, make good for that. Embeddings as
they are now have learned the labels of earlier events, and a network that read them would trust
them too much; so vectors are kept as they were read (the trap that arXiv:2609.34083 names). Tables
and the linear expert learn each event once.

Shapes: N events that are kept, B events of a step; F fields, D floats of a vector, M prepared
numerics, S slots; X inputs of an event (F * D + M + S).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.network import Network
from niwaki.model.deep.passes import Passes
from niwaki.model.features.outcomes import OutcomeArrays

_FIRST_EVENTS = 1_280
"""Fewer events than this are not learned from again: steps on the same few would only learn them
by heart."""
_LARGEST = 60_000.0
"""Inputs beyond this, which no float16 holds, are cut off."""


class Inputs(NamedTuple):
    """The inputs of a network for B events, and what became of these."""

    embedding_RD: np.ndarray
    embedded: Embedded
    numerics_BM: np.ndarray
    contributions_BS: np.ndarray
    logits_B: np.ndarray
    """float32, logits of the linear expert, which the network corrects."""
    outcomes: OutcomeArrays


class Replay:
    """The last N events, and the steps on some of them."""

    def __init__(self, network: Network, events: int, steps: int, seed: int):
        """`events`: N, >= 1. `steps`: further steps for each one on new events, >= 0; without any,
        nothing is kept. `seed`: of the choice of events."""
        shape = network.shape
        self._fields_dim = shape.fields, shape.embedding_dim
        entries = shape.fields * shape.embedding_dim
        self._vectors = slice(entries)
        self._numerics = slice(entries, entries + shape.numerics)
        self._slots = slice(self._numerics.stop, self._numerics.stop + shape.slots)
        self._size = events
        self._steps = steps
        self._seed = seed
        self.clear()

    def clear(self) -> None:
        """Forget all events."""
        self._kept: _Kept | None = None
        self._events = 0
        """Events that are kept, at most N."""
        self._place = 0
        """Place of the next event."""

    def add(self, inputs: Inputs) -> None:
        """Keep B events, at most N, in the place of the oldest ones."""
        events = len(inputs.logits_B)
        if not self._steps or events > self._size:
            return
        x_BX = torch.empty(events, self._slots.stop)
        inputs.embedded.write_vectors(inputs.embedding_RD, x_BX.numpy())
        x_BX[:, self._numerics] = torch.from_numpy(inputs.numerics_BM)
        x_BX[:, self._slots] = torch.from_numpy(inputs.contributions_BS)
        new = _Kept(
            x_BX.clamp_(-_LARGEST, _LARGEST),
            torch.from_numpy(np.stack([inputs.logits_B, *inputs.outcomes], 1)),
        )
        kept = self._kept = self._kept or self._empty()
        first = 0
        for span in _around(self._place, events, self._size):
            last = first + span.stop - span.start
            for to_N, from_B in zip(kept, new, strict=True):
                to_N[span] = from_B[first:last]
            first = last
        self._place = (self._place + events) % self._size
        self._events = min(self._events + events, self._size)

    def learn(self, branch: Branch, events: Sequence[int], rate: float, learned: int) -> float:
        """Further steps of `branch`, each on events in a row that are kept; returns the
        multiply-adds of their forward passes. `events`: number of each micro-batch; the second one
        may be empty. `rate`: learning rate. `learned`: events learned so far, by which the steps
        are chosen."""
        if self._events < max(sum(events), min(_FIRST_EVENTS, self._size)):
            return 0.0
        for step in range(self._steps):
            random = np.random.default_rng((self._seed, learned, step))
            start = int(random.integers(self._events))
            for passes, count in zip(branch.passes_by_micro_batch, events, strict=True):
                if count:
                    self._find_gradients(passes, start, count)
                start = (start + count) % self._events
            branch.step(rate, events)
        return float(self._steps * sum(events) * branch.multiply_adds)

    def state(self) -> dict[str, torch.Tensor]:
        """All events that are kept, for a snapshot."""
        kept = self._kept or self._empty(0)
        tensors = {name: kept_N[: self._events].clone() for name, kept_N in kept._asdict().items()}
        return tensors | {"place": torch.tensor([self._place])}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `state` was taken; without tensors, with no events."""
        self.clear()
        if not tensors or not len(tensors["inputs"]):
            return
        self._kept = self._empty()
        self._events, self._place = len(tensors["inputs"]), int(tensors["place"])
        for name, kept_N in self._kept._asdict().items():
            kept_N[: self._events] = tensors[name]

    def _empty(self, events: int | None = None) -> "_Kept":
        size = self._size if events is None else events
        inputs_NX = torch.empty(size, self._slots.stop, dtype=torch.float16)
        return _Kept(inputs_NX, torch.empty(size, 4))

    def _find_gradients(self, passes: Passes, start: int, events: int) -> None:
        """Let `passes` write the gradients of a network for kept events, from `start` on."""
        assert self._kept is not None
        spans = _around(start, events, self._events)
        x_BX, outcomes_B4 = (
            torch.cat([kept_N[span].float() for span in spans]) for kept_N in self._kept
        )
        fields, dim = self._fields_dim
        table_RD = x_BX[:, self._vectors].contiguous().view(events * fields, dim).numpy()
        embedded = Embedded(np.arange(events * fields).reshape(events, fields))
        inputs = table_RD, embedded, x_BX[:, self._numerics], x_BX[:, self._slots]
        correction_B = passes.forward(*inputs).numpy()
        linear_B, *arrays = np.ascontiguousarray(outcomes_B4.numpy().T)
        logits_B, errors_B = np.empty((2, events), np.float32)
        outcomes = OutcomeArrays(*arrays)
        kernels.corrected_loss(linear_B[:, None], correction_B, *outcomes, logits_B, errors_B)
        passes.backward(torch.from_numpy(errors_B))


class _Kept(NamedTuple):
    """A ring of N events."""

    inputs: torch.Tensor
    """(N, X) float16: vectors of fields, prepared numerics, contributions of slots."""
    outcomes: torch.Tensor
    """(N, 4) float32: logit of the linear expert, label, weight, offset."""


def _around(start: int, events: int, size: int) -> list[slice]:
    """Places of `events` events in a ring of `size`, from `start` on."""
    rest = start + events - size
    return [slice(start, start + events)] if rest <= 0 else [slice(start, size), slice(0, rest)]
