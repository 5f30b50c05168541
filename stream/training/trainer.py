"""One batch's walk through learning: predict, score, learn, look for drift, decide, and make the
move.

In: an `EventBatch`. Out: a `Step`, plain numbers of what happened. The live loop and the backtest
both drive this class, so what a backtest measures is what runs. It knows no Kafka and no Redis:
whoever drives it publishes and saves.
"""

import dataclasses
import math
from typing import NamedTuple

import msgspec
import numpy as np
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.event_clock import EventClock
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.learner import Learner, LearnerState
from niwaki.model.published.checkpoint import TrainingStatus
from niwaki.model.published.table_codes import Precision
from niwaki.model.step import Refused, run_in_turn
from niwaki.pruning.config import PruningConfig, policy_for
from niwaki.pruning.errors import RuleError
from niwaki.pruning.policy import Move, Phase, PolicyState
from niwaki.stream.drift.click_rate import Changed, ClickRate
from niwaki.stream.drift.monitor import Drift, DriftConfig, DriftMonitor
from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.signals import Signals
from niwaki.stream.events.quarantine import Quarantine, Quarantined
from niwaki.stream.training.second_thread import SecondThread
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.stopwatch import Stopwatch

_SAMPLED_ROWS = 4_096
_DETECTION_EVENTS = 256
"""Drift is looked for whenever the stream passes a multiple of these: most of the cost of a look
does not depend on its number of events."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the batches, windows and publications of a stream (the `[training]` section)."""

    batch_events: int = 128
    """Events in a batch, >= 1: one optimizer step for each 256 of them, or part of that."""
    max_batch_age_s: float = 1.0
    """A smaller batch is learned when its first event has waited this long, seconds, > 0."""
    publish_every_events: int = 1_000
    """Events from one publication to the next, >= 1; a newly pruned network is published at
    once."""
    scored_ratio: float = 0.25
    """Share of the events that are predicted with what is served, too, (0, 1]: they teach the
    mixture of the experts, and the served figures are theirs. A backtest's figures are of all
    events."""
    full_every_publications: int = 200
    """Publications from one full checkpoint to the next, >= 1; those in between are deltas. A newly
    pruned network is published in full. A scorer that begins has a full one and its deltas to
    fetch."""
    table_precision: Precision = "int4"
    """Precision of the published rows of tables: float32, float16, int8 or int4, which is 4 bits
    for rows of the linear expert with little evidence and 8 for all others. The evaluation of
    served predictions includes its cost."""
    window_events: int = 20_000
    """Events in an evaluation window, >= 1."""
    max_quarantined_batches: int = 10
    """Batches in a row whose loss or gradients are not finite, >= 1, after which the trainer stops;
    each of them is quarantined, and changes no weight."""
    threads: int = 1
    """Threads that learn, >= 1; how many makes no difference to what is learned. Two share steps,
    and pay for batches of more than 128 events where a core is left to read and publish beside
    them; more only for networks far larger than the default."""

    def __post_init__(self) -> None:
        counts = (
            "batch_events",
            "publish_every_events",
            "full_every_publications",
            "window_events",
            "max_quarantined_batches",
            "threads",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise RuleError(name, "must be at least 1", getattr(self, name))
        if not 0 < self.scored_ratio <= 1:
            raise RuleError("scored_ratio", "must be > 0 and <= 1", self.scored_ratio)
        if not self.max_batch_age_s > 0:
            raise RuleError("max_batch_age_s", "must be greater than 0", self.max_batch_age_s)


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a trainer is made of: the schema, and four sections of the configuration."""

    schema: Schema
    model: LearnerConfig = LearnerConfig()
    pruning: PruningConfig = PruningConfig()
    drift: DriftConfig = DriftConfig()
    training: TrainingConfig = TrainingConfig()


class Step(NamedTuple):
    """The outcome of one batch."""

    events: int
    losses_B: np.ndarray
    """Log loss of each event before it was learned."""
    logits_B: np.ndarray
    """Logit that the learner predicted of each event before it was learned."""
    drifts: list[Drift]
    """Drifts noticed in this step, in its events or in some before them."""
    move: Move
    phase: Phase
    """The phase after the move."""
    seconds: dict[str, float]
    """Time of the step by stage: see `stream.training.stopwatch`."""
    forced: bool
    """True where the network that was just cut took over though it predicts worse: the wait was at
    its bound."""
    outlier_times: int
    """Events whose time was far from those around it, and was put back."""
    quarantined: list[Quarantined]
    """Events that were not learned; they are in none of the others."""

    @classmethod
    def of_nothing(
        cls, phase: Phase, seconds: dict[str, float], quarantined: list[Quarantined]
    ) -> "Step":
        """The outcome of a batch of which nothing was learned."""
        nothing_B = np.empty(0, np.float32)
        return cls(0, nothing_B, nothing_B, [], Move.STAY, phase, seconds, False, 0, quarantined)


class TrainerState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of a trainer's state that is not tensors."""

    learner: LearnerState
    policy: PolicyState
    last_event_time_s: float
    answered_event: int = -1
    """Index of the event at which the last answered drift was first noticed; -1: there was none."""
    quarantined: int = 0
    """Events that were not learned, since something of their step was not finite."""
    quarantined_in_a_row: int = 0
    """Batches of them since the last event that was learned."""


class Trainer:
    """Learner, policy and drift monitor, moving together."""

    def __init__(self, config: TrainerConfig):
        self.config = config
        training, pruning = config.training, config.pruning
        self.policy = policy_for(pruning)
        self._stopwatch = Stopwatch()
        second = SecondThread(training.threads) if training.threads > 1 else None
        self.learner = Learner(
            config.schema,
            config.model,
            self.policy.budget if self.policy.narrow_from_the_start else None,
            prunes_tables=pruning.table_budget < 1,
            block=pruning.weights_of_unit,
            lap=self._stopwatch.lap,
            run_parallel=second.run_parallel if second else run_in_turn,
        )
        self.monitor = DriftMonitor(config.drift)
        signals = [one.signal for one in config.drift.detectors]
        self.signals = Signals(config.schema, config.model.table_rows, signals)
        self._click_rate = ClickRate()
        self._answered_event = -1
        self._unchecked: list[Observations] = []
        """Events in which drift has not been looked for."""
        self.prequential = WindowedEvaluation(training.window_events)
        """Each event predicted just before it was learned."""
        self.replicas: list[ServedReplica] = []
        """The series of publications that are evaluated beside the learning."""
        self.last_event_time_s = 0.0
        self._clock = EventClock()
        self.quarantine = Quarantine(training.max_quarantined_batches)
        """Events that were not learned."""

    @property
    def events(self) -> int:
        """Events learned."""
        return self.learner.events

    def collisions(self) -> dict[str, float]:
        """By field, an estimate of the share of its values that were hashed to a row which another
        value had taken.

        The estimate counts the taken rows among the first few thousand, since a hash spreads values
        evenly: where n of R rows are taken, R ln(1 / (1 - n / R)) values are to be expected. A full
        sample counts as one with half a row free.
        """
        rows = self.config.model.table_rows
        found = {}
        sampled = min(rows - 1, _SAMPLED_ROWS)
        for place, field in enumerate(self.config.schema.fields):
            first = place * rows + 1  # the row before stands for "missing"
            taken = min(self.learner.linear.occupied_ratio(first, sampled), 1 - 0.5 / sampled)
            found[field] = 1 + taken / math.log1p(-taken) if taken else 0.0
        return found

    def add_replica(
        self,
        every_events: int,
        table_precision: Precision | None = None,
        *,
        evaluates_all: bool = True,
    ) -> ServedReplica:
        """From now on, evaluate predictions of what is published at this interval; the caller
        publishes or refreshes it when it is due. `table_precision`: other than that of the config.
        `evaluates_all`: false: only the events that the mixture learns from."""
        training = self.config.training
        replica = ServedReplica(
            self.learner,
            every_events,
            training.window_events,
            training.full_every_publications,
            table_precision or training.table_precision,
            training.scored_ratio,
            evaluates_all,
        )
        self.replicas.append(replica)
        return replica

    def step(self, batch: EventBatch) -> Step:
        """Predict, score, then learn one batch; look for drift; make the move that the policy
        decides on."""
        watch = self._stopwatch
        watch.restart()
        policy, learner = self.policy, self.learner
        first_event = self.events
        came = batch
        times_s_B, outlier_times = self._clock.bound(batch.times_s_B)
        if outlier_times:
            batch = dataclasses.replace(batch, times_s_B=times_s_B)
        hashed, outcomes = learner.encoder.encode(batch), Outcomes.of(batch)
        watch.lap("encode")
        ratios = policy.target_ratio(self.events), policy.table_ratio(self.events)
        refused: list[Refused] = []
        learned = learner.learn(hashed, outcomes, *ratios, refused=refused)
        watch.lap("learn_rest")
        batch, quarantined = self.quarantine.set_aside(batch, refused, came)
        if refused:
            hashed, outcomes = learner.encoder.encode(batch), Outcomes.of(batch)
        if not len(batch):
            return Step.of_nothing(policy.phase, watch.seconds, quarantined)
        # Only now, so that what is quarantined reaches no figures and no mixture; it is predicted
        # by what was published before, all the same.
        for replica in self.replicas:
            replica.score(hashed, outcomes, first_event)
        watch.lap("predict")
        losses_B = self.prequential.update(learned.logits_B, outcomes)
        watch.lap("score")
        columns: tuple[np.ndarray, ...] = ()
        if self.signals.reads_columns:
            columns = hashed.rows_BF.numpy(), hashed.raw_numerics_BN.numpy()
        predicted = learned.experts_BE, learned.logits_B, losses_B
        self._unchecked.append(Observations.of(batch, outcomes, *predicted, *columns))
        due = self.events // _DETECTION_EVENTS > first_event // _DETECTION_EVENTS
        drifts = self.detect() if due else []
        watch.lap("watch")
        forced = policy.state.forced
        answered = any(drift.answered for drift in drifts)
        move = policy.decide(self.events, answered, learner.branches.comparison)
        forced = policy.state.forced > forced
        if answered:
            config = policy.config
            learner.check_evidence(
                config.doubt_events, config.evidence_ratio, config.remembered_ratio
            )
        if move is Move.REWIRE:
            learner.rewire(hashed, outcomes, policy.exchange_ratio(self.events))
        self._make(move)
        self.last_event_time_s = float(batch.times_s_B[-1])
        watch.lap("decide")
        return Step(
            len(batch),
            losses_B,
            learned.logits_B,
            drifts,
            move,
            policy.phase,
            watch.seconds,
            forced,
            outlier_times,
            quarantined,
        )

    def detect(self) -> list[Drift]:
        """Look for drift in all events in which it has not been looked for; `step` does so at
        intervals."""
        if not self._unchecked:
            return []
        seen = Observations.concat(self._unchecked)
        self._unchecked = []
        first_event = self.events - len(seen.labels_B)
        signals = self.signals.compute(seen)
        self.monitor.begin_anew(self.signals.begun)
        self._click_rate.add(seen)
        drifts = self.monitor.update(
            signals,
            first_event,
            seen.times_s_B,
            seen.losses_B,
            lambda drift: self._changed(drift) != "nothing",
        )
        if any(self._changed(drift) == "more" for drift in drifts):
            self.monitor.reset()
        return [drift._replace(answered=self._answers(drift)) for drift in drifts]

    def _changed(self, drift: Drift) -> Changed:
        return self._click_rate.changed(self.events - drift.began, drift.signal)

    def _answers(self, drift: Drift) -> bool:
        """True if the policy is to answer the drift; each drift once."""
        if not self.policy.adapts or drift.sign_of == self._answered_event:
            return False
        if self.config.drift.answer_click_rate or self._changed(drift) != "click rate":
            self._answered_event = drift.sign_of
            return True
        return False

    def status(self) -> TrainingStatus:
        """The training as the header of a checkpoint describes it."""
        return TrainingStatus(
            phase=self.policy.phase,
            policy=self.config.pruning.policy,
            budget=self.policy.budget,
            event_time_s=self.last_event_time_s,
            evaluation=self.prequential.last,
        )

    def state(self) -> tuple[TrainerState, dict[str, torch.Tensor]]:
        """Everything that the rest of the stream depends on, for a snapshot."""
        learner, learner_tensors = self.learner.state()
        tensors = {f"learner.{name}": tensor for name, tensor in learner_tensors.items()}
        unchecked = Observations.concat(self._unchecked).arrays() if self._unchecked else {}
        for prefix, arrays in (
            ("prequential", self.prequential.state()),
            ("monitor", self.monitor.state()),
            ("signals", self.signals.state()),
            ("clock", self._clock.state()),
            ("click_rate", self._click_rate.state()),
            ("unchecked", {name: array.copy() for name, array in unchecked.items()}),
        ):
            for name, array in arrays.items():
                tensors[f"{prefix}.{name}"] = torch.from_numpy(np.asarray(array))
        state = TrainerState(
            learner=learner,
            policy=self.policy.state,
            last_event_time_s=self.last_event_time_s,
            answered_event=self._answered_event,
            quarantined=self.quarantine.events,
            quarantined_in_a_row=self.quarantine.batches_in_a_row,
        )
        return state, tensors

    def restore(self, state: TrainerState, tensors: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state` was taken."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        def arrays(prefix: str) -> dict[str, np.ndarray]:
            return {name: tensor.numpy() for name, tensor in part(prefix).items()}

        self.learner.restore(state.learner, part("learner."))
        self.prequential.restore(arrays("prequential."))
        self.monitor.restore(arrays("monitor."))
        self.signals.restore(arrays("signals."))
        self._clock.restore(arrays("clock."))
        self._click_rate.restore(arrays("click_rate."))
        unchecked = arrays("unchecked.")
        self._unchecked = [Observations(**unchecked)] if unchecked else []
        self.policy.state = state.policy
        self.last_event_time_s = state.last_event_time_s
        self._answered_event = state.answered_event
        self.quarantine.events = state.quarantined
        self.quarantine.batches_in_a_row = state.quarantined_in_a_row

    def _make(self, move: Move) -> None:
        """Make a move of the policy's, and tell it to those whom it concerns."""
        branches, policy = self.learner.branches, self.policy
        if move is Move.PRUNE:
            branches.prune(policy.masks, policy.needs_reference)
        elif move is Move.CUT:
            branches.cut(policy.stays_dense)
            for replica in self.replicas:
                replica.want_full()
        elif move is Move.REGROW:
            branches.regrow()
        if move in (Move.CUT, Move.REGROW):
            # The loss jumps with the network: that is no drift.
            self.monitor.reset(network_replaced=True)
        if move in (Move.PRUNE, Move.CUT) and policy.answers_drift:
            self.signals.reset()
