"""From an event's arrival in Kafka to a scorer that serves what it taught, with the whole path
running.

`niwaki replay` writes 10,000 events a second, one a message; `niwaki train` learns and publishes at
its default settings; a scorer in this process follows. Each of them is a process of its own. An
event has arrived at the time that its message carries; it is servable when the scorer has taken
over the first version whose offsets are beyond it.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition

from benchmarks.frame import ROOT, Findings, at_most
from benchmarks.servers import some_kafka, some_redis
from niwaki.model.features.schema import Schema
from niwaki.serving.scorer import Scorer
from niwaki.stream.kafka.connection import KafkaConfig, connect, ensure_topic
from niwaki.stream.recordings.recording import propose_schema
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import write_stream
from niwaki.stream.synthetic.world import SyntheticConfig

RATE = 10_000
_FIRST_EVENTS = 2_000
"""To wait for, before the clock starts: the trainer is there then."""
_START_S = 2.0
"""Not counted."""


def latency(quick: bool, recording: Path | None) -> Findings:
    """Waits from an event's arrival to a scorer that serves it."""
    seconds = 16 if quick else 60
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="niwaki-")))
        path, schema = recording, propose_schema(recording) if recording else SCHEMA
        if path is None:
            path = folder / "events.parquet"
            write_stream(SyntheticConfig(events=50_000, drifts=()), path)
        kafka, servers = stack.enter_context(some_kafka())
        redis, url = stack.enter_context(some_redis())
        config = KafkaConfig(bootstrap_servers=servers, topic="events", group_id="")
        ensure_topic(config, config.topic)
        settings = _settings(schema) | {
            "NIWAKI_KAFKA__BOOTSTRAP_SERVERS": servers,
            "NIWAKI_KAFKA__TOPIC": config.topic,
            "NIWAKI_REDIS__URL": url,
            "NIWAKI_TELEMETRY__PORT": "0",
            "NIWAKI_SNAPSHOT__DIRECTORY": str(folder / "snapshot"),
        }
        scorer = stack.enter_context(Scorer.from_redis(url))
        stack.enter_context(_niwaki(["train"], settings, folder))
        with _niwaki(
            ["replay", str(path), "--events", str(_FIRST_EVENTS)], settings, folder
        ) as replaying:
            replaying.wait()
            assert scorer.wait(1, timeout_s=120), "the trainer published nothing"
        replay = [
            "replay",
            str(path),
            "--rate",
            str(RATE),
            "--events",
            str(RATE * seconds),
            "--loop",
        ]
        with _niwaki(replay, settings, folder) as replaying:
            taken = _follow(scorer, replaying, _FIRST_EVENTS + RATE * seconds)
        arrived_s = _arrivals(config)[_FIRST_EVENTS:]
        taken = [
            (time_s, offset - _FIRST_EVENTS) for time_s, offset in taken if offset > _FIRST_EVENTS
        ]
    events, servable_s = _servable(arrived_s, taken)
    counted = arrived_s[events] >= arrived_s[0] + _START_S
    waited_s = (servable_s - arrived_s[events])[counted]
    rate = (len(arrived_s) - 1) / (arrived_s[-1] - arrived_s[0])
    p50 = float(np.quantile(waited_s, 0.5))
    p95 = float(np.quantile(waited_s, 0.95))
    p99 = float(np.quantile(waited_s, 0.99))
    row = {
        "stream": path.name.split(".")[0],
        "events_per_s": rate,
        "events": int(counted.sum()),
        "versions": len(taken),
        "p50_s": p50,
        "p95_s": p95,
        "p99_s": p99,
    }
    text = (
        f"from an event's arrival at {rate:,.0f} events/s to a scorer that serves it, p95, seconds"
    )
    return Findings(
        [row],
        [at_most(text, p95, 1.0)],
        {"kafka": kafka, "redis": redis, "not_counted_s": _START_S},
    )


def _settings(schema: Schema) -> dict[str, str]:
    values = msgspec.to_builtins(schema).items()
    return {
        f"NIWAKI_SCHEMA__{name.upper()}": msgspec.json.encode(value).decode()
        for name, value in values
        if value
    }


@contextmanager
def _niwaki(
    arguments: list[str], settings: Mapping[str, str], folder: Path
) -> Iterator[subprocess.Popen]:
    """The program in a process of its own, ended with the block."""
    log = folder / f"{arguments[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "niwaki", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | settings,
            cwd=folder,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
        if process.poll():
            raise RuntimeError(
                f"niwaki {arguments[0]} ended: {log.read_text(errors='replace')[-1_000:]}"
            )
    finally:
        process.terminate()
        process.wait()


def _follow(scorer: Scorer, replaying: subprocess.Popen, events: int) -> list[tuple[float, int]]:
    """Time of taking over each version that was seen, seconds since the epoch, and the offset that
    it reaches."""
    taken: list[tuple[float, int]] = []
    quiet_after_s = time.monotonic() + 600
    while not (taken and taken[-1][1] >= events):
        if scorer.wait(scorer.version + 1, timeout_s=1.0):
            taken.append((time.time(), scorer.model.header.offsets.get("0", 0)))
        if (
            replaying.poll() is not None
        ):  # what is left of the last thousand events is not published before the end
            quiet_after_s = min(quiet_after_s, time.monotonic() + 20)
        if time.monotonic() > quiet_after_s or (taken and events - taken[-1][1] < 1_000):
            break
    return taken


def _arrivals(config: KafkaConfig) -> np.ndarray:
    """Seconds since the epoch at which each message was written, by offset."""
    times_ms: list[int] = []
    with closing(connect(KafkaConsumer, config, enable_auto_commit=False)) as consumer:
        at = TopicPartition(config.topic, 0)
        consumer.assign([at])
        end = consumer.end_offsets([at])[at]
        consumer.seek(at, 0)
        while len(times_ms) < end:
            for records in consumer.poll(1_000, max_records=10_000).values():
                times_ms += [record.timestamp for record in records]
    return np.array(times_ms) / 1e3


def _servable(
    arrived_s: np.ndarray, taken: list[tuple[float, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Events that some version has, and when the first such version was taken over."""
    times_s, offsets = (
        np.array([time_s for time_s, _ in taken]),
        np.array([offset for _, offset in taken]),
    )
    events = np.arange(min(len(arrived_s), int(offsets.max(initial=0))))
    return events, times_s[np.searchsorted(offsets, events, side="right")]
