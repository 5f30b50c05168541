import pytest

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import encode_arrow, encode_json
from niwaki.stream.events.rejects import Tally
from niwaki.stream.kafka.source import EventSink, EventSource, Record, ensure_topic
from niwaki.stream.recordings.recording import Recording, read_recording
from niwaki.stream.recordings.replay import record, replay
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from tests.support.streams import SCHEMA, click_events

BATCH = click_events(1000)  # an event each half second


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self):
        self.now_s, self.sleeps = 100.0, []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now_s += seconds


class Outbox:
    """A sink that keeps what it is sent, and when."""

    def __init__(self, clock: Clock):
        self._clock, self.values, self.times_s, self.flushed = clock, [], [], 0

    def send(self, value: bytes) -> None:
        self.values.append(value)
        self.times_s.append(self._clock() - 100)

    def flush(self) -> None:
        self.flushed = len(self.values)


class Inbox:
    """A source with two partitions that hold the given messages in turn, and polls a few at a
    time."""

    partitions = (0, 1)

    def __init__(self, values: list[bytes], size: int = 70):
        self._records = [
            Record("t", i % 2, i // 2, 0, None, value) for i, value in enumerate(values)
        ]
        self._size = size
        self.polls = 0

    def poll(self, timeout_s: float) -> list[Record]:
        self.polls += 1
        polled, self._records = self._records[: self._size], self._records[self._size :]
        return polled

    def lag(self) -> dict[int, int]:
        return (
            {}
            if self.polls < 2
            else {p: sum(one.partition == p for one in self._records) for p in (0, 1)}
        )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["parquet", "jsonl", "csv.gz"])
def recording(request, tmp_path):
    path = tmp_path / f"events.{request.param}"
    with write_recording(path) as writer:
        writer.write(batch_to_table(BATCH, SCHEMA))
    return path


def play(path, clock: Clock, schema: Schema = SCHEMA, **options) -> tuple[int, Outbox]:
    outbox = Outbox(clock)
    tally = Tally()
    sent = replay(
        Recording(path), outbox, schema, tally=tally, clock=clock, sleep=clock.sleep, **options
    )
    assert outbox.flushed == len(outbox.values)
    return sent, outbox


def rows(batch: EventBatch) -> list[dict]:
    return batch_to_table(batch, SCHEMA).to_pylist()


@pytest.mark.parametrize("wire, messages", [("json", 1000), ("arrow", 4)])
def test_what_is_played_decodes_to_what_was_recorded_in_order(recording, clock, wire, messages):
    sent, outbox = play(recording, clock, wire=wire)
    batch, _, rejects = EventDecoder(SCHEMA).decode(outbox.values)[:3]
    assert (sent, len(outbox.values), rejects) == (1000, messages, [])
    assert rows(batch) == rows(BATCH)
    assert clock.sleeps == []


def test_an_event_leaves_when_its_turn_at_the_rate_has_come(recording, clock):
    _, outbox = play(recording, clock, rate=50)
    assert outbox.times_s == pytest.approx([i / 50 for i in range(1000)], abs=0.006)


def test_an_event_leaves_when_it_happened_at_a_multiple_of_the_speed(recording, clock):
    _, outbox = play(recording, clock, speed=10)
    assert outbox.times_s == pytest.approx([i * 0.05 for i in range(1000)], abs=0.006)


def test_at_a_high_rate_it_falls_behind_and_catches_up_rather_than_sleep_for_each_event(
    recording, clock
):
    _, outbox = play(recording, clock, rate=10_000)
    assert len(clock.sleeps) <= 20
    assert outbox.times_s[-1] == pytest.approx(0.1, abs=0.006)


def test_arrow_messages_keep_the_pace_too(recording, clock):
    _, outbox = play(recording, clock, wire="arrow", events_per_message=100, rate=50)
    assert outbox.times_s == pytest.approx([i * 2 for i in range(10)], abs=0.006)


def test_a_long_wait_can_be_stopped(recording, clock):
    sent, outbox = play(recording, clock, rate=0.001, stop=lambda: clock() > 103)
    assert (sent, outbox.times_s) == (1, [0.0])
    assert max(clock.sleeps) <= 0.5


def test_a_loop_plays_until_the_limit_and_goes_on_in_its_own_time(recording, clock):
    sent, outbox = play(recording, clock, loop=True, limit_events=2500, speed=10)
    assert (sent, len(outbox.values)) == (2500, 2500)
    assert outbox.values[:1000] == outbox.values[1000:2000]
    lap_s = 999 * 0.05
    assert outbox.times_s[1000:2000] == pytest.approx(
        [lap_s + i * 0.05 for i in range(1000)], abs=0.006
    )


def test_a_limit_cuts_the_last_message_short(recording, clock):
    sent, outbox = play(recording, clock, wire="arrow", events_per_message=300, limit_events=700)
    assert (sent, len(outbox.values)) == (700, 3)
    assert len(EventDecoder(SCHEMA).decode(outbox.values)[0]) == 700


def test_progress_adds_up(recording, clock):
    told = []
    play(recording, clock, wire="arrow", on_events=told.append)
    assert (sum(told), len(told)) == (1000, 4)


def test_lines_are_played_as_they_are_with_all_that_is_wrong_with_them(tmp_path, clock):
    path = tmp_path / "events.jsonl"
    lines = [
        b'{"ts": 1000, "label": 1, "extra": [1]}',
        b"nonsense",
        b'{ "ts":2000.0, "label": 2 }',
        b"\xff",
        b"[1]",
    ]
    path.write_bytes(b"\n".join(lines) + b"\n\n")
    _, outbox = play(path, clock, speed=1.0)
    assert outbox.values == lines
    assert outbox.times_s == pytest.approx([0, 0, 1, 1, 1], abs=0.006)


def test_several_files_are_played_in_the_order_in_which_they_begin(tmp_path, clock):
    for name, part in (("a", BATCH.slice(600, 1000)), ("b", BATCH.slice(0, 600))):
        with write_recording(tmp_path / f"{name}.parquet") as writer:
            writer.write(batch_to_table(part, SCHEMA))
    outbox = Outbox(clock)
    files = Recording([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert replay(files, outbox, SCHEMA, tally=Tally(), limit_events=700) == 700
    batch, *_ = EventDecoder(SCHEMA).decode(outbox.values)
    assert rows(batch) == rows(BATCH.slice(0, 700))


def test_an_empty_recording_is_an_error_even_in_a_loop(tmp_path, clock):
    (tmp_path / "events.jsonl").write_bytes(b"\n")
    with pytest.raises(ConfigError, match="is empty"):
        play(tmp_path / "events.jsonl", clock, loop=True)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"rate": 0}, "rate: must be above 0, got 0"),
        ({"speed": float("nan")}, "speed: must be above 0, got nan"),
        ({"limit_events": -1}, "limit_events: must be above 0, got -1"),
        ({"rate": 1, "speed": 1}, "rate: can't be set together with speed"),
        (
            {"speed": 1, "schema": Schema(timestamp=None, categorical=("user",))},
            "speed: needs events with a timestamp",
        ),
    ],
)
def test_a_pace_that_cannot_be_is_refused(tmp_path, clock, options, text):
    (tmp_path / "events.jsonl").write_bytes(b"{}")
    with pytest.raises(ConfigError, match=text):
        play(tmp_path / "events.jsonl", clock, **options)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv.gz"])
@pytest.mark.parametrize("encode", [encode_json, lambda table: encode_arrow(table, 10)])
def test_what_is_recorded_is_what_a_trainer_would_have_learned(tmp_path, suffix, encode):
    path = tmp_path / f"events.{suffix}"
    inbox = Inbox(encode(batch_to_table(BATCH, SCHEMA)))
    assert record(inbox, path, SCHEMA, tally=Tally()) == 1000
    batch, rejects, _ = zip(*read_recording(path, SCHEMA), strict=True)
    assert rows(EventBatch.concat(batch)) == rows(BATCH)
    assert not any(rejects)


@pytest.mark.parametrize("wire", ["json", "arrow"])
def test_a_recording_comes_back_from_kafka_as_it_was(recording, tmp_path, kafka_config, wire):
    config = kafka_config()
    ensure_topic(config, config.topic)
    with EventSink(config) as sink:
        replay(Recording(recording), sink, SCHEMA, tally=Tally(), wire=wire)
    with EventSource(config) as source:
        assert record(source, tmp_path / "back.parquet", SCHEMA, tally=Tally()) == 1000
    (chunk,) = read_recording(tmp_path / "back.parquet", SCHEMA)
    assert rows(chunk[0]) == rows(BATCH)


def test_what_cannot_be_decoded_is_left_out_of_a_recording_and_told(tmp_path):
    values = encode_json(batch_to_table(BATCH, SCHEMA))
    values[5:5] = [b"nonsense", b"{}"]
    tally = Tally()
    assert record(Inbox(values), tmp_path / "events.csv", SCHEMA, tally=tally) == 1000
    assert tally.lines()[0] == "2 of 1,002 events were left out:"
    assert "t[1]@2: value: must be JSON" in tally.lines()[1]


def test_recording_ends_at_the_limit_or_when_told_to_and_follows_if_asked(tmp_path):
    values = encode_json(batch_to_table(BATCH, SCHEMA))
    path = tmp_path / "events.parquet"
    assert record(Inbox(values), path, SCHEMA, limit_events=333, tally=Tally()) == 333
    assert sum(len(chunk.batch) for chunk in read_recording(path, SCHEMA)) == 333
    inbox = Inbox(values)
    assert (
        record(inbox, path, SCHEMA, follow=True, stop=lambda: inbox.polls >= 100, tally=Tally())
        == 1000
    )
    inbox = Inbox(values)
    assert record(inbox, path, SCHEMA, stop=lambda: inbox.polls >= 3, tally=Tally()) == 210
