"""The streaming learner: predict, score, then learn, with a dense and a sparse branch over the same
embedding tables.

In: `Features` and labels of one batch after another. Out: the logits that the leading mixture had
before it learned them, and on request what a scorer needs (`export`). It is told when to prune, cut
and regrow; it never decides. The sparse branch leads from the first cut on: it learns at all times,
and is what is published. The dense branch learns beside it only from a regrowth to the next cut; in
between its weights lie dormant. Both send their gradients into the tables. The linear expert beside
them is small, and never pruned.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import EmbeddingTables
from niwaki.model.deep.inference import DeepInference
from niwaki.model.deep.network import Network
from niwaki.model.errors import LearnError
from niwaki.model.experts import Inputs, assemble, deep_logits
from niwaki.model.features.ages import Ages
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.numerics import Numerics
from niwaki.model.features.schema import Schema
from niwaki.model.learner_state import LearnerState, named
from niwaki.model.linear.evidence_check import EvidenceCheck
from niwaki.model.linear.expert import BayesianLinear
from niwaki.model.linear.slots import Slots
from niwaki.model.mixture import mix
from niwaki.model.rows import DirtyRows, Export, gather
from niwaki.model.step import MicroBatches, ParallelCall, run_in_turn
from niwaki.pruning.compaction import compact, zero_outgoing
from niwaki.pruning.masks import AUXILIARY, MaskKind, MaskSet
from niwaki.pruning.policies import mask_kind
from niwaki.pruning.policy import Comparison
from niwaki.pruning.scores import exchange

_RATE_EVENTS = 128
_STEP_EVENTS = 256
_COMPARED_EVENTS = np.repeat([5_000.0, 2_000.0], 2)

__all__ = ["Export", "Learner", "LearnerConfig", "LearnerState"]


class Learner:
    """The linear expert, the embedding tables, a dense branch, a sparse one, and the masks that
    lead from one to the other."""

    def __init__(
        self,
        schema: Schema,
        config: LearnerConfig,
        narrow_ratio: float | None = None,
        prunes_tables: bool = False,
        block: tuple[int, int] | None = None,
    ):
        """`narrow_ratio`: begin with a narrow network that takes this share of the dense
        multiply-adds, (0, 1], the same share of each layer, and the dense branch dormant.
        `prunes_tables`: columns of tables are masked, too. `block`: outputs and inputs of the
        blocks of weights that are the units, tables excepted; None: neurons are."""
        self.schema, self.config = schema, config
        self.encoder = config.encoder(schema)
        self.slots, self.ages = Slots(schema, self.encoder), Ages(schema, config.table_rows)
        self.linear = BayesianLinear(
            self.slots.rows,
            self.slots.group_S,
            self.slots.variance_G,
            config.half_lives_events,
            config.shrinkage_rate,
        )
        self.tables = EmbeddingTables(
            len(schema.fields), config.table_rows, config.embedding_dim, config.embedding_rate
        )
        self.numerics = Numerics(
            len(schema.numerics), config.numeric_horizon_events, codes=config.numeric_codes
        )
        network = config.network(schema, len(self.slots), block)
        generator = torch.Generator().manual_seed(config.seed)
        self.dense = Branch(network, network.initial(generator))
        self.dense_live = True
        self.sparse: Branch | None = None
        self.kept: dict[str, torch.Tensor] = {}
        self.masks: MaskSet | None = None
        self.unpruned: Branch | None = None
        """What the dense branch would be without its masks: a yardstick that leaves the tables
        alone."""
        self.mixture = config.mixture()
        """Mixes the experts of the lead as it is now, without any delay."""
        self._prunes_columns = prunes_tables and network.columns is not None
        self.dense_cost = network.cost.total({})
        self.learned_multiply_adds = 0.0
        """Multiply-adds of all forward passes learned from so far; a backward pass is about twice
        that in any network."""
        self.experts_BE = np.empty((0, len(config.half_lives_events) + 1), np.float32)
        """Logits that the experts of the lead had of the batch learned last, before it was
        learned."""
        self.events = 0
        self.lap: Callable[[str], object] = str  # which does nothing, and can be pickled
        """Told of each part of `learn` when it is over, by whichever thread it was, for a
        stopwatch."""
        self.together: ParallelCall = run_in_turn
        """Calls two functions, which may run at the same time; it makes no difference to what is
        learned."""
        self._losses = np.zeros(
            4
        )  # of the network that is being pruned and of the lead; of the former and `unpruned`
        if narrow_ratio is not None:
            self.kept = network.narrow(narrow_ratio, generator)
            narrow = network.cut_to(self.kept)
            self.sparse, self.dense_live = Branch(narrow, narrow.initial(generator)), False
        self._followers: list[DirtyRows] = []
        self._doubt, self._left = EvidenceCheck(), (1.0, 1.0)

    @property
    def lead(self) -> Branch:
        """The branch that is published."""
        return self.sparse or self.dense

    @property
    def comparison(self) -> Comparison:
        """How the network that is being pruned has predicted lately, beside those that it has to
        match."""
        pairs = self._losses.reshape(2, 2).tolist()
        return Comparison(
            *(pruned / other - 1 if self.masks and other else None for pruned, other in pairs)
        )

    def follow(self) -> DirtyRows:
        """A log of every row learned from now on, for one reader."""
        learned = (
            len(self.tables.weight_RD)
            if self.config.network_rate and self.config.embedding_dim
            else 0
        )
        self._followers.append(DirtyRows(self.events, learned, self.ages.sizes))
        return self._followers[-1]

    def learn(
        self,
        hashed: HashedEvents,
        labels_B: np.ndarray,
        target_ratio: float = 1.0,
        table_ratio: float = 1.0,
    ) -> np.ndarray:
        """Learn one batch; returns (B,) float32 logits that the lead had before. `target_ratio`,
        `table_ratio`: for the masks, while pruning. A long batch takes several steps: averaged over
        more events, one says less.

        Raises `LearnError` if the loss of a step is not finite; nothing has been changed by it
        then.
        """
        steps = -(-len(labels_B) // _STEP_EVENTS)
        if steps == 1:
            logits_B, self.experts_BE = self._step(hashed, labels_B, target_ratio, table_ratio)
            return logits_B
        bounds = [len(labels_B) * i // steps for i in range(steps + 1)]
        parts = [
            self._step(
                hashed.part(start, stop),
                labels_B[start:stop],
                target_ratio,
                table_ratio,
            )
            for start, stop in itertools.pairwise(bounds)
        ]
        logits, experts = zip(*parts, strict=True)
        self.experts_BE = np.concatenate(experts)
        return np.concatenate(logits)

    def _step(
        self, hashed: HashedEvents, labels_B: np.ndarray, *ratios: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits of the lead (B,) and of the experts (B, E) before the step."""
        events, features = len(labels_B), self.ages.complete(hashed)
        masks = self.masks.masks() if self.masks else None
        live = self._live() if self.config.network_rate else []
        halves = MicroBatches(features, labels_B, self.slots, len(self.config.half_lives_events))
        run = partial(
            halves.run,
            evidence_R2K=self.linear.evidence_R2K,
            prior_SK=self.linear.prior_SK(),
            scale=self.numerics.scale(),
            table_RD=self.tables.weight_RD.numpy(),
            branches={branch: masks if branch is self.dense else None for branch in live},
            lead=self.lead,
            onlooker=self.unpruned,
            lap=self.lap,
        )
        self.together(partial(run, 0), partial(run, 1)) if halves.events[1] else run(0)
        losses, experts_BE = halves.losses, halves.found.experts_BE
        if not np.isfinite(losses).all():
            raise LearnError(
                f"the loss of events {self.events} to {self.events + events} is not finite"
            )
        logits_B = mix(self.mixture.weights, experts_BE)
        misled = self._doubt.confirmed(experts_BE[:, :-1], labels_B)
        self.together(
            lambda: self._learn_deep(live, halves, misled),
            lambda: self._learn_wide(halves, misled),
        )
        if masks and live:
            self.masks.update(
                self.dense.mask_gradients(halves.events), *ratios, self.dense.parameters
            )
            of = dict(zip(live, losses, strict=True))
            latest = [
                of.get(branch, 0.0)
                for branch in (self.dense, self.sparse, self.dense, self.unpruned)
            ]
            self._losses += (np.array(latest) - self._losses) * np.minimum(
                events / _COMPARED_EVENTS, 1.0
            )
        for table, rows_X in self.ages.see(features).items():
            self._mark(table, rows_X)
        self.events += events
        return logits_B, experts_BE

    def _learn_deep(self, live: list[Branch], halves: MicroBatches, misled: bool) -> None:
        """One step of the networks and the embedding tables, and of what is small."""
        events = sum(halves.events)
        for branch in live:
            ratio = self.config.narrow_rate_ratio if branch is self.sparse else 1.0
            branch.step(
                self.config.network_rate * math.sqrt(events / _RATE_EVENTS) * ratio, halves.events
            )
            self.learned_multiply_adds += events * branch.multiply_adds
        self.lap("learn_network")
        if misled:
            self.tables.decay_accumulators(self._left[1])
        if live and self.schema.fields and self.config.embedding_dim:
            self.tables.update(*halves.gradients)
        self.lap("learn_embeddings")
        self.numerics.update(halves.features.numerics_BN)
        self.mixture.update(halves.found.experts_BE, halves.labels_B)
        self.lap("learn_rest")

    def _learn_wide(self, halves: MicroBatches, misled: bool) -> None:
        """One step of the linear expert. It touches nothing that `_learn_deep` does."""
        rows = self.linear.learn(halves.found.rows_BS, halves.found.values_BS, halves.labels_B)
        self._mark("linear", *((self.linear.forget(self._left[0]),) if misled else rows))
        self.lap("learn_linear")

    def _mark(self, table: str, *rows: torch.Tensor) -> None:
        for follower in self._followers:
            follower.mark(table, *rows)

    def predict(self, hashed: HashedEvents, weights: np.ndarray | None = None) -> np.ndarray:
        """(B,) float32 logits of the lead, nothing learned. `weights`: of a mixture other than the
        lead's own."""
        inputs = self._assemble(hashed)
        network, parameters = self._published()
        vectors_BFD = self.tables.vectors(inputs.rows_BF, network.column_mask_FD)
        deep_B = deep_logits(DeepInference(network, parameters), inputs, vectors_BFD)
        experts_BE = torch.cat([inputs.linear_BK, deep_B[:, None]], 1).numpy()
        return mix(self.mixture.weights if weights is None else weights, experts_BE)

    def prune(self, kind: MaskKind = AUXILIARY, beside_unpruned: bool = False) -> None:
        """Begin to learn masks on the dense branch. `beside_unpruned`: a copy of it learns on without them until the cut."""
        network = self.dense.network
        columns = network.columns if self._prunes_columns else None
        self.masks = MaskSet(
            kind, network.groups, network.cost, self.config.auxiliary, columns, self.tables
        )
        if beside_unpruned:
            self.unpruned = self.dense.copy()
        self._losses[:] = 0

    def cut(self, stays_dense: bool = False) -> None:
        """Cut the surviving units out of the dense branch: they become the sparse one, and the rest
        lies dormant, unless the dense branch `stays_dense`."""
        self.kept = self.masks.kept()
        self.sparse = self.dense.narrowed(self.kept)
        self.masks, self.unpruned, self.dense_live = None, None, stays_dense
        if not stays_dense:
            self.tables.clear_columns(self.sparse.network.column_mask_FD)

    def regrow(self) -> None:
        """Make the dense branch live again: what the sparse branch has, and every pruned unit as it
        lay dormant, with the weights that it was cut with; the values of a column begin as zeros.
        What is served is as before: the sparse branch."""
        self._widen(self.dense.parameters)

    def _widen(self, regrown: Mapping[str, torch.Tensor]) -> None:
        """`regrown`: the dense network's parameters as pruned units come back to them."""
        if self.sparse and not self.dense_live:
            self.dense, self.dense_live = (
                self.sparse.widened(self.dense.network, self.kept, regrown),
                True,
            )

    def _fresh(self) -> dict[str, torch.Tensor]:
        """The dense network's parameters, new, where pruned units have no say: their outgoing
        weights are zero."""
        # Seeded by the place in the stream: after a restart they are the very same.
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + self.events)
        fresh = self.dense.network.initial(generator)
        zero_outgoing(
            fresh, self.dense.network.groups, self.kept
        )  # not columns, whose values are zero already
        return fresh

    def doubt_past(self, within_events: int, evidence_ratio: float, gradients_ratio: float) -> None:
        """A drift was noticed: if what was learned before turns out to mislead within so many
        events, keep only these shares, (0, 1], of the linear expert's evidence and of what the
        embedding tables remember of past gradients."""
        self._left = evidence_ratio, gradients_ratio
        self._doubt.begin(within_events)

    def rewire(self, hashed: HashedEvents, labels_B: np.ndarray, ratio: float) -> None:
        """Exchange `ratio` of the sparse branch's units for fresh ones, which begin without a say:
        their outgoing weights are zero."""
        groups, live = self.dense.network.groups, self.dense_live
        self._widen(self._fresh())
        inputs, embeddings = (
            self._assemble(hashed),
            (self.tables.weight_RD.numpy(), hashed.rows_BF.numpy()),
        )
        deep_B = inputs.linear_BK[:, 0] + self.dense.passes.forward(
            *embeddings, inputs.numerics_BM, inputs.said_BS
        )
        self.dense.passes.backward(deep_B.sigmoid() - torch.from_numpy(labels_B))
        weights, gradients = self.dense.parameters, self.dense.gradients
        self.kept = {
            g.name: exchange(g, self.kept[g.name], weights, gradients, ratio) for g in groups
        }
        self.sparse, self.dense_live = self.dense.narrowed(self.kept), live

    def export(self, weights: np.ndarray, rows: dict[str, torch.Tensor] | None = None) -> Export:
        """What a scorer needs to predict as the lead does now, mixed with `weights`.

        `rows`: only these rows of each table (a delta), in any order; None: all that have been
        touched.
        """
        rows = rows or {"embedding": self.tables.touched(), "linear": self.linear.touched()}
        scale = self.numerics.scale()
        network, parameters = self._published()
        tensors = self.ages.export(rows) | {
            "embedding.rows": rows["embedding"],
            "embedding.values": self.tables.rows(rows["embedding"], network.column_mask_FD),
            "linear.rows": rows["linear"],
            "linear.values": gather(self.linear.evidence_R2K, rows["linear"]),
            "linear.prior": self.linear.prior_SK(),
            "numerics.moments": scale.moments_2N,
            "numerics.knots": scale.knots_NQ,
            "mixture": torch.from_numpy(weights.copy()),
        }
        return Export(network.shape, tensors | network.named(parameters))

    def sparsity_by_layer(self) -> dict[str, float]:
        """Share of units that the published network lacks, by group."""
        groups = self.dense.network.units if self._prunes_columns else self.dense.network.groups
        alive = self.network.alive()
        return {group.name: 1 - alive[group.name] / group.size for group in groups}

    @property
    def network(self) -> Network:
        """The published network: without what the masks of a first pruning have removed."""
        lead = self.sparse or not self.masks
        return self.lead.network if lead else self.dense.network.cut_to(self.masks.kept())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one prediction with the published network."""
        return self.network.cost.total({})

    @property
    def table_ratio(self) -> float:
        """Share of the bytes of all rows of the embedding tables that is published."""
        rows_F, alive_FD = self.tables.touched_F, self.network.shape.alive_FD().numpy()
        return float(rows_F @ alive_FD.sum(1)) / max(int(rows_F.sum()) * alive_FD.shape[1], 1)

    @property
    def dense_bytes(self) -> int:
        """What touched rows and the dense network take as float32, bytes."""
        floats = sum(tensor.numel() for tensor in self.dense.parameters.values())
        floats += self.tables.touched_rows * self.tables.weight_RD.shape[1]
        return 4 * (floats + self.linear.touched_rows * self.linear.evidence_R2K[0].numel())

    def state(self) -> tuple[LearnerState, dict[str, torch.Tensor]]:
        """Everything that learning depends on, for a snapshot."""
        tensors = {f"embedding.{name}": tensor for name, tensor in self.tables.state().items()}
        tensors |= {f"linear.{name}": tensor for name, tensor in self.linear.state().items()}
        tensors |= {f"numerics.{name}": tensor for name, tensor in self.numerics.state().items()}
        tensors |= {
            f"mixture.{name}": torch.from_numpy(array)
            for name, array in self.mixture.state().items()
        }
        for place, branch in (
            ("dense", self.dense),
            ("sparse", self.sparse),
            ("unpruned", self.unpruned),
        ):
            if branch:
                tensors |= {f"{place}.{name}": tensor for name, tensor in branch.state().items()}
        tensors |= {f"kept.{name}": index for name, index in self.kept.items()} | self.ages.export(
            {}
        )
        if self.masks:
            tensors |= {f"masks.{name}": tensor for name, tensor in self.masks.state().items()}
        state = LearnerState(
            dense_live=self.dense_live,
            block=self.dense.network.shape.block,
            sparse=self.sparse is not None,
            masks=self.masks.kind.name if self.masks else None,
            unpruned=self.unpruned is not None,
            losses=tuple(self._losses.tolist()),
            dense_steps=self.dense.steps,
            sparse_steps=self.sparse.steps if self.sparse else 0.0,
            mask_steps=self.masks.steps if self.masks else 0,
            learned_multiply_adds=self.learned_multiply_adds,
            doubt=tuple(self._doubt.counts.tolist()),
            left=self._left,
            events=self.events,
        )
        return state, tensors

    def restore(self, state: LearnerState, tensors: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state` was taken. The schema and the config must be the same."""
        self.tables.restore(named(tensors, "embedding."))
        self.linear.restore(named(tensors, "linear."), state.events)
        self.numerics.restore(named(tensors, "numerics."))
        self.mixture.restore(
            {name: tensor.numpy() for name, tensor in named(tensors, "mixture.").items()}
        )
        self.kept = named(tensors, "kept.")
        self.ages.restore(tensors)
        network = self.dense.network

        def branch(name: str, network: Network, steps: float) -> Branch:
            return Branch.restored(network, named(tensors, f"{name}."), steps)

        self.dense = branch("dense", network, state.dense_steps)
        if state.sparse:
            self.sparse = branch("sparse", network.cut_to(self.kept), state.sparse_steps)
        if state.masks:
            self.prune(mask_kind(state.masks))
            self.masks.restore(named(tensors, "masks."), state.mask_steps)
        if state.unpruned:
            self.unpruned = branch(
                "unpruned", network, state.dense_steps
            )  # as many steps as the dense one
        self._losses[:] = state.losses
        self.events, self.dense_live = state.events, state.dense_live
        self.learned_multiply_adds = state.learned_multiply_adds
        self._doubt.counts[:], self._left = state.doubt, state.left

    def _assemble(self, hashed: HashedEvents) -> Inputs:
        features, linear = self.ages.complete(hashed), self.linear
        return assemble(
            self.slots, features, self.numerics.scale(), linear.evidence_R2K, linear.prior_SK()
        )

    def _live(self) -> list[Branch]:
        return [
            branch
            for branch in (self.dense if self.dense_live else None, self.sparse, self.unpruned)
            if branch
        ]

    def _published(self) -> tuple[Network, dict[str, torch.Tensor]]:
        """The published network and its weights."""
        if (network := self.network) is self.lead.network:
            return network, self.lead.parameters
        return network, compact(self.dense.parameters, self.dense.network.units, self.masks.kept())
