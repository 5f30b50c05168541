"""When to prune, when to regrow, and how much: DENSE -> PRUNING -> SPARSE -> (drift) -> DENSE.

The loop tells a policy how many events have been learned and whether a drift was just detected; the policy answers
with the next move. It knows nothing of weights, detectors or clocks.
"""

from enum import StrEnum
from typing import Literal

import msgspec


PolicyName = Literal["dense", "static", "adaptive"]


class Phase(StrEnum):
    """What the learner is doing."""

    DENSE = "dense"
    PRUNING = "pruning"
    SPARSE = "sparse"


class Move(StrEnum):
    """What the loop should do next."""

    STAY = "stay"
    PRUNE = "prune"
    CUT = "cut"
    REGROW = "regrow"


class PruningConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of the network may stay, and the lengths of the phases (the `[pruning]` section)."""

    policy: PolicyName = "adaptive"
    """dense: never pruned. static: pruned once, after the warm-up. adaptive: regrown and pruned anew after each
    drift."""
    budget: float = 0.1
    """Share of the dense network's multiply-adds that the sparse one may take, (0, 1]."""
    warmup_events: int = 40_000
    """Length of the first dense phase, events."""
    regrowth_events: int = 10_000
    """Length of a dense phase after a drift, events."""
    pruning_events: int = 20_000
    """Length of a pruning phase, events."""
    settle_ratio: float = 0.3
    """Last share of a pruning phase in which the budget has been reached and masks only settle, 0..1."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"pruning.budget must be in (0, 1], got {self.budget}")
        for name in ("warmup_events", "regrowth_events", "pruning_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"pruning.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.settle_ratio < 1:
            raise ValueError(f"pruning.settle_ratio must be in [0, 1), got {self.settle_ratio}")


class PolicyState(msgspec.Struct, kw_only=True):
    """Where a policy stands; part of a snapshot."""

    phase: Phase = Phase.DENSE
    since_event: int = 0
    """Index of the event at which the phase began."""
    cycle: int = 0
    """How often the network has been cut."""


class Policy:
    """The phases as a state machine over event counts."""

    def __init__(self, config: PruningConfig, state: PolicyState | None = None):
        self.config, self.state = config, state or PolicyState()

    @property
    def phase(self) -> Phase:
        return self.state.phase

    def decide(self, events: int, drifted: bool) -> Move:
        """The move due after `events` learned in all; `drifted`: a detector fired since the last call. The phase
        follows the move."""
        elapsed = events - self.state.since_event
        if self.config.policy == "dense":
            return Move.STAY
        if drifted and self.config.policy == "adaptive" and self.phase is Phase.SPARSE:
            return self._enter(
                Phase.DENSE, events, Move.REGROW
            )  # in the other phases the dense branch is learning it already
        dense_events = self.config.regrowth_events if self.state.cycle else self.config.warmup_events
        if self.phase is Phase.DENSE and elapsed >= dense_events:
            return self._enter(Phase.PRUNING, events, Move.PRUNE)
        if self.phase is Phase.PRUNING and elapsed >= self.config.pruning_events:
            self.state.cycle += 1
            return self._enter(Phase.SPARSE, events, Move.CUT)
        return Move.STAY

    def target_ratio(self, events: int) -> float:
        """Share of the dense multiply-adds allowed after `events`: the cubic schedule of Zhu & Gupta
        (arXiv:1710.01878)."""
        if self.phase is not Phase.PRUNING:
            return 1.0
        length = self.config.pruning_events * (1 - self.config.settle_ratio)
        done = min((events - self.state.since_event) / length, 1.0)
        return self.config.budget + (1 - self.config.budget) * (1 - done) ** 3

    def _enter(self, phase: Phase, events: int, move: Move) -> Move:
        self.state.phase, self.state.since_event = phase, events
        return move
