import logging

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.stream.drift.monitor import DetectorConfig, Drift, DriftConfig, DriftMonitor

EVENTS = 4000
ADWIN = DetectorConfig(detector="ADWIN", signal="log_loss")
ADWIN_BOTH = DetectorConfig(detector="ADWIN", signal="log_loss", direction="both")
EVERY_DETECTOR = [
    ADWIN_BOTH,
    DetectorConfig(
        detector="ADWIN", signal="calibration_error", parameters={"delta": 0.05, "clock": 1}
    ),
    DetectorConfig(
        detector="PageHinkley", signal="log_loss", direction="both", parameters={"threshold": 5.0}
    ),
    DetectorConfig(
        detector="PageHinkley", signal="log_loss", parameters={"threshold": 5, "mode": "up"}
    ),
    DetectorConfig(
        detector="KSWIN", signal="log_loss", direction="both", parameters={"alpha": 0.001}
    ),
    DetectorConfig(
        detector="DummyDriftDetector", signal="log_loss", direction="both", parameters={"t_0": 900}
    ),
    DetectorConfig(
        detector="DummyDriftDetector",
        signal="log_loss",
        direction="both",
        parameters={"trigger_method": "random", "t_0": 900, "w": 90},
    ),
    DetectorConfig(detector="DDM", signal="label"),
    DetectorConfig(detector="binary.EDDM", signal="label"),
    DetectorConfig(detector="FHDDM", signal="label"),
    DetectorConfig(detector="HDDMA", signal="label", parameters={"two_sided_test": True}),
    DetectorConfig(detector="HDDMW", signal="label"),
    DetectorConfig(detector="NoDrift", signal="log_loss"),
]


def signals(seed: int = 0, after: float = 0.6, change: int = EVENTS // 2) -> dict[str, np.ndarray]:
    """Signals whose means go from 0.2 to `after` at event `change`."""
    rng = np.random.default_rng(seed)
    mean_B = np.where(np.arange(EVENTS) < change, 0.2, after)
    return {
        "log_loss": rng.exponential(mean_B),
        "calibration_error": mean_B - 0.4 + 0.1 * rng.standard_normal(EVENTS),
        "label": (rng.random(EVENTS) < mean_B).astype(np.float64),
        "prediction": np.full(EVENTS, 0.2),
    }


def monitor(*detectors: DetectorConfig, quiet_events: int = 100) -> DriftMonitor:
    return DriftMonitor(DriftConfig(detectors=detectors or (ADWIN,), quiet_events=quiet_events))


def feed(
    target: DriftMonitor, values: dict, start: int = 0, stop: int = EVENTS, batch: int = 128
) -> list[Drift]:
    drifts = []
    for first in range(start, stop, batch):
        cut = slice(first, min(first + batch, stop))
        drifts += target.update(
            {name: one[cut] for name, one in values.items()}, first, np.arange(EVENTS)[cut] * 2.0
        )
    return drifts


def test_a_rise_of_the_log_loss_is_noticed_with_its_size_and_place():
    (drift,) = feed(monitor(), signals())
    assert EVENTS // 2 < drift.event < EVENTS // 2 + 300
    assert (drift.signal, drift.detector, drift.time_s) == ("log_loss", "ADWIN", drift.event * 2.0)
    assert drift.before == pytest.approx(0.2, abs=0.05)
    assert 0.35 < drift.after < 0.8


@pytest.mark.parametrize("batch", [128, 4_000])
def test_a_drift_of_whatever_signal_says_what_it_did_to_the_log_loss(batch):
    target, values = monitor(DetectorConfig(detector="ADWIN", signal="label")), signals()
    losses, drifts = values["log_loss"], []
    for first in range(0, EVENTS, batch):
        cut = slice(first, first + batch)
        given = {"label": values["label"][cut]}
        drifts += target.update(given, first, np.zeros(len(given["label"])), losses[cut])
    (drift,) = drifts
    since = slice(drift.began, drift.event + 1)
    assert drift.loss_before == pytest.approx(losses[: drift.began].mean())
    assert drift.loss_after == pytest.approx(losses[since].mean())
    assert 0 < drift.loss_error < drift.loss_after - drift.loss_before
    assert feed(monitor(), values)[0].loss_before is None  # no losses were given


def test_a_falling_log_loss_is_learning_and_no_drift():
    assert feed(monitor(), signals(after=0.05)) == []


@pytest.mark.parametrize("direction, noticed", [("up", 0), ("down", 1), ("both", 1), (None, 0)])
def test_the_direction_decides_which_changes_of_the_log_loss_count(direction, noticed):
    detector = DetectorConfig(detector="ADWIN", signal="log_loss", direction=direction)
    assert len(feed(monitor(detector), signals(after=0.05))) == noticed


def test_other_signals_count_in_both_directions():
    for after in (0.05, 0.5):
        assert feed(monitor(DetectorConfig(detector="ADWIN", signal="label")), signals(after=after))


def test_a_rise_is_noticed_although_the_loss_fell_before():
    values = signals(after=0.05)
    values["log_loss"][3500:] *= 8
    (drift,) = feed(monitor(), values)
    assert drift.event >= 3500


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, EVENTS - 1), max_size=20), seed=st.integers(0, 3))
def test_how_the_stream_is_cut_into_batches_makes_no_difference(cuts, seed):
    values, detectors = signals(seed), (EVERY_DETECTOR[0], EVERY_DETECTOR[2], EVERY_DETECTOR[7])
    whole = feed(monitor(*detectors), values, batch=EVENTS)
    assert whole
    pieces, target = [], monitor(*detectors)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), EVENTS], strict=True):
        pieces += feed(target, values, start, stop, batch=EVENTS)
    assert pieces == whole


@pytest.mark.parametrize(
    "detector", EVERY_DETECTOR, ids=lambda config: f"{config.detector} {config.signal}"
)
def test_a_restored_monitor_goes_on_exactly_where_the_other_stopped(detector):
    values = signals()
    whole = feed(monitor(detector, quiet_events=20), values)
    assert whole or detector.detector in (
        "NoDrift",
        "FHDDM",
        "EDDM",
        "binary.EDDM",
        "HDDMW",
        "KSWIN",
    )
    for stop in (7, 1990, 2100):  # in the quiet period, just before the change, in it
        first, second = monitor(detector, quiet_events=20), monitor(detector, quiet_events=20)
        before = feed(first, values, stop=stop)
        second.restore(first.state())
        assert second.state()["detectors"].tobytes() == first.state()["detectors"].tobytes()
        assert before + feed(second, values, start=stop) == whole


def test_the_state_stays_small_however_long_the_stream():
    target, values = monitor(*EVERY_DETECTOR[:3]), signals()
    feed(target, values)
    feed(target, signals(change=EVENTS))
    feed(target, signals(change=EVENTS))  # as many values as a detector keeps, since its last drift
    small = target.state()["detectors"].nbytes
    for _ in range(30):
        feed(target, signals(change=EVENTS))
    assert target.state()["detectors"].nbytes < small + 10_000


def test_a_detector_that_the_snapshot_does_not_know_begins_anew_and_says_so(caplog):
    first = monitor(ADWIN)
    feed(first, signals(), stop=1500)
    second = monitor(
        DetectorConfig(detector="ADWIN", signal="log_loss", parameters={"delta": 0.01})
    )
    with caplog.at_level(logging.WARNING):
        second.restore(first.state())
    assert "ADWIN on log_loss" in caplog.text
    assert len(feed(second, signals(), start=1500)) == 1


def test_a_snapshot_of_another_river_restores_the_quiet_period_only(caplog):
    first, second = monitor(quiet_events=3000), monitor(quiet_events=3000)
    feed(first, signals(), stop=1000)
    state = msgspec.msgpack.decode(first.state()["detectors"].tobytes())
    state["river"] = "0.1.0"
    second.restore({"detectors": np.frombuffer(msgspec.msgpack.encode(state), np.uint8)})
    assert "begins anew" in caplog.text
    assert feed(second, signals(after=2.0, change=2500), start=1000, stop=3000) == []


def test_nothing_is_read_while_it_is_quiet():
    values, wild = signals(change=EVENTS), signals(change=EVENTS)
    wild["log_loss"] = np.where(np.arange(EVENTS) < 500, 9.0, wild["log_loss"])
    calm, disturbed = monitor(quiet_events=500), monitor(quiet_events=500)
    assert feed(calm, values) == feed(disturbed, wild) == []
    assert calm.state()["detectors"].tobytes() == disturbed.state()["detectors"].tobytes()


def test_a_drift_is_followed_by_a_quiet_period_and_what_lasts_is_not_noticed_again():
    values = signals(after=0.4)
    values["log_loss"][EVENTS // 2 :] *= np.linspace(1, 20, EVENTS // 2)  # goes on rising
    assert (
        len(feed(monitor(quiet_events=0), values))
        > len(feed(monitor(quiet_events=1000), values))
        >= 1
    )
    (drift,) = feed(monitor(quiet_events=1800), values, batch=1000)
    assert drift.event < EVENTS // 2 + 400


def test_a_reset_forgets_what_was_and_holds_as_long_as_asked():
    target, values = monitor(quiet_events=0), signals()
    feed(target, values, stop=EVENTS // 2)
    target.reset(hold_events=128)
    assert feed(target, values, start=EVENTS // 2) == []


def test_of_several_detectors_ties_are_all_told_and_later_ones_are_signs_of_the_same_drift():
    quick = DetectorConfig(detector="PageHinkley", signal="log_loss", parameters={"threshold": 5.0})
    target = monitor(ADWIN, quick, quick, quiet_events=1500)
    drifts = feed(target, signals())
    ties = [drift for drift in drifts if drift.detector == "PageHinkley"]
    assert ties[0::2] == ties[1::2] != []
    (late,) = [drift for drift in drifts if drift.detector == "ADWIN"]
    first = next(drift for drift in ties if drift.event == late.sign_of)
    assert late.event > first.event
    assert late.loss_before == first.loss_before
    assert target.achieved()["drifts"] == len({drift.sign_of for drift in drifts})


@pytest.mark.parametrize("batch", [1, 128, EVENTS])
def test_a_detector_that_fires_leaves_the_others_as_they_are(batch):
    detectors = EVERY_DETECTOR[:4] + EVERY_DETECTOR[7:8]
    together = feed(monitor(*detectors), signals(), batch=batch)
    alone = [drift for one in detectors for drift in feed(monitor(one), signals(), batch=batch)]
    assert len({(drift.detector, drift.signal) for drift in alone}) >= 3

    def places(drifts: list[Drift]) -> list[tuple]:
        return sorted((d.event, d.detector, d.signal, d.before, d.after) for d in drifts)

    assert places(together) == places(alone)


def test_a_detector_that_draws_at_random_is_reproducible():
    kswin = DetectorConfig(
        detector="KSWIN", signal="log_loss", direction="both", parameters={"alpha": 0.05}
    )
    assert feed(monitor(kswin), signals()) == feed(monitor(kswin), signals()) != []


def test_the_signals_given_are_left_as_they_are():
    values = signals()
    before = {name: one.copy() for name, one in values.items()}
    feed(monitor(*EVERY_DETECTOR), values, stop=500)
    assert all((values[name] == before[name]).all() for name in values)


def test_a_signal_that_is_not_finite_is_refused():
    values = signals()
    values["log_loss"][777] = np.nan
    with pytest.raises(ValueError, match="log_loss is not finite in the batch from event 768"):
        feed(monitor(), values)


def test_two_of_three_must_agree_within_a_window():
    quick = DetectorConfig(
        detector="PageHinkley", signal="log_loss", parameters={"threshold": 20.0}
    )
    slow = DetectorConfig(detector="PageHinkley", signal="log_loss", parameters={"threshold": 60.0})
    never = DetectorConfig(detector="NoDrift", signal="log_loss")

    def drifts(agree, within_events=2_000):
        config = DriftConfig(
            detectors=(quick, slow, never),
            agree=agree,
            within_events=within_events,
            quiet_events=1_000,
        )
        return feed(DriftMonitor(config), signals())

    first, *_ = drifts("any")
    early, late = drifts(2)[:2]
    assert (early.event, early.detector) == (
        first.event,
        "PageHinkley",
    ) and late.event > early.event
    assert drifts(2, within_events=1) == drifts("all") == []


def test_votes_are_part_of_the_state():
    quick = DetectorConfig(detector="PageHinkley", signal="log_loss", parameters={"threshold": 5.0})
    slow = DetectorConfig(detector="PageHinkley", signal="log_loss", parameters={"threshold": 60.0})
    config = DriftConfig(detectors=(quick, slow), agree="all", quiet_events=1_000)
    first, second = DriftMonitor(config), DriftMonitor(config)
    values = signals()
    whole = feed(DriftMonitor(config), values)
    stop = whole[0].event + 1
    assert whole and feed(first, values, stop=stop) == []
    second.restore(first.state())
    assert feed(second, values, start=stop) == whole


def test_a_detector_waits_for_a_signal_that_is_not_there_yet():
    detectors = (
        DetectorConfig(detector="ADWIN", signal="log_loss"),
        DetectorConfig(detector="ADWIN", signal="label"),
    )
    target, values = DriftMonitor(DriftConfig(detectors=detectors, quiet_events=500)), signals()
    values["log_loss"] = np.zeros(EVENTS)
    late = {name: values[name] for name in ("log_loss",)}
    assert feed(target, late, stop=1_000) == []
    (drift, *_) = feed(target, values, start=1_000)
    assert drift.signal == "label" and EVENTS // 2 <= drift.event
    first, second = target.achieved()["detectors"]
    # The second one also waited for the signal, and was quiet after its drift.
    assert first["watched_events"] == second["watched_events"] + 500 + 500


def test_another_network_disturbs_only_detectors_that_read_its_predictions():
    detectors = (
        DetectorConfig(detector="ADWIN", signal="log_loss"),
        DetectorConfig(detector="ADWIN", signal="label"),
    )
    target, values = DriftMonitor(DriftConfig(detectors=detectors, quiet_events=3_000)), signals()
    target.reset(hold_events=0)
    feed(target, values, stop=EVENTS // 2)
    target.reset(network_replaced=True)
    (drift, *_) = feed(target, values, start=EVENTS // 2)
    assert (drift.signal, drift.event < EVENTS // 2 + 300) == ("label", True)
    assert [one["watched_events"] for one in target.achieved()["detectors"]] == [
        EVENTS // 2,
        drift.event + 1,
    ]
