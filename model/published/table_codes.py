"""Codes of table rows in a checkpoint: numbers as differences, values in 32, 16, 8 or 4 bits.

In: sorted row numbers and float32 values. Out: smaller named tensors, and back. Row numbers lose
nothing. Values are rounded to their precision, each row by itself, so a row that has not changed
is equal in whichever checkpoint it came; and rounded values are not changed by rounding again.
Rows with a value beyond 64 keep all 32 bits: they are few and weigh much (such as the constant of
a linear expert, whose slow evidence is a hundred times its fast one). With 4 bits, rows of the
linear expert with little evidence have 4 bits, and all others 8: little evidence says little.

Shapes: U rows of a table of X values each, E of them exact, K time scales; X = 2 K in the linear
expert.
"""

import math
from typing import Any, Literal

import numpy as np
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.jit import inlined, kernel

Precision = Literal["float32", "float16", "int8", "int4"]
Tensors = dict[str, torch.Tensor]
TABLES = ("embedding", "linear")
_PARTS = ("values", "scales", "exact", "in_full")
_SIGNED = (torch.int32, torch.int64)
_WIDTHS = (np.uint8, np.uint16, np.uint32)
_FAR_W = np.array([np.iinfo(width).max for width in _WIDTHS], np.int64)
_EXACT_BEYOND = 64.0
_LEVELS = 127
_MEAN_LEVELS, _PRECISION_LEVELS = 7, 15
LITTLE = 0
"""The greatest scale code of rows in 4 bits: no value of theirs is beyond 1."""
NOTHING = -128
_BLOCKS = ".blocks"
# Quarters of an octave, from square roots alone: the same on every machine.
_QUARTERS = np.array(
    [1.0, np.sqrt(np.sqrt(2.0)), np.sqrt(2.0), np.sqrt(2.0) * np.sqrt(np.sqrt(2.0))]
)
_FIRST_QUARTER, _SECOND_QUARTER, _THIRD_QUARTER = (_QUARTERS[1:] / 2).tolist()
_CODES = np.arange(-128, 128)
_SCALES = np.ldexp(_QUARTERS[_CODES % 4], _CODES // 4).astype(np.float32)
"""float32 2^(c/4) of each code c, from -128 on."""
_STEPS = _SCALES / np.float32(_LEVELS)
_MEAN_STEPS = _SCALES / np.float32(_MEAN_LEVELS)
_PRECISION_STEPS = _SCALES / np.float32(_PRECISION_LEVELS)
# So that a value which rounding puts a little beyond a scale still belongs to that scale.
_WITHIN = 1 - 1e-6


def encode(tensors: Tensors, precision: Precision) -> Tensors:
    """The tensors of a checkpoint as they are stored: see docs/checkpoint-format.md. The values of
    tables may be encoded already."""
    stored = {
        name: encode_rows(tensor) if name.endswith(_BLOCKS) else tensor
        for name, tensor in encode_values(tensors, precision).items()
    }
    for table in TABLES:
        rows = stored.get(f"{table}.rows")
        if rows is not None and rows.dtype in _SIGNED:
            stored[f"{table}.rows"] = encode_rows(rows)
    return stored


def encode_values(tensors: Tensors, precision: Precision) -> Tensors:
    """The tensors with the values of tables as `encode` stores them."""
    stored = dict(tensors)
    for table in TABLES:
        values = stored.get(f"{table}.values")
        if values is not None and values.dtype == torch.float32 and precision != "float32":
            del stored[f"{table}.values"]
            stored |= {
                f"{table}.{part}": tensor
                for part, tensor in _encode_values(values, precision).items()
            }
    return stored


def decode(stored: Tensors) -> Tensors:
    """The inverse of `encode`. Raises `CheckpointError` where parts do not fit together."""
    tensors = {
        name: decode_rows(tensor) if name.endswith(_BLOCKS) else tensor
        for name, tensor in stored.items()
    }
    for table in TABLES:
        if (rows := tensors.get(f"{table}.rows")) is not None and rows.dtype not in _SIGNED:
            tensors[f"{table}.rows"] = decode_rows(rows)
        if f"{table}.exact" in tensors:
            names = [f"{table}.{part}" for part in _PARTS]
            parts = {n.partition(".")[2]: tensors.pop(n) for n in names if n in tensors}
            tensors[f"{table}.values"] = _decode_values(parts)
    return tensors


def rounded(tensors: Tensors, stored: Tensors) -> Tensors:
    """The tensors as they come out of a checkpoint. `stored`: the same, with encoded values."""
    values = {}
    for table in TABLES:
        names = {part: f"{table}.{part}" for part in _PARTS}
        if names["exact"] in stored:
            parts = {part: stored[name] for part, name in names.items() if name in stored}
            values[names["values"]] = _decode_values(parts)
    return tensors | values


def drop_columns(stored: Tensors, alive_FD: torch.Tensor, table_rows: int) -> Tensors:
    """The output of `encode` with only the columns alive of the embedding tables, row after row.
    `table_rows`: rows of each field's table."""
    alive = _alive(stored, alive_FD, table_rows)
    return stored | {name: stored[name][alive_XD] for name, alive_XD in alive.items()}


def restore_columns(stored: Tensors, alive_FD: torch.Tensor, table_rows: int) -> Tensors:
    """The inverse of `drop_columns`; the other columns are zero. Raises `CheckpointError` where
    parts do not fit together."""
    whole = dict(stored)
    for name, alive_XD in _alive(stored, alive_FD, table_rows).items():
        if stored[name].shape != (int(alive_XD.sum()),):
            raise CheckpointError(name, "must hold every alive column of its rows and nothing else")
        whole[name] = torch.zeros(alive_XD.shape, dtype=stored[name].dtype)
        whole[name][alive_XD] = stored[name]
    return whole


def _alive(stored: Tensors, alive_FD: torch.Tensor, table_rows: int) -> Tensors:
    """By tensor of the embedding tables that holds rows: which entries are of columns alive."""
    if "embedding.rows" not in stored or "embedding.values" not in stored:
        raise CheckpointError("embedding", "is required where columns are pruned")
    fields_U = decode_rows(stored["embedding.rows"]) // table_rows
    if len(fields_U) and int(fields_U[-1]) >= len(alive_FD):
        raise CheckpointError("embedding.rows", "must be rows of the fields' tables")
    alive = {"embedding.values": alive_FD[fields_U]}
    if (exact := stored.get("embedding.exact")) is not None and "embedding.in_full" in stored:
        if len(exact) and not 0 <= int(exact.min()) <= int(exact.max()) < len(fields_U):
            raise CheckpointError("embedding.exact", "must be among the rows")
        alive["embedding.in_full"] = alive_FD[fields_U[exact.long()]]
    return alive


def encode_rows(rows_U: torch.Tensor) -> torch.Tensor:
    """Codes of ascending rows, whichever are shortest: how many rows lie between each and the one
    before it, in unsigned integers of which the largest number of the type means "so many rows, and
    no row here"; or one bit for each row of the table up to the last, as int8. Raises `ValueError`
    if rows do not ascend."""
    numbers_U = np.ascontiguousarray(rows_U.numpy(), np.int64)
    extra_W = np.zeros(len(_WIDTHS), np.int64)
    if not count_jumps(numbers_U, _FAR_W, extra_W):
        raise ValueError("rows must ascend")
    counts = [len(numbers_U) + extra for extra in extra_W.tolist()]
    sizes = [np.dtype(width).itemsize * count for width, count in zip(_WIDTHS, counts, strict=True)]
    best = sizes.index(min(sizes))
    if len(numbers_U) and int(numbers_U[-1]) // 8 + 1 < sizes[best]:
        there = np.zeros(int(numbers_U[-1]) + 1, bool)
        there[numbers_U] = True
        return torch.from_numpy(np.packbits(there).view(np.int8))
    codes = np.empty(counts[best], np.uint32)
    fill_codes(numbers_U, _far(_WIDTHS[best]), codes)
    return torch.from_numpy(codes.astype(_WIDTHS[best]))


@kernel("boolean(int64[::1], int64[::1], int64[::1])")
def count_jumps(rows_U: np.ndarray, far_W: np.ndarray, extra_W: np.ndarray) -> bool:
    """Count the codes beyond one a row, for each width, in `extra_W`; False if rows do not
    ascend."""
    before = -1
    for u in range(len(rows_U)):
        gap = rows_U[u] - before - 1
        if gap < 0:
            return False
        for w in range(len(far_W)):
            if gap >= far_W[w]:
                extra_W[w] += gap // far_W[w]
        before = rows_U[u]
    return True


@kernel("void(int64[::1], int64, uint32[::1])")
def fill_codes(rows_U: np.ndarray, far: int, codes: np.ndarray) -> None:
    """Write the codes of ascending rows."""
    before, place = -1, 0
    for u in range(len(rows_U)):
        gap = rows_U[u] - before - 1
        while gap >= far:
            codes[place] = far
            gap -= far
            place += 1
        codes[place] = gap
        place += 1
        before = rows_U[u]


def decode_rows(stored: torch.Tensor) -> torch.Tensor:
    """The rows of `encode_rows`, int64 (U,). Raises `CheckpointError` for another type."""
    codes = stored.numpy()
    if codes.dtype == np.int8 and codes.ndim == 1:
        return torch.from_numpy(np.flatnonzero(np.unpackbits(codes.view(np.uint8))))
    if codes.dtype not in _WIDTHS or codes.ndim != 1:
        raise CheckpointError("rows", "must be unsigned integers, or bits", shown=str(codes.dtype))
    here = codes != _far(codes.dtype.type)
    return torch.from_numpy((np.cumsum(codes.astype(np.int64) + here) - 1)[here])


def _far(width: type) -> int:
    return int(np.iinfo(width).max)


def _encode_values(values: torch.Tensor, precision: Precision) -> Tensors:
    """Values of U rows; `exact` (E,) says which of them are in `in_full`, with 32 bits."""
    flat_UX = np.ascontiguousarray(values.flatten(1).numpy())
    scales_U, exact_U = np.empty(len(flat_UX), np.int8), np.empty(len(flat_UX), bool)
    write_scales(flat_UX, scales_U, exact_U)
    parts = {
        "exact": torch.from_numpy(np.flatnonzero(exact_U).astype(np.int32)),
        "in_full": values[exact_U],
    }
    if precision == "float16":
        small_UX = np.where(exact_U[:, None], np.float32(0), flat_UX)
        return parts | {"values": torch.from_numpy(small_UX.astype(np.float16)).view(values.shape)}
    parts |= {"scales": torch.from_numpy(scales_U)}
    if precision == "int4" and values.dim() == 3:
        codes = np.empty(packed_bytes(scales_U, flat_UX.shape[1]), np.uint8)
        pack_rows(flat_UX, scales_U, codes)
        return parts | {"values": torch.from_numpy(codes)}
    codes_UX = np.empty(flat_UX.shape, np.int8)
    code_rows(flat_UX, scales_U, codes_UX)
    return parts | {"values": torch.from_numpy(codes_UX).view(values.shape)}


def _decode_values(parts: Tensors) -> torch.Tensor:
    codes, scales = parts.get("values"), parts.get("scales")
    exact, in_full = parts.get("exact"), parts.get("in_full")
    if codes is None or exact is None or in_full is None or len(in_full) != len(exact):
        raise CheckpointError("values", "must be whole, with those kept in full")
    if codes.dtype != torch.float16 and (
        scales is None or scales.dtype != torch.int8 or scales.dim() != 1
    ):
        raise CheckpointError("scales", "must be one for each row of 8-bit values")
    if codes.dtype == torch.uint8 and scales is not None:
        values = _unpacked(codes.numpy(), scales.numpy(), in_full.shape[1:])
    elif in_full.shape[1:] != codes.shape[1:]:
        raise CheckpointError("values", "must be whole, with those kept in full")
    elif codes.dtype == torch.int8 and scales is not None:
        if len(scales) != len(codes):
            raise CheckpointError("scales", "must be one for each row of 8-bit values")
        values = codes.numpy().astype(np.float32)
        steps_U = _STEPS[scales.numpy().astype(np.int64) + 128]
        values *= steps_U.reshape(-1, *[1] * (values.ndim - 1))
    elif codes.dtype == torch.float16:
        values = codes.numpy().astype(np.float32)
    else:
        raise CheckpointError("values", "must be of 4, 8 or 16 bits", shown=str(codes.dtype))
    places = exact.numpy()
    if exact.dtype != torch.int32 or (
        len(places) and not 0 <= places.min() <= places.max() < len(values)
    ):
        raise CheckpointError("exact", "must be among the rows")
    values[places] = in_full.numpy()
    return torch.from_numpy(values)


def packed_bytes(scales_U: np.ndarray, width: int) -> int:
    """Bytes of `pack_rows` for rows of `width` values."""
    little = np.count_nonzero(scales_U <= LITTLE) - np.count_nonzero(scales_U == NOTHING)
    return int(little) * (width // 2) + int(np.count_nonzero(scales_U > LITTLE)) * width


def _unpacked(codes: np.ndarray, scales_U: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """float32 (U, *shape). Raises `CheckpointError` unless there is a code of every value."""
    if len(shape) != 2 or shape[0] != 2:
        raise CheckpointError("in_full", "must be rows of the linear expert", list(shape))
    values_UX = np.zeros((len(scales_U), math.prod(shape)), np.float32)
    if codes.ndim != 1 or len(codes) != packed_bytes(scales_U, values_UX.shape[1]):
        raise CheckpointError("values", "must be those of the rows and nothing else", codes.shape)
    unpack_rows(codes, scales_U, values_UX)
    return values_UX.reshape(-1, *shape)


@kernel("void(float32[:,::1], int8[::1], boolean[::1])")
def write_scales(values_UX: np.ndarray, scales_U: np.ndarray, exact_U: np.ndarray) -> None:
    """Write c of each row, the least for which 2^(c/4) is not below its largest value; -128 for
    rows without any value, and for those that are kept in full, as `exact_U` says."""
    for u in range(len(values_UX)):
        largest = np.float32(0)
        exact = False
        for x in range(values_UX.shape[1]):
            value = abs(values_UX[u, x])
            exact = exact or not value * _WITHIN <= _EXACT_BEYOND  # what is not finite, too
            largest = max(largest, value)
        exact_U[u] = exact
        scales_U[u] = NOTHING
        if largest > 0 and not exact:
            fraction, exponent = math.frexp(largest * _WITHIN)
            code = 4 * exponent - 3
            code += fraction > _FIRST_QUARTER
            code += fraction > _SECOND_QUARTER
            code += fraction > _THIRD_QUARTER
            scales_U[u] = max(code, NOTHING + 1)


@inlined
def _nearest(value: np.float32, step: np.float32, low: int, high: int) -> int:
    return min(max(int(np.rint(value / step)), low), high)


@kernel("void(float32[:,::1], int8[::1], int8[:,::1])")
def code_rows(values_UX: np.ndarray, scales_U: np.ndarray, codes_UX: np.ndarray) -> None:
    """Write the codes of rows in 8 bits."""
    for u in range(len(values_UX)):
        if scales_U[u] == NOTHING:
            codes_UX[u] = 0
            continue
        step = _STEPS[scales_U[u] + 128]
        for x in range(values_UX.shape[1]):
            codes_UX[u, x] = _nearest(values_UX[u, x], step, -_LEVELS, _LEVELS)


@kernel("void(float32[:,::1], int8[::1], uint8[::1])")
def pack_rows(values_UX: np.ndarray, scales_U: np.ndarray, codes: np.ndarray) -> None:
    """Write the codes of the linear expert's rows, one after the other. Of a row with little
    evidence, a byte for each time scale: precision times mean in its upper four bits, plus 8, and
    precision in the lower ones. Of another row, a byte for each value; of one without any, or kept
    in full, nothing."""
    width = values_UX.shape[1]
    scales = width // 2
    at = 0
    for u in range(len(values_UX)):
        if scales_U[u] == NOTHING:
            continue
        if scales_U[u] <= LITTLE:
            mean_step = _MEAN_STEPS[scales_U[u] + 128]
            step = _PRECISION_STEPS[scales_U[u] + 128]
            for k in range(scales):
                mean = _nearest(values_UX[u, k], mean_step, -_MEAN_LEVELS, _MEAN_LEVELS)
                precision = _nearest(values_UX[u, scales + k], step, 0, _PRECISION_LEVELS)
                codes[at + k] = 16 * (mean + 8) + precision
            at += scales
        else:
            step = _STEPS[scales_U[u] + 128]
            for x in range(width):
                codes[at + x] = _nearest(values_UX[u, x], step, -_LEVELS, _LEVELS)
            at += width


@inlined
def little_mean(code: np.uint8, scale: int) -> Any:
    """The precision times mean of a code in 4 bits, with the code of its scale."""
    return np.float32((np.int64(code) >> 4) - 8) * _MEAN_STEPS[scale + 128]


@inlined
def little_precision(code: np.uint8, scale: int) -> Any:
    """The precision of a code in 4 bits."""
    return np.float32(np.int64(code) & 15) * _PRECISION_STEPS[scale + 128]


@inlined
def much(code: np.uint8, scale: int) -> Any:
    """The value of a code in 8 bits."""
    return np.float32(np.int8(code)) * _STEPS[scale + 128]


@kernel("void(uint8[::1], int8[::1], float32[:,::1])")
def unpack_rows(codes: np.ndarray, scales_U: np.ndarray, values_UX: np.ndarray) -> None:
    """The inverse of `pack_rows`; rows that have no codes are left as they are."""
    width = values_UX.shape[1]
    scales = width // 2
    at = 0
    for u in range(len(values_UX)):
        scale = int(scales_U[u])
        if scale == NOTHING:
            continue
        if scale <= LITTLE:
            for k in range(scales):
                values_UX[u, k] = little_mean(codes[at + k], scale)
                values_UX[u, scales + k] = little_precision(codes[at + k], scale)
            at += scales
        else:
            for x in range(width):
                values_UX[u, x] = much(codes[at + x], scale)
            at += width
