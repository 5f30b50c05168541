"""What a published model's experts say, for those who only predict: `model.linear.slots`, in fewer
passes over memory.

In: the features of some events, and a model's tables and weights. Out: the logits of all experts.
Events are taken some hundred at a time. It keeps nothing between two calls, so threads may share
it.

Shapes: as in `model.linear.slots`, and I inputs of the top MLP, M prepared numerics.
"""

from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.deep.interaction import compiled_dots
from niwaki.model.deep.network import Network, Parameters
from niwaki.model.deep.sparse import Pattern
from niwaki.model.features.encoder import Features
from niwaki.model.features.numerics import Scale, prepare
from niwaki.model.linear.kernels import compiled_contributions
from niwaki.model.linear.slots import Slots

_PIECE_EVENTS = 512

Layers = list[tuple[Pattern | None, torch.Tensor, torch.Tensor]]
"""Which weights there are (None: all), weights, biases."""


class Inference:
    """One network with its weights."""

    def __init__(self, slots: Slots, network: Network, parameters: Parameters):
        self.network, self.parameters = network, parameters
        self._places = slots.places
        shape = network.shape
        self._bottom = self._layers("bottom", len(shape.bottom) + 1) if shape.bottom else []
        self._top = self._layers("top", len(shape.top) + 1)
        self._inputs = network.inputs
        self._width = shape.embedding_dim
        self._cut = shape.columns is not None
        self._wide = network.vectors * shape.embedding_dim
        self._read = network.read
        self._vectors = len(network.read)
        self._numerics = self._vectors + shape.numerics
        self._slots = self._numerics + shape.slots
        self._take_dots = (
            compiled_dots(network.vectors, shape.embedding_dim) if network.pair_count else None
        )

    def experts(
        self,
        features: Features,
        scale: Scale,
        tables: Mapping[str, torch.Tensor],
        prior_SK: torch.Tensor,
    ) -> np.ndarray:
        """(B, E) float32 logits of the experts. `prior_SK`: 1 / prior variance of each slot."""
        prepared = prepare(features.numerics_BN, scale)
        found = [part.numpy() for part in (features.rows_BF, features.pairs_BP, *prepared)]
        model = tables["linear"].numpy(), prior_SK.numpy(), tables["embedding"].numpy()
        experts_BE = np.empty((len(found[0]), prior_SK.shape[1] + 1), np.float32)
        for start in range(0, len(experts_BE), _PIECE_EVENTS):
            piece = slice(start, start + _PIECE_EVENTS)
            self._say(*model, [part[piece] for part in found], experts_BE[piece])
        return experts_BE

    def _say(
        self,
        evidence_R2K: np.ndarray,
        prior_SK: np.ndarray,
        embedding_RD: np.ndarray,
        found: list[np.ndarray],
        experts_BE: np.ndarray,
    ) -> None:
        """`found`: of each event, rows of fields and pairs, and prepared numerics."""
        events = len(experts_BE)
        x_BI = torch.empty(events, self._inputs)
        x = x_BI.numpy()
        say = compiled_contributions(prior_SK.shape[1])
        say(evidence_R2K, prior_SK, *found, *self._places, x, self._numerics, experts_BE)
        x[:, self._vectors : self._numerics] = found[2]
        # Whole vectors: the first of the inputs, unless columns are cut out.
        whole_BX = torch.empty(events, self._wide) if self._cut else x_BI
        whole = whole_BX.numpy()
        kernels.gather_embeddings(embedding_RD, found[0], whole)
        if self._bottom:
            said_BD = _mlp(self._bottom, x_BI[:, self._vectors : self._numerics])
            whole_BX[:, self._wide - self._width : self._wide] = said_BD
        if self._take_dots:
            self._take_dots(whole, x, self._slots)
        if self._cut:
            x_BI[:, : self._vectors] = whole_BX.index_select(1, self._read)
        np.add(experts_BE[:, 0], _mlp(self._top, x_BI).numpy()[:, 0], out=experts_BE[:, -1])

    def _layers(self, name: str, count: int) -> Layers:
        patterns, parameters = self.network.patterns, self.parameters
        at = (f"{name}.{i}" for i in range(count))
        return [
            (
                patterns.get(f"{layer}.weight"),
                parameters[f"{layer}.weight"],
                parameters[f"{layer}.bias"],
            )
            for layer in at
        ]


def _mlp(made_of: Layers, x_BI: torch.Tensor) -> torch.Tensor:
    """(B, O). Of hidden layers events are the columns, as in `model.deep.passes`."""
    events, x_IB = len(x_BI), x_BI.T
    if made_of[0][0]:
        x_IB = x_IB.contiguous()
        for i, (pattern, values_N, bias_O) in enumerate(made_of, 1):
            out_OB = torch.empty(len(bias_O), events)
            pattern.product(
                values_N.numpy(),
                bias_O.numpy(),
                x_IB.numpy(),
                events,
                i < len(made_of),
                out_OB.numpy(),
            )
            x_IB = out_OB
        return x_IB.T
    *hidden, (_, weight_OI, bias_O) = made_of
    for _, weight_HI, bias_H in hidden:
        x_IB = torch.mm(weight_HI, x_IB)
        kernels.rectify(x_IB.numpy(), bias_H.numpy())
    return torch.addmm(bias_O, x_IB.T, weight_OI.T)
