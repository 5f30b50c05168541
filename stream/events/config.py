"""Settings of the way that events are read (the `[events]` section)."""

from typing import Literal

import msgspec

from niwaki.pruning.errors import check_rules

MAX_EVENT_BYTES = 1_000_000
"""Default of the largest size of a message for each of its events."""


class EventsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way that events are read, from a topic or a file (the `[events]` section)."""

    envelope: str = ""
    """Path of the event in its message or row, names separated by points, such as
    "payload.after"; "": the message is the event."""
    decimal: Literal[".", ","] = "."
    """Mark before the decimals of numbers in text; the other one may stand between thousands."""
    unknown_columns: Literal["reject", "ignore"] = "reject"
    """Treatment of an event of a topic with a column that the schema does not name."""
    max_rejected_ratio: float = 0.01
    """Share of a file's events that may be left out, 0..1; with more, a command fails."""
    separator: str = ""
    """Text between the fields of a delimited file, such as ";" or "::"; "": seen in the file."""
    names: tuple[str, ...] = ()
    """Names of the columns of a delimited file without a header; empty: its first line has them."""
    encoding: str = ""
    """Encoding of a text file, such as "latin-1"; "": UTF-8, or what its byte order mark says."""

    def __post_init__(self) -> None:
        rules = {
            "max_rejected_ratio": (0 <= self.max_rejected_ratio <= 1, "must be in 0..1"),
            "envelope": (all(self.envelope.split(".")) or not self.envelope, "must be names"),
            "names": (
                len(set(self.names)) == len(self.names) and all(self.names),
                "must be different names",
            ),
        }
        check_rules(self, rules)
