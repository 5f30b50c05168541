"""Rows of a table in little memory: only those that are there, in the codes of a checkpoint.

In: rows and values of checkpoints. Out: the values of the rows that a prediction reads, decoded to
the same bits as by `niwaki.model.published.table_codes`. Values are hashed all over a large table,
so a plain one has nearly all of its pages in memory, however few of its rows are there. Here a bit
of each row says whether it is there, and the number of bits before it is its slot (rank in a
bitmap: Jacobson, FOCS 1989). An object is never changed: a delta makes another one, so that one set
of rows is enough for any number of readers.

Shapes: L lines of a bitmap, R rows of a table, U rows that are there, V rows of a change, W wide
ones, E in full, X values of a row, Y bytes of a slot, K time scales.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.jit import inlined, kernel, types
from niwaki.model.published.table_codes import (
    LITTLE,
    NOTHING,
    Precision,
    code_rows,
    little_mean,
    little_precision,
    much,
    pack_rows,
    packed_bytes,
    write_scales,
)
from niwaki.model.rows import AHEAD_ROWS, lazy_zeros

_WORDS = 7
_LINE_ROWS = 64 * _WORDS
_IN_FULL = 127
_PLACE_BYTES = 4
"""Bytes of the place of a row in full; one less where rows have halves."""
_ONE, _TWO, _FOUR = np.uint64(1), np.uint64(2), np.uint64(4)
_PAIRS, _NIBBLES = np.uint64(0x5555555555555555), np.uint64(0x3333333333333333)
_BYTES, _SUMS = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x0101010101010101)
_TOP = np.uint64(56)
_BASE, _COUNT, _COUNTED = np.uint64(32), np.uint64(10), np.uint64(1023)
_NO, _ALL = np.uint64(0), np.uint64(2**64 - 1)


class CompactRows(NamedTuple):
    """The rows of one table; all arrays are read only."""

    lines_L8: np.ndarray
    """uint64, a line of the cache for 448 rows of the table: the number of rows that are there
    before them, with those before the third, fifth and seventh word, then a bit for each."""
    codes_UY: np.ndarray
    """uint8, of each slot the code of its scale, then codes of its values, and perhaps some unused
    ones. The scale -128 stands for a row that is zero, 127 for one in full, whose place follows."""
    wide_L8: np.ndarray
    """uint64, a bitmap of slots that need more room, likewise."""
    wide_WY: np.ndarray
    """uint8, the codes of the second half of each wide slot's values."""
    in_full_EX: np.ndarray
    """float32."""
    halves: int
    """1: rows of the linear expert, of which those with little evidence have 4 bits; 0: none."""

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in self[:5])

    @classmethod
    def empty(cls, rows: int, width: int, linear: bool, precision: Precision) -> "CompactRows":
        """A table of `rows` rows of `width` values, none of which is there. `linear`: that of the
        linear expert."""
        halves = int(linear and precision == "int4")
        lines = -(-rows // _LINE_ROWS)
        room = width // 2 if halves else width
        return cls(
            _bitmap(lines),
            np.empty((0, 1 + max(room, _PLACE_BYTES - halves)), np.uint8),
            _bitmap(0),
            np.empty((0, room), np.uint8),
            np.empty((0, width), np.float32),
            halves,
        )

    def changed(
        self, rows_V: torch.Tensor, values: torch.Tensor, precision: Precision
    ) -> "CompactRows":
        """These rows after a change. `rows_V`: int64, ascending; `values`: (V, ...) float32, as
        they come out of a checkpoint of that precision. Raises `CheckpointError` where too many of
        them are in full."""
        change = self._coded(values.flatten(1).contiguous().numpy(), precision)
        most = [
            len(ours) + len(theirs) for ours, theirs in zip(self[1:5], change[1:5], strict=True)
        ]
        if most[3] >= 256 ** (_PLACE_BYTES - self.halves):
            raise CheckpointError("in_full", "must be fewer rows", most[3])
        codes_UY = np.empty((most[0], self.codes_UY.shape[1]), np.uint8)
        wide_L8 = _bitmap(-(-most[0] // _LINE_ROWS))
        wide_WY = np.empty((most[2], self.wide_WY.shape[1]), np.uint8)
        in_full_EX = np.empty((most[3], self.in_full_EX.shape[1]), np.float32)
        lines_L8 = _bitmap(len(self.lines_L8))
        merged = CompactRows(lines_L8, codes_UY, wide_L8, wide_WY, in_full_EX, self.halves)
        rows_V = rows_V.long().contiguous()
        slots, wide, full = merge_rows(self, change, rows_V.numpy(), merged)
        return merged._replace(
            codes_UY=_cut(codes_UY, slots),
            wide_L8=wide_L8[: -(-slots // _LINE_ROWS)],
            wide_WY=_cut(wide_WY, wide),
            in_full_EX=_cut(in_full_EX, full),
        )

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The numbers of all rows that are not zero, (U,), and their values, (U, X)."""
        words = self.lines_L8[:, 1:].copy().view(np.uint8)
        rows_U = np.flatnonzero(np.unpackbits(words, bitorder="little"))
        values_UX = self.gather(rows_U)
        there_U = values_UX.any(1)
        return torch.from_numpy(rows_U[there_U]), torch.from_numpy(values_UX[there_U])

    def gather(self, rows_V: np.ndarray) -> np.ndarray:
        """(V, X) float32: the values of rows."""
        width = self.in_full_EX.shape[1]
        values_VX = np.empty((len(rows_V), width), np.float32)
        gather_rows(self, np.ascontiguousarray(rows_V), values_VX)
        return values_VX

    def _coded(self, values_VX: np.ndarray, precision: Precision) -> "CompactRows":
        """The slots of a change, one for each row; its bitmaps are empty."""
        count, width = values_VX.shape
        scales_V, exact_V = np.empty(count, np.int8), np.empty(count, bool)
        write_scales(values_VX, scales_V, exact_V)
        if precision in ("float32", "float16"):
            exact_V[:] = True
        scales_V[exact_V] = NOTHING
        slots = np.zeros((count, self.codes_UY.shape[1]), np.uint8)
        wide_count: int | np.signedinteger = 0
        if self.halves:
            packed = np.empty(packed_bytes(scales_V, width), np.uint8)
            pack_rows(values_VX, scales_V, packed)
            wide_count = np.count_nonzero(scales_V > LITTLE)
        else:
            coded = np.empty(values_VX.shape, np.int8)
            code_rows(values_VX, scales_V, coded)
            packed = coded.view(np.uint8).reshape(-1)
        scales_V[exact_V] = _IN_FULL
        wide = np.empty((wide_count, self.wide_WY.shape[1]), np.uint8)
        write_slots(packed, scales_V, self.halves, slots, wide)
        none = _bitmap(0)
        return CompactRows(none, slots, none, wide, values_VX[exact_V], self.halves)


def last_of_each(
    changes: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and values of several changes, one after the other, as one: of each row the last."""
    if len(changes) == 1 and bool((changes[0][0].diff() > 0).all()):
        return changes[0]
    rows_X = torch.cat([rows.long() for rows, _ in changes]).numpy()
    values = torch.cat([values for _, values in changes])
    rows_U, places_U = np.unique(rows_X[::-1], return_index=True)
    return torch.from_numpy(rows_U), values[torch.from_numpy(len(rows_X) - 1 - places_U)]


def _bitmap(lines: int) -> np.ndarray:
    return lazy_zeros(lines, _WORDS + 1, dtype=np.uint64).numpy()


def _cut(array: np.ndarray, count: int) -> np.ndarray:
    """The first rows; a copy where many are left out, so that they take no memory."""
    return array[:count] if count > 0.9 * len(array) else array[:count].copy()


_U1, _U2, _W2 = types.uint8[::1], types.uint8[:, ::1], types.uint64[:, ::1]
_F2, _I1, _I2, _S1 = types.float32[:, ::1], types.int64[::1], types.int64[:, ::1], types.int8[::1]
COMPACT_ROWS = types.NamedTuple((_W2, _U2, _W2, _U2, _F2, types.int64), CompactRows)


@inlined
def _ones(word: np.uint64) -> np.int64:
    """Number of bits of a word that are 1; the compiler knows this form as one instruction."""
    word -= (word >> _ONE) & _PAIRS
    word = (word & _NIBBLES) + ((word >> _TWO) & _NIBBLES)
    return np.int64((((word + (word >> _FOUR)) & _BYTES) * _SUMS) >> _TOP)


@inlined
def _rank(lines_L8: np.ndarray, row: int | np.int64) -> np.int64:
    """The number of ones before that of `row`, or -1 where its bit is 0."""
    line = row // _LINE_ROWS
    place = row - line * _LINE_ROWS
    word, bit = place >> 6, _ONE << np.uint64(place & 63)
    counts = lines_L8[line, 0]
    pair = np.uint64(10 * (word >> 1))
    rank = np.int64(counts >> _BASE) + np.int64(((counts << _COUNT) >> pair) & _COUNTED)
    below = bit - _ONE
    rank += _ones(lines_L8[line, 1 + (word & 6)] & (_ALL if word & 1 else below))
    rank += _ones(lines_L8[line, 1 + word] & (below if word & 1 else _NO))
    return rank if lines_L8[line, 1 + word] & bit != _NO else np.int64(-1)


@inlined
def _count_line(lines_L8: np.ndarray, line: int, before: np.int64) -> np.int64:
    """Write the counts of a line, with `before` ones in all lines before it; returns the number
    with those of this one."""
    counts = np.uint64(before) << _BASE
    ones = np.int64(0)
    for w in range(_WORDS):
        if w and w % 2 == 0:
            counts |= np.uint64(ones) << np.uint64(10 * (w // 2 - 1))
        ones += _ones(lines_L8[line, 1 + w])
    lines_L8[line, 0] = counts
    return before + ones


@inlined
def _place_in_full(codes_UY: np.ndarray, slot: int | np.int64, halves: int) -> np.int64:
    place = np.int64(0)
    for y in range(_PLACE_BYTES - halves):
        place |= np.int64(codes_UY[slot, 1 + y]) << (8 * y)
    return place


@inlined
def _write_place(codes_UY: np.ndarray, slot: int, halves: int, place: int) -> None:
    for y in range(_PLACE_BYTES - halves):
        codes_UY[slot, 1 + y] = (place >> (8 * y)) & 255


@kernel(types.int64(COMPACT_ROWS, _I1, _F2))
def gather_rows(table: CompactRows, rows_V: np.ndarray, out_VX: np.ndarray) -> np.int64:
    """Write the values of rows; zeros for one that is not there. Lines of the bitmap, and
    then slots, are read some dozens ahead, so that the processor waits for many of them at
    once. The number returned has no meaning; without it the compiler would drop that."""
    # In a loop, to take an array out of a tuple costs more than to read it.
    lines_L8, codes_UY, wide_L8, wide_WY, in_full_EX, halves = table
    width = out_VX.shape[1]
    scales = width // 2
    slots_A = np.empty(AHEAD_ROWS, np.int64)
    nothing = np.int64(0)
    for start in range(0, len(rows_V), AHEAD_ROWS):
        count = min(AHEAD_ROWS, len(rows_V) - start)
        for a in range(count):
            nothing += np.int64(lines_L8[rows_V[start + a] // _LINE_ROWS, 0])
        for a in range(count):
            slot = _rank(lines_L8, rows_V[start + a])
            slots_A[a] = slot
            if slot >= 0:
                nothing += codes_UY[slot, 0]
        for a in range(count):
            v = start + a
            slot = slots_A[a]
            scale = NOTHING
            if slot >= 0:
                scale = int(np.int8(codes_UY[slot, 0]))
            if scale == NOTHING:
                for x in range(width):
                    out_VX[v, x] = 0
            elif scale == _IN_FULL:
                place = _place_in_full(codes_UY, slot, halves)
                for x in range(width):
                    out_VX[v, x] = in_full_EX[place, x]
            elif not halves:
                for x in range(width):
                    out_VX[v, x] = much(codes_UY[slot, 1 + x], scale)
            elif scale <= LITTLE:
                for k in range(scales):
                    code = codes_UY[slot, 1 + k]
                    out_VX[v, k] = little_mean(code, scale)
                    out_VX[v, scales + k] = little_precision(code, scale)
            else:
                wide = _rank(wide_L8, slot)
                for k in range(scales):
                    out_VX[v, k] = much(codes_UY[slot, 1 + k], scale)
                    out_VX[v, scales + k] = much(wide_WY[wide, k], scale)
    return nothing


@kernel(types.void(_U1, _S1, types.int64, _U2, _U2))
def write_slots(
    packed: np.ndarray, scales_V: np.ndarray, halves: int, codes_VY: np.ndarray, wide_WY: np.ndarray
) -> None:
    """Write the slots of rows from their codes, which lie one after the other."""
    at = wide = full = 0
    scales = wide_WY.shape[1]
    room = scales if halves else len(packed) // max(len(scales_V), 1)
    for v in range(len(scales_V)):
        scale = scales_V[v]
        codes_VY[v, 0] = np.uint8(scale)
        coded = not halves or (scale != _IN_FULL and scale != NOTHING)
        if coded:
            for y in range(room):
                codes_VY[v, 1 + y] = packed[at + y]
            at += room
        if scale == _IN_FULL:
            _write_place(codes_VY, v, halves, full)
            full += 1
        elif coded and halves and scale > LITTLE:
            for y in range(room):
                wide_WY[wide, y] = packed[at + y]
            at += room
            wide += 1


@inlined
def _needs_room(codes_UY: np.ndarray, slot: int, halves: int) -> int:
    scale = int(np.int8(codes_UY[slot, 0]))
    return int(halves > 0 and LITTLE < scale < _IN_FULL)


@kernel(types.UniTuple(types.int64, 3)(COMPACT_ROWS, COMPACT_ROWS, _I1, COMPACT_ROWS))
def merge_rows(
    old: CompactRows, change: CompactRows, rows_V: np.ndarray, to: CompactRows
) -> tuple[int, int, int]:
    """Write the rows of `old` and of a change, which replaces those that are in both, to `to`,
    whose bitmaps are zero; returns the numbers of slots, wide ones and rows in full."""
    lines_L8, codes_UY, _, wide_WY, in_full_EX, halves = old
    _, codes_VY, _, new_wide_WY, new_full_EX, _ = change
    to_lines_L8, to_codes_UY, to_wide_L8, to_wide_WY, to_full_EX, _ = to
    slots = codes_UY.shape[1]
    # Of the table, of the change, and of the result: how many slots and wide ones have been passed.
    at = wide = new_at = new_wide = to_at = to_wide = to_full = 0
    for line in range(len(to_lines_L8)):
        for w in range(_WORDS):
            before = lines_L8[line, 1 + w]
            first = line * _LINE_ROWS + 64 * w
            changed = np.uint64(0)
            ahead = new_at
            while ahead < len(rows_V) and rows_V[ahead] < first + 64:
                changed |= _ONE << np.uint64(rows_V[ahead] - first)
                ahead += 1
            left = before | changed
            to_lines_L8[line, 1 + w] = left
            while left:
                bit = left & (~left + _ONE)
                left ^= bit
                is_new = changed & bit != 0
                for y in range(slots):
                    code = codes_VY[new_at, y] if is_new else codes_UY[at, y]
                    to_codes_UY[to_at, y] = code
                if _needs_room(to_codes_UY, to_at, halves):
                    place = to_at % _LINE_ROWS
                    word = 1 + place // 64
                    to_wide_L8[to_at // _LINE_ROWS, word] |= _ONE << np.uint64(place % 64)
                    for y in range(to_wide_WY.shape[1]):
                        code = new_wide_WY[new_wide, y] if is_new else wide_WY[wide, y]
                        to_wide_WY[to_wide, y] = code
                    to_wide += 1
                elif np.int8(to_codes_UY[to_at, 0]) == _IN_FULL:
                    full = _place_in_full(to_codes_UY, to_at, halves)
                    for x in range(to_full_EX.shape[1]):
                        value = new_full_EX[full, x] if is_new else in_full_EX[full, x]
                        to_full_EX[to_full, x] = value
                    _write_place(to_codes_UY, to_at, halves, to_full)
                    to_full += 1
                if before & bit:
                    wide += _needs_room(codes_UY, at, halves)
                    at += 1
                if is_new:
                    new_wide += _needs_room(codes_VY, new_at, halves)
                    new_at += 1
                to_at += 1
    for lines in (to_lines_L8, to_wide_L8):
        ones = np.int64(0)
        for line in range(len(lines)):
            ones = _count_line(lines, line, ones)
    return to_at, to_wide, to_full
