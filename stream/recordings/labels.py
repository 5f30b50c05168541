"""The label of a stream: which column it is, and which of its values are clicks.

In: facts of the columns, and what a user asks for. Out: a `Label`, or a `ConfigError` that names
the values and the way on. Ratings and names are never guessed to be clicks.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np

from niwaki.model.errors import FeatureError
from niwaki.model.features.schema import Schema
from niwaki.model.features.values import WORDS, read_label
from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.columns import Facts
from niwaki.stream.recordings.names import COUNTS, LABELS, plain_name

_MISSING_SHARE = 0.01
_VALID_SHARE = 0.9
_SHOWN_VALUES = 5


class Label(NamedTuple):
    """The column with the outcome, and the way to read it."""

    name: str
    why: str
    notes: list[str]
    threshold: float | None = None
    positive: tuple[str, ...] = ()
    missing: Literal["reject", "negative"] = "reject"

    @property
    def schema(self) -> Schema:
        """A schema that reads this label."""
        return Schema(
            label=self.name,
            label_threshold=self.threshold,
            label_positive=self.positive,
            missing_label=self.missing,
            timestamp=None,
            categorical=("_" if self.name != "_" else "__",),
        )


class Wanted(Protocol):
    """The wishes of a user; see `proposal.Asked`."""

    @property
    def label(self) -> str | None: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def positive(self) -> tuple[str, ...]: ...
    @property
    def missing_label(self) -> str | None: ...


def find_label(facts: Mapping[str, Facts], asked: Wanted, rows: int) -> Label:
    """The label of columns with these facts; `rows`: of the sample."""
    name, notes = _column(facts, asked)
    column = facts[name]
    if column.unread is not None:
        rule = f"the label is a column of {column.kind}; --label COLUMN names another"
        raise ConfigError(name, rule)
    absent = rows - column.total
    if absent == rows:
        rule = f"all {rows:,} labels are missing; --label COLUMN names another column"
        raise ConfigError(name, rule)
    given = asked.missing_label
    if given not in (None, "reject", "negative"):
        raise ConfigError("--missing-label", "must be reject or negative", given)
    if absent > _MISSING_SHARE * rows and given is None:
        rule = (
            f"{absent:,} of {rows:,} rows have no label: --missing-label negative reads them as no"
            " click, --missing-label reject leaves them out"
        )
        raise ConfigError(name, rule)
    label = _values(column, asked, notes)
    if absent:
        read = "are read as no click" if given == "negative" else "are left out"
        label.notes.append(f"{name}: {absent:,} of {rows:,} rows have no label and {read}")
    return label._replace(missing="negative" if given == "negative" else "reject")


def labels_of(label: Label, column: Facts) -> np.ndarray:
    """The label of each row, float64 (B,); NaN where there is none."""
    schema = label.schema
    by_text: dict[str | None, float] = {}
    for text in (None, *column.counts):
        try:
            by_text[text] = read_label(text, schema)
        except FeatureError:
            by_text[text] = np.nan
    return np.array([by_text[text] for text in column.texts], np.float64)


def _column(facts: Mapping[str, Facts], asked: Wanted) -> tuple[str, list[str]]:
    if asked.label is not None:
        return asked.label, []
    named = [name for name in facts if plain_name(name) in LABELS]
    plain = [name for name in named if facts[name].unread is None]  # "liked" may be a list
    ranked = [(LABELS.index(plain_name(name)), name) for name in plain or named]
    if ranked:
        _, name = min(ranked)
        others = [f"{other!r}" for _, other in sorted(ranked) if other != name]
        if not others:
            return name, []
        return name, [f"{name!r} is the label, not {', '.join(others)}; --label decides otherwise"]
    two = [name for name, column in facts.items() if column.distinct == 2]
    rest = [name for name in facts if name not in two]
    rule = (
        f"there is no column called {', '.join(LABELS[:4])} or the like: name it with --label"
        f" COLUMN; columns with two values: {', '.join(two) or 'none'}; others:"
        f" {', '.join(rest) or 'none'}"
    )
    raise ConfigError("label", rule)


def _values(column: Facts, asked: Wanted, notes: list[str]) -> Label:
    """The way to read the values of the label."""
    name, total = column.name, column.total
    numbers = column.numbers
    if asked.positive and asked.threshold is not None:
        raise ConfigError("--positive", "can't be given together with --threshold")
    if asked.positive:
        _check_positive(column, asked.positive)
        why = f"{', '.join(asked.positive)} are clicks"
        return Label(name, why, notes, positive=asked.positive)
    if asked.threshold is not None:
        if sum(numbers.values()) < _VALID_SHARE * total:
            rule = f"needs a label of numbers; {name} has the values {_shown(column)}"
            raise ConfigError("--threshold", rule, asked.threshold)
        why = f"a value of at least {asked.threshold:g} is a click"
        return Label(name, why, notes, threshold=asked.threshold)
    plain = sum(count for number, count in numbers.items() if 0 <= number <= 1)
    words = sum(count for text, count in column.solid.items() if text.strip().lower() in WORDS)
    if max(plain, words) >= _VALID_SHARE * total and not _counts(column):
        return Label(name, "0 and 1, or numbers between them", notes)
    if set(numbers) == {-1.0, 1.0} and not column.odd[0]:
        note = f"{name}: 1 is a click, -1 is none"
        return Label(name, "-1 and 1", [*notes, note], threshold=1.0)
    if _counts(column):
        note = f"{name}: a count; 1 and more is a click, 0 is none"
        return Label(name, "counts", [*notes, note], threshold=1.0)
    if sum(numbers.values()) >= _VALID_SHARE * total:
        way = "--threshold N makes a click of every value of at least N"
    else:
        way = "--positive VALUE,VALUE names the values that are clicks"
    raise ConfigError(name, f"is not 0 and 1; it has the values {_shown(column)}: {way}")


def _check_positive(column: Facts, positive: tuple[str, ...]) -> None:
    """Raise `ConfigError` if none of the values is there."""
    if column.counts.keys() & set(positive):
        return
    meant = nearest(positive[0], column.counts, cutoff=0)
    rule = f"must be values of {column.name}, such as {meant!r}; it has {_shown(column)}"
    raise ConfigError("--positive", rule, ",".join(positive))


def _shown(column: Facts) -> str:
    """The most frequent values, with their numbers of rows."""
    shown = [f"{text} ({count:,})" for text, count in column.solid.most_common(_SHOWN_VALUES)]
    more = len(column.solid) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def _counts(column: Facts) -> bool:
    """True for whole numbers from 0 on, some above 1, in a column that is called like a count."""
    return (
        plain_name(column.name.rpartition(".")[2]) in COUNTS
        and column.kind == "integers"
        and min(column.numbers) == 0
        and max(column.numbers) > 1
    )
