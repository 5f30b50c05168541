"""Beneath `pieces`: JSON values, one after the other, in whatever way they are laid out.

In: text. Out: `Rows`, the bytes of some values at a time, each with the line at which it begins.
JSON Lines are taken line by line. Where a line is no whole value, as in an array or in
pretty-printed objects, values are found by their braces; what is wrong within one is for the
decoder to say, and costs that value alone: after broken text the next line that begins with an
object at the margin is a value again.
"""

import re
from collections.abc import Iterator

import msgspec
import numpy as np

from niwaki.stream.events.rejects import Reject
from niwaki.stream.files.content import Bytes, Rows
from niwaki.stream.files.records import row_reject
from niwaki.stream.files.text import Text

_BLOCK_BYTES = 4 * 2**20
_LARGEST_BYTES = 64 * 2**20
_HEAD_BYTES = 2**16
_TOKEN = re.compile(rb'["{}\[\]\n]')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BETWEEN = re.compile(rb"[\s,]*+")
_NEXT_OBJECT = re.compile(rb"[\r\n][ \t]*+\{")


def read_json(text: Text, *, chunk_rows: int) -> Iterator[Rows]:
    """The values of a JSON file, at most about `chunk_rows` at a time."""
    if _has_lines(text.data):
        yield from _lines(text.data, chunk_rows)
    else:
        yield from _values(text.data, chunk_rows)


def _has_lines(data: Bytes) -> bool:
    """True if the first line that is not empty is an object, or the beginning of one that is too
    long to be seen whole, or is broken before a line that is an object."""
    head = data.peek(_HEAD_BYTES)
    lines = [line.strip() for line in head.split(b"\n")]
    whole = lines[:-1] if len(head) >= _HEAD_BYTES else lines
    found = [line for line in whole[:100] if line]
    if not found:
        return head.lstrip()[:1] == b"{"
    first = len(found[0]) > 2 and _is_object(found[0])  # an empty one tells nothing
    return first or sum(map(_is_object, found)) * 2 > len(found)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # NaN, which is no JSON; but braces are closed.
        return line[:1] == b"{" and _end_of_value(line, 0) == len(line)


def _lines(data: Bytes, chunk_rows: int) -> Iterator[Rows]:
    """Each line that is not empty."""
    line, held = 1, b""
    while True:
        more = data.read(_BLOCK_BYTES)
        held = held + more if held else more
        end = held.rfind(b"\n") + 1 if more else len(held)
        if end or len(held) > _LARGEST_BYTES:
            end = end or len(held)
            texts = held[:end].split(b"\n")
            if held[end - 1 : end] == b"\n":
                texts.pop()
            held = held[end:]
            for start in range(0, len(texts), chunk_rows):
                some = [text.strip() for text in texts[start : start + chunk_rows]]
                places_B = np.arange(line + start, line + start + len(some))
                if not all(some):
                    kept_B = np.array([bool(one) for one in some])
                    places_B, some = places_B[kept_B], list(filter(None, some))
                yield Rows(some, places_B, [])
            line += len(texts)
        if not more:
            return


def _values(data: Bytes, chunk_rows: int) -> Iterator[Rows]:
    """Each object, wherever it begins and ends."""
    line, held, at = 1, b"", 0
    values: list[bytes] = []
    places: list[int] = []
    rejects: list[Reject] = []
    last = False
    while not last:
        more = data.read(_BLOCK_BYTES)
        last = len(more) < _BLOCK_BYTES
        held, at = held[at:] + more, 0
        while at < len(held):
            between = _skip(held, at)
            line += held.count(b"\n", at, between)
            at = between
            if at == len(held):
                break
            end = _end_of_value(held, at) if held[at : at + 1] == b"{" else _end_of_text(held, at)
            if end is None and not last and len(held) - at <= _LARGEST_BYTES:
                break
            if end is None or held[at : at + 1] != b"{":
                end = _end_of_broken(held, at) if end is None else end
                rejects.append(_reject(line, held[at:end]))
            else:
                values.append(held[at:end])
                places.append(line)
            line += held.count(b"\n", at, end)
            at = end
            if len(values) >= chunk_rows:
                yield Rows(values, np.array(places, np.int64), rejects)
                values, places, rejects = [], [], []
    yield Rows(values, np.array(places, np.int64), rejects)


def _skip(held: bytes, at: int) -> int:
    """The place of the next text, after space, commas, and the brackets of an array."""
    while True:
        match = _BETWEEN.match(held, at)
        at = match.end() if match else at
        if held[at : at + 1] not in (b"[", b"]"):
            return at
        at += 1


def _end_of_value(held: bytes, at: int) -> int | None:
    """The place after the object that begins at `at`; None if it goes on."""
    depth = 0
    while token := _TOKEN.search(held, at):
        sign, at = token[0], token.end()
        if sign == b'"':
            string = _IN_STRING.match(held, at)
            if string is None:
                return None
            at = string.end()
        elif sign in b"{[":
            depth += 1
        elif sign in b"}]":
            depth -= 1
            if depth <= 0:
                return at
    return None


def _end_of_text(held: bytes, at: int) -> int | None:
    """The place after text that is no object: the next object, or the end of its line."""
    ends = [end for end in (held.find(b"{", at), held.find(b"\n", at)) if end >= 0]
    return min(ends) if ends else None


def _end_of_broken(held: bytes, at: int) -> int:
    """The place after an object that is never closed: the next line that begins an object."""
    following = _NEXT_OBJECT.search(held, at + 1)
    return following.start() + 1 if following else len(held)


def _reject(line: int, text: bytes) -> Reject:
    return row_reject(line, "json", "must be a JSON object", text.strip())
