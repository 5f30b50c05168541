"""What a step computes before anything is changed: both passes of the experts, over two halves of
the events.

In: the experts as they are, and a batch. Out: what each expert says of each event, and all
gradients. Halves read what they share and write each its own, so two threads may work on them at
the same time: to the bit, that makes no difference. A small batch is not split: everything twice
would take longer than two threads save. It starts no thread itself: whoever owns a second one hands
over a `ParallelCall`.

Shapes: as in `model.linear.slots`; V vectors of D floats.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.passes import Masks
from niwaki.model.experts import Assembled
from niwaki.model.features.encoder import Features
from niwaki.model.features.numerics import Scale
from niwaki.model.linear.slots import Slots

WHOLE_EVENTS = 128
"""A batch of no more is not split: its first half is all of it."""

ParallelCall = Callable[[Callable[[], Any], Callable[[], Any]], object]
"""Calls both of two functions, perhaps at the same time, and returns when both are done."""


def run_in_turn(first: Callable[[], Any], second: Callable[[], Any]) -> None:
    """A `ParallelCall` on one thread."""
    first()
    second()


class MicroBatches:
    """A batch on its way through the experts."""

    def __init__(self, features: Features, labels_B: np.ndarray, slots: Slots, scales: int):
        """`scales`: time scales of the linear expert."""
        self.features, self.labels_B, self._slots = features, labels_B, slots
        self.arrays = [tensor.numpy() for tensor in features[:3]]
        """Rows of fields, rows of pairs, and numerics."""
        numerics, events = features.numerics_BN.shape[1], len(labels_B)
        self.found = Assembled.empty(events, numerics, len(slots), scales)
        first = events if events <= WHOLE_EVENTS else events // 2
        self._slices = slice(0, first), slice(first, events)
        self.events = first, events - first
        """Of each half."""
        self._losses: list[list[float]] = [[], []]
        self._gradients_BVD: list[torch.Tensor | None] = [None, None]

    def run(
        self,
        half: int,
        *,
        evidence_R2K: torch.Tensor,
        prior_SK: torch.Tensor,
        scale: Scale,
        table_RD: np.ndarray,
        branches: Mapping[Branch, Masks | None],
        lead: Branch,
        onlooker: Branch | None,
        lap: Callable[[str], object],
    ) -> None:
        """Half 0 or 1. `branches`: all that learn, with their masks. `onlooker`: the one whose
        gradients in the vectors do not count."""
        part = self._slices[half]
        found, labels_B = self.found.part(part), self.labels_B[part]
        read, experts_BE = [array[part] for array in self.arrays], found.experts_BE
        arrays = [tensor.numpy() for tensor in (*scale, evidence_R2K, prior_SK)]
        found.fill(self._slots, *read, tuple(arrays[:2]), *arrays[2:])
        lap("learn_linear")
        logits_B, errors_B = np.empty((2, len(labels_B)), np.float32)
        losses = self._losses[half]
        if not branches:
            errors_B[:], experts_BE[:, -1] = 0, experts_BE[:, 0]
            losses.append(
                kernels.corrected_loss(experts_BE, errors_B, labels_B, logits_B, errors_B)
            )
            return
        numerics_BM, said_BS = torch.from_numpy(found.scores_BM), torch.from_numpy(found.said_BS)
        for branch, masks in branches.items():
            passes = branch.passes_by_micro_batch[half]
            correction_B = passes.forward(table_RD, read[0], numerics_BM, said_BS, masks).numpy()
            losses.append(
                kernels.corrected_loss(experts_BE, correction_B, labels_B, logits_B, errors_B)
            )
            if branch is lead:
                experts_BE[:, -1] = logits_B
            gradient_BVD, before_BVD = (
                passes.backward(torch.from_numpy(errors_B)),
                self._gradients_BVD[half],
            )
            if branch is not onlooker:
                self._gradients_BVD[half] = (
                    gradient_BVD if before_BVD is None else before_BVD.add_(gradient_BVD)
                )
        lap("learn_network")

    @property
    def losses(self) -> np.ndarray:
        """Mean log loss of each branch, or of the linear expert where there is none."""
        return np.array([losses for losses in self._losses if losses]).sum(0) / sum(self.events)

    @property
    def gradients(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each half that has events, rows (B, F), and the gradient of the summed loss in the
        vectors of the interaction (B, V, D), those of the fields first."""
        rows_BF = self.arrays[0]
        parts = zip(self._slices, self._gradients_BVD, strict=True)
        return [
            (rows_BF[part], gradient.numpy()) for part, gradient in parts if gradient is not None
        ]
