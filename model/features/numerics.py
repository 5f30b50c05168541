"""Numerics as the experts want them: standardised, heavy tails tamed, missing values marked; and as
piecewise-linear codes.

In: raw numerics, NaN = missing. Out: `Prepared`. Never looks ahead: moments and knots are those of
events before the batch. A published model carries the ones that it was published with.

Shapes: B events, N numerics, Q knots.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.jit import kernel

KNOTS = 17
"""Quantiles that a piecewise-linear code bends at."""
CODES = KNOTS + 1
"""Rows of a numeric's code: one for "missing, or no knots yet", then one a knot."""
_LARGEST_SCORE = 8.0
_SAMPLE_EVENTS = 16_384
_FIRST_ESTIMATE_EVENTS = 256
_LONGEST_WAIT_EVENTS = 65_536


class Prepared(NamedTuple):
    """Numerics of B events."""

    scores_BM: torch.Tensor
    """(B, 2N): asinh of the standard score, within -8..8 (some 1,500 deviations), 0 where missing
    or nothing has been seen yet; then 1 where missing."""
    code_BN: torch.Tensor
    """int64: the code just below each value; the one just above is the next."""
    above_BN: torch.Tensor
    """float32 in 0..1: how much of each value belongs to the code above."""


class Scale(NamedTuple):
    """What preparing needs to know of the past."""

    moments_2N: torch.Tensor
    """float32: mean, and the inverse of the standard deviation (0 where it is not known)."""
    knots_NQ: torch.Tensor
    """float32, ascending, infinite from the first unused place on."""


def prepare(numerics_BN: torch.Tensor, scale: Scale) -> Prepared:
    """Numerics prepared with what was known of the past."""
    events, numerics = numerics_BN.shape
    prepared = Prepared(
        torch.empty(events, 2 * numerics),
        torch.empty(events, numerics, dtype=torch.int64),
        torch.empty(events, numerics),
    )
    prepare_numerics(
        numerics_BN.numpy(),
        scale.moments_2N.numpy(),
        scale.knots_NQ.numpy(),
        *(part.numpy() for part in prepared),
    )
    return prepared


class Numerics:
    """Running moments of N numerics over an effective window (Chan, Golub & LeVeque, 1983), and
    quantiles as knots.

    Knots are taken from the last 16,384 events: after 256 events, then each time that four times as
    many have passed, then every 65,536. A code is a rank, so what was learned of it stays
    meaningful when the knots move.
    """

    def __init__(self, numerics: int, horizon_events: float, *, codes: bool = True):
        """`horizon_events`: beyond it old values fade, so that a change of scale in mid-stream is
        followed. `codes`: False: there are never any knots, so every code is the first."""
        self._codes = codes
        self._horizon_events = horizon_events
        self.moments_3N = torch.zeros(
            3, numerics, dtype=torch.float64
        )  # count, mean, sum of squared deviations
        self.knots_NQ = torch.full((numerics, KNOTS), torch.inf)
        self.sample = torch.full((_SAMPLE_EVENTS, numerics), torch.nan)
        self.events = 0
        self.estimate_at = _FIRST_ESTIMATE_EVENTS

    def scale(self) -> Scale:
        """What `prepare` needs."""
        moments_2N = torch.empty(2, self.moments_3N.shape[1])
        scale_numerics(self.moments_3N.numpy(), moments_2N.numpy())
        return Scale(moments_2N, self.knots_NQ)

    def update(self, numerics_BN: torch.Tensor) -> None:
        """Take in B events."""
        if not numerics_BN.shape[1]:
            return
        take_in_numerics(
            numerics_BN.numpy(),
            self.events,
            self._horizon_events,
            self.moments_3N.numpy(),
            self.sample.numpy(),
        )
        self.events += len(numerics_BN)
        if self._codes and self.events >= self.estimate_at:
            self.estimate_at = self.events + min(3 * self.events, _LONGEST_WAIT_EVENTS)
            self._update_knots()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, for a snapshot."""
        counts = torch.tensor([self.events, self.estimate_at])
        return {
            "moments": self.moments_3N.clone(),
            "knots": self.knots_NQ,
            "sample": self.sample,
            "counts": counts,
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undo `state`."""
        self.moments_3N, self.knots_NQ = tensors["moments"].clone(), tensors["knots"].clone()
        self.sample = tensors["sample"].clone()
        self.events, self.estimate_at = tensors["counts"].tolist()

    def _update_knots(self) -> None:
        shares = torch.linspace(0, 1, KNOTS)
        knots_NQ = torch.full_like(self.knots_NQ, torch.inf)
        for i, column in enumerate(self.sample.T):
            values = column[~column.isnan()]
            if len(values):
                # As torch.quantile does, bit for bit, in a tenth of the time.
                ordered, ranks = (
                    torch.from_numpy(np.sort(values.numpy())),
                    shares * (len(values) - 1),
                )
                below, above = ordered[ranks.floor().long()], ordered[ranks.ceil().long()]
                distinct = torch.unique(torch.lerp(below, above, ranks - ranks.floor()))
                knots_NQ[i, : len(distinct)] = distinct
        self.knots_NQ = knots_NQ


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], int64[:,::1], float32[:,::1])"
)
def prepare_numerics(numerics_BN, moments_2N, knots_NQ, scores_BM, code_BN, above_BN):
    """`model.features.numerics.prepare`."""
    events, numerics = numerics_BN.shape
    knots = knots_NQ.shape[1]
    for n in range(numerics):
        finite = 0
        for q in range(knots):
            finite += math.isfinite(knots_NQ[n, q])
        for b in range(events):
            value = numerics_BN[b, n]
            missing = math.isnan(value)
            scores_BM[b, numerics + n] = missing
            score = 0.0 if missing else math.asinh((value - moments_2N[0, n]) * moments_2N[1, n])
            scores_BM[b, n] = min(max(score, -_LARGEST_SCORE), _LARGEST_SCORE)
            code_BN[b, n] = above_BN[b, n] = 0
            if missing or not math.isfinite(knots_NQ[n, 0]):
                continue
            below = 0
            for q in range(knots):
                below += knots_NQ[n, q] <= value
            index = max(min(below - 1, finite - 2), 0)
            low, high = knots_NQ[n, index], knots_NQ[n, index + 1]
            above = (value - low) / (high - low)
            code_BN[b, n] = index + 1
            if above > 0:
                above_BN[b, n] = min(above, np.float32(1))


@kernel("void(float64[:,::1], float32[:,::1])")
def scale_numerics(moments_3N, moments_2N):
    """`model.features.numerics.Numerics.scale`."""
    for n in range(moments_3N.shape[1]):
        count, mean, squares = moments_3N[0, n], moments_3N[1, n], moments_3N[2, n]
        deviation = math.sqrt(squares / max(count, 1.0))
        moments_2N[0, n] = mean
        moments_2N[1, n] = 1 / deviation if deviation > 1e-12 * (1 + abs(mean)) else 0.0


@kernel("void(float32[:,::1], int64, float64, float64[:,::1], float32[:,::1])")
def take_in_numerics(numerics_BN, events, horizon, moments_3N, sample_XN):
    """Merge a batch into running moments (count, mean, sum of squared deviations), and into the
    ring of the last X events. `events`: how many have been taken in before. `horizon`: more than
    these do not count."""
    batch, numerics = numerics_BN.shape
    counts_N, means_N, squares_N = np.zeros((3, numerics))
    for b in range(batch):
        for n in range(numerics):
            value = numerics_BN[b, n]
            sample_XN[(events + b) % len(sample_XN), n] = value
            known = not math.isnan(value)
            counts_N[n] += known
            means_N[n] += value if known else 0.0
    for n in range(numerics):
        means_N[n] /= max(counts_N[n], 1.0)
    for b in range(batch):
        for n in range(numerics):
            value = numerics_BN[b, n]
            squares_N[n] += 0.0 if math.isnan(value) else (value - means_N[n]) ** 2
    for n in range(numerics):
        old, count = moments_3N[0, n], counts_N[n]
        together = old + count
        shift, share = means_N[n] - moments_3N[1, n], count / max(together, 1.0)
        fade = min(horizon / max(together, 1.0), 1.0)
        moments_3N[0, n] = together * fade
        moments_3N[1, n] += shift * share
        moments_3N[2, n] = (moments_3N[2, n] + squares_N[n] + shift * shift * old * share) * fade
