"""The language in which the drifts of a synthetic stream are ordered:
`KIND:WHAT@POSITION[+WIDTH][:VALUE...]`.

Positions and widths are events, or percent of the stream:

    abrupt:concept@120000                from event 120,000 on all preferences are others
    abrupt:concept@40%:0.3               only 30 % of them are
    gradual:base_rate@200000+50000:0.2   the click rate goes to 20 %, linearly over 50,000 events
    recurring:concept@80%                back to what held before the latest drift of the same WHAT
    abrupt:new_items@50%:0.9:0.03        items with 90 % of the visits give way to new ids, of which
                                         3 % are clicked (without a rate: as many as elsewhere)
    abrupt:values@50%:c_device           each value of a field gets a new name; numbers change to a
                                         smaller unit

A text that cannot be read, or that does not fit a stream of that length, is a `ConfigError`.
"""

import re
from collections.abc import Sequence

import msgspec

from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError

KINDS = ("abrupt", "gradual", "recurring")
_MOST_VALUES = {"concept": 1, "base_rate": 1, "new_items": 2, "values": 1}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DRIFT = re.compile(
    rf"(?P<kind>\w+):(?P<what>\w+)@(?P<position>{_NUMBER}%?)(?:\+(?P<extent>{_NUMBER}%?))?"
    r"(?P<tail>(?::[^:]+)*)"
)
_EXAMPLE = "must read KIND:WHAT@POSITION[+WIDTH][:VALUE...], such as abrupt:concept@40%"


class DriftPoint(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One true drift of a stream."""

    event: int
    """Index of the first event after the change, or of the first that a gradual one touches."""
    width: int
    """Events that the change takes; 0 = abrupt."""
    kind: str
    """abrupt, gradual or recurring."""
    what: str
    """concept, base_rate, new_items or values."""
    share: float | None = None
    """Share of preferences that change, or of visits that go to new items, 0..1."""
    base_rate: float | None = None
    """Click rate afterwards: of the stream (base_rate) or of the new items (new_items; None = as
    elsewhere)."""
    field: str | None = None
    """The field whose values change."""


def plan_drifts(drifts: Sequence[str], events: int, fields: Sequence[str]) -> list[DriftPoint]:
    """True drifts of a stream of `events` events with these `fields`, in the order of their
    events."""
    points = sorted(
        (_parse(text, events, fields) for text in drifts), key=lambda point: point.event
    )
    seen = set()
    for point in points:
        if point.kind == "recurring" and (point.what, point.field) not in seen:
            raise ConfigError(
                "drifts",
                f"recurring needs an earlier drift of {point.what} to return from",
                point.event,
            )
        seen.add((point.what, point.field))
    return points


def _parse(text: str, events: int, fields: Sequence[str]) -> DriftPoint:
    match = _DRIFT.fullmatch(text)
    if match is None:
        raise ConfigError("drifts", _EXAMPLE, text)
    kind, what = match["kind"], match["what"]
    extent, values = match["extent"], match["tail"].split(":")[1:]
    for word, known in ((kind, KINDS), (what, tuple(_MOST_VALUES))):
        if word not in known:
            meant = nearest(word, known)
            hint = f" (did you mean {meant}?)" if meant else ""
            raise ConfigError("drifts", f"{word} is none of {', '.join(known)}{hint}", text)
    event = _count(match["position"], events, text)
    width = _count(extent, events, text) if extent else 0
    if not 0 < event < events:
        raise ConfigError(
            "drifts", f"the position must lie within the {events} events of the stream", text
        )
    if (kind == "gradual" and width < 1) or (kind == "abrupt" and extent):
        raise ConfigError(
            "drifts",
            "a gradual drift has a width, as in @200000+50000, an abrupt one has none",
            text,
        )
    most = 0 if kind == "recurring" and what != "values" else _MOST_VALUES[what]
    least = most if what in ("base_rate", "values") else 0
    if not least <= len(values) <= most:
        allowed = str(most) if least == most else f"{least} to {most}"
        raise ConfigError(
            "drifts", f"{kind}:{what} takes {allowed} value(s) after the position", text
        )
    if what == "values":
        if values[0] not in fields:
            raise ConfigError("drifts", f"values takes one of {', '.join(fields)}", text)
        return DriftPoint(event=event, width=width, kind=kind, what=what, field=values[0])
    share, rate = (None, None) if kind == "recurring" else _amounts(what, values, text)
    return DriftPoint(event=event, width=width, kind=kind, what=what, share=share, base_rate=rate)


def _count(number: str, events: int, text: str) -> int:
    if number.endswith("%"):
        return round(float(number[:-1]) / 100 * events)
    if "." in number:
        raise ConfigError("drifts", "positions and widths are whole events, or percent", text)
    return int(number)


def _amounts(what: str, values: Sequence[str], text: str) -> tuple[float | None, float | None]:
    """Share and click rate among the values of a drift."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        raise ConfigError("drifts", "a share or rate must be a number", text) from None
    share = (
        None
        if what == "base_rate"
        else numbers.pop(0)
        if numbers
        else 1.0
        if what == "concept"
        else 0.5
    )
    rate = numbers.pop(0) if numbers else None
    if share is not None and not 0 < share <= 1:
        raise ConfigError("drifts", "a share must be above 0 and at most 1", text)
    if rate is not None and not 0 < rate < 1:
        raise ConfigError("drifts", "a click rate must be above 0 and below 1", text)
    return share, rate
