"""Inference with a published model: the same features, tables and network code as the learner's, at the compact widths.

In: a checkpoint's header and tensors. Out: click probabilities. A scorer holds one of these at a time; a trainer
follows its own publications with one, to know how good the served predictions are. It learns nothing.
"""

import numpy as np
import torch

from model.checkpoint import CheckpointError, Header
from model.experts import Slots, assemble, deep_logits
from model.features import Encoder, EventBatch, Features, Schema
from model.learner import Export
from model.linear import lazy_zeros
from model.mixture import mix
from model.network import Network
from model.numerics import KNOTS, Scale


class ServedModel:
    """A published model, ready to predict."""

    header: Header | None = None
    """The checkpoint's, where it came from one."""

    def __init__(self, schema: Schema, encoder: Encoder, *, embedding_dim: int, scales: int):
        """An empty model: nothing to predict with before the first `apply`. `scales`: time scales of the linear
        expert."""
        self.encoder, self._slots = encoder, Slots(schema, encoder)
        self._tables = {
            "embedding": lazy_zeros(len(schema.fields) * encoder.rows, embedding_dim),
            "linear": lazy_zeros(self._slots.rows, 2, scales),
        }

    @classmethod
    def from_checkpoint(cls, header: Header, tensors: dict[str, torch.Tensor]) -> "ServedModel":
        """The model in a full checkpoint. Raises `CheckpointError` if the tensors are not those that the header
        promises."""
        encoder = Encoder(header.schema, rows=header.table_rows, pair_rows=header.pair_rows, seed=header.hash_seed)
        model = cls(
            header.schema, encoder, embedding_dim=header.shape.embedding_dim, scales=len(header.half_lives_events)
        )
        model._check(header, tensors)
        model.apply(Export(header.shape, tensors))
        model.header = header
        return model

    def apply(self, export: Export) -> None:
        """Take over an export: its rows replace ours, and the rest of it is what predicts from now on."""
        tensors = export.tensors
        for name, table in self._tables.items():
            table[tensors[f"{name}.rows"]] = tensors[f"{name}.values"]
        self._prior_SK = tensors["linear.prior"]
        self._scale = Scale(tensors["numerics.moments"], tensors["numerics.knots"])
        self._mixture = tensors["mixture"].numpy()
        self._network = Network(export.shape)
        self._parameters = {
            name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")
        }

    def experts(self, features: Features) -> np.ndarray:
        """(B, E) float32 logits of the experts."""
        with torch.inference_mode():
            inputs = assemble(self._slots, features, self._scale, self._tables["linear"], self._prior_SK)
            vectors_BFD = self._tables["embedding"][features.rows_BF]
            deep_B = deep_logits(self._network, self._parameters, inputs, vectors_BFD)
            return torch.cat([inputs.linear_BK, deep_B[:, None]], 1).numpy()

    def logits(self, experts_BE: np.ndarray) -> np.ndarray:
        """(B,) float32 logits, mixed from those of the experts."""
        return mix(self._mixture, experts_BE)

    def predict(self, batch: EventBatch) -> np.ndarray:
        """(B,) float32 click probabilities; labels are not read."""
        logits_B = self.logits(self.experts(self.encoder.encode(batch)))
        return torch.from_numpy(logits_B).sigmoid().numpy()

    def _check(self, header: Header, tensors: dict[str, torch.Tensor]) -> None:
        scales, numerics = len(header.half_lives_events), len(header.schema.numeric)
        shapes = {f"network.{name}": shape for name, shape in Network(header.shape).shapes.items()}
        shapes |= {
            "linear.prior": (len(self._slots), scales),
            "numerics.moments": (2, numerics),
            "numerics.knots": (numerics, KNOTS),
            "mixture": (scales + 2,),
        }
        for name, table in self._tables.items():
            shapes[f"{name}.rows"] = (tensors[f"{name}.rows"].numel() if f"{name}.rows" in tensors else 0,)
            shapes[f"{name}.values"] = (*shapes[f"{name}.rows"], *table.shape[1:])
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise CheckpointError(f"checkpoint: tensor {name} must be {list(shape)}")
        for name, table in self._tables.items():
            rows = tensors[f"{name}.rows"]
            if rows.dtype != torch.int64 or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(table)):
                raise CheckpointError(f"checkpoint: {name}.rows must be rows of a table of {len(table)}")
        if header.shape.slots != len(self._slots):
            raise CheckpointError(f"checkpoint: the network reads {header.shape.slots} slots, not {len(self._slots)}")
