"""The ground of every room's errors: one root, one kind for a broken rule, and one way to name what
was meant.

Each room's own errors derive from these, grouped by what the caller does next. An error's text is
one line, fit for a terminal.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class NiwakiError(Exception):
    """The root of all errors that niwaki raises on purpose."""


class RuleError(NiwakiError, ValueError):
    """A setting, an event, a request or a checkpoint breaks a rule."""

    field: str
    """The field, column, key, option or file that breaks the rule. A setting's own struct names the
    field alone; whoever reads the struct puts the section before it."""
    rule: str
    """The rule, such as "must be in (0, 1]"."""
    value: str
    """The value as it is shown; empty where there is none, or where it must not be shown."""

    def __init__(self, field: str, rule: str, *value: object, shown: str = ""):
        """`value`: the offending value, where there is one; shown as its `repr`, shortened.
        `shown`: the value as it is to be shown, instead."""
        self.field = field
        self.rule = rule
        self.value = shorten(value[0]) if value else shown
        super().__init__(f"{field}: {rule}" + (f", got {self.value}" if self.value else ""))


def check_rules(settings: object, rules: Mapping[str, tuple[object, str]]) -> None:
    """Raise the `RuleError` of the first rule that `settings` breaks.

    `rules`: by name of a field, a truth value (the rule holds) and the rule.
    """
    for name, (holds, rule) in rules.items():
        if not holds:
            raise RuleError(name, rule, getattr(settings, name))


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut to `limit` characters for an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, known: Iterable[str], cutoff: float = 0.4) -> str | None:
    """The entry of `known` that `name` was probably meant to be; None if none is close.

    `cutoff`: least similarity, 0..1, as in `difflib.get_close_matches`; 0 always finds one.
    """
    return next(iter(get_close_matches(name, list(known), 1, cutoff)), None)
