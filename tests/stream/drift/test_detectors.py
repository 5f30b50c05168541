"""River's detectors by name: what is refused, and that Page-Hinkley in one loop is River's own."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import PageHinkley

from niwaki.stream.drift.detectors import next_change
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.drift.river_state import freeze
from niwaki.stream.drift.running_sums import RunningSums
from niwaki.stream.errors import ConfigError


@pytest.mark.parametrize(
    "wrong, text",
    [
        (
            {"detector": "ADWINN"},
            r"drift.detectors.detector: must be one of .*did you mean ADWIN\?.*got 'ADWINN'",
        ),
        ({"detector": "DriftRetrainingClassifier"}, "must be one of"),
        ({"signal": "logloss"}, r"drift.detectors.signal: .*did you mean log_loss\?"),
        (
            {"detector": "DDM"},
            "DDM reads zeros and ones, so its signal must be label, got 'staleness'",
        ),
        (
            {"detector": "ADWIN", "parameters": {"dleta": 0.1}},
            r"parameters of ADWIN: must be one of clock, .*did you mean delta\?",
        ),
        (
            {"detector": "ADWIN", "parameters": {"delta": 2.0}},
            "parameters.delta: must be above 0 and below 1, got 2.0",
        ),
        (
            {"detector": "ADWIN", "parameters": {"delta": "small"}},
            "parameters.delta: must be a number, got 'small'",
        ),
        (
            {"detector": "ADWIN", "parameters": {"clock": 0}},
            "parameters.clock: must be an integer >= 1, got 0",
        ),
        (
            {"detector": "ADWIN", "parameters": {"clock": 1.5}},
            "parameters.clock: must be an integer >= 1, got 1.5",
        ),
        (
            {"detector": "ADWIN", "parameters": {"delta": None}},
            "parameters.delta: must have a value",
        ),
        (
            {"detector": "PageHinkley", "parameters": {"threshold": -1.0}},
            "parameters.threshold: must be above 0",
        ),
        (
            {"detector": "PageHinkley", "parameters": {"mode": "sideways"}},
            "River's PageHinkley refuses them .Invalid .*sideways",
        ),
        ({"detector": "KSWIN", "parameters": {"window_size": 10}}, "River's KSWIN refuses them"),
        (
            {"detector": "HDDMA", "signal": "label", "parameters": {"two_sided_test": 1}},
            "must be true or false",
        ),
    ],
)
def test_a_detector_that_cannot_be_is_refused_with_field_rule_and_value(wrong, text):
    with pytest.raises(ConfigError, match=text):
        DetectorConfig(**wrong)
    with pytest.raises(msgspec.ValidationError, match=text):
        msgspec.convert(wrong, DetectorConfig)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"quiet_events": -1}, "drift.quiet_events: must be >= 0, got -1"),
        ({"within_events": 0}, "drift.within_events: must be >= 1, got 0"),
        ({"calibration_events": 10}, "drift.calibration_events: must be >= 1,000, got 10"),
        ({"expected_events_between_false_alarms": 5}, "must be 0, or >= 1,000, got 5"),
        ({"agree": 4}, "drift.agree: must be any, all, or 1 to 3, the number of detectors, got 4"),
    ],
)
def test_what_cannot_be_watched_is_refused_with_field_rule_and_value(wrong, text):
    with pytest.raises(ConfigError, match=text):
        DriftConfig(**wrong)


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=300),
    cuts=st.lists(st.integers(0, 300), max_size=4),
    mode=st.sampled_from(["up", "down", "both"]),
    alpha=st.sampled_from([1.0, 0.999]),
    threshold=st.floats(0.5, 8),
    least=st.integers(1, 40),
)
def test_page_hinkley_in_one_loop_is_rivers_own_bit_for_bit(
    values, cuts, mode, alpha, threshold, least
):
    parameters = {
        "mode": mode,
        "alpha": alpha,
        "threshold": threshold,
        "min_instances": least,
        "delta": 0.01,
    }
    ours, rivers, found, expected, tally = (
        PageHinkley(**parameters),
        PageHinkley(**parameters),
        [],
        [],
        RunningSums(),
    )
    for index, value in enumerate(values):
        rivers.update(value)
        expected += [index] * rivers.drift_detected
    for start, stop in pairwise([0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]):
        while (at := next_change(ours, tally, np.array(values[:stop]), start)) is not None:
            found, start = [*found, at], at + 1
    assert found == expected
    assert freeze(ours) == freeze(rivers)
    assert tally.events == len(values) and tally.total == pytest.approx(sum(values))
