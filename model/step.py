"""The computing half of a learning step: forward and backward passes of all experts, before
anything is changed.

In: the model as it is, and a batch. Out: the logits of each expert, and all gradients. A batch is
split into two micro-batches, which read the same model and write each their own arrays, so two
threads may compute them at the same time: it makes no difference to any bit. A small batch is not
split, since two of everything would cost more than a second thread saves. This module starts no
thread: whoever owns one passes a `ParallelCall`.

Shapes: as in `model.experts`; F fields, R rows, V vectors of D floats.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.mlp import Masks
from niwaki.model.deep.replay import Inputs as Replayed
from niwaki.model.experts import Assembled
from niwaki.model.features.encoder import Features
from niwaki.model.features.lists import ListSlots
from niwaki.model.features.outcomes import OutcomeArrays, Outcomes
from niwaki.model.linear.slots import Slots

WHOLE_EVENTS = 128
"""A batch of no more events is one micro-batch; the second one is empty then."""
PARALLEL_EVENTS = 32
"""A step of fewer events takes less time than handing a part of it to another thread."""

_STEP_EVENTS = 256
_FIRST_STEP_EVENTS = 16
"""The first step is no longer than this, nor is any one longer than all events before it: what the
first ones say of the click rate is worth most to those that come next."""

ParallelCall = Callable[[Callable[[], Any], Callable[[], Any]], object]
"""Calls two functions, perhaps at the same time, and returns when both have returned."""
Lap = Callable[[str], object]
"""Called with a stage's name when that stage ends; may be called from a second thread."""


def no_lap(stage: str) -> None:
    """The `Lap` of a learner whose time is not measured."""


def run_in_turn(first: Callable[[], Any], second: Callable[[], Any]) -> None:
    """The `ParallelCall` of a single thread."""
    first()
    second()


def bounds_of_steps(before: int, events: int) -> list[int]:
    """Where the steps of a batch of B events begin and end. `before`: events learned before. A
    long batch takes several steps, since the average over more events carries less information."""
    bounds = [0]
    while before + bounds[-1] < _STEP_EVENTS and bounds[-1] < events:
        step = max(_FIRST_STEP_EVENTS, before + bounds[-1])
        bounds.append(min(bounds[-1] + step, events))
    first, steps = bounds[-1], -(-(events - bounds[-1]) // _STEP_EVENTS)
    return bounds + [first + (events - first) * i // steps for i in range(1, steps + 1)]


class Learned(NamedTuple):
    """The predictions for B events before they were learned."""

    logits_B: np.ndarray
    """float32, of the served mixture."""
    experts_BE: np.ndarray
    """float32, of the experts, of which `logits_B` are mixed."""
    loss: float
    """Mean log loss, nats, of the served deep expert; without a network, of the linear one."""

    @classmethod
    def joined(cls, parts: list["Learned"], experts: int) -> "Learned":
        """The predictions of several steps, perhaps of none. `experts`: columns E."""
        counts = [len(part.logits_B) for part in parts]
        losses = [part.loss * count for part, count in zip(parts, counts, strict=True)]
        return cls(
            np.concatenate([np.empty(0, np.float32), *(part.logits_B for part in parts)]),
            np.concatenate([np.empty((0, experts), np.float32), *(p.experts_BE for p in parts)]),
            sum(losses) / max(sum(counts), 1),
        )


class Refused(NamedTuple):
    """Events of a batch that were not learned, since something of their step was not finite."""

    start: int
    stop: int
    """The first event after them."""
    reason: str


class ModelView(NamedTuple):
    """The parts of the model that both micro-batches read."""

    evidence_R2K: np.ndarray
    prior_SK: np.ndarray
    scale: tuple[np.ndarray, np.ndarray]
    """See `model.features.numerics.Scale`."""
    embedding_RD: np.ndarray
    masks_by_branch: Mapping[Branch, Masks | None]
    """Every branch that learns, with its masks."""
    served_branch: Branch
    reference: Branch | None
    """The branch whose gradients in the embeddings do not count."""


class _Part(NamedTuple):
    """A micro-batch: its inputs, and its share of the buffers."""

    rows_BF: np.ndarray
    hashes_BF: np.ndarray
    numerics_BN: np.ndarray
    embedded: Embedded
    lists: ListSlots
    outcomes: OutcomeArrays
    found: Assembled

    def part(self, start: int, stop: int) -> "_Part":
        """Events `start` to `stop` (exclusive), as views."""
        span = slice(start, stop)
        return _Part(
            self.rows_BF[span],
            self.hashes_BF[span],
            self.numerics_BN[span],
            self.embedded.part(start, stop),
            self.lists.part(start, stop),
            OutcomeArrays(*(array[span] for array in self.outcomes)),
            self.found.part(span),
        )


class MicroBatches:
    """A batch on its way through the experts."""

    def __init__(self, features: Features, outcomes: Outcomes, slots: Slots, experts: int):
        """`experts`: columns E of the experts."""
        events, numerics = features.numerics_BN.shape
        self.features = features
        self.outcomes = outcomes
        self.lists = slots.of_lists(features.lists, features.hashes_BF.numpy())
        """The values of all lists."""
        self.found = Assembled.empty(events, numerics, slots, experts)
        """The inputs and logits of all events; the columns of further experts are the caller's to
        fill."""
        first = events if events <= WHOLE_EVENTS else events // 2
        self.events = first, events - first
        """Events of each micro-batch."""
        self._slots = slots
        whole = _Part(
            features.rows_BF.numpy(),
            features.hashes_BF.numpy(),
            features.numerics_BN.numpy(),
            Embedded.of(features),
            self.lists,
            outcomes.arrays,
            self.found,
        )
        spans = ((0, first), (first, events)) if first < events else ()
        self._parts = [whole.part(*span) for span in spans] or [whole]
        self._losses: tuple[list[float], list[float]] = ([], [])
        self._gradients_BVD: list[torch.Tensor | None] = [None, None]

    def compute(self, place: int, view: ModelView, lap: Lap) -> None:
        """Forward and backward passes of micro-batch 0 or 1."""
        part = self._parts[place]
        found, outcomes = part.found, part.outcomes
        losses = self._losses[place]
        experts_BE = found.experts_BE
        found.fill(
            self._slots,
            part.rows_BF,
            part.hashes_BF,
            part.numerics_BN,
            part.lists,
            view.scale,
            view.evidence_R2K,
            view.prior_SK,
        )
        lap("learn_linear")
        logits_B, errors_B = np.empty((2, len(outcomes.labels_B)), np.float32)
        if not view.masks_by_branch:
            errors_B[:] = 0
            experts_BE[:, -1] = experts_BE[:, 0]
            loss = kernels.corrected_loss(experts_BE, errors_B, *outcomes, logits_B, errors_B)
            losses.append(loss)
            return
        numerics_BM = torch.from_numpy(found.scores_BM)
        contributions_BS = torch.from_numpy(found.contributions_BS)
        for branch, masks in view.masks_by_branch.items():
            passes = branch.passes_by_micro_batch[place]
            inputs = view.embedding_RD, part.embedded, numerics_BM, contributions_BS
            correction_B = passes.forward(*inputs, masks).numpy()
            loss = kernels.corrected_loss(experts_BE, correction_B, *outcomes, logits_B, errors_B)
            losses.append(loss)
            if branch is view.served_branch:
                experts_BE[:, -1] = logits_B
            gradient_BVD = passes.backward(torch.from_numpy(errors_B))
            if branch is not view.reference:
                before_BVD = self._gradients_BVD[place]
                self._gradients_BVD[place] = (
                    gradient_BVD if before_BVD is None else before_BVD.add_(gradient_BVD)
                )
        lap("learn_network")

    def replayed(self, embedding_RD: np.ndarray) -> Replayed:
        """The inputs of the network, as they were computed; `embedding_RD` must not have learned
        from them."""
        found = self.found
        return Replayed(
            embedding_RD,
            Embedded.of(self.features),
            found.scores_BM,
            found.contributions_BS,
            found.experts_BE[:, 0],
            self.outcomes.arrays,
        )

    def not_finite(self, view: ModelView) -> str:
        """The part of the step that is not finite, or whose square is not, after both micro-batches
        were computed: "loss" or "gradient"; empty where all is finite."""
        if not np.isfinite(self.losses).all() or not np.isfinite(self.found.experts_BE).all():
            return "loss"
        weights_B = self.outcomes.arrays.weights_B
        arrays = [weights_B, *(gradient.ravel() for _, gradient in self.gradients)]
        with np.errstate(over="ignore"):
            finite = all(np.isfinite(np.dot(array, array)) for array in arrays)
            finite &= all(one.has_finite_gradients(self.events) for one in view.masks_by_branch)
        return "" if finite else "gradient"

    @property
    def losses(self) -> np.ndarray:
        """float64, the mean log loss of each branch, in their order; of the linear expert where
        there is none."""
        sums = np.array([losses for losses in self._losses if losses]).sum(0)
        mean: np.ndarray = sums / sum(self.events)
        return mean

    @property
    def gradients(self) -> list[tuple[Embedded, np.ndarray]]:
        """For each micro-batch that has events, rows of embeddings, and the gradient of the summed
        loss in the vectors of the interaction (B, V, D), those of the fields first."""
        return [
            (part.embedded, gradient_BVD.numpy())
            for part, gradient_BVD in zip(self._parts, self._gradients_BVD, strict=False)
            if gradient_BVD is not None
        ]
