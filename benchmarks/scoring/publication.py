"""The cost of a publication: bytes, time taken from learning, and normalized entropy where tables
are less exact.

For bytes and entropy the stream is learned once, with a series of publications for each precision
of the tables, so that all of them publish the very same model. For the time, two trainers learn the
same blocks of events in turns, in the sparse phase, one that publishes and one that does not.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.frame import Findings, at_most, spread
from benchmarks.scoring import memory
from benchmarks.servers import some_redis
from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.published.checkpoint import pack
from niwaki.model.published.table_codes import Precision
from niwaki.pruning.config import PruningConfig
from niwaki.serving.store import CheckpointStore
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.publisher import Publisher
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig

EVERY_EVENTS = 1_000
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "int4")
_BLOCK_EVENTS = 4_096
_WARMUP_EVENTS, _PRUNING_EVENTS = 20_000, 20_000


class _Stream(NamedTuple):
    """A stream to publish from."""

    name: str
    schema: Schema
    events: int
    """The number of events that are used, at most."""


def precision(quick: bool, recording: Path | None) -> Findings:
    """Bytes, of checkpoints and of a scorer's tables, and served entropy by precision and seed."""
    rows = []
    stream = _stream(recording, quick)
    for seed in range(1 if quick else 3):
        trainer = _trainer(stream.schema, seed, stream.events)
        series = [_Series(trainer, precision) for precision in PRECISIONS]
        for batch in _batches(recording, stream.events):
            step = trainer.step(batch)
            for one in series:
                if one.publication.due(step.move):
                    one.publish()
        rows += [{"stream": stream.name, "seed": seed} | one.row(series[0]) for one in series]
    return Findings(
        rows,
        _byte_claims(stream.name, rows),
        {"publish_every_events": EVERY_EVENTS, "events": trainer.events},
    )


class _Series:
    """Publications of one precision that nobody reads, packed to be weighed."""

    def __init__(self, trainer: Trainer, precision: Precision):
        self._trainer = trainer
        self.publication = trainer.add_replica(EVERY_EVENTS, precision)
        self._version = self._base = 0
        self._deltas: list[int] = []

    def publish(self) -> None:
        """One more version, a delta where it can be; only those after the cut are weighed."""
        base = 0 if self.publication.full_due else self._base
        size_bytes = len(self.packed(base))
        self._version, self._base = self._version + 1, base or self._version + 1
        if base and self._trainer.learner.branches.sparse:
            self._deltas.append(size_bytes)
        self.publication.refresh()

    def row(self, exact: "_Series") -> dict[str, Any]:
        """Result, beside the series of full precision."""
        learner, full = self._trainer.learner, self.packed(0)
        full_bytes = len(full)
        tables = (
            learner.tables.weight_RD,
            learner.linear.evidence_R2K,
            *learner.branches.dense.parameters.values(),
        )
        plain_bytes = 4 * sum(tensor.numel() for tensor in tables)
        ne, exact_ne = (
            one.publication.evaluation.total.normalized_entropy for one in (self, exact)
        )
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
        } | memory.resident(full, learner.dense_bytes)

    def packed(self, base: int) -> bytes:
        """A delta to `base`, or a full checkpoint where that is 0, of all that was learned."""
        about = {
            "version": self._version + 1,
            "parent": self._version,
            "offsets": {},
            "created_s": 0.0,
        }
        return pack(*self.publication.checkpoint(self._trainer.status(), base=base, **about))


def _byte_claims(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    claims = []
    for kind in PRECISIONS:
        mine = [row for row in rows if row["precision"] == kind]
        worst = {
            key: max(row[key] for row in mine)
            for key in (
                "delta_of_full",
                "full_of_all",
                "full_of_touched",
                "compact_tables_of_touched",
            )
        }
        claims += [
            at_most(
                f"{name}, {kind}: a delta every 1,000 events over a full checkpoint",
                worst["delta_of_full"],
                0.1,
            ),
            at_most(
                f"{name}, {kind}: a full one, 90 % pruned, over all dense float32 rows",
                worst["full_of_all"],
                0.35,
            ),
            at_most(
                f"{name}, {kind}: the same over rows ever touched only",
                worst["full_of_touched"],
                0.25,
            ),
            at_most(
                f"{name}, {kind}: a scorer's compact tables over dense float32 rows ever touched",
                worst["compact_tables_of_touched"],
                0.25,
            ),
        ]
    return claims


class _Taken(NamedTuple):
    """Time that a block took."""

    wall_s: float
    processor_s: float

    @classmethod
    def now(cls) -> "_Taken":
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, started: "_Taken") -> "_Taken":
        return cls(*(now - then for now, then in zip(cls.now(), started, strict=True)))


def time_taken(quick: bool, recording: Path | None) -> Findings:
    """The price of publishing for an operator, with a core to spare and without.

    Two trainers learn the same events, block by block and in turns. One publishes to a Redis at the
    default settings, which includes that it scores what it has published, before each batch, and
    learns the mixture from that. The other does nothing of it. A block ends when all that it has
    begun is done: scored, packed, taken by Redis. Beside the time that passes there is the
    processor time of the process, all of its threads, which other work on the machine disturbs
    less.
    """
    stream = _stream(recording, quick)
    cores = sorted(os.sched_getaffinity(0))
    taken_s: dict[int, list[tuple[_Taken, _Taken]]] = {len(cores): [], 1: []}
    loop_s, publications = dict.fromkeys(taken_s, 0.0), dict.fromkeys(taken_s, 0)
    batches = _batches(recording, stream.events)
    plain = _trainer(stream.schema, 0, stream.events)
    publishing = _trainer(stream.schema, 0, stream.events)
    replica = publishing.add_replica(EVERY_EVENTS, evaluates_all=False)
    with (
        some_redis() as (redis, url),
        CheckpointStore.from_url(url) as store,
        closing(Publisher(replica, store, Telemetry())) as publisher,
    ):

        def learn(block: Sequence[EventBatch]) -> _Taken:
            started = _Taken.now()
            for batch in block:
                plain.step(batch)
            return _Taken.since(started)

        def learn_and_publish(block: Sequence[EventBatch], core_count: int) -> _Taken:
            started = _Taken.now()
            for batch in block:
                step = publishing.step(batch)
                before_s = time.perf_counter()
                publications[core_count] += publisher.publish_if_due(
                    step.move, publishing.status(), {}
                )
                publisher.settle(wait=False)
                loop_s[core_count] += time.perf_counter() - before_s
            replica.settle()
            publisher.settle()
            return _Taken.since(started)

        place = 0
        while block := _next_block(batches, _BLOCK_EVENTS):
            core_count = [len(cores), 1][place // 2 % 2]
            _run_on(cores[-core_count:])
            if place % 2:
                both_s = learn_and_publish(block, core_count), learn(block)
            else:
                both_s = (learn(block), learn_and_publish(block, core_count))[::-1]
            if publishing.learner.branches.sparse:
                place += 1
                taken_s[core_count].append(both_s)
        _run_on(cores)
    rows, claims = [], []
    for core_count, pairs in taken_s.items():
        cost = spread([ours.wall_s / without.wall_s - 1 for ours, without in pairs[1:]])
        processor = spread([one.processor_s / two.processor_s - 1 for one, two in pairs[1:]])
        row: dict[str, Any] = {"stream": stream.name, "cores": core_count}
        for which, times in zip(("publishing", "without"), zip(*pairs, strict=True), strict=True):
            block_s = median(taken.wall_s for taken in times)
            row[f"events_per_s_{which}"] = _BLOCK_EVENTS / block_s
        row |= {"cost": cost.median, "low": cost.low, "high": cost.high}
        row |= {
            "processor_cost": processor.median,
            "loop_ms_a_publication": 1e3 * loop_s[core_count] / publications[core_count],
            "pairs": len(pairs) - 1,
        }
        rows.append(row)
        text = (
            f"{stream.name}, {core_count} cores: publishing every 1,000 events over not publishing"
        )
        text += ", time taken from learning"
        claims.append(
            at_most(f"{text}, median of {len(pairs) - 1} pairs of blocks", cost.median, 0.05)
        )
    return Findings(rows, claims, {"block_events": _BLOCK_EVENTS, "redis": redis})


def _run_on(cores: Sequence[int]) -> None:
    """Every thread of this process."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def _stream(recording: Path | None, quick: bool) -> _Stream:
    if recording:
        name = recording.name.split(".")[0]
        return _Stream(name, propose_schema(recording), 60_000 if quick else 10**9)
    return _Stream("synthetic", SCHEMA, 24_000 if quick else 200_000)


def _batches(recording: Path | None, limit: int) -> Iterator[EventBatch]:
    if recording:
        chunks = (chunk.batch for chunk in read_recording(recording, propose_schema(recording)))
    else:
        made = generate(SyntheticConfig(events=limit, drifts=()), chunk_events=1_024)
        chunks = (table_to_batch(table, SCHEMA)[0] for table in made)
    return rebatch(chunks, TrainingConfig().batch_events, limit)


def _trainer(schema: Schema, seed: int, limit: int) -> Trainer:
    """Prunes once, to a tenth, early enough that most of the stream is learned sparse."""
    share = min(1.0, limit / 120_000)
    warmup, growing = int(share * _WARMUP_EVENTS), int(share * _PRUNING_EVENTS)
    pruning = PruningConfig(
        policy="static", budget=0.1, warmup_events=warmup, pruning_events=growing
    )
    return Trainer(
        TrainerConfig(
            schema=schema,
            model=LearnerConfig(seed=seed),
            pruning=pruning,
            drift=DriftConfig(),
            training=TrainingConfig(),
        )
    )


def _next_block(batches: Iterator[EventBatch], events: int) -> list[EventBatch]:
    """The next whole `events`; nothing where fewer are left."""
    block, taken = [], 0
    for batch in batches:
        block.append(batch)
        taken += len(batch)
        if taken >= events:
            return block
    return []
