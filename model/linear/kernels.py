"""The loops of the linear expert (`model.linear.expert`), each compiled for a number of time
scales.

In and out as in `model.kernels`. A loop over three scales of which the compiler knows that they are
three is faster than one over as many as there may be. Kernels are compiled, or read from what an
earlier start has kept, when a learner or a scorer first asks for its number: before it reads any
events.

Shapes: B events, S slots, K time scales, G groups of slots, R rows, U different rows of a batch.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from niwaki.model.jit import inlined, kernel
from niwaki.model.rows import AHEAD_EVENTS, AHEAD_ROWS, prefetch

Kernel = Callable[..., Any]


@kernel("void(float32[:,:,:], float32[:,::1], int64[:,::1], float32[:,::1], float32[:,:,::1])")
def linear_contributions(evidence_R2K, prior_SK, rows_BS, values_BS, out_BSK):
    """What each slot adds to the logit, at each time scale."""
    events, slots, scales = out_BSK.shape
    for b in range(events):
        for s in range(slots):
            row, value = rows_BS[b, s], values_BS[b, s]
            for k in range(scales):
                out_BSK[b, s, k] = (
                    evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k]) * value
                )


@kernel(
    "void(int64[:,::1], int64[:,::1], float32[:,::1], int64[:,::1], float32[:,::1], int64, int64, int64, int64,"
    " int64[:,::1], float32[:,::1])"
)
def locate_slots(
    rows_BF,
    pairs_BP,
    scores_BM,
    code_BN,
    above_BN,
    first_pair,
    first_score,
    first_code,
    codes,
    rows_BS,
    values_BS,
):
    """`model.linear.slots.Slots.locate`."""
    fields, pairs, scores, numerics = (
        rows_BF.shape[1],
        pairs_BP.shape[1],
        scores_BM.shape[1],
        code_BN.shape[1],
    )
    for b in range(len(rows_BF)):
        s = 0
        for f in range(fields):
            rows_BS[b, s], values_BS[b, s] = rows_BF[b, f], 1
            s += 1
        for p in range(pairs):
            rows_BS[b, s], values_BS[b, s] = first_pair + pairs_BP[b, p], 1
            s += 1
        for m in range(scores):
            rows_BS[b, s], values_BS[b, s] = first_score + m, scores_BM[b, m]
            s += 1
        for n in range(numerics):
            below = first_code + n * codes + code_BN[b, n]
            rows_BS[b, s], values_BS[b, s] = below, np.float32(1) - above_BN[b, n]
            rows_BS[b, s + numerics], values_BS[b, s + numerics] = below + 1, above_BN[b, n]
            s += 1
        s += numerics
        rows_BS[b, s], values_BS[b, s] = first_code + numerics * codes, 1


@inlined
def _sum_slots(evidence_R2K, prior_SK, rows_S, values_S, scales, said_S, logits_K):
    """What each slot of an event adds to the first logit, and the sums of all slots. `logits_K` may
    be longer."""
    for k in range(scales):
        logits_K[k] = 0
    for s in range(len(rows_S)):
        row, value = rows_S[s], values_S[s]
        for k in range(scales):
            part = evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k]) * value
            logits_K[k] += part
            if k == 0:
                said_S[s] = part


@cache
def compiled_logits(scales: int) -> Kernel:
    """What each slot adds, and the sums; see the kernel."""

    @kernel(
        "void(float32[:,:,:], float32[:,::1], int64[:,::1], float32[:,::1], float32[:,::1], float32[:,::1])"
    )
    def linear_logits(evidence_R2K, prior_SK, rows_BS, values_BS, said_BS, logits_BK):
        """What each slot adds to the first logit, and the sums over the slots of all. `logits_BK`
        may have more columns."""
        for b in range(len(rows_BS)):
            if b % AHEAD_EVENTS == 0:
                prefetch(evidence_R2K, rows_BS[b : b + AHEAD_EVENTS], said_BS[b : b + AHEAD_EVENTS])
            _sum_slots(
                evidence_R2K, prior_SK, rows_BS[b], values_BS[b], scales, said_BS[b], logits_BK[b]
            )

    return linear_logits


@cache
def compiled_contributions(scales: int) -> Kernel:
    """What the linear expert says at so many time scales, compiled for them; see the kernel."""

    @kernel(
        "void(float32[:,:,::1], float32[:,::1], int64[:,::1], int64[:,::1], float32[:,::1], int64[:,::1],"
        " float32[:,::1], int64, int64, int64, int64, float32[:,::1], int64, float32[:,::1])"
    )
    def say_linear(
        evidence_R2K,
        prior_SK,
        rows_BF,
        pairs_BP,
        scores_BM,
        code_BN,
        above_BN,
        first_pair,
        first_score,
        first_code,
        codes,
        out_BX,
        first_said,
        experts_BE,
    ):
        """`model.linear.slots.Slots.locate` and the logits of `model.linear.expert` in one, some
        events at a time, whose rows are fetched before they are worked on. What each slot adds to
        the first logit goes to the columns of `out_BX` from `first_said` on; the last expert is
        left alone."""
        slots = len(prior_SK)
        rows_AS, values_AS = (
            np.empty((AHEAD_EVENTS, slots), np.int64),
            np.empty((AHEAD_EVENTS, slots), np.float32),
        )
        scratch_AS = np.empty((AHEAD_EVENTS, slots), np.float32)
        for start in range(0, len(rows_BF), AHEAD_EVENTS):
            some = slice(start, min(start + AHEAD_EVENTS, len(rows_BF)))
            events = some.stop - start
            locate_slots(
                rows_BF[some],
                pairs_BP[some],
                scores_BM[some],
                code_BN[some],
                above_BN[some],
                first_pair,
                first_score,
                first_code,
                codes,
                rows_AS,
                values_AS,
            )
            prefetch(evidence_R2K, rows_AS[:events], scratch_AS)
            for a in range(events):
                b = start + a
                said_S = out_BX[b, first_said : first_said + slots]
                _sum_slots(
                    evidence_R2K, prior_SK, rows_AS[a], values_AS[a], scales, said_S, experts_BE[b]
                )

    return say_linear


@cache
def compiled_learn(scales: int) -> Kernel:
    """One step of learning; see the kernel."""

    @kernel(
        "Tuple((int64, int64, float32))(float32[:,:,:], int64[:], int64, float32[::1], float32[:,::1], int64[:,::1],"
        " float32[:,::1], float32[::1], float32[:,::1], int64[::1], int64[::1], int32[::1], int32[:,::1],"
        " float32[:,::1])"
    )
    def learn_linear(
        evidence_R2K,
        learned_R,
        now,
        rates_K,
        prior_SK,
        rows_BS,
        values_BS,
        labels_B,
        shrinkage_SK,
        rows_U,
        stamps_U,
        slots_U,
        places_BS,
        sums_UX,
    ):
        """One step of `model.linear.expert.BayesianLinear`; how many different rows there were, how
        many were new, and a number that means nothing.

        `now`: events learned, these included. Adds to `shrinkage_SK` the gradient of the loss in
        the logarithms of the prior variances, and writes the rows, in the order in which they first
        come, to the front of `rows_U`, and what their stamps were to that of `stamps_U`. A row has
        the prior of the slot in which it comes first. The last three are scratch: that slot; each
        row's place in `rows_U`; and by place a row's means, variances, gradients, how much all
        slots of its events move together, and its own precisions gained. So a row costs a trip to
        the table only twice, and no division for each of its events.
        """
        events, slots = rows_BS.shape

        # Fade each row when it is first met. Until the end its stamp is its place among the rows of
        # the batch: -1 - u.
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
                    for k in range(scales):
                        fade = np.float32(
                            0
                            if learned == 0
                            else math.exp2(-np.float32(now - learned) * rates_K[k])
                        )
                        evidence_R2K[row, 0, k] *= fade
                        evidence_R2K[row, 1, k] *= fade
                        variance = np.float32(1) / (prior_SK[s, k] + evidence_R2K[row, 1, k])
                        sums_UX[found, k] = evidence_R2K[row, 0, k] * variance
                        sums_UX[found, scales + k] = variance
                        for j in range(2, 5):
                            sums_UX[found, j * scales + k] = 0
                    rows_U[found], stamps_U[found], slots_U[found] = row, learned, s
                    learned = -1 - found
                    learned_R[row] = learned
                    found += 1
                places_BS[b, s] = -1 - learned

        error_K = np.empty(scales, np.float32)
        curvature_K = np.empty(scales, np.float32)
        together_K = np.empty(scales, np.float32)
        logit_K = np.empty(scales, np.float32)
        spread_K = np.empty(scales, np.float32)
        for b in range(events):
            logit_K[:] = 0
            spread_K[:] = 0
            for s in range(slots):
                u, value = places_BS[b, s], values_BS[b, s]
                for k in range(scales):
                    logit_K[k] += sums_UX[u, k] * value
                    spread_K[k] += sums_UX[u, scales + k] * value * value
            for k in range(scales):
                prediction = np.float32(1) / (np.float32(1) + math.exp(-logit_K[k]))
                error_K[k] = prediction - labels_B[b]
                curvature_K[k] = prediction * (np.float32(1) - prediction)
                together_K[k] = curvature_K[k] * spread_K[k]
            for s in range(slots):
                u, value = places_BS[b, s], values_BS[b, s]
                for k in range(scales):
                    sums_UX[u, 2 * scales + k] += error_K[k] * value
                    sums_UX[u, 3 * scales + k] += together_K[k] * abs(value)
                    sums_UX[u, 4 * scales + k] += curvature_K[k] * value * value

        fetched = np.float32(0)
        for u in range(found):
            if u % AHEAD_ROWS == 0:
                for ahead in range(u, min(u + AHEAD_ROWS, found)):
                    fetched += evidence_R2K[rows_U[ahead], 0, 0]
            row, s = rows_U[u], slots_U[u]
            learned_R[row] = now
            for k in range(scales):
                mean, variance, gradient = (
                    sums_UX[u, k],
                    sums_UX[u, scales + k],
                    sums_UX[u, 2 * scales + k],
                )
                together, gained = sums_UX[u, 3 * scales + k], sums_UX[u, 4 * scales + k]
                prior, precision = prior_SK[s, k], evidence_R2K[row, 1, k]
                shrinkage_SK[s, k] += gradient * mean * prior * variance
                mean -= variance * gradient / (np.float32(1) + together)
                precision += gained / (
                    np.float32(1) + max(together - variance * gained, np.float32(0))
                )
                evidence_R2K[row, 0, k] = mean * (prior + precision)
                evidence_R2K[row, 1, k] = precision
        return found, new, fetched

    return learn_linear


@kernel("void(float32[:,::1], int64[::1], float32[:,::1])")
def linear_prior(log_s_GK, group_S, prior_SK):
    """1 / s of each slot's group."""
    for s in range(len(group_S)):
        for k in range(prior_SK.shape[1]):
            prior_SK[s, k] = math.exp(-log_s_GK[group_S[s], k])


@kernel(
    "void(float32[:,::1], int64[::1], float32, float32, float32, float32[:,::1], float32[:,::1])"
)
def shrink_linear(gradient_SK, group_S, rate, low, high, squares_GK, log_s_GK):
    """One step of Adagrad on log s, which stays between `low` and `high`."""
    sums_GK = np.zeros(log_s_GK.shape, np.float32)
    for s in range(len(group_S)):
        sums_GK[group_S[s]] += gradient_SK[s]
    for g in range(len(log_s_GK)):
        for k in range(log_s_GK.shape[1]):
            squares_GK[g, k] += sums_GK[g, k] * sums_GK[g, k]
            step = rate * sums_GK[g, k] / (np.sqrt(squares_GK[g, k]) + np.float32(1e-3))
            log_s_GK[g, k] = min(max(log_s_GK[g, k] - step, low), high)
