"""A detector's state, read off its objects attribute by attribute and put back: exact, small, and
nothing executable.

In: an object of River. Out: numbers, strings, bytes, lists and dictionaries. It holds for one
version of River and one configuration of a detector.
"""

import inspect
import random
from collections import deque
from typing import Any

import numpy as np


def freeze(value: Any) -> Any:
    """What a part of a detector is made of, as numbers, strings, bytes, lists and dictionaries."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, deque | list | tuple):
        return [freeze(one) for one in value]
    if isinstance(value, random.Random):
        return freeze(value.getstate())
    if inspect.ismethod(value):
        return value.__name__
    if hasattr(value, "__dict__"):
        return {name: freeze(one) for name, one in vars(value).items()}
    return value.__getstate__()  # compiled: bytes


def thaw(fresh: Any, state: Any) -> Any:
    """`state` in the form of `fresh`, the same part of a detector just built; objects are changed
    in place."""
    if isinstance(fresh, deque):
        return deque(state, fresh.maxlen)
    if isinstance(fresh, random.Random):
        kind, words, gauss = state
        fresh.setstate((kind, tuple(words), gauss))
    elif hasattr(fresh, "__dict__") and isinstance(state, dict):
        for name, part in state.items():
            before = getattr(fresh, name, None)
            setattr(
                fresh,
                name,
                getattr(fresh, part) if inspect.ismethod(before) else thaw(before, part),
            )
    elif hasattr(fresh, "__setstate__"):
        fresh.__setstate__(state)
    else:
        return state
    return fresh
