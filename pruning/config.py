"""The `[pruning]` section: which policy, what is pruned, how much, and the lengths of the
phases."""

from typing import Literal

from niwaki.pruning.errors import RuleError
from niwaki.pruning.policies import POLICIES
from niwaki.pruning.policy import PhaseConfig, Policy, PolicyState

Unit = Literal["neuron", "block", "weight"]


class PruningConfig(PhaseConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy and the unit of pruning, beside the budgets and lengths of `PhaseConfig`."""

    policy: str = "adaptive"
    """dense: never pruned. small: never pruned either, but narrow from the start. static: pruned
    once, after the warm-up. magnitude: the same by the size of weights, each layer alike. rigl:
    narrow from the start, the weakest units exchanged at intervals. periodic: dense all along, a
    sparse network cut from it at intervals. adaptive: regrown and pruned anew after each drift.
    adaptive-live: the same, and dense all along."""
    unit: Unit = "neuron"
    """The unit that is pruned. neuron: whole neurons; a narrow network remains, with the fastest
    products. block: blocks of weights. weight: single weights. The policy small has narrow layers
    with every unit; tables are pruned only with neurons."""
    block: tuple[int, int] = (8, 8)
    """unit = "block": the outputs and inputs of a block, >= 1 each."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise RuleError("policy", f"must be one of {', '.join(sorted(POLICIES))}", self.policy)
        if self.unit not in ("neuron", "block", "weight"):
            raise RuleError("unit", "must be one of neuron, block, weight", self.unit)
        if min(self.block) < 1:
            raise RuleError("block", "must be two sides of at least 1", list(self.block))
        if self.table_budget < 1 and self.unit != "neuron":
            rule = "must be neuron where tables are pruned (table_budget)"
            raise RuleError("unit", rule, self.unit)
        kind = POLICIES[self.policy]
        if self.budget == "auto" and not kind.chooses_budget:
            rule = f"must be a number for the policy {self.policy}"
            raise RuleError("budget", rule, self.budget)
        super().__post_init__()
        if self.table_budget < 1 and not kind.prunes_tables:
            rule = f"must be 1 for the policy {self.policy}"
            raise RuleError("table_budget", rule, self.table_budget)

    @property
    def weights_of_unit(self) -> tuple[int, int] | None:
        """Outputs and inputs of the blocks of weights that are the units; None: neurons are."""
        if self.unit == "neuron" or POLICIES[self.policy].only_neurons:
            return None
        return self.block if self.unit == "block" else (1, 1)


def policy_for(config: PruningConfig, state: PolicyState | None = None) -> Policy:
    """The policy that `config` names, in `state` or at its beginning."""
    return POLICIES[config.policy](config, state)
