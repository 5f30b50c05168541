import pytest

from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.proposal import Asked, Sample, propose
from tests.support.proposals import BEGIN_S, ITEMS, LABELS, USERS, noted

EVENTS = [
    {"ts": (BEGIN_S + at) * 1000, "label": label, "user": user, "item": item}
    for at, (label, user, item) in enumerate(zip(LABELS, USERS, ITEMS, strict=True))
]


@pytest.mark.parametrize(
    "wrap, path",
    [
        (lambda event: {"value": event, "offset": 1}, "value"),
        (lambda event: {"payload": {"before": None, "after": event, "op": "c"}}, "payload.after"),
        (lambda event: {"before": event | {"label": 0}, "after": event}, "after"),
    ],
)
def test_events_in_an_object_of_each_row_are_found_there(wrap, path):
    rows = [*map(wrap, EVENTS), {"op": "d"}]
    plain = propose(Sample.of_objects(EVENTS), Asked())
    found = propose(Sample.of_objects(rows), Asked())
    assert (found.schema, found.envelope, found.columns) == (plain.schema, path, plain.columns)
    assert noted(found, f"the event of each row is at {path} (--envelope {path})")
    asked = propose(Sample.of_objects(rows), Asked(envelope=path))
    assert (asked.schema, asked.envelope) == (plain.schema, path)


def test_an_event_time_beside_the_object_is_not_lost():
    rows = [
        {"specversion": "1.0", "id": f"e{event['ts']}", "time": event.pop("ts"), "data": event}
        for event in map(dict, EVENTS)
    ]
    found = propose(Sample.of_objects(rows), Asked())
    assert (found.envelope, found.schema.label) == ("", "data.label")
    assert (found.schema.timestamp, found.schema.ignore) == ("time", ("id",))
    assert set(found.schema.categorical) == {"specversion", "data.user", "data.item"}


def test_a_label_in_two_objects_is_in_none():
    rows = [{"a": event, "b": event} for event in EVENTS]
    with pytest.raises(ConfigError, match="two values: a.label, b.label"):
        propose(Sample.of_objects(rows), Asked())
