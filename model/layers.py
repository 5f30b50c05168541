"""What the deep expert does beside its matrix products, each a single pass over memory: kernels as in `model.kernels`.

Arrays are written in place or to `out`. The same batch gives the same bits.

Shapes: B events, H units of a layer, V vectors of D floats, P pairs of them, F fields, R rows of a table, X floats.
"""

import math

import numpy as np

from model.kernels import kernel


@kernel("void(float32[:,::1], float32[::1])")
def rectify(sums_BH, bias_H):
    """max(0, sums + bias), in place."""
    for b in range(len(sums_BH)):
        for h in range(len(bias_H)):
            sums_BH[b, h] = max(sums_BH[b, h] + bias_H[h], np.float32(0))


@kernel("void(float32[:,::1], float32[:,::1], float32[::1])")
def rectify_backward(errors_BH, active_BH, bias_gradient_H):
    """The gradient before the rectifier, in place, from that behind it and what came out of it; and its sum over
    events."""
    bias_gradient_H[:] = 0
    for b in range(len(errors_BH)):
        for h in range(len(bias_gradient_H)):
            error = errors_BH[b, h] if active_BH[b, h] > 0 else np.float32(0)
            errors_BH[b, h] = error
            bias_gradient_H[h] += error


@kernel("void(float32[:,::1], float32[::1], float32[:,::1])")
def mask(active_BH, mask_H, out_BH):
    """active * mask."""
    for b in range(len(active_BH)):
        for h in range(len(mask_H)):
            out_BH[b, h] = active_BH[b, h] * mask_H[h]


@kernel("void(float32[:,::1], float32[:,::1], float32[::1], float32[::1], float32[::1])")
def mask_backward(errors_BH, active_BH, mask_H, mean_H, square_H):
    """The gradient before the mask, in place; each event's own gradient in the mask is averaged, and so is its
    square."""
    mean_H[:] = 0
    square_H[:] = 0
    for b in range(len(errors_BH)):
        for h in range(len(mask_H)):
            gradient = errors_BH[b, h] * active_BH[b, h]
            mean_H[h] += gradient
            square_H[h] += gradient * gradient
            errors_BH[b, h] *= mask_H[h]
    share = np.float32(1) / np.float32(max(len(errors_BH), 1))
    for h in range(len(mask_H)):
        mean_H[h] *= share
        square_H[h] *= share


@kernel("void(float32[:,:,::1], float32[:,::1], int64)")
def take_pairs(dots_BVV, out_BX, first):
    """What lies above the diagonal, row by row, to the columns of `out_BX` from `first` on."""
    events, vectors, _ = dots_BVV.shape
    for b in range(events):
        p = first
        for i in range(vectors):
            for j in range(vectors - i - 1):
                out_BX[b, p + j] = dots_BVV[b, i, i + 1 + j]
            p += vectors - i - 1


@kernel("void(float32[:,::1], float32[:,:,::1])")
def spread_pairs(errors_BP, out_BVV):
    """Undo `take_pairs`, on both sides of a diagonal of zeros."""
    events, vectors, _ = out_BVV.shape
    for b in range(events):
        p = 0
        for i in range(vectors):
            out_BVV[b, i, i] = 0
            for j in range(vectors - i - 1):
                out_BVV[b, i, i + 1 + j] = errors_BP[b, p + j]
            for j in range(vectors - i - 1):
                out_BVV[b, i + 1 + j, i] = errors_BP[b, p + j]
            p += vectors - i - 1


@kernel("void(float32[::1], float32[::1], float32[::1], float32[::1], float32, float32, float64)")
def adam(parameter_X, gradient_X, first_X, second_X, scale, rate, steps):
    """Step number `steps` of Adam (Kingma & Ba, arXiv:1412.6980, with the usual constants) on `scale` * gradient."""
    one, beta1, beta2 = np.float32(1), np.float32(0.9), np.float32(0.999)
    step = np.float32(rate / (1 - 0.9**steps))
    root = np.float32(1 / math.sqrt(1 - 0.999**steps))
    epsilon = np.float32(1e-8)
    for i in range(len(parameter_X)):
        gradient = scale * gradient_X[i]
        first = beta1 * first_X[i] + (one - beta1) * gradient
        second = beta2 * second_X[i] + (one - beta2) * gradient * gradient
        first_X[i], second_X[i] = first, second
        parameter_X[i] -= step * first / (np.sqrt(second) * root + epsilon)


@kernel("void(float32[:,::1], int64[:,::1], float32[:,:,::1])")
def take_rows(table_RD, rows_BF, out_BFD):
    """Copies of rows."""
    events, fields, width = out_BFD.shape
    for b in range(events):
        for f in range(fields):
            row = rows_BF[b, f]
            for d in range(width):
                out_BFD[b, f, d] = table_RD[row, d]


@kernel("void(float32[:,::1], float32[::1], int64[:,::1], float32[:,:,::1], float32, int64[::1])", reorder=True)
def learn_rows(table_RD, squares_R, rows_BF, gradient_BVD, rate, touched_F):
    """One step of `model.embeddings.EmbeddingTables`; `touched_F` grows by the rows that had no squares before.

    First the squares of all events, then the steps, so that a row's steps in one batch are equally long.
    """
    events, fields = rows_BF.shape
    width = table_RD.shape[1]
    for b in range(events):
        for f in range(fields):
            row, square = rows_BF[b, f], np.float32(0)
            for d in range(width):
                square += gradient_BVD[b, f, d] * gradient_BVD[b, f, d]
            touched_F[f] += squares_R[row] == 0 and square > 0
            squares_R[row] += square / np.float32(width)
    for b in range(events):
        for f in range(fields):
            row = rows_BF[b, f]
            step = rate / np.sqrt(squares_R[row] + np.float32(1e-2))
            for d in range(width):
                table_RD[row, d] -= step * gradient_BVD[b, f, d]
