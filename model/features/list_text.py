"""Lists and maps that are written as text: in JSON, as Python and numpy show them, or as values
with a separator between them.

In: a text. Out: a list, a set or a map of Python's, whose values are still to be read. Text that
begins as JSON and is none is taken as values with separators. The time that a text takes grows with
its length, whatever it holds.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import msgspec

from niwaki.model.errors import FeatureError

LIST_RULE = "must be a list of strings or numbers, or a map from such values to weights"
Parsed = list[Any] | dict[Any, Any] | set[Any]
SPACES = " \t\r\n\f\v"
"""Spaces around a value in text, which do not belong to it."""
_QUOTED = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_NUMBER = r"[+-]?(?:(?:0|[1-9]\d*+)(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?"
_ITEM = rf"(?:{_QUOTED}|{_NUMBER}|[A-Za-z]++)"
_COMMA = r"(?:\s*+,\s*+|\s++)"  # numpy writes spaces only
_PAIR = rf"{_ITEM}\s*+:\s*+{_ITEM}"
_PYTHON_LIST = re.compile(
    rf"(?:\[|\{{)\s*+(?:{_ITEM}(?:{_COMMA}{_ITEM})*+\s*+,?)?\s*+(?:\]|\}})", re.DOTALL
)
_PYTHON_MAP = re.compile(rf"\{{\s*+{_PAIR}(?:\s*+,\s*+{_PAIR})*+\s*+,?\s*+\}}", re.DOTALL)
_FOUND_ITEM = re.compile(_ITEM, re.DOTALL)
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([\\'\"ntr]))")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_NESTED = re.compile(r"[\[{]\s*[\[{(]")
_WORDS = {
    **dict.fromkeys(("None", "null", "nan", "NaN"), None),
    **dict.fromkeys(("True", "true"), True),
    **dict.fromkeys(("False", "false"), False),
    **dict.fromkeys(("inf", "Infinity"), math.inf),
}


def list_of_text(text: str, column: str, separator: str) -> Parsed:
    """The list, set or map that a text holds. Between separators, spaces around values do not
    belong to them, and empty ones are left out.

    Raises `FeatureError` for lists within lists.
    """
    body = text.strip(SPACES)
    if body.startswith(("[", "{")):
        found = _parse(body, column)
        if found is not None:
            return found
    pieces = (piece.strip(SPACES) for piece in text.split(separator))
    return list(filter(None, pieces))


_decode: Callable[[str], Any] = msgspec.json.Decoder().decode


def _parse(body: str, column: str) -> Parsed | None:
    """A list, a set or a map that is written as text; None for other text."""
    quoted = body
    if "'" in body and '"' not in body and "\\" not in body:  # as Python writes most lists
        quoted = body.replace("'", '"')
    try:
        found: Parsed = _decode(quoted)
        return found
    except RecursionError:
        raise FeatureError(column, LIST_RULE, body) from None
    except ValueError:
        pass  # not JSON, or half of a surrogate pair
    if _NESTED.match(body) and body.endswith(("]", "}")):
        raise FeatureError(column, LIST_RULE, body)
    try:
        if _PYTHON_LIST.fullmatch(body):
            items = [_item(found) for found in _FOUND_ITEM.findall(body)]
            closes = {"[": "]", "{": "}"}[body[0]]
            if not body.endswith(closes):
                return None
            return items if closes == "]" else set(items)
        if _PYTHON_MAP.fullmatch(body):
            items = [_item(found) for found in _FOUND_ITEM.findall(body)]
            return dict(zip(items[::2], items[1::2], strict=True))
    except (ValueError, OverflowError, KeyError):
        pass  # a word that is no value, or a number of too many digits
    return None


def _item(text: str) -> Any:
    """A value in a list that Python or numpy has written. Raises `KeyError`, `ValueError` or
    `OverflowError` for what is none."""
    if text[0] in "'\"":
        return _ESCAPED.sub(_unescaped, text[1:-1]) if "\\" in text else text[1:-1]
    if text[0].isalpha():
        return _WORDS[text]
    return float(text) if set(text) & set(".eE") else int(text)


def _unescaped(found: re.Match[str]) -> str:
    code = found[1] or found[2] or found[3]
    return chr(int(code, 16)) if code else _ESCAPES.get(found[4], found[4])
