"""The schema that a sample of events suggests, by the names of its columns and by their values.

In: a `Sample`, and the roles that a user asks for. Out: a `Proposal`: the schema, the role of each
column with the reason, and notes on what a user should know. Nothing is guessed where the figures
depend on it: which ratings are clicks, for instance, is asked for.

    label        `labels.find_label`
    event time   a column of times, best one with such a name
    names        text, and integers, unless they are called or look like amounts
    numbers      other numbers, booleans, numbers in text
    ignored      lists, objects, further times, indices, and what is always missing
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import RuleError, nearest, shorten
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.recordings.columns import Facts, backwards
from niwaki.stream.recordings.envelopes import open_envelope
from niwaki.stream.recordings.labels import Label, find_label, labels_of
from niwaki.stream.recordings.leaks import auc_of
from niwaki.stream.recordings.names import (
    CRITEO,
    can_be_written,
    is_index_name,
    is_time_name,
    says_amount,
    says_id,
    time_rank,
)
from niwaki.stream.recordings.samples import Sample

__all__ = ["Asked", "ColumnReport", "Proposal", "Sample", "propose"]

_FEW_VALUES = 10
_PREFIXES = {"c_": "categorical", "n_": "numeric", "l_": "ignored"}
_LEAK_AUC = 0.98
_LEAK_ROWS = 50
_INDEX_ROWS = 50
_NEW_RATIO = 0.9
_MOSTLY_NUMBERS = 0.5
_BACKWARDS_AT_MOST = 0.05
_TEXT_CHARACTERS = 40
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


class Asked(NamedTuple):
    """The roles that a user asks for; None or empty: none."""

    label: str | None = None
    threshold: float | None = None
    positive: tuple[str, ...] = ()
    missing_label: str | None = None
    timestamp: str | None = None
    """"": no column is the event time."""
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    envelope: str | None = None


class ColumnReport(NamedTuple):
    """One column: what it is, and what it is used as."""

    name: str
    kind: str
    examples: list[str]
    missing: int
    distinct: int
    role: str
    """label, event time, categorical, numeric or ignored."""
    why: str
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return self._asdict()


class Proposal(NamedTuple):
    """A schema, and the reasons for it."""

    schema: Schema
    envelope: str
    """Path of the event in each row; empty: the row is the event."""
    decimal: str
    """Mark before the decimals of numbers in text."""
    columns: list[ColumnReport]
    notes: list[str]

    def settings(self, events: EventsConfig) -> EventsConfig:
        """The settings with which events of this schema are read."""
        return msgspec.structs.replace(events, envelope=self.envelope, decimal=self.decimal)


class _Role(NamedTuple):
    role: str
    why: str


def propose(sample: Sample, asked: Asked) -> Proposal:
    """The schema that `sample` suggests. Raises `ConfigError` where it suggests none: it names the
    values, and the way on."""
    if not sample.rows:
        raise ConfigError("events", "there are none from which a schema could be proposed")
    sample, envelope, name, notes = open_envelope(sample, asked.envelope, asked.label)
    asked = asked._replace(label=name)
    _check_names(sample, asked)
    facts = {name: Facts(name, values) for name, values in sample.columns.items()}
    label = find_label(facts, asked, sample.rows)
    notes += label.notes
    roles = {label.name: _Role("label", label.why)}
    timestamp = _event_time(facts, label, asked, roles, notes)
    _others(facts, asked, roles)
    decimal = _decimal([facts[name] for name, role in roles.items() if role.role == "numeric"])
    if decimal == ",":
        notes.append("numbers have a decimal comma: 72,3 is 72.3")
    labels_B = labels_of(label, facts[label.name])
    columns = [_report(one, roles[name], labels_B, decimal) for name, one in facts.items()]
    notes += _told(columns)
    schema = _schema(columns, label, timestamp, facts)
    return Proposal(schema, envelope, decimal, columns, notes)


def _check_names(sample: Sample, asked: Asked) -> None:
    """Raise `ConfigError` for a column that was asked for and is not there, or asked for twice."""
    seen: set[str] = set()
    for option in ("label", "timestamp", "categorical", "numeric", "ignore"):
        given = getattr(asked, option)
        for name in (given,) if isinstance(given, str) else given or ():
            if not name:
                continue
            if name not in sample.columns:
                meant = nearest(name, list(sample.columns), cutoff=0)
                rule = f"must be a column of the events; the nearest is {meant!r}"
                raise ConfigError(f"--{option}", rule, name)
            if name in seen:
                raise ConfigError(f"--{option}", "asks for a second role of a column", name)
            seen.add(name)


def _event_time(
    facts: dict[str, Facts], label: Label, asked: Asked, roles: dict[str, _Role], notes: list[str]
) -> str | None:
    """The column with the event time, if there is one."""
    if asked.timestamp is not None:
        if asked.timestamp and facts[asked.timestamp].time is None:
            examples = ", ".join(facts[asked.timestamp].examples) or "none"
            rule = f"must be a column of times since 1990; it has {examples}"
            raise ConfigError("--timestamp", rule, asked.timestamp)
        found = asked.timestamp or None
    else:
        taken = {label.name, *asked.categorical, *asked.numeric, *asked.ignore}
        free = [one for one in facts.values() if one.name not in taken]
        named = sorted(
            (one for one in free if is_time_name(one.name)), key=lambda o: time_rank(o.name)
        )
        times = (
            [one for one in named if one.time]
            or [one for one in free if one.kind == "times"]
            or _running([one for one in free if one not in named])
        )
        for one in named if not times else ():
            if one.kind in ("integers", "numbers"):
                shown = f"{min(one.numbers):g} to {max(one.numbers):g}"
                notes.append(f"{one.name}: {shown} are no times since 1970, so it is no event time")
        found = times[0].name if times else None
    if found is None:
        notes.append("no column is the event time; --timestamp names one")
        return None
    form = facts[found].time
    assert form is not None
    known_s = form.times_s_B[~np.isnan(form.times_s_B)]
    shown = f"{_UNITS[form.form]} since 1970" if form.form in _UNITS else form.form
    shown = "ISO 8601" if form.form == "iso" else shown
    roles[found] = _Role("event time", f"times in the form of {shown}")
    span = f"{_moment(known_s.min())} to {_moment(known_s.max())}"
    notes.append(f"{found}: event times, {shown}, from {span} (UTC)")
    if back := backwards(form.times_s_B):
        notes.append(f"{found}: {back:.1%} of the events are earlier than the one before them")
    return found


def _running(columns: Sequence[Facts]) -> list[Facts]:
    """Of columns whose name does not say it, those of numbers that are times and run on, if there
    is but one: seconds are left out, since ids may look like them."""
    running = [
        one
        for one in columns
        if one.kind == "integers"
        and not says_id(one.name)
        and one.time
        and one.time.form in ("ms", "us", "ns")
        and backwards(one.time.times_s_B) <= _BACKWARDS_AT_MOST
        and one.distinct > _FEW_VALUES
    ]
    return running if len(running) == 1 else []


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(float(time_s), UTC).strftime("%Y-%m-%d %H:%M:%S")


def _others(facts: dict[str, Facts], asked: Asked, roles: dict[str, _Role]) -> None:
    """The roles of all columns that have none yet."""
    for role in ("categorical", "numeric", "ignore"):
        for name in getattr(asked, role):
            if role != "ignore" and facts[name].unread is not None:
                raise ConfigError(f"--{role}", f"{facts[name].kind} are not read", name)
            roles[name] = _Role("ignored" if role == "ignore" else role, f"--{role} asks for it")
    free = [name for name in facts if name not in roles]
    if set(CRITEO) <= {*facts}:
        roles |= {name: _Role("numeric", "a count of Criteo's") for name in CRITEO}
        free = [name for name in free if name not in CRITEO]
    prefixed = bool(free) and all(name[:2] in _PREFIXES for name in free)
    for name in free:
        by_prefix = _PREFIXES[name[:2]] if prefixed and _can_be(facts[name], name[:2]) else None
        if by_prefix is not None:
            roles[name] = _Role(by_prefix, f"its name begins with {name[:2]}")
        else:
            roles[name] = _role(facts[name])


def _can_be(facts: Facts, prefix: str) -> bool:
    """True if a column holds what its prefix says."""
    if prefix == "n_":
        return bool(facts.numbers)
    return facts.known > 0 and facts.unread is None


def _role(facts: Facts) -> _Role:
    name, kind = facts.name, facts.kind
    if not name:
        return _Role("ignored", "it has no name")
    if not can_be_written(name):
        return _Role("ignored", "its name is no valid Unicode")
    if facts.unread is not None:
        return _Role("ignored", f"{kind} are not read")
    if kind == "always missing":
        return _Role("ignored", "it is always missing")
    if kind == "times" or (is_time_name(name) and facts.time):
        return _Role("ignored", "a further time; only the event time is read")
    every = facts.different
    counting = facts.increasing and len(facts.texts) >= _INDEX_ROWS
    counting = counting and not says_amount(name) and not says_id(name)
    if every and (is_index_name(name) or counting):
        return _Role("ignored", "an index, or an id of the event itself: no value comes twice")
    if kind == "booleans":
        return _Role("numeric", "booleans are read as 0 and 1")
    if kind == "integers":
        return _integers(facts)
    if kind == "numbers":
        odd = facts.odd[0]
        whole = facts.whole == sum(facts.numbers.values())
        if odd and whole and _integers(facts).role == "categorical":
            return _Role("categorical", "most are integers, which are names")
        return _Role("numeric", "numbers")
    texts = facts.counts
    new = facts.distinct > _NEW_RATIO * facts.known and facts.distinct > 1
    if new and sum(map(len, texts)) > _TEXT_CHARACTERS * len(texts):
        return _Role("ignored", "free text: hardly a value comes twice")
    return _Role("categorical", "text")


def _integers(facts: Facts) -> _Role:
    if facts.leading_zeros or says_id(facts.name):
        return _Role("categorical", "integers that are names, such as ids")
    if facts.distinct <= _FEW_VALUES:
        return _Role("categorical", "integers with few different values are names")
    if says_amount(facts.name):
        return _Role("numeric", "integers that are amounts, by the column's name")
    numbers = facts.numbers
    if min(numbers) < -1:
        return _Role("numeric", "integers below -1 are amounts")
    if _are_counts(facts):
        return _Role("numeric", "integers that look like counts: small ones are frequent")
    return _Role("categorical", "integers are names, such as ids; --numeric makes them amounts")


def _are_counts(facts: Facts) -> bool:
    """True if 0 or 1 is the most frequent value, and frequency falls with the value."""
    numbers = facts.numbers
    (common, count), *_ = numbers.most_common(1)
    if common not in (0, 1) or count < 0.05 * facts.known or max(numbers) < 20:
        return False
    middle = np.median(list(numbers.elements()))
    return bool(middle < 0.2 * max(numbers))


def _decimal(columns: Sequence[Facts]) -> str:
    """The mark before decimals in most columns of numbers in text."""
    commas = sum("," in one.decimals for one in columns)
    return "," if commas > sum("." in one.decimals for one in columns) else "."


def _report(facts: Facts, role: _Role, labels_B: np.ndarray, decimal: str) -> ColumnReport:
    warnings = []
    if role.role == "label":
        found = np.unique(labels_B[~np.isnan(labels_B)])
        if len(found) == 1:
            warnings.append(f"all {np.sum(~np.isnan(labels_B)):,} labels are {found[0]:g}")
    elif role.role in ("categorical", "numeric"):
        warnings = _warnings(facts, role, decimal)
        if len(labels_B) >= _LEAK_ROWS:
            auc = auc_of(facts, role.role, labels_B)
            if auc > _LEAK_AUC:
                warnings.append(f"it gives the label away: AUC {auc:.3f} by itself")
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


def _warnings(facts: Facts, role: _Role, decimal: str) -> list[str]:
    """Warnings about a column that is learned from."""
    warnings = []
    if facts.missing > 0.5 * len(facts.texts):
        warnings.append(f"{facts.missing / len(facts.texts):.0%} of the values are missing")
    if facts.distinct == 1:
        warnings.append("it has one value only")
    numbers = sum(facts.numbers.values()) / max(facts.total, 1)
    if role.role == "categorical":
        if facts.distinct > max(_NEW_RATIO * facts.known, 50):
            first = f"nearly every one of the first {facts.known:,} values is new"
            warnings.append(f"{first}: there is little to learn from it unless they come again")
        named = facts.leading_zeros or says_id(facts.name)
        if facts.kind == "strings" and numbers >= _MOSTLY_NUMBERS and not named:
            odd = shorten(facts.odd[1], _TEXT_CHARACTERS)
            warnings.append(f"{numbers:.0%} of the values are numbers, others are text like {odd}")
    elif facts.decimals - {decimal}:
        marks = {".": "a point", ",": "a comma"}
        other = marks[facts.decimal]
        warnings.append(f"its decimals follow {other}, those of others {marks[decimal]}")
    elif facts.decorated and decimal == ".":
        warnings.append(f"its numbers are decorated: {facts.decorated.strip()!r} is read")
    return warnings


def _told(columns: Sequence[ColumnReport]) -> list[str]:
    """Notes on what is ignored, and on what looks wrong."""
    notes = [
        f"{column.name!r} is ignored: {column.why}"
        for column in columns
        if column.role == "ignored"
    ]
    for column in columns:
        notes += [f"{column.name}: {warning}" for warning in column.warnings]
    return notes


def _schema(
    columns: Sequence[ColumnReport], label: Label, timestamp: str | None, facts: dict[str, Facts]
) -> Schema:
    by_role: dict[str, list[str]] = {"categorical": [], "numeric": [], "ignored": []}
    for column in columns:
        if column.role in by_role and column.name and can_be_written(column.name):
            by_role[column.role].append(column.name)
    if not by_role["categorical"] and not by_role["numeric"]:
        raise ConfigError("events", f"have no column to learn from beside {label.name!r}")
    form = facts[timestamp].time if timestamp else None
    try:
        return Schema(
            label=label.name,
            label_threshold=label.threshold,
            label_positive=label.positive,
            missing_label=label.missing,
            timestamp=timestamp,
            timestamp_format=form.form if form else "ms",
            categorical=tuple(by_role["categorical"]),
            numeric=tuple(by_role["numeric"]),
            ignore=tuple(by_role["ignored"]),
        )
    except RuleError as error:
        raise ConfigError(error.field, error.rule, shown=error.value) from error
