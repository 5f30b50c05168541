"""The deep expert: a network with DLRM's interaction (Naumov et al., arXiv:1906.00091); the part
that is pruned and regrown.

In: embeddings, prepared numerics, and what each slot of the linear expert says. Out: a correction
of the linear expert's logit (the deep side of wide and deep, Cheng et al., arXiv:1606.07792). The
network is a shape and pure functions over a mapping of named parameters, so the dense, the pruned
and the served one are one code at different widths.

Shapes: B events, F fields, D embedding width, M prepared numerics, S slots, V vectors in the
interaction, H hidden units.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Literal

import msgspec
import torch
import torch.nn.functional as fn

from niwaki.model.deep.sparse import Pattern
from niwaki.pruning.blocks import BlockCost, BlockGroup
from niwaki.pruning.units import Cost, Slice, UnitGroup, uniform_widths

Parameters = Mapping[str, torch.Tensor]
COLUMNS = "embedding"
"""Name of the group whose units are columns of the embedding tables."""


class NetworkShape(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The widths of a network."""

    fields: int
    numerics: int
    """Prepared numerics M, missing-value indicators included."""
    slots: int
    """Slots S of the linear expert."""
    embedding_dim: int
    bottom: tuple[int, ...]
    """Hidden widths of the MLP that makes one more D-vector of the numerics; empty: there is
    none."""
    top: tuple[int, ...]
    """Hidden widths of the MLP on top of the interaction."""
    interaction: Literal["dot", "none"]
    columns: tuple[int, ...] | None = None
    """The columns of the embedding tables that are read, ascending: dimension d of field f is f *
    embedding_dim + d. The others count as zero. None: all are read."""
    block: tuple[int, int] | None = None
    """Outputs and inputs of the blocks in which weights are pruned; None: neurons are."""

    def __post_init__(self) -> None:
        columns = self.columns
        if columns is not None and not (
            all(low < high for low, high in itertools.pairwise((-1, *columns)))
            and (not columns or columns[-1] < self.fields * self.embedding_dim)
        ):
            raise ValueError(
                f"shape.columns must ascend and be columns of the tables, got {list(columns)}"
            )
        if self.block is not None and min(self.block) < 1:
            raise ValueError(f"shape.block must be two sides of at least 1, got {list(self.block)}")

    def alive_FD(self) -> torch.Tensor:
        """bool: the columns that are read, by field."""
        alive_X = torch.ones(self.fields * self.embedding_dim, dtype=torch.bool)
        if self.columns is not None:
            alive_X.zero_()[list(self.columns)] = True
        return alive_X.view(self.fields, self.embedding_dim)


class Network:
    """Parameters' shapes, unit groups, cost and forward pass for one `NetworkShape`."""

    def __init__(self, shape: NetworkShape, kept: Mapping[str, torch.Tensor] | None = None):
        """`kept`: by group, the sorted blocks that there are, of every matrix; None: all matrices
        are whole."""
        self.shape = shape
        self.kept = kept or {}
        self.vectors = vectors = (
            shape.fields + (1 if shape.bottom else 0) if shape.embedding_dim else 0
        )
        pairs = vectors * (vectors - 1) // 2 if shape.interaction == "dot" else 0
        self.pair_count = pairs
        above, right = (
            torch.triu_indices(vectors, vectors, offset=1) if pairs else torch.empty(2, 0).long()
        )
        self.pairs = above * vectors + right
        """Where each pair of vectors lies in a flat matrix of all their dot products."""
        flat = torch.arange(vectors * shape.embedding_dim)
        columns = shape.fields * shape.embedding_dim
        self.read = (
            flat
            if shape.columns is None
            else torch.cat([torch.tensor(shape.columns).long(), flat[columns:]])
        )
        """Which entries of all vectors, one after the other, the top MLP reads as they are."""
        self.column_mask_FD = None if shape.columns is None else shape.alive_FD().float()
        """0 where a vector counts as zero, else 1; None: all are read."""
        bottom = (shape.numerics, *shape.bottom, shape.embedding_dim) if shape.bottom else ()
        self.inputs = len(self.read) + pairs + shape.numerics + shape.slots
        """Inputs of the top MLP."""
        top = (self.inputs, *shape.top, 1)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, widths in (("bottom", bottom), ("top", top)):
            for i in range(len(widths) - 1):
                self.shapes[f"{name}.{i}.weight"] = (widths[i + 1], widths[i])
                self.shapes[f"{name}.{i}.bias"] = (widths[i + 1],)
        self.patterns: dict[str, Pattern] = {}
        """By the names of weights, which of them there are, unless matrices are whole."""
        self.columns: UnitGroup | None = None
        """The columns of the tables; None: there are none, or blocks are the units."""
        fixed = pairs * shape.embedding_dim
        if shape.block:
            self._divide(fixed)
            return
        self.groups = tuple(
            UnitGroup(
                f"{name}.{i}",
                width,
                (
                    Slice(f"{name}.{i}.weight", 0),
                    Slice(f"{name}.{i}.bias", 0),
                    Slice(f"{name}.{i + 1}.weight", 1),
                ),
            )
            for name, hidden in (("bottom", shape.bottom), ("top", shape.top))
            for i, width in enumerate(hidden)
        )
        read = columns if shape.columns is None else len(shape.columns)
        self.columns = UnitGroup(COLUMNS, read, (Slice("top.0.weight", 1),)) if read else None
        self.units = (*self.groups, self.columns) if self.columns else self.groups
        self.cost = Cost(self.shapes, self.units, fixed)

    def narrowed(self, alive: Mapping[str, int]) -> "Network":
        """The network with only `alive[group]` units in each group."""
        bottom = tuple(alive.get(f"bottom.{i}", width) for i, width in enumerate(self.shape.bottom))
        top = tuple(alive.get(f"top.{i}", width) for i, width in enumerate(self.shape.top))
        return Network(msgspec.structs.replace(self.shape, bottom=bottom, top=top))

    def cut_to(self, kept: Mapping[str, torch.Tensor]) -> "Network":
        """The network of the surviving units and columns: sorted indices by group; a group that is
        not named is whole. This one must have all columns."""
        if self.shape.block:
            return Network(self.shape, kept)
        narrow = self.narrowed({name: len(index) for name, index in kept.items()})
        columns = kept.get(COLUMNS, ())
        if self.columns is None or len(columns) in (0, self.columns.size):
            return narrow
        return Network(msgspec.structs.replace(narrow.shape, columns=tuple(columns.tolist())))

    def narrow(self, ratio: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Sorted units by group that take `ratio` of the multiply-adds, the same share of each
        group."""
        orders = {group.name: group.any_order(generator) for group in self.groups}
        scores = {name: -order.argsort() for name, order in orders.items()}
        widths = uniform_widths(self.groups, self.cost, ratio, scores=scores)
        return {name: order[: widths[name]].sort().values for name, order in orders.items()}

    def alive(self) -> dict[str, int]:
        """How many units there are, by group."""
        return {
            group.name: len(self.kept.get(group.name, range(group.size))) for group in self.units
        }

    def named(self, parameters: Parameters) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint holds of it; copies."""
        blocks = {f"network.{name}.blocks": kept for name, kept in self.kept.items()}
        return {f"network.{name}": tensor.clone() for name, tensor in parameters.items()} | blocks

    def whole(self, parameters: Parameters) -> tuple["Network", dict[str, torch.Tensor]]:
        """The same network and parameters with whole matrices, zero where no weight is."""
        filled = {name: pattern.fill(parameters[name]) for name, pattern in self.patterns.items()}
        return (Network(self.shape) if filled else self), {**parameters, **filled}

    def initial(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Fresh parameters: He initialisation, small random biases, zeros where the logit comes
        out."""
        last = f"top.{len(self.shape.top)}"
        parameters = {}
        for name, shape in self.shapes.items():
            parameters[name] = torch.zeros(shape)
            if name.startswith(last):
                continue
            if name.endswith("weight"):
                parameters[name].normal_(0, math.sqrt(2 / self._fan_in(name)), generator=generator)
            else:
                # Embeddings start at zero: without biases hidden units would be silent, and no
                # gradient wake them.
                bound = 1 / math.sqrt(self._fan_in(name.replace("bias", "weight")))
                parameters[name].uniform_(-bound, bound, generator=generator)
        return parameters

    def correction(
        self,
        parameters: Parameters,
        vectors_BFD: torch.Tensor,
        numerics_BM: torch.Tensor,
        slots_BS: torch.Tensor,
        masks: Parameters | None = None,
    ) -> torch.Tensor:
        """(B,): what is to be added to the linear logit. `masks`: by group, factors on its units'
        activations, or on the weights of its blocks; of columns, which may be left out, on the
        vectors of the fields.

        For who only predicts, and the definition of what `model.deep.passes` computes and
        differentiates.
        """
        if self.shape.block:
            parameters, masks = self._masked(self.whole(parameters)[1], masks), None
        if masks is not None and COLUMNS in masks:
            vectors_BFD = vectors_BFD * masks[COLUMNS].view(-1, *vectors_BFD.shape[1:])
        if self.column_mask_FD is not None:
            vectors_BFD = vectors_BFD * self.column_mask_FD
        vectors_BVD = vectors_BFD
        if self.shape.bottom:
            dense_BD = self._mlp("bottom", len(self.shape.bottom), parameters, numerics_BM, masks)
            vectors_BVD = torch.cat([vectors_BFD, dense_BD.unsqueeze(1)], 1)
        flat_BX = vectors_BVD.flatten(1)
        read_BX = flat_BX if self.column_mask_FD is None else flat_BX.index_select(1, self.read)
        inputs = [read_BX, numerics_BM, slots_BS]
        if self.pair_count:
            dots_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
            inputs.append(dots_BVV.flatten(1).index_select(1, self.pairs))
        return self._mlp(
            "top", len(self.shape.top), parameters, torch.cat(inputs, 1), masks
        ).squeeze(1)

    def _divide(self, fixed: int) -> None:
        """Units and cost where blocks of weights are the units."""
        matrices = {name: shape for name, shape in self.shapes.items() if len(shape) == 2}
        groups = [
            BlockGroup(n.removesuffix(".weight"), n, shape, self.shape.block)
            for n, shape in matrices.items()
        ]
        if self.kept:
            self.patterns = {
                group.parameter: Pattern(group, self.kept[group.name]) for group in groups
            }
            self.shapes |= {name: (len(pattern),) for name, pattern in self.patterns.items()}
        self.groups = self.units = tuple(groups)
        whole = {group.name: math.prod(self.shapes[group.parameter]) for group in groups}
        self.cost = BlockCost(groups, whole, fixed)

    def _fan_in(self, name: str) -> float:
        """Inputs of an output, on average."""
        shape = self.shapes[name]
        return (
            max(shape[0] / self.shapes[name.replace("weight", "bias")][0], 1.0)
            if len(shape) == 1
            else shape[1]
        )

    def _masked(self, parameters: Parameters, masks: Parameters | None) -> Parameters:
        factors = {g.parameter: g.spread(masks[g.name]) for g in self.groups} if masks else {}
        return {name: tensor * factors.get(name, 1) for name, tensor in parameters.items()}

    def _mlp(
        self,
        name: str,
        hidden: int,
        parameters: Parameters,
        x: torch.Tensor,
        masks: Parameters | None,
    ) -> torch.Tensor:
        for i in range(hidden):
            x = fn.linear(
                x, parameters[f"{name}.{i}.weight"], parameters[f"{name}.{i}.bias"]
            ).relu()
            if masks is not None:
                x = x * masks[f"{name}.{i}"]
        return fn.linear(
            x, parameters[f"{name}.{hidden}.weight"], parameters[f"{name}.{hidden}.bias"]
        )
