"""What can go wrong on the way of an event, grouped by what happens next.

    ConfigError     the user corrects it: one line, exit code 2
    EventError      the event goes to the dead-letter topic, the stream goes on
    BrokerError     try again, with backoff
    PositionError   stop: the topic no longer holds the events that a snapshot says come next

Each library's own errors are translated into these in the one module that uses the library.
"""

from niwaki.pruning.errors import NiwakiError, RuleError

_MAX_REASON_CHARACTERS = 400  # a reason travels in a header and in a line of a log


class ConfigError(RuleError):
    """The user asked for what cannot be had. Names the field (or file, or option), the rule and the
    value."""


class EventError(NiwakiError, ValueError):
    """This event cannot be learned from, whatever is tried. Dead-letter it and go on."""

    def __init__(self, rule: str, reason: str):
        self.rule = rule
        super().__init__(reason[:_MAX_REASON_CHARACTERS])


class BrokerError(NiwakiError):
    """The broker did not do what was asked. It may later: try again, with backoff."""


class PositionError(NiwakiError):
    """The events at an offset that was asked for do not exist. Going on would skip or repeat
    events, so stop."""
