"""Preferences of a synthetic world: the contribution of single values and of pairs to a click's
logit.

Beneath `world`, which draws several sets of them, one for each concept. In: a random generator, or
drawn columns. Out: arrays of weights, or logits. Shapes: B events, N numerics, L latent dimensions.
"""

import math
from collections.abc import Mapping

import numpy as np

Preferences = dict[tuple[str, ...], np.ndarray]
"""By combination of fields, as in `SPREADS`, the weight of each combination of their values."""

LATENT = 6
"""Dimensions of the latent vectors of users and items."""
SPREADS: dict[tuple[str, ...], float] = {
    ("c_user",): 0.3,
    ("c_segment",): 0.5,
    ("c_item",): 0.6,
    ("c_category",): 0.9,
    ("c_brand",): 0.3,
    ("c_device",): 0.5,
    ("c_placement",): 0.9,
    ("c_segment", "c_category"): 0.9,
    ("c_category", "c_placement"): 0.6,
    ("c_device", "c_placement"): 0.5,
    ("c_segment", "+numeric"): 0.4,
    ("c_user", "+latent"): 0.6 / math.sqrt(LATENT),
    ("c_item", "+latent"): 1.0,
}
"""Standard deviation of the contribution of each value, or pair of values, to the logit. An axis
that begins with "+" makes a vector of weights."""


def redrawn_weights(
    rng: np.random.Generator,
    _first: int,
    *,
    axes: tuple[str, ...],
    sizes: Mapping[str, int],
    scale: float,
    share: float,
) -> np.ndarray:
    """Random weights, float32, of shape `sizes` along `axes`; NaN for those outside the redrawn
    `share`, which keep their values."""
    shape = [sizes[axis] for axis in axes]
    weights = rng.standard_normal(shape, np.float32) * np.float32(scale)
    redrawn = rng.random([sizes[axis] for axis in axes if axis[0] != "+"]) < share
    weights[~redrawn] = np.nan
    return weights


def click_logits(
    preferences: Preferences,
    columns: dict[str, np.ndarray],
    response_BN: np.ndarray,
) -> np.ndarray:
    """Logits of a click without the intercept, float32 (B,); `response_BN`: effects of numerics."""
    logits_B: np.ndarray = np.einsum(
        "bn,bn->b", preferences["c_segment", "+numeric"][columns["c_segment"]], response_BN
    )
    user_BL, item_BL = (
        preferences[field, "+latent"][columns[field]] for field in ("c_user", "c_item")
    )
    logits_B += np.einsum("bl,bl->b", user_BL, item_BL)
    for axes, weights in preferences.items():
        if axes[-1][0] != "+":
            logits_B += weights[tuple(columns[axis] for axis in axes)]
    return logits_B


def click_probabilities(logits_B: np.ndarray) -> np.ndarray:
    """Logistic function of `logits_B` in 64 bits."""
    return np.asarray(1 / (1 + np.exp(-logits_B.astype(np.float64))))
