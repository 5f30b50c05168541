"""Detectors by name, and the configurations that are refused."""

import msgspec
import pytest

from niwaki.pruning.errors import RuleError
from niwaki.stream.drift.detectors import DetectorConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.errors import ConfigError


@pytest.mark.parametrize(
    "wrong, text",
    [
        (
            {"detector": "ADWINN"},
            r"detector: must be one of .*did you mean ADWIN\?.*got 'ADWINN'",
        ),
        ({"detector": "DriftRetrainingClassifier"}, "must be one of"),
        ({"signal": "logloss"}, r"signal: .*did you mean log_loss\?"),
        (
            {"detector": "DDM"},
            "DDM reads zeros and ones, so its signal must be label, got 'staleness'",
        ),
        (
            {"detector": "ADWIN", "parameters": {"dleta": 0.1}},
            r"parameters.dleta: must be a parameter of ADWIN, one of clock, .*did you mean delta\?",
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
            "parameters: PageHinkley refuses them .Invalid .*sideways",
        ),
        ({"detector": "KSWIN", "parameters": {"window_size": 10}}, "KSWIN refuses them"),
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
        ({"quiet_events": -1}, "quiet_events: must be >= 0, got -1"),
        ({"within_events": 0}, "within_events: must be >= 1, got 0"),
        ({"calibration_events": 10}, "calibration_events: must be >= 1,000, got 10"),
        ({"expected_events_between_false_alarms": 5}, "must be 0, or >= 1,000, got 5"),
        ({"agree": 4}, "agree: must be any, all, or 1 to 3, the number of detectors, got 4"),
    ],
)
def test_what_cannot_be_watched_is_refused_with_field_rule_and_value(wrong, text):
    with pytest.raises(RuleError, match=text):
        DriftConfig(**wrong)
