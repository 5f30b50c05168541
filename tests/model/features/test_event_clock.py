"""The stream's clock: outlying event times are put back, and real jumps are followed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.event_clock import EventClock

START_S = 1_700_000_000.0
YEAR_3000_S = 32_503_680_000.0
DAY_S = 86_400.0


def steady(events: int, start_s: float = START_S) -> np.ndarray:
    return start_s + np.arange(events, dtype=np.float64)


def bounded(clock: EventClock, times_s: np.ndarray, batch: int = 128) -> tuple[np.ndarray, int]:
    parts = [clock.bound(times_s[at : at + batch]) for at in range(0, len(times_s), batch)]
    return np.concatenate([part for part, _ in parts]), sum(outliers for _, outliers in parts)


@pytest.mark.parametrize("batch", [1, 128, 1_000])
@pytest.mark.parametrize("wrong_s", [YEAR_3000_S, 86_400.0, START_S - 40 * DAY_S])
@pytest.mark.parametrize("place", [0, 1, 127, 500])
def test_an_outlier_moves_no_other_event_and_is_put_back(wrong_s, place, batch):
    times_s = steady(1_000)
    times_s[place] = wrong_s
    found_s, outliers = bounded(EventClock(), times_s, batch)
    if place or batch > 1:
        assert outliers == 1
        np.testing.assert_array_equal(np.flatnonzero(found_s != times_s), [place])
        assert START_S <= found_s[place] < START_S + 1_000
    else:  # the first event has none to compare
        np.testing.assert_array_equal(found_s[3:], times_s[3:])


def test_a_burst_of_outliers_that_the_rest_of_a_batch_returns_from_is_put_back():
    times_s = steady(2_000)
    times_s[1_030:1_080] = YEAR_3000_S
    found_s, outliers = bounded(EventClock(), times_s)
    assert outliers == 50
    assert found_s.max() == times_s[-1]


@pytest.mark.parametrize("batch", [1, 128])
@pytest.mark.parametrize("days", [31, 3_650, -31, -3_650])
def test_a_jump_that_lasts_is_followed(days, batch):
    times_s = np.concatenate([steady(1_000), steady(1_000, START_S + days * DAY_S)])
    found_s, outliers = bounded(EventClock(), times_s, batch)
    assert outliers <= (0 if batch > 1 else 128)
    np.testing.assert_array_equal(found_s[1_128:], times_s[1_128:])


def test_sessions_days_apart_keep_their_times_but_for_the_last_events_of_batches():
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 300, 200)
    starts_s = START_S + np.cumsum(rng.exponential(20 * DAY_S, 200))
    times_s = np.concatenate(
        [start_s + 10.0 * np.arange(n) for start_s, n in zip(starts_s, lengths, strict=True)]
    )
    assert bounded(EventClock(), times_s)[1] <= 10


@pytest.mark.parametrize("gap_s", [0.0, 0.001, 60.0, 0.7 * DAY_S, 20 * DAY_S])
def test_streams_of_any_pace_keep_their_times(gap_s):
    times_s = START_S + gap_s * np.random.default_rng(0).exponential(size=3_000).cumsum()
    bounded_s, outliers = bounded(EventClock(), times_s)
    assert outliers <= (3 if gap_s > DAY_S / 2 else 0)  # at the start the pace is not known
    np.testing.assert_array_equal(bounded_s[10:], times_s[10:])


def test_events_without_a_time_stay_without_one_and_move_nothing():
    times_s = steady(1_000)
    times_s[::2] = 0
    bounded_s, outliers = bounded(EventClock(), times_s)
    assert not outliers
    np.testing.assert_array_equal(bounded_s, times_s)


@given(
    times_s=st.lists(
        st.sampled_from([0.0, 1.0, START_S, YEAR_3000_S, -5.0])
        | st.floats(START_S - 50 * DAY_S, START_S + 50 * DAY_S),
        max_size=600,
    ),
    stop=st.integers(0, 600),
)
def test_restored_anywhere_it_goes_on_exactly(times_s, stop):
    times_s = np.array(times_s)
    first, second = EventClock(), EventClock()
    first.bound(times_s[:stop])
    second.restore(first.state())
    one, other = first.bound(times_s[stop:]), second.bound(times_s[stop:])
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]
