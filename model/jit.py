"""The compiler of the inner loops: numba behind two decorators, `kernel` and `inlined`. The one
home of numba.

In: a plain Python function and its types. Out: the compiled function. A kernel is compiled when its
file is imported, for the one set of types that it is used with, so a live trainer never waits for a
compiler. The result is kept for the next start: in NUMBA_CACHE_DIR, beside that file, or in the
user's cache, whichever can be written to first. A kernel holds no lock on the interpreter, keeps
nothing between two calls, and checks nothing: rows must lie within their table.
"""

from collections.abc import Callable
from typing import Any

import numba
from numba import types

__all__ = ["inlined", "kernel", "types"]


def kernel(
    signature: str | tuple, *, reorder: bool = False, brief: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for these types, now, or read it from what an earlier start has kept.
    `reorder`: sums may be taken in another order, always the same one, so that they fit vector
    instructions. `brief`: it takes some microseconds, and keeps the lock on the interpreter, since
    to hand that over and take it back takes longer."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        options = {
            "nogil": not brief,
            "error_model": "numpy",
            "fastmath": {"reassoc"} if reorder else False,
        }
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(signature, **options)(
                function
            )  # nowhere to write to: compiled at each start

    return compiled


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of several kernels, compiled into each: a number that one of them passes is known to
    the compiler."""
    return numba.njit(inline="always", error_model="numpy")(function)
