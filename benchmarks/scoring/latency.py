"""From an event's arrival in Kafka to a scorer that serves what it taught, with the whole path
running.

`niwaki replay` writes 10,000 events a second, one a message; `niwaki train` learns and publishes at
its default settings; a scorer in this process follows. Each of them is a process of its own. An
event has arrived at the time that its message carries; it is servable when the scorer has taken
over the first version whose offsets are beyond it. Waits are shown of all events, by the phase of
that version, and of the events whose first version was a full checkpoint, which is larger.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

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


class _Taken(NamedTuple):
    """A version that the scorer took over."""

    time_s: float
    """Since the epoch."""
    offset: int
    """Of the first event that it has not learned."""
    phase: str
    base: int
    """The version of the full checkpoint that it goes back to."""
    full: bool
    """True for the first version that goes back to that one."""


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
            version._replace(offset=version.offset - _FIRST_EVENTS)
            for version in taken
            if version.offset > _FIRST_EVENTS
        ]
    first_versions = _servable(len(arrived_s), taken)
    events = np.flatnonzero(arrived_s[: len(first_versions)] >= arrived_s[0] + _START_S)
    first_versions = [first_versions[event] for event in events]
    waited_s = np.array([version.time_s for version in first_versions]) - arrived_s[events]
    rate = (len(arrived_s) - 1) / (arrived_s[-1] - arrived_s[0])
    phases = np.array([version.phase for version in first_versions])
    full = np.array([version.full for version in first_versions])
    parts = {"all": np.full(len(events), True)}
    parts |= {phase: phases == phase for phase in dict.fromkeys(phases.tolist())}
    parts |= {"full checkpoints": full}
    about = {"stream": path.name.split(".")[0], "events_per_s": rate}
    rows = [
        about
        | {"versions of": name, "events": int(chosen.sum())}
        | {"versions": len({first_versions[place] for place in np.flatnonzero(chosen)})}
        | _quantiles(waited_s[chosen])
        for name, chosen in parts.items()
        if chosen.any()
    ]
    text = (
        f"from an event's arrival at {rate:,.0f} events/s to a scorer that serves it, p95, seconds"
    )
    return Findings(
        rows,
        [at_most(text, rows[0]["p95_s"], 0.5)],
        {"kafka": kafka, "redis": redis, "not_counted_s": _START_S},
    )


def _quantiles(waited_s: np.ndarray) -> dict[str, float]:
    shares = {"p50_s": 0.5, "p95_s": 0.95, "p99_s": 0.99}
    return {name: float(np.quantile(waited_s, share)) for name, share in shares.items()}


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


def _follow(scorer: Scorer, replaying: subprocess.Popen, events: int) -> list[_Taken]:
    """The versions that the scorer took over, as long as events come."""
    taken: list[_Taken] = []
    quiet_after_s = time.monotonic() + 600
    while not (taken and taken[-1].offset >= events):
        if scorer.wait(scorer.version + 1, timeout_s=1.0):
            header = scorer.model.header
            base = header.base or header.version
            full = not taken or base != taken[-1].base
            offset = header.offsets.get("0", 0)
            taken.append(_Taken(time.time(), offset, header.phase, base, full))
        if (
            replaying.poll() is not None
        ):  # what is left of the last thousand events is not published before the end
            quiet_after_s = min(quiet_after_s, time.monotonic() + 20)
        if time.monotonic() > quiet_after_s or (taken and events - taken[-1].offset < 1_000):
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


def _servable(events: int, taken: list[_Taken]) -> list[_Taken]:
    """The first version that has each of the first events; the last events of all are in none."""
    offsets = np.array([version.offset for version in taken])
    there = np.arange(min(events, int(offsets.max(initial=0))))
    return [taken[place] for place in np.searchsorted(offsets, there, side="right")]
