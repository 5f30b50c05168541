"""What a published model's experts say, for those who only predict: `model.experts`, in fewer passes over memory.

In: the features of some events, and a model's tables and weights. Out: the logits of all experts. Events are columns on
the way, so that dot products run over many of them at once; they are taken in pieces that stay in a core's cache. It
keeps nothing between two calls, so threads may share it.

Shapes: as in `model.experts`, and I inputs of the top MLP, M prepared numerics.
"""

from collections.abc import Mapping

import numpy as np
import torch

from model.encoder import Features
from model.experts import Slots
from model.kernels import kernel
from model.linear_kernels import saying_of
from model.network import Network, Parameters
from model.numerics import Scale, prepare
from model.sparse import Pattern

_PIECE_EVENTS = 128
_APART = 16

Layers = list[tuple[Pattern | None, torch.Tensor, torch.Tensor]]
"""Which weights there are (None: all), weights, biases (O, 1)."""


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
        self._read = torch.cat([network.read, torch.arange(self._wide, self._wide + shape.numerics)])
        self._vectors = len(network.read)
        self._fields = self._vectors - (shape.embedding_dim if self._bottom else 0)
        self._numerics = self._vectors + shape.numerics
        self._slots = self._numerics + shape.slots
        self._dots = shape.interaction == "dot"

    def experts(
        self, features: Features, scale: Scale, tables: Mapping[str, torch.Tensor], prior_SK: torch.Tensor
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
        # Wider than need be: were the rows a power of two apart, they would drive each other out of the cache.
        x_IX = torch.empty(self._inputs, events + _APART)
        x = x_IX.numpy()
        say = saying_of(prior_SK.shape[1])
        say(evidence_R2K, prior_SK, *found, *self._places, x[self._numerics : self._slots], experts_BE)
        # Vectors as wide as dot products need them, and numerics: the first of the inputs, unless columns are cut out.
        whole_IX = torch.empty(self._wide + len(self._read) - self._vectors, events + _APART) if self._cut else x_IX
        whole = whole_IX.numpy()
        embed(embedding_RD, found[0], found[2], self._wide, whole)
        if self._bottom:
            numerics_MX = whole_IX[self._wide : self._wide + self._numerics - self._vectors]
            _mlp(self._bottom, numerics_MX, events, whole_IX[self._wide - self._width : self._wide])
        if self._dots:
            dot(whole[: self._wide], self._width, events, x[self._slots :])
        if self._cut:
            torch.index_select(whole_IX, 0, self._read, out=x_IX[: self._numerics])
        deep_1X = torch.empty(1, events + _APART)
        _mlp(self._top, x_IX, events, deep_1X)
        np.add(experts_BE[:, 0], deep_1X.numpy()[0, :events], out=experts_BE[:, -1])

    def _layers(self, name: str, count: int) -> Layers:
        patterns, parameters = self.network.patterns, self.parameters
        at = (f"{name}.{i}" for i in range(count))
        return [
            (patterns.get(f"{layer}.weight"), parameters[f"{layer}.weight"], parameters[f"{layer}.bias"].unsqueeze(1))
            for layer in at
        ]


def _mlp(layers: Layers, x_IX: torch.Tensor, events: int, out_OX: torch.Tensor) -> None:
    """Of the buffers' columns, the first `events` are read and written."""
    if layers[0][0]:
        for i, (pattern, values_N, bias_O1) in enumerate(layers, 1):
            out = out_OX if i == len(layers) else torch.empty(len(bias_O1), out_OX.shape[1])
            arrays = values_N.numpy(), bias_O1.flatten().numpy(), x_IX.numpy()
            pattern.product(*arrays, events, i < len(layers), out.numpy())
            x_IX = out
        return
    *hidden, (_, weight_OI, bias_O1) = layers
    x_IB = x_IX[:, :events]
    for _, weight_HI, bias_H1 in hidden:
        x_IB = torch.addmm(bias_H1, weight_HI, x_IB).relu_()
    torch.addmm(bias_O1, weight_OI, x_IB, out=out_OX[:, :events])


@kernel("void(float32[:,::1], int64[:,::1], float32[:,::1], int64, float32[:,::1])")
def embed(table_RD, rows_BF, numerics_BM, first_numeric, out_IB):
    """The rows of each event, one below the other, and its numerics from `first_numeric` on."""
    events, fields = rows_BF.shape
    width = table_RD.shape[1]
    for b in range(events):
        for f in range(fields):
            row = rows_BF[b, f]
            for d in range(width):
                out_IB[f * width + d, b] = table_RD[row, d]
        for m in range(numerics_BM.shape[1]):
            out_IB[first_numeric + m, b] = numerics_BM[b, m]


@kernel("void(float32[:,::1], int64, int64, float32[:,::1])")
def dot(vectors_XB, width, events, out_PB):
    """The dot products of all pairs of vectors of `width` floats, row by row of the upper triangle."""
    vectors = len(vectors_XB) // max(width, 1)
    p = 0
    for i in range(vectors):
        for j in range(i + 1, vectors):
            out_PB[p, :events] = 0
            for d in range(width):
                for b in range(events):
                    out_PB[p, b] += vectors_XB[i * width + d, b] * vectors_XB[j * width + d, b]
            p += 1
