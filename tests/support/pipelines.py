"""One trainer's loop over a real Kafka and a real Redis, and what a trainer becomes that got all
events at once."""

import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.published.table_codes import Precision
from niwaki.pruning.config import PruningConfig
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.app import new_reader
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.encoders import encode_json
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.kafka.sink import DeadLetters, EventSink
from niwaki.stream.kafka.times import offsets_after
from niwaki.stream.recordings.writing import batch_to_table
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, differing

NEVER_S = 1e9
PRUNING = PruningConfig(warmup_events=1024, regrowth_events=512, pruning_events=512, budget=0.2)
ADWIN = DetectorConfig(detector="ADWIN", signal="log_loss", parameters={"delta": 5e-3})
DRIFT = DriftConfig(detectors=(ADWIN,), quiet_events=256)


def new_trainer(
    max_batch_age_s: float = NEVER_S, schema: Schema = SCHEMA, precision: Precision = "int4"
) -> Trainer:
    training = TrainingConfig(
        table_precision=precision,
        batch_events=64,
        window_events=512,
        publish_every_events=256,
        max_batch_age_s=max_batch_age_s,
    )
    return Trainer(
        TrainerConfig(schema=schema, model=SMALL, pruning=PRUNING, drift=DRIFT, training=training)
    )


def uninterrupted(
    events: EventBatch, replica: ServedReplica | None = None, schema: Schema = SCHEMA
) -> dict[str, torch.Tensor]:
    """What a trainer that got all events at once has become. If `replica` is given, it must be
    as this trainer's, published as often, has become."""
    trainer = new_trainer(schema=schema)
    every_events = trainer.config.training.publish_every_events
    followed = trainer.add_replica(every_events, evaluates_all=False)
    for start in range(0, len(events), 64):
        if followed.due(trainer.step(events.slice(start, start + 64)).move):
            followed.refresh()
    if replica:
        followed.refresh()  # the last one, at the end
        first, second = followed.state(), replica.state()
        assert len(first) > 5 and all(
            np.array_equal(first[name], second[name], equal_nan=True) for name in first
        )
    return trainer.state()[1]


def assert_same(trainer: Trainer, tensors: dict[str, torch.Tensor]) -> None:
    assert differing(trainer.state()[1], tensors) == []


def json_messages(events: EventBatch, schema: Schema = SCHEMA) -> list[bytes]:
    return encode_json(batch_to_table(events, schema))


class Running:
    """The parts of one trainer over the session's servers; each instance is a process that may
    die. `past`: what it learns before the topic. `precision`: of published tables."""

    def __init__(self, kafka: KafkaConfig, store: StoreConfig, directory: Path, **options):
        self.past = options.pop("past", None)
        schema = options.pop("schema", SCHEMA)
        self.reader, self.dead_letters = new_reader(kafka, schema), DeadLetters(kafka)
        self.store, self.telemetry = CheckpointStore(store), Telemetry()
        self.pipeline = Pipeline(
            reader=self.reader,
            dead_letters=self.dead_letters,
            trainer=new_trainer(
                options.pop("max_batch_age_s", NEVER_S), schema, options.pop("precision", "int4")
            ),
            store=self.store,
            telemetry=self.telemetry,
            snapshot=SnapshotConfig(
                directory=str(directory),
                every_s=options.pop("every_s", NEVER_S),
                every_events=options.pop("every_events", 0),
            ),
            offsets_after=partial(offsets_after, kafka, schema, EventsConfig()),
            **options,
        )
        self.trainer = self.pipeline.trainer

    def __enter__(self) -> "Running":
        try:
            self.pipeline.resume(self.past)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.publisher.close()
        self.pipeline.snapshots.close()
        self.reader.close()
        self.dead_letters.close()
        self.store.close()


@pytest.fixture
def setting(kafka_config, redis_url, key_prefix, tmp_path):
    """(Kafka, Redis, folder) of one trainer, with its topics. It reads inline, which starts
    faster."""
    kafka = kafka_config(reader="inline")
    ensure_topic(kafka, kafka.topic)
    ensure_topic(kafka, kafka.dead_letters)
    return kafka, StoreConfig(url=redis_url, name=key_prefix()), tmp_path


def produce(kafka: KafkaConfig, values: list[bytes]) -> None:
    with EventSink(kafka) as sink:
        for value in values:
            sink.send(value)


def never() -> bool:
    return False


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 8 MB, 7.9 of which are taken by the file `ballast`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip("needs the right to mount a small disk")
    (folder / "ballast").write_bytes(bytes(8 * 2**20 - 100_000))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
