"""Kernels that read single values of JSON from its bytes: names, numbers, literals.

Beneath `serving/bodies/json_scan.py`. In: the bytes of a body, with a zero byte after it, and a
place in them. Out: the value and the place after it; -1 for what is declined, be it wrong or only
rare: escapes in strings, very long numbers, exponents far from 0. A number that is read is the one
that a library reads, to the last bit (after Clinger, "How to read floating point numbers
accurately", PLDI 1990): where a product of two exact floats does not settle it in 32 bits, it is
declined.

Shapes: T bytes.
"""

import numpy as np

from niwaki.model.features.hashing import hash_text
from niwaki.model.jit import kernel

DECLINED = -1
_POWERS = 10.0 ** np.arange(41)
_EXACT_POWER = 22
_EXACT_MANTISSA = 2**53
_MAX_DIGITS = 18
_SMALLEST = 2.0**-126  # the smallest number of 32 bits that has all of its digits
_WITHIN = 2.0**-50  # relative error of a product of an inexact mantissa and power, and to spare
TEXT = "Array(uint8, 1, 'C', readonly=True)"


@kernel(f"int64({TEXT}, int64)")
def after_space(text_T: np.ndarray, at: int) -> int:
    while text_T[at] == 32 or text_T[at] == 10 or text_T[at] == 13 or text_T[at] == 9:
        at += 1
    return at


@kernel(f"int64({TEXT}, int64)")
def end_of_string(text_T: np.ndarray, at: int) -> int:
    """The place of the quote that ends the string which begins at `at`; -1 where there is an
    escape or none."""
    while text_T[at] != 34:
        if text_T[at] < 32 or text_T[at] == 92:
            return DECLINED
        at += 1
    return at


@kernel(f"int64({TEXT}, int64)")
def after_literal(text_T: np.ndarray, at: int) -> int:
    """The place after `true`, `false` or `null`; -1 where there is none of them."""
    first = text_T[at]
    if first == 116 and text_T[at + 1] == 114 and text_T[at + 2] == 117:
        return at + 4 if text_T[at + 3] == 101 else DECLINED
    if first == 110 and text_T[at + 1] == 117 and text_T[at + 2] == 108:
        return at + 4 if text_T[at + 3] == 108 else DECLINED
    if first == 102 and text_T[at + 1] == 97 and text_T[at + 2] == 108 and text_T[at + 3] == 115:
        return at + 5 if text_T[at + 4] == 101 else DECLINED
    return DECLINED


@kernel(f"int64({TEXT}, int64)")
def after_value(text_T: np.ndarray, at: int) -> int:
    """The place after a value of any kind, of which only brackets and strings are looked at; -1
    where it has no end."""
    depth = 0
    while True:
        byte = text_T[at]
        if byte == 0:
            return DECLINED
        if byte == 34:
            at += 1
            while text_T[at] != 34:
                if text_T[at] < 32:
                    return DECLINED
                at += 2 if text_T[at] == 92 and text_T[at + 1] >= 32 else 1
            if depth == 0:
                return at + 1
        elif byte == 91 or byte == 123:
            depth += 1
        elif byte == 93 or byte == 125:
            if depth == 0:
                return at
            depth -= 1
            if depth == 0:
                return at + 1
        elif depth == 0 and byte == 44:
            return at
        at += 1


@kernel(f"Tuple((int64, int64, int64, int64))({TEXT}, int64)")
def read_digits(text_T: np.ndarray, at: int) -> tuple[int, int, int, int]:
    """The place after a number, -1 where there is none that can be read; its digits as one integer,
    the power of ten to multiply them by, and the number of digits after the point or, for a number
    with an exponent, -1."""
    nothing = DECLINED, 0, 0, 0
    if text_T[at] == 45:
        at += 1
    first = at
    mantissa = 0
    while 48 <= text_T[at] <= 57 and at - first <= _MAX_DIGITS:
        mantissa = 10 * mantissa + text_T[at] - 48
        at += 1
    digits = at - first
    if digits == 0 or digits > _MAX_DIGITS or (text_T[first] == 48 and digits > 1):
        return nothing
    decimals = 0
    if text_T[at] == 46:
        at += 1
        first = at
        while 48 <= text_T[at] <= 57 and digits <= _MAX_DIGITS:
            mantissa = 10 * mantissa + text_T[at] - 48
            at += 1
            digits += mantissa != 0
        decimals = at - first
        if decimals == 0 or digits > _MAX_DIGITS:
            return nothing
    power = -decimals
    if text_T[at] == 101 or text_T[at] == 69:
        at += 1
        negative = text_T[at] == 45
        if negative or text_T[at] == 43:
            at += 1
        first = at
        exponent = 0
        while 48 <= text_T[at] <= 57 and at - first <= 3:
            exponent = 10 * exponent + text_T[at] - 48
            at += 1
        if at == first or at - first > 3:
            return nothing
        power += -exponent if negative else exponent
        decimals = -1
    return at, mantissa, power, decimals


@kernel(f"Tuple((int64, float64, boolean))({TEXT}, int64)")
def read_number(text_T: np.ndarray, at: int) -> tuple[int, float, bool]:
    """The place after a number, -1 where there is none that can be read; the number; and true where
    it is exact to the last of 64 bits. If it is not, it is right in 32 bits."""
    after, mantissa, power, _ = read_digits(text_T, at)
    if after < 0 or abs(power) >= len(_POWERS):
        return DECLINED, 0.0, False
    exact = mantissa <= _EXACT_MANTISSA and abs(power) <= _EXACT_POWER or power == 0
    number = np.float64(mantissa)
    if power < 0:
        number /= _POWERS[-power]
    elif power > 0:
        number *= _POWERS[power]
    if not exact and number != 0:
        low = np.float32(number * (1 - _WITHIN))
        if number < _SMALLEST or low != np.float32(number * (1 + _WITHIN)):
            return DECLINED, 0.0, False
    return after, -number if text_T[at] == 45 else number, exact


@kernel(f"Tuple((int64, uint64))({TEXT}, int64, uint64)")
def read_name(text_T: np.ndarray, at: int, seed: np.uint64) -> tuple[int, np.uint64]:
    """The place after a value of a categorical column, -1 where it can't be read, and its hash."""
    nothing = DECLINED, np.uint64(0)
    if text_T[at] == 34:
        end = end_of_string(text_T, at + 1)
        return (end + 1, hash_text(text_T, at + 1, end, seed)) if end >= 0 else nothing
    if text_T[at] == 110:
        return after_literal(text_T, at), np.uint64(0)
    if text_T[at] == 116 or text_T[at] == 102:
        end = after_literal(text_T, at)
        return (end, hash_text(text_T, at, end, seed)) if end >= 0 else nothing
    end, mantissa, _, decimals = read_digits(text_T, at)
    # An integer, or one as pandas writes it, which has the same hash: 4711.0.
    plain = decimals == 0 or (decimals == 1 and text_T[end - 1] == 48)
    if end < 0 or not plain or (decimals and mantissa > _EXACT_MANTISSA):
        return nothing
    if mantissa == 0 and text_T[at] == 45:  # -0 is 0
        return nothing
    return end, hash_text(text_T, at, end, seed)


@kernel(f"int64({TEXT}, int64, {TEXT}, int64, int64)")
def after_same(text_T: np.ndarray, at: int, names: np.ndarray, first: int, last: int) -> int:
    """The place of the quote after the name `names[first:last]` where it is at `at`, else -1."""
    for i in range(first, last):
        if names[i] != text_T[at]:
            return DECLINED
        at += 1
    return at if text_T[at] == 34 else DECLINED


@kernel(f"int64({TEXT}, int64, int64, {TEXT}, Array(int64, 1, 'C', readonly=True))")
def find_name(
    text_T: np.ndarray, start: int, stop: int, names: np.ndarray, offsets: np.ndarray
) -> int:
    """The name at `text_T[start:stop]` among `names`, -1 where it is none of them."""
    for x in range(len(offsets) - 1):
        if after_same(text_T, start, names, offsets[x], offsets[x + 1]) == stop:
            return x
    return DECLINED
