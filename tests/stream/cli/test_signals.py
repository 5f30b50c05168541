"""Signals to the program itself: however many come, what was read is in the file."""

import signal
import subprocess
import sys
from contextlib import suppress

from niwaki.stream.kafka.connection import ensure_topic
from niwaki.stream.recordings.recording import read_recording
from tests.support.pipelines import json_messages, produce
from tests.support.streams import SCHEMA, click_events

CONFIG = """
[schema]
categorical = ["user", "item", "noise"]
numeric = ["age", "price"]

[kafka]
max_poll_messages = 100
"""


def test_a_recording_that_is_told_to_stop_again_and_again_is_complete_and_can_be_read(
    kafka_config, tmp_path
):
    kafka, out = kafka_config(), tmp_path / "events.jsonl"
    ensure_topic(kafka, kafka.topic)
    produce(kafka, json_messages(click_events(30_000)))
    (tmp_path / "niwaki.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "niwaki", "record", "--out", str(out), "--topic", kafka.topic]
    command += ["--bootstrap", kafka.bootstrap_servers, "--config", str(tmp_path / "niwaki.toml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    unfinished = tmp_path / ".events.jsonl.part"
    while process.poll() is None and not (unfinished.exists() and unfinished.stat().st_size):
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    assert "stopping already" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    kept = sum(len(chunk.batch) for chunk in read_recording(out, SCHEMA))
    assert 0 < kept < 30_000 and printed.startswith(f"{kept:,} events in ")
    assert not unfinished.exists()
