"""The wide expert: Bayesian logistic regression over sparse slots, with shrinkage learned from the
stream.

In: for each event S slots, each a row and a value: fields, pairs of fields, numerics, a constant.
Out: what each slot adds to the logit. Every weight is Gaussian, in natural parameters: precision q
and precision times mean b beyond a prior N(0, s) that all slots of a group share, so the mean is b
/ (1/s + q). An id seen seldom stays near 0, and a group that teaches nothing is shrunk away. K
copies forget at different rates.

Assumed-density filtering as in Graepel et al. (AdPredictor, ICML 2010) and Chapelle & Li (NeurIPS
2011, algorithm 3), with two changes: a step takes a whole batch at once, damped so that correlated
slots cannot overshoot; and s follows the gradient of the loss of predict-then-learn, a streaming
form of empirical Bayes. Old evidence fades by the power prior (Ibrahim & Chen, 2000) with a
half-life in events, when a row is next learned.

Shapes: B events, S slots, K time scales, G groups, U different rows, R rows.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from niwaki.model.linear.kernels import (
    compiled_learn,
    compiled_logits,
    linear_contributions,
    linear_prior,
    shrink_linear,
)
from niwaki.model.rows import CACHE_LINE_BYTES, lazy_zeros

_LOG_S_RANGE = (-12.0, math.log(2.0))
_LINE_FLOATS = CACHE_LINE_BYTES // 4
_FIRST_EVENTS = 2_000
"""Before so many events, shrinkage stays as it was set: there is nothing to judge it by."""


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
        """`group_S`: the group of each slot. `variance_G`: prior variance to begin with, > 0.
        `half_lives`: events, >
        0. `shrinkage_rate`: of Adagrad on the logarithms of the prior variances, >= 0."""
        scales = len(half_lives)
        self._group_S = np.array(group_S, np.int64)
        self.log_s_GK = torch.tensor(variance_G).log()[:, None].repeat(1, scales)
        self.squares_GK = torch.zeros_like(self.log_s_GK)
        # What a step reads of a row lies side by side, so that a row costs one trip to memory.
        records_RX = lazy_zeros(rows, 2 * scales + 2)
        self.evidence_R2K = records_RX[:, : 2 * scales].unflatten(1, (2, scales))
        """b, then q."""
        self.learned_R = records_RX.view(torch.int64)[:, scales]
        """Events that had been learned when a row was last learned, that batch included; 0:
        never."""
        self.touched_rows = 0
        """How many rows `touched` would name."""
        self._rates_K = (1 / torch.tensor(half_lives)).numpy()
        self._shrinkage_rate = shrinkage_rate
        self._scratch = _scratch(0, 0, scales)
        (
            compiled_learn(scales),
            compiled_logits(scales),
        )  # compiled now, not in the middle of a stream
        self._arrays = self.evidence_R2K.numpy(), self.learned_R.numpy()
        self._prior_SK, self._prior_of = torch.empty(len(group_S), scales), None
        self.events = 0

    def learn(
        self, rows_BS: np.ndarray, values_BS: np.ndarray, labels_B: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on a batch; returns the ids of the rows that were learned, each once, (U,), and
        how many events had been learned when each of them last was (0: never). Both are valid until
        the next step."""
        self.events += len(labels_B)
        prior_SK = self.prior_SK().numpy()
        shrinkage_SK = np.zeros_like(prior_SK)
        if self._scratch[3].shape != rows_BS.shape:
            self._scratch = _scratch(*rows_BS.shape, prior_SK.shape[1])
        rates_K, now = self._rates_K, self.events
        learn = compiled_learn(prior_SK.shape[1])
        different, new, _ = learn(
            *self._arrays,
            now,
            rates_K,
            prior_SK,
            rows_BS,
            values_BS,
            labels_B,
            shrinkage_SK,
            *self._scratch,
        )
        self.touched_rows += new
        if self.events > _FIRST_EVENTS:
            self.log_s_GK = self.log_s_GK.clone()
            groups = self._group_S, self._shrinkage_rate, *_LOG_S_RANGE
            shrink_linear(shrinkage_SK, *groups, self.squares_GK.numpy(), self.log_s_GK.numpy())
        rows_U, before_U = (torch.from_numpy(part[:different]) for part in self._scratch[:2])
        return rows_U, before_U

    def forget(self, ratio: float) -> torch.Tensor:
        """Keep only `ratio` of all evidence, (0, 1]: the world has changed. Means move towards the
        prior, and the next steps are large. Returns the ids of the rows that had any."""
        rows_U = self.touched()
        self.evidence_R2K[rows_U] *= ratio
        return rows_U

    def state(self) -> dict[str, torch.Tensor]:
        """Everything but the count of events, for a snapshot."""
        rows_U = self.touched()
        rows = {
            "rows": rows_U,
            "evidence": self.evidence_R2K[rows_U],
            "learned": self.learned_R[rows_U],
        }
        return rows | {"log_s": self.log_s_GK, "squares": self.squares_GK}

    def restore(self, tensors: dict[str, torch.Tensor], events: int) -> None:
        """Undo `state`."""
        rows_U = tensors["rows"]
        self.evidence_R2K[rows_U], self.learned_R[rows_U] = tensors["evidence"], tensors["learned"]
        self.log_s_GK, self.squares_GK = tensors["log_s"].clone(), tensors["squares"].clone()
        self.touched_rows, self.events = len(rows_U), events

    def prior_SK(self) -> torch.Tensor:
        """(S, K): 1 / prior variance of each slot."""
        if self._prior_of is not self.log_s_GK:
            prior_SK = torch.empty_like(self._prior_SK)
            linear_prior(self.log_s_GK.numpy(), self._group_S, prior_SK.numpy())
            self._prior_SK, self._prior_of = prior_SK, self.log_s_GK
        return self._prior_SK

    def occupied_ratio(self, first: int, rows: int) -> float:
        """Share of `rows` rows from `first` on that have ever been learned."""
        return float((self.learned_R[first : first + rows] > 0).float().mean())

    def touched(self) -> torch.Tensor:
        """Sorted ids of every row that has ever been learned; the others are zero."""
        return self.learned_R.nonzero().squeeze(1)


def _scratch(events: int, slots: int, scales: int) -> tuple[np.ndarray, ...]:
    """The last arguments of `learn_linear`, from `rows_U` on."""
    rows = events * slots
    integers = np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(rows, np.int32)
    # Whole lines of the cache: each of a row's sums in one of them costs one trip.
    sums_UX = lazy_zeros(rows, -(-5 * scales // _LINE_FLOATS) * _LINE_FLOATS).numpy()
    return *integers, np.empty((events, slots), np.int32), sums_UX


def contributions(
    evidence_R2K: torch.Tensor,
    prior_SK: torch.Tensor,
    rows_BS: torch.Tensor,
    values_BS: torch.Tensor,
) -> torch.Tensor:
    """(B, S, K): what each slot adds to the logit. `prior_SK`: 1 / s of each slot's group."""
    out_BSK = torch.empty(*rows_BS.shape, prior_SK.shape[1])
    linear_contributions(
        evidence_R2K.numpy(), prior_SK.numpy(), rows_BS.numpy(), values_BS.numpy(), out_BSK.numpy()
    )
    return out_BSK
