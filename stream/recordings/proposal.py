"""The schema that a sample of events suggests, by the names of its columns and by their values.

In: a `Sample`, and the roles that a user asks for. Out: a `Proposal`: the schema, the role of each
column with the reason, and notes on what a user should know. Nothing is guessed where the figures
depend on it: which ratings are clicks, for instance, is asked for.

    label        `labels.find_label`
    event time   a column of times, best one with such a name
    lists        `roles.lists`, and `roles.sharing` for the embeddings that they share
    names        text, and integers, unless they are called or look like amounts
    numbers      other numbers, booleans, numbers in text
    ignored      objects, further times, indices, and what is always missing
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import RuleError
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.recordings.columns import Facts, backwards
from niwaki.stream.recordings.envelopes import open_envelope
from niwaki.stream.recordings.labels import Label, find_label, labels_of
from niwaki.stream.recordings.names import (
    CRITEO,
    can_be_written,
    is_time_name,
    says_id,
    time_rank,
)
from niwaki.stream.recordings.roles.asked import Asked
from niwaki.stream.recordings.roles.lists import FoundLists, find_lists, with_maps
from niwaki.stream.recordings.roles.plain import FEW_VALUES, Role, plain_role
from niwaki.stream.recordings.roles.reports import (
    ColumnReport,
    notes_of,
    report_of,
    report_of_lists,
)
from niwaki.stream.recordings.roles.sharing import Shared, find_shares
from niwaki.stream.recordings.roles.weights import check_weights, mention
from niwaki.stream.recordings.samples import Sample

__all__ = ["Asked", "ColumnReport", "Proposal", "Sample", "propose"]

_PREFIXES = {"c_": "categorical", "n_": "numeric", "l_": "list"}
_BACKWARDS_AT_MOST = 0.05
_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


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


def propose(sample: Sample, asked: Asked) -> Proposal:
    """The schema that `sample` suggests. Raises `ConfigError` where it suggests none: it names the
    values, and the way on."""
    if not sample.rows:
        raise ConfigError("events", "there are none from which a schema could be proposed")
    sample, envelope, name, notes = open_envelope(sample, asked.envelope, asked.label)
    asked = asked._replace(label=name)
    sample = with_maps(sample, asked)
    asked.check(sample.columns)
    facts = {name: Facts(name, values) for name, values in sample.columns.items()}
    label = find_label(facts, asked, sample.rows)
    notes += label.notes
    roles = {label.name: Role("label", label.why)}
    timestamp = _event_time(facts, label, asked, roles, notes)
    lists = _others(facts, asked, roles)
    shares = _shares(facts, lists, roles, asked)
    decimal = _decimal([facts[name] for name, role in roles.items() if role.role == "numeric"])
    if decimal == ",":
        notes.append("numbers have a decimal comma: 72,3 is 72.3")
    labels_B = labels_of(label, facts[label.name])
    columns = [
        report_of_lists(lists.columns[name], role, labels_B)
        if (role := roles[name]).role == "list"
        else report_of(one, role, labels_B, decimal)
        for name, one in facts.items()
    ]
    notes += notes_of(columns, roles)
    given = {name: shared.owner for name, shared in shares.items()}
    schema = _schema(columns, label, timestamp, facts, lists.separator, given)
    return Proposal(schema, envelope, decimal, columns, notes)


def _event_time(
    facts: dict[str, Facts], label: Label, asked: Asked, roles: dict[str, Role], notes: list[str]
) -> str | None:
    """The column with the event time, if there is one."""
    if asked.timestamp is not None:
        if asked.timestamp and facts[asked.timestamp].time is None:
            examples = ", ".join(facts[asked.timestamp].examples) or "none"
            rule = f"must be a column of times since 1990; it has {examples}"
            raise ConfigError("--timestamp", rule, asked.timestamp)
        found = asked.timestamp or None
    else:
        taken = {label.name, *asked.taken}
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
    roles[found] = Role("event time", f"times in the form of {shown}")
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
        and one.distinct > FEW_VALUES
    ]
    return running if len(running) == 1 else []


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(float(time_s), UTC).strftime("%Y-%m-%d %H:%M:%S")


def _others(facts: dict[str, Facts], asked: Asked, roles: dict[str, Role]) -> FoundLists:
    """Add the roles of all columns that have none yet. Returns the lists among them."""
    for role in ("categorical", "numeric", "ignore"):
        for name in getattr(asked, role):
            kind = facts[name].kind
            if role != "ignore" and facts[name].unread is not None:
                readable = kind in ("lists", "maps")
                rule = f"takes no {kind}; --lists does" if readable else f"{kind} are not read"
                raise ConfigError(f"--{role}", rule, name)
            roles[name] = Role("ignored" if role == "ignore" else role, f"--{role} asks for it")
    check_weights(facts, asked)
    for name, role in ((asked.weight, "weight"), (asked.sampling_ratio, "sampling ratio")):
        if name:
            roles[name] = Role(role, f"--{role.replace(' ', '-')} asks for it")
    free = [name for name in facts if name not in roles and name not in asked.lists]
    if set(CRITEO) <= {*facts}:
        roles |= {name: Role("numeric", "a count of Criteo's") for name in CRITEO}
        free = [name for name in free if name not in CRITEO]
    prefixed = bool(free) and all(name[:2] in _PREFIXES for name in free)
    named = [name for name in free if prefixed and name[:2] == "l_"]
    candidates = [name for name in free if _may_be_list(facts[name], prefixed)]
    lists = find_lists(facts, candidates, named, asked)
    for name in lists.columns:
        roles[name] = Role("list", lists.whys[name], told=True)
    for name in free:
        if name not in roles:
            roles[name] = _other(facts[name], prefixed, lists, asked)
    return lists


def _may_be_list(facts: Facts, prefixed: bool) -> bool:
    """True if a column can be a list by its name: prefixes decide on text where all columns have
    them."""
    name = facts.name
    by_prefix = not prefixed or name[:2] == "l_" or facts.unread is not None
    return bool(name) and can_be_written(name) and by_prefix


def _other(facts: Facts, prefixed: bool, lists: FoundLists, asked: Asked) -> Role:
    """The role of a column that is no list."""
    name, prefix = facts.name, facts.name[:2]
    if name in lists.ignored:
        return Role("ignored", lists.ignored[name])
    if prefixed and prefix == "l_":
        why = "its name begins with l_, and its values are no lists"
        role = Role("ignored", f"{why}; --categorical {name} reads it")
    elif prefixed and _can_be(facts, prefix):
        role = Role(_PREFIXES[prefix], f"its name begins with {prefix}")
    else:
        role = plain_role(facts)
    remarks = list(filter(None, (lists.remarks.get(name), mention(facts, asked))))
    return Role(role.role, "; ".join((role.why, *remarks)), told=bool(remarks))


def _shares(
    facts: dict[str, Facts], lists: FoundLists, roles: dict[str, Role], asked: Asked
) -> dict[str, Shared]:
    """The columns that share embeddings; in `roles`, too."""
    categorical = {
        name: facts[name].counts for name, role in roles.items() if role.role == "categorical"
    }
    found = find_shares(
        {name: one.counts for name, one in lists.columns.items()}, categorical, asked
    )
    for name, shared in found.items():
        role = roles[name]
        why = f"{role.why}; it shares the embeddings of {shared.owner!r}, {shared.why}"
        roles[name] = Role(role.role, why, told=True)
    return found


def _can_be(facts: Facts, prefix: str) -> bool:
    """True if a column holds what its prefix says."""
    if prefix == "n_":
        return bool(facts.numbers)
    return facts.known > 0 and facts.unread is None


def _decimal(columns: Sequence[Facts]) -> str:
    """The mark before decimals in most columns of numbers in text."""
    commas = sum("," in one.decimals for one in columns)
    return "," if commas > sum("." in one.decimals for one in columns) else "."


def _schema(
    columns: Sequence[ColumnReport],
    label: Label,
    timestamp: str | None,
    facts: dict[str, Facts],
    separator: str,
    shares: dict[str, str],
) -> Schema:
    """The schema of these roles."""
    roles = ("categorical", "numeric", "list", "ignored", "weight", "sampling ratio")
    by_role: dict[str, list[str]] = {role: [] for role in roles}
    for column in columns:
        if column.role in by_role and column.name and can_be_written(column.name):
            by_role[column.role].append(column.name)
    if not by_role["categorical"] and not by_role["numeric"] and not by_role["list"]:
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
            lists=tuple(by_role["list"]),
            list_separator=separator,
            shares=shares,
            weight=next(iter(by_role["weight"]), None),
            sampling_ratio=next(iter(by_role["sampling ratio"]), None),
            ignore=tuple(by_role["ignored"]),
        )
    except RuleError as error:
        raise ConfigError(error.field, error.rule, shown=error.value) from error
