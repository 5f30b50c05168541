"""The linear expert: Bayesian logistic regression over sparse slots, with shrinkage learned from
the stream.

In: S slots for each event (fields, pairs of fields, numerics, a constant), each a row and a value.
Out: the contribution of each slot to the logit. Every weight is Gaussian, in natural parameters:
precision q and precision times mean b beyond a prior N(0, s) that all slots of a group share, so
the mean is b / (1/s + q). The weight of a rare id stays near 0, and a group without information is
shrunk away. K copies discount old evidence at different rates.

Assumed-density filtering as in Graepel et al. (AdPredictor, ICML 2010) and Chapelle & Li (NeurIPS
2011, algorithm 3), with two changes: a step takes a whole batch at once, damped so that correlated
slots cannot overshoot; and s follows the gradient of the loss of predict-then-learn, a streaming
form of empirical Bayes. Old evidence fades by the power prior (Ibrahim & Chen, 2000) with a
half-life in events, when a row is next learned.

Shapes: B events, S slots, V values of lists, K time scales, G groups, U different rows, R rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.features.lists import ListSlots
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.linear.kernels import compiled_logits, linear_contributions
from niwaki.model.linear.learning import (
    Evidence,
    Scratch,
    compiled_learn,
    linear_prior,
    shrink_linear,
)
from niwaki.model.rows import CACHE_LINE_BYTES, lazy_zeros

_LOG_S_RANGE = (-12.0, math.log(2.0))
WITHHELD = -30.0
"""Logarithm of a prior variance of a group that begins with the next step."""
_LINE_FLOATS = CACHE_LINE_BYTES // 4
_EXPECTED_PRECISION = 10.0
"""Evidence for an expected weight: that of 40 events at a click rate of 50 %, of 340 at 3 %."""
_FIRST_EVENTS = 2_000
"""Events before the first step of shrinkage: there is nothing to judge it by earlier."""


class LearnedRows(NamedTuple):
    """The rows that one step learned, valid until the next step."""

    rows_U: torch.Tensor
    """int64, each row once."""
    before_U: torch.Tensor
    """int64, number of events after the batch in which each row was last learned before; 0:
    never."""


class BayesianLinear:
    """Natural parameters of R rows at K time scales, and the prior variances of the groups of
    slots."""

    def __init__(
        self,
        rows: int,
        group_S: Sequence[int],
        variance_G: Sequence[float],
        half_lives: Sequence[float],
        shrinkage_rate: float,
    ):
        """`group_S`: the group of each slot. `variance_G`: initial prior variance, > 0.
        `half_lives`: of evidence, one for each time scale, events, > 0. `shrinkage_rate`: of
        Adagrad on the logarithms of the prior variances, >= 0."""
        scales = len(half_lives)
        self._group_S = np.array(group_S, np.int64)
        self._initial_GK = torch.tensor(variance_G).log()[:, None].repeat(1, scales)
        self.log_s_GK = self._initial_GK.clone()
        """Logarithms of the prior variances. One of `WITHHELD` lets a group contribute nothing
        until the next step, which begins at the initial variance."""
        self._withheld = False
        self.squares_GK = torch.zeros_like(self.log_s_GK)
        # All that a step reads of a row lies side by side, so that a row costs one trip to memory.
        records_RX = lazy_zeros(rows, 2 * scales + 2)
        self.evidence_R2K = records_RX[:, : 2 * scales].view(rows, 2, scales)
        """float32, b then q of each row and time scale."""
        self.learned_R = records_RX.view(torch.int64)[:, scales]
        """int64, number of events after the batch in which a row was last learned; 0: never."""
        self.touched_rows = 0
        """Number of rows that `touched` returns."""
        self._rates_K = (1 / torch.tensor(half_lives)).numpy()
        self._shrinkage_rate = shrinkage_rate
        self._scratch = _scratch(0, 0, 0, scales)
        # Compiled now, not in the middle of a stream.
        compiled_learn(scales)
        compiled_logits(scales)
        self._evidence = Evidence(self.evidence_R2K.numpy(), self.learned_R.numpy())
        self._prior_SK = torch.empty(len(group_S), scales)
        self._prior_of: torch.Tensor | None = None
        """The `log_s_GK` from which `_prior_SK` was computed."""
        self.events = 0

    def learn(
        self, rows_BS: np.ndarray, values_BS: np.ndarray, lists: ListSlots, outcomes: Outcomes
    ) -> LearnedRows:
        """Take one step on a batch; returns the rows that were learned. `rows_BS`, `values_BS`: of
        the slots that do not read lists."""
        self.events += len(rows_BS)
        if self._withheld:
            begins_GK = self.log_s_GK == WITHHELD
            self.log_s_GK = torch.where(begins_GK, self._initial_GK, self.log_s_GK)
            self._withheld = False
        prior_SK = self.prior_SK().numpy()
        shrinkage_SK = np.zeros_like(prior_SK)
        scratch, values = self._scratch, int(lists.offsets[-1])
        if scratch.places_BS.shape != rows_BS.shape or len(scratch.places_V) < values:
            events, slots = rows_BS.shape
            scratch = self._scratch = _scratch(events, slots, values, prior_SK.shape[1])
        learn = compiled_learn(prior_SK.shape[1])
        different, new = learn(
            self._evidence,
            self.events,
            self._rates_K,
            prior_SK,
            rows_BS,
            values_BS,
            lists,
            outcomes.arrays,
            shrinkage_SK,
            scratch,
        )
        self.touched_rows += new
        if self.events > _FIRST_EVENTS:
            self.log_s_GK = self.log_s_GK.clone()
            low, high = _LOG_S_RANGE
            shrink_linear(
                shrinkage_SK,
                self._group_S,
                self._shrinkage_rate,
                low,
                high,
                self.squares_GK.numpy(),
                self.log_s_GK.numpy(),
            )
        return LearnedRows(
            torch.from_numpy(scratch.rows_U[:different]),
            torch.from_numpy(scratch.stamps_U[:different]),
        )

    def discount_evidence(self, ratio: float) -> torch.Tensor:
        """Keep only `ratio` (0..1] of all evidence: means move towards the prior, and the next
        steps are large. Returns the rows that had evidence, (U,)."""
        rows_U = self.touched()
        self.evidence_R2K[rows_U] *= ratio
        return rows_U

    def expect(self, row: int, slot: int, logit: float) -> None:
        """Let the weight of a row, of which nothing was learned yet, be `logit`, with some evidence
        for it. `slot`: the one that reads it."""
        precision_K = self.prior_SK()[slot] + _EXPECTED_PRECISION
        self.evidence_R2K[row, 0] = logit * precision_K
        self.evidence_R2K[row, 1] = _EXPECTED_PRECISION
        self.learned_R[row] = 1  # 0 would mark it as one never learned
        self.touched_rows += 1

    def begin_slots(self, slots: np.ndarray) -> None:
        """Set the prior variances of the groups of some slots (int64) to the initial ones, since
        these slots have another meaning now."""
        groups = self._group_S[slots]
        self.log_s_GK = self.log_s_GK.clone()
        self.log_s_GK[groups] = self._initial_GK[groups]
        self.squares_GK[groups] = 0

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors for a snapshot; the number of events is not among them."""
        rows_U = self.touched()
        return {
            "rows": rows_U,
            "evidence": self.evidence_R2K[rows_U],
            "learned": self.learned_R[rows_U],
            "log_s": self.log_s_GK,
            "squares": self.squares_GK,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], events: int) -> None:
        """Continue where `state` was taken, after `events` events."""
        rows_U = tensors["rows"]
        self.evidence_R2K[rows_U] = tensors["evidence"]
        self.learned_R[rows_U] = tensors["learned"]
        self.log_s_GK = tensors["log_s"].clone()
        self._withheld = bool((self.log_s_GK == WITHHELD).any())
        self.squares_GK = tensors["squares"].clone()
        self.touched_rows = len(rows_U)
        self.events = events

    def prior_SK(self) -> torch.Tensor:
        """(S, K): 1 / prior variance of each slot."""
        if self._prior_of is not self.log_s_GK:
            prior_SK = torch.empty_like(self._prior_SK)
            linear_prior(self.log_s_GK.numpy(), self._group_S, prior_SK.numpy())
            self._prior_SK = prior_SK
            self._prior_of = self.log_s_GK
        return self._prior_SK

    def occupied_ratio(self, first: int, rows: int) -> float:
        """Share of `rows` rows from `first` on that have ever been learned."""
        return float((self.learned_R[first : first + rows] > 0).float().mean())

    def touched(self) -> torch.Tensor:
        """Sorted numbers of all rows that have ever been learned; the others are zero."""
        return self.learned_R.nonzero().squeeze(1)


def _scratch(events: int, slots: int, values: int, scales: int) -> Scratch:
    """Buffers for steps on batches of this shape, with up to `values` values of lists, or some
    more."""
    values = values + values // 4
    rows = events * slots + values
    # The sums of a row fill whole lines of the cache, so that a row costs one trip a line.
    width = -(-5 * scales // _LINE_FLOATS) * _LINE_FLOATS
    return Scratch(
        rows_U=np.empty(rows, np.int64),
        stamps_U=np.empty(rows, np.int64),
        slots_U=np.empty(rows, np.int32),
        places_BS=np.empty((events, slots), np.int32),
        places_V=np.empty(values, np.int32),
        sums_UX=lazy_zeros(rows, width).numpy(),
    )


def contributions(
    evidence_R2K: torch.Tensor,
    prior_SK: torch.Tensor,
    rows_BS: torch.Tensor,
    values_BS: torch.Tensor,
    lists: ListSlots,
) -> torch.Tensor:
    """(B, S, K): the contribution of each slot to the logit. `prior_SK`: 1 / s of each slot's
    group. `rows_BS`, `values_BS`: of the slots that do not read lists."""
    out_BSK = torch.empty(len(rows_BS), *prior_SK.shape)
    linear_contributions(
        evidence_R2K.numpy(),
        prior_SK.numpy(),
        rows_BS.numpy(),
        values_BS.numpy(),
        *lists,
        out_BSK.numpy(),
    )
    return out_BSK
