"""Values of an event, read by the role of their column: labels, times, names and numbers.

In: a value as JSON, a text file, a request or River has it. Out: what the model reads, or a
`FeatureError` that names the column, the rule and the value. All ways into niwaki read values by
these rules: messages, recordings, requests. Whole Arrow columns are read in
`niwaki.stream.events.tables`, by the functions of this module wherever a column is not clean.
"""

import contextlib
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from niwaki.model.errors import FeatureError
from niwaki.model.features.schema import Schema

UNITS_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
"""Units of a second, by the `timestamp_format` that names the unit."""
LARGEST_TIME_S = 253_402_300_800.0
"""The beginning of the year 10000. A later time is one read in a wrong unit."""
WORDS = {
    **dict.fromkeys(("true", "t", "yes", "y"), 1.0),
    **dict.fromkeys(("false", "f", "no", "n"), 0.0),
}
"""Words for 1 and 0, in lower case."""
MISSING = frozenset(("", "-", "na", "n/a", "#n/a", "nan", "null", "none", "\\n"))
"""Words for a missing number, label or time, in lower case."""
NUMERIC_RULE = "must be finite in 32 bits"
BEYOND_32_BITS = 2.0**128 - 2.0**103
"""The least number of 64 bits that is infinite in 32."""
READ_AS_MISSING = "values are no numbers and were read as missing"


class Bounds(NamedTuple):
    """The numbers that a column must hold in every event, with the option of the schema that names
    the column."""

    option: str
    rule: str
    least: float
    most: float

    def hold(self, values_B: np.ndarray) -> np.ndarray:
        """True for each number that obeys the rule; False for NaN."""
        held_B: np.ndarray = (values_B >= self.least) & (values_B <= self.most)
        return held_B


WEIGHT = Bounds(
    "weight",
    "must be a number >= 0, finite in 32 bits; 1: the event counts once",
    0.0,
    math.nextafter(BEYOND_32_BITS, 0.0),
)
SAMPLING_RATIO = Bounds(
    "sampling_ratio",
    "must be a number in (0, 1]; 1: all such events were kept",
    2.0**-149,  # the smallest in 32 bits
    1.0,
)
_CURRENCY = "$€£¥₹"
_NUMBER = re.compile(
    rf"([+-]?)\s*[{_CURRENCY}]?\s*([+-]?)((?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d*)?|\.\d+)"
    rf"((?:[eE][+-]?\d+)?)\s*[%{_CURRENCY}]?"
)
_INFINITE = re.compile(r"([+-]?)inf(inity)?", re.IGNORECASE)
_ISO = (
    r"^\s*(?P<date>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<minute>\d{2}:\d{2})(?P<second>:\d{2})?(?:[.,](?P<fraction>\d+))?)?"
    r"\s*(?:Z|z|UTC|GMT|(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?)?\s*$"
)


class Odd(NamedTuple):
    """Values of a column that were read otherwise than they are written."""

    field: str
    events: int
    value: str
    """The first one, as it is shown."""
    done: str = READ_AS_MISSING
    """The way that they were read, in words that follow on a number."""


def label_rule(schema: Schema) -> str:
    """The rule that a label must obey."""
    if schema.label_positive:
        return "must be a string, a number or a boolean"
    if schema.label_threshold is not None:
        return "must be a number"
    return "must be a number in [0, 1]"


def read_label(value: Any, schema: Schema) -> float:
    """The label, 0..1; NaN for a missing one that the schema rejects."""
    if missing(value):
        return 0.0 if schema.missing_label == "negative" else math.nan
    if schema.label_positive:
        if isinstance(value, dict | list):
            raise FeatureError(schema.label, label_rule(schema), value)
        return float(as_name(value, schema.label) in schema.label_positive)
    number = _label_number(value)
    if number is not None and schema.label_threshold is not None:
        return float(number >= schema.label_threshold)
    if number is None or not 0 <= number <= 1:
        raise FeatureError(schema.label, label_rule(schema), value)
    return number


def _label_number(value: Any) -> float | None:
    if isinstance(value, str):
        return parse_number(value)
    if isinstance(value, bool | int | float | Decimal | np.bool_):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return None


def missing(value: Any) -> bool:
    """True for null, NaN and words that stand for them."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def time_rule(schema: Schema) -> str:
    """The rule that an event time must obey."""
    unit = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
    shape = schema.timestamp_format
    if shape in unit:
        return f"must be a number of {unit[shape]} since the epoch, before the year 10000"
    return "must be a time in ISO 8601" if shape == "iso" else f"must be a time like {shape}"


def read_time(value: Any, schema: Schema) -> float:
    """The event time in seconds since the epoch; NaN for a missing one."""
    if missing(value):
        return math.nan
    shape = schema.timestamp_format
    time_s = math.nan
    if shape in UNITS_PER_S:
        number: Any = parse_number(value) if isinstance(value, str) else value
        if isinstance(number, int | float | Decimal) and not isinstance(number, bool):
            time_s = float(number) / UNITS_PER_S[shape] if -1e30 < number < 1e30 else math.inf
    elif isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        time_s = float(parse_times(pa.array([str(value)]), shape)[0])
    if not abs(time_s) <= LARGEST_TIME_S:
        raise FeatureError(schema.timestamp or "", time_rule(schema), value)
    return time_s


def parse_times(text_B: pa.Array | pa.ChunkedArray, shape: str) -> np.ndarray:
    """Text as seconds since the epoch, float64 (B,); NaN where it is no such time.

    `shape`: "iso", or a format of strptime. A time without a zone is one of UTC.
    """
    if isinstance(text_B, pa.ChunkedArray):
        text_B = text_B.combine_chunks()
    if shape != "iso":
        times = pc.strptime(pc.utf8_trim_whitespace(text_B), shape, "s", error_is_null=True)
        return _seconds(times)
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return _seconds(text_B.cast(kind))
        except pa.ArrowInvalid:
            continue
    parts = pc.extract_regex(text_B, _ISO)
    part = {name: pc.struct_field(parts, name) for name in parts.type.names} if len(parts) else {}
    if not part:
        return np.empty(0)
    minute = pc.if_else(pc.equal(part["minute"], ""), "00:00", part["minute"])
    second = pc.if_else(pc.equal(part["second"], ""), ":00", part["second"])
    moments = pc.binary_join_element_wise(
        part["date"], pc.binary_join_element_wise(minute, second, ""), " "
    )
    times = pc.strptime(moments, "%Y-%m-%d %H:%M:%S", "s", error_is_null=True)
    fraction = _digits(pc.binary_join_element_wise("0.", part["fraction"], ""))
    zone_s = 3600 * _digits(part["hours"]) + 60 * _digits(part["minutes"])
    east = np.where(np.array(pc.equal(part["sign"], "-").fill_null(False)), -1.0, 1.0)
    times_s_B: np.ndarray = _seconds(times) + fraction - east * zone_s
    return times_s_B


def _seconds(times: pa.Array) -> np.ndarray:
    """Arrow's timestamps as seconds since the epoch, NaN where null."""
    units = UNITS_PER_S[times.type.unit]
    values: np.ndarray = times.cast(pa.int64()).cast(pa.float64(), safe=False).to_numpy(False)
    return values / units


def _digits(text: pa.Array) -> np.ndarray:
    """Digits as numbers; 0 where there are none."""
    filled = pc.if_else(pc.equal(text, ""), "0", text)
    values: np.ndarray = filled.cast(pa.float64()).fill_null(0).to_numpy(False)
    return values


def as_name(value: Any, column: str) -> str | None:
    """A value of a categorical column as the string that is hashed; None for a missing one.

    The number 4711.0 is "4711", since pandas writes integers so that may be missing; the encoder
    takes the string "4711.0" for it, too.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise FeatureError(column, "must be valid Unicode", value) from None
        return value
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    raise FeatureError(column, "must be a string or a number", value)


def clean_names(values: Sequence[Any]) -> pa.Array | None:
    """Values as `as_name` reads them, where all are strings or all are integers, or null; else
    None. Most columns are such."""
    kinds = set(map(type, values)) - {NoneType}
    try:
        if kinds <= {str}:
            return pa.array(values, pa.string())
        if kinds == {int}:
            return pa.array([None if value is None else str(value) for value in values])
    except UnicodeEncodeError:
        pass  # `as_name` finds the value and names it
    return None


SWAPPED_MARKS = str.maketrans(".,", ",.")
"""Numbers in text with a decimal comma, as those with a point."""


def as_number(value: Any, column: str, decimal: str = ".") -> float | None:
    """A value of a numeric column, finite in 32 bits; NaN for a missing one; None for text that is
    no number. `decimal`: the mark before the decimals in text."""
    if value is None:
        return math.nan
    number: Any
    if isinstance(value, str):
        number = parse_number(value if decimal == "." else value.translate(SWAPPED_MARKS))
    elif isinstance(value, bool | int | float | Decimal | np.bool_):
        number = value
    else:
        raise FeatureError(column, "must be a number", value)
    if number is None:
        return math.nan if missing(value) else None
    try:
        read = float(number)
    except OverflowError:
        read = math.inf
    if abs(read) >= BEYOND_32_BITS:
        raise FeatureError(column, NUMERIC_RULE, value)
    return read


def read_bounded(value: Any, column: str, bounds: Bounds, decimal: str = ".") -> float:
    """A value of a column that must be there, a number within bounds."""
    number: float | None = math.nan
    with contextlib.suppress(FeatureError):  # no number, or an infinite one
        number = as_number(value, column, decimal)
    if number is None or not bounds.least <= number <= bounds.most:
        raise FeatureError(column, bounds.rule, value)
    return number


def parse_number(text: str) -> float | None:
    """A number in text: with spaces around it, commas between thousands, a sign of a currency, a
    per cent sign, or as one of `WORDS`; None for other text."""
    text = text.strip()
    found = _NUMBER.fullmatch(text)
    if found and not (found[1] and found[2]):
        sign = "-" if "-" in (found[1], found[2]) else ""
        return float(f"{sign}{found[3].replace(',', '')}{found[4]}")
    if infinite := _INFINITE.fullmatch(text):
        return -math.inf if infinite[1] == "-" else math.inf
    return WORDS.get(text.lower())
