"""Commands and the topics that they read or write: which of them make one, and which refuse."""

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from kafka import KafkaAdminClient

from niwaki.serving.store import StoreConfig
from niwaki.stream.app import open_pipeline
from niwaki.stream.config import Config
from niwaki.stream.errors import BrokerError
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.telemetry import TelemetryConfig
from tests.support.streams import SCHEMA, SMALL, click_events


@pytest.fixture
def schema_file(tmp_path) -> Path:
    """A config file that has the schema of the tests' events, and nothing else."""
    lines = [
        f"{name} = {msgspec.json.encode(list(getattr(SCHEMA, name))).decode()}"
        for name in ("categorical", "numeric")
    ]
    path = tmp_path / "niwaki.toml"
    path.write_text("\n".join(["[schema]", *lines, ""]))
    return path


def niwaki(kafka: KafkaConfig, *arguments: str | Path) -> subprocess.CompletedProcess:
    """The program itself, run to its end."""
    command = [sys.executable, "-m", "niwaki", *map(str, arguments), "--topic", kafka.topic]
    command += ["--bootstrap", kafka.bootstrap_servers]
    return subprocess.run(command, capture_output=True, text=True)


def topics(kafka: KafkaConfig) -> set[str]:
    with closing(KafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)) as admin:
        return set(admin.list_topics())


def test_record_refuses_a_topic_that_is_not_there_at_once_and_makes_none(
    kafka_config, tmp_path, schema_file
):
    there = kafka_config()
    ensure_topic(there, there.topic)
    missing = kafka_config(topic=f"{there.topic}s")
    out = tmp_path / "events.jsonl"
    done = niwaki(missing, "record", "--out", out, "--config", schema_file)
    assert done.returncode == 1
    assert f"has no topic {missing.topic}; did you mean {there.topic}?" in done.stderr
    assert missing.topic not in topics(missing) and not out.exists()


def test_replay_makes_its_topic_and_says_so(kafka_config, tmp_path, schema_file):
    kafka, path = kafka_config(), tmp_path / "events.parquet"
    with write_recording(path) as recording:
        recording.write(batch_to_table(click_events(10), SCHEMA))
    done = niwaki(kafka, "replay", path, "--config", schema_file)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"made topic {kafka.topic} with 1 partition" in done.stderr
    assert kafka.topic in topics(kafka)


@pytest.fixture
def config(kafka_config, redis_url, key_prefix, tmp_path) -> Config:
    return Config(
        schema=SCHEMA,
        model=SMALL,
        kafka=kafka_config(reader="inline", connect_timeout_s=1, group_id=""),
        redis=StoreConfig(url=redis_url, name=key_prefix()),
        snapshot=SnapshotConfig(directory=str(tmp_path)),
        telemetry=TelemetryConfig(port=0),
    )


def with_kafka(config: Config, **changes: object) -> Config:
    kafka = msgspec.structs.replace(config.kafka, **changes)
    return msgspec.structs.replace(config, kafka=kafka)


def test_a_trainer_waits_for_its_topic_and_then_refuses_and_makes_none(config, caplog):
    with (
        pytest.raises(BrokerError, match=f"has no topic {config.kafka.topic}"),
        open_pipeline(config),
    ):
        pass
    assert "waiting for up to 1 s for it" in caplog.text
    assert config.kafka.topic not in topics(config.kafka)


def test_a_trainer_whose_topic_is_made_while_it_waits_begins(config):
    config = with_kafka(config, connect_timeout_s=60)
    late = threading.Thread(target=ensure_topic, args=(config.kafka, config.kafka.topic, 3))
    late.start()
    with open_pipeline(config) as pipeline:
        pipeline.resume()
        assert pipeline.batcher.receive() is None
    late.join()
    assert config.kafka.dead_letters in topics(config.kafka)  # that one is the trainer's own


def test_a_trainer_that_may_make_its_topic_does(config):
    config = with_kafka(config, create_topics=True)
    with open_pipeline(config):
        assert config.kafka.topic in topics(config.kafka)
