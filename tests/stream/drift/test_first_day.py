"""The first day of event time: a step of the click rate is seen, and a daily cycle is none."""

import numpy as np
import pytest

from niwaki.model.features.schema import Schema
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig, DriftMonitor
from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.signals import Signals


def day_one(events_per_s: float, events: int, seed: int = 0, step_at: int | None = None):
    """Labels and times of a stream whose clicks follow the hours of a day; doubled from an event
    on."""
    times_s = 1_700_000_000 + np.arange(events) / events_per_s
    rate = 1 / (1 + np.exp(3 - 0.4 * np.sin(times_s * 2 * np.pi / 86_400)))
    if step_at is not None:
        rate[step_at:] *= 2
    return np.random.default_rng(seed).random(events) < rate, times_s


class Watcher:
    """The adjusted label, and the default detector on it."""

    def __init__(self) -> None:
        self.signals = Signals(Schema(categorical=("user",)), 16, ("adjusted_label",))
        self.monitor = DriftMonitor(
            DriftConfig(detectors=(DetectorConfig(signal="adjusted_label"),))
        )
        self.events = 0
        self.found: list[int] = []
        self.values: list[np.ndarray] = []

    def watch(self, labels: np.ndarray, times_s: np.ndarray, cut: int = 500) -> "Watcher":
        """Read on; values are NaN where the signal is not defined."""
        for at in range(0, len(labels), cut):
            y, t = labels[at : at + cut].astype(np.float32), times_s[at : at + cut]
            nothing = np.zeros(len(y), np.float32)
            signals = self.signals.compute(Observations(y, t, nothing[:, None], nothing, nothing))
            self.monitor.begin_anew(self.signals.begun)
            self.found += [one.event for one in self.monitor.update(signals, self.events, t)]
            self.values.append(signals.get("adjusted_label", np.full(len(y), np.nan)))
            self.events += len(y)
        return self


def test_the_adjusted_label_is_less_its_local_level_where_events_are_many():
    labels, times_s = day_one(50.0, 1_000_000)
    values = np.concatenate(Watcher().watch(labels, times_s).values)
    assert np.flatnonzero(~np.isnan(values))[0] == 16_000  # twice as many as give a mean
    parts = values[100_000:].reshape(-1, 100_000).mean(1)
    assert parts.std() < 0.002 and labels.reshape(-1, 100_000).mean(1).std() > 0.005
    assert values[100_000:].mean() == pytest.approx(labels[:16_500].mean(), abs=0.003)
    few = Watcher().watch(*day_one(2.0, 100_000))
    assert np.isnan(np.concatenate(few.values)).all()


def test_a_step_of_the_click_rate_is_seen_within_a_thousand_events():
    delays = []
    for seed in range(5):
        found = Watcher().watch(*day_one(50.0, 110_000, seed, step_at=100_000)).found
        assert found and found[0] >= 100_000
        delays.append(found[0] - 100_000)
    assert np.median(delays) <= 1_000


def test_neither_a_daily_cycle_nor_the_beginning_of_the_second_day_is_a_drift():
    assert Watcher().watch(*day_one(5.0, 600_000)).found == []


@pytest.mark.parametrize("stop", [10_000, 100_000, 440_000])
def test_restored_anywhere_it_goes_on_exactly(stop):
    labels, times_s = day_one(5.0, 460_000, step_at=450_000)
    first, second = Watcher().watch(labels[:stop], times_s[:stop]), Watcher()
    second.events = stop
    second.signals.restore(first.signals.state())
    second.monitor.restore(first.monitor.state())
    for one in (first, second):
        one.values.clear()
        one.watch(labels[stop:], times_s[stop:])
    assert first.found == second.found != []
    np.testing.assert_array_equal(np.concatenate(first.values), np.concatenate(second.values))
