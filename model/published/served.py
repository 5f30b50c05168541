"""Inference with a published model: the learner's features, tables and experts, at the compact
widths.

In: a checkpoint's header and tensors, or a learner's export. Out: click probabilities. A scorer
holds one model at a time; a trainer follows its own publications with one, to measure the served
predictions. A model learns nothing.

Shapes: B events, E columns of experts; others as in `model.experts`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from niwaki.model.deep.embeddings import Embedded, vectors_of
from niwaki.model.deep.network import Network, NetworkShape, Parameters
from niwaki.model.errors import CheckpointError
from niwaki.model.experts import (
    Inputs,
    assemble,
    columns_of_experts,
    further_experts,
    names_of_experts,
    restore_experts,
    tensors_of_experts,
    write_contributions,
)
from niwaki.model.features.encoder import Encoder, Features, HashedEvents
from niwaki.model.features.memory.memory import Memory
from niwaki.model.features.numerics import KNOTS, Scale
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.linear.expert import contributions
from niwaki.model.linear.kernels import compiled_contributions
from niwaki.model.linear.pairs import PairBudget
from niwaki.model.linear.slots import Slots
from niwaki.model.mixture.mixture import mix
from niwaki.model.published import tensors as names
from niwaki.model.published.checkpoint import Header
from niwaki.model.published.checks import (
    check_blocks,
    check_experts,
    check_header,
    check_room,
    check_shapes,
    within,
)
from niwaki.model.published.compact import CompactRows, last_of_each
from niwaki.model.published.inference import Inference
from niwaki.model.published.table_codes import Precision
from niwaki.model.published.tensors import Export
from niwaki.model.rows import lazy_zeros, scatter

Tables = dict[str, torch.Tensor]


class ModelFrame:
    """The parts that every version of a model has in common: how events are encoded, and the shapes
    of its tables."""

    def __init__(
        self,
        schema: Schema,
        encoder: Encoder,
        pairs: PairBudget,
        *,
        embedding_dim: int,
        scales: int,
    ):
        """`scales`: time scales of the linear expert."""
        self.schema = schema
        self.encoder = encoder
        self.slots = Slots(schema, encoder, pairs)
        """The slots as they are at first; each version has its own living pairs."""
        self.memory = Memory(schema, encoder)
        self.scales = scales
        compiled_contributions(scales)  # compiled now, not when the first event is to be scored
        self._widths: dict[str, tuple[int, ...]] = {
            names.EMBEDDING: (len(schema.fields) * encoder.rows, embedding_dim),
            names.LINEAR: (self.slots.rows, 2, scales),
        }

    @classmethod
    def of(cls, header: Header) -> "ModelFrame":
        """The frame of the model that `header` describes. Raises `CheckpointError`."""
        check_header(header)
        encoder = Encoder(header.schema, rows=header.table_rows, seed=header.hash_seed)
        dim, scales = header.shape.embedding_dim, len(header.half_lives_events)
        pairs = PairBudget(header.pair_rows, header.max_pairs, header.max_list_pairs)
        frame = cls(header.schema, encoder, pairs, embedding_dim=dim, scales=scales)
        check_room(frame._table_shapes)
        return frame

    def empty_tables(self) -> Tables:
        """Tables of this model's shapes, all zero."""
        tables = {name: lazy_zeros(*widths) for name, widths in self._widths.items()}
        return tables | self.memory.empty()

    def empty_rows(self, precision: Precision) -> dict[str, CompactRows]:
        """The tables of the experts, compact, in which no row is there."""
        return {
            name: CompactRows.empty(rows, math.prod(widths), name == names.LINEAR, precision)
            for name, (rows, *widths) in self._widths.items()
        }

    def no_rows(self, tables: Iterable[str]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint in which no row of these tables has changed."""
        nothing = {}
        for name in tables:
            nothing[names.rows_of(name)] = torch.empty(0, dtype=torch.int64)
            nothing[names.values_of(name)] = torch.empty(0, *self.row_shape(name))
        return nothing

    def row_shape(self, table: str) -> tuple[int, ...]:
        """The shape of a row."""
        return self._table_shapes[table][1:]

    @property
    def _table_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._widths | self.memory.shapes

    def living(self, tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
        """(P + Q,): the living pairs of a version; those that live at first, where its checkpoint
        names none (format 1)."""
        found = tensors.get(names.LIVING_PAIRS)
        return self.slots.living if found is None else found.numpy()

    def check(self, header: Header, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise `CheckpointError` unless `tensors` are those that `header` promises."""
        check_header(header)
        further = tensors_of_experts(further_experts(self.schema))
        check_experts(names_of_experts(further), names_of_experts(tensors))
        blocks = names.blocks_in(tensors)
        check_blocks(Network(header.shape), blocks)
        numerics = len(header.schema.numerics)
        shapes = names.network_shapes(Network(header.shape, blocks)) | {
            names.LINEAR_PRIOR: (len(self.slots), self.scales),
            names.MOMENTS: (2, numerics),
            names.KNOTS: (numerics, KNOTS),
            names.MIXTURE: (1 + columns_of_experts(self.scales),),
        }
        if header.max_pairs is not None:
            shapes[names.LIVING_PAIRS] = self.slots.living.shape
        shapes |= {name: tuple(tensor.shape) for name, tensor in further.items()}
        for table, (_, *widths) in self._table_shapes.items():
            rows = names.rows_of(table)
            shapes[rows] = (tensors[rows].numel() if rows in tensors else 0,)
            shapes[names.values_of(table)] = (*shapes[rows], *widths)
        own = {names.values_of(name): kind for name, kind in self.memory.types.items()}
        own |= {name: tensor.dtype for name, tensor in further.items()}
        check_shapes(tensors, shapes, own)
        for table, (size, *_) in self._table_shapes.items():
            name = names.rows_of(table)
            if not within(tensors[name], size):
                raise CheckpointError(f"tensor {name}", f"must be rows of a table of {size}")
        if broken := self.memory.broken_rule(tensors):
            raise CheckpointError(*broken)
        living = self.living(tensors)
        if rule := self.slots.candidates.broken_rule(living):
            raise CheckpointError(f"tensor {names.LIVING_PAIRS}", rule, living.tolist())
        if header.shape.slots != len(self.slots):
            rule = f"must read {len(self.slots)} slots"
            raise CheckpointError("header.shape.slots", rule, header.shape.slots)


class ServedModel:
    """One version of a model, ready to predict."""

    def __init__(
        self,
        frame: ModelFrame,
        tables: Tables,
        export: Export,
        before: "ServedModel | None" = None,
        compact: Mapping[str, CompactRows] | None = None,
    ):
        """The model after an export. Its rows are written to `tables`, which are this model's from
        then on. `before`: the version before it, whose network is kept where its shape is the
        same. `compact`: the tables that are not among `tables`, as they are after the export."""
        tensors = export.tensors
        self.frame = frame
        self.tables = tables
        self.compact = dict(compact or {})
        for name, table in tables.items():
            rows_U = tensors[names.rows_of(name)].long()
            scatter(table, rows_U, tensors[names.values_of(name)])
        in_tables = {
            part(name)
            for name in (*tables, *self.compact)
            for part in (names.rows_of, names.values_of)
        }
        self.rest = {name: tensor for name, tensor in tensors.items() if name not in in_tables}
        """Every tensor but those of tables."""
        self.mixture_weights: np.ndarray = tensors[names.MIXTURE].numpy()
        """(1 + E,) float64, of a constant and of the experts."""
        self.further = further_experts(frame.schema)
        restore_experts(self.further, tensors)
        self._prior_SK = tensors[names.LINEAR_PRIOR]
        self._scale = Scale(tensors[names.MOMENTS], tensors[names.KNOTS])
        blocks = names.blocks_in(tensors)
        network = before.network if before else None
        if network is None or network.shape != export.shape or not _same(network.kept, blocks):
            network = Network(export.shape, blocks)
        self.slots: Slots = (before or frame).slots.with_living(frame.living(tensors))
        """The slots of the linear expert, with the pairs that live in this version."""
        self._inference = Inference(self.slots, network, names.parameters_in(tensors))

    @property
    def encoder(self) -> Encoder:
        """The encoder of events."""
        return self.frame.encoder

    @property
    def network(self) -> Network:
        """The compact network."""
        return self._inference.network

    @property
    def shape(self) -> NetworkShape:
        """The widths of the network."""
        return self._inference.network.shape

    @property
    def parameters(self) -> Parameters:
        """The network's weights by name."""
        return self._inference.parameters

    def tensors(self, compact: bool = True) -> dict[str, torch.Tensor]:
        """The tensors of a full checkpoint of this model. Slow: it reads every row. `compact`:
        with the rows of compact tables."""
        tensors = dict(self.rest)
        for name, table in self.tables.items():
            rows_U = table.flatten(1).any(1).nonzero().squeeze(1)
            tensors |= {names.rows_of(name): rows_U, names.values_of(name): table[rows_U]}
        if not compact:
            return tensors | self.frame.no_rows(self.compact)
        for name, rows in self.compact.items():
            rows_U, values_UX = rows.rows()
            shape = self.frame.row_shape(name)
            tensors |= {
                names.rows_of(name): rows_U,
                names.values_of(name): values_UX.reshape(-1, *shape),
            }
        return tensors

    def _plain(self, name: str) -> torch.Tensor:
        """A table of an expert as one that is not compact. Slow where it is: it is made anew."""
        if name in self.tables:
            return self.tables[name]
        rows_U, values_UX = self.compact[name].rows()
        table = self.frame.empty_tables()[name]
        scatter(table, rows_U, values_UX.reshape(-1, *table.shape[1:]))
        return table

    def experts(self, hashed: HashedEvents) -> np.ndarray:
        """(B, E) float32 logits of the experts."""
        features = self._complete(hashed)
        columns = columns_of_experts(self.frame.scales)
        linear = self.compact.get(names.LINEAR) or self.tables[names.LINEAR]
        embedding = self.compact.get(names.EMBEDDING) or self.tables[names.EMBEDDING]
        experts_BE = self._inference.experts(
            features, self._scale, linear, embedding, self._prior_SK, columns
        )
        write_contributions(self.further, features, self.frame.scales, experts_BE)
        return experts_BE

    def inputs(self, hashed: HashedEvents) -> Inputs:
        """The inputs of the network for B events, without embeddings."""
        features = self._complete(hashed)
        linear = self._plain(names.LINEAR)
        return assemble(self.slots, features, self._scale, linear, self._prior_SK)

    def vectors(self, hashed: HashedEvents) -> torch.Tensor:
        """(B, F, D): the embeddings of B events."""
        embedded = Embedded.of(self._complete(hashed))
        return vectors_of(self._plain(names.EMBEDDING), embedded, self.network.column_mask_FD)

    def contributions(self, inputs: Inputs) -> torch.Tensor:
        """(B, S, K): the contribution of each slot to the linear expert's logit at each time
        scale."""
        slots = inputs.slot_rows_BS, inputs.slot_values_BS, inputs.slot_lists
        return contributions(self._plain(names.LINEAR), self._prior_SK, *slots)

    def logits(self, experts_BE: np.ndarray) -> np.ndarray:
        """(B,) float32 logits, mixed from those of the experts."""
        return mix(self.mixture_weights, experts_BE)

    def predict(self, batch: EventBatch) -> np.ndarray:
        """(B,) float32 click probabilities; labels are not read."""
        return self.predict_hashed(self.encoder.encode(batch))

    def predict_hashed(self, hashed: HashedEvents) -> np.ndarray:
        """(B,) float32 click probabilities of events that this model's encoder has hashed."""
        return self.probabilities(self.logits(self.experts(hashed)))

    @staticmethod
    def probabilities(logits_B: np.ndarray) -> np.ndarray:
        """(B,) float32 probabilities of logits."""
        probabilities_B: np.ndarray = torch.from_numpy(logits_B).sigmoid().numpy()
        return probabilities_B

    def _complete(self, hashed: HashedEvents) -> Features:
        return self.frame.memory.complete(hashed, self.tables)


class PublishedModel(ServedModel):
    """A model that came from a checkpoint."""

    def __init__(
        self,
        frame: ModelFrame,
        tables: Tables,
        header: Header,
        tensors: dict[str, torch.Tensor],
        before: ServedModel | None = None,
        compact: Mapping[str, CompactRows] | None = None,
    ):
        """The model after one checkpoint; see `ServedModel`. Raises `CheckpointError`, before
        anything is written, unless `tensors` are those that `header` promises."""
        frame.check(header, tensors)
        super().__init__(frame, tables, Export(header.shape, tensors), before, compact)
        self.header = header

    @classmethod
    def from_checkpoint(cls, header: Header, tensors: dict[str, torch.Tensor]) -> "PublishedModel":
        """The model in a full checkpoint. Raises `CheckpointError`."""
        if header.base:
            rule = f"is a delta, it needs version {header.parent}"
            raise CheckpointError(f"version {header.version}", rule)
        frame = ModelFrame.of(header)
        return cls(frame, frame.empty_tables(), header, tensors)

    @classmethod
    def after(
        cls,
        path: Sequence[tuple[Header, dict[str, torch.Tensor]]],
        frame: ModelFrame,
        tables: Tables,
        before: "PublishedModel | None" = None,
    ) -> "PublishedModel":
        """The model that one checkpoint after the other, full or deltas, makes of `tables` and of
        the compact rows of `before`, which stays as it is.

        `tables` must be as they were before the first of `path`: empty ones for a full checkpoint.
        They are written to, and are the new model's from then on. Tables of the experts that are
        not among them are compact. Raises `CheckpointError`.
        """
        for header, tensors in path:
            frame.check(header, tensors)
        rows = {} if before is None else before.compact
        if not rows or (before is not None and before.frame is not frame):
            rows = {
                n: one
                for n, one in frame.empty_rows(path[0][0].table_precision).items()
                if n not in tables
            }
        rows = {name: _changed(name, one, path) for name, one in rows.items()}
        model = before
        for header, tensors in path:
            model = cls(frame, tables, header, tensors, model, rows)
        assert model is not None
        return model

    def without_compact(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint, with no row of the tables that are compact here."""
        return dict(tensors) | self.frame.no_rows(self.compact)


def _changed(
    name: str, rows: CompactRows, path: Sequence[tuple[Header, dict[str, torch.Tensor]]]
) -> CompactRows:
    precision = path[0][0].table_precision
    changes = [
        (tensors[names.rows_of(name)], tensors[names.values_of(name)]) for _, tensors in path
    ]
    # The first may be a full one, which need not be put together with the others.
    for some in (changes[:1], changes[1:]):
        if any(len(numbers) for numbers, _ in some):
            rows = rows.changed(*last_of_each(some), precision)
    return rows


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    equal = all(torch.equal(tensor, other[name]) for name, tensor in one.items() if name in other)
    return one.keys() == other.keys() and equal
