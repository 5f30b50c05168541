"""A replica of what is served: it predicts each event with what was published before, as a scorer
would.

In: a learner, and the batches that it is about to learn. Out: checkpoints to publish, full or
delta, and an evaluation of the served predictions. The predictions of the served experts teach
their mixture, which the next publication carries: so the mixture is learned at the delay at which
it is served. A share of the events is enough for that: the first ones of each 128 of the stream.

The loop only hands over batches, and copies the rows that the learner has changed. A thread
predicts, mixes, puts full checkpoints together and does what a publisher asks of it, one thing
after another, so that all comes out to the bit as if the loop had done it; a caller that needs a
result waits for it.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.mixture.mixture import Mixture
from niwaki.model.published import tensors as names
from niwaki.model.published.checkpoint import Header, TrainingStatus
from niwaki.model.published.served import ServedModel
from niwaki.model.published.table_codes import Precision
from niwaki.model.published.tensors import Export
from niwaki.pruning.policy import Move
from niwaki.stream.training.replica_follower import (
    CHOSEN_OF_EVENTS,
    Follower,
    Made,
    ScoredBatch,
    Tensors,
    chosen_events,
)

_HANDED_OVER_EVENTS = 1_024
"""The least number of events that are scored at once where no publication comes between: memory
stays bounded, and the thread is woken seldom."""
_MOST_JOBS = 4
"""With more jobs waiting, the loop waits for the thread."""

T = TypeVar("T")


class Prepared(NamedTuple):
    """A publication that is being prepared."""

    header: Header
    made: Future[Made]

    def tensors(self) -> Tensors:
        """The tensors to publish; waits until they are made. Any thread may call it."""
        return self.made.result().published


class _Held(NamedTuple):
    """A publication of which it is not known whether it will be served."""

    prepared: Prepared
    rows: dict[str, torch.Tensor]
    """By table, the rows that it changes."""


class ServedReplica:
    """The replica of one series of publications. For one thread, the loop's."""

    def __init__(
        self,
        learner: Learner,
        every_events: int,
        window_events: int,
        full_every: int,
        table_precision: Precision,
        scored_ratio: float,
        evaluates_all: bool,
    ):
        """`every_events`: interval of the publications. `window_events`: of the evaluation.
        `full_every`: publications from one full checkpoint to the next. `scored_ratio`: share of
        the events that teach the mixture, (0, 1]. `evaluates_all`: evaluate all events, and not
        these alone."""
        self.every_events = every_events
        self.table_precision: Precision = table_precision
        self.count = 0
        """Publications so far."""
        self._full_every = full_every
        self._full_in = 0
        self._learner = learner
        self._dirty_rows = learner.track_dirty_rows()
        self._chosen_events = max(1, round(scored_ratio * CHOSEN_OF_EVENTS))
        self._evaluates_all = evaluates_all
        chosen_ratio = self._chosen_events / CHOSEN_OF_EVENTS
        if not evaluates_all:
            window_events = max(1, round(window_events * chosen_ratio))
        self._follower = Follower(learner, window_events, table_precision, chosen_ratio)
        self._prepared: Prepared | None = None
        self._held: _Held | None = None
        self._overdue = False
        self._waiting: list[ScoredBatch] = []
        self._waiting_events = 0
        self._thread = ThreadPoolExecutor(1, "niwaki-served")
        self._jobs: deque[Future[Any]] = deque()
        self._at_event = 0
        self._columns: tuple[int, ...] | None = None
        self._multiply_adds = learner.branches.dense_cost
        self._multiply_adds_sum = 0.0

    @property
    def evaluation(self) -> WindowedEvaluation:
        """The evaluation of the served predictions, of all events or of the chosen ones; waits for
        the thread."""
        return self._settled().evaluation

    @evaluation.setter
    def evaluation(self, evaluation: WindowedEvaluation) -> None:
        self._settled().evaluation = evaluation

    @property
    def latest(self) -> dict[str, float]:
        """Summary of the last complete window of the served predictions. It waits for nothing and
        hands nothing over, so it may be read at any time without a change of which events are
        scored together."""
        return self._follower.evaluation.last

    @property
    def mixture(self) -> Mixture:
        """The mixture of the served experts. It has learned from the events scored before the last
        publication."""
        return self._settled().mixture

    @property
    def served(self) -> ServedModel | None:
        """The model that is published, as a scorer has it; None before the first publication."""
        return self._settled().model

    @property
    def full_due(self) -> bool:
        """True where the next checkpoint must be a full one."""
        return self._full_in <= 0

    def want_full(self) -> None:
        """Make the next checkpoint a full one, since nobody can be sure of what a delta would
        change."""
        self._full_in = 0

    def hold(self) -> None:
        """Leave open whether what was prepared will be served: `accept` or `withdraw` says so
        later. Rows that are learned from now on are the next publication's."""
        assert self._prepared is not None
        rows = self._dirty_rows.rows()
        self._held = _Held(self._prepared, rows)
        self._prepared = None
        self._dirty_rows.clear(self._learner.events)
        self._full_in = self._full_every - 1
        self._overdue = False

    def accept(self) -> None:
        """Serve what was held."""
        assert self._held is not None
        header, made = self._held.prepared
        self._held = None
        self._hand_over()
        self._do(self._follower.take_over, made)
        self._columns = header.shape.columns
        self._multiply_adds = header.multiply_adds
        self._at_event = header.events
        self.count += 1

    def withdraw(self) -> None:
        """The last publication has not arrived: the next one is a full one, and due at once. What
        was held is not served, and what it changed is in the next one."""
        held, self._held = self._held, None
        if held is not None:
            for table, rows_U in held.rows.items():
                if table != names.EMBEDDING:  # these are found by the rows of the linear expert
                    self._dirty_rows.mark_dirty(table, rows_U)
        self._overdue = True
        self.want_full()

    def score(
        self, hashed: HashedEvents, outcomes: Outcomes, first_event: int | None = None
    ) -> None:
        """Predict a batch with what is published, and evaluate it. Before the first publication:
        the click rate so far. `first_event`: events learned before the batch; None: those so
        far."""
        events = len(outcomes.labels_B)
        first = self._learner.events if first_event is None else first_event
        chosen, others = chosen_events(first, events, self._chosen_events)
        if not self._evaluates_all:
            others = []
        self._waiting.append(ScoredBatch(hashed, outcomes, chosen, others))
        self._waiting_events += events
        evaluated = sum(stop - start for start, stop in chosen + others)
        self._multiply_adds_sum += evaluated * self._multiply_adds
        if self._waiting_events >= _HANDED_OVER_EVENTS:
            self._hand_over()

    def observe(self, on_logits: Callable[[np.ndarray], object]) -> None:
        """From now on, call `on_logits` with the served logits of each batch that is evaluated, in
        order: from the thread, once the batch is scored; `settle` waits for the last one."""
        self._settled().on_logits = on_logits

    def due(self, move: Move) -> bool:
        """True where a publication is due after a step that ended with `move`: a multiple of the
        interval has been passed, or a newly pruned network has just been cut. A cut does not move
        the later ones, so policies are compared by publications at the same events."""
        every = self.every_events
        if self._overdue or move is Move.CUT:
            return True
        return self._learner.events // every > self._at_event // every

    def prepare(
        self,
        status: TrainingStatus,
        *,
        version: int,
        parent: int,
        base: int = 0,
        offsets: dict[str, int] | None = None,
        created_s: float = 0.0,
    ) -> Prepared:
        """Begin to make the checkpoint that is to be published now; nothing is taken over before
        `refresh`.

        `base`: make it a delta to the version before, which goes back to the full one `base`; 0: a
        full one. It is a full one all the same where the network reads other columns of the tables
        since. The others: see `Header`.
        """
        if self._reads_other_columns:
            base = 0
        learner = self._learner
        made, export = self._make(full=not base)
        header = Header.of(
            learner.description(),
            status,
            shape=export.shape,
            version=version,
            parent=parent,
            base=base,
            offsets=offsets,
            created_s=created_s,
            table_precision=self.table_precision,
        )
        self._prepared = Prepared(header, made)
        return self._prepared

    def checkpoint(self, status: TrainingStatus, **about: Any) -> tuple[Header, Tensors]:
        """The checkpoint that is to be published now, ready to be packed. `about`: see
        `prepare`."""
        prepared = self.prepare(status, **about)
        return prepared.header, prepared.tensors()

    def refresh(self) -> None:
        """Serve what the learner would publish now: what was prepared, or else changes without a
        checkpoint."""
        events = self._learner.events
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared.header.events == events:
            made, shape = prepared.made, prepared.header.shape
            full = not prepared.header.base
        else:
            made, export = self._make(full=False)
            full, shape = False, export.shape
        self._do(self._follower.take_over, made)
        self._full_in = self._full_every - 1 if full else self._full_in - 1
        self._columns = shape.columns
        self._dirty_rows.clear(events)
        self._multiply_adds = self._learner.multiply_adds
        self._at_event = events
        self._overdue = False
        self.count += 1

    def begin(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """Let the thread do something after all that it was given before. Nobody but the caller
        waits for it, and its errors are the caller's."""
        return self._thread.submit(job, *arguments)

    def settle(self) -> None:
        """Wait until the thread has done all jobs."""
        self._hand_over()
        while self._jobs:
            self._jobs.popleft().result()

    @property
    def behind(self) -> bool:
        """True where the learner has learned something since the last publication."""
        return self._at_event != self._learner.events

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next publications depend on, for a snapshot taken right after one:
        the served model is then what the learner exports."""
        self.settle()
        return self.begin_state().result()

    def begin_state(self) -> Future[dict[str, np.ndarray]]:
        """That state as it is now; nobody waits for the thread before the result is needed."""
        self._hand_over()
        arrays = {
            "at_event": np.array([self._at_event]),
            "multiply_adds": np.array([self._multiply_adds_sum]),
        }
        return self.begin(lambda: arrays | self._follower.state())

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue where `state` was taken; the learner has been restored. If something had been
        learned since the last publication, nothing is scored before the next one, since what was
        served is not known."""

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        follower = self._settled()
        follower.mixture.restore(part("mixture."))
        follower.evaluation.restore(part("evaluation."))
        self._at_event = int(arrays["at_event"][0])
        self._multiply_adds_sum = float(arrays["multiply_adds"][0])
        if self._at_event == self._learner.events:
            self.refresh()
            self.want_full()

    @property
    def sparsity_ratio(self) -> float:
        """Share of the dense multiply-adds that the served predictions were spared, averaged over
        events, 0..1."""
        events = max(self.evaluation.total.events, 1)
        return 1 - self._multiply_adds_sum / (events * self._learner.branches.dense_cost)

    @property
    def _reads_other_columns(self) -> bool:
        """True where the network reads other columns of the tables than the one published last: no
        delta can say so."""
        columns = self._learner.branches.network.shape.columns
        return self.count > 0 and columns != self._columns

    def _make(self, full: bool) -> tuple[Future[Made], Export]:
        """Begin to make the tensors of a full checkpoint, or of a delta; and the export that they
        are made of."""
        self._hand_over()
        learner = self._learner
        everything = not self.count or self._reads_other_columns
        # The mixture in the export is replaced by that of the served experts, once that has
        # learned.
        rows = None if everything else self._dirty_rows.rows()
        export = learner.export(learner.mixture.weights, rows)
        return self._do(self._follower.make, export, full and not everything), export

    def _hand_over(self) -> None:
        if self._waiting:
            self._do(self._follower.score, self._waiting)
            self._waiting = []
            self._waiting_events = 0

    def _do(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """Give the thread a job, to be done after all earlier ones. An error of a job is raised
        here later."""
        while self._jobs and (len(self._jobs) >= _MOST_JOBS or self._jobs[0].done()):
            self._jobs.popleft().result()
        future = self._thread.submit(job, *arguments)
        self._jobs.append(future)
        return future

    def _settled(self) -> Follower:
        self.settle()
        return self._follower
