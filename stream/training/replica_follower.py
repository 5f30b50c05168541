"""The thread's part of a served replica: what it predicts, the mixture that learns from that, and
the tables of what is published.

In: batches to be scored, and exports of a learner. Out: an evaluation, and the tensors of each
publication. One thread owns a `Follower` while it has jobs (`niwaki.stream.training.served_replica`
is the loop's side), so nothing here is locked.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.published import tensors as names
from niwaki.model.published.served import ModelFrame, ServedModel
from niwaki.model.published.table_codes import Precision, rounded
from niwaki.model.published.tensors import Export

CHOSEN_OF_EVENTS = 128
"""The chosen share of the stream is the first events of each so many."""
_EXPECTED_EVENTS = 100.0
"""Events that an expected click rate counts as."""

Tensors = dict[str, torch.Tensor]
Spans = list[tuple[int, int]]
"""Events of a batch, from the first of each span to its second (exclusive)."""


class ScoredBatch(NamedTuple):
    """A batch to be scored."""

    hashed: HashedEvents
    outcomes: Outcomes
    chosen: Spans
    """Events that teach the mixture, too."""
    others: Spans
    """Events that are only evaluated."""


class Made(NamedTuple):
    """The outcome of preparing a publication."""

    changes: Export
    """The changes since the publication before; everything, for the first."""
    published: Tensors
    """The tensors to publish."""


class Follower:
    """The part of a replica that belongs to the thread while it has jobs."""

    def __init__(
        self, learner: Learner, window_events: int, table_precision: Precision, chosen_ratio: float
    ):
        """`chosen_ratio`: share of the events that teach the mixture, (0, 1]."""
        config = learner.config
        self.evaluation = WindowedEvaluation(window_events)
        self.mixture = config.mixture(seen_ratio=chosen_ratio)
        self._prior_rate = config.prior_rate
        scales = len(config.half_lives_events)
        self._frame = ModelFrame(
            learner.schema,
            learner.encoder,
            config.pair_budget,
            embedding_dim=config.embedding_dim,
            scales=scales,
        )
        self._tables = self._frame.empty_tables()
        self.model: ServedModel | None = None
        self._precision = table_precision
        self._published = {name: np.zeros(len(table), bool) for name, table in self._tables.items()}
        """By table and row: True once a publication has named the row."""
        self._scored: list[tuple[np.ndarray, Outcomes]] = []
        self.on_logits: Callable[[np.ndarray], object] = lambda logits_B: None

    def score(self, batches: list[ScoredBatch]) -> None:
        """Predict batches that are about to be learned, the chosen events of all at once: which
        come together depends on events alone, and so do the bits of the predictions."""
        chosen = self._predict([(batch, s) for batch in batches for s in batch.chosen], True)
        others = self._predict([(batch, s) for batch in batches for s in batch.others], False)
        for batch in batches:
            parts = [(span, next(chosen)) for span in batch.chosen]
            parts += [(span, next(others)) for span in batch.others]
            if parts:
                parts.sort(key=lambda part: part[0])
                outcomes = Outcomes.concat([batch.outcomes.part(*span) for span, _ in parts])
                logits_B = np.concatenate([logits for _, logits in parts])
                self.evaluation.update(logits_B, outcomes)
                self.on_logits(logits_B)

    def _predict(
        self, parts: list[tuple[ScoredBatch, tuple[int, int]]], learned: bool
    ) -> Iterator[np.ndarray]:
        """The logits of some events of each of some batches, one array after the other. `learned`:
        the mixture will learn from them."""
        outcomes = [batch.outcomes.part(*span) for batch, span in parts]
        if not self.model:
            return map(self._before_models, outcomes)
        if not parts:
            return iter(())
        hashed = HashedEvents.concat([batch.hashed.part(*span) for batch, span in parts])
        experts_BE = self.model.experts(hashed)
        if learned:
            self._scored.append((experts_BE, Outcomes.concat(outcomes)))
        ends = np.cumsum([stop - start for _, (start, stop) in parts])[:-1]
        return iter(np.split(self.model.logits(experts_BE), ends))

    def _before_models(self, events: Outcomes) -> np.ndarray:
        """The logit of the click rate so far, for events before the first publication: of that of
        the config, and of one event with an even chance where there is none."""
        total, rate = self.evaluation.total, self._prior_rate
        expected = _EXPECTED_EVENTS if rate else 1.0
        clicks = total.label_sum + expected * (rate or 0.5)
        others = total.weight_sum + expected - clicks
        return np.full(len(events.labels_B), math.log(clicks / others), np.float32)

    def make(self, export: Export, complete: bool) -> Made:
        """Let the mixture learn from all events scored since it last did, then make the tensors.
        `complete`: publish all rows that have been published before, too."""
        if self._scored:
            experts, outcomes = zip(*self._scored, strict=True)
            self.mixture.update(np.concatenate(experts), Outcomes.concat(outcomes))
            self._scored = []
        changes = export.tensors | {names.MIXTURE: torch.from_numpy(self.mixture.weights.copy())}
        published = self._complete(changes) if complete else changes
        return Made(Export(export.shape, changes), published)

    def take_over(self, made: Future[Made]) -> None:
        """Serve what `make` made."""
        shape, changes = made.result().changes
        exact = Export(shape, rounded(changes, self._precision))
        self.model = ServedModel(self._frame, self._tables, exact, self.model)
        for name, published_R in self._published.items():
            published_R[changes[names.rows_of(name)].numpy()] = True

    def _complete(self, changes: Tensors) -> Tensors:
        """All rows that were ever learned, as they are after `changes`."""
        whole = dict(changes)
        for name, published_R in self._published.items():
            changed_U = changes[names.rows_of(name)]
            published_R = published_R.copy()
            published_R[changed_U.numpy()] = True
            rows_U = torch.from_numpy(np.flatnonzero(published_R))
            values = self._tables[name].index_select(0, rows_U)
            changed = torch.isin(rows_U, changed_U, assume_unique=True)
            values[changed] = changes[names.values_of(name)]
            if name == names.EMBEDDING:  # a row that no gradient has reached yet is left out
                learned_U = values.any(1)
                rows_U = rows_U[learned_U]
                values = values[learned_U]
            whole |= {names.rows_of(name): rows_U, names.values_of(name): values}
        return whole


def chosen_events(first: int, events: int, of_each: int) -> tuple[Spans, Spans]:
    """The chosen events of a batch, and the others. `first`: events before the batch. `of_each`:
    chosen ones among 128."""
    if of_each == CHOSEN_OF_EVENTS:
        return [(0, events)], []
    spans: tuple[Spans, Spans] = [], []
    start = 0
    while start < events:
        place = (first + start) % CHOSEN_OF_EVENTS
        left_out = place >= of_each
        stop = start + (CHOSEN_OF_EVENTS if left_out else of_each) - place
        spans[left_out].append((start, min(stop, events)))
        start = stop
    return spans
