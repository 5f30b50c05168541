"""A `Reader` in a process of its own, so that polling and decoding, which are Python, cost the
learner nothing.

In: the settings and offsets to begin at, as JSON on the process's standard input. Out: frames on
its standard output, in order: readings, where the topic ends, lines of its log, and what it failed
of. A frame is two lengths, a MessagePack head, and for a reading its columns as raw buffers and
Arrow IPC.

It reads ahead until `_AHEAD` readings wait, then pauses the partitions and goes on polling, so that
connections live. It holds nothing that a crash could lose: positions are counted where events are
learned. It ends when it is told to, and when nobody reads it any more; a learner whose reader ends
gets a `NiwakiError`.
"""

import gc
import logging
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from signal import Signals
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.errors import NiwakiError
from niwaki.stream.errors import BrokerError, PositionError
from niwaki.stream.events import EventDecoder, Reject
from niwaki.stream.kafka.reader import PolledBatch, Reader
from niwaki.stream.kafka.source import EventSource, KafkaConfig, Record

_AHEAD = 2  # readings that wait for the learner; one more is being written, and one being made
_POLL_S = 0.1
_PATIENCE_S = 0.5  # for the learner to take a reading, before the partitions are paused
_BEAT_S = (
    1.0  # between two words about a quiet topic; also how soon the end of the learner is noticed
)
_STOP_S = 5.0
_UNCOLLECTED_OBJECTS = 2**18
"""More than a poll makes. Nothing of it is in a cycle, and to look for those takes time."""
_LENGTHS = struct.Struct("<IQ")
_PROGRAM = "from niwaki.stream.kafka.reader_process import main; main()"
_ERRORS = {kind.__name__: kind for kind in (BrokerError, PositionError)}


class _Order(msgspec.Struct, kw_only=True):
    """What a process is told."""

    kafka: KafkaConfig
    schema: Schema
    offsets: dict[int, int]
    log_level: int


class _Columns(msgspec.Struct, tag=True, array_like=True):
    """The head of a reading; see there. The body: strings, places, times, labels, numerics."""

    events: int
    strings_bytes: int
    rejects: list[tuple[Record, Reject]]
    polled: dict[int, int]
    messages: int
    size_bytes: int
    ends: dict[int, int]


class _Ends(msgspec.Struct, tag=True, array_like=True):
    ends: dict[int, int]


class _Line(msgspec.Struct, tag=True, array_like=True):
    logger: str
    level: int
    text: str


class _Failure(msgspec.Struct, tag=True, array_like=True):
    kind: str
    text: str


_Head = _Columns | _Ends | _Line | _Failure
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_Head).decode


class ReaderProcess:
    """The learner's end: what the process has read, without waiting for it to be read. `start`
    makes the process."""

    def __init__(self, config: KafkaConfig, schema: Schema):
        self.topic, self._config, self._schema = config.topic, config, schema
        self._strings = _strings_schema(schema)
        self._process: subprocess.Popen | None = None
        self._ready = selectors.DefaultSelector()
        self.ends: Mapping[int, int] = {}

    def start(self, offsets: Mapping[int, int]) -> None:
        """See `EventReader`. Returns before the process has reached Kafka."""
        level = logging.getLogger("niwaki.kafka").getEffectiveLevel()
        order = _Order(
            kafka=self._config, schema=self._schema, offsets=dict(offsets), log_level=level
        )
        # In a session of its own: Ctrl-C is for the learner, which ends it when all is saved.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._process.stdin.write(msgspec.json.encode(order))
        self._process.stdin.close()
        self._ready.register(self._process.stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def read(self, timeout_s: float) -> PolledBatch | None:
        """See `EventReader`. Raises what the process failed of, or `NiwakiError` if it has ended."""
        while self._ready.select(timeout_s):
            head_bytes, body_bytes = _LENGTHS.unpack(self._receive(_LENGTHS.size))
            head = _unpack(self._receive(head_bytes))
            match head:
                case _Columns():
                    self.ends = head.ends
                    return _reading(
                        head, self._receive(body_bytes), self._strings, len(self._schema.numeric)
                    )
                case _Ends():
                    self.ends = head.ends
                case _Line():
                    logging.getLogger(head.logger).log(head.level, "%s", head.text)
                case _Failure():
                    raise _ERRORS.get(head.kind, NiwakiError)(head.text)
            timeout_s = 0.0
        return None

    def close(self) -> None:
        """End the process. It has nothing to save."""
        self._ready.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process = None

    def _receive(self, size_bytes: int) -> bytearray:
        """So many bytes; waits for them."""
        data = bytearray(size_bytes)
        left = memoryview(data)
        while left:
            taken = self._process.stdout.readinto(left)
            if not taken:
                code = self._process.wait()
                how = (
                    f"was ended by {Signals(-code).name}"
                    if code < 0
                    else f"ended with exit code {code}"
                )
                raise NiwakiError(
                    f"the process that reads {self.topic} {how}; nothing is lost: start again"
                )
            left = left[taken:]
        return data


def main() -> None:
    """The process: read and send until it is ended."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    gc.freeze()
    gc.set_threshold(_UNCOLLECTED_OBJECTS)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(
            sys.stderr.fileno(), sys.stdout.fileno()
        )  # what anything prints must not get between frames
        sender = _Sender(out)
        logging.basicConfig(
            level=order.log_level, handlers=[_LogHandler(sender)], format="%(message)s"
        )
        try:
            with EventSource(order.kafka) as source:
                decoder = EventDecoder(order.schema, max_event_bytes=order.kafka.max_event_bytes)
                reader = Reader(source, decoder)
                reader.start(order.offsets)
                _read_and_send(source, reader, sender)
        except NiwakiError as error:
            sender.send(_Failure(type(error).__name__, str(error)))
        except Exception as error:
            logging.getLogger("niwaki").exception(
                "the process that reads %s failed", order.kafka.topic
            )
            sender.send(
                _Failure("", f"the process that reads {order.kafka.topic} failed: {error!r}")
            )
        sender.close()


def _read_and_send(source: EventSource, reader: Reader, sender: "_Sender") -> None:
    told_s = 0.0
    while True:
        reading = reader.read(_POLL_S)
        if reading:
            head, body = _columns(reading, source.ends)
            if not sender.send_if_room(_PATIENCE_S, head, *body):
                source.pause()
                while not sender.send_if_room(_POLL_S, head, *body):
                    source.poll(0)
                source.resume()
        elif time.monotonic() - told_s < _BEAT_S:
            continue
        else:
            sender.send(_Ends(source.ends))
        told_s = time.monotonic()


class _Sender:
    """Writes frames from a thread of its own. When nobody reads them any more, the process ends."""

    def __init__(self, out: BinaryIO):
        self._out = out
        self._frames: SimpleQueue[tuple[list[bytes], bool] | None] = SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="niwaki-send", daemon=True)
        self._thread.start()

    def send(self, head: _Head) -> None:
        """Have it written after what waits."""
        self._frames.put((_frame(head), False))

    def send_if_room(self, timeout_s: float, head: _Head, *body: bytes) -> bool:
        """The same once fewer than `_AHEAD` such frames wait; False if they did all the while."""
        if not self._room.acquire(timeout=timeout_s):
            return False
        self._frames.put((_frame(head, *body), True))
        return True

    def close(self) -> None:
        """Write what waits."""
        self._frames.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            for parts, counts in iter(self._frames.get, None):
                for part in parts:
                    self._out.write(part)
                self._out.flush()
                if counts:
                    self._room.release()
        except OSError:
            os._exit(0)


class _LogHandler(logging.Handler):
    """Sends each line to the learner's log."""

    def __init__(self, sender: _Sender):
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        self._sender.send(_Line(record.name, record.levelno, _valid(self.format(record))))


def _frame(head: _Head, *body: bytes) -> list[bytes]:
    packed = _pack(head)
    return [_LENGTHS.pack(len(packed), sum(map(len, body))), packed, *body]


def _strings_schema(schema: Schema) -> pa.Schema:
    return pa.schema([(f"c{at}", pa.string()) for at in range(len(schema.categorical))])


def _columns(reading: PolledBatch, ends: Mapping[int, int]) -> tuple[_Columns, list[bytes]]:
    batch = reading.batch
    columns = pa.RecordBatch.from_arrays(
        list(batch.categorical), [f"c{at}" for at in range(len(batch.categorical))]
    )
    strings = columns.serialize().to_pybytes() if batch.categorical else b""
    arrays = (reading.after_B4, batch.times_s_B, batch.labels_B, batch.numerics_BN)
    rejects = [
        (record, reject._replace(reason=_valid(reject.reason)))
        for record, reject in reading.rejects
    ]
    head = _Columns(
        len(batch),
        len(strings),
        rejects,
        reading.polled,
        reading.messages,
        reading.size_bytes,
        dict(ends),
    )
    return head, [strings, *(array.tobytes() for array in arrays)]


def _valid(text: str) -> str:
    """`text` without halves of surrogate pairs, which a broken event may hold and no encoding
    does."""
    return text.encode(errors="replace").decode()


def _reading(head: _Columns, body: bytearray, strings: pa.Schema, numerics: int) -> PolledBatch:
    count, at = head.events, head.strings_bytes

    def array(kind: type, *shape: int) -> np.ndarray:
        nonlocal at
        values = np.frombuffer(body, kind, int(np.prod(shape)), at).reshape(shape)
        at += values.nbytes
        return values

    columns = (
        pa.ipc.read_record_batch(pa.py_buffer(body).slice(0, at), strings).columns
        if len(strings)
        else []
    )
    after_B4, times_s_B = array(np.int64, count, 4), array(np.float64, count)
    labels_B, numerics_BN = array(np.float32, count), array(np.float32, count, numerics)
    batch = EventBatch(labels_B, times_s_B, tuple(columns), numerics_BN)
    return PolledBatch(batch, after_B4, head.rejects, head.polled, head.messages, head.size_bytes)
