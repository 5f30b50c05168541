"""Dot products of all pairs of an event's vectors, and their gradients: the interaction of DLRM.

In: the vectors of some events. Out: the products, among the inputs of the top MLP, and the gradient
in the vectors. `torch.bmm` would compute all V x V products of an event, of which half is thrown
away; these kernels compute each pair once and write it to its place. They are compiled for one
number and width of vectors, so that the compiler unrolls their loops and keeps sums in registers.

Shapes: B events, V vectors of D floats, P pairs of vectors, X floats, E events that are worked on
at the same time, W vectors padded to a multiple of eight.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from niwaki.model.jit import kernel

_EVENTS_AT_ONCE = 16
_UNROLLED_VECTORS = 8


@cache
def compiled_dots(vectors: int, width: int) -> Callable[[np.ndarray, np.ndarray, int], None]:
    """The kernel of the products for so many vectors of so many floats."""
    columns, pairs = vectors * width, vectors * (vectors - 1) // 2

    @kernel("void(float32[:,::1], float32[:,::1], int64)", reorder=True)
    def write_dots(vectors_BX: np.ndarray, out_BX: np.ndarray, first: int) -> None:
        """Write the products above the diagonal, row by row, to the columns of `out_BX` from
        `first` on. An event's vectors lie one after the other in the first columns of `vectors_BX`.

        Sixteen events at a time are transposed, so that one instruction works on several; the rest
        are computed one by one.
        """
        events = len(out_BX)
        apart = events - events % _EVENTS_AT_ONCE
        vectors_XE = np.empty((columns, _EVENTS_AT_ONCE), np.float32)
        dots_PE = np.empty((pairs, _EVENTS_AT_ONCE), np.float32)
        for start in range(0, apart, _EVENTS_AT_ONCE):
            for e in range(_EVENTS_AT_ONCE):
                for x in range(columns):
                    vectors_XE[x, e] = vectors_BX[start + e, x]
            p = 0
            for i in range(vectors - 1):
                for j in range(i + 1, vectors):
                    for e in range(_EVENTS_AT_ONCE):
                        total = np.float32(0)
                        for d in range(width):
                            total += vectors_XE[i * width + d, e] * vectors_XE[j * width + d, e]
                        dots_PE[p, e] = total
                    p += 1
            for e in range(_EVENTS_AT_ONCE):
                for q in range(pairs):
                    out_BX[start + e, first + q] = dots_PE[q, e]
        transposed_DV = np.empty((width, vectors), np.float32)
        for b in range(apart, events):
            for i in range(vectors):
                for d in range(width):
                    transposed_DV[d, i] = vectors_BX[b, i * width + d]
            p = first
            for i in range(vectors - 1):
                for j in range(vectors - i - 1):
                    total = np.float32(0)
                    for d in range(width):
                        total += transposed_DV[d, i] * transposed_DV[d, i + 1 + j]
                    out_BX[b, p + j] = total
                p += vectors - i - 1

    return write_dots


@cache
def compiled_dot_gradients(
    vectors: int, width: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    """The kernel of the gradient in so many vectors of so many floats."""
    padded = -(-vectors // _UNROLLED_VECTORS) * _UNROLLED_VECTORS

    @kernel("void(float32[:,::1], float32[:,::1], float32[:,:,::1])", reorder=True)
    def add_dot_gradients(
        errors_BP: np.ndarray, vectors_BX: np.ndarray, out_BVD: np.ndarray
    ) -> None:
        """Add the gradient in the vectors to `out_BVD`. `errors_BP`: gradient in the products.
        `vectors_BX`: as in the forward pass."""
        errors_VW = np.zeros((vectors, padded), np.float32)
        own_WD = np.zeros((padded, width), np.float32)
        for b in range(len(errors_BP)):
            for i in range(vectors):
                for d in range(width):
                    own_WD[i, d] = vectors_BX[b, i * width + d]
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
                        out_BVD[b, i, d] += total

    return add_dot_gradients
