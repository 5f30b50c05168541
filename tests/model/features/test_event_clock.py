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


@pytest.mark.parametrize("wrong_s", [YEAR_3000_S, 86_400.0, START_S - 40 * DAY_S])
@pytest.mark.parametrize("place", [0, 1, 500])
def test_an_outlier_moves_no_other_event_and_is_put_back(wrong_s, place):
    times_s = steady(1_000)
    times_s[place] = wrong_s
    bounded_s, outliers = EventClock().bound(times_s)
    changed = np.flatnonzero(bounded_s != steady(1_000))
    assert outliers <= 2 and len(changed) <= 2  # the first event of a stream has none to compare
    assert set(changed) <= {place, 1}
    if place > 1:
        assert outliers == 1 and abs(bounded_s[place] - times_s[place - 1]) < 255


def test_a_burst_of_outliers_from_one_producer_is_put_back():
    times_s = steady(2_000)
    times_s[1_000:1_120] = YEAR_3000_S
    bounded_s, outliers = EventClock().bound(times_s)
    assert outliers == 120
    assert bounded_s.max() == times_s[-1]


@pytest.mark.parametrize("days", [31, 3_650, -31, -3_650])
def test_a_jump_that_lasts_is_followed_within_128_events(days):
    times_s = np.concatenate([steady(1_000), steady(1_000, START_S + days * DAY_S)])
    bounded_s, outliers = EventClock().bound(times_s)
    assert 0 < outliers <= 128
    np.testing.assert_array_equal(bounded_s[1_128:], times_s[1_128:])


@pytest.mark.parametrize("gap_s", [0.0, 0.001, 60.0, 0.7 * DAY_S, 20 * DAY_S])
def test_streams_of_any_pace_keep_their_times(gap_s):
    times_s = START_S + gap_s * np.random.default_rng(0).exponential(size=3_000).cumsum()
    bounded_s, outliers = EventClock().bound(times_s)
    assert outliers <= (3 if gap_s > DAY_S else 0)  # at the start the pace is not known
    np.testing.assert_array_equal(bounded_s[10:], times_s[10:])


def test_events_without_a_time_stay_without_one_and_move_nothing():
    times_s = steady(1_000)
    times_s[::2] = 0
    bounded_s, outliers = EventClock().bound(times_s)
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
def test_restored_anywhere_it_goes_on_exactly_and_batches_make_no_difference(times_s, stop):
    times_s = np.array(times_s)
    whole_s, outliers = EventClock().bound(times_s)
    first, second = EventClock(), EventClock()
    before_s, some = first.bound(times_s[:stop])
    second.restore(first.state())
    after_s, more = second.bound(times_s[stop:])
    np.testing.assert_array_equal(np.concatenate([before_s, after_s]), whole_s)
    assert some + more == outliers
