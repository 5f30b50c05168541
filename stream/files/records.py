r"""Beneath `delimited`: where the records of delimited text begin and end.

In: whole lines. Out: `Records`, in up to three ways, of which the first that proves right is to be
taken: a parser must find as many records in them as they say.

1. Each line is a record.
2. A line end after an odd number of quotes is within a field. Every quote must begin or end a field
   or be doubled, and each record of several lines must have the right number of fields.
3. Line by line. A line with a quote open at its end is made longer until it is a sound record. If
   there is none within a megabyte, that one line is a reject, and the next line is read afresh.
   Lines with bytes that are no text are rejects, too.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.pruning.errors import shorten
from niwaki.stream.events.rejects import Reject
from niwaki.stream.files.dialect import Dialect
from niwaki.stream.files.text import LineEnds, encoding_rule, is_utf8

_LONGEST_RECORD_BYTES = 2**20  # of several lines
_LF, _CR, _QUOTE = b'\n\r"'


class Lines(NamedTuple):
    """Some whole lines of a file, the first of which begins a record."""

    data: bytes
    end: int
    """Size of the lines in `data`, with the end of the last one; what follows there is the
    beginning of another one."""
    first: int
    """The number of the first one in the file, from 1."""
    last: bool
    """True if nothing follows in the file."""


class Records(NamedTuple):
    """Records to be parsed."""

    text: pa.Buffer
    lines_of: Callable[[int], np.ndarray | None]
    """The line at which each record begins, R int64 numbers, if a parser finds so many records in
    `text`; None if another number is right."""
    used: int
    """How many bytes of the lines these are: all but for an unfinished record at the end."""
    lines: int
    """Number of lines that end in these bytes."""
    rejects: list[Reject]
    """Rejects of lines that are left out."""
    sound_R: np.ndarray | None = None
    """bool, True for each record that must have the right number of fields."""


class Splitter:
    """Splits the lines of one file into records."""

    def __init__(self, dialect: Dialect, encoding: str):
        self._quoted, self._end = dialect.quoted, dialect.line_end[0]
        self._separator, self._encoding = dialect.separator.encode(), encoding
        self._grammar = _Grammar.of(self._separator, len(dialect.names))
        self._multiline = False  # whether the last lines had records of several lines

    def ways(self, lines: Lines) -> Iterator[Records]:
        """The ways to split `lines`, the fastest first and the one that is always right last."""
        utf8 = is_utf8(lines.data, lines.end)
        ends = LineEnds.of(lines.data, lines.end)
        if utf8:
            quotes = self._quoted and lines.data.find(b'"', 0, lines.end) >= 0
            if not (quotes and (self._multiline or self._ends_open(lines))):
                yield self._as_lines(lines, ends)
            if quotes and (found := self._by_quotes(lines, ends)):
                yield found
        yield self._line_by_line(lines, utf8)

    def _as_lines(self, lines: Lines, ends: LineEnds) -> Records:
        def lines_of(records: int) -> np.ndarray | None:
            if self._mixed(ends):
                return None
            if records == ends.lines:
                return np.arange(lines.first, lines.first + records)
            lines_R = np.flatnonzero(~self._empty(lines, self._starts(lines))) + lines.first
            return lines_R if len(lines_R) == records else None

        text = pa.py_buffer(lines.data).slice(0, lines.end)
        return Records(text, lines_of, lines.end, ends.lines, [])

    def _by_quotes(self, lines: Lines, ends: LineEnds) -> Records | None:
        if self._mixed(ends):
            return None
        bytes_B = np.frombuffer(lines.data, np.uint8, lines.end)
        quotes = np.flatnonzero(bytes_B == _QUOTE)
        borders = np.frombuffer(self._separator + b'\n\r"', np.uint8)
        before = bytes_B[np.maximum(quotes[::2] - 1, 0)]  # a quote itself at the very beginning
        after = bytes_B[np.minimum(quotes[1::2] + 1, lines.end - 1)]
        if not np.isin(before, borders).all() or not np.isin(after, borders).all():
            return None
        starts = np.append(self._starts(lines), lines.end)
        # A record ends with each line up to whose end the number of quotes is even.
        last = np.flatnonzero(np.searchsorted(quotes, starts[1:]) % 2 == 0)
        if not len(last):
            return None
        first = np.append(0, last[:-1] + 1)
        used, tall_R = int(starts[last[-1] + 1]), last > first
        sizes = np.append(starts[last + 1] - starts[first], lines.end - used)[
            np.append(tall_R, True)
        ]
        if sizes.max() > _LONGEST_RECORD_BYTES or (lines.last and used < lines.end):
            return None
        self._multiline = bool(tall_R.any())
        some_R = ~self._empty(lines, starts[first])
        text = pa.py_buffer(lines.data).slice(0, used)
        lines_of = _exactly(first[some_R] + lines.first)
        return Records(text, lines_of, used, int(last[-1]) + 1, [], tall_R[some_R])

    def _line_by_line(self, lines: Lines, utf8: bool) -> Records:
        self._multiline = False
        texts = lines.data[: lines.end].splitlines(keepends=True)
        starts = list(accumulate(map(len, texts), initial=0))
        kept: list[bytes] = []
        lines_R: list[int] = []
        rejects: list[Reject] = []
        at, used = 0, lines.end
        while at < len(texts):
            text, stop, number = texts[at], at + 1, lines.first + at
            line = text.rstrip(b"\r\n")
            if self._quoted and b'"' in line and not self._grammar.whole.fullmatch(line):
                found = self._record_end(lines, texts, starts, at)
                if found is None:
                    used = starts[at]
                    break
                if found == at:
                    rule = "has a quote that is not closed"
                    rejects.append(row_reject(number, "row", rule, line))
                    text = b""
                else:
                    text, stop = lines.data[starts[at] : starts[found]], found
            if not utf8 and (rule := encoding_rule(text, self._encoding)):
                rejects.append(row_reject(number, "encoding", rule, text))
            elif text and line:
                kept.append(text)
                lines_R.append(number)
            at = stop
        numbers_R = np.array(lines_R, np.int64)
        return Records(pa.py_buffer(b"".join(kept)), _exactly(numbers_R), used, at, rejects)

    def _record_end(
        self, lines: Lines, texts: list[bytes], starts: list[int], at: int
    ) -> int | None:
        """The index of the line after the record that begins with line `at`, at whose end a quote
        is open; `at` if the quote is never closed, and None if that can't be told yet."""
        start, end = starts[at], min(starts[at] + _LONGEST_RECORD_BYTES, lines.end)
        grammar = self._grammar
        for pattern in (grammar.sound, grammar.any_sound):
            match = pattern.match(lines.data, start, end)
            if match and (match.end() < end or end == lines.end):
                stop = bisect_left(starts, match.end())
                within = (text.rstrip(b"\r\n") for text in texts[at + 1 : stop - 1])
                # With another number of fields it is one wrong row, unless it swallows right ones.
                if pattern is grammar.sound or not any(map(grammar.sound.fullmatch, within)):
                    return stop
        if end == lines.end and not lines.last and grammar.unclosed.match(lines.data, start, end):
            return None
        return at

    def _ends_open(self, lines: Lines) -> bool:
        """True if a quote is open at the end of the last line, taken by itself."""
        end = _without_end(lines.data, lines.end)
        start = max(lines.data.rfind(b"\n", 0, end), lines.data.rfind(b"\r", 0, end)) + 1
        return lines.data.find(b'"', start, end) >= 0 and not self._grammar.whole.fullmatch(
            lines.data, start, end
        )

    def _mixed(self, ends: LineEnds) -> bool:
        """True if lines end now in one way and now in another, as with a lone return among line
        feeds: then the number of records may be right by chance."""
        return ends.returns != ends.pairs if self._end == _LF else ends.feeds > 0

    def _starts(self, lines: Lines) -> np.ndarray:
        """Where each line begins, if all end alike."""
        bytes_B = np.frombuffer(lines.data, np.uint8, lines.end)
        starts = np.append(0, np.flatnonzero(bytes_B == self._end) + 1)
        return starts[:-1]

    def _empty(self, lines: Lines, starts: np.ndarray) -> np.ndarray:
        """True for each of the lines at `starts` that has no text."""
        first = np.frombuffer(lines.data, np.uint8, lines.end)[starts]
        empty: np.ndarray = (first == _LF) | (first == _CR)
        return empty


class _Grammar(NamedTuple):
    """Patterns of lines and records, without the line end that follows."""

    whole: re.Pattern[bytes]
    """A line with no quote open at its end, as Arrow reads it: what follows a closing quote is part
    of the field, and quotes within other fields are literal."""
    sound: re.Pattern[bytes]
    """A record with the right number of fields, in which each closing quote ends its field."""
    any_sound: re.Pattern[bytes]
    """Such a record with any number of fields."""
    unclosed: re.Pattern[bytes]
    """The beginning of such a record up to the end of the text, which is within quotes."""

    @classmethod
    def of(cls, separator: bytes, fields: int) -> "_Grammar":
        """The patterns of records with `fields` fields."""
        by = re.escape(separator)
        quoted = rb'"(?:[^"]++|"")*+"'
        lenient = rb'(?:%b[^%b]*+|(?!")[^%b]*+)' % (quoted, by, by)
        sound = rb'(?:%b|(?!")[^%b\r\n]*+)' % (quoted, by)
        end = rb"(?=[\r\n]|\Z)"
        return cls(
            re.compile(rb"%b(?:%b%b)*+" % (lenient, by, lenient)),
            re.compile(rb"%b(?:%b%b){%d}%b" % (sound, by, sound, fields - 1, end)),
            re.compile(rb"%b(?:%b%b)*+%b" % (sound, by, sound, end)),
            re.compile(rb'(?:%b%b)*+"(?:[^"]++|"")*+\Z' % (sound, by)),
        )


def row_reject(line: int, kind: str, rule: str, row: bytes) -> Reject:
    """The reject of a row as a whole, whose text is shown."""
    text = row[:400].decode("utf-8", "replace").rstrip("\r\n")
    return Reject(line, kind, "row", rule, shorten(text))


def _exactly(lines_R: np.ndarray) -> Callable[[int], np.ndarray | None]:
    return lambda records: lines_R if len(lines_R) == records else None


def _without_end(data: bytes, end: int) -> int:
    """`end` without the line ends before it."""
    while end and data[end - 1] in (_LF, _CR):
        end -= 1
    return end
