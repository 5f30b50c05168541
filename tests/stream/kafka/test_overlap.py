"""The events that a topic has of a recording: which ones are left out, also after a restart, and
what is told of them."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from niwaki.model.features.schema import EventBatch
from niwaki.stream.kafka.overlap import Overlap, OverlapState


def events(*times_s: float, name: str = "a", value: float = 1.0) -> EventBatch:
    count = len(times_s)
    return EventBatch(
        np.zeros(count, np.float32),
        np.array(times_s, np.float64),
        (pa.array([name] * count),),
        np.full((count, 1), value, np.float32),
    )


def places(count: int, first: int = 0, partition: int = 0) -> np.ndarray:
    """Positions after messages of one event each."""
    offsets = np.arange(first, first + count)
    zeros = np.zeros(count, np.int64)
    return np.stack([zeros + partition, offsets + 1, zeros, offsets], 1)


def left_out(overlap: Overlap, batch: EventBatch, first: int = 0, partition: int = 0) -> list[int]:
    after_B4 = places(len(batch), first, partition)
    return overlap.learned(batch, after_B4, np.ones(len(batch), bool)).astype(int).tolist()


def after(*batches: EventBatch) -> Overlap:
    end_s = max(float(batch.times_s_B.max()) for batch in batches)
    overlap = Overlap(OverlapState(end_us=round(end_s * 1e6)))
    for batch in batches:
        overlap.record(batch)
    return overlap


def test_events_before_the_last_minute_are_left_out_and_later_ones_than_the_end_are_not():
    overlap = after(events(101, 105, 103), events(102))
    assert left_out(overlap, events(44, 44.9999, 105.0001, 106, 0)) == [1, 1, 0, 0, 1]
    assert overlap.left_out == 3


def test_in_the_last_minute_equal_events_are_left_out_as_often_as_they_were_recorded():
    overlap = after(events(5, 5), events(4), events(5, name="b"))
    assert left_out(overlap, events(5, 5, 5)) == [1, 1, 0]
    assert left_out(overlap, events(5, name="b"), first=3) == [1]
    assert left_out(overlap, events(5, name="c"), first=4) == [0]
    assert left_out(overlap, events(5, name="a", value=2), first=5) == [0]
    assert left_out(overlap, events(4, 4, 4.5), first=6) == [1, 0, 0]


@pytest.mark.parametrize(("one", "other"), [(0.0, -0.0), (np.nan, -np.nan)])
def test_two_zeros_and_two_missing_values_are_equal(one, other):
    assert left_out(after(events(5, value=one)), events(5, value=other)) == [1]


def test_times_are_compared_in_microseconds():
    assert left_out(after(events(5.0000001)), events(5.0000002, 5.000002)) == [1, 0]


def test_after_a_restart_the_same_events_are_left_out_in_whatever_order_they_come():
    overlap = after(events(5))
    assert left_out(overlap, events(5), first=7, partition=1) == [1]
    again = Overlap(overlap.state)
    assert left_out(again, events(5), first=3, partition=0) == [0]
    assert left_out(again, events(5), first=7, partition=1) == [1]
    assert left_out(again, events(5), first=8, partition=1) == [0]


def test_events_that_are_not_asked_about_count_for_nothing():
    overlap = after(events(5))
    asked = np.array([False, True])
    assert overlap.learned(events(5, 5), places(2), asked).tolist() == [False, True]


def test_the_number_is_told_once_no_more_come_or_half_a_minute_later(caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    overlap = Overlap(after(events(95), events(100)).state, clock=lambda: now[0])

    def told() -> int:
        overlap.tell()
        return len(caplog.messages)

    assert told() == 0
    left_out(overlap, events(1, 2))
    assert told() == 0  # perhaps more of them come
    assert told() == 1
    assert "2 events of the topic were left out so far" in caplog.messages[0]
    assert "1970-01-01T00:01:40.000Z; of its last minute, 0 of 2 events" in caplog.messages[0]
    left_out(overlap, events(95))
    assert (told(), told()) == (1, 1)
    now[0] = 31.0
    assert told() == 2
    assert "of its last minute, 1 of 2 events were met" in caplog.messages[1]
    left_out(overlap, events(3))
    overlap.tell(last=True)
    assert "4 events" in caplog.messages[2]
