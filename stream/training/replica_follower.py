"""The thread's part of a served replica: what it predicts, the mixture that learns from that, and
the tables of what is published.

In: batches to be scored, and exports of a learner. Out: an evaluation, and the tensors of each
publication. One thread owns a `Follower` while it has jobs (`niwaki.stream.training.served_replica`
is the loop's side), so nothing here is locked.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.errors import LearnError
from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.published import tensors as names
from niwaki.model.published.checks import not_finite
from niwaki.model.published.served import ModelFrame, ServedModel
from niwaki.model.published.table_codes import Precision, encode_values, rounded
from niwaki.model.published.tensors import Export
from niwaki.model.rows import mark

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


class _Part(NamedTuple):
    """Some events of a batch."""

    batch: int
    """The place of the batch among others."""
    span: tuple[int, int]


class _Scored(NamedTuple):
    """Events with predictions."""

    logits_B: np.ndarray
    outcomes: Outcomes


class Made(NamedTuple):
    """The outcome of preparing a publication."""

    changes: Export
    """The changes since the publication before, as they are served; everything, for the first."""
    published: Tensors
    """The tensors to publish, their values encoded."""


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
        self._to_learn: list[tuple[np.ndarray, Outcomes]] = []
        """Events scored since the last publication: the experts' logits, and outcomes."""
        self.on_logits: Callable[[np.ndarray], object] | None = None

    def score(self, batches: list[ScoredBatch]) -> None:
        """Predict batches that are about to be learned, the chosen events of all at once: which
        come together depends on events alone, and so do the bits of the predictions."""
        places = range(len(batches))
        chosen = [_Part(place, span) for place in places for span in batches[place].chosen]
        others = [_Part(place, span) for place in places for span in batches[place].others]
        scored = self._predict(batches, chosen, learned=True)
        if others:
            more = self._predict(batches, others, learned=False)
            scored = _in_order(chosen + others, scored, more)
        if len(scored.logits_B):
            self.evaluation.update(*scored)
        if self.on_logits:
            counts = [sum(stop - start for start, stop in b.chosen + b.others) for b in batches]
            for logits_B in np.split(scored.logits_B, np.cumsum(counts)[:-1]):
                self.on_logits(logits_B)

    def _predict(self, batches: list[ScoredBatch], parts: list[_Part], learned: bool) -> _Scored:
        """Predict some events of some batches. `learned`: the mixture will learn from them."""
        outcomes = [batches[place].outcomes.part(*span) for place, span in parts]
        if not self.model or not parts:
            nothing = [np.empty(0, np.float32)]
            logits = nothing + [self._before_models(part) for part in outcomes]
            joined = Outcomes.concat(outcomes or [batches[0].outcomes.part(0, 0)])
            return _Scored(np.concatenate(logits), joined)
        joined = Outcomes.concat(outcomes)
        hashed = HashedEvents.of_parts([(batches[place].hashed, span) for place, span in parts])
        experts_BE = self.model.experts(hashed)
        if learned:
            self._to_learn.append((experts_BE, joined))
        return _Scored(self.model.logits(experts_BE), joined)

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
        `complete`: publish all rows that have been published before, too.

        Raises `LearnError` where a weight is not finite."""
        if self._to_learn:
            experts, outcomes = zip(*self._to_learn, strict=True)
            self.mixture.update(np.concatenate(experts), Outcomes.concat(outcomes))
            self._to_learn = []
        # No scorer would take such a checkpoint, and learning can't go on from such a state.
        if (name := not_finite(export.tensors)) is not None:
            raise LearnError(f"tensor {name} is not finite: go back to the last snapshot")
        changes = export.tensors | {names.MIXTURE: torch.from_numpy(self.mixture.weights.copy())}
        stored = encode_values(changes, self._precision)
        served = rounded(changes, stored)
        if complete:
            stored = encode_values(self._complete(changes), self._precision)
        return Made(Export(export.shape, served), stored)

    def take_over(self, made: Future[Made]) -> None:
        """Serve what `make` made."""
        changes = made.result().changes
        self.model = ServedModel(self._frame, self._tables, changes, self.model)
        for name, published_R in self._published.items():
            mark(published_R, changes.tensors[names.rows_of(name)].numpy())

    def state(self) -> dict[str, np.ndarray]:
        """Copies of what the mixture and the evaluation know, for a snapshot."""
        parts = {"mixture": self.mixture.state(), "evaluation": self.evaluation.state()}
        return {
            f"{prefix}.{name}": array.copy()
            for prefix, part in parts.items()
            for name, array in part.items()
        }

    def _complete(self, changes: Tensors) -> Tensors:
        """All rows that were ever learned, as they are after `changes`."""
        whole = dict(changes)
        for name, published_R in self._published.items():
            changed_U = changes[names.rows_of(name)]
            published_R = published_R.copy()
            mark(published_R, changed_U.numpy())
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


def _in_order(parts: list[_Part], *scored: _Scored) -> _Scored:
    """The events of `parts`, which were scored in that order, in the order of the stream."""
    logits_B = np.concatenate([one.logits_B for one in scored])
    outcomes = Outcomes.concat([one.outcomes for one in scored])
    ends = np.cumsum([stop - start for _, (start, stop) in parts]).tolist()
    ordered = sorted(zip(parts, [0, *ends[:-1]], ends, strict=True))
    logits = [logits_B[start:stop] for _, start, stop in ordered]
    return _Scored(
        np.concatenate(logits),
        Outcomes.concat([outcomes.part(start, stop) for _, start, stop in ordered]),
    )


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
