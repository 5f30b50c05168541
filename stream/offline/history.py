"""Rows about a run in the order of events: windows, phases, drifts, prunings. They are the material
of a report and of a backtest's result.

In: the steps of a trainer. Out: plain rows that are the same, byte for byte, for the same seed and
events: no clock is read.
"""

from typing import Any

from niwaki.pruning.policy import Move
from niwaki.stream.training.observers import Observer
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.trainer import Step, Trainer


class History(Observer):
    """Collects rows as a trainer goes; give it every step, right after the publications that were
    due."""

    def __init__(self, trainer: Trainer, replica: ServedReplica):
        self._trainer = trainer
        self._replica = replica
        self._windows = 0
        self.windows: list[dict[str, Any]] = []
        """By evaluation window: the event that it ends with, its measures, and the network as it
        was then."""
        self.phases: list[dict[str, Any]] = [{"event": 0, "phase": trainer.policy.phase.value}]
        """By phase: the event that it begins with."""
        self.drifts: list[dict[str, Any]] = []
        """By detected drift: what `stream.drift.monitor.Drift` says."""
        self.prunings: list[dict[str, Any]] = []
        """By newly pruned network: the event at which it was cut, the budget, what it kept, and how
        many so far took over though they predicted worse, since the wait was at its bound."""

    def stepped(self, step: Step) -> None:
        """Take in one step."""
        trainer, learner = self._trainer, self._trainer.learner
        self.drifts += [drift._asdict() for drift in step.drifts]
        if step.move not in (Move.STAY, Move.REWIRE):
            self.phases.append({"event": trainer.events, "phase": step.phase.value})
        if step.move is Move.CUT:
            kept = {name: len(index) for name, index in learner.branches.kept.items()}
            row = {"event": trainer.events, "kept": kept, "multiply_adds": learner.multiply_adds}
            self.prunings.append(
                row | {"budget": trainer.policy.budget, "forced": trainer.policy.state.forced}
            )
        if trainer.prequential.completed > self._windows:
            self._windows = trainer.prequential.completed
            self.windows.append(
                {
                    "event": trainer.events,
                    "phase": step.phase.value,
                    "prequential": trainer.prequential.last,
                    "served": self._replica.evaluation.last,
                    "sparsity_by_layer": learner.branches.sparsity_by_layer(),
                    "sparsity_ratio": 1 - learner.multiply_adds / learner.branches.dense_cost,
                }
            )
