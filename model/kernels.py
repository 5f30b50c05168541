"""The inner loops of a step that no tensor operation says well: irregular reads and writes of large tables.

In and out: numpy arrays, mostly views of torch tensors, whose memory they share. Each kernel is plain Python, compiled
by numba when this file is imported, for the one set of types that it is used with; so a live trainer never waits for a
compiler. What was compiled is kept for the next start: in NUMBA_CACHE_DIR, beside this file, or in the user's cache,
whichever can be written to first. A kernel holds no lock on the interpreter, keeps nothing between two calls, and
checks nothing: rows must lie within their table.

Shapes: B events, S slots, K time scales, R rows, U different rows of a batch.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def kernel(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for these types, now, or read it from what an earlier start has kept."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        options = {"nogil": True, "error_model": "numpy"}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(signature, **options)(function)  # nowhere to write to: compiled at each start

    return compiled


@kernel("void(float32[:,:,:], float32[:,::1], int64[:,::1], float32[:,::1], float32[:,:,::1])")
def linear_contributions(evidence_R2K, prior_SK, rows_BS, values_BS, out_BSK):
    """What each slot adds to the logit, at each time scale."""
    events, slots, scales = out_BSK.shape
    for b in range(events):
        for s in range(slots):
            row, value = rows_BS[b, s], values_BS[b, s]
            for k in range(scales):
                out_BSK[b, s, k] = evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k]) * value


@kernel("void(float32[:,:,:], float32[:,::1], int64[:,::1], float32[:,::1], float32[:,::1], float32[:,::1])")
def linear_logits(evidence_R2K, prior_SK, rows_BS, values_BS, said_BS, logits_BK):
    """What each slot adds to the first logit, and the sums over the slots of all."""
    events, slots = rows_BS.shape
    scales = logits_BK.shape[1]
    for b in range(events):
        for k in range(scales):
            logits_BK[b, k] = 0
        for s in range(slots):
            row, value = rows_BS[b, s], values_BS[b, s]
            for k in range(scales):
                part = evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k]) * value
                logits_BK[b, k] += part
                if k == 0:
                    said_BS[b, s] = part


@kernel(
    "UniTuple(int64, 2)(float32[:,:,:], int64[:], int64, float32[::1], float32[:,::1], int64[:,::1], float32[:,::1],"
    " float32[::1], float32[:,::1], int64[::1])"
)
def learn_linear(evidence_R2K, learned_R, now, rates_K, prior_SK, rows_BS, values_BS, labels_B, shrinkage_SK, rows_U):
    """One step of `model.linear.BayesianLinear`; how many different rows there were, and how many were new.

    `now`: events learned, these included. Adds to `shrinkage_SK` the gradient of the loss in the logarithms of the
    prior variances, and writes the rows, in the order in which they first come, to the front of `rows_U`.
    """
    events, slots = rows_BS.shape
    scales = len(rates_K)
    place_BS = np.empty((events, slots), np.int32)
    prior_UK = np.empty((events * slots, scales), np.float32)
    sums_U3K = np.empty((events * slots, 3, scales), np.float32)

    # Fade each row when it is first met. Until the end its stamp is its place among the rows of the batch: -1 - u.
    found = new = 0
    for b in range(events):
        for s in range(slots):
            row = rows_BS[b, s]
            learned = learned_R[row]
            if learned >= 0:
                new += learned == 0
                for k in range(scales):
                    fade = np.float32(0 if learned == 0 else math.exp2(-np.float32(now - learned) * rates_K[k]))
                    evidence_R2K[row, 0, k] *= fade
                    evidence_R2K[row, 1, k] *= fade
                    for j in range(3):
                        sums_U3K[found, j, k] = 0
                learned = -1 - found
                learned_R[row] = learned
                rows_U[found] = row
                found += 1
            place = -1 - learned
            place_BS[b, s] = place
            for k in range(scales):
                prior_UK[place, k] = prior_SK[s, k]

    # By row: gradient, how much all slots of its events move together, and its own precision gained.
    mean_SK = np.empty((slots, scales), np.float32)
    variance_SK = np.empty((slots, scales), np.float32)
    error_K = np.empty(scales, np.float32)
    curvature_K = np.empty(scales, np.float32)
    logit_K = np.empty(scales, np.float32)
    spread_K = np.empty(scales, np.float32)
    for b in range(events):
        logit_K[:] = 0
        spread_K[:] = 0
        for s in range(slots):
            row, value = rows_BS[b, s], values_BS[b, s]
            for k in range(scales):
                variance = np.float32(1) / (prior_SK[s, k] + evidence_R2K[row, 1, k])
                mean = evidence_R2K[row, 0, k] * variance
                mean_SK[s, k], variance_SK[s, k] = mean, variance
                logit_K[k] += mean * value
                spread_K[k] += variance * value * value
        for k in range(scales):
            prediction = np.float32(1) / (np.float32(1) + math.exp(-logit_K[k]))
            error_K[k] = prediction - labels_B[b]
            curvature_K[k] = prediction * (np.float32(1) - prediction)
        for s in range(slots):
            place, value = place_BS[b, s], values_BS[b, s]
            for k in range(scales):
                shrinkage_SK[s, k] += error_K[k] * mean_SK[s, k] * value * prior_SK[s, k] * variance_SK[s, k]
                sums_U3K[place, 0, k] += error_K[k] * value
                sums_U3K[place, 1, k] += curvature_K[k] * spread_K[k] * abs(value)
                sums_U3K[place, 2, k] += curvature_K[k] * value * value

    for u in range(found):
        row = rows_U[u]
        learned_R[row] = now
        for k in range(scales):
            gradient, together, gained = sums_U3K[u, 0, k], sums_U3K[u, 1, k], sums_U3K[u, 2, k]
            prior, precision = prior_UK[u, k], evidence_R2K[row, 1, k]
            variance = np.float32(1) / (prior + precision)
            mean = evidence_R2K[row, 0, k] * variance - variance * gradient / (np.float32(1) + together)
            precision += gained / (np.float32(1) + max(together - variance * gained, np.float32(0)))
            evidence_R2K[row, 0, k] = mean * (prior + precision)
            evidence_R2K[row, 1, k] = precision
    return found, new
