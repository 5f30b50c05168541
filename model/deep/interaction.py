"""The dot products of all pairs of an event's vectors, and their gradient: kernels compiled for how
many and how wide.

In and out as in `model.kernels`. `torch.bmm` makes all V x V products of an event, in a buffer of
which half is thrown away; here each pair is made once, and goes straight to its place among the
inputs of the top MLP. Loops of a length that the compiler knows are unrolled, and what is summed
stays in registers.

Shapes: B events, V vectors of D floats, P pairs of them, X floats.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from niwaki.model.jit import kernel

_TOGETHER_EVENTS = 16
_UNROLLED_VECTORS = 8


@cache
def compiled_dots(vectors: int, width: int) -> Callable[..., Any]:
    """The products; see the kernel."""
    columns, pairs = vectors * width, vectors * (vectors - 1) // 2

    @kernel("void(float32[:,::1], float32[:,::1], int64)", reorder=True)
    def take_dots(from_BX, out_BX, first):
        """Of vectors that lie one after the other from the first column of `from_BX` on, to the
        columns of `out_BX` from `first` on: what lies above the diagonal, row by row. Many events
        are taken some at a time, turned, so that each instruction works on several; what is left of
        them one by one."""
        events = len(out_BX)
        apart = events - events % _TOGETHER_EVENTS
        vectors_XE = np.empty((columns, _TOGETHER_EVENTS), np.float32)
        dots_PE = np.empty((pairs, _TOGETHER_EVENTS), np.float32)
        for start in range(0, apart, _TOGETHER_EVENTS):
            for e in range(_TOGETHER_EVENTS):
                for x in range(columns):
                    vectors_XE[x, e] = from_BX[start + e, x]
            p = 0
            for i in range(vectors - 1):
                for j in range(i + 1, vectors):
                    for e in range(_TOGETHER_EVENTS):
                        total = np.float32(0)
                        for d in range(width):
                            total += vectors_XE[i * width + d, e] * vectors_XE[j * width + d, e]
                        dots_PE[p, e] = total
                    p += 1
            for e in range(_TOGETHER_EVENTS):
                for q in range(pairs):
                    out_BX[start + e, first + q] = dots_PE[q, e]
        turned_DV = np.empty((width, vectors), np.float32)
        for b in range(apart, events):
            for i in range(vectors):
                for d in range(width):
                    turned_DV[d, i] = from_BX[b, i * width + d]
            p = first
            for i in range(vectors - 1):
                for j in range(vectors - i - 1):
                    total = np.float32(0)
                    for d in range(width):
                        total += turned_DV[d, i] * turned_DV[d, i + 1 + j]
                    out_BX[b, p + j] = total
                p += vectors - i - 1

    return take_dots


@cache
def compiled_dot_gradients(vectors: int, width: int) -> Callable[..., Any]:
    """The gradient in the vectors; see the kernel."""
    padded = -(-vectors // _UNROLLED_VECTORS) * _UNROLLED_VECTORS

    @kernel("void(float32[:,::1], float32[:,::1], float32[:,:,::1])", reorder=True)
    def add_dot_gradients(errors_BP, from_BX, out_BVD):
        """Added to `out_BVD`. `errors_BP`: the gradient in the products. `from_BX`: as they were
        made from."""
        errors_VW = np.zeros((vectors, padded), np.float32)
        own_WD = np.zeros((padded, width), np.float32)
        for b in range(len(errors_BP)):
            for i in range(vectors):
                for d in range(width):
                    own_WD[i, d] = from_BX[b, i * width + d]
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
