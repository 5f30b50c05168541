"""Columns whose values are those of another column, so that they can share its embeddings.

In: the values of list and categorical columns, and what a user asks for. Out: for a column the one
whose embeddings it reads, with the reason. Small enumerations never share by themselves: yes and
no, or the hours of a day, are equal without being the same things.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.names import says_history, says_thing, things
from niwaki.stream.recordings.roles.asked import Asked

Counts = Mapping[str, int]
"""Number of times that each value of a column occurs."""
_LEAST_RATIO, _LEAST_RATIO_NAMED = 0.5, 0.4
"""Share of a column's different values that the other one must have; where their names agree, if it
has half of all values, too."""
_LEAST_COMMON, _LEAST_COMMON_NAMED = 20, 10
_SMALL_INTEGER = 100
_DENSE = 0.2


class Shared(NamedTuple):
    """The column that another one shares."""

    owner: str
    why: str


def find_shares(
    lists: Mapping[str, Counts], categorical: Mapping[str, Counts], asked: Asked
) -> dict[str, Shared]:
    """For list and categorical columns, by the number of times that each value occurs, those that
    share another's embeddings."""
    found = _asked(lists, categorical, asked)
    decided = {name for pair in asked.shares for name in pair}
    for name, values in categorical.items():
        others = {other: those for other, those in categorical.items() if _is_owner_of(name, other)}
        if name not in decided and (best := _best(name, values, others, found)):
            found[name] = best
            decided.add(best.owner)
    for name, values in lists.items():
        if name not in decided and (best := _best(name, values, categorical, found)):
            found[name] = best
    return found


def _asked(
    lists: Mapping[str, Counts], categorical: Mapping[str, Counts], asked: Asked
) -> dict[str, Shared]:
    """The shares that a user asks for. Raises `ConfigError` for those that can't be."""
    pairs = {name: owner for name, owner in asked.shares if owner}
    for name, owner in pairs.items():
        if name not in lists and name not in categorical:
            raise ConfigError("--shares", "takes list and categorical columns", name)
        if owner not in categorical or owner in pairs or owner == name:
            rule = f"{name!r} takes a categorical column with embeddings of its own"
            raise ConfigError("--shares", rule, owner)
    return {name: Shared(owner, "as --shares asks") for name, owner in pairs.items()}


def _best(
    name: str, values: Counts, owners: Mapping[str, Counts], found: Mapping[str, Shared]
) -> Shared | None:
    """The column that has most of the values, one with a name like it before others."""
    integers = _integers(values)
    if integers and max(integers) < _SMALL_INTEGER:
        return None
    ranked = []
    for owner, owned in owners.items():
        if owner in found:
            continue
        common = values.keys() & owned.keys()
        named = _names_agree(name, owner)
        # Rare values of a long tail are often missing in a sample.
        ratio = len(common) / max(len(values), 1)
        if named and ratio >= _LEAST_RATIO_NAMED:
            ratio = sum(values[one] for one in common) / sum(values.values())
        least = _LEAST_COMMON_NAMED if named and not integers else _LEAST_COMMON
        enough = len(common) >= least and ratio >= _LEAST_RATIO
        if enough and (named or not _are_codes(integers)):
            ranked.append((named, ratio, len(common), owner))
    if not ranked:
        return None
    _, _, common_values, owner = max(ranked, key=lambda one: one[:2])
    return Shared(owner, f"which has {common_values:,} of its {len(values):,} values")


def _names_agree(name: str, owner: str) -> int:
    """2 where both names say the same things, 1 where one is of the past and the other of things
    that people click, else 0."""
    if things(name) & things(owner):
        return 2
    return int(says_history(name) and says_thing(owner))


def _is_owner_of(name: str, owner: str) -> bool:
    """True if the names of two categorical columns say that they hold the same things, and one says
    no more than that: "last_item" and "item"."""
    return bool(things(owner)) and things(owner) <= things(name) and len(owner) < len(name)


def _integers(values: Counts) -> Sequence[int]:
    """The values as integers, if most of them are."""
    found = [int(one) for one in values if one.isascii() and one.lstrip("-").isdigit()]
    return found if len(found) > _LEAST_RATIO * len(values) else []


def _are_codes(integers: Sequence[int]) -> bool:
    """True for integers that run from 0 or 1 on, as codes of any column do."""
    if not integers or min(integers) > 10:
        return False
    return len(integers) >= _DENSE * (max(integers) - min(integers) + 1)
