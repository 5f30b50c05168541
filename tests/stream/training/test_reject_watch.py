"""A trainer's word about events that it could not learn from, and its end where these are most."""

import logging

import numpy as np
import pytest

from niwaki.model.features.values import Odd
from niwaki.stream.errors import TooManyRejects
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.connection import Record
from niwaki.stream.kafka.reader import PolledBatch
from niwaki.stream.training.reject_watch import WINDOW_EVENTS, RejectWatch
from tests.support.pipelines import Running, json_messages, never, produce
from tests.support.streams import click_events


def polled(good: int, bad: int, odd: int = 0, first: int = 0) -> PolledBatch:
    records = [Record("t", 0, first + at, 0, None, b"x") for at in range(bad)]
    return PolledBatch(
        batch=click_events(good),
        after_B4=np.zeros((good, 4), np.int64),
        rejects=[(one, Reject(0, "json", "value", "must be JSON", "b'x'")) for one in records],
        odd=[Odd("price", odd, "'cheap'")] if odd else [],
        polled={0: first + bad},
        messages=good + bad,
        size_bytes=bad,
    )


def lines(caplog, watch: RejectWatch, *polls: PolledBatch) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "niwaki"):
        for one in polls:
            watch.polled(one)
    return caplog.messages


def test_the_first_reject_is_told_at_once_with_its_place_and_then_at_growing_intervals(caplog):
    watch = RejectWatch("t", 1.0)
    told = lines(caplog, watch, polled(9, 1, first=7))
    assert told == [
        "1 of 10 events were left out:",
        "  1 by the rule of t[0]@7: value: must be JSON, got b'x'",
    ]
    counts = []
    for _ in range(199):
        found = lines(caplog, watch, polled(0, 5))
        counts += [int(found[0].split()[0])] if found else []
    assert counts == [11, 111]


def test_odd_values_are_told_too(caplog):
    (line,) = lines(caplog, RejectWatch("t", 1.0), polled(9, 0, odd=2))
    assert line.startswith("price: 2 values are no numbers and were read as missing")


def test_without_rejects_nothing_is_said(caplog):
    assert lines(caplog, RejectWatch("t", 0.5), *[polled(100, 0)] * 150) == []


@pytest.mark.parametrize(("bad", "stops"), [(50, False), (51, True)])
def test_a_trainer_stops_once_too_many_of_the_last_events_are_rejected(bad, stops):
    watch = RejectWatch("t", 0.5)
    for at in range(WINDOW_EVENTS // 100):
        assert not watch.too_many, at
        watch.polled(polled(100 - bad, bad))
    assert watch.too_many == stops
    if stops:
        with pytest.raises(TooManyRejects, match=r"5,100 of the last 10,000 .* --topic t` shows"):
            watch.check()
    else:
        watch.check()


def test_what_was_long_ago_does_not_count():
    watch = RejectWatch("t", 0.5)
    for _ in range(40):
        watch.polled(polled(0, 100))
    for _ in range(150):
        watch.polled(polled(100, 0))
        assert not watch.too_many


def test_a_trainer_of_a_wrong_schema_saves_and_stops_with_the_reason_and_the_way_on(setting):
    kafka, _, directory = setting
    good = json_messages(click_events(256))
    produce(kafka, [*good, *[b'{"ts": 1, "clicked": 1}'] * WINDOW_EVENTS])
    with Running(*setting, max_rejected_ratio=0.5) as running:
        with pytest.raises(TooManyRejects, match=r"clicked: must be a column of the schema"):
            running.pipeline.run(never)
        assert running.trainer.events == 256
    assert list(directory.iterdir())
    with Running(*setting, max_rejected_ratio=1.0) as again:  # what was saved goes on
        again.pipeline.run(never, limit_events=256)
        assert again.trainer.events == 256
