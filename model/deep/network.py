"""The network of the deep expert: widths, parameter shapes, units that can be pruned, and cost.

The architecture is DLRM's (Naumov et al., arXiv:1906.00091): embeddings, a bottom MLP that makes
one more vector of the numerics, products of all pairs of vectors, and a top MLP. The top MLP
also reads the contributions of the linear expert's slots, and its output corrects the linear
expert's logit (the deep side of Wide & Deep, Cheng et al., arXiv:1606.07792).

A `Network` describes; it holds no weights and computes no prediction. Dense, pruned and served
networks differ in their widths and patterns only.

Shapes: F fields, D embedding width, M prepared numerics, S slots, V vectors in the interaction, X
entries of all V vectors (V * D).
"""

import itertools
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec
import torch

from niwaki.model.deep.pattern import Pattern
from niwaki.pruning.blocks import Block, BlockCost, BlockGroup
from niwaki.pruning.errors import RuleError
from niwaki.pruning.units import Cost, Group, Slice, UnitCost, UnitGroup, uniform_widths

COLUMNS = "embedding"
"""Name of the group whose units are columns of the embedding tables."""

Parameters = Mapping[str, torch.Tensor]
Stack = Literal["bottom", "top"]
"""Name of one of the two MLPs."""


class NetworkShape(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The widths of a network."""

    fields: int
    """Fields F, each with an embedding table."""
    numerics: int
    """Prepared numerics M, missing-value indicators included."""
    slots: int
    """Slots S of the linear expert."""
    embedding_dim: int
    """Width D of an embedding; 0: there are no embeddings."""
    bottom: tuple[int, ...]
    """Hidden widths of the bottom MLP, which makes one more vector of the numerics; empty: there is
    no bottom MLP."""
    top: tuple[int, ...]
    """Hidden widths of the top MLP, at least one."""
    interaction: Literal["cosine", "dot", "none"]
    """cosine, dot: cosines or dot products of all pairs of vectors beside the vectors. none: the
    vectors only."""
    columns: tuple[int, ...] | None = None
    """Columns of the embedding tables that the network reads, ascending: dimension d of field f is
    f * embedding_dim + d. All others count as zero. None: the network reads all columns."""
    block: tuple[int, int] | None = None
    """Outputs and inputs of the blocks in which weights are pruned; None: neurons are."""

    def __post_init__(self) -> None:
        columns = self.columns
        if columns is not None and not (
            all(low < high for low, high in itertools.pairwise((-1, *columns)))
            and (not columns or columns[-1] < self.fields * self.embedding_dim)
        ):
            raise RuleError("columns", "must ascend and be columns of the tables", list(columns))
        if self.block is not None and min(self.block) < 1:
            raise RuleError("block", "must be two sides of at least 1", list(self.block))

    def alive_FD(self) -> torch.Tensor:
        """bool: true for each column that the network reads."""
        alive_X = torch.ones(self.fields * self.embedding_dim, dtype=torch.bool)
        if self.columns is not None:
            alive_X.zero_()[list(self.columns)] = True
        return alive_X.view(self.fields, self.embedding_dim)


class TopInputs(NamedTuple):
    """Places of the inputs of the top MLP, in this order."""

    vectors: slice
    """Entries of vectors."""
    numerics: slice
    contributions: slice
    """Contributions of the linear expert's slots."""
    products: slice

    @classmethod
    def of(cls, *widths: int) -> "TopInputs":
        """Places of so many inputs of each kind."""
        stops = list(itertools.accumulate(widths))
        return cls(*map(slice, [0, *stops[:-1]], stops))

    @property
    def width(self) -> int:
        """Number of inputs."""
        return int(self.products.stop)


class Network:
    """Parameter shapes, units and cost of one `NetworkShape`."""

    def __init__(self, shape: NetworkShape, kept: Mapping[str, torch.Tensor] | None = None):
        """`kept`: sorted int64 indices of the blocks that are left, for each matrix by group; None:
        all matrices are whole."""
        self.shape = shape
        self.kept = dict(kept or {})
        self.vectors = shape.fields + bool(shape.bottom) if shape.embedding_dim else 0
        """Vectors V in the interaction: those of the fields, then that of the numerics."""
        pairs = self.vectors * (self.vectors - 1) // 2
        self.pair_count = 0 if shape.interaction == "none" else pairs
        """Products of pairs of vectors that the top MLP reads."""
        self.interaction = self.vectors, shape.embedding_dim, shape.interaction == "cosine"
        """Number of vectors, their width, and true for cosines."""
        columns = shape.fields * shape.embedding_dim
        self.read = torch.arange(self.vectors * shape.embedding_dim)
        """Entries of all vectors, one after the other, that the top MLP reads."""
        self.column_mask_FD: torch.Tensor | None = None
        """float32: 0 for each column that counts as zero, else 1; None: all are read."""
        if shape.columns is not None:
            self.read = torch.cat([torch.tensor(shape.columns).long(), self.read[columns:]])
            self.column_mask_FD = shape.alive_FD().float()
        self.top_inputs = TopInputs.of(len(self.read), shape.numerics, shape.slots, self.pair_count)
        self.shapes = self._shapes()
        """Shape of each parameter; of a matrix with a pattern, the number of its weights."""
        self.patterns: dict[str, Pattern] = {}
        """Places of the weights that are left, by parameter; without an entry, a matrix is
        whole."""
        self.block_groups: tuple[BlockGroup, ...] = ()
        """The blocks of each matrix, where blocks are the units."""
        self.columns: UnitGroup | None = None
        """The columns of the tables that are read; None: none is, or blocks are the units."""
        self.groups: tuple[Group, ...]
        """Groups of units in the network."""
        self.units: tuple[Group, ...]
        """All groups: those of the network, and the columns of the tables."""
        self.cost: Cost
        if shape.block:
            self._use_blocks(shape.block)
        else:
            self._use_neurons()

    def layer_names(self, stack: Stack) -> list[str]:
        """Names of the layers of one MLP, from its inputs on; empty: there is no such MLP."""
        hidden = self.shape.bottom if stack == "bottom" else self.shape.top
        return [f"{stack}.{i}" for i in range(len(hidden) + 1)] if hidden else []

    @property
    def output_names(self) -> tuple[str, str]:
        """Names of the parameters of the output."""
        name = self.layer_names("top")[-1]
        return f"{name}.weight", f"{name}.bias"

    def silent(self, parameters: Parameters) -> Parameters:
        """These parameters, with zeros for those of the output: the network corrects nothing."""
        zeros = {name: torch.zeros_like(parameters[name]) for name in self.output_names}
        return {**parameters, **zeros}

    def narrowed(self, alive: Mapping[str, int]) -> "Network":
        """The network with `alive[group]` neurons in each layer; a layer that is not named stays as
        wide as it is."""
        bottom = tuple(alive.get(f"bottom.{i}", width) for i, width in enumerate(self.shape.bottom))
        top = tuple(alive.get(f"top.{i}", width) for i, width in enumerate(self.shape.top))
        return Network(msgspec.structs.replace(self.shape, bottom=bottom, top=top))

    def cut_to(self, kept: Mapping[str, torch.Tensor]) -> "Network":
        """The network of the surviving units and columns. `kept`: sorted indices by group; a group
        that is not named is whole. This network must read all columns."""
        if self.shape.block:
            return Network(self.shape, kept)
        narrow = self.narrowed({name: len(index) for name, index in kept.items()})
        columns: list[int] = kept[COLUMNS].tolist() if COLUMNS in kept else []
        if self.columns is None or len(columns) in (0, self.columns.size):
            return narrow
        return Network(msgspec.structs.replace(narrow.shape, columns=tuple(columns)))

    def narrow(self, ratio: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Units for a narrow network that begins untrained: an equal share of each group, so that
        all take at most `ratio` of the multiply-adds, (0, 1]; sorted indices by group."""
        orders = {group.name: group.initial_order(generator) for group in self.groups}
        scores = {name: -order.argsort() for name, order in orders.items()}
        widths = uniform_widths(self.groups, self.cost, ratio, scores=scores)
        return {name: order[: widths[name]].sort().values for name, order in orders.items()}

    def alive(self) -> dict[str, int]:
        """Number of units by group."""
        return {
            group.name: len(self.kept[group.name]) if group.name in self.kept else group.size
            for group in self.units
        }

    def named(self, parameters: Parameters) -> dict[str, torch.Tensor]:
        """The network's tensors in a checkpoint: copies of `parameters`, and blocks that are
        left."""
        blocks = {f"network.{name}.blocks": kept for name, kept in self.kept.items()}
        return {f"network.{name}": tensor.clone() for name, tensor in parameters.items()} | blocks

    def whole(self, parameters: Parameters) -> tuple["Network", dict[str, torch.Tensor]]:
        """This network and its parameters with whole matrices, zero where no weight is left."""
        filled = {name: pattern.fill(parameters[name]) for name, pattern in self.patterns.items()}
        return (Network(self.shape) if filled else self), {**parameters, **filled}

    def initial(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Fresh parameters: He initialisation (arXiv:1502.01852), small random biases, and zeros in
        the last layer, so that a fresh network corrects nothing."""
        last = f"top.{len(self.shape.top)}"
        parameters = {}
        for name, shape in self.shapes.items():
            parameters[name] = torch.zeros(shape)
            if name.startswith(last):
                continue
            if name.endswith("weight"):
                parameters[name].normal_(0, math.sqrt(2 / self._fan_in(name)), generator=generator)
            else:
                # Embeddings start at zero: without biases no hidden unit would be active, and none
                # would get a gradient.
                bound = 1 / math.sqrt(self._fan_in(name.replace("bias", "weight")))
                parameters[name].uniform_(-bound, bound, generator=generator)
        return parameters

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of whole layers."""
        shape = self.shape
        widths: dict[Stack, tuple[int, ...]] = {
            "bottom": (shape.numerics, *shape.bottom, shape.embedding_dim),
            "top": (self.top_inputs.width, *shape.top, 1),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for stack, sizes in widths.items():
            for i, name in enumerate(self.layer_names(stack)):
                shapes[f"{name}.weight"] = sizes[i + 1], sizes[i]
                shapes[f"{name}.bias"] = (sizes[i + 1],)
        return shapes

    def _use_blocks(self, block: Block) -> None:
        """Make blocks of each matrix the units."""
        self.block_groups = tuple(
            BlockGroup(name.removesuffix(".weight"), name, (size[0], size[1]), block)
            for name, size in self.shapes.items()
            if len(size) == 2
        )
        if self.kept:
            self.patterns = {
                group.parameter: Pattern(group, self.kept[group.name])
                for group in self.block_groups
            }
            self.shapes |= {name: (len(pattern),) for name, pattern in self.patterns.items()}
        weights = {g.name: math.prod(self.shapes[g.parameter]) for g in self.block_groups}
        self.groups = self.units = self.block_groups
        self.cost = BlockCost(self.block_groups, weights, self._product_cost)

    def _use_neurons(self) -> None:
        """Make the neurons of each hidden layer the units, and the columns of the tables. A neuron
        is a row of its layer's own tensors, and a column of the next layer's matrix."""
        shape = self.shape
        neurons = tuple(
            UnitGroup(
                f"{stack}.{i}",
                width,
                (
                    Slice(f"{stack}.{i}.weight", 0),
                    Slice(f"{stack}.{i}.bias", 0),
                    Slice(f"{stack}.{i + 1}.weight", 1),
                ),
            )
            for stack, hidden in (("bottom", shape.bottom), ("top", shape.top))
            for i, width in enumerate(hidden)
        )
        every = shape.fields * shape.embedding_dim
        read = every if shape.columns is None else len(shape.columns)
        if read:
            self.columns = UnitGroup(COLUMNS, read, (Slice("top.0.weight", 1),))
        units = (*neurons, self.columns) if self.columns else neurons
        self.groups, self.units = neurons, units
        self.cost = UnitCost(self.shapes, units, self._product_cost)

    @property
    def _product_cost(self) -> int:
        """Multiply-adds of these products, which no unit of the MLPs saves."""
        return self.pair_count * self.shape.embedding_dim

    def _fan_in(self, name: str) -> float:
        """Inputs of an output of the matrix `name`, on average."""
        inputs_or_weights = self.shapes[name][-1]
        if name not in self.patterns:
            return inputs_or_weights
        outputs = self.shapes[name.replace("weight", "bias")][0]
        return max(inputs_or_weights / outputs, 1.0)
