"""Observers of the loop: they read what happened, and change nothing.

In: polls, steps and moments between steps, from the loop. Out: lines of the log, metrics, messages
about drifts. A history or a progress bar of a caller's is one more observer.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from niwaki.pruning.policy import Move
from niwaki.stream.drift.monitor import Drift
from niwaki.stream.kafka.reader import PolledBatch
from niwaki.stream.kafka.sink import Outbox
from niwaki.stream.recordings.writing import batch_to_table
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Step, Trainer

log = logging.getLogger("niwaki")


class Observer:
    """The interface of an observer; each method does nothing here."""

    def polled(self, polled: PolledBatch) -> None:
        """A poll has brought events, or rejects."""

    def stepped(self, step: Step) -> None:
        """A batch has been learned, and published if that was due."""

    def paused(self, lag_events: Mapping[int, int]) -> None:
        """About a second has passed: the moment for whatever changes slowly, or costs something to
        find out. `lag_events`: by partition, messages that are in no batch yet."""


_GROWTH = 10
QUARANTINE_BYTES = 16 * 2**20
"""Bound of a file of quarantined events; there are two."""


class StepLog(Observer):
    """Logs the rare events of training: drifts, moves, cuts, rests of the network, and, ever more
    rarely, event times that were put back."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._resting = trainer.learner.branches.resting
        self._outlier_times = self._told_times = 0

    def stepped(self, step: Step) -> None:
        """Log the drifts and the move of a step."""
        trainer = self._trainer
        for drift in step.drifts:
            log.info(
                "drift at event %d, event time %.3f s: %s, since event %d; %s of %s from %.4f to"
                " %.4f, error %.4f; log loss from %s to %s, error %s; %s",
                *(drift.event, drift.time_s, drift.kind, drift.began, drift.detector, drift.signal),
                *(drift.before, drift.after, drift.error),
                *(drift.loss_before, drift.loss_after, drift.loss_error),
                self._answer(drift),
            )
        if step.move is not Move.STAY:
            log.info("event %d: %s, now %s", trainer.events, step.move, step.phase)
        if step.move is Move.CUT:
            self._log_cut(step)
        if trainer.learner.branches.resting is not self._resting:
            self._log_rest()
        self._outlier_times += step.outlier_times
        if step.outlier_times and self._outlier_times >= _GROWTH * self._told_times:
            self._told_times = self._outlier_times
            log.warning(
                "event %d: %d event times so far were far from those around them, and put back",
                *(trainer.events, self._outlier_times),
            )

    def _answer(self, drift: Drift) -> str:
        if drift.answered:
            return "answered"
        if not self._trainer.policy.adapts:
            return "not answered: the policy never regrows"
        if drift.event != drift.sign_of:
            return f"not answered anew: a sign of the drift of event {drift.sign_of}"
        return "not answered: a step of the click rate alone"

    def _log_rest(self) -> None:
        trainer = self._trainer
        merit, worth = trainer.learner.branches.merit, trainer.config.model.network_worth
        self._resting = not self._resting
        if merit is None or not self._resting:
            log.info("event %d: the network learns again", trainer.events)
            return
        log.info(
            "event %d: the network rests for up to %d events: it saves %.3f %% of the log loss,"
            " less than the %.3f %% of model.network_worth",
            *(trainer.events, merit.left, 100 * merit.gain_ratio, 100 * worth),
        )

    def _log_cut(self, step: Step) -> None:
        trainer = self._trainer
        learner = trainer.learner
        log.info(
            "cut to %.2f %% of the dense multiply-adds, budget %.2f %%%s",
            100 * learner.multiply_adds / learner.branches.dense_cost,
            100 * trainer.policy.budget,
            ", chosen" if trainer.policy.config.budget == "auto" else "",
        )
        if step.forced:
            log.warning(
                "the network cut at event %d predicts worse: its wait was at its bound",
                trainer.events,
            )


class Metrics(Observer):
    """Hands numbers to Prometheus."""

    def __init__(self, trainer: Trainer, replica: ServedReplica, telemetry: Telemetry):
        self._trainer = trainer
        self._replica = replica
        self._telemetry = telemetry

    def polled(self, polled: PolledBatch) -> None:
        """Count messages, bytes and rejects."""
        self._telemetry.polled(polled.messages, polled.size_bytes)
        for _, reject in polled.rejects:
            self._telemetry.rejected(reject.kind, reject.events)

    def stepped(self, step: Step) -> None:
        """Count events, drifts and moves."""
        telemetry = self._telemetry
        telemetry.learned(
            step.events,
            event_time_s=self._trainer.last_event_time_s,
            outlier_times=step.outlier_times,
        )
        telemetry.quarantined(sum(len(one.events) for one in step.quarantined))
        for drift in step.drifts:
            telemetry.drift(
                drift.detector,
                drift.signal,
                before=drift.before,
                after=drift.after,
                error=drift.error,
                answered=drift.answered,
            )
        if step.move is not Move.STAY:
            telemetry.phase(step.phase)
        if step.move is Move.REGROW:
            telemetry.regrown()
        elif step.move is Move.CUT:
            telemetry.pruned(forced=step.forced)

    def paused(self, lag_events: Mapping[int, int]) -> None:
        """Show lag, evaluations, collisions, living pairs, and the detectors' watched events."""
        trainer, telemetry = self._trainer, self._telemetry
        telemetry.lag(lag_events)
        telemetry.evaluated("learning", trainer.prequential.last)
        telemetry.evaluated("served", self._replica.latest)
        telemetry.collisions(trainer.collisions())
        telemetry.pairs(trainer.learner.pairs.worth())
        branches = trainer.learner.branches
        gain_ratio = branches.merit.gain_ratio if branches.merit else math.nan
        telemetry.network(resting=branches.resting, gain_ratio=gain_ratio)
        for one in trainer.monitor.achieved()["detectors"]:
            telemetry.watched(
                one["detector"],
                one["signal"],
                one["watched_events"],
                expected_events=one["expected_events_between_false_alarms"],
            )


class QuarantineFile(Observer):
    """Writes events that were not learned to a file, one JSON object for each step of them: the
    events as they came, with NaN and Infinity as Python writes them, the reason, the place in the
    stream, and by partition the next offset after their batch. The file takes `QUARANTINE_BYTES`;
    then the one before it is replaced by it. Restarts after a crash may write a batch again."""

    def __init__(self, path: Path, trainer: Trainer, offsets: Callable[[], Mapping[int, int]]):
        """`offsets`: those after the batch of the last step."""
        self._path = path
        self._trainer = trainer
        self._offsets = offsets

    def stepped(self, step: Step) -> None:
        """Write what a step set aside."""
        for one in step.quarantined:
            log.warning("event %d: quarantined: %s", self._trainer.events, one.reason)
            table = batch_to_table(one.events, self._trainer.config.schema)
            line = {
                "reason": one.reason,
                "after_event": self._trainer.events,
                "offsets": {str(part): offset for part, offset in self._offsets().items()},
                "events": table.to_pylist(),
            }
            try:
                self._write(json.dumps(line, default=str) + "\n")
            except OSError as error:
                log.warning("%s was not written: %s", self._path, error.strerror or error)

    def _write(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and self._path.stat().st_size + len(line) > QUARANTINE_BYTES:
            self._path.replace(self._path.with_suffix(".old.jsonl"))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


class DriftTopic(Observer):
    """Writes each drift to a topic, as one JSON object with the fields of
    `stream.drift.monitor.Drift`."""

    def __init__(self, outbox: Outbox):
        self._outbox = outbox

    def stepped(self, step: Step) -> None:
        """Write the drifts of a step."""
        for drift in step.drifts:
            self._outbox.put(msgspec.json.encode(drift._asdict()))


class StepCallback(Observer):
    """Calls a function with each step, such as one that moves a progress bar."""

    def __init__(self, on_step: Callable[[Step], object]):
        self._on_step = on_step

    def stepped(self, step: Step) -> None:
        """Call the function."""
        self._on_step(step)
