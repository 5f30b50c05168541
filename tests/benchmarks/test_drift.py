"""The protocol of the drift benchmark: what counts as true, false and missed."""

import numpy as np
import pytest

from benchmarks.drift.__main__ import SETTINGS, Watcher
from benchmarks.drift.claims import claims, summarise
from benchmarks.drift.streams import (
    AT,
    KINDS,
    MAX_DELAY,
    PREFIX,
    Traces,
    batches,
    judge,
    learn,
    new_trainer,
    stream,
)


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
def test_an_alarm_is_true_from_the_drift_to_the_greatest_delay_and_false_else(
    alarms, delays, false
):
    assert judge(alarms, (AT,), AT) == (delays, false)


def test_a_gradual_drift_may_be_noticed_until_it_has_been_over_for_the_greatest_delay():
    assert judge([AT + 50_000 + MAX_DELAY], (AT,), AT + 50_000) == ([50_000 + MAX_DELAY], [])


def test_each_drift_of_a_stream_has_its_own_delay():
    assert judge([AT + 5, AT + 40_000 + 7], (AT, AT + 40_000), AT + 40_000) == ([5, 7], [])


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
        np.concatenate(
            [batch.labels_B for batch in batches(stream(0.05, 3, name), 2 * 16_384, last)]
        )
        for name in KINDS
    )
    assert 0 < first.sum() < len(first) == 16_384
    assert all(np.array_equal(first, other) for other in others)
    assert PREFIX % 16_384 == 0 and PREFIX <= AT


def test_a_trace_that_was_kept_is_the_one_that_was_learned(tmp_path):
    learned, kept = (Traces(tmp_path).calm(0.05, 3, 0.0, 3_000) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1 and len(learned.labels_B) == 3_000
    assert all(np.array_equal(one, other) for one, other in zip(learned, kept, strict=True))


def test_a_watcher_that_branches_off_goes_on_as_the_other_would_have():
    trace = learn(new_trainer(), stream(0.2, 0, "rate x 2"), stop=12_000)
    halves = (
        type(trace)(*(a[at] for a in trace[:4]), trace.exchanged)
        for at in (slice(0, 6_144), slice(6_144, None))
    )
    first, second = halves
    whole, branch = (Watcher(SETTINGS["ADWIN, log loss"]) for _ in range(2))
    whole.watch(first).watch(second)
    branch = branch.watch(first).branch().watch(second)
    assert branch.row(())["false_alarms"] == whole.row(())["false_alarms"]
    assert (
        branch.events == whole.events == 12_000
        and branch.monitor.achieved() == whole.monitor.achieved()
    )


def test_what_detection_costs_is_claimed_of_each_whole_run():
    common = {
        "rate": 0.0,
        "setting": "default",
        "events": 1,
        "watched": 1,
        "microseconds": 1,
        "delays": [],
    }
    rows = [
        common | {"stream": f"adaptive: {name}", "false_alarms": [], "share": share}
        for name, share in (("cheap", 0.04), ("dear", 0.06))
    ]
    held = {
        claim["claim"]: claim["holds"]
        for claim in claims(rows, summarise(rows))
        if "share of detection" in claim["claim"]
    }
    assert [
        held[f"adaptive: {name}: share of detection in the loop of a trainer with a pruned network"]
        for name in ("cheap", "dear")
    ] == [True, False]
