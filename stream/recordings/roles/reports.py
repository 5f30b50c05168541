"""Reports of columns: what each one is, what it is used as and why, and what looks wrong.

In: facts and roles. Out: a `ColumnReport` for each column, and notes in words.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import shorten
from niwaki.stream.recordings.columns import Facts
from niwaki.stream.recordings.leaks import auc_of, auc_of_lists
from niwaki.stream.recordings.names import says_id
from niwaki.stream.recordings.roles.list_facts import ListFacts
from niwaki.stream.recordings.roles.plain import NEW_RATIO, TEXT_CHARACTERS, Role

_LEAK_AUC = 0.98
_LEAK_ROWS = 50
_LEAST_NEW = 50
_MOSTLY_NUMBERS = 0.5
_MOST_VALUES = Schema(categorical=("_",)).max_list_values


class ListReport(NamedTuple):
    """The lengths of the lists of a column."""

    empty: int
    """Lists without a value; a missing list is none of them."""
    typical: float
    """Median length of those that are not empty."""
    longest: int
    longer: int
    """Lists of which not all values are read, since they are too many."""


class ColumnReport(NamedTuple):
    """One column: what it is, and what it is used as."""

    name: str
    kind: str
    examples: list[str]
    missing: int
    distinct: int
    """Number of different values; of lists, in all of them."""
    role: str
    """See `Role`."""
    why: str
    warnings: list[str]
    lists: ListReport | None = None
    """None for a column that is no list."""

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return self._asdict() | {"lists": self.lists and self.lists._asdict()}


def report_of(facts: Facts, role: Role, labels_B: np.ndarray, decimal: str) -> ColumnReport:
    """The report of a column of plain values, or of one that is not read. `labels_B`: see
    `leaks.auc_of`; `decimal`: the mark before decimals."""
    warnings = []
    if role.role == "label":
        found = np.unique(labels_B[~np.isnan(labels_B)])
        if len(found) == 1:
            warnings.append(f"all {np.sum(~np.isnan(labels_B)):,} labels are {found[0]:g}")
    elif role.role in ("categorical", "numeric"):
        warnings = _warnings(facts, role, decimal)
        if len(labels_B) >= _LEAK_ROWS:
            warnings += _leak(auc_of(facts, role.role, labels_B))
    return ColumnReport(
        facts.name,
        facts.kind,
        facts.examples,
        facts.missing,
        facts.distinct,
        role.role,
        role.why,
        warnings,
    )


def report_of_lists(lists: ListFacts, role: Role, labels_B: np.ndarray) -> ColumnReport:
    """The report of a list column."""
    warnings = [] if len(labels_B) < _LEAK_ROWS else _leak(auc_of_lists(lists.rows, labels_B))
    return ColumnReport(
        lists.name,
        lists.kind,
        lists.examples,
        lists.missing,
        lists.distinct,
        role.role,
        role.why,
        [*_list_warnings(lists), *warnings],
        ListReport(lists.empty, lists.typical, lists.longest, lists.longer(_MOST_VALUES)),
    )


def _leak(auc: float) -> list[str]:
    return [f"it gives the label away: AUC {auc:.3f} by itself"] if auc > _LEAK_AUC else []


def _list_warnings(lists: ListFacts) -> list[str]:
    """Warnings about a list column."""
    warnings = []
    rows, values = len(lists.rows), lists.counts.total()
    if lists.missing > 0.5 * rows:
        warnings.append(f"{lists.missing / rows:.0%} of the lists are missing")
    if lists.broken:
        shown = shorten(lists.broken[0], TEXT_CHARACTERS)
        warnings.append(f"{len(lists.broken):,} values are no lists of plain values: {shown}")
    if not lists.counts:
        warnings.append("all its lists are empty")
    if lists.distinct == 1:
        warnings.append("its lists have one value only")
    if lists.distinct > max(NEW_RATIO * values, _LEAST_NEW):
        warnings.append(_new(values))
    if longer := lists.longer(_MOST_VALUES):
        of = f"{longer:,} of {len(lists.lengths):,} lists have more than {_MOST_VALUES} values"
        warnings.append(f"{of}; the last {_MOST_VALUES} are read (schema.max_list_values)")
    return warnings


def _new(values: int) -> str:
    first = f"nearly every one of the first {values:,} values is new"
    return f"{first}: there is little to learn from it unless they come again"


def _warnings(facts: Facts, role: Role, decimal: str) -> list[str]:
    """Warnings about a column that is learned from."""
    warnings = []
    if facts.missing > 0.5 * len(facts.texts):
        warnings.append(f"{facts.missing / len(facts.texts):.0%} of the values are missing")
    if facts.distinct == 1:
        warnings.append("it has one value only")
    numbers = sum(facts.numbers.values()) / max(facts.total, 1)
    if role.role == "categorical":
        if facts.distinct > max(NEW_RATIO * facts.known, _LEAST_NEW):
            warnings.append(_new(facts.known))
        named = facts.leading_zeros or says_id(facts.name)
        if facts.kind == "strings" and numbers >= _MOSTLY_NUMBERS and not named:
            odd = shorten(facts.odd[1], TEXT_CHARACTERS)
            warnings.append(f"{numbers:.0%} of the values are numbers, others are text like {odd}")
    elif facts.decimals - {decimal}:
        marks = {".": "a point", ",": "a comma"}
        other = marks[facts.decimal]
        warnings.append(f"its decimals follow {other}, those of others {marks[decimal]}")
    elif facts.decorated and decimal == ".":
        warnings.append(f"its numbers are decorated: {facts.decorated.strip()!r} is read")
    return warnings


def notes_of(columns: Sequence[ColumnReport], roles: Mapping[str, Role]) -> list[str]:
    """Notes on lists, on what is ignored, and on what looks wrong."""
    notes = []
    for column in columns:
        if column.role == "ignored":
            notes.append(f"{column.name!r} is ignored: {column.why}")
        elif roles[column.name].told:
            notes.append(f"{column.name}: {column.role}, {column.why}")
    for column in columns:
        notes += [f"{column.name}: {warning}" for warning in column.warnings]
    return notes
