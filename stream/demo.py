"""The whole path on one machine, on embedded parts: replay, train, detect, regrow, prune, publish, serve, score.

In: a recorded stream. Out: a report, a summary, and the score of a live scorer beside the trainer's own. Everything between is what
production runs: the `Pipeline`, a `Scorer` that follows Redis, and `niwaki replay` as a process of its own. Only the servers are
stand-ins, and batches are never cut by age, so that the same seed gives the same report, byte for byte.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from model.features import EventBatch, Schema
from serving.scorer import Scorer
from serving.store import CheckpointStore, StoreConfig
from stream.broker import DeadLetters, EventSource, KafkaConfig, ensure_topic
from stream.config import Config
from stream.errors import NiwakiError
from stream.events import EventDecoder
from stream.history import History
from stream.local import embedded_kafka, embedded_redis
from stream.pipeline import Pipeline
from stream.recording import read_recording
from stream.snapshot import SnapshotConfig
from stream.telemetry import Telemetry
from stream.trainer import Step, Trainer

_NO_AGE_S = 1e9
_SCORED_EVENTS = 1_000
_SWAP_S = 30.0


class Demonstration(NamedTuple):
    """What a demo has shown."""

    trainer: Trainer
    pipeline: Pipeline
    history: History
    seconds: float
    """Time from the first event to the last."""
    checkpoint_bytes: int
    dense_bytes: int
    swaps: int
    """Checkpoints that the scorer took over."""
    score_difference: float
    """Greatest difference between the scorer's probabilities and the trainer's for the last events."""


def demonstrate(
    recording: Path,
    config: Config,
    *,
    events: int,
    out: Path,
    on_ready: Callable[[str], Any] = lambda metrics_url: None,
    on_step: Callable[[Step], Any] = lambda step: None,
) -> Demonstration:
    """Run the path over the first `events` events of `recording`; snapshots go to `out`."""
    schema = config.events_schema()
    training = msgspec.structs.replace(config.training, max_batch_age_s=_NO_AGE_S)
    with ExitStack() as stack:
        kafka = KafkaConfig(bootstrap_servers=stack.enter_context(embedded_kafka()), topic="events", group_id="")
        store = stack.enter_context(CheckpointStore(StoreConfig(url=stack.enter_context(embedded_redis()))))
        ensure_topic(kafka, kafka.topic)
        ensure_topic(kafka, kafka.dead_letters)
        trainer = Trainer(schema, config.model, config.pruning, config.drift, training)
        telemetry = Telemetry(config.drift.names())
        on_ready(f"http://127.0.0.1:{telemetry.start(msgspec.structs.replace(config.telemetry, port=0))}/metrics")
        stack.callback(telemetry.stop)
        pipeline = Pipeline(
            source=stack.enter_context(EventSource(kafka)),
            decoder=EventDecoder(schema, max_event_bytes=kafka.max_event_bytes),
            dead_letters=stack.enter_context(DeadLetters(kafka)),
            trainer=trainer,
            store=store,
            telemetry=telemetry,
            snapshot=SnapshotConfig(directory=str(out / "snapshot")),
        )
        history = History(trainer, pipeline.publication)
        scorer = stack.enter_context(Scorer.from_redis(store.config.url))
        replay = stack.enter_context(_replaying(recording, kafka, events))

        def observe(step: Step) -> None:
            history.record(step)
            on_step(step)

        pipeline.on_step = observe
        pipeline.resume()
        started_s = time.perf_counter()
        pipeline.run(lambda: replay.poll() not in (None, 0), limit_events=events)
        seconds = time.perf_counter() - started_s
        if replay.wait():
            raise NiwakiError(f"niwaki replay ended with exit code {replay.returncode}")
        if not scorer.wait(pipeline.version, _SWAP_S):
            raise NiwakiError(f"the scorer did not take over version {pipeline.version} within {_SWAP_S:.0f} s")
        last = _last_events(recording, schema, events)
        mine = torch.from_numpy(trainer.learner.predict(trainer.learner.encoder.encode(last))).sigmoid().numpy()
        pointer = store.head()
        return Demonstration(
            trainer,
            pipeline,
            history,
            seconds,
            pointer.bytes,
            trainer.learner.dense_bytes,
            scorer.swaps,
            float(np.abs(scorer.score_batch(last) - mine).max()),
        )
