"""A `Reader` in a process of its own, so that polling and decoding, which are Python, cost the
learner nothing.

In: settings and first offsets, as JSON on the process's standard input. Out: frames on its standard
output, in order: polled batches, ends of partitions, lines of the log, and a failure. A frame is
two lengths, a MessagePack head, and for a polled batch its columns as raw buffers and Arrow IPC.

The process reads ahead until `_AHEAD` batches wait; then it pauses the partitions and goes on
polling, which keeps connections alive. It holds nothing that a crash could lose: positions are
counted where events are learned. It ends on SIGTERM, and when its output is closed; a learner whose
reader ends gets a `NiwakiError`.
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
from io import FileIO
from queue import SimpleQueue
from signal import Signals
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import LIST, EventBatch, Schema
from niwaki.model.features.values import Odd
from niwaki.pruning.errors import NiwakiError
from niwaki.stream.errors import BrokerError, PositionError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.reader import PolledBatch, Reader
from niwaki.stream.kafka.registry import new_decoder
from niwaki.stream.kafka.source import EventSource, KafkaConfig, Record

_AHEAD = 2  # batches that wait for the learner; one more is being written, and one being made
_POLL_S = 0.1
_ROOM_WAIT_S = 0.5  # until the learner takes a batch; then the partitions are paused
_HEARTBEAT_S = 1.0  # between frames of an idle topic; a closed output is noticed as soon
_STOP_WAIT_S = 5.0
_UNCOLLECTED_OBJECTS = 2**18
"""Threshold of the garbage collector: more objects than a poll makes. None of them is in a cycle,
and a search for cycles takes time."""
_DEFAULTS = EventsConfig()
_LENGTHS = struct.Struct("<IQ")
_PROGRAM = "from niwaki.stream.kafka.reader_process import main; main()"
_ERRORS = {kind.__name__: kind for kind in (BrokerError, PositionError)}


class _Order(msgspec.Struct, kw_only=True):
    """Settings of a reader process."""

    kafka: KafkaConfig
    schema: Schema
    events: EventsConfig
    offsets: dict[int, int]
    log_level: int


class _Columns(msgspec.Struct, tag=True, array_like=True):
    """Head of a polled batch; fields as in `PolledBatch`. The body holds strings and lists,
    positions, times, labels, numerics, and weights and sampling ratios where the schema has
    them."""

    events: int
    columns_bytes: int
    rejects: list[tuple[Record, Reject]]
    odd: list[Odd]
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


class _Child:
    """A running reader process, and the pipe from which its frames are read."""

    def __init__(self, order: _Order):
        self._topic = order.kafka.topic
        order_in, order_out = os.pipe()
        frames_in, frames_out = os.pipe()
        # In a session of its own: Ctrl-C is for the learner, which ends it when all is saved.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=order_in,
            stdout=frames_out,
            bufsize=0,
            start_new_session=True,
        )
        os.close(order_in)
        os.close(frames_out)
        self.frames = FileIO(frames_in)
        with FileIO(order_out, "w") as out:
            out.write(msgspec.json.encode(order))

    def receive(self, size_bytes: int) -> bytearray:
        """The next `size_bytes` bytes, once they are there. Raises `NiwakiError` if the process
        ends before."""
        data = bytearray(size_bytes)
        left = memoryview(data)
        while left:
            taken = self.frames.readinto(left)
            if not taken:
                code = self.process.wait()
                how = (
                    f"was ended by {Signals(-code).name}"
                    if code < 0
                    else f"ended with exit code {code}"
                )
                raise NiwakiError(
                    f"the process that reads {self._topic} {how}; nothing is lost: start again"
                )
            left = left[taken:]
        return data

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.frames.close()


class ReaderProcess:
    """An `EventReader` whose work is done by a process beside the learner. `start` makes the
    process."""

    def __init__(self, config: KafkaConfig, schema: Schema, events: EventsConfig = _DEFAULTS):
        self.topic = config.topic
        self._config = config
        self._events = events
        self._schema = schema
        self._child: _Child | None = None
        self._ready = selectors.DefaultSelector()
        self.ends: Mapping[int, int] = {}

    def start(self, offsets: Mapping[int, int]) -> None:
        """Start the process; see `EventReader`. Returns before it has reached Kafka."""
        level = logging.getLogger("niwaki.kafka").getEffectiveLevel()
        order = _Order(
            kafka=self._config,
            schema=self._schema,
            events=self._events,
            offsets=dict(offsets),
            log_level=level,
        )
        self._child = _Child(order)
        self._ready.register(self._child.frames, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._started().process.pid

    def read(self, timeout_s: float) -> PolledBatch | None:
        """The next polled batch; see `EventReader`. Raises the process's own error, or
        `NiwakiError` if it has ended."""
        receive = self._started().receive
        while self._ready.select(timeout_s):
            head_bytes, body_bytes = _LENGTHS.unpack(receive(_LENGTHS.size))
            head = _unpack(receive(head_bytes))
            match head:
                case _Columns():
                    self.ends = head.ends
                    return _unpack_batch(head, receive(body_bytes), self._schema)
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
        if self._child is not None:
            self._child.stop()
            self._child = None

    def _started(self) -> _Child:
        if self._child is None:
            raise NiwakiError(f"the reader of {self.topic} is not started")
        return self._child


def main() -> None:
    """Program of the process: read and send until it is ended."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=_Order)
    gc.freeze()
    gc.set_threshold(_UNCOLLECTED_OBJECTS)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        # Printed text must not get between frames.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        sender = _Sender(out)
        logging.basicConfig(
            level=order.log_level, handlers=[_LogHandler(sender)], format="%(message)s"
        )
        try:
            with EventSource(order.kafka) as source:
                reader = Reader(source, new_decoder(order.kafka, order.schema, order.events))
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
    sent_s = 0.0
    while True:
        polled = reader.read(_POLL_S)
        if polled:
            head, body = _pack_batch(polled, source.ends)
            if not sender.send_if_room(_ROOM_WAIT_S, head, *body):
                source.pause()
                while not sender.send_if_room(_POLL_S, head, *body):
                    source.poll(0)
                source.resume()
        elif time.monotonic() - sent_s < _HEARTBEAT_S:
            continue
        else:
            sender.send(_Ends(source.ends))
        sent_s = time.monotonic()


class _Sender:
    """Writes frames from a thread of its own. The process ends when its output is closed."""

    def __init__(self, out: BinaryIO):
        self._out = out
        self._frames: SimpleQueue[tuple[list[bytes], bool] | None] = SimpleQueue()
        self._room = threading.Semaphore(_AHEAD)
        self._thread = threading.Thread(target=self._run, name="niwaki-send", daemon=True)
        self._thread.start()

    def send(self, head: _Head) -> None:
        """Queue a frame without a body, behind those that wait."""
        self._frames.put((_frame(head), False))

    def send_if_room(self, timeout_s: float, head: _Head, *body: bytes) -> bool:
        """Queue a frame with a body, once fewer than `_AHEAD` such frames wait; False if there is
        no room within `timeout_s`."""
        if not self._room.acquire(timeout=timeout_s):
            return False
        self._frames.put((_frame(head, *body), True))
        return True

    def close(self) -> None:
        """Write the frames that wait."""
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
    """Log handler that sends each line to the learner's log."""

    def __init__(self, sender: _Sender):
        super().__init__()
        self._sender = sender

    def emit(self, record: logging.LogRecord) -> None:
        self._sender.send(_Line(record.name, record.levelno, _valid(self.format(record))))


def _frame(head: _Head, *body: bytes) -> list[bytes]:
    packed = _pack(head)
    return [_LENGTHS.pack(len(packed), sum(map(len, body))), packed, *body]


def _columns_schema(schema: Schema) -> pa.Schema:
    """The columns of a batch that travel as Arrow's."""
    kinds = [pa.string()] * len(schema.categorical) + [LIST] * len(schema.lists)
    return pa.schema([(f"c{at}", kind) for at, kind in enumerate(kinds)])


def _pack_batch(polled: PolledBatch, ends: Mapping[int, int]) -> tuple[_Columns, list[bytes]]:
    """Head and body of a polled batch's frame."""
    batch = polled.batch
    both = [*batch.categorical, *batch.lists]
    table = pa.RecordBatch.from_arrays(both, [f"c{at}" for at in range(len(both))])
    columns = table.serialize().to_pybytes() if both else b""
    arrays = [polled.after_B4, batch.times_s_B, batch.labels_B, batch.numerics_BN]
    arrays += [array for array in (batch.weights_B, batch.sampling_B) if array is not None]
    rejects = [(record, _valid_reject(reject)) for record, reject in polled.rejects]
    head = _Columns(
        len(batch),
        len(columns),
        rejects,
        polled.odd,
        polled.polled,
        polled.messages,
        polled.size_bytes,
        dict(ends),
    )
    return head, [columns, *(array.tobytes() for array in arrays)]


def _valid(text: str) -> str:
    """`text` without halves of surrogate pairs, which a broken event may hold and which no encoding
    allows."""
    return text.encode(errors="replace").decode()


def _valid_reject(reject: Reject) -> Reject:
    return reject._replace(
        field=_valid(reject.field), rule=_valid(reject.rule), value=_valid(reject.value)
    )


def _unpack_batch(head: _Columns, body: bytearray, schema: Schema) -> PolledBatch:
    """The batch of a frame. Its arrays are views of `body`."""
    count, at = head.events, head.columns_bytes

    def array(kind: type[np.generic], *shape: int) -> np.ndarray:
        nonlocal at
        values: np.ndarray = np.frombuffer(body, kind, int(np.prod(shape)), at).reshape(shape)
        at += values.nbytes
        return values

    both = _columns_schema(schema)
    columns = (
        pa.ipc.read_record_batch(pa.py_buffer(body).slice(0, at), both).columns if len(both) else []
    )
    strings = len(schema.categorical)
    after_B4, times_s_B = array(np.int64, count, 4), array(np.float64, count)
    batch = EventBatch(
        labels_B=array(np.float32, count),
        times_s_B=times_s_B,
        categorical=tuple(columns[:strings]),
        numerics_BN=array(np.float32, count, len(schema.numeric)),
        lists=tuple(columns[strings:]),
        weights_B=array(np.float32, count) if schema.weight else None,
        sampling_B=array(np.float32, count) if schema.sampling_ratio else None,
    )
    return PolledBatch(
        batch,
        after_B4,
        head.rejects,
        head.odd,
        head.polled,
        head.messages,
        head.size_bytes,
    )
