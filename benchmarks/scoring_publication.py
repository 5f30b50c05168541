"""What a publication costs: bytes, time taken from learning, and normalized entropy where tables are less exact.

The stream is learned once, with a series of publications for each precision of the tables, so that all of them publish
the very same model. For the time, blocks of events are learned in turns with and without publishing to a Redis, in the
sparse phase; both score with what is served.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.frame import at_most, spread
from benchmarks.servers import some_redis
from model.checkpoint import pack
from model.features import EventBatch, Schema
from model.learner import LearnerConfig
from model.table_codes import Precision
from pruning.policy import PruningConfig
from serving.store import CheckpointStore
from stream.backtest import rebatch
from stream.drift import DriftConfig
from stream.events import table_to_batch
from stream.publisher import Publisher
from stream.recording import propose_schema, read_recording
from stream.synthetic import SCHEMA, SyntheticConfig, generate
from stream.telemetry import Telemetry
from stream.trainer import Trainer, TrainingConfig

EVERY_EVENTS = 1_000
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
_BLOCK_EVENTS = 8_192
_WARMUP_EVENTS, _PRUNING_EVENTS = 20_000, 20_000

Found = tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]


def precision(quick: bool, recording: Path | None) -> Found:
    """Rows, claims, setting: bytes and served entropy by precision and seed."""
    rows = []
    name, schema, limit = _stream(recording, quick)
    for seed in range(1 if quick else 3):
        trainer = _trainer(schema, seed, limit)
        series = [_Series(trainer, precision) for precision in PRECISIONS]
        for batch in _batches(recording, limit):
            step = trainer.step(batch)
            for one in series:
                if one.publication.due(step):
                    one.publish()
        rows += [{"stream": name, "seed": seed} | one.row(series[0]) for one in series]
    return rows, _byte_claims(name, rows), {"publish_every_events": EVERY_EVENTS, "events": trainer.events}


class _Series:
    """Publications of one precision that nobody reads, packed to be weighed."""

    def __init__(self, trainer: Trainer, precision: Precision):
        self._trainer = trainer
        self.publication = trainer.follow(EVERY_EVENTS, precision)
        self._version = self._base = 0
        self._deltas: list[int] = []

    def publish(self) -> None:
        """One more version, a delta where it can be; only those after the cut are weighed."""
        base = 0 if self.publication.full_due else self._base
        size_bytes = self._pack(base)
        self._version, self._base = self._version + 1, base or self._version + 1
        if base and self._trainer.learner.sparse:
            self._deltas.append(size_bytes)
        self.publication.refresh()

    def row(self, exact: "_Series") -> dict[str, Any]:
        """What it came to, beside the series of full precision."""
        learner, full_bytes = self._trainer.learner, self._pack(0)
        tables = (learner.tables.weight_RD, learner.linear.evidence_R2K, *learner.dense.parameters.values())
        plain_bytes = 4 * sum(tensor.numel() for tensor in tables)
        ne, exact_ne = (one.publication.evaluation.total.normalized_entropy for one in (self, exact))
        delta_bytes = median(self._deltas)
        return {
            "precision": self.publication.table_precision,
            "served_ne": ne,
            "ne_cost": ne / exact_ne - 1,
            "delta_bytes": delta_bytes,
            "full_bytes": full_bytes,
            "delta_of_full": delta_bytes / full_bytes,
            "dense_touched_bytes": learner.dense_bytes,
            "full_of_touched": full_bytes / learner.dense_bytes,
            "dense_all_bytes": plain_bytes,
            "full_of_all": full_bytes / plain_bytes,
        }

    def _pack(self, base: int) -> int:
        about = {"version": self._version + 1, "parent": self._version, "offsets": {}, "created_s": 0.0}
        return len(pack(*self._trainer.checkpoint(self.publication, base=base, **about)))


def _byte_claims(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    claims = []
    for kind in PRECISIONS:
        mine = [row for row in rows if row["precision"] == kind]
        worst = {key: max(row[key] for row in mine) for key in ("delta_of_full", "full_of_all", "full_of_touched")}
        claims += [
            at_most(f"{name}, {kind}: a delta every 1,000 events over a full checkpoint", worst["delta_of_full"], 0.1),
            at_most(
                f"{name}, {kind}: a full one, 90 % pruned, over all dense float32 rows", worst["full_of_all"], 0.35
            ),
            at_most(f"{name}, {kind}: the same over rows ever touched only", worst["full_of_touched"], 0.35),
        ]
    return claims


def time_taken(quick: bool, recording: Path | None) -> Found:
    """Rows, claims, setting: events a second with and without publishing."""
    name, schema, limit = _stream(recording, quick)
    trainer = _trainer(schema, 0, limit)
    publication = trainer.follow(EVERY_EVENTS)
    batches = _batches(recording, limit)
    rates: dict[bool, list[float]] = {True: [], False: []}
    publishing_s, publications = 0.0, 0
    with some_redis() as (redis, url), CheckpointStore.from_url(url) as store:
        publisher = Publisher(trainer, publication, store, Telemetry())
        for batch in batches:
            step = trainer.step(batch)
            publisher.publish_if_due(step, {})
            if trainer.learner.sparse:
                break
        publishes = True
        while block := list(_taken(batches, _BLOCK_EVENTS)):
            started_s = time.perf_counter()
            for batch in block:
                step = trainer.step(batch)
                if publishes:
                    before_s = time.perf_counter()
                    publications += publisher.publish_if_due(step, {})
                    publishing_s += time.perf_counter() - before_s
                    publisher.settle(wait=False)
            events = sum(map(len, block))
            rates[publishes].append(events / (time.perf_counter() - started_s))
            if not publishes:
                publisher.publish({})  # so that the next block does not begin with a large one
            publisher.settle()
            publishes = not publishes
        publisher.close()
    costs = [without / publishing - 1 for publishing, without in zip(rates[True], rates[False], strict=False)]
    cost, slow, fast = spread(costs), spread(rates[True]), spread(rates[False])
    row = {
        "stream": name,
        "events_per_s_publishing": slow.median,
        "events_per_s_without": fast.median,
        "cost": cost.median,
        "low": cost.low,
        "high": cost.high,
        "loop_ms_a_publication": 1e3 * publishing_s / publications,
        "blocks": len(costs),
    }
    text = f"{name}: publishing every 1,000 events, share of the learning rate, median of {len(costs)} pairs of blocks"
    return [row], [at_most(text, cost.median, 0.05)], {"block_events": _BLOCK_EVENTS, "redis": redis}


def _stream(recording: Path | None, quick: bool) -> tuple[str, Schema, int]:
    """Name, schema, and events that are used."""
    if recording:
        return recording.name.split(".")[0], propose_schema(recording), 60_000 if quick else 10**9
    return "synthetic", SCHEMA, 24_000 if quick else 200_000


def _batches(recording: Path | None, limit: int) -> Iterator[EventBatch]:
    if recording:
        chunks = (chunk for chunk, _ in read_recording(recording, propose_schema(recording)))
    else:
        made = generate(SyntheticConfig(events=limit, drifts=()), chunk_events=1_024)
        chunks = (table_to_batch(table, SCHEMA)[0] for table in made)
    return rebatch(chunks, TrainingConfig().batch_events, limit)


def _trainer(schema: Schema, seed: int, limit: int) -> Trainer:
    """Prunes once, to a tenth, early enough that most of the stream is learned sparse."""
    share = min(1.0, limit / 120_000)
    warmup, growing = int(share * _WARMUP_EVENTS), int(share * _PRUNING_EVENTS)
    pruning = PruningConfig(policy="static", budget=0.1, warmup_events=warmup, pruning_events=growing)
    return Trainer(schema, LearnerConfig(seed=seed), pruning, DriftConfig(), TrainingConfig())


def _taken(batches: Iterator[EventBatch], events: int) -> Iterator[EventBatch]:
    """The next whole `events`; nothing where fewer are left."""
    block = []
    for batch in batches:
        block.append(batch)
        if sum(map(len, block)) >= events:
            return iter(block)
    return iter(())
