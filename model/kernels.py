"""The inner loops of a step that no tensor operation says well: irregular reads and writes of large tables.

In and out: numpy arrays, mostly views of torch tensors, whose memory they share. Each kernel is plain Python, compiled
by numba when its file is imported, for the one set of types that it is used with; so a live trainer never waits for a
compiler. What was compiled is kept for the next start: in NUMBA_CACHE_DIR, beside that file, or in the user's cache,
whichever can be written to first. A kernel holds no lock on the interpreter, keeps nothing between two calls, and
checks nothing: rows must lie within their table.

Shapes: B events, F fields, P pairs of fields, N numerics, S slots, R rows, U different rows of a batch.
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

__all__ = ["kernel", "types"]


def kernel(
    signature: str | tuple, *, reorder: bool = False, brief: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for these types, now, or read it from what an earlier start has kept. `reorder`: sums may be
    taken in another order, always the same one, so that they fit vector instructions. `brief`: it takes some
    microseconds, and keeps the lock on the interpreter, since to hand that over and take it back takes longer."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        options = {"nogil": not brief, "error_model": "numpy", "fastmath": {"reassoc"} if reorder else False}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(signature, **options)(function)  # nowhere to write to: compiled at each start

    return compiled


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of several kernels, compiled into each: a number that one of them passes is known to the compiler."""
    return numba.njit(inline="always", error_model="numpy")(function)


AHEAD_EVENTS = 8
AHEAD_ROWS = 64
_LARGEST_SCORE = 8.0


@kernel("void(float32[:,:,:], int64[:,::1], float32[:,::1])")
def fetch(evidence_R2K, rows_BS, scratch_BS):
    """Bring rows into the cache, first and last byte, before they are worked on.

    This loop does so little for each row that the processor waits for dozens of them at once, and not, as one that
    computes, for a few: measured, less than half the time. What lands in `scratch_BS` means nothing.
    """
    events, slots = rows_BS.shape
    last = evidence_R2K.shape[2] - 1
    for b in range(events):
        for s in range(slots):
            row = rows_BS[b, s]
            scratch_BS[b, s] = evidence_R2K[row, 0, 0] + evidence_R2K[row, 1, last]


@kernel("void(float32[:,::1], float32[:,::1], float32[:,::1], float32[:,::1], int64[:,::1], float32[:,::1])")
def prepare_numerics(numerics_BN, moments_2N, knots_NQ, scores_BM, code_BN, above_BN):
    """`model.numerics.prepare`."""
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
    """`model.numerics.Numerics.scale`."""
    for n in range(moments_3N.shape[1]):
        count, mean, squares = moments_3N[0, n], moments_3N[1, n], moments_3N[2, n]
        deviation = math.sqrt(squares / max(count, 1.0))
        moments_2N[0, n] = mean
        moments_2N[1, n] = 1 / deviation if deviation > 1e-12 * (1 + abs(mean)) else 0.0


@kernel("void(float32[:,::1], int64, float64, float64[:,::1], float32[:,::1])")
def take_in_numerics(numerics_BN, events, horizon, moments_3N, sample_XN):
    """Merge a batch into running moments (count, mean, sum of squared deviations), and into the ring of the last X
    events. `events`: how many have been taken in before. `horizon`: more than these do not count."""
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


@kernel(
    "void(int64[:,::1], int64[:,::1], float32[:,::1], int64[:,::1], float32[:,::1], int64, int64, int64, int64,"
    " int64[:,::1], float32[:,::1])"
)
def locate_slots(
    rows_BF, pairs_BP, scores_BM, code_BN, above_BN, first_pair, first_score, first_code, codes, rows_BS, values_BS
):
    """`model.experts.Slots.locate`."""
    fields, pairs, scores, numerics = rows_BF.shape[1], pairs_BP.shape[1], scores_BM.shape[1], code_BN.shape[1]
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


@kernel("int64(int64[::1], int64[::1], int64, int64[::1], int64)")
def note_rows(rows_X, stamps_X, latest, noted_X, count):
    """Write the rows whose stamp is not above `latest` to `noted_X`, from place `count` on; the place after the
    last."""
    for x in range(len(rows_X)):
        if stamps_X[x] <= latest:
            noted_X[count] = rows_X[x]
            count += 1
    return count


@kernel("void(float32[:,:], int64[::1], float32[:,::1])")
def take_rows(table_RX, rows_U, out_UX):
    """Copies of rows, brought into the cache some dozens at a time, as `fetch` does."""
    last = out_UX.shape[1] - 1
    for start in range(0, len(rows_U), AHEAD_ROWS):
        stop = min(start + AHEAD_ROWS, len(rows_U))
        for u in range(start, stop):
            out_UX[u, 0] = table_RX[rows_U[u], 0] + table_RX[rows_U[u], last]
        for u in range(start, stop):
            for x in range(last + 1):
                out_UX[u, x] = table_RX[rows_U[u], x]


@kernel("float32(float32[:,:], int64[::1], float32[:,::1])")
def put_rows(table_RX, rows_U, values_UX):
    """Write rows, fetched in the same way. What is returned means nothing."""
    last, nothing = values_UX.shape[1] - 1, np.float32(0)
    for start in range(0, len(rows_U), AHEAD_ROWS):
        stop = min(start + AHEAD_ROWS, len(rows_U))
        for u in range(start, stop):
            nothing += table_RX[rows_U[u], 0] + table_RX[rows_U[u], last]
        for u in range(start, stop):
            for x in range(last + 1):
                table_RX[rows_U[u], x] = values_UX[u, x]
    return nothing
