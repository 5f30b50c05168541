"""Events that cannot be learned from, and the account of them that a command gives.

In: rejects and odd values, as decoders find them. Out: counts by rule with the first example of
each, as lines, as JSON, or as the error that too many of them are.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from niwaki.model.features.values import READ_AS_MISSING, Odd
from niwaki.stream.errors import ConfigError, EventError, reason_of

KINDS = (
    "null",
    "size",
    "encoding",
    "row",
    "json",
    "arrow",
    "registry",
    "envelope",
    "column",
    "label",
    "timestamp",
    "categorical",
    "numeric",
    "list",
    "weight",
    "sampling_ratio",
)
"""Kinds of rules that an event can break, few enough to be labels of a metric."""


class Reject(NamedTuple):
    """A message or row that cannot be learned from, with the reason."""

    position: int
    """Position in the decoded sequence: of a message, or of a row of a table. Of a recording: the
    line or row in the file, from 1."""
    kind: str
    """The kind of rule that it breaks, one of `KINDS`."""
    field: str
    """The column, or "value" for a message as a whole, or "row" for a row as a whole."""
    rule: str
    value: str = ""
    """The value as it is shown; empty where there is none."""
    events: int = 1
    """Number of rejected events. Other events of the same message, if any, are decoded."""
    place: str = ""
    """The place as a person finds it, such as "clicks.csv, line 17"; empty where only the position
    is known."""

    @classmethod
    def of(cls, position: int, error: EventError, events: int = 1) -> "Reject":
        """The reject of the message or row at `position`, for the rule of `error`."""
        return cls(position, error.kind, error.field, error.rule, error.value, events)

    @property
    def reason(self) -> str:
        """The field, the rule and the value in one line."""
        return reason_of(self.field, self.rule, self.value)


class _Example(NamedTuple):
    """The number of rejects of one rule, and the first of them."""

    events: int
    first: Reject


_MOST_RULES = 50
_OTHERS = ("others",)
_SHAPE_CHARACTERS = 60


def _shape(rule: str) -> str:
    """A rule without its numbers: a row with 3 fields breaks the rule that one with 4 breaks."""
    return re.sub(r"\d+", "#", rule)[:_SHAPE_CHARACTERS]


class Tally:
    """An account of the events that were read, left out, or read otherwise than they are
    written."""

    def __init__(self) -> None:
        self.events = 0
        """Events read, without those left out."""
        self.rejected = 0
        """Events left out."""
        self._rules: dict[tuple[str, ...], _Example] = {}
        self._odd: dict[tuple[str, str], Odd] = {}

    def add(self, events: int, rejects: Iterable[Reject], odd: Iterable[Odd] = ()) -> None:
        """Count events that were read, and what was found beside them."""
        self.events += events
        for reject in rejects:
            self.rejected += reject.events
            key: tuple[str, ...] = (reject.kind, reject.field, _shape(reject.rule))
            if key not in self._rules and len(self._rules) >= _MOST_RULES:
                key = _OTHERS
            known = self._rules.get(key)
            count = reject.events + (known.events if known else 0)
            self._rules[key] = _Example(count, known.first if known else reject)
        for one in odd:
            before = self._odd.get((one.field, one.done))
            count = one.events + (before.events if before else 0)
            self._odd[one.field, one.done] = (before or one)._replace(events=count)

    @property
    def odd_values(self) -> int:
        """Number of values that were read otherwise than they are written."""
        return sum(one.events for one in self._odd.values())

    @property
    def rejected_ratio(self) -> float:
        """Share of all events that were left out, 0..1."""
        return self.rejected / max(self.events + self.rejected, 1)

    def lines(self) -> list[str]:
        """The account in lines of text; none if there is nothing to tell."""
        lines = []
        if self.rejected:
            total = self.events + self.rejected
            lines.append(f"{self.rejected:,} of {total:,} events were left out:")
        for example in self._rules.values():
            first = example.first
            place = f"{first.place}: " if first.place else ""
            lines.append(f"  {example.events:,} by the rule of {place}{first.reason}")
        for one in self._odd.values():
            lines.append(f"{one.field}: {one.events:,} {one.done}, the first: {one.value}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The account as JSON has it: `rejected` (events), `rejects` (by rule, with the first
        example), `read_as_missing` (by column) and `read_in_part` (lists, by column)."""
        rejects = [
            {
                "events": example.events,
                "kind": example.first.kind,
                "place": example.first.place,
                "field": example.first.field,
                "rule": example.first.rule,
                "value": example.first.value,
            }
            for example in self._rules.values()
        ]
        missing, parts = [
            [
                {"field": one.field, "events": one.events, "value": one.value}
                for one in self._odd.values()
                if (one.done == READ_AS_MISSING) is as_missing
            ]
            for as_missing in (True, False)
        ]
        return {
            "rejected": self.rejected,
            "rejects": rejects,
            "read_as_missing": missing,
            "read_in_part": parts,
        }

    def check(self, source: str, max_rejected_ratio: float) -> None:
        """Raise `ConfigError` about `source` if nothing was read, or more than the given share was
        left out."""
        if not self.events and not self.rejected:
            raise ConfigError(source, "has no events")
        if self.events and self.rejected_ratio <= max_rejected_ratio:
            return
        account = " ".join(line.strip() for line in self.lines()[: 1 + len(self._rules)])
        if not self.events:
            rule = f"{account}; none is left: `niwaki check FILE` shows the columns"
        else:
            rule = (
                f"{account}; that is more than max_rejected_ratio = {max_rejected_ratio:g}:"
                " `niwaki check FILE` shows the columns, --max-rejected-ratio allows more"
            )
        raise ConfigError(source, rule)
