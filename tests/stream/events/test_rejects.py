"""The account of what was left out: counts by rule, each with its first example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.values import Odd
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.rejects import KINDS, Reject, Tally


def reject(line: int, kind: str = "numeric", field: str = "price", **more: object) -> Reject:
    place = f"clicks.csv, line {line}"
    return Reject(line, kind, field, "must be finite", "inf", place=place, **more)


def test_each_rule_is_told_with_its_number_of_events_and_its_first_example():
    tally = Tally()
    tally.add(300, [reject(17), reject(19)], [Odd("age", 2, "'old'")])
    tally.add(90, [reject(400, "label", "label", events=5), reject(405)], [Odd("age", 1, "'x'")])
    assert tally.lines() == [
        "8 of 398 events were left out:",
        "  3 by the rule of clicks.csv, line 17: price: must be finite, got inf",
        "  5 by the rule of clicks.csv, line 400: label: must be finite, got inf",
        "age: 3 values are no numbers and were read as missing, the first: 'old'",
    ]
    first = {
        "events": 3,
        "kind": "numeric",
        "place": "clicks.csv, line 17",
        "field": "price",
        "rule": "must be finite",
        "value": "inf",
    }
    assert tally.as_dict()["rejects"][0] == first
    assert tally.as_dict()["read_as_missing"] == [{"field": "age", "events": 3, "value": "'old'"}]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.text(max_size=3), st.integers(1, 5))))
def test_however_many_rules_are_broken_the_account_is_short_and_counts_every_event(many):
    tally = Tally()
    for kind, field, events in many * 20:
        tally.add(0, [reject(1, kind, field + str(events), events=events)])
    assert len(tally.lines()) <= 52
    counts = [row["events"] for row in tally.as_dict()["rejects"]]
    assert sum(counts) == tally.rejected == 20 * sum(events for *_, events in many)


def test_nothing_left_out_is_nothing_to_tell():
    tally = Tally()
    tally.add(400, [])
    assert tally.lines() == []
    tally.check("clicks.csv", 0.0)


@pytest.mark.parametrize(
    ("good", "bad", "limit", "text"),
    [
        (0, 0, 1.0, "clicks.csv: has no events"),
        (0, 2, 1.0, "2 of 2 events were left out"),
        (98, 2, 0.01, "more than max_rejected_ratio = 0.01"),
        (98, 2, 0.019, "--max-rejected-ratio allows more"),
    ],
)
def test_too_much_left_out_is_an_error_with_the_first_example_and_a_way_on(good, bad, limit, text):
    tally = Tally()
    tally.add(good, [reject(line) for line in range(1, bad + 1)])
    with pytest.raises(ConfigError, match=text) as raised:
        tally.check("clicks.csv", limit)
    assert not bad or "line 1: price: must be finite, got inf" in str(raised.value)


def test_as_much_as_was_allowed_may_be_left_out():
    tally = Tally()
    tally.add(98, [reject(1), reject(2)])
    tally.check("clicks.csv", 0.02)
