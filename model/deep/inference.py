"""Forward pass of the deep expert for predictions alone: those of a learner and of a scorer.

In: the network's weights, and the inputs of some events. Out: corrections of the linear expert's
logits. It equals the forward pass of `niwaki.model.deep.passes`, without masks. Nothing is kept
between two calls, so threads may share a `DeepInference`.

Shapes: as in `niwaki.model.deep.network`; B events, I inputs of the top MLP.
"""

import numpy as np
import torch

from niwaki.model.deep import mlp
from niwaki.model.deep.embeddings import Embedded
from niwaki.model.deep.interaction import compiled_products
from niwaki.model.deep.network import Network, Parameters


class DeepInference:
    """One network with its weights."""

    def __init__(self, network: Network, parameters: Parameters, shares: bool = False):
        """Reads `parameters` at each call, and copies none. `shares`: True where fields share rows
        of embeddings, so that a column that is cut for one of them may be left in the table for
        another."""
        self.network, self.parameters = network, parameters
        self._bottom = mlp.layers_of(network, "bottom", parameters)
        self._top = mlp.layers_of(network, "top", parameters)
        self._places = network.top_inputs
        self._cut = network.shape.columns is not None
        mask_FD = network.column_mask_FD
        self._mask = mask_FD.flatten().numpy() if shares and mask_FD is not None else None
        self._entries = network.vectors * network.shape.embedding_dim
        self._dense = slice(network.shape.fields * network.shape.embedding_dim, self._entries)
        """Entries of the vector of the numerics, where there is a bottom MLP."""
        self._pair_count = network.pair_count
        if network.pair_count:
            self._write_products = compiled_products(*network.interaction)

    def inputs(self, events: int) -> torch.Tensor:
        """(B, I): inputs of the top MLP with undefined contents. The caller writes prepared
        numerics and contributions of slots to their places, `network.top_inputs`, and then calls
        `corrections`."""
        return torch.empty(events, self.network.top_inputs.width)

    def corrections(
        self, x_BI: torch.Tensor, table_RD: np.ndarray, embedded: Embedded
    ) -> np.ndarray:
        """(B,) float32: what to add to the linear expert's first logits. `x_BI`: inputs with
        numerics and contributions; the other places are overwritten. `embedded`: rows of the
        embeddings in `table_RD`, where columns that are cut are zero, unless rows are shared."""
        # All vectors, one after the other: the first of the inputs, unless columns are cut.
        vectors_BX = torch.empty(len(x_BI), self._entries) if self._cut else x_BI
        x, vectors = x_BI.numpy(), vectors_BX.numpy()
        embedded.write_vectors(table_RD, vectors)
        if self._mask is not None:
            vectors[:, : len(self._mask)] *= self._mask
        if self._bottom:
            dense_BD = mlp.predict(self._bottom, x_BI[:, self._places.numerics])
            vectors[:, self._dense] = dense_BD.numpy()
        if self._pair_count:
            self._write_products(vectors, x, self._places.products.start)
        if self._cut:
            x[:, self._places.vectors] = vectors_BX.index_select(1, self.network.read).numpy()
        corrections: np.ndarray = mlp.predict(self._top, x_BI).numpy()[:, 0]
        return corrections
