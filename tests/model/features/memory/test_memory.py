"""Histories and rates against a slow, plain recomputation of the whole stream."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.features.memory.histories import Histories
from niwaki.model.features.memory.keyed import KeyedRows
from niwaki.model.features.memory.rates import Rates
from niwaki.model.features.outcomes import Outcomes

EVENT = st.tuples(
    st.integers(0, 6),  # key; 0 is missing
    st.integers(0, 50),  # value
    st.sampled_from([0.0, 0.0, 1.0, 5.0, -3.0]),  # time since the event before
    st.booleans(),  # counts
)
STREAM = st.lists(EVENT, min_size=1, max_size=60)
CUTS = st.lists(st.integers(0, 60), max_size=5)
HALF_LIFE_S, EVIDENCE = 20.0, 4.0


def columns(stream, spread: int = 1):
    """Keys, values, times and what counts; keys that differ by `spread` meet in the index."""
    keys, values, steps, counts = zip(*stream, strict=True)
    return (
        np.array(keys, np.int64) * spread,
        np.array(values, np.int32),
        1_000.0 + np.maximum(np.cumsum(steps), 0),
        np.array(counts, bool),
    )


def parts(cuts, events: int):
    bounds = sorted({0, events, *(min(cut, events) for cut in cuts)})
    return zip(bounds, bounds[1:], strict=False)


class PlainHistories:
    def __init__(self, last: int, max_keys: int):
        self.last, self.max_keys = last, max_keys
        self.known = OrderedDict()  # key: (values of earlier times, those of the latest, that time)

    def step(self, key, value, time_s, counts):
        settled, waiting, at = self.known.get(key, ([], [], -math.inf))
        seen = (settled + (waiting if time_s > at else []))[-self.last :] if key else []
        if key and counts:
            if time_s > at:
                settled, waiting, at = (settled + waiting)[-self.last :], [], time_s
            self.known[key] = settled, [*waiting, value][-self.last :], at
            self.known.move_to_end(key)
            if len(self.known) > self.max_keys:
                self.known.popitem(last=False)
        return seen


@given(STREAM, CUTS, st.integers(1, 4), st.sampled_from([1, 2, 3, 100]), st.sampled_from([1, 16]))
@settings(deadline=None, max_examples=300)
def test_histories_are_those_of_a_plain_recomputation(stream, cuts, last, max_keys, spread):
    keys, values, times_s, counts = columns(stream, spread)
    plain, histories = PlainHistories(last, max_keys), Histories("h", last, max_keys)
    expected = [plain.step(*event) for event in zip(keys, values, times_s, counts, strict=True)]
    replica = histories.keyed.empty()
    for start, stop in parts(cuts, len(stream)):
        span = slice(start, stop)
        seen_V, offsets, changed = histories.learn(
            keys[span], values[span], times_s[span], counts[span]
        )
        found = [seen_V[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
        assert found == expected[start:stop]
        # What is published row by row reads as the original does.
        for name, rows_X in changed.items():
            replica[name][rows_X] = histories.keyed.tables[name][rows_X]
        for name, table in histories.keyed.tables.items():
            assert torch.equal(replica[name], table)
        for late_s in (0.0, 1e6, float(times_s[-1])):
            asked = np.arange(1, 7) * spread, np.full(6, late_s)
            own, told = histories.read(*asked), histories.read(*asked, replica)
            assert all(map(np.array_equal, own, told))
        # So does what is restored, which also goes on in the same way.
        again = Histories("h", last, max_keys)
        again.keyed.restore(snapshot(histories.keyed))
        histories = again


def snapshot(keyed: KeyedRows) -> dict[str, torch.Tensor]:
    found = {}
    for name, rows_U in keyed.touched().items():
        found |= {f"{name}.rows": rows_U, f"{name}.values": keyed.tables[name][rows_U].clone()}
    return found


class PlainRates:
    """Counts each event with its time, and sums over all of them at each step."""

    def __init__(self):
        self.events: dict[int, list] = {}
        self.latest: dict[int, float] = {}

    def counts(self, key, time_s):
        latest = self.latest.get(key, -math.inf)
        sums = [0.0, 0.0]
        for counted_s, label, weight in self.events.get(key, []):
            if counted_s >= latest and time_s <= latest:
                continue  # of the latest time, and not visible
            fade = 0.5 ** ((max(time_s, latest) - counted_s) / HALF_LIFE_S)
            sums[0] += weight * fade
            sums[1] += weight * label * fade
        return sums

    def step(self, key, label, time_s, weight):
        seen = [math.nan, math.nan]
        if key:
            events, clicks = self.counts("all", time_s)
            prior = (clicks + 0.5) / (events + 1)
            events, clicks = self.counts(key, time_s)
            odds = (clicks + EVIDENCE * prior) / (events - clicks + EVIDENCE * (1 - prior))
            seen = [math.log(odds), math.log1p(events)]
        for one in ("all", key):
            if one:
                self.latest[one] = max(self.latest.get(one, -math.inf), time_s)
                # A late event counts as one of the latest time.
                self.events.setdefault(one, []).append((self.latest[one], label, weight))
        return seen


@given(STREAM, CUTS, st.sampled_from([1, 16]), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_rates_are_those_of_a_plain_recomputation(stream, cuts, spread, seed):
    keys, _, times_s, counts = columns(stream, spread)
    keys[keys > 0] += 100  # 1 stands for the whole stream
    weights = np.random.default_rng(seed).choice([1.0, 2.5], len(stream)).astype(np.float32)
    labels = counts.astype(np.float32)
    plain, rates = PlainRates(), Rates("r", HALF_LIFE_S, EVIDENCE, 100)
    events = zip(keys, labels, times_s, weights, strict=True)
    expected = np.array([plain.step(*map(float, event)) for event in events])
    outcomes = Outcomes.made(labels, weights)
    for start, stop in parts(cuts, len(stream)):
        span = slice(start, stop)
        found, changed = rates.learn(keys[span], times_s[span], outcomes.part(start, stop))
        np.testing.assert_allclose(found, expected[span], rtol=1e-5, atol=1e-6)
        assert set(changed) == {"r", "r.index"}
        again = Rates("r", HALF_LIFE_S, EVIDENCE, 100)
        again.keyed.restore(snapshot(rates.keyed))
        rates = again


def test_a_million_histories_of_twenty_values_take_less_than_300_mb():
    keyed = Histories("h", 20, 1_000_000).keyed
    tables = sum(table.numel() * table.element_size() for table in keyed.tables.values())
    assert tables + sum(array.nbytes for array in keyed.order) < 300e6


@pytest.mark.parametrize("damage", [-5, 0, 10**6, 2**60])
def test_an_index_with_numbers_that_it_should_not_have_leads_nowhere(damage):
    histories = Histories("h", 3, 8)
    keys = np.arange(1, 9)
    histories.learn(keys, keys.astype(np.int32), np.full(8, 5.0), np.ones(8, bool))
    histories.keyed.tables["h.index"][:] = damage
    values_V, _ = histories.read(keys, np.full(8, 9.0))
    assert not len(values_V)


def test_numbers_of_values_beyond_what_a_row_holds_are_not_believed():
    histories = Histories("h", 3, 8)
    keys = np.arange(1, 9)
    histories.learn(keys, keys.astype(np.int32), np.full(8, 5.0), np.ones(8, bool))
    histories.keyed.tables["h"].view(torch.int32)[:, 6:8] = 2**30
    values_V, offsets = histories.read(keys, np.full(8, 9.0))
    assert len(values_V) == offsets[-1] <= 24


@given(STREAM, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=100)
def test_partitions_by_key_may_come_in_any_order_beside_one_another(stream, random):
    """Each key's events keep their order, as within a partition; those of different keys mix."""
    keys, values, times_s, counts = columns(stream)
    keys[keys > 0] += 100
    queues = {key: [b for b in range(len(keys)) if keys[b] == key] for key in set(keys.tolist())}
    order = []
    while any(queues.values()):
        order.append(queues[random.choice([key for key, queue in queues.items() if queue])].pop(0))
    found = []
    for places in (np.arange(len(keys)), np.array(order)):
        histories, rates = Histories("h", 3, 100), Rates("r", HALF_LIFE_S, EVIDENCE, 100)
        events = keys[places], values[places], times_s[places], counts[places]
        seen_V, offsets, _ = histories.learn(*events)
        outcomes = Outcomes.made(counts[places].astype(np.float32))
        counted, _ = rates.learn(keys[places], times_s[places], outcomes)
        lists = [seen_V[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)]
        found.append({b: (one, e) for b, one, e in zip(places, lists, counted[:, 1], strict=True)})
    for b, (history, evidence) in found[0].items():
        assert history == found[1][b][0]
        np.testing.assert_array_equal(evidence, found[1][b][1])


def test_rows_whose_time_is_far_ahead_go_on_where_the_stream_begins_anew():
    years_back_s = 1_000.0 - 3 * 365 * 86_400.0
    times_s = np.concatenate([1_000.0 + np.arange(20), years_back_s + np.arange(20)])
    keys, values = np.full(40, 2), np.arange(40, dtype=np.int32)
    histories, rates = Histories("h", 3, 4), Rates("r", 1e6, EVIDENCE, 4)
    seen_V, offsets, _ = histories.learn(keys, values, times_s, np.ones(40, bool))
    assert seen_V[offsets[39] :].tolist() == [36, 37, 38]
    found_B2, _ = rates.learn(
        keys, times_s, Outcomes.made((np.arange(40) >= 20).astype(np.float32))
    )
    assert found_B2[39, 1] == pytest.approx(math.log1p(39), rel=1e-3)
    assert found_B2[39, 0] > found_B2[20, 0] + 1
