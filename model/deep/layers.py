"""What the deep expert does beside its matrix products, each a single pass over memory: kernels as
in `model.kernels`.

Arrays are written in place or to `out`. The same batch gives the same bits.

Shapes: B events, H units of a layer, V vectors of D floats, F fields, R rows of a table, X floats.
"""

import math

import numpy as np

from niwaki.model.jit import kernel
from niwaki.model.rows import AHEAD_EVENTS


@kernel("void(float32[:,::1], float32[::1])")
def rectify(sums_HB, bias_H):
    """max(0, sums + bias), in place."""
    for h in range(len(bias_H)):
        bias = bias_H[h]
        for b in range(sums_HB.shape[1]):
            sums_HB[h, b] = max(sums_HB[h, b] + bias, np.float32(0))


@kernel("void(float32[:,::1], float32[:,::1], float32[::1])", reorder=True)
def rectify_backward(errors_HB, active_HB, bias_gradient_H):
    """The gradient before the rectifier, in place, from that behind it and what came out of it; and
    its sum over events."""
    for h in range(len(bias_gradient_H)):
        total = np.float32(0)
        for b in range(errors_HB.shape[1]):
            error = errors_HB[h, b] if active_HB[h, b] > 0 else np.float32(0)
            errors_HB[h, b] = error
            total += error
        bias_gradient_H[h] = total


@kernel("void(float32[:,::1], float32[::1], float32[:,::1])")
def mask(active_HB, mask_H, out_HB):
    """active * mask."""
    for h in range(len(mask_H)):
        for b in range(active_HB.shape[1]):
            out_HB[h, b] = active_HB[h, b] * mask_H[h]


@kernel(
    "void(float32[:,::1], float32[:,::1], float32[::1], float32[::1], float32[::1])", reorder=True
)
def mask_backward(errors_HB, active_HB, mask_H, mean_H, square_H):
    """The gradient before the mask, in place; each event's own gradient in the mask is averaged,
    and so is its square."""
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
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32, float32, float64)"
)
def adam(parameter_X, gradient_X, other_gradient_X, first_X, second_X, scale, rate, steps):
    """Step number `steps` of Adam (Kingma & Ba, arXiv:1412.6980, with the usual constants) on
    `scale` * the sum of two gradients; the other may be empty."""
    one, beta1, beta2 = np.float32(1), np.float32(0.9), np.float32(0.999)
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
def take_rows(table_RD, rows_BF, out_BX):
    """Copies of an event's rows, one after the other, to the first columns of `out_BX`; rows are
    fetched some events ahead, as in `model.kernels.prefetch`."""
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


@kernel("void(float32[::1], int64[:,::1], float32[:,:,::1], int64[::1])", reorder=True)
def learn_squares(squares_R, rows_BF, gradient_BVD, touched_F):
    """Add the mean square of each gradient to its row's, which are fetched some events ahead;
    `touched_F` grows by the rows that had none before."""
    events, fields = rows_BF.shape
    width = gradient_BVD.shape[2]
    square_AF = np.empty((AHEAD_EVENTS, fields), np.float32)
    for start in range(0, events, AHEAD_EVENTS):
        some = min(AHEAD_EVENTS, events - start)
        for a in range(some):
            for f in range(fields):
                square_AF[a, f] = np.float32(0) * squares_R[rows_BF[start + a, f]]
        for a in range(some):
            for f in range(fields):
                square = square_AF[a, f]
                for d in range(width):
                    square += gradient_BVD[start + a, f, d] * gradient_BVD[start + a, f, d]
                square_AF[a, f] = square / np.float32(width)
        for a in range(some):
            for f in range(fields):
                row, square = rows_BF[start + a, f], square_AF[a, f]
                touched_F[f] += squares_R[row] == 0 and square > 0
                squares_R[row] += square


@kernel("void(float32[:,::1], float32[::1], int64[:,::1], float32[:,:,::1], float32)")
def learn_rows(table_RD, squares_R, rows_BF, gradient_BVD, rate):
    """A step of each row by each of its gradients; rows are fetched some events ahead, as in
    `model.kernels.prefetch`."""
    events, fields = rows_BF.shape
    width = table_RD.shape[1]
    step_AF = np.empty((AHEAD_EVENTS, fields), np.float32)
    for start in range(0, events, AHEAD_EVENTS):
        some = min(AHEAD_EVENTS, events - start)
        for a in range(some):
            for f in range(fields):
                row = rows_BF[start + a, f]
                step_AF[a, f] = squares_R[row] + np.float32(0) * table_RD[row, width - 1]
        for a in range(some):
            for f in range(fields):
                row, step = rows_BF[start + a, f], rate / np.sqrt(step_AF[a, f] + np.float32(1e-2))
                for d in range(width):
                    table_RD[row, d] -= step * gradient_BVD[start + a, f, d]


@kernel("float64(float32[:,:], float32[::1], float32[::1], float32[::1], float32[::1])")
def compare(linear_BK, correction_B, labels_B, logits_B, errors_B):
    """The first linear logit, corrected, and the gradient of the log loss in it; the summed
    loss."""
    loss = 0.0
    for b in range(len(labels_B)):
        logit = linear_BK[b, 0] + correction_B[b]
        small = math.exp(-abs(logit))
        loss += max(logit, 0.0) + math.log1p(small) - labels_B[b] * logit
        logits_B[b] = logit
        errors_B[b] = (np.float32(1) if logit >= 0 else small) / (np.float32(1) + small) - labels_B[
            b
        ]
    return loss
