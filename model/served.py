"""Inference with a published model: the same features, tables and network code as the learner's, at the compact widths.

In: a checkpoint's header and tensors. Out: click probabilities. A scorer holds one of these at a time; a trainer
follows its own publications with one, to know how good the served predictions are. It learns nothing.
"""

import numpy as np
import torch

from model.checkpoint import CheckpointError, Header
from model.features import Encoder, EventBatch, Features, Schema
from model.learner import Export
from model.network import Network
from model.numerics import standardize


class ServedModel:
    """A published model, ready to predict."""

    header: Header | None = None
    """The checkpoint's, where it came from one."""

    def __init__(self, schema: Schema, *, table_rows: int, hash_seed: int, embedding_dim: int):
        """An empty model: nothing to predict with before the first `apply`."""
        self.encoder = Encoder(schema, rows=table_rows, seed=hash_seed)
        self._weight_RK = torch.zeros(len(schema.fields) * table_rows, 1 + embedding_dim)

    @classmethod
    def from_checkpoint(cls, header: Header, tensors: dict[str, torch.Tensor]) -> "ServedModel":
        """The model in a full checkpoint. Raises `CheckpointError` if the tensors are not those that the header
        promises."""
        dim = header.shape.embedding_dim
        model = cls(header.schema, table_rows=header.table_rows, hash_seed=header.hash_seed, embedding_dim=dim)
        shapes = {f"network.{name}": shape for name, shape in Network(header.shape).shapes.items()}
        shapes |= {"scale": (2, len(header.schema.numeric)), "weights": (len(tensors.get("rows", ())), 1 + dim)}
        for name, shape in shapes.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise CheckpointError(f"checkpoint: tensor {name} must be {list(shape)}")
        rows = tensors["rows"]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(model._weight_RK):
            raise CheckpointError("checkpoint: a table row is out of range")
        model.apply(Export(header.shape, tensors))
        model.header = header
        return model

    def apply(self, export: Export) -> None:
        """Take over an export: its rows replace ours, and its network is the network from now on."""
        tensors = export.tensors
        self._weight_RK[tensors["rows"]] = tensors["weights"]
        self._scale_2N = tensors["scale"]
        self._network = Network(export.shape)
        self._parameters = {
            name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")
        }

    def logits(self, features: Features) -> np.ndarray:
        """(B,) float32 logits."""
        with torch.inference_mode():
            numerics_BM = standardize(features.numerics_BN, self._scale_2N)
            return self._network.logits(self._parameters, self._weight_RK[features.rows_BF], numerics_BM).numpy()

    def predict(self, batch: EventBatch) -> np.ndarray:
        """(B,) float32 click probabilities; labels are not read."""
        with torch.inference_mode():
            return torch.from_numpy(self.logits(self.encoder.encode(batch))).sigmoid().numpy()
