"""Several files of events as one stream, in the order of event time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import Odd
from niwaki.stream.events.rejects import Reject
from niwaki.stream.recordings.chunks import Chunk, in_order_of_time

SCHEMA = Schema(categorical=("event",))
files = st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=12), min_size=1, max_size=5)


def chunk(file: int, first: int, times_s: list[int]) -> Chunk:
    rows = [
        {"ts": time_s * 1000, "event": f"{file}/{first + at}"} for at, time_s in enumerate(times_s)
    ]
    return Chunk(rows_to_batch(rows, SCHEMA), [], [])


def merged(many: list[list[int]], size: int) -> EventBatch:
    def opened(file: int):
        times_s = many[file]
        return (chunk(file, at, times_s[at : at + size]) for at in range(0, len(times_s), size))

    begins = [(times_s[0], file) for file, times_s in enumerate(many)]
    return EventBatch.concat([one.batch for one in in_order_of_time(begins, opened)])


@given(files, st.integers(1, 5))
def test_files_in_order_become_one_stream_in_order_with_every_event_once(many, size):
    batch = merged([sorted(times_s) for times_s in many], size)
    assert (np.diff(batch.times_s_B) >= 0).all()
    events = [f"{file}/{at}" for file, times_s in enumerate(many) for at in range(len(times_s))]
    assert sorted(batch.categorical[0].to_pylist()) == sorted(events)


@given(files, st.integers(1, 5))
def test_events_of_one_file_stay_in_its_order_whatever_their_times(many, size):
    names = merged(many, size).categorical[0].to_pylist()
    for file, times_s in enumerate(many):
        of_file = [name for name in names if name.startswith(f"{file}/")]
        assert of_file == [f"{file}/{at}" for at in range(len(times_s))]


def test_a_file_is_opened_when_the_stream_has_come_to_its_beginning():
    opened = []

    def open_file(file: int):
        opened.append(file)
        yield chunk(file, 0, [10 * file, 10 * file + 5])
        yield chunk(file, 2, [10 * file + 6])

    stream = in_order_of_time([(20, 2), (0, 0), (10, 1)], open_file)
    next(stream)
    assert opened == [0]
    assert sum(len(one.batch) for one in stream) == 7
    assert opened == [0, 1, 2]


def test_what_was_left_out_of_any_file_is_passed_on():
    reject, odd = Reject(3, "label", "label", "must be there"), Odd("price", 1, "'x'")

    def open_file(file: int):
        yield Chunk(chunk(file, 0, []).batch, [reject], [odd])
        yield chunk(file, 0, [file])

    chunks = list(in_order_of_time([(0, 0), (1, 1)], open_file))
    assert [one.rejects for one in chunks if one.rejects] == [[reject], [reject]]
    assert sum(len(one.odd) for one in chunks) == 2
    assert sum(len(one.batch) for one in chunks) == 2
