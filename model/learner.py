"""The streaming learner: predict, then learn, one batch after another.

In: `HashedEvents` and labels of consecutive batches. Out: the logits that the served mixture had
before it learned them, and on request the tensors that a scorer needs (`export`). It is given moves
(prune, cut, regrow, rewire: see `model.branches`), and decides none. The linear expert, the
embedding tables and the mixture are shared by all branches.
"""

import itertools
import math
from collections.abc import Mapping
from functools import partial

import msgspec
import numpy as np
import torch

from niwaki.model.branches import Branches, BranchesState
from niwaki.model.config import LearnerConfig
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.embeddings import EmbeddingTables
from niwaki.model.deep.inference import DeepInference
from niwaki.model.errors import LearnError
from niwaki.model.experts import (
    Inputs,
    assemble,
    columns_of_experts,
    deep_logits,
    further_experts,
    restore_experts,
    tensors_of_experts,
    write_contributions,
)
from niwaki.model.features.encoder import Features, HashedEvents
from niwaki.model.features.memory.memory import Memory
from niwaki.model.features.numerics import Numerics
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema
from niwaki.model.linear.evidence_check import Discount, EvidenceCheck, EvidenceCheckState
from niwaki.model.linear.expert import BayesianLinear
from niwaki.model.linear.pairs import PairChoice
from niwaki.model.linear.slots import Slots
from niwaki.model.mixture.mixture import mix
from niwaki.model.published import tensors as names
from niwaki.model.published.checkpoint import ModelDescription
from niwaki.model.published.tensors import Export
from niwaki.model.rows import DirtyRows, gather
from niwaki.model.step import (
    PARALLEL_EVENTS,
    Lap,
    Learned,
    MicroBatches,
    ModelView,
    ParallelCall,
    Refused,
    bounds_of_steps,
    no_lap,
    run_in_turn,
)

_RATE_EVENTS = 128


class LearnerState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of a learner's state that is not tensors."""

    branches: BranchesState
    learned_multiply_adds: float
    evidence_check: EvidenceCheckState
    discount: Discount
    events: int


class Learner:
    """The linear expert, the further experts, the embedding tables, the branches of the deep
    expert, and the mixture of all."""

    def __init__(
        self,
        schema: Schema,
        config: LearnerConfig,
        narrow_ratio: float | None = None,
        prunes_tables: bool = False,
        block: tuple[int, int] | None = None,
        *,
        lap: Lap = no_lap,
        run_parallel: ParallelCall = run_in_turn,
    ):
        """`narrow_ratio`, `prunes_tables`: see `Branches`. `block`: outputs and inputs of the
        blocks of weights that are the units, tables excepted; None: neurons are.

        `lap`: called when a stage of `learn` ends, for a stopwatch. `run_parallel`: calls the two
        halves of a step; it makes no difference to what is learned.
        """
        self.schema = schema
        self.config = config
        self.encoder = config.encoder(schema)
        self.slots = Slots(schema, self.encoder, config.pair_budget)
        self.pairs = PairChoice(self.slots.candidates, config.pair_trial_events)
        self.memory = Memory(schema, self.encoder)
        self.linear = BayesianLinear(
            self.slots.rows,
            self.slots.group_S,
            self.slots.variance_G,
            config.half_lives_events,
            config.shrinkage_rate,
        )
        if config.prior_rate:
            self.linear.expect(self.slots.rows - 1, self.slots.single - 1, config.prior_logit)
        self.further = further_experts(schema)
        self.tables = EmbeddingTables(
            schema.owners, config.table_rows, config.embedding_dim, config.embedding_rate
        )
        self.numerics = Numerics(
            len(schema.numerics), config.numeric_horizon_events, codes=config.numeric_codes
        )
        network = config.network(schema, len(self.slots), block)
        self.branches = Branches(network, config, self.tables, narrow_ratio, prunes_tables)
        self.mixture = config.mixture()
        """Mixes the experts as they are now, without the delay of a publication."""
        self.learned_multiply_adds = 0.0
        """Of all forward passes learned from so far; a backward pass costs about twice that."""
        self.events = 0
        """Events learned."""
        self._scales = len(config.half_lives_events)
        self._lap = lap
        self._run_parallel = run_parallel
        self._dirty_rows: list[DirtyRows] = []
        self._evidence_check = EvidenceCheck()
        self._discount = Discount()

    def track_dirty_rows(self) -> DirtyRows:
        """A log of every row learned from now on, for one reader."""
        learns_embeddings = self.config.network_rate and self.config.embedding_dim
        rows = len(self.tables.weight_RD) if learns_embeddings else 0
        owners = self.schema.owners if self.slots.shares else None
        self._dirty_rows.append(DirtyRows(self.events, rows, self.memory.shapes, owners))
        return self._dirty_rows[-1]

    def predict(self, hashed: HashedEvents, weights: np.ndarray | None = None) -> np.ndarray:
        """(B,) float32 logits of the served branch's mixture; nothing is learned. `weights`: of
        another mixture than the learner's own."""
        with torch.no_grad():
            features = self.memory.complete(hashed)
            inputs = self._assemble(features)
            network, parameters = self.branches.published()
            vectors_BFD = self.tables.vectors(inputs.embedded, network.column_mask_FD)
            deep = DeepInference(network, parameters)
            experts_BE = np.empty(
                (len(features.rows_BF), columns_of_experts(self._scales)), np.float32
            )
            experts_BE[:, : self._scales] = inputs.linear_BK
            write_contributions(self.further, features, self._scales, experts_BE)
            experts_BE[:, -1] = deep_logits(deep, inputs, vectors_BFD)
            return mix(self.mixture.weights if weights is None else weights, experts_BE)

    def learn(
        self,
        hashed: HashedEvents,
        outcomes: Outcomes,
        target_ratio: float = 1.0,
        table_ratio: float = 1.0,
        *,
        refused: list[Refused] | None = None,
    ) -> Learned:
        """Learn one batch; returns the predictions for it. `target_ratio`, `table_ratio`: for the
        masks, while pruning, (0, 1]. A long batch takes several steps: see `bounds_of_steps`.

        Where the loss or a gradient of a step is not finite, the step changes nothing but histories
        and rates. Raises `LearnError` then; or, with `refused`, adds its events to that list, and
        returns the predictions for the others.
        """
        parts: list[Learned] = []
        for span in itertools.pairwise(bounds_of_steps(self.events, len(outcomes.labels_B))):
            whole = span == (0, len(outcomes.labels_B))
            some = (hashed, outcomes) if whole else (hashed.part(*span), outcomes.part(*span))
            try:
                parts.append(self._step(*some, target_ratio, table_ratio))
            except LearnError as error:
                if refused is None:
                    raise
                refused.append(Refused(*span, str(error)))
        if len(parts) == 1:
            return parts[0]
        return Learned.joined(parts, columns_of_experts(self._scales))

    def check_evidence(
        self, within_events: int, evidence_ratio: float, gradients_ratio: float
    ) -> None:
        """After a drift: if what was learned before turns out to mislead within so many events,
        keep only these shares, (0, 1], of the linear expert's evidence and of the tables'
        accumulated squared gradients."""
        self._discount = Discount(evidence_ratio=evidence_ratio, gradients_ratio=gradients_ratio)
        self._evidence_check.begin(within_events)
        self.pairs.hurry()
        self.branches.meet_drift()

    def rewire(self, hashed: HashedEvents, outcomes: Outcomes, ratio: float) -> None:
        """Exchange `ratio` of the sparse branch's units, 0..1, by the gradients of a batch: see
        `Branches.rewire`."""
        features = self.memory.complete(hashed)
        self.branches.rewire(self._assemble(features), outcomes, ratio, self.events)

    def export(self, weights: np.ndarray, rows: Mapping[str, torch.Tensor] | None = None) -> Export:
        """The tensors with which a scorer predicts as the served branch does now, mixed with
        `weights`. `rows`: only these rows of each table, ascending (a delta); None: all that
        have been touched."""
        touched = {names.EMBEDDING: self.tables.touched, names.LINEAR: self.linear.touched}
        rows = rows or {table: find() for table, find in touched.items()}
        scale = self.numerics.scale()
        network, parameters = self.branches.published()
        embedding_rows_U, linear_rows_U = rows[names.EMBEDDING], rows[names.LINEAR]
        tensors = self.memory.export(rows) | {
            names.rows_of(names.EMBEDDING): embedding_rows_U,
            names.values_of(names.EMBEDDING): self.tables.rows(
                embedding_rows_U, network.column_mask_FD
            ),
            names.rows_of(names.LINEAR): linear_rows_U,
            names.values_of(names.LINEAR): gather(self.linear.evidence_R2K, linear_rows_U),
            names.LINEAR_PRIOR: self.linear.prior_SK(),
            names.LIVING_PAIRS: torch.from_numpy(self.slots.living),
            names.MOMENTS: scale.moments_2N,
            names.KNOTS: scale.knots_NQ,
            names.MIXTURE: torch.from_numpy(weights.copy()),
        }
        tensors |= tensors_of_experts(self.further) | names.network_tensors(network, parameters)
        return Export(network.shape, tensors)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one prediction with the published network."""
        return self.branches.network.cost.total({})

    @property
    def table_ratio(self) -> float:
        """Share of the bytes of all rows of the embedding tables that is published, 0..1."""
        return self.tables.alive_ratio(self.branches.network.shape.alive_FD().float())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the touched rows and of the dense network as float32."""
        floats = sum(tensor.numel() for tensor in self.branches.dense.parameters.values())
        floats += self.tables.touched_rows * self.config.embedding_dim
        floats += self.linear.touched_rows * self.linear.evidence_R2K[0].numel()
        return 4 * int(floats)

    def description(self) -> ModelDescription:
        """The model as the header of a checkpoint describes it."""
        return ModelDescription(
            self.schema,
            self.config.table_rows,
            *self.config.pair_budget,
            half_lives_events=self.config.half_lives_events,
            hash_seed=self.config.hash_seed,
            dense_shape=self.branches.dense.network.shape,
            multiply_adds=self.multiply_adds,
            dense_multiply_adds=self.branches.dense_cost,
            sparsity_by_layer=self.branches.sparsity_by_layer(),
            events=self.events,
            dense_bytes=self.dense_bytes,
        )

    def state(self) -> tuple[LearnerState, dict[str, torch.Tensor]]:
        """Everything that learning depends on, for a snapshot."""
        branches, tensors = self.branches.state()
        mixture = {name: torch.from_numpy(array) for name, array in self.mixture.state().items()}
        for prefix, part in (
            ("embedding", self.tables.state()),
            ("linear", self.linear.state()),
            ("numerics", self.numerics.state()),
            ("mixture", mixture),
            ("pairs", self.pairs.state()),
        ):
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in part.items()}
        tensors |= self.memory.export({}) | tensors_of_experts(self.further)
        state = LearnerState(
            branches=branches,
            learned_multiply_adds=self.learned_multiply_adds,
            evidence_check=self._evidence_check.state,
            discount=self._discount,
            events=self.events,
        )
        return state, tensors

    def restore(self, state: LearnerState, tensors: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state` was taken. The schema and the config must be the same."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.tables.restore(part("embedding."))
        self.linear.restore(part("linear."), state.events)
        self.pairs.restore(part("pairs."))
        self.slots = self.slots.with_living(self.pairs.living)
        self.numerics.restore(part("numerics."))
        self.mixture.restore({name: t.numpy() for name, t in part("mixture.").items()})
        self.memory.restore(tensors)
        restore_experts(self.further, tensors)
        self.branches.restore(state.branches, tensors)
        self.events, self.learned_multiply_adds = state.events, state.learned_multiply_adds
        self._evidence_check.state = state.evidence_check
        self._discount = state.discount

    def _step(
        self, hashed: HashedEvents, outcomes: Outcomes, target_ratio: float, table_ratio: float
    ) -> Learned:
        """Compute, then learn, the events of one step."""
        features, changed = self.memory.learn(hashed, outcomes)
        branches = self.branches
        batches = MicroBatches(features, outcomes, self.slots, columns_of_experts(self._scales))
        scale = self.numerics.scale()
        view = ModelView(
            evidence_R2K=self.linear.evidence_R2K.numpy(),
            prior_SK=self.linear.prior_SK().numpy(),
            scale=(scale.moments_2N.numpy(), scale.knots_NQ.numpy()),
            embedding_RD=self.tables.weight_RD.numpy(),
            masks_by_branch=branches.learning(),
            served_branch=branches.served_branch,
            reference=branches.reference,
        )
        experts_BE = batches.found.experts_BE
        write_contributions(self.further, features, self._scales, experts_BE)
        compute = partial(batches.compute, view=view, lap=self._lap)
        if batches.events[1]:
            self._run_parallel(partial(compute, 0), partial(compute, 1))
        else:
            compute(0)
        losses, events = batches.losses, len(outcomes.labels_B)
        if part := batches.not_finite(view):
            for table, rows_X in changed.items():
                self._mark_dirty(table, rows_X)
            last = self.events + events
            raise LearnError(f"the {part} of events {self.events} to {last} is not finite")
        logits_B = mix(self.mixture.weights, experts_BE)
        misled = self._evidence_check.confirmed(experts_BE[:, : self._scales], outcomes)
        run_parallel = self._run_parallel if events >= PARALLEL_EVENTS else run_in_turn
        run_parallel(
            lambda: self._learn_deep(list(view.masks_by_branch), batches, misled),
            lambda: self._learn_wide(batches, misled),
        )
        by_branch = dict(zip(view.masks_by_branch, losses.tolist(), strict=False))
        branches.learn_masks(by_branch, batches.events, target_ratio, table_ratio)
        for expert in self.further:
            expert.learn(features, outcomes)
        for table, rows_X in (changed | self.memory.see(features)).items():
            self._mark_dirty(table, rows_X)
        self._choose_pairs(batches)
        branches.weigh(experts_BE, logits_B, outcomes)
        self.events += events
        return Learned(logits_B, experts_BE, by_branch.get(view.served_branch, float(losses[0])))

    def _learn_deep(self, learning: list[Branch], batches: MicroBatches, misled: bool) -> None:
        """One step of the networks and the embedding tables, and of all that is small."""
        events = sum(batches.events)
        rate = self.config.first_network_rate * math.sqrt(events / _RATE_EVENTS)
        self.branches.remember(batches.replayed(self.tables.weight_RD.numpy()))
        for branch in learning:
            branch.step(rate * self.branches.rate_ratio(branch), batches.events)
            self.learned_multiply_adds += events * branch.multiply_adds
        self._lap("learn_network")
        if misled:
            self.tables.decay_accumulators(self._discount.gradients_ratio)
        if learning and self.tables.weight_RD.numel():
            self.tables.update(*batches.gradients)
        self._lap("learn_embeddings")
        self.learned_multiply_adds += self.branches.replay(batches.events, rate, self.events)
        self._lap("learn_network")
        self.numerics.update(batches.features.numerics_BN)
        self.mixture.update(batches.found.experts_BE, batches.outcomes)
        self._lap("learn_rest")

    def _learn_wide(self, batches: MicroBatches, misled: bool) -> None:
        """One step of the linear expert. It touches nothing that `_learn_deep` does."""
        inputs = batches.found.rows_BS, batches.found.values_BS, batches.lists
        rows = self.linear.learn(*inputs, batches.outcomes)
        ratio = self._discount.evidence_ratio
        self._mark_dirty("linear", *((self.linear.discount_evidence(ratio),) if misled else rows))
        self._lap("learn_linear")

    def _choose_pairs(self, batches: MicroBatches) -> None:
        """Count what pairs were worth for these events; other ones may live from now on."""
        found, columns = batches.found, self.slots.pair_columns
        logits_B, outcomes = found.experts_BE[:, 0], batches.outcomes.arrays
        exchanged = self.pairs.update(found.contributions_BS, columns, logits_B, outcomes)
        if len(exchanged):
            self.slots = self.slots.with_living(self.pairs.living)
            self.linear.begin_slots(columns[exchanged])

    def _mark_dirty(self, table: str, *rows: torch.Tensor) -> None:
        for log in self._dirty_rows:
            log.mark_dirty(table, *rows)

    def _assemble(self, features: Features) -> Inputs:
        linear = self.linear.evidence_R2K, self.linear.prior_SK()
        return assemble(self.slots, features, self.numerics.scale(), *linear)
