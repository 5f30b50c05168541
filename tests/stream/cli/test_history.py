"""The program `niwaki train --history`: a recording first, then the topic, and again after a
restart."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomlkit

from niwaki.model.features.schema import EventBatch
from niwaki.model.published.checkpoint import read_header
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.kafka.connection import ensure_topic
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from tests.support.pipelines import json_messages, produce
from tests.support.streams import SCHEMA, click_events

SECTION = {"categorical": list(SCHEMA.categorical), "numeric": list(SCHEMA.numeric)}


@pytest.fixture
def configured(tmp_path):
    """configured(section={key: value}) -> a config file with the schema of the tests' events."""

    def write(**sections: object) -> Path:
        path = tmp_path / "niwaki.toml"
        path.write_text(tomlkit.dumps({"schema": SECTION} | sections))
        return path

    return write


def test_files_that_are_not_there_are_told_before_any_server_is_asked(configured, niwaki, tmp_path):
    path = configured(kafka={"bootstrap_servers": "127.0.0.1:1"})
    ran = niwaki("train", "--config", path, "--history", tmp_path / "none.csv")
    assert ran.code == 1 and "none.csv" in ran.err and "Kafka" not in ran.err


def test_events_without_a_time_are_told_before_any_server_is_asked(configured, niwaki, tmp_path):
    path = configured(schema=SECTION | {"timestamp": ""})
    ran = niwaki("train", "--config", path, "--history", tmp_path)
    assert ran.code == 1
    assert "--history: needs events with a time" in ran.err and "schema.timestamp" in ran.err


def test_the_recording_then_the_topic_then_a_restart(
    configured, kafka_config, redis_url, key_prefix, tmp_path
):
    kafka, store = kafka_config(), StoreConfig(url=redis_url, name=key_prefix())
    ensure_topic(kafka, kafka.topic)
    events = click_events(2000)
    times_s = float(int(time.time()) - 60) - np.arange(2000)[::-1]
    events = EventBatch(events.labels_B, times_s, events.categorical, events.numerics_BN)
    for at, name in ((0, "a"), (700, "b")):
        with write_recording(tmp_path / f"{name}.parquet") as file:
            file.write(batch_to_table(events.slice(at, at + 700), SCHEMA))
    produce(kafka, json_messages(events.slice(1000, 1900)))
    path = configured(
        kafka={"bootstrap_servers": kafka.bootstrap_servers, "topic": kafka.topic},
        redis={"url": store.url, "name": store.name},
        snapshot={"directory": str(tmp_path / "snapshots")},
        telemetry={"port": 0},
        training={"max_batch_age_s": 0.05, "publish_every_events": 1},
    )
    files = ["--history", tmp_path / "a.parquet", "--history", tmp_path / "b.parquet"]

    def run(learned: int) -> str:
        """The log of a trainer that is stopped once it has published so many events."""
        command = [sys.executable, "-m", "niwaki", "train", "--config", path, *files]
        trainer = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        try:
            with CheckpointStore(store) as published, published.watch() as watch:
                while (data := published.fetch()) is None or read_header(data).events < learned:
                    assert trainer.poll() is None, trainer.stderr.read()
                    watch.wait(1.0)
            trainer.send_signal(signal.SIGTERM)
            log = trainer.communicate(timeout=60)[1]
        finally:
            trainer.kill()
            trainer.wait()
        assert trainer.returncode == 0, log
        return log

    first = run(1900)
    assert "holds 1,400 events" in first and "400 events of the topic were left out" in first
    assert "stopped at event 1900" in first
    produce(kafka, json_messages(events.slice(1900, 2000)))
    second = run(2000)
    assert "--history is learned already: going on from the snapshot at event 1,900" in second
    assert "holds" not in second and "stopped at event 2000" in second
