"""Numerics as the experts read them: standard scores with tame tails, marks of missing values, and
piecewise-linear codes.

In: numerics of finished features, NaN = missing. Out: `Prepared`, by moments and knots (`Scale`) of
the events before the batch, so nothing looks ahead. A learner updates its `Numerics` with each
batch; a published model has the `Scale` that was published with it.

Shapes: B events, N numerics, M = 2N prepared numerics, Q knots, X events in the sample.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.jit import kernel

KNOTS = 17
"""Number of quantiles at which a piecewise-linear code bends."""
CODES = KNOTS + 1
"""Rows of a numeric's code: one for "missing, or no knots yet", then one for each knot."""
_LARGEST_SCORE = 8.0
"""Bound of a score: asinh of some 1,500 standard deviations."""
_SAMPLE_EVENTS = 16_384
"""Latest events whose quantiles become knots."""
_FIRST_ESTIMATE_EVENTS = 256
"""Events before the first estimate of knots."""
_LONGEST_WAIT_EVENTS = 65_536
"""Events between two estimates of knots, at most."""


class Prepared(NamedTuple):
    """The prepared numerics of B events."""

    scores_BM: np.ndarray
    """float32: N scores, asinh of the standard score within -8..8, 0 where the value is missing or
    nothing has been seen yet; then N marks, 1 where the value is missing, else 0."""
    code_BN: np.ndarray
    """int64: the code just below each value; the code just above it is the next one."""
    above_BN: np.ndarray
    """float32, 0..1: the share of each value that belongs to the code above."""


class Scale(NamedTuple):
    """Moments and knots of the events so far, as preparation reads them."""

    moments_2N: torch.Tensor
    """float32: mean, and inverse of the standard deviation (0 where it is not known)."""
    knots_NQ: torch.Tensor
    """float32, ascending; infinite from the first unused place on."""


def prepare(numerics_BN: torch.Tensor, scale: Scale) -> Prepared:
    """Prepared numerics of B events."""
    events, numerics = numerics_BN.shape
    prepared = Prepared(
        np.empty((events, 2 * numerics), np.float32),
        np.empty((events, numerics), np.int64),
        np.empty((events, numerics), np.float32),
    )
    moments_2N, knots_NQ = scale.moments_2N.numpy(), scale.knots_NQ.numpy()
    prepare_numerics(numerics_BN.numpy(), moments_2N, knots_NQ, *prepared)
    return prepared


class Numerics:
    """Running moments of N numerics over an effective window (Chan, Golub & LeVeque, 1983), and
    quantiles as knots.

    Knots are quantiles of the last 16,384 events. They are estimated after 256 events, then
    whenever the number of events has grown fourfold, but at least every 65,536 events. A code is a
    rank, so the evidence of a code stays meaningful when the knots move.
    """

    def __init__(self, numerics: int, horizon_events: float, *, codes: bool = True):
        """`horizon_events`: effective window of the moments, so that they follow a change of scale.
        `codes`: False: there are never any knots, so every code is the first."""
        self._codes = codes
        self._horizon_events = horizon_events
        self.moments_3N = torch.zeros(3, numerics, dtype=torch.float64)
        """Count, mean and sum of squared deviations."""
        self.knots_NQ = torch.full((numerics, KNOTS), torch.inf)
        self.sample = torch.full((_SAMPLE_EVENTS, numerics), torch.nan)
        self.events = 0
        self.estimate_at = _FIRST_ESTIMATE_EVENTS

    def scale(self) -> Scale:
        """Moments and knots of the events so far."""
        moments_2N = torch.empty(2, self.moments_3N.shape[1])
        scale_numerics(self.moments_3N.numpy(), moments_2N.numpy())
        return Scale(moments_2N, self.knots_NQ)

    def update(self, numerics_BN: torch.Tensor) -> None:
        """Add B events."""
        if not numerics_BN.shape[1]:
            return
        add_to_moments(
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
        """Tensors for a snapshot."""
        return {
            "moments": self.moments_3N.clone(),
            "knots": self.knots_NQ,
            "sample": self.sample,
            "counts": torch.tensor([self.events, self.estimate_at]),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue where `state` was taken."""
        self.moments_3N = tensors["moments"].clone()
        self.knots_NQ = tensors["knots"].clone()
        self.sample = tensors["sample"].clone()
        events, estimate_at = tensors["counts"].tolist()
        self.events = int(events)
        self.estimate_at = int(estimate_at)

    def _update_knots(self) -> None:
        """Make the different quantiles of the sample the knots."""
        shares = torch.linspace(0, 1, KNOTS)
        knots_NQ = torch.full_like(self.knots_NQ, torch.inf)
        for i, column in enumerate(self.sample.T):
            values = column[~column.isnan()]
            if len(values):
                # Equal to torch.quantile, bit for bit, in a tenth of the time.
                ordered = torch.from_numpy(np.sort(values.numpy()))
                ranks = shares * (len(values) - 1)
                below = ordered[ranks.floor().long()]
                above = ordered[ranks.ceil().long()]
                distinct = torch.unique(torch.lerp(below, above, ranks - ranks.floor()))
                knots_NQ[i, : len(distinct)] = distinct
        self.knots_NQ = knots_NQ


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[:,::1],"
    " float32[:,::1], int64[:,::1], float32[:,::1])"
)
def prepare_numerics(
    numerics_BN: np.ndarray,
    moments_2N: np.ndarray,
    knots_NQ: np.ndarray,
    scores_BM: np.ndarray,
    code_BN: np.ndarray,
    above_BN: np.ndarray,
) -> None:
    """Write the parts of `Prepared`, from numerics and the parts of a `Scale`."""
    events, numerics = numerics_BN.shape
    knots = knots_NQ.shape[1]
    for n in range(numerics):
        finite = 0
        for q in range(knots):
            finite += math.isfinite(knots_NQ[n, q])
        for b in range(events):
            value = numerics_BN[b, n]
            if b and value == numerics_BN[b - 1, n]:  # as candidates of one context have it
                scores_BM[b, n] = scores_BM[b - 1, n]
                scores_BM[b, numerics + n] = scores_BM[b - 1, numerics + n]
                code_BN[b, n] = code_BN[b - 1, n]
                above_BN[b, n] = above_BN[b - 1, n]
                continue
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
            low = knots_NQ[n, index]
            high = knots_NQ[n, index + 1]
            above = (value - low) / (high - low)
            code_BN[b, n] = index + 1
            if above > 0:
                above_BN[b, n] = min(above, np.float32(1))


@kernel("void(float64[:,::1], float32[:,::1])")
def scale_numerics(moments_3N: np.ndarray, moments_2N: np.ndarray) -> None:
    """Write the moments of a `Scale`."""
    for n in range(moments_3N.shape[1]):
        count = moments_3N[0, n]
        mean = moments_3N[1, n]
        squares = moments_3N[2, n]
        deviation = math.sqrt(squares / max(count, 1.0))
        moments_2N[0, n] = mean
        moments_2N[1, n] = 1 / deviation if deviation > 1e-12 * (1 + abs(mean)) else 0.0


@kernel("void(float32[:,::1], int64, float64, float64[:,::1], float32[:,::1])")
def add_to_moments(
    numerics_BN: np.ndarray,
    events: int,
    horizon: float,
    moments_3N: np.ndarray,
    sample_XN: np.ndarray,
) -> None:
    """Merge a batch into running moments (count, mean, sum of squared deviations), and into the
    ring of the last X events. `events`: number of events before the batch. `horizon`: bound of the
    count."""
    batch, numerics = numerics_BN.shape
    counts_N = np.zeros(numerics)
    means_N = np.zeros(numerics)
    squares_N = np.zeros(numerics)
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
        old = moments_3N[0, n]
        count = counts_N[n]
        total = old + count
        shift = means_N[n] - moments_3N[1, n]
        share = count / max(total, 1.0)
        fade = min(horizon / max(total, 1.0), 1.0)
        moments_3N[0, n] = total * fade
        moments_3N[1, n] += shift * share
        moments_3N[2, n] = (moments_3N[2, n] + squares_N[n] + shift * shift * old * share) * fade
