"""Numbers and lists of a report in words, for its page, its plots and the terminal.

In: values of a report's data. Out: short texts. It computes nothing.
"""

from collections.abc import Iterable, Sequence
from typing import Any

_MOST_EVENTS = 6  # listed one by one; more of them are counted


def number(value: float | None) -> str:
    """A measure of about 1 with four digits."""
    return "unknown" if value is None else f"{value:.4f}"


def percent(ratio: float | None) -> str:
    """A share of 0..1 as a percentage."""
    return "unknown" if ratio is None else f"{100 * ratio:.1f}\u00a0%"


def of_dense(costs: dict[str, Any], data: dict[str, Any]) -> str:
    """Multiply-adds in `costs` as a percentage of the dense network's."""
    return percent(costs["multiply_adds"] / data["dense_multiply_adds"])


def events_of(rows: Iterable[dict[str, Any]]) -> str:
    """The distinct events of `rows`, in order; a long list is cut."""
    events = [f"{event:,}" for event in sorted({row["event"] for row in rows})]
    if len(events) > _MOST_EVENTS + 1:
        events = [*events[:_MOST_EVENTS], f"{len(events) - _MOST_EVENTS} more"]
    return listed(events) or "none"


def listed(words: Sequence[str]) -> str:
    """An enumeration: "a", "a and b", "a, b and c"."""
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)
