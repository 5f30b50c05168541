"""Kernels that read the usual JSON of a request from its bytes, without an object for each value.

In: a body, and the names of columns. Out: hashes and numbers, row by row, as the encoder makes them
of the same values. They read plain JSON only and decline everything else, be it wrong or only rare:
what `json_values.py` declines, nested objects, unknown or repeated columns, numbers as text. Then
`wire.py` decodes the body with a library, and says what is wrong.

Shapes: R rows, the first of which is the context; F fields, N numerics, S columns of which only the
place of each value is noted, X known columns, T bytes.
"""

from typing import NamedTuple

import numpy as np

from niwaki.model.features.values import BEYOND_32_BITS, LARGEST_TIME_S
from niwaki.model.jit import kernel
from niwaki.serving.bodies.json_values import (
    DECLINED,
    TEXT,
    after_literal,
    after_same,
    after_space,
    after_value,
    end_of_string,
    find_name,
    read_name,
    read_number,
)

CATEGORICAL, NUMERIC, TIME, NOTED, UNREAD = range(5)
"""Kinds of columns: hashed, a number, a number of units of time, noted only, not read."""
_PARTS = np.frombuffer(b"contexteventscandidates", np.uint8)
_PART_OFFSETS = np.array([0, 7, 13, 23])


class Names(NamedTuple):
    """The known columns, as the kernel reads them."""

    text: np.ndarray
    """uint8, all names in UTF-8, one after the other."""
    offsets: np.ndarray
    """int64 (X + 1,): name x is from `offsets[x]` to `offsets[x + 1]`."""
    kinds_X: np.ndarray
    """int64, `CATEGORICAL` and so on."""
    places_X: np.ndarray
    """int64, where each column is among those of its kind."""
    seeds_F: np.ndarray
    """uint64, seed of each categorical column."""
    units_per_s: float
    """Units of a second in the column of times."""


class Rows(NamedTuple):
    """The rows that the kernel writes."""

    hashes_RF: np.ndarray
    """uint64, of categorical columns, the first of all fields; 0 = missing."""
    numerics_RN: np.ndarray
    """float32, NaN = missing."""
    times_s_R: np.ndarray
    """float64, 0 = missing."""
    noted_RS2: np.ndarray
    """int64, where each value begins and ends in the body; -1 where there is none."""


_NAMES = f"{TEXT}, int64[::1], int64[::1], int64[::1], uint64[::1], float64"
_ROWS = "uint64[:,::1], float32[:,::1], float64[::1], int64[:,:,::1]"


@kernel(f"int64({TEXT}, int64, int64, {_NAMES}, {_ROWS}, int64[::1], boolean[::1])")
def _scan_object(
    text_T: np.ndarray,
    at: int,
    r: int,
    names: np.ndarray,
    offsets: np.ndarray,
    kinds_X: np.ndarray,
    places_X: np.ndarray,
    seeds_F: np.ndarray,
    units_per_s: float,
    hashes_RF: np.ndarray,
    numerics_RN: np.ndarray,
    times_s_R: np.ndarray,
    noted_RS2: np.ndarray,
    order_X: np.ndarray,
    given_X: np.ndarray,
) -> int:
    """Write the object at `at` to row `r`; returns the place after it, -1 where it is declined.
    `order_X`: columns in the order in which the object before had them; it is updated. `given_X`:
    set for each column that the object has."""
    hashes_RF[r, : len(seeds_F)] = 0
    numerics_RN[r] = np.nan
    times_s_R[r] = 0
    noted_RS2[r] = DECLINED
    if text_T[at] != 123:
        return DECLINED
    at = after_space(text_T, at + 1)
    if text_T[at] == 125:
        return at + 1
    member = 0
    while True:
        if text_T[at] != 34:
            return DECLINED
        if member >= len(order_X):
            return DECLINED
        x = order_X[member]
        end = after_same(text_T, at + 1, names, offsets[x], offsets[x + 1])
        if end < 0:  # another column than in the object before
            end = end_of_string(text_T, at + 1)
            x = find_name(text_T, at + 1, end, names, offsets)
            if end < 0 or x < 0:
                return DECLINED
            order_X[member] = x
        member += 1
        given_X[x] = True
        at = after_space(text_T, end + 1)
        if text_T[at] != 58:
            return DECLINED
        at = after_space(text_T, at + 1)
        kind = kinds_X[x]
        place = places_X[x]
        byte = text_T[at]
        if kind == CATEGORICAL:
            at, hashes_RF[r, place] = read_name(text_T, at, seeds_F[place])
        elif kind == NOTED:
            noted_RS2[r, place, 0] = at
            at = after_value(text_T, at)
            noted_RS2[r, place, 1] = at
        elif byte == 110 or (kind != TIME and (byte == 116 or byte == 102)):
            at = after_literal(text_T, at)
            if kind == NUMERIC:
                numerics_RN[r, place] = np.nan if byte == 110 else np.float32(byte == 116)
            elif kind == TIME:
                times_s_R[r] = 0
        elif kind == UNREAD and byte == 34:
            at = end_of_string(text_T, at + 1) + 1
            if at == 0:
                return DECLINED
        else:
            at, number, exact = read_number(text_T, at)
            if kind == NUMERIC:
                numerics_RN[r, place] = np.float32(number)
                if abs(number) >= BEYOND_32_BITS:
                    return DECLINED
            elif kind == TIME:
                times_s_R[r] = number / units_per_s
                if not exact or abs(times_s_R[r]) > LARGEST_TIME_S:
                    return DECLINED
        if at < 0:
            return DECLINED
        at = after_space(text_T, at)
        if text_T[at] == 125:
            return at + 1
        if text_T[at] != 44:
            return DECLINED
        at = after_space(text_T, at + 1)


@kernel(f"int64({TEXT}, {_NAMES}, {_ROWS})")
def scan(
    text_T: np.ndarray,
    names: np.ndarray,
    offsets: np.ndarray,
    kinds_X: np.ndarray,
    places_X: np.ndarray,
    seeds_F: np.ndarray,
    units_per_s: float,
    hashes_RF: np.ndarray,
    numerics_RN: np.ndarray,
    times_s_R: np.ndarray,
    noted_RS2: np.ndarray,
) -> int:
    """Write the events or candidates of a body to rows 1, 2 and so on, with what their context
    says, which is in row 0 also; returns their number, -1 where the body is declined. `text_T`:
    the body, valid UTF-8, and a zero byte after it. The next six arguments: `Names`, the last four:
    `Rows`, with room for one row more than there are opening braces."""
    order_X = np.arange(len(kinds_X))
    order_of_context_X = np.arange(len(kinds_X))
    given_X = np.zeros(len(kinds_X), np.bool_)
    shared_X = np.zeros(len(kinds_X), np.bool_)
    noted_RS2[0] = DECLINED
    context = events = False
    r = -1  # rows of the array; -1: it has not come yet
    at = after_space(text_T, 0)
    if text_T[at] != 123:
        return DECLINED
    at = after_space(text_T, at + 1)
    while True:
        end = end_of_string(text_T, at + 1) if text_T[at] == 34 else DECLINED
        if end < 0:
            return DECLINED
        part = find_name(text_T, at + 1, end, _PARTS, _PART_OFFSETS)
        at = after_space(text_T, end + 1)
        if text_T[at] != 58:
            return DECLINED
        at = after_space(text_T, at + 1)
        if part == 0 and not context:
            context = True
            at = _scan_object(
                text_T,
                at,
                0,
                names,
                offsets,
                kinds_X,
                places_X,
                seeds_F,
                units_per_s,
                hashes_RF,
                numerics_RN,
                times_s_R,
                noted_RS2,
                order_of_context_X,
                shared_X,
            )
        elif part > 0 and r < 0:
            events = part == 1
            r = 0
            if text_T[at] != 91:
                return DECLINED
            at = after_space(text_T, at + 1)
            while text_T[at] != 93:
                if r:
                    if text_T[at] != 44:
                        return DECLINED
                    at = after_space(text_T, at + 1)
                r += 1
                if r >= len(times_s_R):
                    return DECLINED
                at = _scan_object(
                    text_T,
                    at,
                    r,
                    names,
                    offsets,
                    kinds_X,
                    places_X,
                    seeds_F,
                    units_per_s,
                    hashes_RF,
                    numerics_RN,
                    times_s_R,
                    noted_RS2,
                    order_X,
                    given_X,
                )
                if at < 0:
                    return DECLINED
                at = after_space(text_T, at)
            at += 1
        else:
            return DECLINED
        if at < 0:
            return DECLINED
        at = after_space(text_T, at)
        if text_T[at] == 125:
            break
        if text_T[at] != 44:
            return DECLINED
        at = after_space(text_T, at + 1)
    if after_space(text_T, at + 1) != len(text_T) - 1 or r < 0 or (events and context):
        return DECLINED
    for x in range(len(kinds_X)):
        if not shared_X[x]:
            continue
        if given_X[x]:
            return DECLINED
        place = places_X[x]
        if kinds_X[x] == CATEGORICAL:
            hashes_RF[1 : r + 1, place] = hashes_RF[0, place]
        elif kinds_X[x] == NUMERIC:
            numerics_RN[1 : r + 1, place] = numerics_RN[0, place]
        elif kinds_X[x] == TIME:
            times_s_R[1 : r + 1] = times_s_R[0]
    return r
