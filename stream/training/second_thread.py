"""A second thread that learns beside the first: the `ParallelCall` of `model.step` on two cores.

In: two functions that touch nothing in common. Kernels and tensor operations hold no lock on the
interpreter, so on two cores they run at the same time.
"""

import weakref
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch


def tensor_threads(threads: int) -> None:
    """Let `training.threads` threads learn: two of them the halves of a step; if there are more,
    tensor operations take several each. Says so to torch, for the calling thread."""
    torch.set_num_threads(max(1, threads // 2))


class SecondThread:
    """Ends with the object, or with the process."""

    def __init__(self, threads: int):
        """`threads`: as `tensor_threads` takes it."""
        self._asked: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        arguments = (threads, self._asked, self._done)
        Thread(target=_work, args=arguments, name="niwaki-second", daemon=True).start()
        weakref.finalize(self, self._asked.put, None)

    def run_parallel(self, first: Callable[[], Any], second: Callable[[], Any]) -> None:
        """Call both, `second` on the second thread; return when both are done. Raises what they
        raise, the first one's before the other's."""
        self._asked.put(second)
        try:
            first()
        finally:
            error = self._done.get()
        if error:
            raise error


def _work(
    threads: int,
    asked: "SimpleQueue[Callable[[], Any] | None]",
    done: "SimpleQueue[BaseException | None]",
) -> None:
    tensor_threads(threads)
    while (function := asked.get()) is not None:
        error = None
        try:
            function()
        except BaseException as raised:  # whatever it is, it is raised where it was asked for
            error = raised
        function = None  # it holds what it has learned with
        done.put(error)
