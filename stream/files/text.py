"""Beneath `delimited` and `json_values`: text in any encoding, as UTF-8.

In: bytes, and the name of an encoding, or none. Out: bytes in UTF-8 without a byte order mark.
UTF-8 goes through as it is, sound or not. What is damaged in another encoding becomes bytes that
are not UTF-8, so that either way the damage is found in the row that it is in, by `encoding_rule`.
"""

import codecs
import encodings.aliases
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError
from niwaki.stream.files.content import Bytes

_MARKS = (  # the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SAMPLE_BYTES = 4096
_COUNTED_BYTES = 2**17
_MOST_CONTROLS = 0.05  # share of the first bytes; with more control characters it is no text
_FEWEST_BYTES = 64  # that tell it
_CONTROLS = frozenset(range(32)) - frozenset(b"\x01\x02\x03\t\n\v\f\r\x1b\x1c\x1d\x1e\x1f")
_DAMAGE = "niwaki.damage"
_SURROGATE = 0xDC00  # and a byte: the character that stands for that damaged byte


class Text(NamedTuple):
    """Text as UTF-8, where it is sound."""

    data: Bytes
    encoding: str
    """What it was before."""


def open_text(name: Path, data: Bytes, encoding: str) -> Text:
    """The text in `data`, read in `encoding`; "": UTF-8, or what its byte order mark says. Raises
    `ConfigError` for an encoding that is not known, and for what is no text in UTF-8."""
    codec = _codec(encoding) if encoding else ""
    mark, marked = next(((m, c) for m, c in _MARKS if data.peek(4).startswith(m)), (b"", ""))
    data.read(len(mark))
    if marked and (marked != "utf-8" or not codec):
        codec = marked
    if not codec:
        _check_utf8(name, data.peek(_SAMPLE_BYTES))
    if codec in ("", "utf-8", "utf-8-sig", "ascii"):
        return Text(data, "utf-8")
    decoder = codecs.getincrementaldecoder(codec)(_DAMAGE)

    def read(size: int) -> bytes:
        while block := data.read(size):
            if text := decoder.decode(block):
                return text.encode("utf-8", "surrogatepass")
        return decoder.decode(b"", True).encode("utf-8", "surrogatepass")

    return Text(Bytes(read), codec)


def is_utf8(data: bytes, end: int) -> bool:
    """True if the first `end` bytes of `data` are UTF-8."""
    offsets = pa.py_buffer(np.array([0, end], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


class LineEnds(NamedTuple):
    """Numbers of line ends of each kind."""

    feeds: int
    """With a line feed, alone or after a return."""
    returns: int
    """With a return, alone or before a line feed."""
    pairs: int
    """With a return and a line feed."""

    @classmethod
    def of(cls, text: bytes, end: int) -> "LineEnds":
        """The line ends in the first `end` bytes."""
        feeds = returns = pairs = 0
        mixed = text.find(b"\r", 0, end) >= 0
        for start in range(0, end, _COUNTED_BYTES):  # few enough to stay in the processor's cache
            some_B = np.frombuffer(text, np.uint8, min(_COUNTED_BYTES, end - start), start)
            feeds_B = some_B == 10
            feeds += int(np.count_nonzero(feeds_B))
            if mixed:
                returns_B = some_B == 13
                returns += int(np.count_nonzero(returns_B))
                pairs += int(np.count_nonzero(returns_B[:-1] & feeds_B[1:]))
                pairs += text[start - 1 : start + 1] == b"\r\n"
        return cls(feeds, returns, pairs)

    @property
    def lines(self) -> int:
        """Number of lines that end."""
        return self.feeds + self.returns - self.pairs


def encoding_rule(row: bytes, encoding: str) -> str:
    """The rule that a row breaks which is not sound text in `encoding`; empty for a sound one."""
    try:
        row.decode()
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            byte, way = row[error.start], "; another encoding is read with --encoding latin-1"
        else:
            three = row[error.start : error.start + 3]
            byte, way = ord(three.decode("utf-8", "surrogatepass")) - _SURROGATE, ""
        return f"must be {encoding}, its byte 0x{byte:02x} is not{way}"
    return ""


def _codec(encoding: str) -> str:
    """The name that Python has for an encoding."""
    try:
        found = codecs.lookup(encoding)
        if found.incrementaldecoder and found._is_text_encoding:
            return found.name
    except (LookupError, ValueError):
        pass
    known = {*encodings.aliases.aliases, *encodings.aliases.aliases.values()}
    meant = nearest(encoding.lower(), sorted(known), cutoff=0)
    rule = f"must be an encoding that Python knows, such as latin-1; the nearest is {meant}"
    raise ConfigError("encoding", rule, encoding)


def _check_utf8(name: Path, head: bytes) -> None:
    """Raise `ConfigError` for what looks like UTF-16 or UTF-32 without a mark, or like no text."""
    sample = np.frombuffer(head[: len(head) // 4 * 4], np.uint8)
    if len(sample):
        zeros = np.mean(sample.reshape(-1, 4) == 0, axis=0)
        for codec, many in (
            ("utf-32-le", zeros[2:].min()),
            ("utf-32-be", zeros[:2].min()),
            ("utf-16-le", zeros[1::2].min() * (zeros[::2].max() < zeros[1::2].min() / 8)),
            ("utf-16-be", zeros[::2].min() * (zeros[1::2].max() < zeros[::2].min() / 8)),
        ):
            if many > (0.9 if "32" in codec else 0.05):
                rule = f"looks like {codec.upper()[:6]}; read it with --encoding {codec}"
                raise ConfigError(str(name), rule)
    controls = sum(byte in _CONTROLS for byte in head)
    if controls > _MOST_CONTROLS * max(len(head), _FEWEST_BYTES):
        raise ConfigError(str(name), "is neither text nor of another kind that is known")


def _keep_damage(error: UnicodeError) -> tuple[str, int]:
    """A lone surrogate for each damaged byte, which no UTF-8 has."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    damaged = error.object[error.start : error.end]
    return "".join(chr(_SURROGATE + byte) for byte in damaged), error.end


codecs.register_error(_DAMAGE, _keep_damage)
