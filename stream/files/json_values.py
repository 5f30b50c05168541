r"""Beneath `pieces`: JSON values, one after the other, as bytes.

In: text with JSON values: one a line, in an array, one right after another, over several lines, or
all of it mixed. Out: `Rows` of the bytes of each value, with the line at which it begins. What is
damaged within a value is for the decoder to find. A value that does not end is cut where the next
line begins an object, so that it costs no other one.

Where each line of a block is an object, the lines are taken as they are.
"""

import re
from collections.abc import Generator, Sequence

import numpy as np

from niwaki.pruning.errors import shorten
from niwaki.stream.events.rejects import Reject
from niwaki.stream.files.content import Bytes, Rows

BLOCK_BYTES = 2**18  # is in the processor's cache when it is looked at again
LONGEST_VALUE_BYTES = 64 * 2**20
_HEAD_BYTES = 2**16
_LF, _OPEN, _CLOSE, _SPACE, _RETURN = b"\n{} \r"
_STRING = rb'"(?:[^"\\\n]++|\\.)*+"'
_DEPTH = 4  # of objects that are found at once, and not bracket by bracket
_WITHIN = rb'(?:[^"{}\[\]]++|%b)*+' % _STRING
for _ in range(_DEPTH):
    _WITHIN = rb'(?:[^"{}\[\]]++|%b|[{\[]%b[}\]])*+' % (_STRING, _WITHIN)
_OBJECT = re.compile(rb"\{%b\}" % _WITHIN)
_ARRAY = re.compile(rb"\[%b\]" % _WITHIN)
_BETWEEN = re.compile(rb"[\s,\x1e]*+")
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*+(?:(?=[{\]])|\Z)")
_SCALAR = re.compile(rb'%b|[^\s,\[\]{}"]++' % _STRING)
_TOKEN = re.compile(
    rb'%b|"(?:[^"\\\n]++|\\.)*+(?P<broken>\\?\n|\\?\Z)|[{}\[\]]|\n(?P<indent>[ \t]*+)\{' % _STRING
)
_LONGEST_INDENT = 64
_MOST_SUSPECTS = 100  # lines in an object that begin as the next object might
_INDENT = re.compile(rb"([ \t]*+)(?:\n|\Z)")  # of a text that is reversed
_JSON = re.compile(rb"\s*(\{|\[\s*([\[{\]\"\d-]|$))")


def is_json(head: bytes) -> bool:
    """True if text that begins so is JSON."""
    return _JSON.match(head) is not None


def read_values(text: Bytes, *, block_bytes: int = BLOCK_BYTES) -> Generator[Rows, None, None]:
    """The values in `text`, which is as much of UTF-8 as it is of JSON; at least one `Rows`."""
    yield _rows([], [], [])
    reader, held, last, line, too_long = _Reader(), b"", False, 1, False
    head = text.peek(_HEAD_BYTES)
    returns_only = b"\r" in head and b"\n" not in head  # as lines end on an old Mac
    while not last:
        size = max(block_bytes, len(held))
        more = text.read(size)
        last = len(more) < size
        held += more.replace(b"\r", b"\n") if returns_only else more
        if too_long:
            begin = held.find(b"\n{") + 1
            line, held = line + held.count(b"\n", 0, begin or len(held) - 1), held[begin or -1 :]
            too_long = not begin
            if too_long:
                continue
        rows, used, lines = reader.take(held, line, last)
        line += lines
        held = held[used:]
        yield rows
        if len(held) > LONGEST_VALUE_BYTES:
            rule = f"must be at most {LONGEST_VALUE_BYTES // 2**20} MB"
            shown = shorten(held[:400].decode("utf-8", "replace"))
            yield _rows([], [], [Reject(line, "json", "value", rule, shown)])
            line, held, too_long = line + held.count(b"\n", 0, len(held) - 1), held[-1:], True


class _Reader:
    """Finds the values of one file."""

    def __init__(self) -> None:
        self._in_array = False
        self._tall = False
        """True if the last object was of several lines."""
        self._indent = 0
        """Number of spaces before the last object."""
        self._next = 0, 0
        """A number of spaces, and the next line that begins an object after at most so many."""

    def take(self, text: bytes, line: int, last: bool) -> tuple[Rows, int, int]:
        """The values in `text`, which begins at `line`, and how many bytes and lines of it they
        took: all but for an unfinished one. `last`: nothing follows."""
        end = len(text) if last else text.rfind(b"\n") + 1
        if end and not self._in_array and (values := _lines(text, end)):
            self._tall = False
            return Rows(values, np.arange(line, line + len(values)), []), end, len(values)
        rows, used = self._scan(text, line, last)
        return rows, used, text.count(b"\n", 0, used)

    def _scan(self, text: bytes, line: int, last: bool) -> tuple[Rows, int]:
        values: list[bytes] = []
        lines: list[int] = []
        at = counted = 0
        self._next = 0, 0
        while True:
            begin = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            if begin == len(text):
                return _rows(values, lines, []), begin if last else at
            if not self._in_array and (opened := _ARRAY_OF_OBJECTS.match(text, begin)):
                if opened.end() == len(text) and not last:
                    return _rows(values, lines, []), begin
                self._in_array, at = True, begin + 1
                continue
            if self._in_array and text[begin] == ord("]"):
                self._in_array, at = False, begin + 1
                continue
            end = self._value_end(text, begin, last)
            if end < 0:
                return _rows(values, lines, []), begin - self._indent
            line += text.count(b"\n", counted, begin)
            counted = begin
            values.append(text[begin:end].rstrip())
            lines.append(line)
            at = end

    def _value_end(self, text: bytes, begin: int, last: bool) -> int:
        """Where the value ends that begins at `begin`, broken or not; -1 if more of the text must
        be known."""
        if text[begin] != _OPEN:
            return self._other_end(text, begin, last)
        spaces = _INDENT.match(text[max(begin - _LONGEST_INDENT, 0) : begin][::-1])
        self._indent = len(spaces[1]) if spaces else 0
        known, place = self._next
        if known != self._indent or place <= begin:
            place = _next_object(text, begin, len(text), self._indent) or len(text)
            self._next = self._indent, place
        found = _OBJECT.match(text, begin, place)
        if found:
            self._tall = text.find(b"\n", begin, found.end()) >= 0
            return found.end()
        return self._sought_end(text, begin, last)

    def _other_end(self, text: bytes, begin: int, last: bool) -> int:
        """`_value_end` of what is no object."""
        self._indent = 0
        pattern = _ARRAY if text[begin] == ord("[") else _SCALAR
        found = pattern.match(text, begin) if self._in_array else None
        if found and (found.end() < len(text) or last or pattern is _ARRAY):
            return found.end()
        stops = [text.find(b"\n", begin)]
        if self._in_array:
            stops.append(text.find(b"{", begin))
        elif self._tall:  # the rest of a broken object, most likely
            stops = [_next_object(text, begin, len(text), 0) - 1]
        return min((stop for stop in stops if stop >= 0), default=len(text) if last else -1)

    def _sought_end(self, text: bytes, begin: int, last: bool) -> int:
        """`_value_end` of an object, bracket by bracket: of one that is deep, or broken, or with a
        line in it that begins an object."""
        brackets: list[int] = []
        suspect = suspects = 0  # the first line that may begin the next object, and the number
        for token in _TOKEN.finditer(text, begin):
            if token["broken"] is not None:
                if token.end() == len(text) and not last:
                    return -1
                following = _next_object(text, token.start(), len(text), self._indent)
                return suspect or following or (len(text) if last else -1)
            first = token[0][0]
            if token["indent"] is not None:
                if len(token["indent"]) <= self._indent:
                    suspect = suspect or token.start() + 1
                    suspects += 1
                    before = text[max(token.start() - 99, begin) : token.start()].rstrip()[-1:]
                    within = (b":",) if brackets[-1] == _OPEN else (b"[", b",")
                    if before not in within or suspects > _MOST_SUSPECTS:
                        return suspect
                brackets.append(_OPEN)
            elif first in b"{[":
                brackets.append(first)
            elif first in b"}]":
                brackets.pop()
                if not brackets:
                    return token.end()
        return (suspect or len(text)) if last else -1


def _lines(text: bytes, end: int) -> list[bytes] | None:
    """The lines of the first `end` bytes, if each is an object by the look of it."""
    bytes_B = np.frombuffer(text, np.uint8, end)
    ends = np.flatnonzero(bytes_B == _LF)
    if bytes_B[-1] != _LF:
        ends = np.append(ends, end)
    starts = np.append(0, ends[:-1] + 1)
    final = bytes_B[np.maximum(ends - 1, 0)]
    returns = bool((final == _RETURN).any())
    if returns:
        final = np.where(final == _RETURN, bytes_B[np.maximum(ends - 2, 0)], final)
    if not ((bytes_B[starts] == _OPEN).all() and (final == _CLOSE).all()):
        return None
    opens_B = bytes_B == _OPEN
    if np.count_nonzero(opens_B) != len(starts):  # one object in another, or several on a line
        opens = np.flatnonzero(opens_B)
        before, second = bytes_B[opens - 1], bytes_B[opens - 2]  # of the very first: any bytes
        close = (before == _CLOSE) | ((before == _SPACE) & (second == _CLOSE))
        if close[1:].any():
            return None
    if returns:
        return text[:end].replace(b"\r\n", b"\n").rstrip(b"\r\n").split(b"\n")
    return text[: end - int(bytes_B[-1] == _LF)].split(b"\n")


def _next_object(text: bytes, begin: int, end: int, indent: int) -> int:
    """Where the next line is that begins an object, after at most `indent` spaces; 0: nowhere."""
    found = re.compile(rb"\n[ \t]{0,%d}\{" % indent).search(text, begin, end)
    return found.start() + 1 if found else 0


def _rows(values: list[bytes], lines: Sequence[int], rejects: list[Reject]) -> Rows:
    return Rows(values, np.array(lines, np.int64), rejects)
