"""The role of a column of plain values: text, numbers, booleans, times.

In: the facts of a column. Out: a `Role`: what it is used as, and why.
"""

from typing import NamedTuple

import numpy as np

from niwaki.stream.recordings.columns import Facts
from niwaki.stream.recordings.names import (
    can_be_written,
    is_index_name,
    is_time_name,
    says_amount,
    says_id,
)

FEW_VALUES = 10
NEW_RATIO = 0.9
"""Share of values that are new, from which on there is little to learn."""
TEXT_CHARACTERS = 40
_INDEX_ROWS = 50


class Role(NamedTuple):
    """The use of a column."""

    role: str
    """label, event time, categorical, numeric, list, weight, sampling ratio or ignored."""
    why: str
    told: bool = False
    """True if a note says so."""


def plain_role(facts: Facts) -> Role:
    """The role that names and values suggest."""
    name, kind = facts.name, facts.kind
    if not name:
        return Role("ignored", "it has no name")
    if not can_be_written(name):
        return Role("ignored", "its name is no valid Unicode")
    if facts.unread is not None:
        return Role("ignored", f"{kind} are not read")
    if kind == "always missing":
        return Role("ignored", "it is always missing")
    if kind == "times" or (is_time_name(name) and facts.time):
        return Role("ignored", "a further time; only the event time is read")
    every = facts.different
    counting = facts.increasing and len(facts.texts) >= _INDEX_ROWS
    counting = counting and not says_amount(name) and not says_id(name)
    if every and (is_index_name(name) or counting):
        return Role("ignored", "an index, or an id of the event itself: no value comes twice")
    if kind == "booleans":
        return Role("numeric", "booleans are read as 0 and 1")
    if kind == "integers":
        return _integers(facts)
    if kind == "numbers":
        odd = facts.odd[0]
        whole = facts.whole == sum(facts.numbers.values())
        if odd and whole and _integers(facts).role == "categorical":
            return Role("categorical", "most are integers, which are names")
        return Role("numeric", "numbers")
    texts = facts.counts
    new = facts.distinct > NEW_RATIO * facts.known and facts.distinct > 1
    if new and sum(map(len, texts)) > TEXT_CHARACTERS * len(texts):
        return Role("ignored", "free text: hardly a value comes twice")
    return Role("categorical", "text")


def _integers(facts: Facts) -> Role:
    if facts.leading_zeros or says_id(facts.name):
        return Role("categorical", "integers that are names, such as ids")
    if facts.distinct <= FEW_VALUES:
        return Role("categorical", "integers with few different values are names")
    if says_amount(facts.name):
        return Role("numeric", "integers that are amounts, by the column's name")
    numbers = facts.numbers
    if min(numbers) < -1:
        return Role("numeric", "integers below -1 are amounts")
    if _are_counts(facts):
        return Role("numeric", "integers that look like counts: small ones are frequent")
    return Role("categorical", "integers are names, such as ids; --numeric makes them amounts")


def _are_counts(facts: Facts) -> bool:
    """True if 0 or 1 is the most frequent value, and frequency falls with the value."""
    numbers = facts.numbers
    (common, count), *_ = numbers.most_common(1)
    if common not in (0, 1) or count < 0.05 * facts.known or max(numbers) < 20:
        return False
    middle = np.median(list(numbers.elements()))
    return bool(middle < 0.2 * max(numbers))
