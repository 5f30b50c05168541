"""Facts of a column by its values, whatever type these have.

In: the values of one column of a `Sample`. Out: `Facts`, which are equal whether a number, a
boolean or a time was written as text or not.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.features.values import (
    MISSING,
    SWAPPED_MARKS,
    UNITS_PER_S,
    parse_number,
    parse_times,
)
from niwaki.pruning.errors import shorten
from niwaki.stream.recordings.samples import Unread

_WORDS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
"""Pairs of words for 1 and 0."""
_WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
_DIGITS = re.compile(r"-?\d+(\.\d+)?")
_LEADING_ZERO = re.compile(r"0\d+")
_DECORATION = frozenset(",$€£¥₹%")
_NUMBERS_SHARE = 0.9
"""Share of a column's values that are numbers in text, from which on it is a column of numbers."""
_TIMES_SHARE = 0.99
_TRIED_VALUES = 16
_TIME_FORMATS = (
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%m/%d/%Y",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d/%m/%Y",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d-%m-%Y %H:%M:%S",
    "%d/%b/%Y:%H:%M:%S",
    "%d-%b-%Y %H:%M:%S",
    "%Y%m%dT%H%M%S",
)
_DIGIT_FORMATS = {14: ("%Y%m%d%H%M%S",), 12: ("%Y%m%d%H%M",), 8: ("%Y%m%d", "%y%m%d%H")}
"""Formats of times that are digits only, by their number, the usual one first."""
_EARLIEST_S, _LATEST_S = 631_152_000.0, 4_102_444_800.0  # of 1990 and of 2100
_EXAMPLES = 3
_SHOWN_CHARACTERS = 40


class TimeForm(NamedTuple):
    """The form in which a column writes times."""

    form: str
    """As in `Schema.timestamp_format`."""
    times_s_B: np.ndarray
    """float64, seconds since the epoch; NaN where there is none."""


class Facts:
    """Facts about the values of a column."""

    def __init__(self, name: str, values: Sequence[Any]):
        self.name = name
        self.unread = next(filter(None, map(_unread, values)), None)
        """The first value that is no plain one, such as a list."""
        self.values = values
        self.texts = _texts(values) if self.unread is None else [None] * len(values)
        """Each value as text that does not depend on its type; None for a missing one."""
        self.counts = Counter(text for text in self.texts if text is not None)
        """Number of rows by text, in the order of the first ones; missing ones are left out."""

    @cached_property
    def solid(self) -> Counter[str]:
        """The texts that are no words for "missing"."""
        return Counter({t: n for t, n in self.counts.items() if t.strip().lower() not in MISSING})

    @cached_property
    def total(self) -> int:
        """Number of rows whose value is no word for "missing"."""
        return sum(self.solid.values())

    @property
    def known(self) -> int:
        """Number of rows with a value: of names, "NA" is one."""
        if self.unread is not None:
            return sum(value is not None for value in self.values)
        return sum(self._present.values())

    @property
    def missing(self) -> int:
        """Number of rows without a value."""
        return len(self.texts) - self.known

    @property
    def distinct(self) -> int:
        """Number of different values; 0 where they are not read."""
        return len(self._present)

    @property
    def _present(self) -> Counter[str]:
        return self.counts if self.kind == "strings" else self.solid

    @property
    def examples(self) -> list[str]:
        """Up to three different values, the first ones."""
        if self.unread is not None:
            known = [value for value in self.values[:1000] if value is not None]
            shown = [unread.text if (unread := _unread(one)) else str(one) for one in known]
            different = list(dict.fromkeys(text for text in shown if text))
        else:
            different = [text for text, _ in zip(self.counts, range(_EXAMPLES), strict=False)]
        return [text[:_SHOWN_CHARACTERS] for text in different[:_EXAMPLES]]

    @cached_property
    def kind(self) -> str:
        """The kind of most values, in plain words."""
        if self.unread is not None:
            return self.unread.kind
        if not self.solid:
            return "strings" if self.counts else "always missing"
        if self.booleans:
            return "booleans"
        if self.whole == self.total:
            return "integers"
        if self.time and self.time.form not in UNITS_PER_S:
            return "times"
        enough = sum(self.numbers.values()) >= _NUMBERS_SHARE * self.total
        return "numbers" if enough else "strings"

    @cached_property
    def booleans(self) -> bool:
        """True if all values are words for true and false: both "y" and "n", and not one of them
        alone, which may be a name."""
        words = {text.strip().lower() for text in self.solid}
        return bool(words) and (words <= _WORDS[0] or words in _WORDS)

    @cached_property
    def decimal(self) -> str:
        """The mark before the decimals of text: "," where that makes numbers of more values."""
        commas = {text: count for text, count in self.solid.items() if "," in text}
        comma = sum(n for t, n in commas.items() if _number(t, ",") is not None)
        point = sum(n for t, n in commas.items() if _number(t, ".") is not None)
        return "," if comma > point else "."

    @cached_property
    def decimals(self) -> frozenset[str]:
        """The marks before decimals that stand in text."""
        if not any(isinstance(value, str) for value in self.values):
            return frozenset()
        mark = self.decimal
        return frozenset(mark if any(mark in text for text in self._read) else "")

    @cached_property
    def _read(self) -> dict[str, float]:
        """The numbers in text; of a column of nothing but words like "yes", none."""
        read = {}
        for text in self.solid:
            number = float(text) if _DIGITS.fullmatch(text) else _number(text, self.decimal)
            if number is not None:
                read[text] = number
        if not self.booleans and not any(any(map(str.isdigit, text)) for text in read):
            return {}
        return read

    @cached_property
    def numbers(self) -> Counter[float]:
        """Number of rows by number, of those values that are numbers."""
        found: Counter[float] = Counter()
        for text, number in self._read.items():
            found[number] += self.solid[text]
        return found

    @cached_property
    def numbers_B(self) -> np.ndarray:
        """float64, the number of each row; NaN where there is none."""
        read = self._read
        return np.array([read.get(text, math.nan) if text else math.nan for text in self.texts])

    @cached_property
    def odd(self) -> tuple[int, str]:
        """Number of values that are no numbers, and the first."""
        odd = {text: count for text, count in self.solid.items() if text not in self._read}
        return sum(odd.values()), next(iter(odd), "")

    @cached_property
    def whole(self) -> int:
        """Number of values that are whole numbers."""
        return sum(n for t, n in self.solid.items() if _WHOLE.fullmatch(t.strip()))

    @cached_property
    def leading_zeros(self) -> bool:
        """True if whole numbers are written with zeros in front."""
        return any(_LEADING_ZERO.fullmatch(text.strip()) for text in self.counts)

    @cached_property
    def decorated(self) -> str:
        """The first number with commas between thousands, a currency or a per cent sign; empty if
        there is none."""
        return next((t for t in self._read if not _DECORATION.isdisjoint(t)), "")

    @cached_property
    def different(self) -> bool:
        """True if no row lacks a value, and no value comes twice."""
        return self.distinct == len(self.texts) > 1

    @cached_property
    def increasing(self) -> bool:
        """True if the values are whole numbers, each greater than the one before it."""
        if self.whole != len(self.texts) or len(self.texts) < 2:
            return False
        return bool((np.diff(self.numbers_B) > 0).all())

    @cached_property
    def time(self) -> TimeForm | None:
        """The form of times, if (nearly) all values are times between 1990 and 2100."""
        if self.unread is not None or not self.solid:
            return None
        if sum(self.numbers.values()) >= _TIMES_SHARE * self.total and self.decimal == ".":
            for unit, per_s in UNITS_PER_S.items():
                if found := self._plausible(unit, self.numbers_B / per_s):
                    return found
            return self._digit_times()
        forms = ("iso", *_TIME_FORMATS)
        found_forms = [found for form in forms if (found := self._text_times(form))]
        return min(found_forms, key=lambda one: backwards(one.times_s_B), default=None)

    def _digit_times(self) -> TimeForm | None:
        if any(isinstance(value, float) for value in self.values):
            return None
        forms = _DIGIT_FORMATS.get(len(next(iter(self.solid)).strip()), ())
        if "hour" in self.name.lower():
            forms = forms[::-1]
        return next((found for form in forms if (found := self._text_times(form))), None)

    def _text_times(self, form: str) -> TimeForm | None:
        """The times of all rows in one form of text, if they are times of that form."""
        texts = list(self.solid)
        some_s = _parsed(texts[:_TRIED_VALUES], form)
        if np.isnan(some_s).sum() > len(some_s) / 2:
            return None
        by_text = dict(zip(self.solid, _parsed(texts, form).tolist(), strict=True))
        times_s = [by_text.get(text, math.nan) if text else math.nan for text in self.texts]
        return self._plausible(form, np.array(times_s))

    def _plausible(self, form: str, times_s_B: np.ndarray) -> TimeForm | None:
        with np.errstate(invalid="ignore"):
            good_B = (times_s_B >= _EARLIEST_S) & (times_s_B <= _LATEST_S)
        enough = np.count_nonzero(good_B) >= _TIMES_SHARE * self.total
        return TimeForm(form, times_s_B) if enough else None


def _unread(value: Any) -> Unread | None:
    """A value that is no plain one, with its kind; None for a plain one."""
    if isinstance(value, list | dict):
        kind = "maps" if isinstance(value, dict) else "lists"
        return Unread(kind, shorten(value, _SHOWN_CHARACTERS))
    return value if isinstance(value, Unread) else None


def backwards(times_s_B: np.ndarray) -> float:
    """Share of times that are earlier than the one before, 0..1."""
    known = times_s_B[~np.isnan(times_s_B)]
    return float(np.mean(np.diff(known) < 0)) if len(known) > 1 else 0.0


def as_text(value: Any) -> str | None:
    """A value as text that does not depend on its type; None for a missing one."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)


def _texts(values: Sequence[Any]) -> list[str | None]:
    """Each value as text. In a column of one type, each different value is written once."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {str}:
        return list(values)
    if len(kinds) > 1:
        return list(map(as_text, values))
    texts = {value: as_text(value) for value in set(values)}
    return [texts[value] for value in values]


def _number(text: str, decimal: str) -> float | None:
    return parse_number(text if decimal == "." else text.translate(SWAPPED_MARKS))


def _parsed(texts: Sequence[str], form: str) -> np.ndarray:
    """Texts as seconds since the epoch, NaN where they are no times of that form."""
    try:
        return parse_times(pa.array(texts, pa.string()), form)
    except UnicodeEncodeError:  # half of a surrogate pair
        clean = [text.encode(errors="replace").decode() for text in texts]
        return parse_times(pa.array(clean, pa.string()), form)
