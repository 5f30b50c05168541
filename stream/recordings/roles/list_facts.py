"""Facts of a list column by its values: lists, maps, or text that holds them.

In: the values of one column of a `Sample`, and the separator of lists in text. Out: `ListFacts`,
which are equal whether a list was written as text or not.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from niwaki.model.errors import FeatureError
from niwaki.model.features.list_text import LIST_RULE, list_of_text
from niwaki.model.features.list_values import FlatLists, flat_lists
from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import shorten
from niwaki.stream.recordings.samples import Unread

_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\d*\.\d+)([eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+")
_EXAMPLES = 2
_SHOWN_CHARACTERS = 40


def is_written_list(text: str) -> bool:
    """True for text that is a list or a map as JSON, Python or numpy write it."""
    if text.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        return list_of_text(text, "", "\0") != [text.strip()]
    except FeatureError:  # a list within a list
        return True


def _rows(lists: FlatLists) -> list[tuple[str, ...] | None]:
    """The names in each list; None for a missing list."""
    kept_V = lists.names_V.is_valid().to_numpy(False)
    if lists.weights_V is not None:
        kept_V = kept_V & (lists.weights_V > 0)
    lists = lists.keep(kept_V)
    names = iter(lists.names_V.to_pylist())
    counts = zip(lists.counts_B.tolist(), lists.missing_B.tolist(), strict=True)
    return [None if missing else tuple(islice(names, count)) for count, missing in counts]


class ListFacts:
    """Facts about the lists of a column."""

    def __init__(self, name: str, values: Sequence[Any], separator: str, *, pairs: bool = False):
        """`pairs`: lists of objects of two members each are maps from values to weights."""
        self.name = name
        schema = Schema(
            label=f"{name}_", timestamp=None, lists=(name or "_",), list_separator=separator
        )
        self._maps = False
        failed: dict[int, FeatureError] = {}
        found = []
        for at, value in enumerate(values):
            try:
                found.append(self._parsed(value, separator, pairs))
            except FeatureError as error:
                failed[at] = error
                found.append(None)
        lists = flat_lists(found, name, schema, failed)
        self.broken = [values[at] for at in sorted(failed)]
        """Values that are no lists of plain values."""
        self.rows = _rows(lists)
        """The names in the list of each row; None where there is no list."""

    def _parsed(self, value: Any, separator: str, pairs: bool) -> Any:
        """A list, a map or a plain value."""
        if isinstance(value, str):
            value = list_of_text(value, self.name, separator)
        objects = isinstance(value, list) and any(isinstance(one, dict) for one in value)
        # Pairs of a value and its weight are not told from other objects of two members.
        if isinstance(value, Unread) or (objects and not pairs):
            raise FeatureError(self.name, LIST_RULE, value)
        self._maps |= objects or isinstance(value, dict)
        return value

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
        """Up to two different lists, the first ones that are not empty."""
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
            return broken_kind(list_of_text(value, "", "|"))
        except FeatureError:
            return "lists of lists"
    if isinstance(value, dict):
        return "maps to values that are no weights"
    if isinstance(value, list | tuple):
        objects = any(isinstance(one, dict) for one in value)
        return "lists of objects" if objects else "lists of lists"
    return f"values like {shorten(value, _SHOWN_CHARACTERS)}"
