"""One batch's walk through learning: predict, score, learn, watch for drift, decide, and carry the
decision out.

In: an `EventBatch`. Out: a `Step`, plain numbers of what happened. The live loop and the backtest
both drive this class, so what a backtest measures is what runs. It knows no Kafka and no Redis:
whoever drives it publishes and saves.
"""

import math
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.learner import Learner, LearnerConfig, LearnerState
from niwaki.model.published.checkpoint import Header
from niwaki.model.published.table_codes import Precision
from niwaki.model.step import run_in_turn
from niwaki.pruning.config import PruningConfig, policy_for
from niwaki.pruning.policy import Move, Phase, PolicyState
from niwaki.stream.drift.monitor import Drift, DriftConfig, DriftMonitor
from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.signals import Signals
from niwaki.stream.training.second_thread import SecondThread
from niwaki.stream.training.served_replica import Prepared, ServedReplica
from niwaki.stream.training.stopwatch import Stopwatch

_SAMPLED_ROWS = 4_096
_WATCHED_EVENTS = 256
"""Drift is looked for whenever the stream passes a multiple of these: most of what that costs, it
costs each time."""
_SHARED_EVENTS = 32
"""Handing half of a smaller batch to another thread takes longer than learning it."""


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the stream is cut into batches, windows and publications (the `[training]` section)."""

    batch_events: int = 128
    """Events in a batch, >= 1: one optimizer step for each 256 of them, or part of that."""
    max_batch_age_s: float = 1.0
    """A smaller batch is learned when its first event has waited this long, seconds, > 0."""
    publish_every_events: int = 1_000
    """Events from one publication to the next, >= 1; a newly pruned network is published at
    once."""
    full_every_publications: int = 200
    """Publications from one full checkpoint to the next, >= 1; those in between are deltas. A newly
    pruned network is published in full. A scorer that begins has a full one and its deltas to
    fetch."""
    table_precision: Precision = "float32"
    """How exactly the rows of tables are published: float32, float16 or int8. The trainer's own
    count of served predictions includes what that costs."""
    window_events: int = 20_000
    """Events in an evaluation window, >= 1."""
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
            "threads",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}")
        if not self.max_batch_age_s > 0:
            raise ValueError(
                f"training.max_batch_age_s must be greater than 0, got {self.max_batch_age_s}"
            )


class Step(NamedTuple):
    """What one batch brought."""

    events: int
    losses_B: np.ndarray
    """Log loss of each event before it was learned."""
    drifts: list[Drift]
    """Noticed now, in these events or in some before them."""
    move: Move
    phase: Phase
    """The phase after the move."""
    seconds: dict[str, float]
    """Time that it took, by stage: see `stream.training.stopwatch`."""
    forced: bool
    """The network that was just cut took over though it predicts worse: the wait was at its
    bound."""


class TrainerState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The part of a trainer's state that is not tensors."""

    learner: LearnerState
    policy: PolicyState
    last_event_time_s: float


class Trainer:
    """Learner, policy and drift monitor, moving together."""

    def __init__(
        self,
        schema: Schema,
        model: LearnerConfig,
        pruning: PruningConfig,
        drift: DriftConfig,
        training: TrainingConfig,
    ):
        self.config = training
        self.policy = policy_for(pruning)
        narrow_ratio = pruning.budget if self.policy.narrow_from_the_start else None
        self.learner = Learner(
            schema,
            model,
            narrow_ratio,
            prunes_tables=pruning.table_budget < 1,
            block=pruning.weights_of_unit,
        )
        self._second = SecondThread(training.threads) if training.threads > 1 else None
        self.monitor = DriftMonitor(drift)
        self.signals = Signals(schema, model.table_rows, [one.signal for one in drift.detectors])
        self._unwatched: list[Observations] = []
        """What drift has not been looked for in."""
        self.prequential = WindowedEvaluation(training.window_events)
        """Each event predicted just before it was learned."""
        self.publications: list[ServedReplica] = []
        """Series of publications to be scored beside the learning."""
        self.last_event_time_s = 0.0

    @property
    def events(self) -> int:
        """Events learned."""
        return self.learner.events

    def collisions(self) -> dict[str, float]:
        """By field: the share of its values so far that were hashed to a row which another value
        had taken, about.

        From how many of the first few thousand rows are taken, since a hash spreads values alike
        over all: where n of R rows are, R ln(1 / (1 - n / R)) values are to be expected. A full
        sample counts as one with half a row free.
        """
        rows, found = self.learner.config.table_rows, {}
        sampled = min(rows - 1, _SAMPLED_ROWS)
        for place, field in enumerate(self.learner.schema.fields):
            first = place * rows + 1  # the one before stands for "missing"
            taken = min(self.learner.linear.occupied_ratio(first, sampled), 1 - 0.5 / sampled)
            found[field] = 1 + taken / math.log1p(-taken) if taken else 0.0
        return found

    def follow(self, every_events: int, table_precision: Precision | None = None) -> ServedReplica:
        """Score, from now on, what is published at this interval; the caller refreshes it when it
        is due. `table_precision`: other than that of the config."""
        config = self.config
        precision = table_precision or config.table_precision
        publication = ServedReplica(
            self.learner,
            every_events,
            config.window_events,
            config.full_every_publications,
            precision,
        )
        self.publications.append(publication)
        return publication

    def step(self, batch: EventBatch) -> Step:
        """Predict, score, then learn one batch; notice drift; make the move that the policy decides
        on."""
        watch, first_event = Stopwatch(), self.events
        policy, learner = self.policy, self.learner
        features = learner.encoder.encode(batch)
        watch.lap("encode")
        for publication in self.publications:
            publication.score(features, batch.labels_B)
        watch.lap("predict")
        learner.lap = watch.lap
        shared = self._second and len(batch) >= _SHARED_EVENTS
        learner.together = self._second.together if shared else run_in_turn
        ratios = policy.target_ratio(self.events), policy.table_ratio(self.events)
        logits_B = learner.learn(features, batch.labels_B, *ratios)
        watch.lap("learn_rest")
        losses_B = self.prequential.update(logits_B, batch.labels_B)
        watch.lap("score")
        columns = (
            (features.rows_BF.numpy(), features.raw_numerics_BN.numpy())
            if self.signals.reads_columns
            else ()
        )
        self._unwatched.append(
            Observations(
                batch.labels_B, batch.times_s_B, learner.experts_BE, logits_B, losses_B, *columns
            )
        )
        drifts = (
            self.watch() if self.events // _WATCHED_EVENTS > first_event // _WATCHED_EVENTS else []
        )
        watch.lap("watch")
        forced = policy.state.forced
        move = policy.decide(self.events, bool(drifts), learner.comparison)
        forced = policy.state.forced > forced
        if drifts and policy.adapts:
            pruning = policy.config
            learner.doubt_past(
                pruning.doubt_events, pruning.evidence_ratio, pruning.remembered_ratio
            )
        if move is Move.REWIRE:
            learner.rewire(features, batch.labels_B, policy.exchange_ratio(self.events))
        self._make(move)
        self.last_event_time_s = float(batch.times_s_B[-1])
        watch.lap("decide")
        return Step(len(batch), losses_B, drifts, move, policy.phase, watch.seconds, forced)

    def watch(self) -> list[Drift]:
        """Look for drift in all that it has not been looked for in. `step` does so whenever it is
        time to."""
        if not self._unwatched:
            return []
        seen, self._unwatched = Observations.concat(self._unwatched), []
        first_event = self.events - len(seen.labels_B)
        return self.monitor.update(
            self.signals.compute(seen), first_event, seen.times_s_B, seen.losses_B
        )

    def checkpoint(
        self, publication: ServedReplica, *, base: int = 0, **about: Any
    ) -> tuple[Header, dict[str, torch.Tensor]]:
        """What to publish now, ready to be packed: a full sparse checkpoint, mixed as `publication`
        has learned to.

        `base`: make it a delta to the version before, which goes back to the full one `base`.
        `about`: see `prepare`.
        """
        header, prepared = self.prepare(publication, base=base, **about)
        return header, prepared.tensors()

    def prepare(
        self,
        publication: ServedReplica,
        *,
        version: int,
        parent: int,
        base: int = 0,
        offsets: dict[str, int],
        created_s: float,
    ) -> tuple[Header, Prepared]:
        """The same, while the tensors are still being made. It is a full one all the same where
        other columns of the tables are read since."""
        base = 0 if publication.other_columns else base
        learner, prepared = self.learner, publication.prepare(full=not base)
        header = Header(
            version=version,
            parent=parent,
            base=base,
            schema=learner.schema,
            table_rows=learner.config.table_rows,
            pair_rows=learner.encoder.pair_rows,
            half_lives_events=learner.config.half_lives_events,
            hash_seed=learner.config.hash_seed,
            table_precision=publication.table_precision,
            shape=prepared.shape,
            dense_shape=learner.dense.network.shape,
            phase=self.policy.phase,
            policy=self.policy.config.policy,
            budget=self.policy.budget,
            multiply_adds=learner.multiply_adds,
            dense_multiply_adds=learner.dense_cost,
            sparsity_by_layer=learner.sparsity_by_layer(),
            events=self.events,
            offsets=offsets,
            event_time_s=self.last_event_time_s,
            created_s=created_s,
            evaluation=self.prequential.last,
            dense_bytes=learner.dense_bytes,
        )
        return header, prepared

    def state(self) -> tuple[TrainerState, dict[str, torch.Tensor]]:
        """Everything that the rest of the stream depends on, for a snapshot."""
        learner, tensors = self.learner.state()
        tensors = {f"learner.{name}": tensor for name, tensor in tensors.items()}
        seen = Observations.concat(self._unwatched) if self._unwatched else None
        for prefix, arrays in (
            ("prequential", self.prequential.state()),
            ("monitor", self.monitor.state()),
            ("signals", self.signals.state()),
            ("unwatched", {n: array.copy() for n, array in seen.arrays().items()} if seen else {}),
        ):
            tensors |= {
                f"{prefix}.{name}": torch.from_numpy(np.asarray(array))
                for name, array in arrays.items()
            }
        return TrainerState(
            learner=learner, policy=self.policy.state, last_event_time_s=self.last_event_time_s
        ), tensors

    def restore(self, state: TrainerState, tensors: dict[str, torch.Tensor]) -> None:
        """Continue exactly where `state` was taken."""

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {
                name.removeprefix(prefix): t
                for name, t in tensors.items()
                if name.startswith(prefix)
            }

        self.learner.restore(state.learner, part("learner."))
        self.prequential.restore({name: t.numpy() for name, t in part("prequential.").items()})
        self.monitor.restore({name: t.numpy() for name, t in part("monitor.").items()})
        self.signals.restore({name: t.numpy() for name, t in part("signals.").items()})
        unwatched = {name: t.numpy() for name, t in part("unwatched.").items()}
        self._unwatched = [Observations(**unwatched)] if unwatched else []
        self.policy.state, self.last_event_time_s = state.policy, state.last_event_time_s

    def _make(self, move: Move) -> None:
        if move is Move.PRUNE:
            self.learner.prune(self.policy.masks, self.policy.needs_reference)
        elif move is Move.CUT:
            self.learner.cut(self.policy.stays_dense)
            for publication in self.publications:
                publication.want_full()
        elif move is Move.REGROW:
            self.learner.regrow()
        if move in (Move.CUT, Move.REGROW):
            # The loss jumps with the network, and that is no drift.
            self.monitor.reset(network_replaced=True)
        if move in (Move.PRUNE, Move.CUT) and self.policy.answers_drift:
            self.signals.reset()
