"""Inference with a published model: the same features, tables and network code as the learner's, at
the compact widths.

In: a checkpoint's header and tensors. Out: click probabilities. A scorer holds one of these at a
time; a trainer follows its own publications with one, to know how good the served predictions are.
It learns nothing.
"""

import copy
from collections.abc import Iterable

import numpy as np
import torch

from niwaki.model.deep.network import Network, NetworkShape, Parameters
from niwaki.model.errors import CheckpointError
from niwaki.model.experts import Inputs, assemble
from niwaki.model.features.ages import Ages
from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.numerics import KNOTS, Scale
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.linear.expert import contributions
from niwaki.model.linear.kernels import compiled_contributions
from niwaki.model.linear.slots import Slots
from niwaki.model.mixture import mix
from niwaki.model.published.checkpoint import Header
from niwaki.model.published.inference import Inference
from niwaki.model.rows import Export, lazy_zeros, scatter

Tables = dict[str, torch.Tensor]
_ROW_TYPES = (torch.int32, torch.int64)
_BLOCKS = ".blocks"


class ServedModel:
    """A published model, ready to predict."""

    header: Header | None = None
    """The checkpoint's, where it came from one."""
    _inference: Inference | None = None

    def __init__(self, schema: Schema, encoder: Encoder, *, embedding_dim: int, scales: int):
        """An empty model: nothing to predict with before the first `apply`. `scales`: time scales
        of the linear expert."""
        self.encoder, self._slots, self._ages = (
            encoder,
            Slots(schema, encoder),
            Ages(schema, encoder.rows),
        )
        compiled_contributions(scales)  # compiled now, not when the first event is to be scored
        self._widths = {
            "embedding": (len(schema.fields) * encoder.rows, embedding_dim),
            "linear": (self._slots.rows, 2, scales),
        }
        self.tables = self.empty_tables()

    @classmethod
    def from_checkpoint(cls, header: Header, tensors: dict[str, torch.Tensor]) -> "ServedModel":
        """The model in a full checkpoint. Raises `CheckpointError` if the tensors are not those
        that the header promises."""
        if header.base:
            raise CheckpointError(
                f"checkpoint: version {header.version} is a delta, it needs version {header.parent}"
            )
        encoder = Encoder(
            header.schema, rows=header.table_rows, pair_rows=header.pair_rows, seed=header.hash_seed
        )
        model = cls(
            header.schema,
            encoder,
            embedding_dim=header.shape.embedding_dim,
            scales=len(header.half_lives_events),
        )
        return model._take(header, tensors)

    def successor(
        self, changes: Iterable[tuple[Header, dict[str, torch.Tensor]]], tables: Tables
    ) -> "ServedModel":
        """The model that one checkpoint after the other, full or deltas, makes of `tables`; this
        one stays as it is.

        `tables` must be as they were before the first of `changes`: empty ones for a full
        checkpoint. They are written to, and are the new model's from then on. Raises
        `CheckpointError` if tensors are not those that their header promises.
        """
        model = copy.copy(self)
        model.tables = tables
        for header, tensors in changes:
            model._take(header, tensors)
        return model

    def empty_tables(self) -> Tables:
        """Tables of this model's shape, all zero."""
        tables = {name: lazy_zeros(*widths) for name, widths in self._widths.items()}
        return tables | {name: self._ages.empty() for name in self._ages.sizes}

    def apply(self, export: Export) -> None:
        """Take over an export: its rows replace ours, and the rest of it is what predicts from now
        on."""
        tensors = export.tensors
        for name, table in self.tables.items():
            scatter(table, tensors[f"{name}.rows"].long(), tensors[f"{name}.values"])
        in_tables = {f"{name}.{part}" for name in self.tables for part in ("rows", "values")}
        self.rest = {name: tensor for name, tensor in tensors.items() if name not in in_tables}
        self._prior_SK = tensors["linear.prior"]
        self._scale = Scale(tensors["numerics.moments"], tensors["numerics.knots"])
        self.mixture_weights = tensors["mixture"].numpy()
        held = {
            name.removeprefix("network."): t
            for name, t in tensors.items()
            if name.startswith("network.")
        }
        kept, parameters = (
            _blocks(held),
            {name: t for name, t in held.items() if not name.endswith(_BLOCKS)},
        )
        network = self._inference.network if self._inference else None
        if network is None or network.shape != export.shape or not _same(network.kept, kept):
            network = Network(export.shape, kept)
        self._inference = Inference(self._slots, network, parameters)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a full checkpoint of this model holds; slow, it looks at every row."""
        tensors = dict(self.rest)
        for name, table in self.tables.items():
            rows = table.flatten(1).any(1).nonzero().squeeze(1)
            tensors |= {f"{name}.rows": rows, f"{name}.values": table[rows]}
        return tensors

    def experts(self, hashed: HashedEvents) -> np.ndarray:
        """(B, E) float32 logits of the experts."""
        features = self._ages.complete(hashed, self.tables.get("age"))
        return self._inference.experts(features, self._scale, self.tables, self._prior_SK)

    def inputs(self, hashed: HashedEvents) -> Inputs:
        """What the network reads of B events: everything but embeddings."""
        features = self._ages.complete(hashed, self.tables.get("age"))
        return assemble(self._slots, features, self._scale, self.tables["linear"], self._prior_SK)

    def vectors(self, hashed: HashedEvents) -> torch.Tensor:
        """(B, F, D): the embeddings of B events."""
        return self.tables["embedding"][hashed.rows_BF]

    def contributions(self, inputs: Inputs) -> torch.Tensor:
        """(B, S, K): what each slot adds to the linear expert's logit at each time scale."""
        return contributions(
            self.tables["linear"], self._prior_SK, inputs.slot_rows_BS, inputs.slot_values_BS
        )

    @property
    def network(self) -> Network:
        """What is made of the parameters."""
        return self._inference.network

    @property
    def shape(self) -> NetworkShape:
        """The widths of the network."""
        return self._inference.network.shape

    @property
    def parameters(self) -> Parameters:
        """The network's weights by name."""
        return self._inference.parameters

    def logits(self, experts_BE: np.ndarray) -> np.ndarray:
        """(B,) float32 logits, mixed from those of the experts."""
        return mix(self.mixture_weights, experts_BE)

    def predict(self, batch: EventBatch) -> np.ndarray:
        """(B,) float32 click probabilities; labels are not read."""
        return self.probabilities(self.logits(self.experts(self.encoder.encode(batch))))

    @staticmethod
    def probabilities(logits_B: np.ndarray) -> np.ndarray:
        """(B,) float32."""
        return torch.from_numpy(logits_B).sigmoid().numpy()

    def _take(self, header: Header, tensors: dict[str, torch.Tensor]) -> "ServedModel":
        self._check(header, tensors)
        self.apply(Export(header.shape, tensors))
        self.header = header
        return self

    def _check(self, header: Header, tensors: dict[str, torch.Tensor]) -> None:
        scales, numerics = len(header.half_lives_events), len(header.schema.numerics)
        kept = _blocks({name.removeprefix("network."): t for name, t in tensors.items()})
        self._check_blocks(Network(header.shape), kept)
        shapes = {
            f"network.{name}": shape for name, shape in Network(header.shape, kept).shapes.items()
        }
        shapes |= {
            "linear.prior": (len(self._slots), scales),
            "numerics.moments": (2, numerics),
            "numerics.knots": (numerics, KNOTS),
            "mixture": (scales + 2,),
        }
        for name, table in self.tables.items():
            shapes[f"{name}.rows"] = (
                tensors[f"{name}.rows"].numel() if f"{name}.rows" in tensors else 0,
            )
            shapes[f"{name}.values"] = (*shapes[f"{name}.rows"], *table.shape[1:])
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise CheckpointError(f"checkpoint: tensor {name} must be {list(shape)}")
        for name, table in self.tables.items():
            rows = tensors[f"{name}.rows"]
            if rows.dtype not in _ROW_TYPES or (
                len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(table)
            ):
                raise CheckpointError(
                    f"checkpoint: {name}.rows must be rows of a table of {len(table)}"
                )
        if header.shape.slots != len(self._slots):
            raise CheckpointError(
                f"checkpoint: the network reads {header.shape.slots} slots, not {len(self._slots)}"
            )

    def _check_blocks(self, network: Network, kept: Tables) -> None:
        sizes = {group.name: group.size for group in network.groups} if network.shape.block else {}
        if kept and set(kept) != set(sizes):
            raise CheckpointError(
                f"checkpoint: blocks must be those of {sorted(sizes)}, got {sorted(kept)}"
            )
        for name, blocks in kept.items():
            ascend = (
                blocks.dtype == torch.int64
                and blocks.dim() == 1
                and bool((blocks.diff() > 0).all())
            )
            if not ascend or (
                len(blocks) and not 0 <= int(blocks[0]) <= int(blocks[-1]) < sizes[name]
            ):
                raise CheckpointError(
                    f"checkpoint: network.{name}{_BLOCKS} must be blocks of a grid of {sizes[name]}"
                )


def _blocks(tensors: Tables) -> Tables:
    """The blocks that there are, by group."""
    return {
        name.removesuffix(_BLOCKS): tensor
        for name, tensor in tensors.items()
        if name.endswith(_BLOCKS)
    }


def _same(one: Tables, other: Tables) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )
