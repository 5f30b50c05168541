"""The protocol of the drift benchmark: what counts as true, false and missed."""

import numpy as np
import pytest

from benchmarks.drift import (
    AT,
    KINDS,
    MAX_DELAY,
    PREFIX,
    SETTINGS,
    Watcher,
    batches,
    claims,
    seeds_of,
    stream,
    summarise,
)


def watched(*alarms: int) -> Watcher:
    watcher = Watcher(SETTINGS["never"])
    watcher.alarms, watcher.events = list(alarms), 200_000
    return watcher


@pytest.mark.parametrize(
    "alarms, delays, false",
    [
        ((), [None], []),
        ((AT,), [0], []),
        ((AT - 1, AT + 300, AT + 900), [300], [AT - 1]),
        ((AT + MAX_DELAY,), [MAX_DELAY], []),
        ((AT + MAX_DELAY + 1,), [None], [AT + MAX_DELAY + 1]),
    ],
)
def test_an_alarm_is_true_from_the_drift_to_the_greatest_delay_and_false_else(alarms, delays, false):
    row = watched(*alarms).row((AT,), AT)
    assert (row["delays"], row["false_alarms"]) == (delays, false)


def test_a_gradual_drift_may_be_noticed_until_it_has_been_over_for_the_greatest_delay():
    row = watched(AT + 50_000 + MAX_DELAY).row((AT,), AT + 50_000)
    assert (row["delays"], row["false_alarms"]) == ([50_000 + MAX_DELAY], [])


def test_each_drift_of_a_stream_has_its_own_delay():
    assert watched(AT + 5, AT + 40_000 + 7).row((AT, AT + 40_000), AT + 40_000)["delays"] == [5, 7]


def test_a_missed_drift_counts_as_endless_in_a_claim_about_the_median():
    common = {
        "stream": "rate x 2",
        "rate": 0.05,
        "setting": "default",
        "events": 1_000_000,
        "watched": 1,
        "microseconds": 1,
    }
    rows = [common | {"delays": [delay], "false_alarms": [1]} for delay in (None, 400, None)]
    lines = summarise(rows)
    assert lines[0]["missed"] == pytest.approx(2 / 3) and lines[0]["median_delay"] == 400
    assert lines[0]["false_per_million"] == 1
    held = {claim["claim"]: claim["holds"] for claim in claims(rows, lines)}
    assert not held["default: median delay of rate x 2 from 5 %"]


def test_all_streams_of_a_seed_and_a_click_rate_are_the_same_up_to_the_drift():
    last = 3 * 16_384
    first, *others = (
        np.concatenate([batch.labels_B for batch in batches(stream(0.05, 3, name), 2 * 16_384, last)]) for name in KINDS
    )
    assert 0 < first.sum() < len(first) == 16_384
    assert all(np.array_equal(first, other) for other in others)
    assert PREFIX % 16_384 == 0 and PREFIX <= AT


def test_seeds_are_a_range_or_one():
    assert (seeds_of("0-3"), seeds_of("7")) == ([0, 1, 2, 3], [7])
