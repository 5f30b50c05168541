"""The state of a River detector, for a snapshot: exact, small, and nothing executable.

In: a detector. Out: its state as Python's copy protocol gives it (`__getstate__`), turned into
numbers, strings, bytes, lists and dictionaries; and back, the way `copy` does, into a detector just
built from equal parameters. No attribute of River is named here. Which attributes there are depends
on River's version, so a snapshot states the version, and no other version's state is restored.
"""

import inspect
import random
from collections import deque
from typing import Any

import numpy as np


def detector_state(value: Any) -> Any:
    """The state of a detector, or of a part of one, as plain data."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, deque | list | tuple):
        return [detector_state(part) for part in value]
    if inspect.ismethod(value):  # the detector's own, chosen by a parameter
        return value.__name__
    state = value.__getstate__()
    if isinstance(state, dict):
        return {name: detector_state(part) for name, part in state.items()}
    return detector_state(state)  # bytes of a compiled object, or a random generator's tuple


def restore_detector(fresh: Any, state: Any) -> Any:
    """`state` in the form of `fresh`, a detector just built or a part of one.

    Objects are changed in place and returned.
    """
    if isinstance(fresh, deque):
        return deque(state, fresh.maxlen)
    if isinstance(fresh, random.Random):
        # Lists stand for the tuples that msgpack does not know.
        fresh.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in state))
    elif isinstance(state, dict) and hasattr(fresh, "__dict__"):
        before = fresh.__dict__
        before |= {
            name: getattr(fresh, part)
            if inspect.ismethod(before.get(name))
            else restore_detector(before.get(name), part)
            for name, part in state.items()
        }
    elif hasattr(fresh, "__setstate__"):
        fresh.__setstate__(state)
    else:
        return state
    return fresh
