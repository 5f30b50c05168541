"""The experts side by side: the part of the forward pass that a learner and a scorer share, and the
interface for a further expert.

In: `Features`, and the parameters of the moment. Out: one logit of each expert for each event. The
linear expert has a column for each of its time scales; the further experts (`EXPERTS`) have one
each; the deep one, which corrects the first column, is the last. The mixture
(`model.mixture.mixture`) weighs the columns.

Shapes: B events, S slots, K time scales, E columns of experts; M, N as in
`model.features.numerics`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.inference import DeepInference
from niwaki.model.features.encoder import Features
from niwaki.model.features.lists import ListSlots
from niwaki.model.features.numerics import Scale, prepare_numerics
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema
from niwaki.model.linear.kernels import add_lists, compiled_logits, locate_slots
from niwaki.model.linear.slots import Slots

PREFIX = "expert."
"""Prefix of the further experts' tensors in a checkpoint and in a snapshot."""


class Expert(Protocol):
    """A further expert beside the linear and the deep one: one column of logits, read by the
    mixture.

    The learner asks it to `contribute` before it learns a batch. A published model holds a copy of
    its `state`. So an expert is one class, and a line in `EXPERTS`.
    """

    @property
    def name(self) -> str:
        """A name of letters and underscores, part of its tensors' names."""

    def contribute(self, features: Features) -> np.ndarray:
        """(B,) float32 logits of B events. It changes nothing, and may be called by several
        threads."""

    def learn(self, features: Features, outcomes: Outcomes) -> None:
        """Learn from B events in order."""

    def state(self) -> dict[str, torch.Tensor]:
        """All that the expert has learned, by name: tensors of constant shapes, copies. At least
        one, by which a checkpoint shows that it has the expert; none is called rows or blocks."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `state` was taken."""


EXPERTS: tuple[Callable[[Schema], Expert], ...] = ()
"""The further experts, in the order of their columns; each is made for a schema. A checkpoint or a
snapshot is read with the same ones in the same order."""


def further_experts(schema: Schema) -> list[Expert]:
    """The further experts, as they begin."""
    return [kind(schema) for kind in EXPERTS]


def columns_of_experts(scales: int) -> int:
    """The number of columns E where the linear expert has `scales` time scales."""
    return scales + len(EXPERTS) + 1


def tensors_of_experts(experts: Sequence[Expert]) -> dict[str, torch.Tensor]:
    """The tensors of all `experts`, as a checkpoint and a snapshot name them."""
    return {
        f"{PREFIX}{expert.name}.{name}": tensor
        for expert in experts
        for name, tensor in expert.state().items()
    }


def names_of_experts(tensors: Iterable[str]) -> list[str]:
    """The sorted names of the further experts that have one of `tensors`, which are given by
    name."""
    own = (name.removeprefix(PREFIX) for name in tensors if name.startswith(PREFIX))
    return sorted({name.partition(".")[0] for name in own})


def restore_experts(experts: Sequence[Expert], tensors: Mapping[str, torch.Tensor]) -> None:
    """Let all `experts` continue from the tensors that `tensors_of_experts` named."""
    for expert in experts:
        prefix = f"{PREFIX}{expert.name}."
        expert.restore(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )


def write_contributions(
    experts: Sequence[Expert], features: Features, scales: int, experts_BE: np.ndarray
) -> None:
    """Write the further experts' logits to their columns of `experts_BE`."""
    for column, expert in enumerate(experts, scales):
        experts_BE[:, column] = expert.contribute(features)


class Assembled(NamedTuple):
    """The inputs and the logits of the experts for B events, as buffers."""

    scores_BM: np.ndarray
    code_BN: np.ndarray
    above_BN: np.ndarray
    """These three: see `model.features.numerics.Prepared`."""
    rows_BS: np.ndarray
    """int64, the rows of the slots that do not read lists."""
    values_BS: np.ndarray
    """float32, the values of those slots."""
    contributions_BS: np.ndarray
    """float32, the contribution of each slot to the linear expert's logit at the first time
    scale."""
    experts_BE: np.ndarray
    """float32, the logits of the experts."""

    @classmethod
    def empty(cls, events: int, numerics: int, slots: Slots, experts: int) -> "Assembled":
        """Buffers for `events` events and `experts` columns, with undefined contents."""
        single = slots.single
        return cls(
            scores_BM=np.empty((events, 2 * numerics), np.float32),
            code_BN=np.empty((events, numerics), np.int64),
            above_BN=np.empty((events, numerics), np.float32),
            rows_BS=np.empty((events, single), np.int64),
            values_BS=np.empty((events, single), np.float32),
            contributions_BS=np.empty((events, len(slots)), np.float32),
            experts_BE=np.empty((events, experts), np.float32),
        )

    def part(self, events: slice) -> "Assembled":
        """Views of some of the events."""
        return Assembled(*(array[events] for array in self))

    def fill(
        self,
        slots: Slots,
        rows_BF: np.ndarray,
        hashes_BF: np.ndarray,
        numerics_BN: np.ndarray,
        lists: ListSlots,
        scale: tuple[np.ndarray, np.ndarray],
        evidence_R2K: np.ndarray,
        prior_SK: np.ndarray,
    ) -> None:
        """Fill everything but the columns of the further experts and of the deep one.

        `scale`: see `model.features.numerics.Scale`. `prior_SK`: 1 / prior variance of each slot.
        """
        prepared = self[:3]
        prepare_numerics(numerics_BN, *scale, *prepared)
        to = self.rows_BS, self.values_BS
        locate_slots(rows_BF, hashes_BF, *prepared, *slots.places, *slots.pairs, *to)
        write_logits = compiled_logits(prior_SK.shape[1])
        outputs = self.contributions_BS, self.experts_BE
        write_logits(evidence_R2K, prior_SK, self.rows_BS, self.values_BS, *outputs)
        if slots.lists:
            add_lists(evidence_R2K, prior_SK, *lists, 0, slots.single, *outputs)


class Inputs(NamedTuple):
    """The inputs of the experts for B events, without embeddings."""

    embedded: Embedded
    numerics_BM: torch.Tensor
    slot_rows_BS: torch.Tensor
    slot_values_BS: torch.Tensor
    """These two: of the slots that do not read lists."""
    slot_lists: ListSlots
    contributions_BS: torch.Tensor
    """The contribution of each slot to the linear expert's logit at the first time scale."""
    linear_BK: torch.Tensor
    """Logits of the linear expert at each time scale."""


def assemble(
    slots: Slots,
    features: Features,
    scale: Scale,
    evidence_R2K: torch.Tensor,
    prior_SK: torch.Tensor,
) -> Inputs:
    """The inputs of the experts. `prior_SK`: 1 / prior variance of each slot."""
    events, numerics = features.numerics_BN.shape
    scales = prior_SK.shape[1]
    found = Assembled.empty(events, numerics, slots, scales)
    lists = slots.of_lists(features.lists, features.hashes_BF.numpy())
    found.fill(
        slots,
        features.rows_BF.numpy(),
        features.hashes_BF.numpy(),
        features.numerics_BN.numpy(),
        lists,
        (scale.moments_2N.numpy(), scale.knots_NQ.numpy()),
        evidence_R2K.numpy(),
        prior_SK.numpy(),
    )
    return Inputs(
        embedded=Embedded.of(features),
        numerics_BM=torch.from_numpy(found.scores_BM),
        slot_rows_BS=torch.from_numpy(found.rows_BS),
        slot_values_BS=torch.from_numpy(found.values_BS),
        slot_lists=lists,
        contributions_BS=torch.from_numpy(found.contributions_BS),
        linear_BK=torch.from_numpy(found.experts_BE),
    )


def deep_logits(deep: DeepInference, inputs: Inputs, vectors_BFD: torch.Tensor) -> torch.Tensor:
    """(B,): the first linear logit, plus the deep expert's correction of it. `vectors_BFD`: the
    embeddings of the events, contiguous, zero in columns that are cut."""
    places = deep.network.top_inputs
    x_BI = deep.inputs(len(vectors_BFD))
    x_BI[:, places.numerics] = inputs.numerics_BM
    x_BI[:, places.contributions] = inputs.contributions_BS
    table_RD = vectors_BFD.flatten(0, 1).numpy()
    embedded = Embedded(np.arange(len(table_RD)).reshape(vectors_BFD.shape[:2]))
    return inputs.linear_BK[:, 0] + torch.from_numpy(deep.corrections(x_BI, table_RD, embedded))
