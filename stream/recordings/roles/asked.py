"""The roles of columns that a user asks for, and the check that they can be had.

In: options of a command. Out: `Asked`, or a `ConfigError` that names the option, the column and the
nearest one.
"""

from collections.abc import Collection
from typing import NamedTuple

from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError

_NAMES = ("label", "timestamp", "weight", "sampling_ratio", "categorical", "numeric", "lists")
_ROLES = (*_NAMES, "ignore")


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
    lists: tuple[str, ...] = ()
    list_separator: str | None = None
    shares: tuple[tuple[str, str], ...] = ()
    """Pairs of a list or categorical column and the column whose embeddings it reads; "": it reads
    its own."""
    weight: str | None = None
    sampling_ratio: str | None = None
    ignore: tuple[str, ...] = ()
    envelope: str | None = None

    @property
    def taken(self) -> frozenset[str]:
        """The columns whose role is asked for, but for the label and the event time."""
        one = (self.weight, self.sampling_ratio)
        named = (name for name in one if name)
        return frozenset((*named, *self.categorical, *self.numeric, *self.lists, *self.ignore))

    @property
    def named(self) -> frozenset[str]:
        """All columns that are asked for."""
        others = [self.label, self.timestamp, *(name for pair in self.shares for name in pair)]
        return self.taken | {name for name in others if name}

    def check(self, columns: Collection[str]) -> None:
        """Raise `ConfigError` for a column that is not there, or that is asked for twice."""
        seen: set[str] = set()
        for option in _ROLES:
            given = getattr(self, option)
            for name in (given,) if isinstance(given, str) else given or ():
                if not name:
                    continue
                check_column(option_of(option), name, columns)
                if name in seen:
                    raise ConfigError(option_of(option), "asks for a second role of a column", name)
                seen.add(name)
        for name in (name for pair in self.shares for name in pair if name):
            check_column("--shares", name, columns)
        if self.list_separator == "":
            raise ConfigError("--list-separator", "must not be empty")


def option_of(role: str) -> str:
    """The option that asks for a role."""
    return f"--{role.replace('_', '-')}"


def check_column(option: str, name: str, columns: Collection[str]) -> None:
    """Raise `ConfigError` for a column that is not there."""
    if name not in columns:
        meant = nearest(name, list(columns), cutoff=0)
        rule = f"must be a column of the events; the nearest is {meant!r}"
        raise ConfigError(option, rule, name)
