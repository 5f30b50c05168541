"""Columns of further kinds: what lists, histories and rates are worth, what a list costs, and what
is lost where a producer leaves out negatives.

    python -m benchmarks.columns --recordings DIR [--rows FILE] [--events N] [--seeds A-B]
        [--pairs | --seam]

Worth: each recording with the schema that is proposed for it, learned and published every 128
events; its lists left out, read, and read beside histories and rates by default settings. Pairs:
no pairs of columns, those of fields that the stream chooses, all of them, and the default, with
lists among them; and that without a network. Seam: a
column that comes into the schema after a third of the events, beside one that was missing till
then. Sampling:
the whole stream learned, or a tenth of the negatives, both measured on the whole stream. Cost: a
learner with a list of 20 values beside one with a single column more, in turns.
"""

import argparse
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks.baselines.stream import without_lists
from benchmarks.columns.claims import losses, pair_claims, seam_claims, table
from benchmarks.frame import Findings, Rows, at_most, commit, main, seeds_of
from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import Evaluation
from niwaki.model.features.memory.histories import Histories
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import LIST, EventBatch, History, Schema
from niwaki.model.learner import Learner
from niwaki.pruning.config import PruningConfig
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.training.changed_schema import adapted
from niwaki.stream.training.trainer import Trainer, TrainerConfig

BATCH_EVENTS = 128
PAIRS = {
    "hackernews": ("c_user", "c_domain"),
    "movielens_lists": ("c_user", "c_movie"),
    "retail_lists": ("c_customer", "c_item"),
}
"""By recording, the column that histories are kept by, and that of which they have values."""
SEAMS = {"hackernews": "c_domain", "retail_lists": "c_item"}
"""By recording, a column that is added in mid-stream."""
RATIO = 0.1
RARE = 0.05
"""Share of clicks that are left where clicks are to be rare."""
LIST_VALUES = 20


def variants(name: str, schema: Schema) -> dict[str, Schema]:
    """The schemas to compare, by name."""
    plain = without_lists(schema)
    by, of = PAIRS[name]
    made = {
        "histories": (History(name="liked", of=of, by=by),),
        "rates": (by, of, (by, of)),
    }
    replace = msgspec.structs.replace
    return {
        "plain": plain,
        "lists": schema,
        "histories": replace(plain, histories=made["histories"]),
        "rates": replace(plain, rates=made["rates"]),
        "all": replace(schema, **made),
    }


def batches(path: Path, schema: Schema, events: int) -> Iterator[EventBatch]:
    """The first `events` events, in batches of 128."""
    for chunk in read_recording(path, schema, limit_events=events):
        for start in range(0, len(chunk.batch), BATCH_EVENTS):
            yield chunk.batch.slice(start, start + BATCH_EVENTS)


def worth(path: Path, schema: Schema, events: int, seed: int) -> dict[str, float]:
    """Entropies of one variant."""
    config = TrainerConfig(
        schema=schema, model=LearnerConfig(seed=seed), pruning=PruningConfig(policy="dense")
    )
    trainer = Trainer(config)
    served = trainer.add_replica(BATCH_EVENTS)
    for batch in batches(path, schema, events):
        trainer.step(batch)
        served.refresh()
    total = served.evaluation.total
    return {
        "events": total.events,
        "served_ne": total.normalized_entropy,
        "prequential_ne": trainer.prequential.total.normalized_entropy,
        "calibration": total.calibration,
    }


PAIR_RECORDINGS = (*PAIRS, "reddit", "grocery", "hotel")
BUDGETS: dict[str, dict[str, Any]] = {
    "no pairs": {"max_pairs": 0, "max_list_pairs": 0},
    "pairs of fields": {"max_list_pairs": 0},
    "all pairs of fields": {"max_pairs": 1_000_000, "max_list_pairs": 0},
    "pairs": {},
    "no network": {"network_rate": 0.0},
}
"""By variant, settings of the model."""


class Sampling(NamedTuple):
    """The part of a recording that a learner has."""

    ratio: float = 1.0
    """Share of events without a click that it has."""
    clicks: float = 1.0
    """Share of the recording's clicks that the whole stream has."""
    way: str = "ratio"
    """"ratio": the learner is told the sampling ratio; "weights": events without a click weigh its
    inverse instead; "random": it has as many events, drawn from all."""


SAMPLINGS = {
    "whole": Sampling(),
    "sampled": Sampling(RATIO),
    "sampled, weights": Sampling(RATIO, way="weights"),
    "as many at random": Sampling(RATIO, way="random"),
    "rare whole": Sampling(clicks=RARE),
    "rare sampled": Sampling(RATIO, RARE),
}


def sampled(
    path: Path, schema: Schema, events: int, seed: int, sampling: Sampling
) -> dict[str, float]:
    """Entropy and calibration on the whole stream of a learner that has a part of it."""
    ratio, clicks, way = sampling
    learner, measured = Learner(schema, LearnerConfig(seed=seed)), Evaluation()
    rng, thin = np.random.default_rng(seed), np.random.default_rng(1)
    for batch in batches(path, schema, events):
        there_B = (batch.labels_B < 0.5) | (thin.random(len(batch)) < clicks)
        batch = batch.take(np.flatnonzero(there_B))
        measured.update(learner.predict(learner.encoder.encode(batch)), batch.labels_B)
        clicked_B = batch.labels_B >= 0.5
        share = clicked_B.mean() + (1 - clicked_B.mean()) * ratio
        drawn_B = rng.random(len(batch))
        kept_B = drawn_B < share if way == "random" else clicked_B | (drawn_B < ratio)
        if kept_B.any():
            part = batch.take(np.flatnonzero(kept_B))
            outcomes = Outcomes.made(part.labels_B)
            if way == "weights":
                weights_B = np.where(part.labels_B < 0.5, 1 / ratio, 1).astype(np.float32)
                outcomes = Outcomes.made(part.labels_B, weights_B)
            elif way == "ratio":
                ratios_B = np.full(len(part), ratio, np.float32)
                outcomes = Outcomes.made(part.labels_B, sampling_B=ratios_B)
            learner.learn(learner.encoder.encode(part), outcomes)
    return {
        "events": measured.events,
        "served_ne": measured.normalized_entropy,
        "prequential_ne": measured.normalized_entropy,
        "calibration": measured.calibration,
    }


def paired(
    path: Path, schema: Schema, events: int, seed: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Entropy and calibration of a learner with some pairs, each batch predicted before it is
    learned."""
    learner, measured = Learner(schema, LearnerConfig(seed=seed, **settings)), Evaluation()
    started_s = time.process_time()
    for batch in batches(path, schema, events):
        found = learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
        measured.update(found.logits_B, batch.labels_B)
    taken_s = time.process_time() - started_s
    return {
        "events": measured.events,
        "served_ne": measured.normalized_entropy,
        "prequential_ne": measured.normalized_entropy,
        "calibration": measured.calibration,
        "auc": measured.auc,
        "candidates": len(learner.slots.candidates),
        "living": len(learner.slots.living),
        "event_us": 1e6 * taken_s / measured.events,
    }


def seam(path: Path, schema: Schema, column: str, events: int, seed: int, added: bool) -> float:
    """Entropy of the last two thirds of the events, where a column is there from then on. `added`:
    it comes into the schema then; else it was in the schema before, and missing in each event."""
    old = msgspec.structs.replace(
        schema,
        categorical=tuple(name for name in schema.categorical if name != column),
        shares={name: of for name, of in schema.shares.items() if column not in (name, of)},
    )
    schema = msgspec.structs.replace(schema, shares=old.shares)
    config, place = LearnerConfig(seed=seed), schema.categorical.index(column)
    learner, measured, done = Learner(old if added else schema, config), Evaluation(), 0
    for batch in batches(path, schema, events):
        if 3 * done >= events and learner.schema is not schema:
            state, tensors = learner.state()
            before, learner = learner.schema, Learner(schema, config)
            learner.restore(state, adapted(tensors, before, learner))
        if 3 * done < events:
            rest = [one for at, one in enumerate(batch.categorical) if at != place]
            if not added:
                rest.insert(place, pa.nulls(len(batch), pa.string()))
            batch = dataclasses.replace(batch, categorical=tuple(rest))
        found = learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
        if 3 * done >= events:
            measured.update(found.logits_B, batch.labels_B)
        done += len(batch)
    return measured.normalized_entropy


def cost(rounds: int) -> dict[str, Any]:
    """Processor seconds that a list adds to a step, over those that a single column adds, in
    turns: of eight columns more, and of two lists more."""
    columns = tuple(f"c{at}" for at in range(4))
    more, lists = tuple(f"more{at}" for at in range(8)), ("list0", "list1")
    schemas = {
        "base": Schema(categorical=columns, timestamp=None),
        "columns": Schema(categorical=(*columns, *more), timestamp=None),
        "lists": Schema(categorical=columns, lists=lists, timestamp=None),
    }
    config = LearnerConfig(pair_rows=0)
    learners = {name: Learner(schema, config) for name, schema in schemas.items()}
    rng, events = np.random.default_rng(0), 256

    def names(count: int) -> list[str]:
        return [f"v{one}" for one in (50_000 * rng.random(count) ** 3).astype(int)]

    taken: dict[str, list[float]] = {name: [] for name in schemas}
    for place in range(rounds + 10):
        columns_B = {name: pa.array(names(events)) for name in (*columns, *more)}
        lists_B = tuple(
            pa.array([[(one, 1.0) for one in names(LIST_VALUES)] for _ in range(events)], LIST)
            for _ in lists
        )
        labels_B, zeros_B = (rng.random(events) < 0.3).astype(np.float32), np.zeros(events)
        for name in schemas if place % 2 else reversed(schemas):
            schema, learner = schemas[name], learners[name]
            single = tuple(columns_B[one] for one in schema.categorical)
            nothing = np.empty((events, 0), np.float32)
            of_lists = lists_B if schema.lists else ()
            batch = EventBatch(labels_B, zeros_B, single, nothing, of_lists)
            started_s = time.process_time()
            learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
            taken[name].append(time.process_time() - started_s)
    times = {name: np.array(values[10:]) for name, values in taken.items()}
    column_s = median(times["columns"] - times["base"]) / len(more)
    list_s = median(times["lists"] - times["base"]) / len(lists)
    milliseconds = {name: 1e3 * median(values) for name, values in times.items()}
    return {"ratio": list_s / column_s, "step_ms": milliseconds}


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    events = 5_000 if quick else options.events
    seeds = options.seeds[:1] if quick else options.seeds
    rows = Rows(options.rows, ("recording", "variant", "seed", "events_asked"))
    for name in PAIR_RECORDINGS if options.pairs else ():
        path = options.recordings / f"{name}.parquet"
        for seed in seeds:
            for one, settings in BUDGETS.items():
                if rows.get(name, one, seed, events) is None:
                    found = paired(path, propose_schema(path), events, seed, settings)
                    about = {"recording": name, "variant": one, "seed": seed}
                    rows.add(about | {"events_asked": events, "commit": commit()} | found)
    for name in () if options.seam or options.pairs else PAIRS:
        path = (options.recordings or Path()) / f"{name}.parquet"
        if options.recordings is None or not path.exists():
            continue
        schema = propose_schema(path)
        runs = {
            one: (lambda seed, s=s, path=path: worth(path, s, events, seed))
            for one, s in variants(name, schema).items()
        }
        for one, sampling in SAMPLINGS.items():
            runs[one] = lambda seed, asked=sampling, s=schema, path=path: sampled(
                path, s, events if asked.clicks == 1 else 3 * events, seed, asked
            )
        for seed in seeds:
            for one, run in runs.items():
                if rows.get(name, one, seed, events) is None:
                    about = {"recording": name, "variant": one, "seed": seed}
                    found = {"events_asked": events, "commit": commit()} | run(seed)
                    rows.add(about | found)
    for name, column in SEAMS.items() if options.seam else ():
        path = options.recordings / f"{name}.parquet"
        for seed in seeds:
            for added in (True, False):
                variant = "column added" if added else "column from then on"
                if rows.get(name, variant, seed, events) is None:
                    ne = seam(path, propose_schema(path), column, events, seed, added)
                    about = {"recording": name, "variant": variant, "seed": seed}
                    figures = {"events": events, "served_ne": ne, "prequential_ne": ne}
                    rest = {"calibration": 1.0, "events_asked": events, "commit": commit()}
                    rows.add(about | figures | rest)
    measured = [row for row in rows if row["events_asked"] == events]
    costs = cost(20 if quick else 200)
    claims = [at_most(f"added time: list of {LIST_VALUES} over a column", costs["ratio"], 8)]
    claims += [claim for name in PAIRS for claim in losses(measured, name)]
    claims += [claim for name in SEAMS for claim in seam_claims(measured, name)]
    claims += [claim for name in PAIR_RECORDINGS for claim in pair_claims(measured, name)]
    steps = ", ".join(f"{name} {ms:.2f}" for name, ms in costs["step_ms"].items())
    memory_mb = history_mb()
    claims.append(at_most("a million histories of 20 values, MB", memory_mb, 300))
    text = f"{table(measured)}\n\nA step of 256 events takes, ms: {steps}."
    setting = {"events": events, "seeds": list(seeds), "batch_events": BATCH_EVENTS}
    return Findings(measured, claims, setting | costs, text)


def history_mb() -> float:
    """Size of the tables and the order of a million histories of 20 values."""
    keyed = Histories("liked", 20, 1_000_000).keyed
    tables = sum(table.numel() * table.element_size() for table in keyed.tables.values())
    return (tables + sum(array.nbytes for array in keyed.order)) / 1e6


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--recordings", type=Path, help="folder of recordings; without it only costs are measured"
    )
    parser.add_argument("--rows", type=Path, help="file that keeps measured rows")
    parser.add_argument("--events", type=int, default=50_000, help="first events of each")
    parser.add_argument(
        "--seam", action="store_true", help="measure columns that are added in mid-stream instead"
    )
    parser.add_argument("--pairs", action="store_true", help="measure pairs of columns instead")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0-4"), help="seeds A-B")
    options, rest = parser.parse_known_args(arguments)
    main("columns", lambda quick: measure(quick, options), rest, parser)


if __name__ == "__main__":
    run_main()
