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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from niwaki.stream.events.rejects import Tally
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.offline.backtest import survey
from niwaki.stream.offline.history import History
from niwaki.stream.offline.local import embedded_kafka, embedded_redis
from niwaki.stream.offline.report import Measured, report_data
from niwaki.stream.recordings.datasets import dataset_path
from niwaki.stream.recordings.recording import Recording
from niwaki.stream.recordings.schema_toml import sections_toml
from niwaki.stream.synthetic.generator import read_drift_points, write_stream
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.snapshots.files import SnapshotConfig

_NEVER_S = 1e9
_WINDOW_EVENTS = 5_000  # short enough to see a drift and the recovery from it
_SCORED_EVENTS = 1_000
_SWAP_S = 30.0


class DemoFiles(NamedTuple):
    """The files that a demo replays."""

    files: list[Path]
    title: str
    drifts: list[dict[str, Any]]
    """True drift points, where they are known."""


class DemoStream(NamedTuple):
    """The stream that a demo replays."""

    recording: Recording
    title: str
    events: int
    """Events that can be learned from."""
    limit_events: int | None
    drifts: list[dict[str, Any]]
    """True drift points, where they are known."""


def demo_files(
    recording: Sequence[Path] | None,
    dataset: str | None,
    out: Path,
    events: int | None,
    seed: int | None,
    on_events: Callable[[int], None] = lambda events: None,
) -> DemoFiles:
    """The recording, or the public data set, or else a drifting click stream of `events` made in
    `out`."""
    if recording:
        title = ", ".join(path.name for path in recording)
        return DemoFiles(list(recording), title, read_drift_points(recording[0]))
    if dataset is not None:
        path = dataset_path(dataset, out)
        return DemoFiles([path], dataset, read_drift_points(path))
    given: dict[str, Any] = {"events": events, "seed": seed}
    config = SyntheticConfig(**{name: value for name, value in given.items() if value is not None})
    path = out / "events.parquet"
    write_stream(config, path, on_events=on_events)
    return DemoFiles([path], "a drifting click stream", read_drift_points(path))


def prepare(
    made: DemoFiles,
    recording: Recording,
    config: Config,
    tally: Tally,
    limit_events: int | None,
    on_bytes: Callable[[int], object] | None = None,
) -> DemoStream:
    """Read the recording once. Raises `ConfigError` where there is too little to learn from."""
    found = survey(recording, config.events_schema(), tally, limit_events, on_bytes=on_bytes)
    return DemoStream(recording, made.title, found.events, limit_events, made.drifts)


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
            events=msgspec.structs.replace(config.events, unknown_columns="ignore"),
            snapshot=snapshot,
        )
        ensure_topic(kafka, kafka.topic)

        pipeline = stack.enter_context(
            open_pipeline(config, [StepCallback(lambda step: on_events(step.events))])
        )
        history = History(pipeline.trainer, pipeline.replica)
        pipeline.observers.append(history)
        scorer = stack.enter_context(Scorer.from_redis(config.redis.url, config.redis.name))
        replay = stack.enter_context(_replaying(stream, config, kafka, out))
        pipeline.resume()
        started_s = time.perf_counter()
        pipeline.run(replay.failed, end=replay.sent_events)
        elapsed_s = time.perf_counter() - started_s
        if replay.failed():
            raise NiwakiError(f"niwaki replay ended with exit code {replay.exit_code}")
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


class _Replay:
    """A running `niwaki replay`."""

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._sent_events: int | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def failed(self) -> bool:
        """True once it has ended with an error."""
        return self.exit_code not in (None, 0)

    def sent_events(self) -> int | None:
        """The number of events that it has sent; None while it runs."""
        if self._sent_events is None and self.exit_code == 0 and self._process.stdout:
            self._sent_events = msgspec.json.decode(self._process.stdout.read())["events"]
        return self._sent_events

    def close(self) -> None:
        """End it, if it runs."""
        self._process.terminate()
        self._process.communicate()


@contextmanager
def _replaying(
    stream: DemoStream, config: Config, kafka: KafkaConfig, out: Path
) -> Iterator[_Replay]:
    """`niwaki replay`, with the schema in a config file of its own; ended with the block."""
    path = out / "replay.toml"
    # Whatever the demo may leave out was counted before.
    events = msgspec.structs.replace(config.events, max_rejected_ratio=1.0)
    sections = {"schema": config.events_schema(), "events": events}
    path.write_text(sections_toml(sections), "utf-8")
    command = [sys.executable, "-m", "niwaki", "replay", *map(str, stream.recording.paths)]
    command += ["--config", str(path), "--json", "--bootstrap", kafka.bootstrap_servers]
    command += ["--topic", kafka.topic]
    if stream.limit_events is not None:
        command += ["--events", str(stream.limit_events)]
    with closing(_Replay(command)) as replay:
        yield replay


def _last_events(stream: DemoStream, schema: Schema) -> EventBatch:
    chunks = stream.recording.read(schema, limit_events=stream.limit_events)
    last = next(chunks).batch
    for chunk in chunks:
        last = EventBatch.concat([last, chunk.batch])
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
