"""Numerics as the experts want them: standardised, heavy tails tamed, missing values marked; and as piecewise-linear
codes.

In: raw numerics, NaN = missing. Out: `Prepared`. Never looks ahead: moments and knots are those of events before the
batch. A published model carries the ones that it was published with.

Shapes: B events, N numerics, Q knots.
"""

from typing import NamedTuple

import torch

KNOTS = 17
"""Quantiles that a piecewise-linear code bends at."""
CODES = KNOTS + 1
"""Rows of a numeric's code: one for "missing, or no knots yet", then one a knot."""
_SAMPLE_EVENTS = 16_384
_FIRST_ESTIMATE_EVENTS = 256
_LONGEST_WAIT_EVENTS = 65_536


class Prepared(NamedTuple):
    """Numerics of B events."""

    scores_BM: torch.Tensor
    """(B, 2N): asinh of the standard score, 0 where missing or nothing has been seen yet; then 1 where missing."""
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
    missing_BN = numerics_BN.isnan()
    scores_BN = torch.where(missing_BN, 0.0, ((numerics_BN - scale.moments_2N[0]) * scale.moments_2N[1]).asinh())
    values_NB = numerics_BN.nan_to_num(0.0).T.contiguous()
    last_N1 = (scale.knots_NQ.isfinite().sum(1, keepdim=True) - 1).clamp(min=0)
    index_NB = torch.minimum(torch.searchsorted(scale.knots_NQ, values_NB, right=True) - 1, last_N1 - 1).clamp(min=0)
    low_NB, high_NB = scale.knots_NQ.gather(1, index_NB), scale.knots_NQ.gather(1, (index_NB + 1).clamp(max=KNOTS - 1))
    above_BN = ((values_NB - low_NB) / (high_NB - low_NB)).clamp(0, 1).nan_to_num(0.0).T
    known_BN = ~missing_BN & scale.knots_NQ[:, 0].isfinite()
    return Prepared(
        torch.cat([scores_BN, missing_BN.float()], 1),
        torch.where(known_BN, index_NB.T + 1, 0),
        torch.where(known_BN, above_BN, 0.0),
    )


class Numerics:
    """Running moments of N numerics over an effective window (Chan, Golub & LeVeque, 1983), and quantiles as knots.

    Knots are taken from the last 16,384 events: after 256 events, then each time that four times as many have passed,
    then every 65,536. A code is a rank, so what was learned of it stays meaningful when the knots move.
    """

    def __init__(self, numerics: int, horizon_events: float, *, codes: bool = True):
        """`horizon_events`: beyond it old values fade, so that a change of scale in mid-stream is followed. `codes`:
        False: there are never any knots, so every code is the first."""
        self._codes = codes
        self.horizon_events = horizon_events
        self.moments_3N = torch.zeros(3, numerics, dtype=torch.float64)  # count, mean, sum of squared deviations
        self.knots_NQ = torch.full((numerics, KNOTS), torch.inf)
        self.sample = torch.full((_SAMPLE_EVENTS, numerics), torch.nan)
        self.events = 0
        self.estimate_at = _FIRST_ESTIMATE_EVENTS

    def scale(self) -> Scale:
        """What `prepare` needs."""
        count, mean, squares = self.moments_3N
        deviation = (squares / count.clamp(min=1)).sqrt()
        known = deviation > 1e-12 * (1 + mean.abs())
        inverse = torch.where(known, 1 / deviation.clamp(min=1e-300), 0.0)
        return Scale(torch.stack([mean, inverse]).float(), self.knots_NQ)

    def update(self, numerics_BN: torch.Tensor) -> None:
        """Take in B events."""
        if not numerics_BN.shape[1]:
            return
        self._update_moments(numerics_BN.double())
        places = (self.events + torch.arange(len(numerics_BN))) % _SAMPLE_EVENTS
        self.sample[places] = numerics_BN  # of a batch longer than the sample, some of its events
        self.events += len(numerics_BN)
        if self._codes and self.events >= self.estimate_at:
            self.estimate_at = self.events + min(3 * self.events, _LONGEST_WAIT_EVENTS)
            self._update_knots()

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, for a snapshot."""
        counts = torch.tensor([self.events, self.estimate_at])
        return {"moments": self.moments_3N, "knots": self.knots_NQ, "sample": self.sample, "counts": counts}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Undo `state`."""
        self.moments_3N, self.knots_NQ = tensors["moments"].clone(), tensors["knots"].clone()
        self.sample = tensors["sample"].clone()
        self.events, self.estimate_at = tensors["counts"].tolist()

    def _update_moments(self, x: torch.Tensor) -> None:
        present = ~x.isnan()
        x = x.nan_to_num(0.0)
        count = present.sum(0).double()
        mean = x.sum(0) / count.clamp(min=1)
        squares = ((x - mean).square() * present).sum(0)
        old_count, old_mean, old_squares = self.moments_3N
        total = old_count + count
        shift = mean - old_mean
        new_mean = old_mean + shift * count / total.clamp(min=1)
        new_squares = old_squares + squares + shift.square() * old_count * count / total.clamp(min=1)
        fade = (self.horizon_events / total.clamp(min=1)).clamp(max=1.0)
        self.moments_3N = torch.stack([total * fade, new_mean, new_squares * fade])

    def _update_knots(self) -> None:
        shares = torch.linspace(0, 1, KNOTS)
        knots_NQ = torch.full_like(self.knots_NQ, torch.inf)
        for i, column in enumerate(self.sample.T):
            values = column[~column.isnan()]
            if len(values):
                distinct = torch.unique(torch.quantile(values, shares))
                knots_NQ[i, : len(distinct)] = distinct
        self.knots_NQ = knots_NQ
