"""When to prune, when to regrow, and how much: DENSE -> PRUNING -> SPARSE -> (drift) -> DENSE.

In: how many events have been learned, whether a drift was just detected, and how the network that
is being pruned compares with the served one. Out: the next move. A policy knows nothing of weights,
detectors or clocks. Dense-to-sparse by drift: Ye et al., arXiv:2010.08655; training that alternates
between dense and sparse phases: Peste et al., AC/DC (arXiv:2106.12379), and, for recommendation, Du
et al., arXiv:2105.01064. The policies themselves are in `pruning.policies`.
"""

from enum import StrEnum
from typing import ClassVar, Literal, NamedTuple

import msgspec

from niwaki.pruning.errors import RuleError
from niwaki.pruning.masks import AUXILIARY, MaskKind

_AUTO_PHASE_RATIO = 3
"""Factor on the length of a pruning phase whose budget is chosen: losses can be compared over some
thousand events only, and a share must not fall faster."""


class Phase(StrEnum):
    """The state of the learner's network."""

    DENSE = "dense"
    PRUNING = "pruning"
    SPARSE = "sparse"


class Move(StrEnum):
    """The next move of the loop."""

    STAY = "stay"
    PRUNE = "prune"
    CUT = "cut"
    REGROW = "regrow"
    REWIRE = "rewire"


class PhaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The budgets, and the lengths of the phases: the part of the `[pruning]` section that policies
    read."""

    budget: float | Literal["auto"] = 0.1
    """Share of the dense network's multiply-adds that the sparse one may take, (0, 1]. "auto": the
    least, down to 0.02, at which the network that is being pruned predicts as well as one beside it
    that is not (not for small, magnitude and rigl). A pruning phase is then three times as long and
    costs twice as much an event."""
    table_budget: float = 1.0
    """Share of the embedding tables' bytes that may stay, (0, 1]; 1: tables are not pruned. Whole
    columns go, one dimension of one field each; every field keeps one at least. Not for small and
    rigl."""
    auto_tolerance_ratio: float = 0.001
    """budget = "auto": how much more log loss than the reference network counts as no loss, as a
    share, 0..1. It is the same share of normalized entropy."""
    warmup_events: int = 40_000
    """Length of the first dense phase, events, >= 1."""
    regrowth_events: int = 5_000
    """Length of a dense phase after a drift, events, >= 1."""
    pruning_events: int = 10_000
    """Length of a pruning phase, events, >= 1."""
    settle_ratio: float = 0.3
    """Last share of a pruning phase in which the budget has been reached and masks only settle, [0,
    1)."""
    tolerance_ratio: float = 0.001
    """Share, 0..1, by which the log loss of a newly pruned network may lie above that of the served
    one when it takes over."""
    longest_wait_events: int = 20_000
    """Events that a newly pruned network may learn on to get there before it takes over anyhow, >=
    0."""
    doubt_events: int = 20_000
    """Events after a drift in which a test decides whether what was learned before misleads
    (adaptive policies), >= 1; if it does, only the two shares below are left of it."""
    evidence_ratio: float = 0.03
    """Share of the linear expert's evidence that is kept then, (0, 1]; 1: all."""
    remembered_ratio: float = 0.1
    """Share of the tables' accumulated squared gradients that is kept then, (0, 1]: the less, the
    larger their next steps."""
    period_events: int = 50_000
    """Events between two prunings (periodic) or two exchanges of units (rigl: a tenth of it), >=
    10."""
    exchange_ratio: float = 0.3
    """Share of units that rigl exchanges at first, 0..1; it falls to a tenth of that, a cosine over
    twenty periods."""

    def __post_init__(self) -> None:
        if self.budget != "auto" and not 0 < self.budget <= 1:
            raise RuleError("budget", "must be in (0, 1]", self.budget)
        if not 0 < self.table_budget <= 1:
            raise RuleError("table_budget", "must be in (0, 1]", self.table_budget)
        least = {"warmup_events": 1, "regrowth_events": 1, "pruning_events": 1}
        least |= {"longest_wait_events": 0, "doubt_events": 1, "period_events": 10}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise RuleError(name, f"must be at least {bound}", getattr(self, name))
        for name in ("remembered_ratio", "evidence_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise RuleError(name, "must be in (0, 1]", getattr(self, name))
        if not 0 <= self.settle_ratio < 1:
            raise RuleError("settle_ratio", "must be in [0, 1)", self.settle_ratio)
        for name in ("auto_tolerance_ratio", "tolerance_ratio", "exchange_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise RuleError(name, "must be in [0, 1]", getattr(self, name))


class PolicyState(msgspec.Struct, kw_only=True):
    """The state of a policy; part of a snapshot."""

    phase: Phase = Phase.DENSE
    since_event: int = 0
    """Index of the event at which the phase began."""
    cycle: int = 0
    """Number of networks cut so far."""
    forced: int = 0
    """Number of networks that took over though they predicted worse, since the wait was at its
    bound."""
    chosen_ratio: float = 1.0
    """budget = "auto": share of the dense multiply-adds allowed at present, (0, 1]."""
    steered_event: int = 0
    """Index of the event at which that share was last changed."""


class Comparison(NamedTuple):
    """The recent log loss of the network that is being pruned, beside other networks; None: there
    is no other one."""

    behind_served_ratio: float | None = None
    """Its excess over the served network's, as a share."""
    behind_unpruned_ratio: float | None = None
    """Its excess over the reference network's (the same network left unpruned), as a share."""


ALONE = Comparison()


class Policy:
    """The interface of every policy, and the policy that never prunes.

    Class attributes tell the config's check and the trainer what the policy needs. `decide` is
    called after each batch, and its move is made at once; `target_ratio` and `table_ratio` are read
    before each batch.
    """

    narrow_from_the_start: ClassVar[bool] = False
    """True: the served network has the budget's widths from the first event on, the same share of
    each layer."""
    only_neurons: ClassVar[bool] = False
    """True: the units are neurons, whatever `pruning.unit` says."""
    chooses_budget: ClassVar[bool] = True
    """True: budget = "auto" is allowed."""
    prunes_tables: ClassVar[bool] = True
    """True: a table_budget below 1 is allowed."""
    masks: ClassVar[MaskKind] = AUXILIARY
    """The way to choose the units that stay."""
    stays_dense: ClassVar[bool] = False
    """True: the dense branch goes on learning after a cut."""
    adapts: ClassVar[bool] = False
    """True: after a drift the learner tests whether its old evidence misleads, and discounts it if
    so."""

    def __init__(self, config: PhaseConfig, state: PolicyState | None = None):
        self.config = config
        self.state = state or PolicyState()
        if not state and self.narrow_from_the_start:
            self.state.phase = Phase.SPARSE

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self.state.phase

    @property
    def answers_drift(self) -> bool:
        """True from a drift's regrowth until the end of the step that cuts the network anew."""
        return self.adapts and self.state.cycle > (self.phase is Phase.SPARSE)

    @property
    def budget(self) -> float:
        """Share of the dense multiply-adds that the sparse network may take, (0, 1]: as set, or as
        chosen last."""
        budget = self.config.budget
        return self.state.chosen_ratio if budget == "auto" else budget

    @property
    def needs_reference(self) -> bool:
        """True where `decide` must be given the comparison with a reference network, which is never
        pruned."""
        return self.config.budget == "auto"

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        """The move due after `events` learned in all; the policy's phase follows it. `drifted`: a
        detector fired since the last call."""
        return Move.STAY

    def target_ratio(self, events: int) -> float:
        """Share of the dense multiply-adds allowed after `events`, (0, 1]: the cubic schedule of
        Zhu & Gupta (arXiv:1710.01878)."""
        if self.phase is not Phase.PRUNING:
            return 1.0
        if self.config.budget == "auto":
            return self.state.chosen_ratio
        return self._scheduled(self.budget, events)

    def table_ratio(self, events: int) -> float:
        """Share of the tables' bytes allowed after `events`, (0, 1], on the same schedule."""
        pruning = self.phase is Phase.PRUNING
        return self._scheduled(self.config.table_budget, events) if pruning else 1.0

    def exchange_ratio(self, events: int) -> float:
        """Share of units that a REWIRE after `events` exchanges, 0..1."""
        return 0.0

    def _scheduled(self, budget: float, events: int) -> float:
        done = min((events - self.state.since_event) / self._falling_events, 1.0)
        return budget + (1 - budget) * (1 - done) ** 3

    @property
    def _falling_events(self) -> float:
        """Length of the part of a pruning phase in which the target falls."""
        return self._pruning_events * (1 - self.config.settle_ratio)

    @property
    def _pruning_events(self) -> float:
        return self.config.pruning_events * (
            _AUTO_PHASE_RATIO if self.config.budget == "auto" else 1
        )

    def _enter(self, phase: Phase, events: int, move: Move) -> Move:
        self.state.phase = phase
        self.state.since_event = events
        if move is Move.PRUNE:
            self.state.chosen_ratio = 1.0
            self.state.steered_event = events
        return move
