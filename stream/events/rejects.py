"""Events that cannot be learned from, and what is told of them."""

from typing import NamedTuple

from niwaki.stream.errors import reason_of

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

    @property
    def reason(self) -> str:
        """The field, the rule and the value in one line."""
        return reason_of(self.field, self.rule, self.value)
