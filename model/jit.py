"""The compiler of the inner loops: numba behind two decorators, `kernel` and `inlined`. The one
home of numba.

In: a plain Python function and its types. Out: the compiled function. A kernel is compiled when its
file is imported, for the one set of types that it is used with, so a live trainer never waits for a
compiler. The result is kept for the next start: in NUMBA_CACHE_DIR, beside that file, or in the
user's cache, whichever can be written to first. A kernel holds no lock on the interpreter, keeps
nothing between two calls, and checks nothing: rows must lie within their table.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

__all__ = ["inlined", "kernel", "prefetch_line", "structs", "types"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
types: Any = numba.types
"""Numba's types, for signatures; the library has no annotations of its own for them."""


def kernel(
    signature: Any, *, reorder: bool = False, brief: bool = False
) -> Callable[[_Function], _Function]:
    """Compile a function for these types, now, or read it from what an earlier start has kept.
    `reorder`: sums may be taken in another order, always the same one, so that they fit vector
    instructions. `brief`: it takes some microseconds, and keeps the lock on the interpreter, since
    to hand that over and take it back takes longer."""

    def compiled(function: _Function) -> _Function:
        options: dict[str, Any] = {
            "nogil": not brief,
            "error_model": "numpy",
            "fastmath": {"reassoc"} if reorder else False,
        }
        try:
            kept: _Function = numba.njit(signature, cache=True, **options)(function)
            return kept
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            # There is nowhere to write to, so the function is compiled at each start.
            unkept: _Function = numba.njit(signature, **options)(function)
            return unkept

    return compiled


def structs(dtype: np.dtype[np.void]) -> Any:
    """The type, for a signature, of a contiguous one-dimensional array of structs."""
    return numba.from_dtype(dtype)[::1]


def inlined(function: _Function) -> _Function:
    """A part of several kernels, compiled into each: a number that one of them passes is known to
    the compiler."""
    options: dict[str, Any] = {"inline": "always", "error_model": "numpy"}
    part: _Function = numba.njit(**options)(function)
    return part


def _prefetch_line(_typing: Any, address: Any) -> Any:
    """Begin to bring the line of the cache that holds an address (`array.ctypes.data` and so many
    bytes) into the cache, and go on at once: a loop that only hints may have many more lines on
    their way than one that reads them. For kernels."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        hint = builder.module.declare_intrinsic(
            "llvm.prefetch",
            [pointer],
            ir.FunctionType(ir.VoidType(), [pointer, number, number, number]),
        )
        read, everywhere, data = number(0), number(3), number(1)
        builder.call(hint, [builder.inttoptr(arguments[0], pointer), read, everywhere, data])
        return context.get_dummy_value()

    return types.void(types.intp), generate


prefetch_line = cast(Callable[[int], None], intrinsic(_prefetch_line))
