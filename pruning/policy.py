"""When to prune, when to regrow, and how much: DENSE -> PRUNING -> SPARSE -> (drift) -> DENSE.

The loop tells a policy how many events have been learned, whether a drift was just detected, and
how the network that is being pruned compares with the one that is served; the policy answers with
the next move. It knows nothing of weights, detectors or clocks. Dense-to-sparse by drift: Ye et
al., arXiv:2010.08655; training that alternates between dense and sparse phases: Peste et al., AC/DC
(arXiv:2106.12379), and, for recommendation, Du et al., arXiv:2105.01064. What a user would compare
with is in `pruning.policies`.
"""

from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple, get_args

import msgspec

Unit = Literal["neuron", "block", "weight"]
PolicyName = Literal[
    "dense", "small", "static", "magnitude", "rigl", "periodic", "adaptive", "adaptive-live"
]
_LEAST_BUDGET = 0.02
"""The smallest budget that `auto` tries."""
_AUTO_PHASE_RATIO = 3
"""How much longer it takes: losses can be compared over some thousand events only, and a share must
not fall faster."""
_AUTO_WAIT_RATIO = 0.1
"""Share of such a phase before anything is pruned, in which the importance of units is learned."""
_FIXED_BUDGET = ("small", "magnitude", "rigl")
_WHOLE_TABLES = ("small", "rigl")


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
    REWIRE = "rewire"


class PruningConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of the network may stay, and the lengths of the phases (the `[pruning]` section)."""

    policy: PolicyName = "adaptive"
    """dense: never pruned. small: never pruned either, but narrow from the start. static: pruned
    once, after the warm-up. magnitude: the same by the size of weights, each layer alike. rigl:
    narrow from the start, the weakest units exchanged at intervals. periodic: dense all along, a
    sparse network cut from it at intervals. adaptive: regrown and pruned anew after each drift.
    adaptive-live: the same, and dense all along."""
    budget: float | Literal["auto"] = 0.1
    """Share of the dense network's multiply-adds that the sparse one may take, (0, 1]. "auto": the
    least, down to 0.02, at which the network that is being pruned predicts as well as one beside it
    that is not (not for small, magnitude and rigl). A pruning phase is then three times as long and
    costs twice as much an event."""
    table_budget: float = 1.0
    """Share of the embedding tables' bytes that may stay, (0, 1]; 1: tables are not pruned. Whole
    columns go, one dimension of one field each; every field keeps one at least. Not for small and
    rigl."""
    unit: Unit = "neuron"
    """What is pruned. neuron: what is left is a narrow network, whose products are the fastest.
    block: blocks of weights. weight: single ones. The policy small has narrow layers whatever the
    unit; tables are pruned only with neurons."""
    block: tuple[int, int] = (8, 8)
    """unit = "block": its outputs and inputs, >= 1 each."""
    auto_tolerance_ratio: float = 0.001
    """budget = "auto": how much more log loss than unpruned is still as well, which is the same
    share of normalized entropy, 0..1."""
    warmup_events: int = 40_000
    """Length of the first dense phase, events."""
    regrowth_events: int = 5_000
    """Length of a dense phase after a drift, events."""
    pruning_events: int = 10_000
    """Length of a pruning phase, events."""
    settle_ratio: float = 0.3
    """Last share of a pruning phase in which the budget has been reached and masks only settle,
    0..1."""
    tolerance_ratio: float = 0.001
    """How much more log loss than the served network a newly pruned one may have when it takes
    over, 0..1."""
    longest_wait_events: int = 20_000
    """How long a newly pruned network may learn on to get there before it takes over anyhow,
    events, >= 0."""
    doubt_events: int = 20_000
    """For how long after a drift it is asked whether what was learned before misleads (adaptive
    policies), events, >= 1; if it does, only the two shares below are left of it."""
    evidence_ratio: float = 0.03
    """Share of the linear expert's evidence, (0, 1]; 1: all."""
    remembered_ratio: float = 0.1
    """Share of what the tables remember of past gradients, (0, 1]: the less, the larger their next
    steps."""
    period_events: int = 50_000
    """Events between two prunings (periodic) or two exchanges of units (rigl: a tenth of it), >=
    10."""
    exchange_ratio: float = 0.3
    """Share of units that rigl exchanges at first, 0..1; it falls to a tenth of that, a cosine over
    twenty periods."""

    def __post_init__(self) -> None:
        if self.policy not in get_args(PolicyName):
            raise ValueError(
                f"pruning.policy must be one of {', '.join(get_args(PolicyName))}, got {self.policy!r}"
            )
        if self.unit not in get_args(Unit):
            raise ValueError(
                f"pruning.unit must be one of {', '.join(get_args(Unit))}, got {self.unit!r}"
            )
        if min(self.block) < 1:
            raise ValueError(
                f"pruning.block must be two sides of at least 1, got {list(self.block)}"
            )
        if self.table_budget < 1 and self.unit != "neuron":
            raise ValueError(
                f"pruning.unit must be neuron where tables are pruned (table_budget), got {self.unit!r}"
            )
        if self.budget == "auto":
            if self.policy in _FIXED_BUDGET:
                raise ValueError(
                    f"pruning.budget must be a number for the policy {self.policy}, got 'auto'"
                )
        elif not 0 < self.budget <= 1:
            raise ValueError(f"pruning.budget must be in (0, 1], got {self.budget}")
        if not 0 < self.table_budget <= 1:
            raise ValueError(f"pruning.table_budget must be in (0, 1], got {self.table_budget}")
        if self.table_budget < 1 and self.policy in _WHOLE_TABLES:
            raise ValueError(
                f"pruning.table_budget must be 1 for the policy {self.policy}, got {self.table_budget}"
            )
        least = {
            "warmup_events": 1,
            "regrowth_events": 1,
            "pruning_events": 1,
            "longest_wait_events": 0,
        }
        least |= {"doubt_events": 1, "period_events": 10}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(
                    f"pruning.{name} must be at least {bound}, got {getattr(self, name)}"
                )
        for name in ("remembered_ratio", "evidence_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"pruning.{name} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.settle_ratio < 1:
            raise ValueError(f"pruning.settle_ratio must be in [0, 1), got {self.settle_ratio}")
        for name in ("auto_tolerance_ratio", "tolerance_ratio", "exchange_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"pruning.{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def weights_of_unit(self) -> tuple[int, int] | None:
        """Outputs and inputs of the blocks of weights that are the units; None: neurons are."""
        if self.policy == "small" or self.unit == "neuron":
            return None
        return self.block if self.unit == "block" else (1, 1)


class PolicyState(msgspec.Struct, kw_only=True):
    """Where a policy stands; part of a snapshot."""

    phase: Phase = Phase.DENSE
    since_event: int = 0
    """Index of the event at which the phase began."""
    cycle: int = 0
    """How often the network has been cut."""
    forced: int = 0
    """How many networks took over though they predicted worse, since the wait was at its bound."""
    chosen_ratio: float = 1.0
    """budget = "auto": share of the dense multiply-adds allowed at present."""
    steered_event: int = 0
    """Events at which that share was last changed."""


class Comparison(NamedTuple):
    """How the network that is being pruned has predicted lately; None: there is nothing to compare
    with."""

    behind_served_ratio: float | None = None
    """How much more log loss it has had than the served one, as a share."""
    behind_unpruned_ratio: float | None = None
    """How much more than the same network left unpruned."""


ALONE = Comparison()


class Policy:
    """The protocol that every policy follows, and the one that never prunes.

    Class attributes say what a learner needs to be made for a policy; `decide` is called after each
    batch, and the move that it answers with is made at once; `target_ratio` is asked before each
    batch.
    """

    narrow_from_the_start: ClassVar[bool] = False
    """The served network has the budget's widths from the first event on, the same share of each
    layer."""
    masks: ClassVar[Literal["auxiliary", "magnitude"]] = "auxiliary"
    """What chooses the units that stay."""
    stays_dense: ClassVar[bool] = False
    """The dense branch goes on learning after a cut."""
    adapts: ClassVar[bool] = False
    """After a drift the learner forgets what misleads."""

    def __init__(self, config: PruningConfig, state: PolicyState | None = None):
        self.config, self.state = config, state or PolicyState()
        if not state and self.narrow_from_the_start:
            self.state.phase = Phase.SPARSE

    @property
    def phase(self) -> Phase:
        return self.state.phase

    @property
    def answers_drift(self) -> bool:
        """Whether the dense branch lives for a drift's sake, or has just been cut after one."""
        return self.adapts and self.state.cycle > (self.phase is Phase.SPARSE)

    @property
    def budget(self) -> float:
        """Share of the dense multiply-adds that the sparse network may take: as set, or as chosen
        last."""
        return self.state.chosen_ratio if self.config.budget == "auto" else self.config.budget

    @property
    def needs_unpruned(self) -> bool:
        """Whether `decide` must be told how the network would do unpruned."""
        return self.config.budget == "auto"

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        """The move due after `events` learned in all; the phase follows it. `drifted`: a detector
        fired since the last call."""
        return Move.STAY

    def target_ratio(self, events: int) -> float:
        """Share of the dense multiply-adds allowed after `events`: the cubic schedule of Zhu &
        Gupta (arXiv:1710.01878)."""
        if self.phase is not Phase.PRUNING:
            return 1.0
        if self.config.budget == "auto":
            return self.state.chosen_ratio
        return self._scheduled(self.budget, events)

    def table_ratio(self, events: int) -> float:
        """Share of the tables' bytes allowed after `events`, on the same schedule."""
        return (
            self._scheduled(self.config.table_budget, events)
            if self.phase is Phase.PRUNING
            else 1.0
        )

    def _scheduled(self, budget: float, events: int) -> float:
        done = min((events - self.state.since_event) / self._falling_events, 1.0)
        return budget + (1 - budget) * (1 - done) ** 3

    @property
    def _falling_events(self) -> float:
        """The part of a pruning phase in which the target falls."""
        return self._pruning_events * (1 - self.config.settle_ratio)

    @property
    def _pruning_events(self) -> float:
        return self.config.pruning_events * (
            _AUTO_PHASE_RATIO if self.config.budget == "auto" else 1
        )

    def _enter(self, phase: Phase, events: int, move: Move) -> Move:
        self.state.phase, self.state.since_event = phase, events
        if move is Move.PRUNE:
            self.state.chosen_ratio, self.state.steered_event = 1.0, events
        return move


class Static(Policy):
    """Pruned once after the warm-up, then sparse for ever."""

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        if self.phase is Phase.SPARSE:
            return self._when_sparse(events, drifted)
        elapsed = events - self.state.since_event
        dense_events = (
            self.config.regrowth_events if self.state.cycle else self.config.warmup_events
        )
        if self.phase is Phase.DENSE and elapsed >= dense_events:
            return self._enter(Phase.PRUNING, events, Move.PRUNE)
        if self.phase is Phase.PRUNING:
            if self.config.budget == "auto":
                self._steer(events, comparison.behind_unpruned_ratio or 0.0)
            if elapsed >= self._pruning_events:
                return self._hand_over(events, elapsed, comparison)
        return Move.STAY

    def _hand_over(self, events: int, elapsed: int, comparison: Comparison) -> Move:
        """Cut, unless the new network predicts worse and there is time left to wait."""
        bounds = (self.config.tolerance_ratio, self.config.auto_tolerance_ratio)
        worse = any(
            ratio is not None and ratio > bound
            for ratio, bound in zip(comparison, bounds, strict=True)
        )
        if worse and elapsed < self._pruning_events + self.config.longest_wait_events:
            return Move.STAY
        self.state.forced += worse
        self.state.cycle += 1
        return self._enter(Phase.SPARSE, events, Move.CUT)

    def _steer(self, events: int, behind_unpruned_ratio: float) -> None:
        """Let the share fall, at a speed that would take it down to the least budget by the end of
        the schedule, and stay while the pruned network is beyond the tolerance; after that let it
        rise at the same speed while it is.

        Not before: units that come back disturb the others, and the network heals sooner without
        them.
        """
        state, falling = self.state, self._falling_events
        waited = _AUTO_WAIT_RATIO * self._pruning_events
        factor = _LEAST_BUDGET ** ((events - state.steered_event) / (falling - waited))
        elapsed, beyond = (
            events - state.since_event,
            behind_unpruned_ratio > self.config.auto_tolerance_ratio,
        )
        if elapsed > falling and beyond:
            state.chosen_ratio = min(state.chosen_ratio / factor, 1.0)
        elif waited < elapsed <= falling and not beyond:
            state.chosen_ratio = max(state.chosen_ratio * factor, _LEAST_BUDGET)
        state.steered_event = events

    def _when_sparse(self, events: int, drifted: bool) -> Move:
        return Move.STAY


class Adaptive(Static):
    """Dense around a drift only: regrown when one is detected, pruned anew, dormant in between."""

    adapts = True

    def _when_sparse(self, events: int, drifted: bool) -> Move:
        # in the other phases the dense branch is learning it already
        return self._enter(Phase.DENSE, events, Move.REGROW) if drifted else Move.STAY


class AdaptiveLive(Adaptive):
    """As `Adaptive`, but the dense branch learns all along: nothing is dormant, and nothing is
    spared."""

    stays_dense = True


class Periodic(Static):
    """Dense all along, and a new sparse network cut from it at fixed intervals (Ye et al., section
    3)."""

    stays_dense = True

    def _when_sparse(self, events: int, drifted: bool) -> Move:
        due = (
            events - self.state.since_event
            >= self.config.period_events - self.config.pruning_events
        )
        return self._enter(Phase.PRUNING, events, Move.PRUNE) if due else Move.STAY
