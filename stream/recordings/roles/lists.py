"""The list columns of a sample, and the one separator of lists in text.

In: facts of columns, and what a user asks for. Out: `FoundLists`. A column is a list by its values:
JSON, lists and maps of Arrow, text with a separator. Lists of objects and vectors of numbers are
none, and the reason names the way on.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.columns import Facts
from niwaki.stream.recordings.names import says_list
from niwaki.stream.recordings.roles.asked import Asked, option_of
from niwaki.stream.recordings.roles.list_facts import ListFacts, broken_kind, is_written_list
from niwaki.stream.recordings.roles.separators import SEPARATORS, Pieces
from niwaki.stream.recordings.samples import Sample, Unread

_DEFAULTS = Schema(categorical=("_",))
_GOOD_SHARE = 0.99
_MOSTLY = 0.5
_LEAST_NAMES = 20
_MAP_NAMES, _MAP_SHARE = 8, 1 / 3
_WAY_ON = "a list of strings or numbers would be, such as one member of each object"
_VECTORS = (
    "vectors of numbers, such as embeddings, are not read; give each number a column of its own"
)


class FoundLists(NamedTuple):
    """The list columns of a sample."""

    separator: str
    """The separator of lists in text."""
    columns: dict[str, ListFacts]
    whys: dict[str, str]
    """For each of `columns`, the reason."""
    ignored: dict[str, str]
    """Columns of lists that are not read, and the reason with the way on."""
    remarks: dict[str, str]
    """Columns that are something else, and what is to be said of lists in them."""


def with_maps(sample: Sample, asked: Asked) -> Sample:
    """The sample with JSON objects as maps to weights where a user asks for it, or where there are
    many names, of which each event has few."""
    for path, maps in sample.maps.items():
        names = Counter(name for one in maps for name in one or ())
        known = sum(one is not None for one in maps)
        many = len(names) >= _MAP_NAMES and names.total() <= _MAP_SHARE * len(names) * known
        inside = any(name.startswith(f"{path}.") and name in asked.named for name in sample.columns)
        if path in asked.lists or (many and not inside):
            sample = sample.with_map(path)
    return sample


def find_lists(
    facts: Mapping[str, Facts], free: Collection[str], named: Collection[str], asked: Asked
) -> FoundLists:
    """The lists of columns with these facts. `free`: columns without a role yet; `named`: those
    whose name says that they are lists."""
    found = FoundLists("", {}, {}, {}, {})
    texts: dict[str, list[str]] = {}
    """For each column of text with separators, those at which it may be split."""
    names = [*asked.lists, *free]
    vocabularies = {
        name: set(one.counts)
        for name, one in facts.items()
        if one.unread is None and one.distinct >= _LEAST_NAMES
    }
    for name in names:
        one = facts[name]
        if one.unread is not None or _is_written(one):
            continue
        others = [values for other, values in vocabularies.items() if other != name]
        may = _separators(one, others, name in named, asked)
        if may or name in asked.lists:
            texts[name] = may
    separator = _separator(texts, asked)
    found = found._replace(separator=separator)
    for name in names:
        if name in texts:
            if separator in texts[name] or name in asked.lists:
                found.columns[name] = ListFacts(name, facts[name].values, separator)
                found.whys[name] = f"text, split at {separator!r}"
            else:
                found.remarks[name] = (
                    f"its values look like lists split at {texts[name][0]!r}, but those of others"
                    f" are split at {separator!r}; --list-separator {texts[name][0]!r} reads these"
                )
        else:
            _of_values(facts[name], found, may_be_empty=name in named or says_list(name))
    for name in asked.lists:
        _asked(facts[name], found)
    return found


def _is_written(facts: Facts) -> bool:
    """True if most of a column's texts are lists or maps in JSON or the like, and all that begin
    so."""
    begin = {t: n for t, n in facts.solid.items() if t.lstrip()[:1] in ("[", "{")}
    if not begin or sum(begin.values()) < _MOSTLY * facts.total:
        return False
    written = sum(count for text, count in begin.items() if is_written_list(text))
    return written >= _GOOD_SHARE * sum(begin.values())


def _separators(
    facts: Facts, vocabularies: Collection[Collection[str]], named: bool, asked: Asked
) -> list[str]:
    """The separators at which the texts of a column may be split, the best first."""
    if facts.kind != "strings" and not (named or says_list(facts.name)):
        return []
    if facts.kind not in ("strings", "numbers"):
        return []
    asked_for = () if asked.list_separator is None else (asked.list_separator,)
    candidates = dict.fromkeys((*asked_for, *SEPARATORS))
    pieces = [Pieces(facts, one) for one in candidates if _occurs(one, facts)]
    if facts.name in asked.lists:
        found = [one for one in pieces if one.several]
        best = sorted(found, key=lambda one: one.several, reverse=True)
    else:
        best = [one for one in pieces if one.are_lists(vocabularies, named=named)]
    return [one.separator for one in best]


def _occurs(separator: str, facts: Facts) -> bool:
    return any(separator in text for text in facts.solid)


def _separator(texts: Mapping[str, list[str]], asked: Asked) -> str:
    """The separator that most columns have, those before others that a user asks for."""
    if asked.list_separator is not None:
        return asked.list_separator
    for names in ([name for name in texts if name in asked.lists], list(texts)):
        votes = Counter(texts[name][0] for name in names if texts[name])
        if votes:
            most = max(votes.values())
            return next(one for one in SEPARATORS if votes[one] == most)
    return _DEFAULTS.list_separator


def _of_values(facts: Facts, found: FoundLists, *, may_be_empty: bool) -> None:
    """Add a column of lists, or of text that holds them in JSON. `may_be_empty`: it is a list even
    if all are empty, since its name says so; others may hold anything later."""
    if facts.unread is None and not _is_written(facts):
        return
    if isinstance(facts.unread, Unread) and facts.unread.kind not in ("lists", "maps"):
        if facts.unread.kind.startswith(("lists", "maps")):
            found.ignored[facts.name] = f"{facts.unread.kind} are not read; {_WAY_ON}"
        return
    lists = ListFacts(facts.name, facts.values, found.separator)
    good = 1 - len(lists.broken) / max(facts.known, 1)
    if good < _GOOD_SHARE:
        found.ignored[facts.name] = f"{broken_kind(lists.broken[0])} are not read; {_WAY_ON}"
    elif lists.decimals > _MOSTLY:
        found.ignored[facts.name] = _VECTORS
    elif not lists.counts and not may_be_empty:
        found.ignored[facts.name] = f"all {lists.kind} are empty"
    else:
        found.columns[facts.name] = lists
        kind = lists.kind.split()[0]
        found.whys[facts.name] = (
            f"text of {kind}" if facts.unread is None else f"its values are {kind}"
        )


def _asked(facts: Facts, found: FoundLists) -> None:
    """Make a list of a column that a user asks for. Raises `ConfigError` where it can't be one."""
    name = facts.name
    if isinstance(facts.unread, Unread) and facts.unread.kind not in ("lists", "maps"):
        rule = f"{facts.unread.kind} are not read; {_WAY_ON}"
        raise ConfigError(option_of("lists"), rule, name)
    if name not in found.columns:
        found.columns[name] = ListFacts(name, facts.values, found.separator, pairs=True)
    lists = found.columns[name]
    if facts.known and len(lists.broken) == facts.known:
        rule = f"{broken_kind(lists.broken[0])} are not read; {_WAY_ON}"
        raise ConfigError(option_of("lists"), rule, name)
    found.ignored.pop(name, None)
    found.whys[name] = f"--lists asks for it; {found.whys.get(name, lists.kind)}"
