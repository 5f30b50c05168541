"""The process that reads beside the learner: nothing is lost or changed on the way, and nobody
outlives anybody."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from niwaki.model.features.schema import Schema
from niwaki.model.features.values import Odd
from niwaki.stream.errors import BrokerError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import encode_json
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka import reader_process
from niwaki.stream.kafka.connection import ensure_topic
from niwaki.stream.kafka.reader import PolledBatch, Reader
from niwaki.stream.kafka.reader_process import ReaderProcess
from niwaki.stream.kafka.sink import EventSink
from niwaki.stream.kafka.source import EventSource, KafkaConfig, Record
from niwaki.stream.recordings.writing import batch_to_table
from tests.support.messages import same as same_batch
from tests.support.streams import SCHEMA, click_events

START = """
import sys, msgspec
from niwaki.stream.kafka.connection import KafkaConfig
from niwaki.stream.kafka.reader_process import ReaderProcess
from niwaki.model.features.schema import Schema
config = msgspec.json.decode(sys.argv[1], type=KafkaConfig)
reader = ReaderProcess(config, Schema(categorical=("user",)))
reader.start({})
while not reader.ends:
    reader.read(1.0)
print(reader.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def filled(kafka_config):
    """Makes settings for a topic with these messages."""

    def make(values: list[bytes], **changes: object) -> KafkaConfig:
        config = kafka_config(**changes)
        ensure_topic(config, config.topic)
        with EventSink(config) as sink:
            for value in values:
                sink.send(value)
        return config

    return make


def same(first: PolledBatch, second: PolledBatch) -> bool:
    arrays = [
        (r.batch.labels_B, r.batch.times_s_B, r.batch.numerics_BN, r.after_B4)
        for r in (first, second)
    ]
    return (
        all(map(np.array_equal, *arrays, [True] * 4))
        and first.batch.categorical == second.batch.categorical
        and first[2:] == second[2:]
    )


@pytest.mark.parametrize("count", [0, 1, 300])
@pytest.mark.parametrize(
    "schema",
    [SCHEMA, Schema(numeric=("age",)), Schema(categorical=("user",))],
    ids=["both", "numeric", "categorical"],
)
def test_a_reading_comes_out_of_its_frame_as_it_went_in(schema, count):
    events = batch_to_table(click_events(count, missing=0.3), SCHEMA).select(
        [schema.label, schema.timestamp, *schema.categorical, *schema.numeric]
    )
    batch, message_B = EventDecoder(schema).decode(encode_json(events))[:2]
    record = Record("events", 3, 7, -1, None, b"\xff", [("trace", b"\xff"), ("none", None)])
    after_B4 = np.stack([message_B] * 4, axis=1)
    reading = PolledBatch(
        batch,
        after_B4,
        [(record, Reject(0, "json", "value", "must be JSON"))],
        [Odd("n", 2, "'x'")],
        {3: 8},
        count + 1,
        99,
    )
    head, body = reader_process._pack_batch(reading, {3: 11})
    again = reader_process._unpack_batch(head, bytearray(b"".join(body)), schema)
    assert same(reading, again)
    assert head.ends == {3: 11}


@pytest.mark.parametrize("count", [0, 1, 30])
@pytest.mark.parametrize("columns", [{}, {"weight": "w", "sampling_ratio": "kept"}])
def test_lists_and_weights_come_out_of_their_frame_as_they_went_in(columns, count):
    schema = Schema(lists=("seen", "tags"), numeric=("n",), timestamp=None, **columns)
    lists = (None, [], ["a", "b"], {"c": 0.5})
    rows = [
        {"label": 1, "n": at, "w": at, "kept": 0.5, "seen": lists[at % 4], "tags": lists[at % 3]}
        for at in range(count)
    ]
    messages = [json.dumps(row).encode() for row in rows]
    config = EventsConfig(unknown_columns="ignore")
    batch, message_B = EventDecoder(schema, config).decode(messages)[:2]
    after_B4 = np.stack([message_B] * 4, axis=1)
    polled = PolledBatch(batch, after_B4, [], [], {}, count, 9)
    head, body = reader_process._pack_batch(polled, {})
    again = reader_process._unpack_batch(head, bytearray(b"".join(body)), schema)
    assert len(again.batch) == count
    assert same_batch(again.batch, batch)
    assert (batch.weights_B is None) == (not columns)


def test_a_process_reads_what_the_caller_would_have_read(filled, caplog):
    caplog.set_level("INFO")
    values = encode_json(batch_to_table(click_events(700), SCHEMA))
    config = filled([*values[:300], b"not json", *values[300:]], max_poll_messages=100)
    found = []
    for reader in (
        Reader(EventSource(config), EventDecoder(SCHEMA)),
        ReaderProcess(config, SCHEMA),
    ):
        caplog.clear()
        reader.start({0: 5})
        readings = []
        while sum(reading.messages for reading in readings) < 696:
            readings += filter(None, [reader.read(0.1)])
        assert reader.ends == {0: 701}
        reader.close()
        batches = [reading.batch for reading in readings]
        rejects = [reject for reading in readings for reject in reading.rejects]
        after_B4 = np.concatenate([reading.after_B4 for reading in readings])
        found.append(
            (
                np.concatenate([b.numerics_BN for b in batches]),
                after_B4,
                [(r.offset, x.kind) for r, x in rejects],
            )
        )
    assert "partitions [0] of 1" in caplog.text  # the log of the process is the caller's
    (numerics_BN, after_B4, rejects), (others_BN, others_B4, others) = found
    assert np.array_equal(numerics_BN, others_BN, equal_nan=True) and np.array_equal(
        after_B4, others_B4
    )
    assert rejects == others == [(300, "json")]


def test_what_the_process_fails_of_is_raised_where_it_is_read(kafka_config):
    reader = ReaderProcess(kafka_config(connect_timeout_s=0.3), SCHEMA)
    reader.start({})
    with pytest.raises(BrokerError, match="has no topic"):
        while True:
            reader.read(1.0)
    reader.close()


def test_when_the_learner_is_killed_its_reader_ends_too(filled):
    config = filled([b"{}"])
    settings = json.dumps({"bootstrap_servers": config.bootstrap_servers, "topic": config.topic})
    learner = subprocess.Popen(
        [sys.executable, "-c", START, settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert int(learner.stdout.readline())
    os.kill(learner.pid, signal.SIGKILL)
    learner.communicate(
        timeout=60
    )  # returns once nobody holds its standard error any more: the reader does


class Watched(EventSource):
    """A source that tells when it is paused, and when it was polled all the same."""

    def __init__(self, config: KafkaConfig):
        super().__init__(config)
        self.polled, self.calls = 0, []
        self.idled = threading.Event()

    def poll(self, timeout_s: float) -> list[Record]:
        records = super().poll(timeout_s)
        self.polled += len(records)
        if self.calls[-1:] == ["pause"]:
            assert not records
            self.idled.set()
        return records

    def pause(self) -> None:
        self.calls.append("pause")
        super().pause()

    def resume(self) -> None:
        self.calls.append("resume")
        super().resume()


class Enough(Exception):
    pass


def test_a_slow_learner_pauses_the_partitions_and_still_gets_every_message_in_order(
    filled, monkeypatch
):
    monkeypatch.setattr(reader_process, "_ROOM_WAIT_S", 0.01)
    monkeypatch.setattr(reader_process, "_POLL_S", 0.01)
    values = [json.dumps({"label": 1, "ts": n, "user": "u" * 10_000}).encode() for n in range(300)]
    config = filled(values, max_poll_messages=10)
    schema = Schema(categorical=("user",))
    into, out = os.pipe()
    with Watched(config) as source, os.fdopen(into, "rb") as frames, os.fdopen(out, "wb") as sink:
        sender = reader_process._Sender(sink)

        class Limited(Reader):
            def read(self, timeout_s: float) -> PolledBatch | None:
                if source.polled == len(values):
                    raise Enough
                return super().read(timeout_s)

        def read_and_send() -> None:
            with pytest.raises(Enough):
                reader_process._read_and_send(source, Limited(source, EventDecoder(schema)), sender)
            sender.send(reader_process._Ends({}))

        thread = threading.Thread(target=read_and_send)
        thread.start()
        assert source.idled.wait(60)
        assert source.polled <= 10 * (
            reader_process._AHEAD + 2
        )  # one is being written, one waits to be sent
        times_s = []
        while True:
            head_bytes, body_bytes = reader_process._LENGTHS.unpack(
                frames.read(reader_process._LENGTHS.size)
            )
            head = reader_process._unpack(frames.read(head_bytes))
            body = bytearray(frames.read(body_bytes))
            if isinstance(head, reader_process._Columns):
                reading = reader_process._unpack_batch(head, body, schema)
                times_s += reading.batch.times_s_B.tolist()
            elif not head.ends:
                break
        thread.join()
        sender.close()
    assert times_s == [n / 1000 for n in range(300)]
    assert source.calls[:2] == ["pause", "resume"]
