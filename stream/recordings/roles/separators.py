"""Lists in text with a separator between their values, and text that only looks like it.

In: the facts of a column of text, and a separator. Out: the reasons for and against lists. Titles,
sentences, names such as "Last, First", paths, places, user agents and addresses are none.
"""

import re
from collections import Counter
from collections.abc import Collection
from functools import cached_property

from niwaki.stream.recordings.columns import Facts
from niwaki.stream.recordings.names import says_list

SEPARATORS = ("|", ";", ",", " ")
"""Separators that are looked for; the first of several that would do is taken."""
_SEVERAL_SHARE = {"|": 0.25, ";": 0.25}
_SEVERAL_SHARE_OTHERS, _SEVERAL_SHARE_NAMED = 0.5, 0.1
"""Share of rows with several values, from which on they are lists: by separator, of the other ones,
and where the name says so."""
_MOST = 0.98
_LONGEST_PIECE = 40
_MOST_WORDS = 4
_RECURRING = 0.8
_RECURRING_IDS = 0.4
_OWNED = 0.5
_SAME_PLACES = 0.2
_ID = re.compile(r"[A-Za-z]{0,4}[-_]?\d+|[0-9a-f]{8,}|[0-9A-F]{8,}|[0-9a-f-]{36}")
_NUMBER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+)")
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


class Pieces:
    """The pieces of a column's texts, split at a separator."""

    def __init__(self, facts: Facts, separator: str):
        self.name = facts.name
        self.separator = separator
        self.rows = facts.total
        """Number of rows with a text."""
        self.several = 0
        """Number of rows with several pieces."""
        self.counts: Counter[str] = Counter()
        """Number of rows by piece."""
        self.wholes: Counter[str] = Counter()
        """Number of different texts by piece."""
        self.first: Counter[str] = Counter()
        self.later: Counter[str] = Counter()
        """Number of different texts by piece, where it comes first, and where it comes later."""
        self.lengths: set[int] = set()
        for text, rows in facts.solid.items():
            pieces = [piece for one in text.split(separator) if (piece := one.strip())]
            self.several += rows if len(pieces) > 1 else 0
            self.lengths.add(len(pieces))
            for piece in dict.fromkeys(pieces):
                self.counts[piece] += rows
                self.wholes[piece] += 1
            self.first.update(pieces[:1])
            self.later.update(pieces[1:])
        self._texts = facts.distinct

    def are_lists(self, vocabularies: Collection[Collection[str]], *, named: bool) -> bool:
        """True if the pieces are the values of lists. `vocabularies`: the values of categorical
        columns, whose values the lists may hold. `named`: the name of the column says so."""
        named = named or says_list(self.name)
        least = _SEVERAL_SHARE.get(self.separator, _SEVERAL_SHARE_OTHERS)
        least = _SEVERAL_SHARE_NAMED if named else least
        if self.several < least * self.rows or not self._short:
            return False
        ids = self._share(_ID) >= _MOST
        if self.separator == " " and not ids:
            return False
        seen = self.counts if named else self.wholes
        recurring = sum(rows for piece, rows in self.counts.items() if seen[piece] > 1)
        recurring_ratio = recurring / self.counts.total()
        if recurring_ratio < (_RECURRING_IDS if ids else _RECURRING):
            return False
        if named or any(map(self._are_of, vocabularies)):
            return True
        if len(self.lengths) == 1 and self._share(_NUMBER) >= _MOST:
            return False  # a vector, or parts of one number
        few = len(self.counts) <= 0.5 * self._texts
        return (few or ids) and self.same_places >= _SAME_PLACES

    @cached_property
    def _short(self) -> bool:
        """True if the pieces are short tokens, and not parts of something else."""
        good = sum(rows for piece, rows in self.counts.items() if _is_token(piece))
        return good >= _MOST * self.counts.total() and self._share(_DECIMAL) < 0.5

    def _share(self, pattern: re.Pattern[str]) -> float:
        found = sum(rows for piece, rows in self.counts.items() if pattern.fullmatch(piece))
        return found / max(self.counts.total(), 1)

    def _are_of(self, vocabulary: Collection[str]) -> bool:
        """True if most of the pieces are values of another column."""
        found = sum(piece in vocabulary for piece in self.counts)
        return found >= max(_OWNED * len(self.counts), 20)

    @cached_property
    def same_places(self) -> float:
        """Likeness of the first pieces and later ones, 0..1: in "Last, First" and "Home|Garden",
        each place has values of its own."""
        first, later = max(self.first.total(), 1), max(self.later.total(), 1)
        return sum(min(n / first, self.later[piece] / later) for piece, n in self.first.items())


def _is_token(piece: str) -> bool:
    if len(piece) > _LONGEST_PIECE or piece.count(" ") >= _MOST_WORDS or "://" in piece:
        return False
    return all(piece.count(one) == piece.count(other) for one, other in _BRACKETS)
