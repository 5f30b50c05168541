"""The whole path on one machine, on embedded parts: replay, learn, detect, regrow, prune, publish,
serve, score.

In: a recorded stream. Out: the data of a report, and what was measured. Everything between is what
production runs: the `Pipeline`, a `Scorer` that follows Redis, `niwaki replay` as a process of its
own. Only the servers are stand-ins, and batches are never cut by age, so that the same seed and
events give the same report, byte for byte.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.errors import NiwakiError
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import StoreConfig
from niwaki.stream.app import open_pipeline
from niwaki.stream.config import Config
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.offline.history import History
from niwaki.stream.offline.local import embedded_kafka, embedded_redis
from niwaki.stream.offline.report import Measured, report_data
from niwaki.stream.recordings.datasets import dataset_path
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.generator import read_drift_points, write_stream
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.snapshot import SnapshotConfig

_NEVER_S = 1e9
_WINDOW_EVENTS = 5_000  # short enough to see a drift and the recovery from it
_SCORED_EVENTS = 1_000
_SWAP_S = 30.0


class DemoStream(NamedTuple):
    """The stream that a demo replays."""

    path: Path
    title: str
    events: int
    drifts: list[dict[str, Any]]
    """True drift points, where they are known."""


def demo_recording(
    recording: Path | None,
    dataset: str | None,
    out: Path,
    events: int | None,
    seed: int | None,
    on_events: Callable[[int], None] = lambda events: None,
) -> DemoStream:
    """The recording, or the public data set, or else a drifting click stream made in `out`;
    `events` at most."""
    if recording is not None:
        return _recorded(recording, recording.name, events)
    if dataset is not None:
        return _recorded(dataset_path(dataset, out), dataset, events)
    given: dict[str, Any] = {"events": events, "seed": seed}
    config = SyntheticConfig(**{name: value for name, value in given.items() if value is not None})
    path = out / "events.parquet"
    write_stream(config, path, on_events=on_events)
    return DemoStream(path, "a drifting click stream", config.events, read_drift_points(path))


def _recorded(path: Path, title: str, events: int | None) -> DemoStream:
    rows = read_recording(path, propose_schema(path), limit_events=events)
    total = sum(len(batch) + len(rejects) for batch, rejects in rows)
    return DemoStream(path, title, total, read_drift_points(path))


def demonstrate(
    stream: DemoStream,
    config: Config,
    *,
    out: Path,
    on_events: Callable[[int], Any] = lambda events: None,
) -> tuple[dict[str, Any], Measured]:
    """Run the path over `stream`, snapshots in `out`; returns the report's data and the
    measurements.

    `on_events` is called after each batch with its number of events.
    """
    schema = config.events_schema()
    snapshot = SnapshotConfig(directory=str(out / "snapshot"))
    shutil.rmtree(snapshot.directory, ignore_errors=True)  # of a demo before this one
    with ExitStack() as stack:
        kafka = KafkaConfig(bootstrap_servers=stack.enter_context(embedded_kafka()), group_id="")
        config = msgspec.structs.replace(
            config,
            kafka=kafka,
            redis=StoreConfig(url=stack.enter_context(embedded_redis())),
            training=msgspec.structs.replace(
                config.training, max_batch_age_s=_NEVER_S, window_events=_WINDOW_EVENTS
            ),
            telemetry=msgspec.structs.replace(config.telemetry, port=0),
            snapshot=snapshot,
        )
        ensure_topic(kafka, kafka.topic)

        pipeline = stack.enter_context(
            open_pipeline(config, [StepCallback(lambda step: on_events(step.events))])
        )
        history = History(pipeline.trainer, pipeline.replica)
        pipeline.observers.append(history)
        scorer = stack.enter_context(Scorer.from_redis(config.redis.url, config.redis.name))
        replay = stack.enter_context(_replaying(stream, schema, kafka, out))
        pipeline.resume()
        started_s = time.perf_counter()
        pipeline.run(lambda: replay.poll() not in (None, 0), limit_events=stream.events)
        elapsed_s = time.perf_counter() - started_s
        if replay.wait():
            raise NiwakiError(f"niwaki replay ended with exit code {replay.returncode}")
        if not scorer.wait(pipeline.version, _SWAP_S):
            raise NiwakiError(
                f"the scorer did not take over version {pipeline.version} within {_SWAP_S:.0f} s"
            )
        title = f"niwaki on {stream.title}"
        data = report_data(title, pipeline.trainer, pipeline.replica, history, stream.drifts)
        last = _last_events(stream, schema)
        scored = (
            f"{scorer.swaps:,} checkpoints taken over; its score of the last {len(last):,} events "
            f"differs from the trainer's by at most {_difference(scorer, pipeline, last):.0e}"
        )
        full = max(
            (p for p in pipeline.store.versions() if p.kind == "full"), key=lambda p: p.version
        )
        return data, Measured(elapsed_s, full.bytes, (("scorer", scored),))


@contextmanager
def _replaying(
    stream: DemoStream, schema: Schema, kafka: KafkaConfig, out: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`niwaki replay`, with the schema in a config file of its own; ended with the block."""
    config = out / "replay.toml"
    lines = [
        f"{name} = {msgspec.json.encode(value).decode()}"
        for name, value in msgspec.to_builtins(schema).items()
        if value
    ]
    config.write_text("\n".join(["[schema]", *lines, ""]), "utf-8")
    command = [sys.executable, "-m", "niwaki", "replay", str(stream.path), "--config", str(config)]
    command += [
        "--bootstrap",
        kafka.bootstrap_servers,
        "--topic",
        kafka.topic,
        "--events",
        str(stream.events),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _last_events(stream: DemoStream, schema: Schema) -> EventBatch:
    chunks = (batch for batch, _ in read_recording(stream.path, schema, limit_events=stream.events))
    last = next(chunks)
    for batch in chunks:
        last = EventBatch.concat([last, batch])
        last = last.slice(max(len(last) - _SCORED_EVENTS, 0), len(last))
    return last.slice(max(len(last) - _SCORED_EVENTS, 0), len(last))


def _difference(scorer: Scorer, pipeline: Pipeline, events: EventBatch) -> float:
    """Greatest difference between the scorer's probabilities and those of the trainer's leading
    branch."""
    learner = pipeline.trainer.learner
    logits = learner.predict(learner.encoder.encode(events), pipeline.replica.mixture.weights)
    return float(
        np.abs(scorer.score_batch(events) - torch.from_numpy(logits).sigmoid().numpy()).max()
    )
