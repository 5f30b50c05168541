"""Errors on the way of an event, grouped by what happens next.

    ConfigError     the user corrects it: one line, exit code 2
    EventError      the event goes to the dead-letter topic, the stream goes on
    BrokerError     try again, with backoff
    PositionError   stop: the topic no longer holds the events that follow a snapshot

Each library's own errors are translated into these in the one module that uses the library.
"""

from niwaki.pruning.errors import NiwakiError, RuleError

_MAX_REASON_CHARACTERS = 400  # a reason travels in a header and in a line of a log


def reason_of(field: str, rule: str, value: str = "") -> str:
    """A broken rule in one line, at most 400 characters. `value`: as it is shown; empty: none."""
    return (f"{field}: {rule}" + (f", got {value}" if value else ""))[:_MAX_REASON_CHARACTERS]


class ConfigError(RuleError):
    """A setting, option or file that the user must correct. Names it, the rule and the value."""


class EventError(RuleError):
    """An event that cannot be learned from, however often it is read. Dead-letter it and go on."""

    kind: str
    """The kind of broken rule, one of `stream.tables.KINDS`."""

    def __init__(self, kind: str, field: str, rule: str, *value: object):
        """`field`: the column, or "value" for a message as a whole. `value`: see `RuleError`."""
        super().__init__(field, rule, *value)
        self.kind = kind
        self.args = (reason_of(field, rule, self.value),)


class BrokerError(NiwakiError):
    """A request that the broker did not fulfil. Try again, with backoff."""


class TooManyRejects(NiwakiError):
    """Most events of a topic can't be learned from. Correct the schema, or the limit, and start
    again."""


class PositionError(NiwakiError):
    """An offset at which the topic holds no events. Going on would skip or repeat events, so
    stop."""
