"""Servers to measure and to test against: real ones where there are any, else the embedded ones,
and which it is."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niwaki.stream.offline.local import (
    embedded_kafka,
    embedded_redis,
    free_port,
    kafka_answers,
    running,
)


def kafka_home() -> Path | None:
    """KAFKA_HOME, where there is an Apache Kafka that can run here."""
    home = os.environ.get("KAFKA_HOME")
    return Path(home).resolve() if home and shutil.which("java") else None


@contextmanager
def apache_kafka(home: Path, directory: Path, port: int | None = None) -> Iterator[str]:
    """Bootstrap address of an Apache Kafka with its log in `directory`, which outlives it."""

    def command(port: int) -> list[str]:
        properties = directory / "server.properties"
        if not (directory / "log").exists():
            controller = f"127.0.0.1:{free_port()}"
            lines = {
                "node.id": 1,
                "process.roles": "broker,controller",
                "controller.quorum.voters": f"1@{controller}",
                "controller.listener.names": "CONTROLLER",
                "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
                "inter.broker.listener.name": "PLAINTEXT",
                "log.dirs": directory / "log",
                "offsets.topic.replication.factor": 1,
                "offsets.topic.num.partitions": 1,
                "transaction.state.log.replication.factor": 1,
                "transaction.state.log.min.isr": 1,
            }
            properties.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
            tool = [
                home / "bin/kafka-storage.sh",
                "format",
                "-t",
                "4L6g3nShT-eMCtK--X86sw",
                "-c",
                properties,
            ]
            subprocess.run(
                tool, check=True, capture_output=True, env=os.environ | {"LOG_DIR": str(directory)}
            )
        return [
            "env",
            f"LOG_DIR={directory}",
            str(home / "bin/kafka-server-start.sh"),
            str(properties),
        ]

    with running(command, kafka_answers, port=port, stop_s=20) as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def some_kafka() -> Iterator[tuple[str, str]]:
    """Name and bootstrap servers of a Kafka."""
    home = kafka_home()
    if home is None:
        with embedded_kafka() as servers:
            yield "embedded broker", servers
        return
    with (
        tempfile.TemporaryDirectory(prefix="niwaki-") as directory,
        apache_kafka(home, Path(directory)) as servers,
    ):
        yield "Apache Kafka", servers


@contextmanager
def some_redis() -> Iterator[tuple[str, str]]:
    """Name and URL of a Redis."""
    executable = shutil.which("redis-server")
    with embedded_redis(executable) as url:
        yield "redis-server" if executable else "embedded", url
