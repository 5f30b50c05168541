"""Options that several commands have, and the settings that follow from them.

In: what a user wrote on the command line. Out: settings, or a `ConfigError` that names the option.
"""

import logging
import signal
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from niwaki.pruning.errors import RuleError
from niwaki.stream.errors import ConfigError

log = logging.getLogger("niwaki")

_STOPPING = (
    "stopping already: what is held is being saved. SIGKILL ends the program at once, and loses it"
)
T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


def _print_version(asked: bool) -> None:
    if asked:
        print(metadata.version("niwaki"))
        raise typer.Exit()


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
]

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="niwaki.toml; without it, the defaults.")
]
RECORDING = "Recorded events: files or folders of CSV, JSON, Parquet or Arrow, also compressed."
BootstrapOption = Annotated[
    str | None, typer.Option(help="Kafka's host:port, instead of the config's.")
]
EventsOption = Annotated[
    int | None, typer.Option("--events", "-n", min=1, help="Read at most this many events.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
]


def load(path: Path | None) -> Any:
    """The settings of a file and the environment; the import is as late as can be, since it takes
    seconds."""
    from niwaki.stream.config import load_config

    return load_config(path)


def kafka(
    settings: Any, topic: str | None, bootstrap: str | None, *, make_topic: bool = False
) -> Any:
    """The `[kafka]` section, with what the options say instead; the topic is there when this
    returns. `make_topic`: it is made, and the log says so; else one that is missing is a
    `BrokerError`."""
    from niwaki.stream.kafka.connection import ensure_topic, partitions_of

    given = {"topic": topic, "bootstrap_servers": bootstrap}
    kafka = replaced(settings.kafka, given)
    if make_topic:
        ensure_topic(kafka, kafka.topic)
    else:
        partitions_of(kafka, kafka.topic)
    return kafka


def replaced(settings: S, given: Mapping[str, Any]) -> S:
    """`settings` with the fields that are given; those that are None stay."""
    changes = {name: value for name, value in given.items() if value is not None}
    return msgspec.structs.replace(settings, **changes)


def checked(option: str, make: Callable[[], T]) -> T:
    """The value of `make`; its `RuleError` becomes one about `option`."""
    try:
        return make()
    except RuleError as error:
        raise ConfigError(option, error.rule, shown=error.value) from error
    except ValueError as error:
        raise ConfigError(option, f"must be a number ({error})") from error


def positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise RuleError("number", "must be whole numbers from 1 on", text)
    return int(text)


def stop_on_signals() -> threading.Event:
    """Set by the first SIGTERM or Ctrl-C. Further ones only say that what is held is being saved,
    so that none of them leaves a file half written."""
    stop = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            # From a thread: the signal may have come in the middle of a line of the log.
            threading.Thread(target=log.warning, args=(_STOPPING,)).start()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return stop
