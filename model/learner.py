"""The streaming learner: predict, score, then learn, with a dense and a sparse branch over the same embedding tables.

In: `Features` and labels of one batch after another. Out: the logits that the leading branch had before it learned
them, and on request what a scorer needs (`export`). It is told when to prune, cut and regrow; it never decides. The
sparse branch leads from the first cut on: it learns at all times, and is what is published. The dense branch learns
beside it only from a regrowth to the next cut; in between its weights lie dormant. Both send their gradients into the
tables.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as fn

from model.embeddings import EmbeddingTables
from model.features import Encoder, Features, Schema
from model.network import Network, NetworkShape
from model.numerics import Standardizer
from pruning.auxiliary import AuxiliaryConfig, AuxiliaryMasks
from pruning.compaction import compact, expand


class LearnError(ArithmeticError):
    """Learning has gone wrong beyond repair, such as a loss that is not finite. Go back to the last snapshot."""


class LearnerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model and how it learns (the `[model]` section)."""

    embedding_dim: int = 16
    """Width of an embedding, >= 1."""
    bottom: tuple[int, ...] = (64,)
    """Hidden widths of the bottom MLP (numerics)."""
    top: tuple[int, ...] = (512, 256)
    """Hidden widths of the top MLP, at least one."""
    interaction: str = "dot"
    """dot: pairwise dot products of all vectors beside the vectors themselves. none: the vectors only."""
    table_rows: int = 262_144
    """Rows of each field's embedding table, >= 2; values are hashed to them."""
    hash_seed: int = 0
    """Seed of the hash from values to rows."""
    seed: int = 0
    """Seed of the initial weights."""
    first_order_rate: float = 0.05
    """Learning rate of first-order weights (Adagrad), > 0."""
    embedding_rate: float = 0.05
    """Learning rate of embeddings (row-wise Adagrad), > 0."""
    network_rate: float = 0.001
    """Learning rate of the MLPs (Adam), > 0."""
    numeric_horizon_events: float = 100_000
    """Events over which the moments of numerics are averaged, >= 1."""
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """How the auxiliary parameters learn while pruning."""

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "table_rows", "first_order_rate", "embedding_rate", "network_rate"):
            least = 2 if name == "table_rows" else 1 if name == "embedding_dim" else 0
            if not getattr(self, name) >= least or getattr(self, name) == 0:
                raise ValueError(
                    f"model.{name} must be {'> 0' if not least else f'>= {least}'}, got {getattr(self, name)}"
                )
        if not self.top or min(self.top + self.bottom) < 1:
            raise ValueError(f"model.top needs at least one hidden width, all widths >= 1, got {list(self.top)}")
        if self.interaction not in ("dot", "none"):
            raise ValueError(f"model.interaction must be dot or none, got {self.interaction!r}")


class Export(NamedTuple):
    """What a scorer needs: everything, or the rows changed since an earlier export."""

    shape: NetworkShape
    tensors: dict[str, torch.Tensor]


class Branch:
    """One network with its parameters and Adam (Kingma & Ba, arXiv:1412.6980)."""

    def __init__(self, network: Network, parameters: dict[str, torch.Tensor], rate: float):
        self.network = network
        self.parameters = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=rate, fused=True)

    def step(self) -> None:
        """One optimizer step on the gradients at hand, which are cleared."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters, without their gradients."""
        return {name: tensor.detach() for name, tensor in self.parameters.items()}

    def moments(self, key: str) -> dict[str, torch.Tensor]:
        """One of Adam's moments ("exp_avg", "exp_avg_sq") by parameter; zeros before the first step."""
        state = self.optimizer.state
        return {name: state[p][key] if p in state else torch.zeros_like(p) for name, p in self.parameters.items()}

    @property
    def steps(self) -> float:
        """Optimizer steps taken."""
        return max((float(state["step"]) for state in self.optimizer.state.values()), default=0.0)

    def restore(self, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], steps: float) -> "Branch":
        """Set Adam's moments and step count."""
        for name, parameter in self.parameters.items():
            state = {"step": torch.tensor(steps), "exp_avg": first[name].clone(), "exp_avg_sq": second[name].clone()}
            self.optimizer.state[parameter] = state
        return self


class LearnerState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of a learner's state that is not tensors."""

    dense_live: bool
    sparse: bool
    pruning: bool
    dense_steps: float
    sparse_steps: float
    mask_steps: int
    dense_cost: int
    learned_multiply_adds: float
    events: int


class Learner:
    """Embedding tables, a dense branch, a sparse one, and the masks that lead from the first to the second."""

    def __init__(self, schema: Schema, config: LearnerConfig):
        self.schema, self.config = schema, config
        fields, numerics = len(schema.fields), len(schema.numeric)
        shape = NetworkShape(
            fields=fields,
            numerics=2 * numerics,
            embedding_dim=config.embedding_dim,
            bottom=config.bottom if numerics else (),
            top=config.top,
            interaction=config.interaction,
        )
        network = Network(shape)
        generator = torch.Generator().manual_seed(config.seed)
        self.encoder = Encoder(schema, rows=config.table_rows, seed=config.hash_seed)
        self.tables = EmbeddingTables(
            fields * config.table_rows,
            config.embedding_dim,
            first_order_rate=config.first_order_rate,
            embedding_rate=config.embedding_rate,
        )
        self.standardizer = Standardizer(numerics, config.numeric_horizon_events)
        self.dense = Branch(network, network.initial(generator), config.network_rate)
        self.dense_live = True
        self.sparse: Branch | None = None
        self.kept: dict[str, torch.Tensor] = {}
        self.masks: AuxiliaryMasks | None = None
        self.dense_cost = network.cost.total({})
        self.learned_multiply_adds = 0.0
        """Multiply-adds of all forward passes learned from so far; a backward pass is about twice that in any
        network."""
        self.events = 0

    @property
    def lead(self) -> Branch:
        """The branch that is published."""
        return self.sparse or self.dense

    def learn(self, features: Features, labels_B: np.ndarray, target_ratio: float = 1.0) -> np.ndarray:
        """Learn one batch; returns (B,) float32 logits that the lead had before. `target_ratio`: for the masks, while
        pruning.

        Raises `LearnError` if the loss is not finite; nothing has been changed by then.
        """
        events = len(labels_B)
        labels = torch.from_numpy(labels_B)
        rows_BFK = self.tables.lookup(features.rows_BF).requires_grad_()
        numerics_BM = self.standardizer.prepare(features.numerics_BN)
        branches = list(self._live())
        masks = self.masks.masks(events) if self.masks else None
        logits = {}
        for branch in branches:
            branch_masks = masks if branch is self.dense else None
            logits[branch] = branch.network.logits(branch.parameters, rows_BFK, numerics_BM, branch_masks)
        loss = sum(fn.binary_cross_entropy_with_logits(logits[branch], labels) for branch in branches)
        if not torch.isfinite(loss):
            raise LearnError(f"the loss of events {self.events} to {self.events + events} is not finite")
        loss.backward()
        if len(self.schema.fields):
            self.tables.update(features.rows_BF, rows_BFK.grad * (events / len(branches)))
        for branch in branches:
            branch.step()
            self.learned_multiply_adds += events * branch.network.cost.total({})
        self.standardizer.update(features.numerics_BN)
        if self.masks:
            self.masks.update(masks, target_ratio)
        self.events += events
        return logits[self.lead].detach().numpy()

    def predict(self, features: Features) -> np.ndarray:
        """(B,) float32 logits of the lead, nothing learned."""
        with torch.no_grad():
            rows_BFK = self.tables.lookup(features.rows_BF)
            numerics_BM = self.standardizer.prepare(features.numerics_BN)
            network, parameters = self._published()
            return network.logits(parameters, rows_BFK, numerics_BM).numpy()

    def prune(self) -> None:
        """Begin to learn masks on the dense branch."""
        network = self.dense.network
        self.masks = AuxiliaryMasks(network.groups, network.cost, self.config.auxiliary)

    def cut(self) -> None:
        """Cut the surviving units out of the dense branch: they become the sparse one, and the rest lies dormant."""
        groups, kept = self.dense.network.groups, self.masks.kept()
        cut = [compact(part, groups, kept) for part in self._parts(self.dense)]
        network = self.dense.network.narrowed({name: len(index) for name, index in kept.items()})
        self.sparse = Branch(network, cut[0], self.config.network_rate).restore(cut[1], cut[2], self.dense.steps)
        self.kept, self.masks, self.dense_live = kept, None, False

    def regrow(self) -> None:
        """Make the dense branch live again: dormant weights as they were, the others as the sparse branch has them."""
        assert self.sparse and not self.dense_live
        groups = self.dense.network.groups
        weights, first, second = self._parts(self.sparse)
        nothing = {name: torch.zeros_like(tensor) for name, tensor in self.dense.weights().items()}
        steps = self.sparse.steps
        self.dense = Branch(
            self.dense.network, expand(weights, self.dense.weights(), groups, self.kept), self.config.network_rate
        ).restore(expand(first, nothing, groups, self.kept), expand(second, nothing, groups, self.kept), steps)
        self.dense_live = True

    def export(self, rows: torch.Tensor | None = None) -> Export:
        """What a scorer needs to predict as the lead does now. `rows`: only these table rows (a delta); None: all
        touched."""
        rows_U = self.tables.touched() if rows is None else rows
        network, parameters = self._published()
        tensors = {"rows": rows_U, "weights": self.tables.weight_RK[rows_U], "scale": self.standardizer.scale()}
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
        network = sum(tensor.numel() for tensor in self.dense.parameters.values())
        return 4 * (network + len(self.tables.touched()) * self.tables.weight_RK.shape[1])

    def state(self) -> tuple[LearnerState, dict[str, torch.Tensor]]:
        """Everything that learning depends on, for a snapshot."""
        rows_U = self.tables.touched()
        tensors = {
            "tables.rows": rows_U,
            "tables.weight": self.tables.weight_RK[rows_U],
            "tables.accumulator": self.tables.accumulator_R2[rows_U],
            "standardizer": self.standardizer.moments_3N,
        }
        for branch_name, branch in (("dense", self.dense), ("sparse", self.sparse)):
            if branch:
                for part_name, part in zip(("weight", "first", "second"), self._parts(branch), strict=True):
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
            dense_cost=self.dense_cost,
            learned_multiply_adds=self.learned_multiply_adds,
            events=self.events,
        )
        return state, tensors

    def restore(self, state: LearnerState, tensors: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state` was taken. The schema and the config must be the same."""
        self.tables.restore(tensors["tables.rows"], tensors["tables.weight"], tensors["tables.accumulator"])
        self.standardizer.moments_3N = tensors["standardizer"].clone()
        self.kept = _named(tensors, "kept.")
        network = self.dense.network

        def branch(name: str, network: Network, steps: float) -> Branch:
            weights, first, second = (_named(tensors, f"{name}.{part}.") for part in ("weight", "first", "second"))
            return Branch(network, weights, self.config.network_rate).restore(first, second, steps)

        self.dense = branch("dense", network, state.dense_steps)
        if state.sparse:
            narrowed = network.narrowed({name: len(index) for name, index in self.kept.items()})
            self.sparse = branch("sparse", narrowed, state.sparse_steps)
        if state.pruning:
            self.prune()
            self.masks.restore(_named(tensors, "masks."), state.mask_steps)
        self.dense_live, self.events = state.dense_live, state.events
        self.learned_multiply_adds = state.learned_multiply_adds

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

    @staticmethod
    def _parts(branch: Branch) -> tuple[dict[str, torch.Tensor], ...]:
        return branch.weights(), branch.moments("exp_avg"), branch.moments("exp_avg_sq")


def _named(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
