"""Logits of a published model's experts, in fewer passes over memory than a learner needs.

In: features of some events, and a model's weights and tables, plain or compact. Out: the logits of
all experts. The linear expert locates, reads and sums its slots in one kernel, and writes their
contributions to the inputs of the deep expert. Some hundred events are computed at a time, so that
buffers stay in the cache. Nothing is kept between two calls, so threads may share an `Inference`.

Shapes: B events, R rows, S slots, K time scales, E = K + 1 experts, D embedding width.
"""

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
from niwaki.model.published.compact import CompactRows
from niwaki.model.published.compact_inference import (
    compiled_compact_contributions,
    found_embeddings,
    found_lists,
)

Table = torch.Tensor | CompactRows
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
        linear: Table,
        embedding: Table,
        prior_SK: torch.Tensor,
        columns: int,
    ) -> np.ndarray:
        """(B, E) float32 logits of the experts; the columns of further experts are undefined.
        `linear`, `embedding`: the tables of both experts. `prior_SK`: 1 / prior variance of each
        slot. `columns`: E."""
        prepared = prepare(features.numerics_BN, scale)
        events = _Events(features.rows_BF.numpy(), features.hashes_BF.numpy(), *prepared)
        count = len(events.rows_BF)
        embedded = Embedded.of(features)
        lists = self._slots.of_lists(features.lists, events.hashes_BF)
        model = linear, prior_SK.numpy(), embedding
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
        linear: Table,
        prior_SK: np.ndarray,
        embedding: Table,
        events: _Events,
        embedded: Embedded,
        lists: ListSlots,
        experts_BE: np.ndarray,
    ) -> None:
        """Write the logits of all experts to `experts_BE`."""
        inputs = self.network.top_inputs
        x_BI = self._deep.inputs(len(experts_BE))
        x, first = x_BI.numpy(), inputs.contributions.start
        scales = prior_SK.shape[1]
        places = self._slots.places, *self._slots.pairs
        if isinstance(linear, CompactRows):
            write_compact = compiled_compact_contributions(scales)
            some = tuple(events), tuple(places[0])
            write_compact((linear, prior_SK), *some, *places[1:], x, first, experts_BE)
            if self._slots.lists:
                lists, found_VX = found_lists(linear, lists)
                evidence_R2K = found_VX.reshape(-1, 2, scales)
        else:
            evidence_R2K = linear.numpy()
            write_contributions = compiled_contributions(scales)
            to = x, first, experts_BE
            write_contributions(evidence_R2K, prior_SK, *events, *places[0], *places[1:], *to)
        if self._slots.lists:
            columns = first, self._slots.single
            add_lists(evidence_R2K, prior_SK, *lists, *columns, x, experts_BE)
        x[:, inputs.numerics] = events.scores_BM
        if isinstance(embedding, CompactRows):
            embedding_RD, embedded = found_embeddings(embedding, embedded)
        else:
            embedding_RD = embedding.numpy()
        corrections_B = self._deep.corrections(x_BI, embedding_RD, embedded)
        np.add(experts_BE[:, 0], corrections_B, out=experts_BE[:, -1])
