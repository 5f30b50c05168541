"""The own Page-Hinkley equals River's bit for bit, however the values reach it."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from river import drift

from niwaki.stream.drift.page_hinkley import PageHinkley
from niwaki.stream.drift.river_state import detector_state

VALUES = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=300)
ANY_VALUES = st.lists(st.floats(), min_size=1, max_size=60)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["up", "down", "both"]),
        "alpha": st.sampled_from([1.0, 0.999, 0.5]),
        "delta": st.floats(0, 1),
        "threshold": st.one_of(st.floats(0, 8), st.integers(1, 5)),
        "min_instances": st.integers(1, 40),
    },
)


def remembered(detector: drift.PageHinkley) -> dict[str, float]:
    """River's sums, by the names of ours."""
    state = detector_state(detector)
    return {
        "events": state["_x_mean"]["n"],
        "mean": state["_x_mean"]["_mean"],
        "increase": state["_sum_increase"],
        "decrease": state["_sum_decrease"],
        "lowest_increase": state["_min_increase"],
        "highest_decrease": state["_max_decrease"],
        "detected": state["_drift_detected"],
    }


def bits(state: dict[str, float]) -> dict[str, bytes]:
    return {name: np.float64(value).tobytes() for name, value in state.items()}


def found_by_river(detector: drift.PageHinkley, values: list[float]) -> list[int]:
    found = []
    for index, value in enumerate(values):
        detector.update(value)
        found += [index] * detector.drift_detected
    return found


def found_in_arrays(detector: PageHinkley, values: list[float], cuts: list[int]) -> list[int]:
    found = []
    ends = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for start, stop in pairwise(ends):
        while (at := detector.read(np.array(values[:stop]), start)) is not None:
            found.append(at)
            start = at + 1
    return found


@settings(max_examples=100)
@given(
    values=st.one_of(VALUES, ANY_VALUES),
    cuts=st.lists(st.integers(0, 300), max_size=4),
    parameters=PARAMETERS,
)
@example(values=[0.0] * 40 + [3.0] * 60, cuts=[50], parameters={"threshold": 5})
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where values are not finite
def test_page_hinkley_in_one_loop_is_rivers_own_bit_for_bit(values, cuts, parameters):
    rivers, ours = drift.PageHinkley(**parameters), PageHinkley(**parameters)
    assert found_in_arrays(ours, values, cuts) == found_by_river(rivers, values)
    assert not np.isnan(rivers._x_mean.get()) or np.isnan(ours.mean)
    if np.isfinite(values).all():
        assert bits(ours.state()) == bits(remembered(rivers))


@settings(max_examples=40)
@given(values=VALUES, parameters=PARAMETERS)
def test_value_by_value_it_detects_what_it_detects_in_arrays(values, parameters):
    single, whole = PageHinkley(**parameters), PageHinkley(**parameters)
    found = []
    for index, value in enumerate(values):
        single.update(value)
        found += [index] * single.drift_detected
    assert found == found_in_arrays(whole, values, [])
    assert bits(single.state()) == bits(whole.state())


@settings(max_examples=40)
@given(values=VALUES, stop=st.integers(0, 300), parameters=PARAMETERS)
def test_a_restored_detector_goes_on_exactly_where_the_other_stopped(values, stop, parameters):
    first, second = PageHinkley(**parameters), PageHinkley(**parameters)
    found_in_arrays(first, values[:stop], [])
    second.restore(first.state())
    rest = values[stop:]
    assert found_in_arrays(first, rest, []) == found_in_arrays(second, rest, [])
    assert bits(first.state()) == bits(second.state())


def test_a_known_mean_is_the_mean_that_river_has_of_these_values():
    values = np.random.default_rng(0).random(500)
    ours, rivers = PageHinkley(threshold=1e9), drift.PageHinkley(threshold=1e9)
    ours.begin_with(values)
    found_by_river(rivers, values.tolist())
    assert ours.mean == remembered(rivers)["mean"] and not ours.drift_detected
    assert bits(ours.state()) == bits(PageHinkley().state() | {"events": 500.0, "mean": ours.mean})


def test_thresholds_set_while_it_runs_count_from_the_next_value():
    values = np.repeat([0.0, 1.0], 100)
    ours, rivers = PageHinkley(threshold=1e9), drift.PageHinkley(threshold=1e9)
    assert ours.read(values) is None and found_by_river(rivers, values.tolist()) == []
    ours.set_thresholds(delta=0.1, threshold=2.0)
    rivers.delta, rivers.threshold = 0.1, 2.0
    rest = [1.0] * 50
    assert found_in_arrays(ours, rest, []) == found_by_river(rivers, rest) != []
    assert bits(ours.state()) == bits(remembered(rivers))


def test_a_mode_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="Invalid 'mode'.*up"):
        PageHinkley(mode="sideways")
