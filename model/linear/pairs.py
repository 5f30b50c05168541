"""Pairs of columns as slots of the linear expert: which there can be, and which of them live.

In: a schema, and what each pair's contribution has been worth. Out: the pairs that have a slot. A
pair is of two fields with one value each, or of such a field and a list, of which it reads the mean
of what each value does together with the field's. There are as many slots as a budget allows. Where
there can be more pairs than slots, a quarter of the slots tries other ones, in turn: at the end of
each trial the slots whose pairs were worth least are given to the next candidates. Pairs are thus
pruned and regrown as units of the network are. Trials become longer once all candidates have had
their turn, and short again after a drift.

The worth of a pair is the loss, in nats for each event, that its contribution saves: that of the
logit without it less that of the logit with it, to the second order, on events that were not yet
learned.

Shapes: P slots of pairs of two single fields, Q slots of pairs with a list, B events, S slots.
"""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.features.encoder import Encoder
from niwaki.model.features.outcomes import OUTCOMES, OutcomeArrays
from niwaki.model.features.schema import Schema
from niwaki.model.jit import kernel, types

_TRIAL_SHARE = 4
"""A trial exchanges one slot of so many."""
_LONGEST_TRIAL = 5
"""Trials double this many times at the most."""


class PairBudget(NamedTuple):
    """The number of pairs that may live at once."""

    rows: int
    """Rows of the table of all pairs, >= 0; 0: there are no pairs."""
    singles: int | None
    """Pairs of two single fields, >= 0; None: all."""
    with_lists: int
    """Pairs of a single field and a list, >= 0."""


class Candidates:
    """All pairs of a schema: of two single fields first, then those with a list, each in the order
    of the fields."""

    def __init__(self, schema: Schema, encoder: Encoder, budget: PairBudget):
        names, lists = schema.single_fields, schema.list_fields
        singles = list(itertools.combinations(range(len(names)), 2))
        crossed = list(itertools.product(range(len(names)), range(len(lists))))
        self.fields_C2 = np.array(singles + crossed, np.int64).reshape(-1, 2)
        """The two fields of a pair; of one with a list, the field, and the place of the list."""
        self.names = [(names[a], names[b]) for a, b in singles]
        self.names += [(names[field], lists[place]) for field, place in crossed]
        self.seeds_C = np.array([encoder.seed_of(":".join(pair)) for pair in self.names], np.uint64)
        self.singles = len(singles)
        """Number of pairs of two single fields."""
        most = len(singles) if budget.singles is None else budget.singles
        self.slots = (0, 0)
        if budget.rows:
            self.slots = min(len(singles), most), min(len(crossed), budget.with_lists)
        """Slots P and Q."""

    def __len__(self) -> int:
        return len(self.names)

    def key(self, pair: int) -> tuple[bool, tuple[str, str]]:
        """A name of a candidate that it has in any schema: true for two single fields, and the
        names of both."""
        return pair < self.singles, self.names[pair]

    def first(self) -> np.ndarray:
        """int64 (P + Q,): the pairs that live at first."""
        singles, with_lists = self.slots
        return np.concatenate(
            [np.arange(singles), np.arange(self.singles, self.singles + with_lists)]
        )

    def spans(self) -> list[tuple[slice, range]]:
        """For either kind of pairs, its slots among all P + Q, and its candidates."""
        singles, with_lists = self.slots
        return [
            (slice(0, singles), range(self.singles)),
            (slice(singles, singles + with_lists), range(self.singles, len(self))),
        ]

    def broken_rule(self, living: np.ndarray) -> str | None:
        """The rule that numbers of living pairs break, or None."""
        if living.dtype != np.int64 or living.shape != (sum(self.slots),):
            return f"must be {sum(self.slots)} pairs, int64"
        for slots, candidates in self.spans():
            some = living[slots].tolist()
            if len(set(some)) < len(some):
                return "must not name a pair twice"
            if any(one not in candidates for one in some):
                return f"must be among the pairs {candidates.start} to {candidates.stop - 1}"
        return None


class PairChoice:
    """The living pairs of a learner, what they are worth, and who is next."""

    def __init__(self, candidates: Candidates, trial_events: int):
        """`trial_events`: events of the first trials, >= 0; 0: the first pairs live for ever."""
        self._candidates = candidates
        self._trial_events = trial_events
        self.living = candidates.first()
        """int64 (P + Q,): number of the candidate in each slot."""
        self._kinds = [
            (kind, slots, pairs)
            for kind, (slots, pairs) in enumerate(candidates.spans())
            if 0 < slots.stop - slots.start < len(pairs)
        ]
        """Kinds of pairs of which there can be more than may live."""
        self._gains = np.zeros(len(self.living))
        self._weights = np.zeros(len(self.living))
        self._fresh = np.zeros(len(self.living), bool)
        self._turns = np.array(candidates.slots, np.int64)
        """For either kind of pairs, how many candidates have had their turn, the first included."""
        self._turns_before = self._turns.copy()
        """`_turns` when the stream began, or changed last."""
        self._left_events = trial_events

    def update(
        self,
        contributions_BS: np.ndarray,
        columns: np.ndarray,
        logits_B: np.ndarray,
        outcomes: OutcomeArrays,
    ) -> np.ndarray:
        """Count B events; returns the slots (int64) whose pairs were exchanged. `columns`: of
        `contributions_BS`, for each slot. `logits_B`: of the linear expert, for the stream before
        sampling."""
        none = columns[:0]
        if not len(columns):
            return none
        events = contributions_BS, columns, logits_B, outcomes
        self._weights += _add_gains(*events, self._gains)
        if not self._trial_events or not self._kinds:
            return none
        half, before = self._trial() // 2, self._left_events
        self._left_events -= len(logits_B)
        if self._left_events <= half < before:  # a new pair is judged by what it has learned
            self._gains[self._fresh] = self._weights[self._fresh] = 0
        if self._left_events > 0:
            return none
        exchanged = self._exchange()
        self._left_events = self._trial()
        return exchanged

    def worth(self) -> dict[str, float]:
        """Nats for each event that each living pair has saved lately, by the names of its columns
        with an asterisk between them; the best first."""
        means = self._means()
        order = np.argsort(-means, kind="stable")
        names = ["*".join(self._candidates.names[pair]) for pair in self.living.tolist()]
        return {names[slot]: float(means[slot]) for slot in order.tolist()}

    def hurry(self) -> None:
        """Trials are short again, since the stream has changed."""
        self._turns_before = self._turns.copy()
        self._left_events = min(self._left_events, self._trial_events)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, for a snapshot."""
        counts = [*self._turns.tolist(), *self._turns_before.tolist(), self._left_events]
        return {
            "living": torch.from_numpy(self.living.copy()),
            "gains": torch.from_numpy(np.stack([self._gains, self._weights])),
            "fresh": torch.from_numpy(self._fresh.copy()),
            "counts": torch.tensor(counts, dtype=torch.int64),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `state` was taken."""
        self.living = tensors["living"].numpy().copy()
        self._gains, self._weights = tensors["gains"].numpy().copy()
        self._fresh = tensors["fresh"].numpy().copy()
        counts = tensors["counts"].numpy().copy()
        self._turns, self._turns_before, self._left_events = counts[:2], counts[2:4], int(counts[4])

    def _means(self) -> np.ndarray:
        means: np.ndarray = self._gains / np.maximum(self._weights, 1e-9)
        return means

    def _trial(self) -> int:
        """Events of the present trial."""
        rounds = [
            (self._turns[kind] - self._turns_before[kind]) // len(candidates)
            for kind, _, candidates in self._kinds
        ]
        doubled: int = 2 ** min(int(min(rounds)), _LONGEST_TRIAL)
        return self._trial_events * doubled

    def _exchange(self) -> np.ndarray:
        """Give the slots whose pairs are worth least to the next candidates."""
        means, exchanged = self._means(), []
        self.living = self.living.copy()  # slots were made of the array before
        for kind, slots, candidates in self._kinds:
            count = slots.stop - slots.start
            tried = min(len(candidates) - count, -(-count // _TRIAL_SHARE))
            worst = slots.start + np.argsort(means[slots], kind="stable")[:tried]
            living = set(self.living[slots].tolist())
            for slot in worst.tolist():
                while (pair := candidates[self._turns[kind] % len(candidates)]) in living:
                    self._turns[kind] += 1
                self.living[slot] = pair
                living.add(pair)
            exchanged += worst.tolist()
        found = np.array(sorted(exchanged), np.int64)
        self._gains *= 0.5
        self._weights *= 0.5
        self._gains[found] = self._weights[found] = 0
        self._fresh[:] = False
        self._fresh[found] = True
        return found


@kernel(
    types.float64(
        types.float32[:, ::1],
        types.int64[::1],
        types.float32[:],
        OUTCOMES,
        types.float64[::1],
    )
)
def _add_gains(
    contributions_BS: np.ndarray,
    columns: np.ndarray,
    logits_B: np.ndarray,
    outcomes: OutcomeArrays,
    gains: np.ndarray,
) -> float:
    """Add the loss that each slot's contribution saves; returns the sum of weights."""
    total = 0.0
    for b in range(len(logits_B)):
        weight = outcomes.weights_B[b]
        logit = logits_B[b] + outcomes.offsets_B[b]
        prediction = np.float32(1) / (np.float32(1) + math.exp(-logit))
        error = weight * (outcomes.labels_B[b] - prediction)
        curvature = weight * np.float32(0.5) * prediction * (np.float32(1) - prediction)
        total += weight
        for p in range(len(columns)):
            part = contributions_BS[b, columns[p]]
            gains[p] += part * (error + curvature * part)
    return total
