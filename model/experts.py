"""Slots and experts: the part of the forward pass that a learner and a scorer share.

In: `Features`, and the parameters of the moment. Out: the logits of all experts: the linear one at
each of its time scales, and the deep one, which corrects the first. What a learner computes here
and what a scorer does is one code.

Shapes: B events, S slots, K time scales, E = K + 1 experts; see `model.linear.expert` and
`model.deep.network` for the others.
"""

from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.deep.inference import DeepInference
from niwaki.model.features.encoder import Features
from niwaki.model.features.numerics import Scale, prepare_numerics
from niwaki.model.linear.kernels import compiled_logits, locate_slots
from niwaki.model.linear.slots import Slots


class Assembled(NamedTuple):
    """What the linear expert reads and says of B events, and what else the deep one reads:
    buffers."""

    scores_BM: np.ndarray
    code_BN: np.ndarray
    above_BN: np.ndarray
    """These three: see `model.features.numerics.Prepared`."""
    rows_BS: np.ndarray
    """int64, the rows of the slots."""
    values_BS: np.ndarray
    """float32, their values."""
    said_BS: np.ndarray
    """float32, what each slot adds to the linear expert's logit at the first time scale."""
    experts_BE: np.ndarray
    """float32, logits of the experts; of the linear one at each time scale, and room for the deep
    one's."""

    @classmethod
    def empty(cls, events: int, numerics: int, slots: int, scales: int) -> "Assembled":
        """For so many events; what is in it means nothing."""
        widths = 2 * numerics, numerics, numerics, slots, slots, slots, scales + 1
        integers = (1, 3)
        kinds = [np.int64 if place in integers else np.float32 for place in range(len(widths))]
        return cls(
            *(np.empty((events, width), kind) for width, kind in zip(widths, kinds, strict=True))
        )

    def part(self, events: slice) -> "Assembled":
        """Views of some of the events."""
        return Assembled(*(array[events] for array in self))

    def fill(
        self,
        slots: Slots,
        rows_BF: np.ndarray,
        pairs_BP: np.ndarray,
        numerics_BN: np.ndarray,
        scale: tuple[np.ndarray, np.ndarray],
        evidence_R2K: np.ndarray,
        prior_SK: np.ndarray,
    ) -> None:
        """All but the deep expert's logits. `scale`: see `model.features.numerics.Scale`.
        `prior_SK`: 1 / prior variance of each slot."""
        prepared = self[:3]
        prepare_numerics(numerics_BN, *scale, *prepared)
        locate_slots(rows_BF, pairs_BP, *prepared, *slots.places, self.rows_BS, self.values_BS)
        logits = compiled_logits(prior_SK.shape[1])
        logits(evidence_R2K, prior_SK, self.rows_BS, self.values_BS, self.said_BS, self.experts_BE)


class Inputs(NamedTuple):
    """What the experts read of B events."""

    rows_BF: torch.Tensor
    numerics_BM: torch.Tensor
    slot_rows_BS: torch.Tensor
    slot_values_BS: torch.Tensor
    said_BS: torch.Tensor
    """What each slot adds to the linear expert's logit at the first time scale."""
    linear_BK: torch.Tensor
    """Logits of the linear expert at each time scale."""


def assemble(
    slots: Slots,
    features: Features,
    scale: Scale,
    evidence_R2K: torch.Tensor,
    prior_SK: torch.Tensor,
) -> Inputs:
    """Everything but the embeddings. `prior_SK`: 1 / prior variance of each slot."""
    found = Assembled.empty(*features.numerics_BN.shape, *prior_SK.shape)
    read = [tensor.numpy() for tensor in features[:3]]
    model = [tensor.numpy() for tensor in (evidence_R2K, prior_SK)]
    found.fill(slots, *read, tuple(tensor.numpy() for tensor in scale), *model)
    scores_BM, _, _, *linear, experts_BE = map(torch.from_numpy, found)
    return Inputs(features.rows_BF, scores_BM, *linear, experts_BE[:, :-1])


def deep_logits(deep: DeepInference, inputs: Inputs, vectors_BFD: torch.Tensor) -> torch.Tensor:
    """(B,): the first linear logit, plus the deep expert's correction of it. `vectors_BFD`: the
    embeddings of the events, contiguous, zero in columns that are cut."""
    places, x_BI = deep.network.top_inputs, deep.inputs(len(vectors_BFD))
    x_BI[:, places.numerics] = inputs.numerics_BM
    x_BI[:, places.contributions] = inputs.said_BS
    table_RD = vectors_BFD.flatten(0, 1).numpy()
    rows_BF = np.arange(len(table_RD)).reshape(vectors_BFD.shape[:2])
    return inputs.linear_BK[:, 0] + torch.from_numpy(deep.corrections(x_BI, table_RD, rows_BF))
