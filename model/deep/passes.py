"""Forward and backward pass of the deep expert, for a network that learns.

In: the inputs of a micro-batch, then the gradient in each event's logit. Out: corrections of the
linear expert's logits, then the gradients of the *summed* loss in all parameters, in the
embeddings, and in masks. The forward pass equals that of `niwaki.model.deep.inference`, which keeps
nothing for a backward pass. Passes change no parameter.

Masks are straight-through: a masked unit gets a gradient in its mask, and passes nothing on.
Columns of the tables are either masked in the vectors, or cut out: then they are zero in the dot
products, and the top MLP has no inputs for them. Buffers are kept while micro-batches are of one
size, so results are valid until the next pass.

Shapes: as in `niwaki.model.deep.network`; B events, I inputs of the top MLP, P products, C
columns of all fields (F * D).
"""

import numpy as np
import torch

from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.interaction import compiled_product_gradients, compiled_products
from niwaki.model.deep.mlp import Masks, mlp_of
from niwaki.model.deep.network import COLUMNS, Network, Parameters
from niwaki.pruning.units import MaskGradient


class Passes:
    """Both passes of one network, over parameters and gradients of the caller."""

    def __init__(self, network: Network, parameters: Parameters, gradients: Parameters):
        """`gradients`: of the shapes of `parameters`; each backward pass overwrites them."""
        shape = network.shape
        self._network = network
        self._top = mlp_of(network, "top", parameters, gradients)
        self._bottom = mlp_of(network, "bottom", parameters, gradients) if shape.bottom else None
        self._cut = network.column_mask_FD is not None
        self._cut_mask_C = (
            None if network.column_mask_FD is None else network.column_mask_FD.flatten()
        )
        self._mask_C: torch.Tensor | None = None
        self._column_gradients: dict[str, MaskGradient] = {}
        self._read_fields = network.read[: _fields_read(network)]
        if network.pair_count:
            self._write_products = compiled_products(*network.interaction)
            self._add_product_gradients = compiled_product_gradients(*network.interaction)
        self._buffers = _Buffers(network, 0)

    def forward(
        self,
        table_RD: np.ndarray,
        embedded: Embedded,
        numerics_BM: torch.Tensor,
        contributions_BS: torch.Tensor,
        masks: Masks | None = None,
    ) -> torch.Tensor:
        """(B,): corrections of the linear expert's logits. `embedded`: rows of the embeddings in
        `table_RD`. `masks`: factors on the outputs or the weights of units, by group; the group
        of the tables' columns may be left out."""
        if len(embedded.rows_BF) != self._buffers.events:
            # Making views at each pass would take longer than the pass of a small network.
            self._buffers = _Buffers(self._network, len(embedded.rows_BF))
        to = self._buffers
        embedded.write_vectors(table_RD, to.vectors)
        self._mask_C = self._cut_mask_C if self._cut else masks.get(COLUMNS) if masks else None
        if self._mask_C is not None:
            if not self._cut:
                self._unmasked_BC = to.columns_BC.clone()
            to.columns_BC *= self._mask_C
            if self._cut:
                to.read_BC[:] = to.vectors_BX.index_select(1, self._read_fields)
        to.numerics[:] = numerics_BM.numpy()
        to.contributions[:] = contributions_BS.numpy()
        if self._bottom is not None:
            self._bottom.forward(to.numerics_BM, to.dense_BD, masks)
            if self._cut:
                to.vectors_BX[:, to.columns_BC.shape[1] :] = to.dense_BD
        if self._network.pair_count:
            self._write_products(to.vectors, to.x, self._network.top_inputs.products.start)
        self._top.forward(to.x_BI, to.correction_B1, masks)
        return to.correction_B

    def backward(self, errors_B: torch.Tensor) -> torch.Tensor:
        """(B, V, D): the gradient in the vectors, those of the fields first. Writes the gradients
        in all parameters. `errors_B`: dL/dlogit of each event."""
        at, inputs = self._buffers, self._network.top_inputs
        at.correction_errors_B.copy_(errors_B)
        self._top.backward(at.correction_errors_B1)
        if self._cut:
            read_BX = torch.empty(at.events, inputs.vectors.stop)
            self._top.input_gradient(inputs.vectors, read_BX)
            at.errors_BX.zero_().index_copy_(1, self._network.read, read_BX)
        elif inputs.vectors.stop:
            self._top.input_gradient(inputs.vectors, at.errors_BX)
        if self._network.pair_count:
            self._top.input_gradient(inputs.products, at.product_errors_BP)
            self._add_product_gradients(at.product_errors, at.vectors, at.errors)
        if self._bottom is not None:
            self._bottom.backward(at.dense_errors_BD)
        self._column_gradients = {}
        if self._mask_C is not None:
            errors_BC = at.errors_BX[:, : at.columns_BC.shape[1]]
            if not self._cut:
                each_BC = errors_BC * self._unmasked_BC
                self._column_gradients[COLUMNS] = MaskGradient(
                    each_BC.mean(0), each_BC.square_().mean(0)
                )
            errors_BC *= self._mask_C
        return at.errors_BVD

    def mask_gradients(self) -> dict[str, MaskGradient]:
        """Gradients in the masks of the last passes, by group."""
        bottom = {} if self._bottom is None else self._bottom.mask_gradients()
        return bottom | self._top.mask_gradients() | self._column_gradients


class _Buffers:
    """Buffers of the passes over B events, and views of them."""

    def __init__(self, network: Network, events: int):
        shape, inputs = network.shape, network.top_inputs
        self.events = events
        fields_read = _fields_read(network)
        columns = shape.fields * shape.embedding_dim
        entries = network.vectors * shape.embedding_dim
        self.x_BI = torch.empty(events, inputs.width)
        """Inputs of the top MLP."""
        self.x: np.ndarray = self.x_BI.numpy()
        self.numerics: np.ndarray = self.x[:, inputs.numerics]
        self.contributions: np.ndarray = self.x[:, inputs.contributions]
        self.numerics_BM = self.x_BI[:, inputs.numerics]
        self.read_BC = self.x_BI[:, :fields_read]
        """Entries of the fields' vectors that the top MLP reads."""
        self.dense_BD = self.x_BI[:, fields_read : inputs.vectors.stop]
        """The vector of the numerics; (B, 0) without a bottom MLP."""
        self.vectors_BX = self.x_BI if shape.columns is None else torch.empty(events, entries)
        """All vectors, one after the other: the first of the inputs, unless columns are cut."""
        self.vectors: np.ndarray = self.vectors_BX.numpy()
        self.columns_BC = self.vectors_BX[:, :columns]
        self.correction_B1 = torch.empty(events, 1)
        self.correction_B = self.correction_B1[:, 0]
        self.correction_errors_B1 = torch.empty(events, 1)
        self.correction_errors_B = self.correction_errors_B1[:, 0]
        self.errors_BVD = torch.empty(events, network.vectors, shape.embedding_dim)
        """Gradients in the vectors."""
        self.errors: np.ndarray = self.errors_BVD.numpy()
        self.errors_BX = self.errors_BVD.view(events, entries)
        self.dense_errors_BD = self.errors_BX[:, columns:]
        self.product_errors_BP = torch.empty(events, network.pair_count)
        """Gradients in the products."""
        self.product_errors: np.ndarray = self.product_errors_BP.numpy()


def _fields_read(network: Network) -> int:
    """Number of entries of the fields' vectors that the top MLP reads."""
    dense = network.shape.embedding_dim if network.shape.bottom else 0
    return len(network.read) - dense
