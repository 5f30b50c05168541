"""One step of learning of the linear expert, compiled for a number of time scales.

In: the table of evidence, prior variances, and a batch of slots with labels. Out: the table after
the step, the rows that it touched, and the gradient in the prior variances. The algorithm is
described in `niwaki.model.linear.expert`; these are its loops.

Shapes: B events, S slots, V values of lists, K time scales, G groups of slots, R rows, U different
rows of a batch, X sums of a row.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from niwaki.model.features.lists import ListSlots
from niwaki.model.features.outcomes import OUTCOMES, OutcomeArrays
from niwaki.model.jit import inlined, kernel, types
from niwaki.model.linear.kernels import Kernel
from niwaki.model.rows import AHEAD_EVENTS, AHEAD_ROWS, prefetch


class Evidence(NamedTuple):
    """The table of the linear expert."""

    evidence_R2K: np.ndarray
    """float32, natural parameters of each row: precision times mean, then precision."""
    learned_R: np.ndarray
    """int64, number of events after the batch in which a row was last learned; 0: never."""


class Scratch(NamedTuple):
    """Buffers of one step of learning; a row's place in them is the order of its first use."""

    rows_U: np.ndarray
    """int64, the different rows of the batch."""
    stamps_U: np.ndarray
    """int64, the `learned_R` that each row had before the step."""
    slots_U: np.ndarray
    """int32, the slot in which each row was used first."""
    places_BS: np.ndarray
    """int32, the place of each slot's row."""
    places_V: np.ndarray
    """int32, the place of the row of each value of a list."""
    sums_UX: np.ndarray
    """float32, K numbers of each: means, variances, gradients, damping, and gained precisions."""


_F1 = types.float32[::1]
_F2 = types.float32[:, ::1]
_I1 = types.int64[::1]
_I2 = types.int64[:, ::1]
_EVIDENCE = types.NamedTuple((types.float32[:, :, :], types.int64[:]), Evidence)
_PLACES = types.int32[::1], types.int32[:, ::1], types.int32[::1]
_SCRATCH = types.NamedTuple((_I1, _I1, *_PLACES, _F2), Scratch)
_LISTS = types.NamedTuple((_I1, _F1, _I1, _I1), ListSlots)
_COUNTS = types.UniTuple(types.int64, 2)


@inlined
def _begin(
    evidence: Evidence,
    scratch: Scratch,
    place: int,
    row: int,
    slot: int,
    now: int,
    rates_K: np.ndarray,
    prior_K: np.ndarray,
    scales: int,
) -> None:
    """Fade a row that comes for the first time in a batch, and begin its sums at `place`. Until the
    end its stamp is this place: -1 - u."""
    learned = evidence.learned_R[row]
    evidence_2K, sums_X = evidence.evidence_R2K[row], scratch.sums_UX[place]
    for k in range(scales):
        fade = np.float32(0 if learned == 0 else math.exp2(-np.float32(now - learned) * rates_K[k]))
        evidence_2K[0, k] *= fade
        evidence_2K[1, k] *= fade
        variance = np.float32(1) / (prior_K[k] + evidence_2K[1, k])
        sums_X[k] = evidence_2K[0, k] * variance
        sums_X[scales + k] = variance
        for j in range(2, 5):
            sums_X[j * scales + k] = 0
    scratch.rows_U[place] = row
    scratch.stamps_U[place] = learned
    scratch.slots_U[place] = slot
    evidence.learned_R[row] = -1 - place


@cache
def compiled_learn(scales: int) -> Kernel:
    """The kernel of one step of learning, for `scales` time scales."""

    @kernel(_COUNTS(_EVIDENCE, types.int64, _F1, _F2, _I2, _F2, _LISTS, OUTCOMES, _F2, _SCRATCH))
    def learn_linear(
        evidence: Evidence,
        now: int,
        rates_K: np.ndarray,
        prior_SK: np.ndarray,
        rows_BS: np.ndarray,
        values_BS: np.ndarray,
        lists: ListSlots,
        outcomes: OutcomeArrays,
        shrinkage_SK: np.ndarray,
        scratch: Scratch,
    ) -> tuple[int, int]:
        """Take one step of `niwaki.model.linear.expert.BayesianLinear`; returns the numbers of
        different rows and of new ones.

        `now`: events learned, these included. `rates_K`: inverse half-lives. Adds to `shrinkage_SK`
        the gradient of the loss in the logarithms of the prior variances. `rows_U` and `stamps_U`
        are results, too; the rest of `scratch` is not read later. A row has the prior of the slot
        in which it comes first. A row costs two trips to the table, and no division for each of its
        events.
        """
        evidence_R2K = evidence.evidence_R2K
        learned_R = evidence.learned_R
        rows_U = scratch.rows_U
        places_BS, places_V = scratch.places_BS, scratch.places_V
        sums_UX = scratch.sums_UX
        events, slots = rows_BS.shape

        # Each row fades when it first comes.
        found = new = 0
        scratch_XS = np.empty((AHEAD_EVENTS, slots), np.float32)
        for b in range(events):
            if b % AHEAD_EVENTS == 0:
                prefetch(evidence_R2K, rows_BS[b : b + AHEAD_EVENTS], scratch_XS)
            for s in range(slots):
                row = rows_BS[b, s]
                learned = learned_R[row]
                if learned >= 0:
                    new += learned == 0
                    _begin(evidence, scratch, found, row, s, now, rates_K, prior_SK[s], scales)
                    learned = -1 - found
                    found += 1
                places_BS[b, s] = -1 - learned
        for v in range(lists.offsets[0], lists.offsets[events]):
            row = lists.rows_X[v]
            learned = learned_R[row]
            if learned >= 0:
                new += learned == 0
                s = lists.slots_X[v]
                _begin(evidence, scratch, found, row, s, now, rates_K, prior_SK[s], scales)
                learned = -1 - found
                found += 1
            places_V[v] = -1 - learned

        error_K = np.empty(scales, np.float32)
        curvature_K = np.empty(scales, np.float32)
        damping_K = np.empty(scales, np.float32)
        logit_K = np.empty(scales, np.float32)
        spread_K = np.empty(scales, np.float32)
        for b in range(events):
            logit_K[:] = 0
            spread_K[:] = 0
            for s in range(slots):
                u = places_BS[b, s]
                value = values_BS[b, s]
                for k in range(scales):
                    logit_K[k] += sums_UX[u, k] * value
                    spread_K[k] += sums_UX[u, scales + k] * value * value
            for v in range(lists.offsets[b], lists.offsets[b + 1]):
                u = places_V[v]
                value = lists.values_X[v]
                for k in range(scales):
                    logit_K[k] += sums_UX[u, k] * value
                    spread_K[k] += sums_UX[u, scales + k] * value * value
            weight = outcomes.weights_B[b]
            for k in range(scales):
                logit = logit_K[k] + outcomes.offsets_B[b]
                prediction = np.float32(1) / (np.float32(1) + math.exp(-logit))
                error_K[k] = weight * (prediction - outcomes.labels_B[b])
                curvature_K[k] = weight * (prediction * (np.float32(1) - prediction))
                damping_K[k] = curvature_K[k] * spread_K[k]
            for s in range(slots):
                u = places_BS[b, s]
                value = values_BS[b, s]
                for k in range(scales):
                    sums_UX[u, 2 * scales + k] += error_K[k] * value
                    sums_UX[u, 3 * scales + k] += damping_K[k] * abs(value)
                    sums_UX[u, 4 * scales + k] += curvature_K[k] * value * value
            for v in range(lists.offsets[b], lists.offsets[b + 1]):
                u = places_V[v]
                value = lists.values_X[v]
                for k in range(scales):
                    sums_UX[u, 2 * scales + k] += error_K[k] * value
                    sums_UX[u, 3 * scales + k] += damping_K[k] * abs(value)
                    sums_UX[u, 4 * scales + k] += curvature_K[k] * value * value

        prefetched = np.float32(0)
        for u in range(found):
            if u % AHEAD_ROWS == 0:
                for ahead in range(u, min(u + AHEAD_ROWS, found)):
                    prefetched += evidence_R2K[rows_U[ahead], 0, 0]
            row = rows_U[u]
            s = scratch.slots_U[u]
            learned_R[row] = now
            for k in range(scales):
                mean = sums_UX[u, k]
                variance = sums_UX[u, scales + k]
                gradient = sums_UX[u, 2 * scales + k]
                damping = sums_UX[u, 3 * scales + k]
                gained = sums_UX[u, 4 * scales + k]
                prior = prior_SK[s, k]
                precision = evidence_R2K[row, 1, k]
                shrinkage_SK[s, k] += gradient * mean * prior * variance
                mean -= variance * gradient / (np.float32(1) + damping)
                precision += gained / (
                    np.float32(1) + max(damping - variance * gained, np.float32(0))
                )
                evidence_R2K[row, 0, k] = mean * (prior + precision)
                evidence_R2K[row, 1, k] = precision
        if found:
            sums_UX[0, 0] = prefetched  # or the compiler would drop the prefetch
        return found, new

    return learn_linear


@kernel("void(float32[:,::1], int64[::1], float32[:,::1])")
def linear_prior(log_s_GK: np.ndarray, group_S: np.ndarray, prior_SK: np.ndarray) -> None:
    """Write 1 / s of each slot's group."""
    for s in range(len(group_S)):
        for k in range(prior_SK.shape[1]):
            prior_SK[s, k] = math.exp(-log_s_GK[group_S[s], k])


@kernel(
    "void(float32[:,::1], int64[::1], float32, float32, float32, float32[:,::1], float32[:,::1])"
)
def shrink_linear(
    gradient_SK: np.ndarray,
    group_S: np.ndarray,
    rate: float,
    low: float,
    high: float,
    squares_GK: np.ndarray,
    log_s_GK: np.ndarray,
) -> None:
    """Take one step of Adagrad on log s, which stays between `low` and `high`."""
    sums_GK = np.zeros(log_s_GK.shape, np.float32)
    for s in range(len(group_S)):
        sums_GK[group_S[s]] += gradient_SK[s]
    for g in range(len(log_s_GK)):
        for k in range(log_s_GK.shape[1]):
            squares_GK[g, k] += sums_GK[g, k] * sums_GK[g, k]
            step = rate * sums_GK[g, k] / (np.sqrt(squares_GK[g, k]) + np.float32(1e-3))
            log_s_GK[g, k] = min(max(log_s_GK[g, k] - step, low), high)
