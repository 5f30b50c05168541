"""The streaming learner: predict, score, then learn, with a dense and a sparse branch over the same embedding tables.

In: `Features` and labels of one batch after another. Out: the logits that the leading mixture had before it learned
them, and on request what a scorer needs (`export`). It is told when to prune, cut and regrow; it never decides. The
sparse branch leads from the first cut on: it learns at all times, and is what is published. The dense branch learns
beside it only from a regrowth to the next cut; in between its weights lie dormant. Both send their gradients into the
tables. The linear expert beside them is small, and never pruned.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import torch
import torch.nn.functional as fn

from model.branch import Branch
from model.checkpoint import row_numbers
from model.embeddings import EmbeddingTables
from model.experts import Inputs, Slots, assemble, deep_logits
from model.exports import Changes, Export
from model.features import Encoder, Features, Schema
from model.linear import BayesianLinear
from model.mixture import Mixture, mix
from model.network import Network, NetworkShape
from model.numerics import Numerics
from pruning.auxiliary import AuxiliaryConfig, AuxiliaryMasks
from pruning.compaction import compact, expand

_RATE_EVENTS = 128
_PARTS = ("weight", "first", "second")
_NOT_NEGATIVE = (
    "embedding_dim pair_rows max_pairs network_rate shrinkage_rate mixture_half_life_events debt_rate".split()
)


class LearnError(ArithmeticError):
    """Learning has gone wrong beyond repair, such as a loss that is not finite. Go back to the last snapshot."""


class LearnerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model and how it learns (the `[model]` section)."""

    embedding_dim: int = 16
    """Width of an embedding, >= 0; 0: none, the network reads numerics and what the linear expert says."""
    bottom: tuple[int, ...] = (64,)
    """Hidden widths of the bottom MLP, which makes one more vector of the numerics; empty: there is none."""
    top: tuple[int, ...] = (512, 256)
    """Hidden widths of the top MLP, at least one."""
    interaction: str = "dot"
    """dot: pairwise dot products of all vectors beside the vectors themselves. none: the vectors only."""
    table_rows: int = 262_144
    """Rows of each field's table, >= 2; values are hashed to them."""
    pair_rows: int = 4_194_304
    """Rows of the linear expert's table of pairs of fields; 0: no pairs."""
    max_pairs: int = 66
    """With more pairs of fields than this (66: 12 fields), none are made; name those that matter in
    `schema.crosses`."""
    half_lives_events: tuple[float, ...] = (100_000, 10_000, 1_000)
    """Half-lives of evidence in the linear expert, one for each time scale, events; the deep expert corrects the
    first."""
    shrinkage_rate: float = 0.2
    """How fast the linear expert's prior variances follow the stream, >= 0; 0: they stay as they are set."""
    numeric_codes: bool = True
    """Whether the linear expert reads piecewise-linear codes of numerics beside their standard scores."""
    mixture_half_life_events: float = 50_000
    """Half-life of what the mixture of the experts has learned, events, >= 0; 0: it learns nothing, and the deep
    expert alone predicts."""
    debt_rate: float = 0.002
    """How strongly the mean prediction is held to the click rate, logit for each click too many or too few, >= 0;
    0: not beyond what the mixture does. It falls with the cube of the delay beyond 1,000 events."""
    hash_seed: int = 0
    """Seed of the hash from values to rows."""
    seed: int = 0
    """Seed of the initial weights."""
    embedding_rate: float = 0.05
    """Learning rate of embeddings (row-wise Adagrad), > 0."""
    network_rate: float = 0.001
    """Learning rate of the network (Adam) for batches of 128, >= 0; it grows with the square root of the batch. 0: the
    deep expert is left out."""
    numeric_horizon_events: float = 100_000
    """Events over which the moments of numerics are averaged, >= 1."""
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """How the auxiliary parameters learn while pruning."""

    def __post_init__(self) -> None:
        for name, least in {"table_rows": 2, **dict.fromkeys(_NOT_NEGATIVE, 0)}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"model.{name} must be >= {least}, got {getattr(self, name)}")
        if not self.embedding_rate > 0:
            raise ValueError(f"model.embedding_rate must be > 0, got {self.embedding_rate}")
        if not self.top or min(self.top + self.bottom) < 1:
            raise ValueError(f"model.top needs at least one hidden width, all widths >= 1, got {list(self.top)}")
        if self.interaction not in ("dot", "none"):
            raise ValueError(f"model.interaction must be dot or none, got {self.interaction!r}")
        if not self.half_lives_events or min(self.half_lives_events) <= 0:
            raise ValueError(f"model.half_lives_events must be > 0, at least one, got {list(self.half_lives_events)}")

    def encoder(self, schema: Schema) -> Encoder:
        """Maps events of `schema` to the rows of this model's tables."""
        fields = len(schema.fields)
        pair_rows = self.pair_rows if fields * (fields - 1) // 2 <= self.max_pairs else 0
        return Encoder(schema, rows=self.table_rows, pair_rows=pair_rows, seed=self.hash_seed)

    def mixture(self) -> Mixture:
        """Of the linear expert's time scales and the deep expert."""
        return Mixture.initial(len(self.half_lives_events), self.mixture_half_life_events, self.debt_rate)


class LearnerState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of a learner's state that is not tensors."""

    dense_live: bool
    sparse: bool
    pruning: bool
    dense_steps: float
    sparse_steps: float
    mask_steps: int
    learned_multiply_adds: float
    events: int


class Learner:
    """The linear expert, the embedding tables, a dense branch, a sparse one, and the masks that lead from one to the
    other."""

    def __init__(self, schema: Schema, config: LearnerConfig):
        self.schema, self.config = schema, config
        self.encoder = config.encoder(schema)
        self.slots = Slots(schema, self.encoder)
        self.linear = BayesianLinear(
            self.slots.rows,
            self.slots.group_S,
            self.slots.variance_G,
            config.half_lives_events,
            config.shrinkage_rate,
        )
        self.tables = EmbeddingTables(
            len(schema.fields) * config.table_rows, config.embedding_dim, config.embedding_rate
        )
        self.numerics = Numerics(len(schema.numeric), config.numeric_horizon_events, codes=config.numeric_codes)
        network = Network(
            NetworkShape(
                fields=len(schema.fields),
                numerics=2 * len(schema.numeric),
                slots=len(self.slots),
                embedding_dim=config.embedding_dim,
                bottom=config.bottom if schema.numeric and config.embedding_dim else (),
                top=config.top,
                interaction=config.interaction,
            )
        )
        self.dense = Branch(network, network.initial(torch.Generator().manual_seed(config.seed)))
        self.dense_live = True
        self.sparse: Branch | None = None
        self.kept: dict[str, torch.Tensor] = {}
        self.masks: AuxiliaryMasks | None = None
        self.mixture = config.mixture()
        """Mixes the experts of the lead as it is now, without any delay."""
        self.dense_cost = network.cost.total({})
        self.learned_multiply_adds = 0.0
        """Multiply-adds of all forward passes learned from so far; a backward pass is about twice that in any
        network."""
        self.events = 0
        self._followers: list[Changes] = []

    @property
    def lead(self) -> Branch:
        """The branch that is published."""
        return self.sparse or self.dense

    def follow(self) -> Changes:
        """A log of every row learned from now on, for one reader."""
        self._followers.append(Changes())
        return self._followers[-1]

    def learn(self, features: Features, labels_B: np.ndarray, target_ratio: float = 1.0) -> np.ndarray:
        """Learn one batch; returns (B,) float32 logits that the lead had before. `target_ratio`: for the masks, while
        pruning.

        Raises `LearnError` if the loss is not finite; nothing has been changed by then.
        """
        events = len(labels_B)
        labels = torch.from_numpy(labels_B)
        inputs = self._assemble(features)
        vectors_BFD = self.tables.lookup(features.rows_BF).requires_grad_()
        branches = list(self._live()) if self.config.network_rate else []
        masks = self.masks.masks(events) if self.masks and branches else None
        deep = {
            branch: deep_logits(
                branch.network, branch.parameters, inputs, vectors_BFD, masks if branch is self.dense else None
            )
            for branch in branches
        }
        lead_B = deep.get(self.lead, inputs.linear_BK[:, 0])
        loss = sum(fn.binary_cross_entropy_with_logits(logits, labels) for logits in (deep.values() or [lead_B]))
        if not torch.isfinite(loss):
            raise LearnError(f"the loss of events {self.events} to {self.events + events} is not finite")
        experts_BE = _side_by_side(inputs.linear_BK, lead_B.detach())
        logits_B = mix(self.mixture.weights, experts_BE)

        if branches:
            loss.backward()
        changed = {"linear": self.linear.learn(inputs.slot_rows_BS, inputs.slot_values_BS, labels)}
        if branches and self.schema.fields and self.config.embedding_dim:
            changed["embedding"] = self.tables.update(features.rows_BF, vectors_BFD.grad * (events / len(branches)))
        for branch in branches:
            branch.step(self.config.network_rate * math.sqrt(events / _RATE_EVENTS))
            self.learned_multiply_adds += events * branch.network.cost.total({})
        if masks is not None:
            self.masks.update(masks, target_ratio)
        self.numerics.update(features.numerics_BN)
        self.mixture.update(experts_BE, labels_B)
        for follower in self._followers:
            for table, rows_U in changed.items():
                follower.rows[table].append(rows_U)
        self.events += events
        return logits_B

    def predict(self, features: Features, weights: np.ndarray | None = None) -> np.ndarray:
        """(B,) float32 logits of the lead, nothing learned. `weights`: of a mixture other than the lead's own."""
        with torch.no_grad():
            inputs = self._assemble(features)
            network, parameters = self._published()
            deep_B = deep_logits(network, parameters, inputs, self.tables.lookup(features.rows_BF))
            return mix(self.mixture.weights if weights is None else weights, _side_by_side(inputs.linear_BK, deep_B))

    def prune(self) -> None:
        """Begin to learn masks on the dense branch."""
        network = self.dense.network
        self.masks = AuxiliaryMasks(network.groups, network.cost, self.config.auxiliary)

    def cut(self) -> None:
        """Cut the surviving units out of the dense branch: they become the sparse one, and the rest lies dormant."""
        groups, kept = self.dense.network.groups, self.masks.kept()
        weights, first, second = (compact(part, groups, kept) for part in self.dense.parts())
        network = self.dense.network.narrowed({name: len(index) for name, index in kept.items()})
        self.sparse = Branch(network, weights).restore(first, second, self.dense.steps)
        self.kept, self.masks, self.dense_live = kept, None, False

    def regrow(self) -> None:
        """Make the dense branch live again: dormant weights as they were, the others as the sparse branch has them."""
        assert self.sparse and not self.dense_live
        groups, dormant = self.dense.network.groups, self.dense.weights()
        nothing = {name: torch.zeros_like(tensor) for name, tensor in dormant.items()}
        weights, first, second = (
            expand(part, store, groups, self.kept)
            for part, store in zip(self.sparse.parts(), (dormant, nothing, nothing), strict=True)
        )
        self.dense = Branch(self.dense.network, weights).restore(first, second, self.sparse.steps)
        self.dense_live = True

    def export(self, weights: np.ndarray, rows: dict[str, torch.Tensor] | None = None) -> Export:
        """What a scorer needs to predict as the lead does now, mixed with `weights`.

        `rows`: only these rows of each table (a delta); None: all that have been touched.
        """
        rows = rows or {"embedding": self.tables.touched(), "linear": self.linear.touched()}
        scale = self.numerics.scale()
        network, parameters = self._published()
        tensors = {
            "embedding.rows": row_numbers(rows["embedding"], len(self.tables.weight_RD)),
            "embedding.values": self.tables.weight_RD[rows["embedding"]],
            "linear.rows": row_numbers(rows["linear"], len(self.linear.evidence_R2K)),
            "linear.values": self.linear.evidence_R2K[rows["linear"]],
            "linear.prior": self.linear.prior_SK(),
            "numerics.moments": scale.moments_2N,
            "numerics.knots": scale.knots_NQ,
            "mixture": torch.from_numpy(weights.copy()),
        }
        return Export(
            network.shape, tensors | {f"network.{name}": tensor.clone() for name, tensor in parameters.items()}
        )

    def sparsity_by_layer(self) -> dict[str, float]:
        """Share of units that the published network lacks, by group."""
        shapes = self._published()[0].shapes
        return {g.name: 1 - shapes[g.slices[0].parameter][0] / g.size for g in self.dense.network.groups}

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one prediction with the published network."""
        return self._published()[0].cost.total({})

    @property
    def dense_bytes(self) -> int:
        """What touched rows and the dense network take as float32, bytes."""
        floats = sum(tensor.numel() for tensor in self.dense.parameters.values())
        floats += self.tables.touched_rows * self.tables.weight_RD.shape[1]
        return 4 * (floats + self.linear.touched_rows * self.linear.evidence_R2K[0].numel())

    def state(self) -> tuple[LearnerState, dict[str, torch.Tensor]]:
        """Everything that learning depends on, for a snapshot."""
        embedding, linear = self.tables.touched(), self.linear.touched()
        tensors = {
            "embedding.rows": embedding,
            "embedding.weight": self.tables.weight_RD[embedding],
            "embedding.squares": self.tables.squares_R[embedding],
            "linear.rows": linear,
            "linear.evidence": self.linear.evidence_R2K[linear],
            "linear.learned": self.linear.learned_R[linear],
            "linear.log_s": self.linear.log_s_GK,
            "linear.squares": self.linear.squares_GK,
        }
        tensors |= {f"numerics.{name}": tensor for name, tensor in self.numerics.state().items()}
        tensors |= {f"mixture.{name}": torch.from_numpy(array) for name, array in self.mixture.state().items()}
        for branch_name, branch in (("dense", self.dense), ("sparse", self.sparse)):
            if branch:
                for part_name, part in zip(_PARTS, branch.parts(), strict=True):
                    tensors |= {f"{branch_name}.{part_name}.{name}": tensor.clone() for name, tensor in part.items()}
        tensors |= {f"kept.{name}": index for name, index in self.kept.items()}
        if self.masks:
            tensors |= {f"masks.{name}": tensor for name, tensor in self.masks.state().items()}
        state = LearnerState(
            dense_live=self.dense_live,
            sparse=self.sparse is not None,
            pruning=self.masks is not None,
            dense_steps=self.dense.steps,
            sparse_steps=self.sparse.steps if self.sparse else 0.0,
            mask_steps=self.masks.steps if self.masks else 0,
            learned_multiply_adds=self.learned_multiply_adds,
            events=self.events,
        )
        return state, tensors

    def restore(self, state: LearnerState, tensors: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state` was taken. The schema and the config must be the same."""
        embedding, linear = _named(tensors, "embedding."), _named(tensors, "linear.")
        self.tables.restore(embedding["rows"], embedding["weight"], embedding["squares"])
        self.linear.restore(linear["rows"], linear["evidence"], linear["learned"])
        self.linear.log_s_GK, self.linear.squares_GK = linear["log_s"].clone(), linear["squares"].clone()
        self.linear.events = self.events = state.events
        self.numerics.restore(_named(tensors, "numerics."))
        self.mixture.restore({name: tensor.numpy() for name, tensor in _named(tensors, "mixture.").items()})
        self.kept = _named(tensors, "kept.")
        network = self.dense.network

        def branch(name: str, network: Network, steps: float) -> Branch:
            weights, first, second = (_named(tensors, f"{name}.{part}.") for part in _PARTS)
            return Branch(network, weights).restore(first, second, steps)

        self.dense = branch("dense", network, state.dense_steps)
        if state.sparse:
            narrowed = network.narrowed({name: len(index) for name, index in self.kept.items()})
            self.sparse = branch("sparse", narrowed, state.sparse_steps)
        if state.pruning:
            self.prune()
            self.masks.restore(_named(tensors, "masks."), state.mask_steps)
        self.dense_live, self.learned_multiply_adds = state.dense_live, state.learned_multiply_adds

    def _assemble(self, features: Features) -> Inputs:
        return assemble(self.slots, features, self.numerics.scale(), self.linear.evidence_R2K, self.linear.prior_SK())

    def _live(self) -> Iterator[Branch]:
        if self.dense_live:
            yield self.dense
        if self.sparse:
            yield self.sparse

    def _published(self) -> tuple[Network, dict[str, torch.Tensor]]:
        """The lead's network and weights, with what the masks of a first pruning have removed already cut out."""
        if self.sparse or not self.masks:
            return self.lead.network, self.lead.weights()
        network, kept = self.dense.network, self.masks.kept()
        narrowed = network.narrowed({name: len(index) for name, index in kept.items()})
        return narrowed, compact(self.dense.weights(), network.groups, kept)


def _side_by_side(linear_BK: torch.Tensor, deep_B: torch.Tensor) -> np.ndarray:
    return torch.cat([linear_BK, deep_B[:, None]], 1).numpy()


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
