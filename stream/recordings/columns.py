"""Facts of the columns of a sample of events, by their values, whatever type these have.

In: rows as their owners have them: text, JSON values, Arrow types. Out: `Sample`, a list of values
for each column, nested objects as paths; and `Facts` of a column, which are equal whether a number
was written as text or not.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.features.values import MISSING, SWAPPED_MARKS, WORDS, parse_number, parse_times
from niwaki.stream.events.decoder import ARROW_START
from niwaki.stream.files.pieces import Piece

_DEEPEST = 8
_WORDS_ONLY = frozenset(WORDS)
_WHOLE = re.compile(r"[+-]?\d+(\.0+)?")
_LEADING_ZERO = re.compile(r"0\d+")
_NUMBERS_SHARE = 0.9
"""Share of a column's values that are numbers in text, from which on it is a column of numbers."""
_TIMES_SHARE = 0.99
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
    "%Y%m%d%H%M%S",
    "%Y%m%d%H%M",
    "%y%m%d%H",
    "%Y%m%d",
)
_EARLIEST_S, _LATEST_S = 631_152_000.0, 4_102_444_800.0  # of 1990 and of 2100
_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


class TimeForm(NamedTuple):
    """The form in which a column writes times."""

    form: str
    """As in `Schema.timestamp_format`."""
    times_s_B: np.ndarray
    """float64, seconds since the epoch; NaN where there is none."""


class Sample:
    """Values of the first rows of a stream, by column."""

    def __init__(self, rows: int, columns: Mapping[str, list[Any]]):
        self.rows = rows
        self.columns = dict(columns)

    @classmethod
    def of_table(cls, table: pa.Table) -> "Sample":
        """The columns of a table; those of structs as paths."""
        columns = {}
        for at, name in enumerate(table.column_names):
            columns[name] = _plain_list(table.column(at))
        nested = any(pa.types.is_struct(field.type) for field in table.schema)
        if nested:
            rows = [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
            return cls.of_objects(rows)
        return cls(len(table), columns)

    @classmethod
    def of_objects(cls, objects: Sequence[Mapping[str, Any]]) -> "Sample":
        """The keys of JSON objects; those of objects in them as paths."""
        columns: dict[str, list[Any]] = {}
        for at, row in enumerate(objects):
            for name, value in _leaves(row):
                column = columns.setdefault(name, [])
                column += [None] * (at - len(column))
                column.append(value)
        for column in columns.values():
            column += [None] * (len(objects) - len(column))
        # An object that is null in some rows is no column beside those of its leaves.
        parents = {name.rsplit(".", 1)[0] for name in columns if "." in name}
        kept = {
            name: column
            for name, column in columns.items()
            if name not in parents or any(value is not None for value in column)
        }
        return cls(len(objects), kept)

    @classmethod
    def of_messages(cls, values: Iterable[bytes | None]) -> "Sample":
        """The columns of messages, JSON or Arrow; broken ones are left out."""
        objects: list[Mapping[str, Any]] = []
        for value in values:
            if value is not None and value.startswith(ARROW_START):
                objects += _arrow_rows(value)
            elif value is not None and (row := _parsed(value)) is not None:
                objects.append(row)
        return cls.of_objects(objects)

    @classmethod
    def of_pieces(cls, pieces: Iterable[Piece]) -> "Sample":
        """The columns of pieces of files."""
        found = list(pieces)
        tables = [piece.rows for piece in found if not isinstance(piece.rows, list)]
        messages = [
            value for piece in found if isinstance(piece.rows, list) for value in piece.rows
        ]
        if messages or not tables:
            return cls.of_messages(messages)
        return cls.of_table(pa.concat_tables(tables, promote_options="permissive"))

    def within(self, path: str) -> "Sample":
        """The columns beneath a path, under their names there."""
        start = f"{path}."
        return Sample(
            self.rows,
            {name[len(start) :]: c for name, c in self.columns.items() if name.startswith(start)},
        )


def _plain_list(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column as Python has them; times of nanoseconds as times of microseconds."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    if pa.types.is_floating(column.type) and pa.types.is_float32(column.type):
        column = column.cast(pa.string()).cast(pa.float64())  # as it would be written
    values: list[Any] = column.to_pylist()
    return values


def _leaves(row: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict) and value and depth < _DEEPEST:
            yield from _leaves(value, f"{path}{name}.", depth + 1)
        else:
            yield f"{path}{name}", value


def _parsed(value: bytes) -> dict[str, Any] | None:
    for read in (msgspec.json.decode, lambda text: json.loads(text.decode("utf-8-sig"))):
        try:
            row = read(value)
        except (ValueError, RecursionError):
            continue
        return row if isinstance(row, dict) else None
    return None


def _arrow_rows(value: bytes) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pa.ipc.open_stream(value).read_all().to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        return []
    return rows


class Facts:
    """What the values of a column are."""

    def __init__(self, name: str, values: Sequence[Any]):
        self.name = name
        self.values = values
        self.lists = any(isinstance(value, list) for value in values)
        self.objects = any(isinstance(value, dict) for value in values)
        self.counts: Counter[str] = Counter()
        """Number of rows by value, as text; missing ones are left out."""
        self._typed_times = 0
        if not (self.lists or self.objects):
            for value in values:
                text = as_text(value)
                if text is not None:
                    self.counts[text] += 1
                    self._typed_times += isinstance(value, datetime | date)
        self.known = sum(self.counts.values())
        self.missing = (
            len(values) - self.known
            if not (self.lists or self.objects)
            else sum(value is None for value in values)
        )

    @cached_property
    def distinct(self) -> int:
        """Number of different values."""
        if self.lists or self.objects:
            return len({repr(value) for value in self.values if value is not None})
        return len(self.counts)

    @cached_property
    def examples(self) -> list[str]:
        """Up to three different values, the first ones."""
        if self.lists or self.objects:
            known = (str(value) for value in self.values if value is not None)
            return [text[:40] for text, _ in zip(dict.fromkeys(known), range(3), strict=False)]
        return [text[:40] for text, _ in zip(self.counts, range(3), strict=False)]

    @cached_property
    def _solid(self) -> Counter[str]:
        """The values that are no words for "missing"."""
        return Counter({t: n for t, n in self.counts.items() if t.strip().lower() not in MISSING})

    @cached_property
    def decimal(self) -> str:
        """The mark before decimals: "," where that makes numbers of more values."""
        comma = sum(n for t, n in self._solid.items() if "," in t and _number(t, ",") is not None)
        point = sum(n for t, n in self._solid.items() if "," in t and _number(t, ".") is not None)
        return "," if comma > point else "."

    @cached_property
    def numbers(self) -> Counter[float]:
        """Number of rows by number, of those values that are numbers."""
        found: Counter[float] = Counter()
        for text, count in self._solid.items():
            number = _number(text, self.decimal)
            if number is not None:
                found[number] += count
        return found

    @cached_property
    def odd(self) -> tuple[int, str]:
        """Number of values that are no numbers, and the first."""
        odd = {t: n for t, n in self._solid.items() if _number(t, self.decimal) is None}
        return sum(odd.values()), next(iter(odd), "")

    @cached_property
    def kind(self) -> str:
        """The kind of most values, in plain words."""
        if self.lists:
            return "lists"
        if self.objects:
            return "objects"
        solid = self._solid
        if not solid:
            return "strings" if self.counts else "always missing"
        if self.booleans:
            return "booleans"
        total = sum(solid.values())
        if self.whole == total:
            return "integers"
        if self._typed_times == self.known or (
            self.time and self.time.form in ("iso", *_TIME_FORMATS)
        ):
            return "times"
        return "numbers" if sum(self.numbers.values()) >= _NUMBERS_SHARE * total else "strings"

    @cached_property
    def booleans(self) -> bool:
        """True if all values are words for true and false."""
        words = {text.strip().lower() for text in self._solid}
        return bool(words) and words <= _WORDS_ONLY

    @cached_property
    def whole(self) -> int:
        """Number of values that are whole numbers."""
        return sum(n for t, n in self._solid.items() if _WHOLE.fullmatch(t.strip()))

    @cached_property
    def leading_zeros(self) -> bool:
        """True if whole numbers are written with zeros in front."""
        return any(_LEADING_ZERO.fullmatch(text) for text in self.counts)

    @cached_property
    def decorated(self) -> bool:
        """True if numbers have commas, currencies or per cent signs."""
        return any(_number(t, ".") is not None and set(t) & set(",$€£¥₹%") for t in self._solid)

    @cached_property
    def increasing(self) -> bool:
        """True if the values are whole numbers, each greater than the one before it."""
        if self.whole != len(self.values) or len(self.values) < 2:
            return False
        numbers = np.array([float(as_text(value) or "nan") for value in self.values])
        return bool((np.diff(numbers) > 0).all())

    @cached_property
    def time(self) -> TimeForm | None:
        """The form of times, if (nearly) all values are times between 1990 and 2100."""
        if self.lists or self.objects or not self._solid:
            return None
        texts = [as_text(value) for value in self.values]
        if self._typed_times == self.known:
            return _plausible("iso", parse_times(pa.array(texts, pa.string()), "iso"), self.known)
        total = sum(self._solid.values())
        if sum(self.numbers.values()) == total:
            numbers = [_number(text, ".") if text else None for text in texts]
            values = np.array([math.nan if number is None else number for number in numbers])
            for unit, per_s in _UNITS.items():
                if found := _plausible(unit, values / per_s, total):
                    return found
            if self.whole != total:
                return None
            texts = [None if text is None else str(text).removesuffix(".0") for text in texts]
        elif found := _plausible("iso", parse_times(pa.array(texts, pa.string()), "iso"), total):
            return found
        return self._strptime(texts, total)

    def _strptime(self, texts: list[str | None], total: int) -> TimeForm | None:
        """The format of strptime that reads all values, and of several the one by which time goes
        backwards least often."""
        first = next(text for text in texts if text)
        found = []
        for form in _TIME_FORMATS:
            digits = len(datetime(2010, 10, 10, 10, 10, 10).strftime(form))
            if first.isdecimal() != form.replace("%", "").isalpha() and first.isdecimal():
                continue
            if first.isdecimal() and digits != len(first):
                continue
            if times := _plausible(form, parse_times(pa.array(texts, pa.string()), form), total):
                found.append(times)
        return min(found, key=lambda one: backwards(one.times_s_B), default=None)


def backwards(times_s_B: np.ndarray) -> float:
    """Share of times that are earlier than the one before, 0..1."""
    known = times_s_B[~np.isnan(times_s_B)]
    return float(np.mean(np.diff(known) < 0)) if len(known) > 1 else 0.0


def _plausible(form: str, times_s_B: np.ndarray, known: int) -> TimeForm | None:
    with np.errstate(invalid="ignore"):
        good = (times_s_B >= _EARLIEST_S) & (times_s_B <= _LATEST_S)
    return TimeForm(form, times_s_B) if np.count_nonzero(good) >= _TIMES_SHARE * known else None


def _number(text: str, decimal: str) -> float | None:
    return parse_number(text if decimal == "." else text.translate(SWAPPED_MARKS))


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
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value.total_seconds())
    return str(value)
