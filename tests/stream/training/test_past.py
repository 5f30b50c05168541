"""A recording learned before a topic: of what both hold, each event is learned once and none is
left out, whatever the partitions, the times of the messages, and the restarts."""

import logging
import time
from collections.abc import Callable

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from niwaki.model.features.schema import EventBatch
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.errors import BrokerError, ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.encoders import encode_arrow
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.kafka.sink import EventSink
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.past import Past
from niwaki.stream.training.snapshots.files import SnapshotConfig, SnapshotFiles
from tests.support.pipelines import (
    NEVER_S,
    Running,
    assert_same,
    json_messages,
    never,
    uninterrupted,
)
from tests.support.streams import SCHEMA, click_events

HOUR_S = 3600.0


class Crash(BaseException):
    """Ends a run the hard way: nothing is saved after it."""


def recent(count: int, *, every_s: float = 10.0, seed: int = 0) -> EventBatch:
    """Events up to a minute ago, each with a name of its own in the column `noise`: brokers delete
    old messages."""
    events = click_events(count, seed=seed)
    last_s = float(int(time.time()) - 60)
    names = pa.array([f"e{at}" for at in range(count)])
    times_s = last_s - np.arange(count)[::-1] * every_s
    return EventBatch(
        events.labels_B, times_s, (*events.categorical[:2], names), events.numerics_BN
    )


@pytest.fixture
def split(kafka_config, redis_url, key_prefix, tmp_path):
    """(Kafka, Redis, folder) of one trainer, whose topic has three partitions."""
    kafka = kafka_config(reader="inline")
    ensure_topic(kafka, kafka.topic, partitions=3)
    ensure_topic(kafka, kafka.dead_letters)
    return kafka, StoreConfig(url=redis_url, name=key_prefix()), tmp_path


def send(kafka: KafkaConfig, events: EventBatch, lag_s: float | None = None) -> None:
    """Write events, one a message and keyed by their place, so that they spread over partitions.
    `lag_s`: messages are stamped so long after their event; None: with the time of writing."""
    with EventSink(kafka) as sink:
        for at, value in enumerate(json_messages(events)):
            stamp_ms = None if lag_s is None else int((events.times_s_B[at] + lag_s) * 1000)
            sink.send(value, stamp_ms, str(at).encode())


def remove_snapshots(directory) -> None:
    for path in SnapshotFiles(SnapshotConfig(directory=str(directory))).paths():
        path.unlink()


def recorded(directory, *parts: EventBatch, name: str = "history.parquet") -> Past:
    with write_recording(directory / name) as file:
        for events in parts:
            file.write(batch_to_table(events, SCHEMA))
    return Past([directory / name], SCHEMA, EventsConfig(), log_every_s=0)


class Learned:
    """The names of the events that trainers have learned, one after the other; what a crash has
    undone is not among them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run(self, setting, stop_at: int, **options) -> Running:
        """Run a trainer until it has learned so many events."""
        with Running(*setting, **options) as running:
            self.follow(running)
            running.pipeline.run(lambda: running.trainer.events >= stop_at, limit_events=stop_at)
        return running

    def follow(self, running: Running) -> None:
        del self.names[running.trainer.events :]
        step = running.trainer.step

        def stepped(batch):
            self.names.extend(batch.categorical[2].to_pylist())
            return step(batch)

        running.trainer.step = stepped

    def are(self, events: EventBatch) -> bool:
        """True if each of the events was learned, and each once."""
        return sorted(self.names) == sorted(events.categorical[2].to_pylist())


def nothing_waits(running: Running) -> Callable[[], bool]:
    """True once all that the topic holds has been polled, and read."""

    def told() -> bool:
        batcher = running.pipeline.batcher
        lag = batcher.lag()
        return len(lag) == len(batcher.positions.offsets) and not any(lag.values())

    return told


@pytest.mark.parametrize(
    "lag_s", [0.0, 30.0, None, -50.0, -3 * HOUR_S], ids="same late now early wrong".split()
)
def test_history_and_topic_are_learned_as_their_union(split, lag_s):
    events, learned = recent(3000), Learned()
    send(split[0], events, lag_s)
    running = learned.run(split, 3000, past=recorded(split[2], events.slice(0, 2000)))
    assert learned.are(events)
    assert running.trainer.prequential.total.label_sum == events.labels_B.sum()
    with Running(*split) as again:
        learned.follow(again)
        again.pipeline.run(nothing_waits(again))
    assert learned.are(events)


@pytest.mark.parametrize("reader", ["inline", "process"])
def test_a_trainer_with_a_past_becomes_the_one_that_read_all_from_one_source(setting, reader):
    setting = msgspec.structs.replace(setting[0], reader=reader), *setting[1:]
    events = recent(3072)
    send(setting[0], events.slice(500, 3072), 0)
    with Running(*setting, past=recorded(setting[2], events.slice(0, 1536))) as running:
        running.pipeline.run(never, limit_events=3072)
        assert_same(running.trainer, uninterrupted(events, running.pipeline.replica))


def test_events_of_the_last_moment_are_told_apart_by_what_they_are(split):
    events, learned = recent(1500), Learned()
    times_s = events.times_s_B.copy()
    times_s[900:1100] = times_s[1000]
    same = EventBatch(events.labels_B, times_s, events.categorical, events.numerics_BN)
    send(split[0], same, 0)
    some = np.random.default_rng(1).permutation(np.arange(900, 1100))[:80]
    past = recorded(split[2], same.slice(0, 900), same.take(some))
    for stop_at in (500, 980, 981, 1000, 1037, 1090, 1101, 1500):
        learned.run(split, stop_at, past=past)
    assert learned.are(events)


def test_a_recording_whose_partitions_end_at_different_times_leaves_nothing_out(split):
    events, learned = recent(3000, every_s=0.5), Learned()
    send(split[0], events, 0)
    before, edge = events.slice(0, 1900), events.slice(1900, 2000)
    some = np.flatnonzero(np.random.default_rng(3).random(100) < np.linspace(1, 0.1, 100))
    past = recorded(split[2], before, edge.take(some), events.slice(2000, 2001))
    for stop_at in (1901, 1960, 2000, 2100, 3000):
        learned.run(split, stop_at, past=past)
    assert learned.are(events)


def test_equal_events_of_the_last_moment_are_left_out_as_often_as_they_were_recorded(split):
    one = recent(1)
    same = EventBatch.concat([one] * 50)
    send(split[0], same, 0)
    learned = Learned()
    running = learned.run(split, 50, past=recorded(split[2], same.slice(0, 20)))
    assert (running.trainer.events, len(learned.names)) == (50, 50)
    with Running(*split) as again:
        again.pipeline.run(nothing_waits(again))
        assert again.trainer.events == 50


def test_messages_of_many_events_are_left_out_event_by_event(split):
    events, learned = recent(1600), Learned()
    with EventSink(split[0]) as sink:
        for at, value in enumerate(encode_arrow(batch_to_table(events, SCHEMA), 150)):
            sink.send(value, None, str(at).encode())
    for stop_at in (832, 1011, 1313, 1600):
        learned.run(split, stop_at, past=recorded(split[2], events.slice(0, 832)))
    assert learned.are(events)


def test_a_crash_behind_the_recording_costs_nothing_and_repeats_nothing(split):
    events, learned = recent(3000), Learned()
    send(split[0], events, 0)
    past = recorded(split[2], events.slice(0, 1500))

    def die(step):
        if second.trainer.events >= 2300:
            raise Crash

    learned.run(split, 1700, past=past)
    with Running(*split, past=past, observers=[StepCallback(die)]) as second:
        learned.follow(second)
        with pytest.raises(Crash):
            second.pipeline.run(never)
    assert len(learned.names) >= 2300
    learned.run(split, 3000, past=past)
    assert learned.are(events)


def test_a_broker_that_is_away_at_the_end_of_the_recording_costs_a_restart_and_no_event(split):
    events, learned = recent(900), Learned()
    send(split[0], events, 0)

    def away(end_us: int) -> dict[int, int]:
        raise BrokerError("away")

    with Running(*split, past=recorded(split[2], events.slice(0, 500))) as running:
        learned.follow(running)
        running.pipeline._offsets_after = away
        with pytest.raises(BrokerError):
            running.pipeline.run(never)
    assert len(learned.names) == 500
    learned.run(split, 900)
    assert learned.are(events)


@pytest.mark.parametrize("every_s", [NEVER_S, 1e-9], ids=["begins anew", "goes on"])
def test_a_crash_in_the_recording_repeats_nothing(setting, every_s):
    events = recent(2048)
    send(setting[0], events.slice(900, 2048), 0)
    past = recorded(setting[2], events.slice(0, 1024))

    def die(step):
        first.pipeline.snapshots.settle(wait=True)  # each one gets to the disk
        if first.trainer.events >= 700:
            raise Crash

    first = Running(*setting, past=past, every_s=every_s, observers=[StepCallback(die)])
    with first, pytest.raises(Crash):
        first.pipeline.run(never)
    with Running(*setting, past=past) as second:
        assert second.trainer.events == (0 if every_s == NEVER_S else 512)
        second.pipeline.run(never, limit_events=2048)
        assert_same(second.trainer, uninterrupted(events, second.pipeline.replica))


def test_a_stop_in_the_recording_saves_and_the_next_start_goes_on(setting, caplog):
    caplog.set_level(logging.INFO)
    events = recent(2048)
    send(setting[0], events.slice(900, 2048), 0)
    past = recorded(setting[2], events.slice(0, 1024))
    for stop_at in (256, 512, 768):
        with Running(*setting, past=past) as running:
            running.pipeline.run(lambda: running.trainer.events >= stop_at)  # noqa: B023
            assert running.trainer.events == stop_at
            assert running.pipeline.version == running.store.head().version
    assert "--history goes on after 512 of its events" in caplog.text
    assert "learned 768 of 1,024 recorded events" in caplog.text
    with pytest.raises(ConfigError, match="--history: is missing: .* taken after 768 events of a"):
        Running(*setting).__enter__()
    other = recorded(setting[2], recent(2000, seed=1), name="other.parquet")
    with (
        Running(*setting, past=other) as running,
        pytest.raises(ConfigError, match="must begin with the 768 events"),
    ):
        running.pipeline.run(never)
    with Running(*setting, past=past) as running:
        running.pipeline.run(never, limit_events=2048)
        assert_same(running.trainer, uninterrupted(events, running.pipeline.replica))


def test_a_restart_does_not_learn_the_recording_again_and_does_without_its_files(split, caplog):
    caplog.set_level(logging.INFO)
    events, learned = recent(1500), Learned()
    send(split[0], events, 0)
    first = learned.run(split, 1200, past=recorded(split[2], events.slice(0, 1000)))
    assert "events of the topic were left out so far, since they were learned" in caplog.text
    (split[2] / "history.parquet").unlink()
    gone = Past([split[2] / "history.parquet"], SCHEMA, EventsConfig())
    learned.run(split, 1500, past=gone)
    at = f"event {first.trainer.events:,}"
    assert f"--history is learned already: going on from the snapshot at {at}" in caplog.text
    assert learned.are(events)


def test_a_snapshot_from_before_the_option_was_given_is_gone_on_from(split, caplog):
    caplog.set_level(logging.INFO)
    events, learned = recent(600), Learned()
    learned.run(split, 0)  # of an empty topic: nothing stands in the way of a recording
    send(split[0], events, 0)
    learned.run(split, 300, past=recorded(split[2], events.slice(0, 200)))
    assert "not learned" not in caplog.text
    remove_snapshots(split[2])
    first = learned.run(split, 300)
    learned.run(split, 600, past=recorded(split[2], events.slice(0, 200)))
    at = f"event {first.trainer.events}"
    assert f"--history is not learned: going on from the snapshot at {at}" in caplog.text
    assert learned.are(events)


def test_events_that_break_the_schema_are_told_and_too_many_stop_before_anything_is_learned(
    setting, caplog
):
    rows = batch_to_table(recent(100), SCHEMA).to_pylist()
    rows[7]["label"] = 7.0
    path = setting[2] / "history.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows))
    few = Past([path], SCHEMA, EventsConfig())
    with Running(*setting, past=few) as running:
        running.pipeline.run(never, limit_events=99)
        assert running.trainer.events == 99
    assert "1 of 100 events were left out" in caplog.text and "history.jsonl, line 8" in caplog.text
    remove_snapshots(setting[2])
    many = Past([path], SCHEMA, EventsConfig(max_rejected_ratio=0.001))
    with (
        Running(*setting, past=many) as running,
        pytest.raises(ConfigError, match="more than max_rejected_ratio = 0.001"),
    ):
        running.pipeline.run(never)
    assert running.trainer.events == 0


def test_events_without_a_time_are_an_error_with_the_way_on(tmp_path):
    untimed = msgspec.structs.replace(SCHEMA, timestamp=None)
    with pytest.raises(ConfigError, match=r"--history: needs events with a time.*schema.timestamp"):
        Past([tmp_path], untimed, EventsConfig())


def test_a_recording_that_ends_in_the_future_is_told(setting, caplog):
    events = recent(64)
    times_s = events.times_s_B + 1e6
    late = EventBatch(events.labels_B, times_s, events.categorical, events.numerics_BN)
    with Running(*setting, past=recorded(setting[2], late)) as running:
        running.pipeline.run(never, limit_events=64)
    assert "64 of them are of the future" in caplog.text


def test_the_checkpoint_at_the_end_of_the_recording_is_a_full_one(setting):
    published = []

    class Store(CheckpointStore):
        def publish(self, header, data):
            published.append(header)
            return super().publish(header, data)

    with Running(*setting, past=recorded(setting[2], recent(700))) as running:
        running.pipeline.publisher._store = Store(setting[1])
        running.pipeline.run(never, limit_events=700)
    at_the_end = [header for header in published if header.events == 700]
    assert [header.base for header in published[:2]] == [0, 1]
    assert (at_the_end[0].base, at_the_end[0].offsets) == (0, {})
