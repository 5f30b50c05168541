"""Detectors calibrated to the stream's own noise: their false alarms, and the size of changes."""

import math

import numpy as np
import pytest

from niwaki.stream.drift.monitor import DetectorConfig, Drift, DriftConfig, DriftMonitor


def calibrated(**settings) -> DriftMonitor:
    default = {
        "quiet_events": 0,
        "calibration_events": 20_000,
        "detectors": (DetectorConfig(signal="excess_loss"),),
    }
    return DriftMonitor(DriftConfig(**default | settings))


def parameters(target: DriftMonitor) -> list[dict[str, float]]:
    return [one["parameters"] for one in target.achieved()["detectors"]]


def bursts(events: int, seed: int, length: int) -> np.ndarray:
    """Noise of mean 0 whose neighbours are alike, `length` events at a time."""
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal(events)
        + np.repeat(rng.standard_normal(-(-events // length)), length)[:events]
    ) / 2


def read(target: DriftMonitor, values: np.ndarray, signal: str = "excess_loss") -> list[Drift]:
    return target.update({signal: values}, 0, np.zeros(len(values)))


@pytest.mark.parametrize("length", [1, 60])
def test_calibrated_to_the_streams_own_noise_false_alarms_are_as_rare_as_asked(length):
    expected = 20_000
    watched, drifts = 0, 0
    for first in (0, 8, 16):
        target = calibrated(expected_events_between_false_alarms=expected)
        for seed in range(first, first + 8):
            read(target, bursts(100_000, seed, length))
        achieved = target.achieved()
        watched, drifts = watched + achieved["watched_events"], drifts + achieved["drifts"]
    assert 1_500_000 < watched <= 2_340_000
    run = watched / drifts
    assert expected / 2.5 < run
    assert (
        run < expected * 2.5 or length > 1
    )  # where neighbours are alike it errs on the side of silence


def test_bursts_of_alike_events_make_the_threshold_higher():
    calm, noisy = calibrated(), calibrated()
    read(calm, bursts(20_001, 0, 1))
    read(noisy, bursts(20_001, 0, 60))
    (one,), (other,) = parameters(calm), parameters(noisy)
    assert other["threshold"] > 5 * one["threshold"]


def test_fluctuations_longer_than_a_calibration_sees_make_the_threshold_higher_while_it_watches():
    rng, target = np.random.default_rng(0), calibrated()
    lasting = np.repeat(
        0.05 * rng.standard_normal(200), 2_000
    )  # by which a mean over so many events is off
    before, thresholds = None, []
    for start in range(0, 400_000, 20_000):
        read(target, bursts(20_000, start, 1) + lasting[start : start + 20_000])
        thresholds.append(parameters(target)[0].get("threshold"))
    before, after = thresholds[1], thresholds[-1]
    assert target.achieved()["drifts"] == 0 and 1.1 * before < after < 3 * before


def test_a_drift_that_is_noticed_is_no_fluctuation():
    calm, target = calibrated(), calibrated()
    noise = bursts(60_000, 0, 1)
    for monitor, height in ((calm, 0.0), (target, 1.0)):
        values = noise.copy()
        values[50_000:] += height
        assert len(read(monitor, values[:58_000])) == height
    assert parameters(target)[0]["threshold"] < 1.1 * parameters(calm)[0]["threshold"]


def test_before_it_is_calibrated_a_detector_notices_nothing_and_then_soon():
    values = bursts(40_000, 0, 1)
    values[10_000:20_000] += 0.5
    assert read(calibrated(), values[:20_000]) == []
    values = bursts(40_000, 0, 1)
    values[30_000:] += 0.5
    (drift,) = read(calibrated(quiet_events=0), values[:31_000])
    assert 30_000 <= drift.event < 30_300


def test_a_reset_keeps_what_was_learned_of_the_noise():
    target, values = calibrated(), bursts(40_000, 0, 1)
    values[30_000:] += 0.5
    read(target, values[:21_000])
    before = parameters(target)
    target.reset()
    assert parameters(target) == before != [{}]
    assert read(target, values[21_000:31_000])


def test_explicit_parameters_are_not_calibrated():
    target = calibrated(
        detectors=(DetectorConfig(signal="excess_loss", parameters={"threshold": 30.0}),)
    )
    read(target, bursts(30_000, 0, 1))
    assert parameters(target) == [{}]
    assert target.achieved()["watched_events"] == 30_000


@pytest.mark.parametrize("stop", [5, 20_000, 20_001, 30_100])
def test_a_calibrated_monitor_is_restored_exactly_wherever_batches_end(stop):
    values = bursts(40_000, 0, 1)
    values[30_000:] += 0.3
    times_s = np.zeros(40_000)
    whole = read(calibrated(), values)
    first, second = calibrated(), calibrated()
    before = first.update({"excess_loss": values[:stop]}, 0, times_s[:stop])
    second.restore(first.state())
    assert (
        whole
        and before + second.update({"excess_loss": values[stop:]}, stop, times_s[stop:]) == whole
    )
    assert second.state()["detectors"].tobytes() != first.state()["detectors"].tobytes()


def test_a_drift_says_how_large_it_is_how_sure_that_is_when_it_began_and_whether_it_came_at_once():
    noise = bursts(60_000, 0, 1)
    abrupt, gradual = noise.copy(), noise.copy()
    abrupt[40_000:] += 0.3
    gradual[40_000:] += np.linspace(0, 0.12, 20_000)
    (first, *_), (second, *_) = read(calibrated(), abrupt), read(calibrated(), gradual)
    assert (first.kind, second.kind) == ("abrupt", "gradual")
    assert abs(first.began - 40_000) < 200 and 40_000 < second.began < second.event
    assert abs(first.after - first.before - 0.3) < 4 * first.error < 0.5
    assert math.isclose(first.before, 0, abs_tol=0.05)


@pytest.mark.parametrize("shape", ["learning curve", "warm-up", "daily cycle"])
def test_a_baseline_that_shifts_with_the_stream_is_no_drift(shape):
    """The loss of a calibrated model follows its predictions; its excess over their entropy does
    not."""
    events = np.arange(200_000)
    logit = {
        "learning curve": -2 - 1.5 * events / len(events),
        "warm-up": -4 + 3 * np.exp(-events / 3_000),
        "daily cycle": -2.5 + 0.7 * np.sin(events * 2 * np.pi / 86_400),
    }[shape]
    rng = np.random.default_rng(0)
    logit = logit + rng.standard_normal(len(events))
    p = 1 / (1 + np.exp(-logit))
    labels = rng.random(len(events)) < p
    assert read(calibrated(quiet_events=5_000), (p - labels) * logit) == []


def test_a_change_within_a_later_calm_stretch_makes_no_detector_deaf():
    target, noise = calibrated(), bursts(90_000, 0, 1)
    read(target, noise[:20_001])
    before = parameters(target)[0]["threshold"]
    noise[35_000:] += np.linspace(
        0, 0.6, 55_000
    )  # too slowly to be noticed at once, and it is calibrated on
    target.reset()
    read(target, noise[20_001:41_000])
    assert parameters(target)[0]["threshold"] < 1.3 * before


def test_sensitivity_follows_the_spread_of_the_signal_after_a_reset():
    target, noise = calibrated(), bursts(60_000, 0, 1)
    read(target, noise[:20_001])
    before = parameters(target)[0]
    target.reset()
    read(target, 3 * noise[20_001:30_000])
    assert parameters(target)[0]["threshold"] == pytest.approx(3 * before["threshold"], rel=0.1)
    assert parameters(target)[0]["delta"] == pytest.approx(3 * before["delta"], rel=0.1)


@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.parametrize("delta", [0.005, 0.0099, 0.02, 1.0])
def test_a_slack_that_no_calm_value_exceeds_leaves_a_threshold_that_is_finite(direction, delta):
    labels = (np.random.default_rng(0).random(20_001) < 0.01).astype(np.float64)
    target = calibrated(
        detectors=(
            DetectorConfig(signal="label", direction=direction, parameters={"delta": delta}),
        ),
    )
    read(target, labels, "label")
    (found,) = parameters(target)
    assert found["delta"] == delta
    assert 0.01 < found["threshold"] < 1_000


def test_a_detector_whose_calm_sums_are_always_zero_raises_no_alarm_on_more_of_the_same():
    rng = np.random.default_rng(0)
    target = calibrated(
        detectors=(DetectorConfig(signal="label", direction="down", parameters={"delta": 0.02}),),
    )
    for _ in range(10):
        assert not read(target, (rng.random(50_000) < 0.01).astype(np.float64), "label")
    assert target.achieved()["watched_events"] > 400_000
