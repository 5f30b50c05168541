"""Products of all pairs of an event's vectors, and their gradients: the interaction.

In: the vectors of some events. Out: the products, among the inputs of the top MLP, and the gradient
in the vectors. They are dot products, as in DLRM, or cosines: embeddings begin at zero, so that the
dot product of two ids that were seen seldom is almost zero, even where they point the same way.

`torch.bmm` would compute all V x V products of an event, of which half is thrown away; these
kernels compute each pair once and write it to its place. They are compiled for one number and width
of vectors, so that the compiler unrolls their loops and keeps sums in registers.

Shapes: B events, V vectors of D floats, P pairs of vectors, X floats, E events that are worked on
at the same time, W vectors padded to a multiple of eight.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from niwaki.model.jit import inlined, kernel

SOFTENING = np.float32(1e-3)
"""Added to the square of a vector's length before it is divided by that, so that the cosines of a
vector near zero are near zero."""

_FULL_VECTORS = 10
_EVENTS_AT_ONCE = 16
_UNROLLED_VECTORS = 8


def gain_of(vectors: int) -> np.float32:
    """The factor of cosines: where there are more than ten vectors, it falls with the number of
    pairs, since most of these then say nothing."""
    return np.float32(min(1.0, (_FULL_VECTORS / vectors) ** 2))


def for_cosines(vectors_BVD: torch.Tensor, gain: float) -> torch.Tensor:
    """(B, V, D): vectors whose dot products are the cosines of these, times `gain` (see `gain_of`),
    in operations of torch, for exports and comparisons."""
    square_BV1 = vectors_BVD.square().sum(2, keepdim=True) + float(SOFTENING)
    return vectors_BVD * (gain / square_BV1).sqrt()


@inlined
def _factor(vectors_BX: np.ndarray, b: int, first: int, width: int, gain: np.float32) -> np.float32:
    """The factor that makes event b's vector, from column `first` on, one for cosines."""
    square = SOFTENING
    for d in range(width):
        square += vectors_BX[b, first + d] * vectors_BX[b, first + d]
    factor: np.float32 = np.sqrt(gain / square)
    return factor


@cache
def compiled_products(
    vectors: int, width: int, cosine: bool
) -> Callable[[np.ndarray, np.ndarray, int], None]:
    """The kernel of the products for so many vectors of so many floats. `cosine`: of cosines, times
    `gain_of(vectors)`; else of dot products."""
    gain = gain_of(vectors)
    columns, pairs = vectors * width, vectors * (vectors - 1) // 2

    @kernel("void(float32[:,::1], float32[:,::1], int64)", reorder=True)
    def write_products(vectors_BX: np.ndarray, out_BX: np.ndarray, first: int) -> None:
        """Write the products above the diagonal, row by row, to the columns of `out_BX` from
        `first` on. An event's vectors lie one after the other in the first columns of `vectors_BX`.

        Sixteen events at a time are transposed, so that one instruction works on several; the rest
        are computed one by one.
        """
        events = len(out_BX)
        apart = events - events % _EVENTS_AT_ONCE
        vectors_XE = np.empty((columns, _EVENTS_AT_ONCE), np.float32)
        products_PE = np.empty((pairs, _EVENTS_AT_ONCE), np.float32)
        factor_E = np.empty(_EVENTS_AT_ONCE, np.float32)
        for start in range(0, apart, _EVENTS_AT_ONCE):
            for e in range(_EVENTS_AT_ONCE):
                for x in range(columns):
                    vectors_XE[x, e] = vectors_BX[start + e, x]
            if cosine:
                for i in range(vectors):
                    for e in range(_EVENTS_AT_ONCE):
                        square = SOFTENING
                        for d in range(width):
                            square += vectors_XE[i * width + d, e] * vectors_XE[i * width + d, e]
                        factor_E[e] = np.sqrt(gain / square)
                    for d in range(width):
                        for e in range(_EVENTS_AT_ONCE):
                            vectors_XE[i * width + d, e] *= factor_E[e]
            p = 0
            for i in range(vectors - 1):
                for j in range(i + 1, vectors):
                    for e in range(_EVENTS_AT_ONCE):
                        total = np.float32(0)
                        for d in range(width):
                            total += vectors_XE[i * width + d, e] * vectors_XE[j * width + d, e]
                        products_PE[p, e] = total
                    p += 1
            for e in range(_EVENTS_AT_ONCE):
                for q in range(pairs):
                    out_BX[start + e, first + q] = products_PE[q, e]
        transposed_DV = np.empty((width, vectors), np.float32)
        for b in range(apart, events):
            for i in range(vectors):
                factor = np.float32(1)
                if cosine:
                    factor = _factor(vectors_BX, b, i * width, width, gain)
                for d in range(width):
                    transposed_DV[d, i] = vectors_BX[b, i * width + d] * factor
            p = first
            for i in range(vectors - 1):
                for j in range(vectors - i - 1):
                    total = np.float32(0)
                    for d in range(width):
                        total += transposed_DV[d, i] * transposed_DV[d, i + 1 + j]
                    out_BX[b, p + j] = total
                p += vectors - i - 1

    return write_products


@cache
def compiled_product_gradients(
    vectors: int, width: int, cosine: bool
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """The kernel of the gradient in so many vectors of so many floats; `cosine` as for the
    products."""
    gain = gain_of(vectors)
    padded = -(-vectors // _UNROLLED_VECTORS) * _UNROLLED_VECTORS

    @kernel("void(float32[:,::1], float32[:,::1], float32[:,:,::1])", reorder=True)
    def add_product_gradients(
        errors_BP: np.ndarray, vectors_BX: np.ndarray, out_BVD: np.ndarray
    ) -> None:
        """Add the gradient in the vectors to `out_BVD`. `errors_BP`: gradient in the products.
        `vectors_BX`: as in the forward pass."""
        errors_VW = np.zeros((vectors, padded), np.float32)
        own_WD = np.zeros((padded, width), np.float32)
        factor_V = np.ones(vectors, np.float32)
        gradient_D = np.zeros(width, np.float32)
        for b in range(len(errors_BP)):
            for i in range(vectors):
                if cosine:
                    factor_V[i] = _factor(vectors_BX, b, i * width, width, gain)
                for d in range(width):
                    own_WD[i, d] = vectors_BX[b, i * width + d] * factor_V[i]
            p = 0
            for i in range(vectors):
                others = vectors - i - 1
                for j in range(others):
                    errors_VW[i, i + 1 + j] = errors_BP[b, p + j]
                for j in range(others):
                    errors_VW[i + 1 + j, i] = errors_BP[b, p + j]
                p += others
            for i in range(vectors):
                for start in range(0, padded, _UNROLLED_VECTORS):
                    for d in range(width):
                        total = np.float32(0)
                        for j in range(_UNROLLED_VECTORS):
                            total += errors_VW[i, start + j] * own_WD[start + j, d]
                        if cosine:
                            gradient_D[d] += total
                        else:
                            out_BVD[b, i, d] += total
                if cosine:
                    # The gradient in a vector's direction: what lies along the vector is left out.
                    along = np.float32(0)
                    for d in range(width):
                        along += gradient_D[d] * own_WD[i, d]
                    along /= gain
                    for d in range(width):
                        across = gradient_D[d] - along * own_WD[i, d]
                        out_BVD[b, i, d] += factor_V[i] * across
                        gradient_D[d] = 0

    return add_product_gradients
