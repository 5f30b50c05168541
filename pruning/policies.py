"""Every policy, and the table of them: the adaptive ones, and those that a user would compare them
with.

They share the unit groups, the compaction, the publication and the evaluation, so that a comparison
is one of *when* and *what* is pruned and nothing else. The comparisons give each layer the same
share of units (the largest that fits the budget): how much each layer keeps is not learned.
"""

import math

from niwaki.pruning.masks import MAGNITUDE, MaskKind
from niwaki.pruning.policy import ALONE, Comparison, Move, Phase, Policy

_LEAST_BUDGET = 0.02
"""The smallest budget that budget = "auto" tries."""
_AUTO_WAIT_RATIO = 0.1
"""Share of a pruning phase before anything is pruned, in which the importance of units is learned
(budget = "auto")."""


class Static(Policy):
    """Pruned once after the warm-up, then sparse for ever."""

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        """Dense for the warm-up (or the regrowth), then pruned, then cut; see `_when_sparse` for
        the rest."""
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

        The share does not rise earlier: units that come back disturb the others, and the network
        heals sooner without them.
        """
        state = self.state
        falling = self._falling_events
        waited = _AUTO_WAIT_RATIO * self._pruning_events
        factor = _LEAST_BUDGET ** ((events - state.steered_event) / (falling - waited))
        elapsed = events - state.since_event
        beyond = behind_unpruned_ratio > self.config.auto_tolerance_ratio
        if elapsed > falling and beyond:
            state.chosen_ratio = min(state.chosen_ratio / factor, 1.0)
        elif waited < elapsed <= falling and not beyond:
            state.chosen_ratio = max(state.chosen_ratio * factor, _LEAST_BUDGET)
        state.steered_event = events

    def _when_sparse(self, events: int, drifted: bool) -> Move:
        """The move due while the network is sparse."""
        return Move.STAY


class Adaptive(Static):
    """Dense around a drift only: regrown when a drift is detected, pruned anew, dormant in
    between."""

    adapts = True

    def _when_sparse(self, events: int, drifted: bool) -> Move:
        # In the other phases the dense branch learns already when a drift comes.
        return self._enter(Phase.DENSE, events, Move.REGROW) if drifted else Move.STAY


class AdaptiveLive(Adaptive):
    """The policy `Adaptive` with a dense branch that learns all along: nothing is dormant, and no
    computation is saved."""

    stays_dense = True


class Periodic(Static):
    """Dense all along, and a new sparse network cut from it at fixed intervals (Ye et al., section
    3)."""

    stays_dense = True

    def _when_sparse(self, events: int, drifted: bool) -> Move:
        sparse_events = self.config.period_events - self.config.pruning_events
        due = events - self.state.since_event >= sparse_events
        return self._enter(Phase.PRUNING, events, Move.PRUNE) if due else Move.STAY


class Small(Policy):
    """A small network from the start: the sceptic's question, why not simply train that."""

    narrow_from_the_start = True
    only_neurons = True
    chooses_budget = False
    prunes_tables = False


class Magnitude(Static):
    """Gradual magnitude pruning (Zhu & Gupta, arXiv:1710.01878), the same ratio in each layer, then
    frozen."""

    masks = MAGNITUDE
    chooses_budget = False


class Rigl(Policy):
    """A fixed budget from the start; at intervals the weakest units of each layer give way to those
    with the largest gradients (Evci et al., RigL, arXiv:1911.11134). This is the original where
    units are single weights."""

    narrow_from_the_start = True
    chooses_budget = False
    prunes_tables = False

    def decide(self, events: int, drifted: bool, comparison: Comparison = ALONE) -> Move:
        """REWIRE after each tenth of a period."""
        if events - self.state.since_event < self.config.period_events / 10:
            return Move.STAY
        return self._enter(Phase.SPARSE, events, Move.REWIRE)

    def exchange_ratio(self, events: int) -> float:
        """Share of units to exchange after `events`, 0..1: a cosine down to a tenth, since a stream
        has no end at which to stop."""
        done = min(events / (20 * self.config.period_events), 1.0)
        return self.config.exchange_ratio * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)


POLICIES: dict[str, type[Policy]] = {
    "dense": Policy,
    "small": Small,
    "static": Static,
    "magnitude": Magnitude,
    "rigl": Rigl,
    "periodic": Periodic,
    "adaptive": Adaptive,
    "adaptive-live": AdaptiveLive,
}
"""Every policy by its name in the config. A new policy is a class and a line here."""


def mask_kind(name: str) -> MaskKind:
    """The kind of masks that is called `name` in a snapshot."""
    return next(policy.masks for policy in POLICIES.values() if policy.masks.name == name)
