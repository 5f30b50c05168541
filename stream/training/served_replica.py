"""A series of publications, followed as a scorer would: each event is predicted by what was
published, then learned.

In: a learner, and the batches that it is about to learn. Out: what to publish, full or delta, and
how good the served predictions were. What the served experts predicted teaches their mixture, which
the next publication carries: so it knows the delay.

The loop takes part in little: it hands over batches, and copies the rows that the learner has
changed, between two batches, unsorted. Predicting, mixing, sorting and putting full checkpoints
together is a thread's, one thing after the other, so that all comes out to the bit as if the loop
had done it; who asks for a result waits for it.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch

from niwaki.model.deep.network import NetworkShape
from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.learner import Learner
from niwaki.model.mixture import Mixture
from niwaki.model.published.served import ServedModel
from niwaki.model.published.table_codes import Precision, rounded
from niwaki.model.rows import Export, ascending
from niwaki.pruning.policy import Move

_HANDED_OVER_EVENTS = 1_024
"""Events that are scored together, at least, where no publication comes between: memory is bounded,
and a thread woken once is woken seldom."""
_MOST_JOBS = 4
"""Beyond these the loop waits for the thread."""

Tensors = dict[str, torch.Tensor]


class Prepared(NamedTuple):
    """What is about to be published."""

    events: int
    """Events learned."""
    full: bool
    shape: NetworkShape
    made: Future[tuple[Export, Tensors]]
    """What has changed since the publication before (everything, for the first), and what to
    publish."""

    def tensors(self) -> Tensors:
        """What to publish; waits until it is there. Any thread may ask."""
        return self.made.result()[1]


class ServedReplica:
    """One series. For one thread, the loop's."""

    def __init__(
        self,
        learner: Learner,
        every_events: int,
        window_events: int,
        full_every: int,
        table_precision: Precision,
    ):
        """`full_every`: publications from one full checkpoint to the next."""
        self.every_events, self.table_precision = every_events, table_precision
        self.count = 0
        """Publications so far."""
        self._full_every, self._full_in = full_every, 0
        self._learner, self._changes = learner, learner.follow()
        self._follower = _Follower(learner, window_events, table_precision)
        self._prepared: Prepared | None = None
        self._waiting: list[tuple[HashedEvents, np.ndarray]] = []
        self._waiting_events = 0
        self._thread = ThreadPoolExecutor(1, "niwaki-served")
        self._jobs: deque[Future] = deque()
        self._at_event, self._columns = 0, None
        self._multiply_adds, self._multiply_adds_sum = learner.dense_cost, 0.0

    @property
    def evaluation(self) -> WindowedEvaluation:
        """How good the predictions of what was published have been."""
        return self._settled().evaluation

    @evaluation.setter
    def evaluation(self, evaluation: WindowedEvaluation) -> None:
        self._settled().evaluation = evaluation

    @property
    def latest(self) -> dict[str, float]:
        """Summary of the last complete window of what has been scored. Waits for nothing, and hands
        nothing over: it may be asked for at any time, and does not tell which events are scored
        together."""
        return self._follower.evaluation.last

    @property
    def mixture(self) -> Mixture:
        """That of the served experts. It has learned from what was scored before the last
        publication."""
        return self._settled().mixture

    @property
    def served(self) -> ServedModel:
        """What is published, as a scorer has it."""
        return self._settled().model

    @property
    def other_columns(self) -> bool:
        """Whether other columns of the tables are read now than in what was published last. No
        delta can say so."""
        return self.count > 0 and self._learner.network.shape.columns != self._columns

    def score(self, features: HashedEvents, labels_B: np.ndarray) -> None:
        """Predict a batch with what is published, and count the outcome. Before the first
        publication: an even chance."""
        self._waiting.append((features, labels_B))
        self._waiting_events += len(labels_B)
        self._multiply_adds_sum += len(labels_B) * self._multiply_adds
        if self._waiting_events >= _HANDED_OVER_EVENTS:
            self._hand_over()

    def due(self, move: Move) -> bool:
        """Whether it is time to publish, after a step that ended with `move`: the interval has
        passed, or a newly pruned network has just been cut."""
        return move is Move.CUT or self._learner.events - self._at_event >= self.every_events

    @property
    def full_due(self) -> bool:
        """Whether the next checkpoint must be a full one."""
        return self._full_in <= 0

    def want_full(self) -> None:
        """Make the next checkpoint a full one: nobody can be sure of what a delta would change."""
        self._full_in = 0

    def prepare(self, full: bool) -> Prepared:
        """What to publish now: a full checkpoint or a delta. Nothing is taken over before
        `refresh`."""
        self._hand_over()
        learner = self._learner
        # What is served in fewer bits can't make a full one: rounding twice is not rounding once.
        whole = not self.count or self.other_columns or (full and self.table_precision != "float32")
        # The mixture in it is replaced by that of the served experts, once that has learned.
        export = learner.export(learner.mixture.weights, None if whole else self._changes.rows())
        made = self._do(self._follower.make, export, full and not whole)
        self._prepared = Prepared(learner.events, full, export.shape, made)
        return self._prepared

    def refresh(self) -> None:
        """Take over what the learner publishes now."""
        if self._prepared is None or self._prepared.events != self._learner.events:
            self.prepare(full=False)
        self._do(self._follower.take_over, self._prepared.made)
        self._full_in = self._full_every - 1 if self._prepared.full else self._full_in - 1
        self._columns = self._prepared.shape.columns
        self._prepared = None
        self._changes.clear(self._learner.events)
        self._multiply_adds = self._learner.multiply_adds
        self._at_event = self._learner.events
        self.count += 1

    def settle(self) -> None:
        """Wait until the thread has done all that there is to do."""
        self._hand_over()
        while self._jobs:
            self._jobs.popleft().result()

    def state(self) -> dict[str, np.ndarray]:
        """What the next publications depend on, for a snapshot taken right after one: the served
        model is then what the learner exports."""
        follower = self._settled()
        counts = {
            "at_event": np.array([self._at_event]),
            "multiply_adds": np.array([self._multiply_adds_sum]),
        }
        parts = (("mixture", follower.mixture.state()), ("evaluation", follower.evaluation.state()))
        return counts | {
            f"{prefix}.{name}": array for prefix, arrays in parts for name, array in arrays.items()
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Continue where `state` was taken; the learner has been restored. If something had been
        learned since the last publication, nothing is scored before the next: what was served is
        not known."""

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
                if name.startswith(prefix)
            }

        follower = self._settled()
        follower.mixture.restore(part("mixture."))
        follower.evaluation.restore(part("evaluation."))
        self._at_event, self._multiply_adds_sum = (
            int(arrays["at_event"][0]),
            float(arrays["multiply_adds"][0]),
        )
        if self._at_event == self._learner.events:
            self.refresh()
            self.want_full()

    @property
    def sparsity_ratio(self) -> float:
        """Share of the dense multiply-adds that the served predictions were spared, averaged over
        events."""
        events = max(self.evaluation.total.events, 1)
        return 1 - self._multiply_adds_sum / (events * self._learner.dense_cost)

    def _hand_over(self) -> None:
        if self._waiting:
            self._do(self._follower.score, self._waiting)
            self._waiting, self._waiting_events = [], 0

    def _do(self, job: Callable, *arguments: Any) -> Future:
        """Hand the thread something to do after all that it has been handed. What a job raises is
        raised here later."""
        while self._jobs and (len(self._jobs) >= _MOST_JOBS or self._jobs[0].done()):
            self._jobs.popleft().result()
        self._jobs.append(self._thread.submit(job, *arguments))
        return self._jobs[-1]

    def _settled(self) -> "_Follower":
        self.settle()
        return self._follower


class _Follower:
    """What the thread has to itself while it has something to do."""

    def __init__(self, learner: Learner, window_events: int, table_precision: Precision):
        config = learner.config
        self.evaluation, self.mixture = WindowedEvaluation(window_events), config.mixture()
        scales = len(config.half_lives_events)
        self.model = ServedModel(
            learner.schema, learner.encoder, embedding_dim=config.embedding_dim, scales=scales
        )
        self._precision = table_precision
        self._named = {
            name: np.zeros(len(table), bool) for name, table in self.model.tables.items()
        }
        """By table and row: whether anything published has named it."""
        self._serves = False
        self._scored: list[tuple[np.ndarray, np.ndarray]] = []

    def score(self, batches: list[tuple[HashedEvents, np.ndarray]]) -> None:
        """Predict what is about to be learned. All at once: which events come together depends on
        events alone, as do the bits of what is predicted."""
        features, labels = zip(*batches, strict=True)
        labels_B = np.concatenate(labels)
        logits_B = np.zeros(len(labels_B), np.float32)
        if self._serves:
            experts_BE = self.model.experts(HashedEvents.concat(features))
            logits_B = self.model.logits(experts_BE)
            self._scored.append((experts_BE, labels_B))
        ends = np.cumsum([len(part) for part in labels])[:-1]
        for part, clicks in zip(np.split(logits_B, ends), labels, strict=True):
            self.evaluation.update(part, clicks)

    def make(self, export: Export, complete: bool) -> tuple[Export, Tensors]:
        """Let the mixture learn from what has been scored since it last did. Then: what is to be
        taken over, and what is to be published. `complete`: with all rows that have been published
        before."""
        if self._scored:
            experts, labels = zip(*self._scored, strict=True)
            self.mixture.update(np.concatenate(experts), np.concatenate(labels))
            self._scored = []
        changes = ascending(export.tensors) | {
            "mixture": torch.from_numpy(self.mixture.weights.copy())
        }
        return Export(export.shape, changes), self._whole(changes) if complete else changes

    def take_over(self, made: Future[tuple[Export, Tensors]]) -> None:
        """Serve from what `make` made."""
        shape, changes = made.result()[0]
        self.model.apply(Export(shape, rounded(changes, self._precision)))
        for name, named_R in self._named.items():
            named_R[changes[f"{name}.rows"].numpy()] = True
        self._serves = True

    def _whole(self, changes: Tensors) -> Tensors:
        """All rows that were ever learned, as they are after `changes`."""
        whole = dict(changes)
        for name, named_R in self._named.items():
            changed_U = changes[f"{name}.rows"]
            named_R = named_R.copy()
            named_R[changed_U.numpy()] = True
            rows_U = torch.from_numpy(np.flatnonzero(named_R))
            values = self.model.tables[name].index_select(0, rows_U)
            values[torch.isin(rows_U, changed_U, assume_unique=True)] = changes[f"{name}.values"]
            if name == "embedding":  # not one that no gradient has reached yet
                learned_U = values.any(1)
                rows_U, values = rows_U[learned_U], values[learned_U]
            whole |= {f"{name}.rows": rows_U, f"{name}.values": values}
        return whole
