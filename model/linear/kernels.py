"""The forward pass of the linear expert, compiled for a number of time scales.

In: the table of evidence, prior variances, and rows and values of the slots of B events. Out:
contributions of slots, and logits. A loop over three scales of which the compiler knows that they
are three is faster than a loop over a number that it does not know. Kernels are compiled, or read
from the cache of an earlier start, when a learner or a scorer is made, which is before it reads any
events.

Shapes: B events, A events worked on together, S slots, F fields, P pairs, N numerics, M = 2N
scores, K time scales, E logits of an event, R rows, X inputs of the deep expert, V values of lists.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from niwaki.model.features.hashing import mix_bits
from niwaki.model.jit import inlined, kernel
from niwaki.model.rows import AHEAD_EVENTS, prefetch, prefetch_row

Kernel = Callable[..., Any]
"""A compiled kernel; its own docstring names the arguments."""


@kernel(
    "void(float32[:,:,:], float32[:,::1], int64[:,::1], float32[:,::1], int64[::1], float32[::1],"
    " int64[::1], int64[::1], float32[:,:,::1])"
)
def linear_contributions(
    evidence_R2K: np.ndarray,
    prior_SK: np.ndarray,
    rows_BS: np.ndarray,
    values_BS: np.ndarray,
    list_rows_V: np.ndarray,
    list_values_V: np.ndarray,
    list_slots_V: np.ndarray,
    list_offsets: np.ndarray,
    out_BSK: np.ndarray,
) -> None:
    """Write the contribution of each slot to the logit, at each time scale. The four arguments of
    lists: see `niwaki.model.features.lists.ListSlots`."""
    scales = out_BSK.shape[2]
    slots = rows_BS.shape[1]
    for b in range(out_BSK.shape[0]):
        out_BSK[b, slots:] = 0
        for v in range(list_offsets[b], list_offsets[b + 1]):
            row = list_rows_V[v]
            s = list_slots_V[v]
            for k in range(scales):
                out_BSK[b, s, k] += (
                    evidence_R2K[row, 0, k]
                    / (prior_SK[s, k] + evidence_R2K[row, 1, k])
                    * list_values_V[v]
                )
        for s in range(slots):
            row = rows_BS[b, s]
            value = values_BS[b, s]
            for k in range(scales):
                out_BSK[b, s, k] = (
                    evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k]) * value
                )


@kernel(
    "void(int64[:,::1], int64[:,::1], float32[:,::1], int64[:,::1], float32[:,::1],"
    " int64, int64, int64, int64, int64, int64[:,::1], uint64[::1], int64[:,::1], float32[:,::1])"
)
def locate_slots(
    rows_BF: np.ndarray,
    hashes_BF: np.ndarray,
    scores_BM: np.ndarray,
    code_BN: np.ndarray,
    above_BN: np.ndarray,
    first_pair: int,
    first_score: int,
    first_code: int,
    codes: int,
    pair_rows: int,
    pairs_P2: np.ndarray,
    seeds_P: np.ndarray,
    rows_BS: np.ndarray,
    values_BS: np.ndarray,
) -> None:
    """Write the row and the value of each slot. The first five arguments: see `HashedEvents` and
    `Prepared` in `niwaki.model.features`; the next seven: `Places` and
    `LivingPairs` in `niwaki.model.linear.slots`."""
    fields = rows_BF.shape[1]
    pairs = len(pairs_P2)
    scores = scores_BM.shape[1]
    numerics = code_BN.shape[1]
    for b in range(len(rows_BF)):
        s = 0
        for f in range(fields):
            rows_BS[b, s] = rows_BF[b, f]
            values_BS[b, s] = 1
            s += 1
        for p in range(pairs):
            first = np.uint64(hashes_BF[b, pairs_P2[p, 0]])
            second = np.uint64(hashes_BF[b, pairs_P2[p, 1]])
            mixed = mix_bits(mix_bits(first ^ seeds_P[p]) ^ second)
            rows_BS[b, s] = first_pair + np.int64(mixed % np.uint64(pair_rows))
            values_BS[b, s] = 1
            s += 1
        for m in range(scores):
            rows_BS[b, s] = first_score + m
            values_BS[b, s] = scores_BM[b, m]
            s += 1
        for n in range(numerics):
            below = first_code + n * codes + code_BN[b, n]
            rows_BS[b, s] = below
            values_BS[b, s] = np.float32(1) - above_BN[b, n]
            rows_BS[b, s + numerics] = below + 1
            values_BS[b, s + numerics] = above_BN[b, n]
            s += 1
        s += numerics
        rows_BS[b, s] = first_code + numerics * codes
        values_BS[b, s] = 1


@inlined
def sum_slots(
    evidence_R2K: np.ndarray,
    prior_SK: np.ndarray,
    rows_S: np.ndarray,
    values_S: np.ndarray,
    scales: int,
    contributions_S: np.ndarray,
    logits_K: np.ndarray,
) -> None:
    """Write the contribution of each slot of an event to the first logit, and the sums over slots
    at each time scale. `logits_K` may be longer."""
    for k in range(scales):
        logits_K[k] = 0
    for s in range(len(rows_S)):
        row = rows_S[s]
        value = values_S[s]
        for k in range(scales):
            part = evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k]) * value
            logits_K[k] += part
            if k == 0:
                contributions_S[s] = part


@cache
def compiled_logits(scales: int) -> Kernel:
    """The kernel that computes logits of slots, for `scales` time scales."""

    @kernel(
        "void(float32[:,:,:], float32[:,::1], int64[:,::1], float32[:,::1],"
        " float32[:,::1], float32[:,::1])"
    )
    def linear_logits(
        evidence_R2K: np.ndarray,
        prior_SK: np.ndarray,
        rows_BS: np.ndarray,
        values_BS: np.ndarray,
        contributions_BS: np.ndarray,
        logits_BK: np.ndarray,
    ) -> None:
        """Write the contribution of each slot to the first logit, and the logits at all time
        scales. `logits_BK` may have more columns."""
        for b in range(len(rows_BS)):
            if b % AHEAD_EVENTS == 0:
                ahead = slice(b, b + AHEAD_EVENTS)
                prefetch(evidence_R2K, rows_BS[ahead], contributions_BS[ahead])
            sum_slots(
                evidence_R2K,
                prior_SK,
                rows_BS[b],
                values_BS[b],
                scales,
                contributions_BS[b],
                logits_BK[b],
            )

    return linear_logits


@kernel(
    "void(float32[:,:,:], float32[:,::1], int64[::1], float32[::1], int64[::1], int64[::1], int64,"
    " int64, float32[:,:], float32[:,::1])"
)
def add_lists(
    evidence_R2K: np.ndarray,
    prior_SK: np.ndarray,
    rows_V: np.ndarray,
    values_V: np.ndarray,
    slots_V: np.ndarray,
    offsets: np.ndarray,
    first_column: int,
    first_list: int,
    out_BX: np.ndarray,
    logits_BK: np.ndarray,
) -> None:
    """Write the contribution of each list to the first logit, and add lists to the logits at all
    time scales. The next four arguments after `prior_SK`: see
    `niwaki.model.features.lists.ListSlots`. The contribution of slot s goes to column
    `first_column` + s of `out_BX`; lists have the slots from `first_list` on. `logits_BK` may have
    more columns."""
    slots, scales = prior_SK.shape
    prefetched = np.float32(0)
    for start in range(0, len(out_BX), AHEAD_EVENTS):
        stop = min(start + AHEAD_EVENTS, len(out_BX))
        for v in range(offsets[start], offsets[stop]):
            prefetched += evidence_R2K[rows_V[v], 0, 0]
        for b in range(start, stop):
            for s in range(first_list, slots):
                out_BX[b, first_column + s] = 0
            for v in range(offsets[b], offsets[b + 1]):
                row = rows_V[v]
                s = slots_V[v]
                value = values_V[v]
                for k in range(scales):
                    mean = evidence_R2K[row, 0, k] / (prior_SK[s, k] + evidence_R2K[row, 1, k])
                    logits_BK[b, k] += mean * value
                    if k == 0:
                        out_BX[b, first_column + s] += mean * value
    if prefetched != prefetched:  # or the compiler would drop the prefetch
        out_BX[0, first_column + first_list] = prefetched


@cache
def compiled_contributions(scales: int) -> Kernel:
    """The kernel that a published model's forward pass uses, for `scales` time scales."""

    @kernel(
        "void(float32[:,:,::1], float32[:,::1], int64[:,::1], int64[:,::1], float32[:,::1],"
        " int64[:,::1], float32[:,::1], int64, int64, int64, int64, int64, int64[:,::1],"
        " uint64[::1], float32[:,::1], int64, float32[:,::1])"
    )
    def write_contributions(
        evidence_R2K: np.ndarray,
        prior_SK: np.ndarray,
        rows_BF: np.ndarray,
        hashes_BF: np.ndarray,
        scores_BM: np.ndarray,
        code_BN: np.ndarray,
        above_BN: np.ndarray,
        first_pair: int,
        first_score: int,
        first_code: int,
        codes: int,
        pair_rows: int,
        pairs_P2: np.ndarray,
        seeds_P: np.ndarray,
        out_BX: np.ndarray,
        first_column: int,
        experts_BE: np.ndarray,
    ) -> None:
        """`locate_slots` and `linear_logits` in one, for a few events at a time, whose rows are
        prefetched. Contributions go to the columns of `out_BX` from `first_column` on; the logits
        of all time scales go to the first columns of `experts_BE`. Slots of lists are left out:
        `add_lists` adds them."""
        slots = rows_BF.shape[1] + len(pairs_P2) + scores_BM.shape[1] + 2 * code_BN.shape[1] + 1
        count, ahead = len(rows_BF), AHEAD_EVENTS // 2
        rows_2AS = np.empty((2, ahead, slots), np.int64)
        values_2AS = np.empty((2, ahead, slots), np.float32)
        # While the rows of some events come into the cache, those before them are summed.
        for start in range(0, count + ahead, ahead):
            turn = start // ahead % 2
            if start < count:
                some = slice(start, min(start + ahead, count))
                locate_slots(
                    rows_BF[some],
                    hashes_BF[some],
                    scores_BM[some],
                    code_BN[some],
                    above_BN[some],
                    first_pair,
                    first_score,
                    first_code,
                    codes,
                    pair_rows,
                    pairs_P2,
                    seeds_P,
                    rows_2AS[turn],
                    values_2AS[turn],
                )
                for a in range(some.stop - start):
                    for s in range(slots):
                        prefetch_row(evidence_R2K, rows_2AS[turn, a, s])
            for b in range(max(start - ahead, 0), min(start, count)):
                a = b - (start - ahead)
                sum_slots(
                    evidence_R2K,
                    prior_SK,
                    rows_2AS[1 - turn, a],
                    values_2AS[1 - turn, a],
                    scales,
                    out_BX[b, first_column : first_column + slots],
                    experts_BE[b],
                )

    return write_contributions
