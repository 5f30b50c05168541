"""Codes of table rows in a checkpoint: numbers as differences, values in 32, 16 or 8 bits.

In: sorted row numbers and float32 values. Out: smaller named tensors, and back. Row numbers lose
nothing. Values are rounded to their precision, each row by itself, so a row that has not changed
is equal in whichever checkpoint it came. Rows with a value beyond 64 keep
all 32 bits: they are few and weigh much (such as the constant of a linear expert, whose slow
evidence is a hundred times its fast one).

Shapes: U rows of a table, E of them exact.
"""

from typing import Literal

import numpy as np
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.jit import kernel

Precision = Literal["float32", "float16", "int8"]
Tensors = dict[str, torch.Tensor]
TABLES = ("embedding", "linear")
_PARTS = ("values", "scales", "exact", "in_full")
_SIGNED = (torch.int32, torch.int64)
_WIDTHS = (np.uint8, np.uint16, np.uint32)
_FAR_W = np.array([np.iinfo(width).max for width in _WIDTHS], np.int64)
_EXACT_BEYOND = 64.0
_LEVELS = 127
_BLOCKS = ".blocks"
# Quarters of an octave, from square roots alone: the same on every machine.
_QUARTERS = np.array(
    [1.0, np.sqrt(np.sqrt(2.0)), np.sqrt(2.0), np.sqrt(2.0) * np.sqrt(np.sqrt(2.0))]
)


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
    """Codes of ascending rows: how many rows lie between each and the one before it, in as few
    bytes as will do. The largest number of the type means "so many rows, and no row here". Raises
    `ValueError` if rows do not ascend."""
    numbers_U = np.ascontiguousarray(rows_U.numpy(), np.int64)
    extra_W = np.zeros(len(_WIDTHS), np.int64)
    if not count_jumps(numbers_U, _FAR_W, extra_W):
        raise ValueError("rows must ascend")
    counts = [len(numbers_U) + extra for extra in extra_W.tolist()]
    sizes = [np.dtype(width).itemsize * count for width, count in zip(_WIDTHS, counts, strict=True)]
    best = sizes.index(min(sizes))
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
    if codes.dtype not in _WIDTHS or codes.ndim != 1:
        raise CheckpointError("rows", "must be unsigned integers", shown=str(codes.dtype))
    here = codes != _far(codes.dtype.type)
    return torch.from_numpy((np.cumsum(codes.astype(np.int64) + here) - 1)[here])


def _far(width: type) -> int:
    return int(np.iinfo(width).max)


def _encode_values(values: torch.Tensor, precision: Precision) -> Tensors:
    """Values of U rows; `exact` (E,) says which of them are in `in_full`, with 32 bits."""
    flat = values.flatten(1).numpy()
    largest_U = np.abs(flat).max(1, initial=0.0)
    exact_U = ~(largest_U <= _EXACT_BEYOND)  # what is not finite, too
    parts = {
        "exact": torch.from_numpy(np.flatnonzero(exact_U).astype(np.int32)),
        "in_full": values[exact_U],
    }
    small = np.where(exact_U[:, None], np.float32(0), flat)
    if precision == "float16":
        return parts | {"values": torch.from_numpy(small.astype(np.float16)).view(values.shape)}
    scales_U = _scale_codes(np.where(exact_U, 0.0, largest_U))
    codes = np.rint(small / _scales(scales_U)[:, None] * np.float32(_LEVELS)).astype(np.int8)
    return parts | {
        "scales": torch.from_numpy(scales_U),
        "values": torch.from_numpy(codes).view(values.shape),
    }


def _decode_values(parts: Tensors) -> torch.Tensor:
    codes, scales = parts.get("values"), parts.get("scales")
    exact, in_full = parts.get("exact"), parts.get("in_full")
    if (
        codes is None
        or exact is None
        or in_full is None
        or in_full.shape != (len(exact), *codes.shape[1:])
    ):
        raise CheckpointError("values", "must be whole, with those kept in full")
    values = codes.numpy().astype(np.float32)
    if codes.dtype == torch.int8:
        if scales is None or scales.dtype != torch.int8 or scales.shape != (len(codes),):
            raise CheckpointError("scales", "must be one for each row of 8-bit values")
        values *= (_scales(scales.numpy()) / np.float32(_LEVELS)).reshape(
            -1, *[1] * (values.ndim - 1)
        )
    elif codes.dtype != torch.float16:
        raise CheckpointError("values", "must be of 8 or 16 bits", shown=str(codes.dtype))
    places = exact.numpy()
    if exact.dtype != torch.int32 or (
        len(places) and not 0 <= places.min() <= places.max() < len(values)
    ):
        raise CheckpointError("exact", "must be among the rows")
    values[places] = in_full.numpy()
    return torch.from_numpy(values)


def _scale_codes(largest_U: np.ndarray) -> np.ndarray:
    """int8 c: the least 2^(c/4) that is not below `largest_U`; -128 for nothing."""
    fraction_U, exponent_U = np.frexp(largest_U.astype(np.float64))
    codes_U = 4 * exponent_U.astype(np.int64) - 3 + np.searchsorted(_QUARTERS[1:] / 2, fraction_U)
    codes: np.ndarray = np.where(largest_U > 0, np.clip(codes_U, -128, 127), -128).astype(np.int8)
    return codes


def _scales(codes_U: np.ndarray) -> np.ndarray:
    """float32 2^(c/4)."""
    codes_U = codes_U.astype(np.int32)
    scales: np.ndarray = np.ldexp(_QUARTERS[codes_U % 4], codes_U // 4).astype(np.float32)
    return scales
