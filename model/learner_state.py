"""What a snapshot holds of a learner beside its tensors."""

import msgspec
import torch


class LearnerState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of a learner's state that is not tensors."""

    dense_live: bool
    block: tuple[int, int] | None = None
    """Outputs and inputs of the blocks of weights that are the units; None: neurons are."""
    sparse: bool
    masks: str | None
    """Kind of the masks that are being learned; None: none are."""
    unpruned: bool = False
    """There is a network that goes on as the one that is being pruned would have."""
    losses: tuple[float, ...]
    """What `Learner.comparison` is made of."""
    dense_steps: float
    sparse_steps: float
    mask_steps: int
    learned_multiply_adds: float
    doubt: tuple[float, ...] = (0.0,) * 8
    left: tuple[float, float] = (1.0, 1.0)
    """What is kept of evidence and of past gradients, if the doubt is confirmed."""
    events: int


def named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
