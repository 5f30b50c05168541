"""Where the time of the walk goes: seconds by stage, from lap to lap of one clock.

`Trainer.step` and the loops around it, live and in a backtest, keep one each; telemetry, `niwaki
backtest --profile` and `benchmarks.pipeline` show what they say.
"""

import threading
import time
from collections.abc import Mapping

STAGES = {
    "read": "Waiting for events, and cutting batches; in a backtest, reading and decoding.",
    "encode": "Hashing.",
    "predict": "By what is published: handing events to the thread that does it.",
    "learn_linear": "The linear expert.",
    "learn_embeddings": "Updates of the embedding tables; they are read with the networks.",
    "learn_network": "The networks.",
    "learn_rest": "Masks, the mixture, numerics, notes of what has changed.",
    "score": "Evaluation.",
    "watch": "For drift.",
    "decide": "What now, and the carrying out of it: pruning, cutting, regrowing.",
    "publish": "As far as the loop waits for it.",
    "save": "Snapshots.",
}
"""Every stage, in the order of the walk, and what it is."""


class Stopwatch:
    """Sums the time of stages, from lap to lap; it starts when it is made."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew, for the calling thread; the sums so far are left to whoever holds them."""
        self.seconds: dict[str, float] = {}
        """By stage, the sum of its laps, seconds."""
        self._thread = threading.get_ident()
        self._before_s = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the lap before was this stage's. What another thread did beside it does
        not count."""
        if threading.get_ident() != self._thread:
            return
        now_s = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._before_s
        self._before_s = now_s

    def add(self, seconds: Mapping[str, float]) -> None:
        """The time since the lap before was these stages', as another watch has it."""
        for stage, taken_s in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken_s
        self._before_s = time.perf_counter()


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """By stage, in the order of the walk, its share of the sum, 0..1."""
    total_s = sum(seconds.values()) or 1.0
    return {stage: seconds[stage] / total_s for stage in STAGES if stage in seconds}
