"""Numerics as the network wants them: standardised by running moments of the past, heavy tails tamed, missing values
marked.

In: raw numerics, NaN = missing. Out: (B, 2N): N values, then N indicators of "missing". Never looks ahead: the
moments are those of events before the batch. A published model carries the moments that it was published with.
"""

import torch


class Standardizer:
    """Running mean and variance of N numerics (Chan, Golub & LeVeque 1983), over an effective window of
    `horizon_events`."""

    def __init__(self, numerics: int, horizon_events: float):
        """`horizon_events`: beyond it old values fade, so that a change of scale in mid-stream is followed."""
        self.horizon_events = horizon_events
        self.moments_3N = torch.zeros(3, numerics, dtype=torch.float64)  # count, mean, sum of squared deviations

    def prepare(self, numerics_BN: torch.Tensor) -> torch.Tensor:
        """(B, 2N): asinh of the standard score, 0 where missing or nothing has been seen yet; then 1 where missing."""
        return standardize(numerics_BN, self.scale())

    def scale(self) -> torch.Tensor:
        """(2, N) float32: mean, and the inverse of the standard deviation (0 where it is not known)."""
        count, mean, squares = self.moments_3N
        deviation = (squares / count.clamp(min=1)).sqrt()
        known = deviation > 1e-12 * (1 + mean.abs())
        return torch.stack([mean, torch.where(known, 1 / deviation.clamp(min=1e-300), 0.0)]).float()

    def update(self, numerics_BN: torch.Tensor) -> None:
        """Take B events into the moments."""
        x = numerics_BN.double()
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


def standardize(numerics_BN: torch.Tensor, scale_2N: torch.Tensor) -> torch.Tensor:
    """What `Standardizer.prepare` computes, from published moments."""
    missing = numerics_BN.isnan()
    scores = ((numerics_BN - scale_2N[0]) * scale_2N[1]).asinh()
    return torch.cat([torch.where(missing, 0.0, scores), missing.float()], 1)
