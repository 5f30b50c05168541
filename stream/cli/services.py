"""Commands for what runs on servers: train, serve, inspect, export, record."""

import json
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from niwaki.pruning.errors import NiwakiError
from niwaki.stream.cli.console import (
    accounted,
    log_to_stderr,
    print_checkpoint,
    print_line,
    progress,
)
from niwaki.stream.cli.options import (
    RECORDING,
    BootstrapOption,
    ConfigOption,
    EventsOption,
    JsonOption,
    kafka,
    load,
    stop_on_signals,
)


def train(
    config: ConfigOption = None,
    history: Annotated[
        list[Path] | None, typer.Option(help=f"{RECORDING} Learned before the topic.")
    ] = None,
    strict_schema: Annotated[
        bool, typer.Option("--strict-schema", help="Stop at a snapshot of another schema.")
    ] = False,
) -> None:
    """Learn from the Kafka topic until stopped. SIGTERM or Ctrl-C finishes the batch, saves, and
    leaves cleanly.

    With --history, recorded events are learned first; then the topic goes on at the time at which
    they end, and no event is learned twice. A restart goes on from its snapshot, so the option can
    stay. Where columns were added, removed or made lists since, the model goes on with what both
    schemas know, unless --strict-schema forbids it.

    Examples:

        niwaki train --config config/niwaki.toml

        niwaki train --config config/niwaki.toml --history clicks.parquet --history june/
    """
    from niwaki.stream.app import open_pipeline
    from niwaki.stream.training.past import Past
    from niwaki.stream.training.second_thread import tensor_threads
    from niwaki.stream.training.snapshots.files import SnapshotFiles

    settings = load(config)
    if strict_schema:
        snapshot = msgspec.structs.replace(settings.snapshot, strict_schema=True)
        settings = msgspec.structs.replace(settings, snapshot=snapshot)
    past = Past(history, settings.events_schema(), settings.events) if history else None
    if past is not None and not SnapshotFiles(settings.snapshot).paths():
        past.check()  # before any server is asked
    log_to_stderr()
    stop = stop_on_signals()
    tensor_threads(settings.training.threads)
    with open_pipeline(settings) as pipeline:
        pipeline.resume(past)
        pipeline.run(stop.is_set)


def serve(config: ConfigOption = None) -> None:
    """Score over HTTP with the checkpoint that is in Redis, always the newest.

    Example: niwaki serve --config config/niwaki.toml
    """
    from niwaki.serving import server

    settings = load(config)
    log_to_stderr()
    server.run(settings.serve, settings.redis)


def inspect(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the published checkpoint: version, offsets, sparsity by layer, bytes, age, evaluation.

    Example: niwaki inspect --config config/niwaki.toml
    """
    from niwaki.model.published.checkpoint import read_header
    from niwaki.serving.store import CheckpointStore

    settings = load(config)
    with CheckpointStore(settings.redis) as store:
        data = store.fetch()
    if data is None:
        raise NiwakiError(f"nothing is published as {settings.redis.name!r}")
    header = read_header(data)
    shown = msgspec.to_builtins(header) | {
        "bytes": len(data),
        "age_s": time.time() - header.created_s,
        "sparsity_ratio": header.sparsity_ratio,
    }
    if as_json:
        print(json.dumps(shown))
    else:
        print_checkpoint(settings.redis.name, header, len(data))


def export(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    format: Annotated[str, typer.Option(help="onnx, torchscript or safetensors.")] = "onnx",
    config: ConfigOption = None,
) -> None:
    """Write the compact network that is published now for another server.

    Example: niwaki export network.onnx --config config/niwaki.toml
    """
    from niwaki.serving.network_export import published

    out.write_bytes(published(load(config).redis, format))


def record(
    topic: Annotated[str, typer.Option(help="Topic to read.")],
    out: Annotated[
        Path, typer.Option(help="File to write: .parquet, .jsonl or .csv, each also .gz.")
    ],
    events: EventsOption = None,
    config: ConfigOption = None,
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a topic's events to a file: what is there now, or until --events of them or Ctrl-C.

    Example: niwaki record --topic events --out clicks.parquet --config config/niwaki.toml
    """
    from niwaki.stream.events.rejects import Tally
    from niwaki.stream.kafka.registry import new_decoder
    from niwaki.stream.kafka.source import EventSource
    from niwaki.stream.recordings.replay import record as keep

    settings = load(config)
    broker = kafka(settings, topic, bootstrap)
    decoder = new_decoder(broker, settings.events_schema(), settings.events)
    stop, tally = stop_on_signals(), Tally()
    with (
        accounted(tally, as_json=as_json),
        EventSource(broker) as source,
        progress("recording", events) as advance,
    ):
        kept = keep(
            source,
            out,
            settings.events_schema(),
            tally=tally,
            decoder=decoder,
            limit_events=events,
            stop=stop.is_set,
            on_events=advance,
        )
        tally.check(topic, settings.events.max_rejected_ratio)
    if as_json:
        print(json.dumps({"events": kept} | tally.as_dict()))
    else:
        print_line(f"{kept:,} events in {out}")
