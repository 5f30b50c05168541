"""Logits of a published model's experts, in fewer passes over memory than a learner needs.

In: features of some events, and a model's tables and weights. Out: the logits of all experts. The
linear expert locates, reads and sums its slots in one kernel, and writes their contributions to the
inputs of the deep expert. Some hundred events are computed at a time, so that buffers stay in the
cache. Nothing is kept between two calls, so threads may share an `Inference`.

Shapes: B events, R rows, S slots, K time scales, E = K + 1 experts, D embedding width.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.inference import DeepInference
from niwaki.model.deep.network import Network, Parameters
from niwaki.model.features.encoder import Features
from niwaki.model.features.lists import ListSlots
from niwaki.model.features.numerics import Scale, prepare
from niwaki.model.linear.kernels import add_lists, compiled_contributions
from niwaki.model.linear.slots import Slots

_PIECE_EVENTS = 512
"""Events that are computed at a time."""


class _Events(NamedTuple):
    """The features of B events, numerics prepared, in the order in which the kernel of the linear
    expert takes them."""

    rows_BF: np.ndarray
    hashes_BF: np.ndarray
    scores_BM: np.ndarray
    code_BN: np.ndarray
    above_BN: np.ndarray


class Inference:
    """The experts of one published model, without its tables."""

    def __init__(self, slots: Slots, network: Network, parameters: Parameters):
        self.network, self.parameters = network, parameters
        self._slots = slots
        self._deep = DeepInference(network, parameters, slots.shares)

    def experts(
        self,
        features: Features,
        scale: Scale,
        tables: Mapping[str, torch.Tensor],
        prior_SK: torch.Tensor,
        columns: int,
    ) -> np.ndarray:
        """(B, E) float32 logits of the experts; the columns of further experts are undefined.
        `prior_SK`: 1 / prior variance of each slot. `columns`: E."""
        prepared = prepare(features.numerics_BN, scale)
        events = _Events(features.rows_BF.numpy(), features.hashes_BF.numpy(), *prepared)
        count = len(events.rows_BF)
        embedded = Embedded.of(features)
        lists = self._slots.of_lists(features.lists, events.hashes_BF)
        model = tables["linear"].numpy(), prior_SK.numpy(), tables["embedding"].numpy()
        experts_BE = np.empty((count, columns), np.float32)
        if count <= _PIECE_EVENTS:
            self._write_logits(*model, events, embedded, lists, experts_BE)
            return experts_BE
        for start in range(0, count, _PIECE_EVENTS):
            piece = slice(start, start + _PIECE_EVENTS)
            self._write_logits(
                *model,
                _Events(*(a[piece] for a in events)),
                embedded.part(piece.start, piece.stop),
                lists.part(piece.start, piece.stop),
                experts_BE[piece],
            )
        return experts_BE

    def _write_logits(
        self,
        evidence_R2K: np.ndarray,
        prior_SK: np.ndarray,
        embedding_RD: np.ndarray,
        events: _Events,
        embedded: Embedded,
        lists: ListSlots,
        experts_BE: np.ndarray,
    ) -> None:
        """Write the logits of all experts to `experts_BE`."""
        inputs = self.network.top_inputs
        x_BI = self._deep.inputs(len(experts_BE))
        x, first = x_BI.numpy(), inputs.contributions.start
        write_contributions = compiled_contributions(prior_SK.shape[1])
        places = *self._slots.places, *self._slots.pairs
        write_contributions(evidence_R2K, prior_SK, *events, *places, x, first, experts_BE)
        if self._slots.lists:
            to = first, self._slots.single, x, experts_BE
            add_lists(evidence_R2K, prior_SK, *lists, *to)
        x[:, inputs.numerics] = events.scores_BM
        corrections_B = self._deep.corrections(x_BI, embedding_RD, embedded)
        np.add(experts_BE[:, 0], corrections_B, out=experts_BE[:, -1])
