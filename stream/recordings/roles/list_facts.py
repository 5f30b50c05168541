"""Facts of a list column by its values: lists, maps, or text that holds them.

In: the values of one column of a `Sample`, and the separator of lists in text. Out: `ListFacts`,
which are equal whether a list was written as text or not.
"""

import ast
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from niwaki.model.errors import FeatureError
from niwaki.model.features.values import as_name
from niwaki.pruning.errors import shorten
from niwaki.stream.recordings.columns import as_text
from niwaki.stream.recordings.samples import Unread

_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\d*\.\d+)([eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+")
_NUMPY = re.compile(r"['\"\d]\s+['\"\d-]")
_EXAMPLES = 3
_SHOWN_CHARACTERS = 40
_RULE = "must be a list of strings or numbers, or a map from such values to weights"


def read_names(value: Any, column: str, separator: str) -> tuple[str, ...] | None:
    """The values of a list in order, as names; None for a missing list. Raises `FeatureError` for
    what is no list of plain values."""
    if value is None:
        return None
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("[", "{")):
            try:
                return read_names(_parsed(text), column, separator)
            except ValueError as error:
                if isinstance(error, FeatureError):
                    raise
        return tuple(piece for one in value.split(separator) if (piece := one.strip()))
    if isinstance(value, Mapping):
        for weight in value.values():
            if not isinstance(weight, int | float | None) or (weight or 0) < 0:
                raise FeatureError(column, "must have weights that are numbers >= 0", value)
        return _names((name for name, weight in value.items() if weight), column)
    if isinstance(value, list):
        return _names(value, column)
    name = _name(value, column)
    return None if name is None else (name,)


def _parsed(text: str) -> Any:
    """A list or a map in JSON or as Python writes it. Raises `ValueError` for other text."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        pass
    if _NUMPY.search(text) and "," not in text:
        raise ValueError("a list of numpy")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("no list") from error


def _names(values: Any, column: str) -> tuple[str, ...]:
    names = (_name(value, column) for value in values)
    return tuple(name for name in names if name is not None)


def _name(value: Any, column: str) -> str | None:
    if isinstance(value, list | dict | tuple | set | Unread):
        raise FeatureError(column, _RULE, value)
    return as_name(value if isinstance(value, str) else as_text(value), column)


class ListFacts:
    """Facts about the lists of a column."""

    def __init__(self, name: str, values: Sequence[Any], separator: str):
        self.name = name
        self.separator = separator
        self.broken: list[Any] = []
        """Values that are no lists of plain values."""
        self._maps = False
        self.rows: list[tuple[str, ...] | None] = []
        """The names in the list of each row; None where there is no list."""
        known: dict[str, tuple[str, ...] | None] = {}
        for value in values:
            names = None
            try:
                if isinstance(value, str):
                    names = known[value] if value in known else self._read(value)
                    known[value] = names
                else:
                    names = self._read(value)
            except FeatureError:
                self.broken.append(value)
            self.rows.append(names)

    def _read(self, value: Any) -> tuple[str, ...] | None:
        names = read_names(value, self.name, self.separator)
        if isinstance(value, dict) or (isinstance(value, str) and value.lstrip()[:1] == "{"):
            self._maps = True
        return names

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of times that each value occurs."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts.update(row or ())
        return counts

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64, the number of values of each list that is there."""
        return np.array([len(row) for row in self.rows if row is not None], np.int64)

    @property
    def missing(self) -> int:
        """Number of rows without a list."""
        return len(self.rows) - len(self.lengths)

    @property
    def empty(self) -> int:
        """Number of empty lists."""
        return int(np.count_nonzero(self.lengths == 0))

    @property
    def distinct(self) -> int:
        """Number of different values in all lists."""
        return len(self.counts)

    @property
    def typical(self) -> float:
        """Median length of the lists that are not empty."""
        filled = self.lengths[self.lengths > 0]
        return float(np.median(filled)) if len(filled) else 0.0

    @property
    def longest(self) -> int:
        """Length of the longest list."""
        return int(self.lengths.max(initial=0))

    def longer(self, most: int) -> int:
        """Number of lists with more than `most` values."""
        return int(np.count_nonzero(self.lengths > most))

    @cached_property
    def whole(self) -> bool:
        """True if all values are integers."""
        return bool(self.counts) and all(map(_WHOLE.fullmatch, self.counts))

    @cached_property
    def decimals(self) -> float:
        """Share of values that are numbers with decimals, 0..1."""
        found = sum(count for name, count in self.counts.items() if _DECIMAL.fullmatch(name))
        return found / max(self.counts.total(), 1)

    @property
    def kind(self) -> str:
        """The kind of the lists, in plain words."""
        values = "integers" if self.whole else "numbers" if self.decimals > 0.5 else "strings"
        if not self.counts:
            return "maps" if self._maps else "lists"
        return f"maps of {values} to weights" if self._maps else f"lists of {values}"

    @property
    def examples(self) -> list[str]:
        """Up to three different lists, the first ones that are not empty."""
        different = dict.fromkeys(row for row in self.rows if row)
        return [_shown(row) for row, _ in zip(different, range(_EXAMPLES), strict=False)]


def _shown(names: Sequence[str]) -> str:
    """A list, cut where it is too long to be read."""
    text = ""
    for at, name in enumerate(names):
        short = name if len(name) <= _SHOWN_CHARACTERS else f"{name[: _SHOWN_CHARACTERS - 3]}..."
        if at and len(text) + len(short) > _SHOWN_CHARACTERS:
            return f"[{text}, ... {len(names):,} values]"
        text += f", {short}" if at else short
    return f"[{text}]"


def broken_kind(value: Any) -> str:
    """The kind of a value that is no list of plain values, in plain words."""
    if isinstance(value, Unread):
        return value.kind
    if isinstance(value, str):
        try:
            return broken_kind(_parsed(value.strip()))
        except ValueError:
            return "text"
    if isinstance(value, dict):
        return "maps to values that are no weights"
    if isinstance(value, list | tuple):
        objects = any(isinstance(one, dict) for one in value)
        return "lists of objects" if objects else "lists of lists"
    return f"values like {shorten(value, _SHOWN_CHARACTERS)}"
