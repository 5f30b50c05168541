"""Kernels of the deep expert, for its work beside matrix products; each is one pass over memory.

In: arrays of one micro-batch, and parameters. Out: values written in place, or to the arguments
whose names begin with `out`. Equal inputs give equal bits. Rows of tables are read some events
before they are needed, since the processor then waits for many of them at once
(`niwaki.model.rows.prefetch`). Kernels check nothing: rows must lie within their table.

Shapes: B events, I values of a list column, H units of a layer, V vectors of D floats, F fields, R
rows of a table, X floats, K time scales, A events that are read ahead.
"""

import math

import numpy as np

from niwaki.model.jit import kernel
from niwaki.model.rows import AHEAD_EVENTS


@kernel("void(float32[:,::1], float32[::1])")
def rectify(sums_HB: np.ndarray, bias_H: np.ndarray) -> None:
    """Replace each sum by max(0, sum + bias)."""
    for h in range(len(bias_H)):
        bias = bias_H[h]
        for b in range(sums_HB.shape[1]):
            sums_HB[h, b] = max(sums_HB[h, b] + bias, np.float32(0))


@kernel("void(float32[:,::1], float32[:,::1], float32[::1])", reorder=True)
def rectify_backward(
    errors_HB: np.ndarray, active_HB: np.ndarray, bias_gradient_H: np.ndarray
) -> None:
    """Turn the gradient behind a rectifier into the gradient before it, in place, and write its sum
    over events to `bias_gradient_H`. `active_HB`: outputs of the rectifier."""
    for h in range(len(bias_gradient_H)):
        total = np.float32(0)
        for b in range(errors_HB.shape[1]):
            error = errors_HB[h, b] if active_HB[h, b] > 0 else np.float32(0)
            errors_HB[h, b] = error
            total += error
        bias_gradient_H[h] = total


@kernel("void(float32[:,::1], float32[::1], float32[:,::1])")
def apply_mask(active_HB: np.ndarray, mask_H: np.ndarray, out_HB: np.ndarray) -> None:
    """Write the outputs of a layer, times the mask of its units."""
    for h in range(len(mask_H)):
        for b in range(active_HB.shape[1]):
            out_HB[h, b] = active_HB[h, b] * mask_H[h]


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[::1], float32[::1], float32[::1])", reorder=True
)
def apply_mask_backward(
    errors_HB: np.ndarray,
    active_HB: np.ndarray,
    mask_H: np.ndarray,
    mean_H: np.ndarray,
    square_H: np.ndarray,
) -> None:
    """Turn the gradient behind a mask into the gradient before it, in place. `mean_H`, `square_H`:
    mean over events of each event's gradient in the mask, and of its square; overwritten."""
    share = np.float32(1) / np.float32(max(errors_HB.shape[1], 1))
    for h in range(len(mask_H)):
        total = squares = np.float32(0)
        for b in range(errors_HB.shape[1]):
            gradient = errors_HB[h, b] * active_HB[h, b]
            total += gradient
            squares += gradient * gradient
            errors_HB[h, b] *= mask_H[h]
        mean_H[h], square_H[h] = total * share, squares * share


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32, float32,"
    " float64)"
)
def adam(
    parameter_X: np.ndarray,
    gradient_X: np.ndarray,
    other_gradient_X: np.ndarray,
    first_X: np.ndarray,
    second_X: np.ndarray,
    scale: float,
    rate: float,
    steps: float,
) -> None:
    """Step number `steps` of Adam (Kingma & Ba, arXiv:1412.6980, algorithm 1, with its default
    constants) on `scale` times the sum of two gradients; `other_gradient_X` may be empty."""
    one = np.float32(1)
    beta1, beta2 = np.float32(0.9), np.float32(0.999)
    step = np.float32(rate / (1 - 0.9**steps))
    root = np.float32(1 / math.sqrt(1 - 0.999**steps))
    epsilon, both = np.float32(1e-8), len(other_gradient_X) > 0
    for i in range(len(parameter_X)):
        gradient = scale * (gradient_X[i] + other_gradient_X[i] if both else gradient_X[i])
        first = beta1 * first_X[i] + (one - beta1) * gradient
        second = beta2 * second_X[i] + (one - beta2) * gradient * gradient
        first_X[i], second_X[i] = first, second
        parameter_X[i] -= step * first / (np.sqrt(second) * root + epsilon)


@kernel("void(float32[:,::1], int64[:,::1], float32[:,::1])")
def gather_embeddings(table_RD: np.ndarray, rows_BF: np.ndarray, out_BX: np.ndarray) -> None:
    """Write each event's rows, one after the other, to the first F * D columns of `out_BX`."""
    events, fields = rows_BF.shape
    width = table_RD.shape[1]
    for start in range(0, events if width else 0, AHEAD_EVENTS):
        stop = min(start + AHEAD_EVENTS, events)
        for b in range(start, stop):
            for f in range(fields):
                row = rows_BF[b, f]
                out_BX[b, f * width] = table_RD[row, 0] + table_RD[row, width - 1]
        for b in range(start, stop):
            for f in range(fields):
                row = rows_BF[b, f]
                for d in range(width):
                    out_BX[b, f * width + d] = table_RD[row, d]


@kernel("void(float32[:,::1], int64[::1], float32[::1], int64[::1], float32[:,::1], int64)")
def pool_embeddings(
    table_RD: np.ndarray,
    rows_I: np.ndarray,
    shares_I: np.ndarray,
    offsets: np.ndarray,
    out_BX: np.ndarray,
    field: int,
) -> None:
    """Write the mean of the rows of each event's list to the D columns of the given field in
    `out_BX`. `rows_I`, `shares_I`, `offsets`: see `niwaki.model.features.lists.ListRows`."""
    events, width = len(out_BX), table_RD.shape[1]
    first = field * width
    prefetched = np.float32(0)
    for start in range(0, events if width else 0, AHEAD_EVENTS):
        stop = min(start + AHEAD_EVENTS, events)
        for i in range(offsets[start], offsets[stop]):
            prefetched += table_RD[rows_I[i], 0] + table_RD[rows_I[i], width - 1]
        for b in range(start, stop):
            for d in range(width):
                out_BX[b, first + d] = 0
            for i in range(offsets[b], offsets[b + 1]):
                row, share = rows_I[i], shares_I[i]
                for d in range(width):
                    out_BX[b, first + d] += share * table_RD[row, d]
    if prefetched != prefetched:  # or the compiler would drop the prefetch
        out_BX[0, first] = prefetched


@kernel("void(float32[::1], int64[:,::1], float32[:,:,::1], int64[::1], int64[::1])", reorder=True)
def add_squares(
    squares_R: np.ndarray,
    rows_BF: np.ndarray,
    gradient_BVD: np.ndarray,
    owners_F: np.ndarray,
    touched_F: np.ndarray,
) -> None:
    """Add the mean square of each gradient to the accumulator of its row. `owners_F`: the field
    that each field's rows belong to. `touched_F`: grows by the number of rows of each field whose
    accumulator was zero. The first F of an event's V gradients belong to its rows."""
    events, fields = rows_BF.shape
    width = gradient_BVD.shape[2]
    square_AF = np.empty((AHEAD_EVENTS, fields), np.float32)
    for start in range(0, events, AHEAD_EVENTS):
        ahead = min(AHEAD_EVENTS, events - start)
        for a in range(ahead):
            for f in range(fields):
                square_AF[a, f] = np.float32(0) * squares_R[rows_BF[start + a, f]]
        for a in range(ahead):
            for f in range(fields):
                square = square_AF[a, f]
                for d in range(width):
                    square += gradient_BVD[start + a, f, d] * gradient_BVD[start + a, f, d]
                square_AF[a, f] = square / np.float32(width)
        for a in range(ahead):
            for f in range(fields):
                row, square = rows_BF[start + a, f], square_AF[a, f]
                touched_F[owners_F[f]] += squares_R[row] == 0 and square > 0
                squares_R[row] += square


@kernel("void(float32[:,::1], float32[::1], int64[:,::1], float32[:,:,::1], float32)")
def step_rows(
    table_RD: np.ndarray,
    squares_R: np.ndarray,
    rows_BF: np.ndarray,
    gradient_BVD: np.ndarray,
    rate: float,
) -> None:
    """Move each row by one Adagrad step for each of its gradients, `squares_R` unchanged."""
    events, fields = rows_BF.shape
    width = table_RD.shape[1]
    step_AF = np.empty((AHEAD_EVENTS, fields), np.float32)
    for start in range(0, events, AHEAD_EVENTS):
        ahead = min(AHEAD_EVENTS, events - start)
        for a in range(ahead):
            for f in range(fields):
                row = rows_BF[start + a, f]
                step_AF[a, f] = squares_R[row] + np.float32(0) * table_RD[row, width - 1]
        for a in range(ahead):
            for f in range(fields):
                row, step = rows_BF[start + a, f], rate / np.sqrt(step_AF[a, f] + np.float32(1e-2))
                for d in range(width):
                    table_RD[row, d] -= step * gradient_BVD[start + a, f, d]


@kernel(
    "void(float32[::1], int64[::1], float32[::1], int64[::1], float32[:,:,::1], int64, int64,"
    " int64[::1])"
)
def add_list_squares(
    squares_R: np.ndarray,
    rows_I: np.ndarray,
    shares_I: np.ndarray,
    offsets: np.ndarray,
    gradient_BVD: np.ndarray,
    field: int,
    owner: int,
    touched_F: np.ndarray,
) -> None:
    """`add_squares` of the values of one list, whose mean is the vector of `field`; their rows
    belong to the field `owner`."""
    width = gradient_BVD.shape[2]
    for b in range(len(gradient_BVD)):
        square = np.float32(0)
        for d in range(width):
            square += gradient_BVD[b, field, d] * gradient_BVD[b, field, d]
        square /= np.float32(width)
        for i in range(offsets[b], offsets[b + 1]):
            row, own = rows_I[i], shares_I[i] * shares_I[i] * square
            touched_F[owner] += squares_R[row] == 0 and own > 0
            squares_R[row] += own


@kernel(
    "void(float32[:,::1], float32[::1], int64[::1], float32[::1], int64[::1], float32[:,:,::1],"
    " int64, float32)"
)
def step_list_rows(
    table_RD: np.ndarray,
    squares_R: np.ndarray,
    rows_I: np.ndarray,
    shares_I: np.ndarray,
    offsets: np.ndarray,
    gradient_BVD: np.ndarray,
    field: int,
    rate: float,
) -> None:
    """`step_rows` of the values of one list, whose mean is the vector of `field`."""
    width = table_RD.shape[1]
    for b in range(len(gradient_BVD)):
        for i in range(offsets[b], offsets[b + 1]):
            row = rows_I[i]
            step = rate * shares_I[i] / np.sqrt(squares_R[row] + np.float32(1e-2))
            for d in range(width):
                table_RD[row, d] -= step * gradient_BVD[b, field, d]


@kernel(
    "float64(float32[:,:], float32[::1], float32[::1], float32[::1], float32[::1], float32[::1],"
    " float32[::1])"
)
def corrected_loss(
    linear_BK: np.ndarray,
    correction_B: np.ndarray,
    labels_B: np.ndarray,
    weights_B: np.ndarray,
    offsets_B: np.ndarray,
    out_logits_B: np.ndarray,
    out_errors_B: np.ndarray,
) -> float:
    """The weighted log loss, summed over events, of the first linear logit plus the deep
    correction. Writes these logits, and the gradient of the loss in them, which may overwrite
    `correction_B`. `labels_B`, `weights_B`, `offsets_B`: see
    `niwaki.model.features.outcomes.Outcomes`."""
    loss = 0.0
    for b in range(len(labels_B)):
        logit = linear_BK[b, 0] + correction_B[b]
        out_logits_B[b] = logit
        logit += offsets_B[b]
        small = math.exp(-abs(logit))
        loss += weights_B[b] * (max(logit, 0.0) + math.log1p(small) - labels_B[b] * logit)
        probability = (np.float32(1) if logit >= 0 else small) / (np.float32(1) + small)
        out_errors_B[b] = weights_B[b] * (probability - labels_B[b])
    return loss
