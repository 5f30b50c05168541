"""The cost of snapshots to the loop: its longest stop, and its rate.

One trainer with about 100 MB of state learns in rounds. In each round it learns for some seconds
without a snapshot, then as long with one that is written in the loop, then as long with one that is
written beside it, as `niwaki train` does. The rows of the linear expert's table are filled with
numbers at random places: learning so many would take hours.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from benchmarks.frame import Findings, at_least, at_most, main, spread
from niwaki.model.features.schema import EventBatch
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.second_thread import tensor_threads
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshots.contents import Place, save_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.snapshots.writer import SnapshotWriter
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer, TrainerConfig

WAYS = ("none", "in the loop", "beside the loop")
PLACE = Place(topic="events", positions=Positions(), version=1)
_ROW_BYTES = 40
"""Of a row of the linear expert in a snapshot: number, evidence, last event."""


def measure(quick: bool) -> Findings:
    """Alternate the ways, round by round."""
    rounds, seconds = (1, 0.5) if quick else (7, 10.0)
    state_bytes = 5_000_000 if quick else 85_000_000
    trainer = Trainer(TrainerConfig(schema=SCHEMA))
    training = trainer.config.training
    tensor_threads(training.threads)
    replica = trainer.add_replica(training.publish_every_events, evaluates_all=False)
    tables = generate(SyntheticConfig(events=40_960, drifts=()), chunk_events=1_024)
    decoded = (table_to_batch(table, SCHEMA)[0] for table in tables)
    batches = list(rebatch(decoded, training.batch_events))
    for batch in batches:
        trainer.step(batch)
    _fill(trainer, state_bytes // _ROW_BYTES)
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="niwaki-") as folder:
        config = SnapshotConfig(directory=folder)
        parts = config, trainer, replica
        with closing(SnapshotWriter(*parts, Telemetry())) as writer:
            begin: dict[str, Callable[[], object]] = {
                "none": lambda: None,
                "in the loop": lambda: save_snapshot(*parts, PLACE),
                "beside the loop": lambda: writer.begin(PLACE),
            }
            stream = cycle(batches)
            for _ in range(rounds):
                for way in WAYS:
                    replica.refresh()
                    replica.settle()
                    found = _learn(trainer, replica, stream, begin[way], seconds)
                    writer.settle(wait=True)
                    for measured, value in found.items():
                        taken[way, measured].append(value)
        newest = max(Path(folder).iterdir())
        size_bytes = newest.stat().st_size
    rows = [
        {"snapshot": way, "measure": measured} | spread(values)._asdict()
        for (way, measured), values in taken.items()
    ]
    rate = [a / b for a, b in zip(*(taken[way, "events per s"] for way in WAYS[::2]), strict=True)]
    setting = {"snapshot_mb": size_bytes / 1e6, "rounds": rounds, "seconds_a_round": seconds}
    beside = taken["beside the loop", "stop ms"]
    return Findings(
        rows,
        [
            at_most("longest stop for a snapshot beside the loop, ms", max(beside), 50.0),
            at_least(
                "a stop in the loop takes this many times as long",
                median(taken["in the loop", "stop ms"]) / median(beside),
                5.0,
            ),
            at_most(
                "events per second without snapshots, over those with one every 10 s",
                median(rate),
                1.05,
            ),
        ],
        setting,
    )


def _fill(trainer: Trainer, count: int) -> None:
    """Give `count` rows of the linear expert some evidence."""
    linear, generator = trainer.learner.linear, torch.Generator().manual_seed(0)
    rows = torch.randperm(len(linear.learned_R) - 1, generator=generator)[:count]
    rows = rows[linear.learned_R[rows] == 0]
    linear.evidence_R2K[rows] = torch.rand(len(rows), *linear.evidence_R2K.shape[1:])
    linear.learned_R[rows] = 1
    linear.touched_rows += len(rows)


def _learn(
    trainer: Trainer,
    replica: ServedReplica,
    stream: Iterator[EventBatch],
    begin: Callable[[], object],
    seconds: float,
) -> dict[str, float]:
    """Begin a snapshot, and learn for so long. Stops in milliseconds, the trainer's own processor
    time, and the rate."""
    started_s, busy_s = time.perf_counter(), time.process_time()
    begin()
    now_s = time.perf_counter()
    stop_s, longest_s, events = now_s - started_s, 0.0, 0
    while now_s - started_s < seconds:
        batch = next(stream)
        if replica.due(trainer.step(batch).move):
            replica.refresh()
        before_s, now_s = now_s, time.perf_counter()
        longest_s = max(longest_s, now_s - before_s)
        events += len(batch)
    return {
        "stop ms": 1e3 * stop_s,
        "longest step ms": 1e3 * longest_s,
        "cpu us per event": 1e6 * (time.process_time() - busy_s) / events,
        "events per s": events / (now_s - started_s),
    }


if __name__ == "__main__":
    main("pipeline.snapshots", measure)
