"""Beneath `delimited`: what the first lines of a delimited file tell of all of them.

In: text, and the settings that a user gave. Out: the separator, the names of the columns, and the
place of the first row. Nothing is guessed that would cost a row: a file whose first line may be
data and has no names is an error with the way on.
"""

import csv
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from niwaki.pruning.errors import shorten
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.content import Bytes
from niwaki.stream.files.text import LineEnds, Text, encoding_rule

LONGEST_LINE_BYTES = 64 * 2**20
_SAMPLE_BYTES = 2**16
_SAMPLE_LINES = 200
_SEPARATORS = ("\t", ";", ",", "|", "::", "\x01")
_ALIKE = 0.8  # share of the first lines that have one number of fields, if it is a separator
_UNQUOTED = ("\x01",)  # of Hive, which does not quote
_CRITEO = ("label", *(f"I{at}" for at in range(1, 14)), *(f"C{at}" for at in range(1, 27)))
_QUOTED = re.compile(r'(?:^|(?<=[,;\t|\x01\r\n]))"(?:[^"]|"")*+"(?=[,;\t|\x01\r\n]|\Z)')
_ESCAPED = re.compile(rb'(?:^|[,;\t|\x01\r\n])"[^"\r\n]*\\"(?![,;\t|\x01\r\n"]|\Z)')
_ESCAPE = re.compile(rb'\\(?:(")|(\\))')
_HINT = re.compile(rb'"?sep=(.|\\t)"?[\r\n]+', re.IGNORECASE)  # as Excel writes it
_BLANK_LINES = re.compile(rb"(?:[ \t]*(?:\r\n|\n|\r))+")
_DATA = re.compile(
    r"[-+]?(\d[\d_,.' ]*|\.\d+)([eE][-+]?\d+)?%?"  # a number
    r"|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?"  # a date
    r"|true|false|null|nan|\\n",
    re.IGNORECASE,
)


class Dialect(NamedTuple):
    """The way in which a file is delimited."""

    separator: str
    quoted: bool
    """True where quotes have a meaning."""
    escaped: bool
    """True where a backslash comes before a quote within quotes, as Spark and MySQL write it."""
    line_end: bytes
    """The byte with which every line ends."""
    names: tuple[str, ...]
    skip_bytes: int
    """Size of what is before the first row."""
    first_line: int
    """The line of the first row, from 1."""


class _Sample(NamedTuple):
    """The first records of a file, split into fields at one separator."""

    separator: str
    rows: list[list[str]]
    header_lines: int
    """Number of lines of the first record."""

    @property
    def fields(self) -> int:
        """The number of fields that most records after the first have."""
        return Counter(map(len, self.rows[1:] or self.rows)).most_common(1)[0][0]

    @property
    def alike(self) -> float:
        """The share of the records after the first that have this number of fields."""
        rows = self.rows[1:] or self.rows
        return sum(len(row) == self.fields for row in rows) / len(rows)


def find_dialect(name: Path, text: Text, config: EventsConfig) -> Dialect:
    """The dialect of the file `name`, whose text is only looked at. Raises `ConfigError` where its
    columns have no names, or two have the same."""
    head, complete = _head(name, text.data)
    skipped, hint = 0, ""
    if blank := _BLANK_LINES.match(head):
        skipped = blank.end()
    if hinted := _HINT.match(head, skipped):
        skipped, hint = hinted.end(), _unescaped(hinted[1].decode("utf-8", "replace"))
    lines = head[skipped:].splitlines(keepends=True)
    if len(lines) > 1 and not complete:
        lines.pop()  # it goes on
    separator = _unescaped(config.separator) or hint
    if separator and {'"', "\n", "\r"} & set(separator):
        raise ConfigError("separator", "must have neither quotes nor line ends", config.separator)
    escaped = _ESCAPED.search(head) is not None
    shown = lines[:_SAMPLE_LINES]
    sample = _sample([without_escapes(line) for line in shown] if escaped else shown, separator)
    names, header = _names(name, sample, config.names)
    first = b"".join(lines[: sample.header_lines])
    if header and (rule := encoding_rule(first, text.encoding)):
        raise ConfigError(str(name), f"has a header that {rule}", first.decode("utf-8", "replace"))
    twice = [column for column, count in Counter(names).items() if count > 1]
    if twice:
        rule = f"has two columns called {twice[0]!r}; give other names with --names"
        raise ConfigError(str(name), rule)
    before = head[:skipped] + (first if header else b"")
    quoted = len(sample.separator.encode()) == 1 and sample.separator not in _UNQUOTED
    line = LineEnds.of(before, len(before)).lines + 1
    end = _line_end(head)
    return Dialect(sample.separator, quoted, escaped and quoted, end, names, len(before), line)


def without_escapes(text: bytes) -> bytes:
    """`text`, in which quotes are escaped by a backslash, with doubled quotes instead."""
    return _ESCAPE.sub(rb"\1\1\2", text)


def _head(name: Path, data: Bytes) -> tuple[bytes, bool]:
    """The first bytes, with the whole of the first line; True if nothing follows."""
    size = _SAMPLE_BYTES
    while True:
        head = data.peek(size)
        if not head.strip():
            if len(head) < size:
                raise ConfigError(str(name), "is empty")
        elif len(head) < size or re.search(rb"[\r\n]", head.lstrip()):
            return head, len(head) < size
        if size >= LONGEST_LINE_BYTES:
            raise ConfigError(str(name), f"has a first line of more than {size // 2**20} MB")
        size *= 2


def _line_end(head: bytes) -> bytes:
    r"""A carriage return where lines end as on an old Mac, else \n."""
    ends = LineEnds.of(head, len(head))
    return b"\r" if ends.returns - ends.pairs > ends.feeds else b"\n"


def _unescaped(separator: str) -> str:
    r"""`separator` with what a shell leaves as `\t` or `\x01`."""
    if re.fullmatch(r"\\(t|x[0-9a-fA-F]{2})", separator):
        return "\t" if separator == r"\t" else chr(int(separator[2:], 16))
    return separator


def _sample(lines: Sequence[bytes], separator: str) -> _Sample:
    """The first records, at `separator`, or else at that by which most of them have the same number
    of fields, and of several at that with most fields."""
    texts = [line.decode("utf-8", "replace") for line in lines]
    if not separator:
        bare = re.split("\r\n|\r|\n", _QUOTED.sub("x", "".join(texts)))
        samples = [_split(bare, separator) for separator in _SEPARATORS]
        several = [s for s in samples if s.fields > 1 and len(s.rows[0]) > 1 and s.alike >= _ALIKE]
        if several:
            separator = max(several, key=lambda sample: sample.fields).separator
        else:
            by = max(samples, key=lambda sample: (len(sample.rows[0]), sample.separator == ","))
            separator = by.separator
    return _split(texts, separator)


def _split(lines: list[str], separator: str) -> _Sample:
    plain = [line.rstrip("\r\n").split(separator) for line in lines if line.strip("\r\n")]
    if len(separator.encode()) > 1 or separator in _UNQUOTED:
        return _Sample(separator, plain, 1)
    reader = csv.reader(lines, delimiter=separator)
    try:
        header = next(reader)
        header_lines = reader.line_num
        return _Sample(separator, [header, *filter(None, reader)], header_lines)
    except csv.Error:  # a field that is too long
        return _Sample(separator, plain, 1)


def _names(path: Path, sample: _Sample, given: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The names of the columns, and True if the first record has names."""
    first, fields = sample.rows[0], sample.fields
    if given:
        if len(given) not in (fields, len(first)):
            rule = f"has {fields} columns and not the {len(given)} of names; its first line is"
            raise ConfigError(str(path), f"{rule} {_shown(sample)}")
        return given, tuple(first) == given or (not _is_data(first) and _has_data(sample))
    if not _is_data(first):
        if len(sample.rows) > 1 and fields == len(first) + 1 and "" not in first:
            rows = [row for row in sample.rows[1:] if len(row) == fields]
            at_end = all(row[-1] == "" for row in rows)  # else R's names of rows
            return (*first, "") if at_end else ("", *first), True
        return tuple(first), True
    if len(first) == len(_CRITEO) and sample.separator == "\t" and first[0] in ("0", "1"):
        return _CRITEO, False
    letters = ",".join(string.ascii_lowercase[:fields]) if fields <= 26 else f"c1,c2,...,c{fields}"
    rule = f"has no header; name its {fields} columns with --names {letters}; its first line is"
    raise ConfigError(str(path), f"{rule} {_shown(sample)}")


def _is_data(record: Sequence[str]) -> bool:
    """True for a record with a field that no header has."""
    return any(_DATA.fullmatch(field.strip()) for field in record) or not all(record[1:])


def _has_data(sample: _Sample) -> bool:
    """True if most records after the first are data."""
    rows = sample.rows[1:]
    return bool(rows) and sum(map(_is_data, rows)) > len(rows) / 2


def _shown(sample: _Sample) -> str:
    return shorten(sample.separator.join(sample.rows[0]), 120)
