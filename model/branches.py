"""The branches of the deep expert: dense and sparse, and the masks that lead from one to the other.

In: moves (prune, cut, regrow, rewire), and the gradients of each step. Out: the branches that
learn, and the network that is published. The sparse branch is served from the first cut on: it
learns at all times. The dense branch learns beside it only from a regrowth to the next cut; in
between its weights lie dormant. The branches are given moves, and decide none.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import EmbeddingTables
from niwaki.model.deep.mlp import Masks
from niwaki.model.deep.network import Network
from niwaki.model.deep.replay import Inputs as Replayed
from niwaki.model.deep.replay import Replay
from niwaki.model.experts import Inputs
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.mixture.merit import NetworkMerit
from niwaki.pruning.compaction import compact, zero_outgoing
from niwaki.pruning.masks import AUXILIARY, MaskKind, MaskSet
from niwaki.pruning.policies import mask_kind
from niwaki.pruning.policy import Comparison
from niwaki.pruning.scores import exchange

_SERVED_EVENTS = 5_000.0
_REFERENCE_EVENTS = 2_000.0


class RunningLosses(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Running mean log losses, in nats, of the network that is being pruned and of another one,
    over the same events."""

    pruned: float = 0.0
    other: float = 0.0

    def update(self, pruned: float, other: float, share: float) -> None:
        """Move both means towards a batch's losses by `share`, 0..1."""
        self.pruned += (pruned - self.pruned) * share
        self.other += (other - self.other) * share

    @property
    def behind_ratio(self) -> float | None:
        """The pruned network's excess loss, as a share of the other's; None: there is no other."""
        return self.pruned / self.other - 1 if self.other else None


class BranchesState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of the branches' state that is not tensors."""

    dense_live: bool
    block: tuple[int, int] | None
    """Outputs and inputs of the blocks of weights that are the units; None: neurons are."""
    sparse: bool
    masks: str | None
    """Kind of the masks that are being learned; None: none are."""
    reference: bool
    dense_steps: float
    sparse_steps: float
    mask_steps: int
    beside_served: RunningLosses
    beside_reference: RunningLosses


class Branches:
    """A dense branch, a sparse one, a reference, and masks, of which some may be absent."""

    def __init__(
        self,
        network: Network,
        config: LearnerConfig,
        tables: EmbeddingTables,
        narrow_ratio: float | None = None,
        prunes_tables: bool = False,
    ):
        """`network`: the dense one. `narrow_ratio`: begin with a narrow network that takes this
        share of the dense multiply-adds, (0, 1], the same share of each layer, and with the dense
        branch dormant. `prunes_tables`: the columns of the tables are masked, too."""
        generator = torch.Generator().manual_seed(config.seed)
        self.dense = Branch(network, network.initial(generator))
        self.dense_live = True
        self.dense_cost = network.cost.total({})
        """Multiply-adds of one prediction with the dense network."""
        self.sparse: Branch | None = None
        self.reference: Branch | None = None
        """The dense branch as it would be without masks; it does not change the tables."""
        self.kept: dict[str, torch.Tensor] = {}
        """By group, the sorted units of the dense network that the sparse one has."""
        self.masks: MaskSet | None = None
        self.prunes_columns = prunes_tables and network.columns is not None
        self._config = config
        self._tables = tables
        self.merit: NetworkMerit | None = None
        """The judge of what the network is worth, where `network_rate` is auto; else None."""
        if config.network_rate == "auto":
            self.merit = NetworkMerit(config.mixture(left_out=1), config.network_worth)
        self._beside_served = RunningLosses()
        self._beside_reference = RunningLosses()
        self._replay = Replay(network, config.replayed_events, config.replays, config.seed)
        self._sparse_rate_ratio = 1.0 if narrow_ratio is None else config.narrow_rate_ratio
        if narrow_ratio is not None:
            self.kept = network.narrow(narrow_ratio, generator)
            narrow = network.cut_to(self.kept)
            self.sparse = Branch(narrow, narrow.initial(generator))
            self.dense_live = False

    @property
    def resting(self) -> bool:
        """True while the network does not learn and corrects nothing, since it does not earn its
        cost."""
        return self.merit is not None and self.merit.resting

    def wake(self) -> None:
        """Let a network that rests learn. It contributes nothing at first."""
        if self.merit is not None and self.resting:
            self.merit.wake()
            self._silence()

    def weigh(self, experts_BE: np.ndarray, logits_B: np.ndarray, outcomes: Outcomes) -> None:
        """After a step: let the network rest, or learn again, by what it was worth for these
        events. See `NetworkMerit.update`. While it is pruned it does not rest."""
        if self.merit is None:
            return
        rested = self.resting
        self.merit.update(experts_BE, logits_B, outcomes, judged=self.masks is None)
        if rested and not self.resting:
            self._silence()

    @property
    def served_branch(self) -> Branch:
        """The branch that is published."""
        return self.sparse or self.dense

    @property
    def network(self) -> Network:
        """The published network: without the units that the masks of a first pruning have
        removed."""
        if self.sparse or not self.masks:
            return self.served_branch.network
        return self.dense.network.cut_to(self.masks.kept())

    def published(self) -> tuple[Network, Mapping[str, torch.Tensor]]:
        """The published network and its parameters."""
        network = self.network
        if self.resting:
            return network, network.silent(self.served_branch.parameters)
        if self.masks is None or network is self.served_branch.network:
            return network, self.served_branch.parameters
        kept = self.masks.kept()
        return network, compact(self.dense.parameters, self.dense.network.units, kept)

    @property
    def comparison(self) -> Comparison:
        """The recent log loss of the network that is being pruned, beside those that it has to
        match."""
        if self.masks is None:
            return Comparison()
        return Comparison(self._beside_served.behind_ratio, self._beside_reference.behind_ratio)

    def learning(self) -> dict[Branch, Masks | None]:
        """The branches that learn, each with its masks; none while the network rests, or where it
        is left out."""
        found: dict[Branch, Masks | None] = {}
        if self.resting or not self._config.network_rate:
            return found
        if self.dense_live:
            found[self.dense] = self.masks.masks() if self.masks else None
        for branch in (self.sparse, self.reference):
            if branch:
                found[branch] = None
        return found

    def rate_ratio(self, branch: Branch) -> float:
        """The factor on the learning rate of `branch`."""
        return self._sparse_rate_ratio if branch is self.sparse else 1.0

    def remember(self, inputs: Replayed) -> None:
        """Before a step: keep its events, where a sparse network learns from them again, now or
        soon."""
        if (self.sparse or self.masks) and not self.resting:
            self._replay.add(inputs)

    def replay(self, events: Sequence[int], rate: float, learned: int) -> float:
        """After a step: let the sparse network learn again from earlier events. Returns the
        multiply-adds of the forward passes. The arguments: see `Replay.learn`."""
        if not self.sparse or self.resting:
            return 0.0
        rate *= self.rate_ratio(self.sparse)
        return self._replay.learn(self.sparse, events, rate, learned)

    def meet_drift(self) -> None:
        """After a drift: learn, and learn again from no event before it."""
        self.wake()
        self._replay.clear()

    def learn_masks(
        self,
        losses: Mapping[Branch, float],
        events: Sequence[int],
        target_ratio: float,
        table_ratio: float,
    ) -> None:
        """After a step, while masks are learned: update them, and the comparison of losses.
        `losses`: mean log loss by branch. `events`: of each micro-batch."""
        if self.masks is None or not losses:
            return
        gradients = self.dense.mask_gradients(events)
        self.masks.update(gradients, target_ratio, table_ratio, self.dense.parameters)
        pruned = losses.get(self.dense, 0.0)
        served = losses.get(self.sparse, 0.0) if self.sparse else 0.0
        self._beside_served.update(pruned, served, min(sum(events) / _SERVED_EVENTS, 1.0))
        unmasked = losses.get(self.reference, 0.0) if self.reference else 0.0
        self._beside_reference.update(pruned, unmasked, min(sum(events) / _REFERENCE_EVENTS, 1.0))

    def prune(self, kind: MaskKind = AUXILIARY, beside_reference: bool = False) -> None:
        """Begin to learn masks on the dense branch. `beside_reference`: a copy of it learns on
        without masks until the cut."""
        self.wake()
        network = self.dense.network
        columns = network.columns if self.prunes_columns else None
        auxiliary = self._config.auxiliary
        self.masks = MaskSet(kind, network.groups, network.cost, auxiliary, columns, self._tables)
        if beside_reference:
            self.reference = self.dense.copy()
        self._beside_served = RunningLosses()
        self._beside_reference = RunningLosses()

    def cut(self, stays_dense: bool = False) -> None:
        """Cut the surviving units out of the dense branch: they become the sparse branch, and the
        rest lies dormant, unless the dense branch `stays_dense`. Does nothing where no masks are
        learned."""
        if self.masks is None:
            return
        self.kept = self.masks.kept()
        self.sparse = self.dense.narrowed(self.kept)
        self.masks = None
        self.reference = None
        self.dense_live = stays_dense
        if not stays_dense:
            self._tables.clear_columns(self.sparse.network.column_mask_FD)

    def regrow(self) -> None:
        """Make the dense branch live again, unless it is: the sparse branch's units as they are
        now, and every pruned unit with the weights that it was cut with; the values of a column
        begin as zeros. The sparse branch is served on."""
        self.wake()
        self._widen(self.dense.parameters)

    def rewire(self, inputs: Inputs, outcomes: Outcomes, ratio: float, events_learned: int) -> None:
        """Exchange `ratio` of the sparse branch's units, 0..1, for fresh ones, whose outgoing
        weights are zero. The gradients of a batch say which: its `inputs` and outcomes."""
        self.wake()
        groups = self.dense.network.groups
        live = self.dense_live
        self._widen(self._fresh(events_learned))
        embedding_RD = self._tables.weight_RD.numpy()
        corrections_B = self.dense.passes.forward(
            embedding_RD, inputs.embedded, inputs.numerics_BM, inputs.contributions_BS
        )
        labels_B, weights_B, offsets_B = map(torch.from_numpy, outcomes.arrays)
        logits_B = inputs.linear_BK[:, 0] + corrections_B + offsets_B
        self.dense.passes.backward(weights_B * (logits_B.sigmoid() - labels_B))
        weights, gradients = self.dense.parameters, self.dense.gradients
        self.kept = {
            group.name: exchange(group, self.kept[group.name], weights, gradients, ratio)
            for group in groups
        }
        self.sparse = self.dense.narrowed(self.kept)
        self.dense_live = live

    def sparsity_by_layer(self) -> dict[str, float]:
        """By group, the share of units that the published network lacks, 0..1."""
        network = self.dense.network
        alive = self.network.alive()
        groups = network.units if self.prunes_columns else network.groups
        return {group.name: 1 - alive[group.name] / group.size for group in groups}

    def state(self) -> tuple[BranchesState, dict[str, torch.Tensor]]:
        """Everything that later steps depend on, for a snapshot."""
        tensors = {f"kept.{name}": index for name, index in self.kept.items()}
        for place, branch in self._places().items():
            if branch:
                tensors |= {f"{place}.{name}": tensor for name, tensor in branch.state().items()}
        if self.masks:
            tensors |= {f"masks.{name}": tensor for name, tensor in self.masks.state().items()}
        if self.merit:
            tensors |= {f"merit.{name}": tensor for name, tensor in self.merit.state().items()}
        tensors |= {f"replay.{name}": tensor for name, tensor in self._replay.state().items()}
        state = BranchesState(
            dense_live=self.dense_live,
            block=self.dense.network.shape.block,
            sparse=self.sparse is not None,
            masks=self.masks.kind.name if self.masks else None,
            reference=self.reference is not None,
            dense_steps=self.dense.steps,
            sparse_steps=self.sparse.steps if self.sparse else 0.0,
            mask_steps=self.masks.steps if self.masks else 0,
            beside_served=self._beside_served,
            beside_reference=self._beside_reference,
        )
        return state, tensors

    def restore(self, state: BranchesState, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `state` was taken, with the same dense network."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        network = self.dense.network
        self.kept = part("kept.")
        self.dense = Branch.restored(network, part("dense."), state.dense_steps)
        self.dense_live = state.dense_live
        self.sparse = self.reference = self.masks = None
        if state.sparse:
            narrow = network.cut_to(self.kept)
            self.sparse = Branch.restored(narrow, part("sparse."), state.sparse_steps)
        if self.merit:
            self.merit.restore(part("merit."))
        self._replay.restore(part("replay."))
        if state.masks:
            self.prune(mask_kind(state.masks))
        if self.masks:
            self.masks.restore(part("masks."), state.mask_steps)
        if state.reference:  # it has taken as many steps as the dense branch
            self.reference = Branch.restored(network, part("reference."), state.dense_steps)
        self._beside_served = msgspec.structs.replace(state.beside_served)
        self._beside_reference = msgspec.structs.replace(state.beside_reference)

    def _places(self) -> dict[str, Branch | None]:
        return {"dense": self.dense, "sparse": self.sparse, "reference": self.reference}

    def _silence(self) -> None:
        for branch in (self.dense, self.sparse):
            if branch:
                branch.silence()

    def _widen(self, regrown: Mapping[str, torch.Tensor]) -> None:
        """Make the dense branch live. `regrown`: the dense network's parameters, of which pruned
        units get theirs."""
        if self.sparse and not self.dense_live:
            self.dense = self.sparse.widened(self.dense.network, self.kept, regrown)
            self.dense_live = True

    def _fresh(self, events_learned: int) -> dict[str, torch.Tensor]:
        """New parameters of the dense network, in which the outgoing weights of pruned units are
        zero."""
        # Seeded by the place in the stream: after a restart the numbers are the very same.
        generator = torch.Generator().manual_seed(self._config.seed * 2**32 + events_learned)
        fresh = self.dense.network.initial(generator)
        # Columns are left out: their values are zero already.
        zero_outgoing(fresh, self.dense.network.groups, self.kept)
        return fresh
