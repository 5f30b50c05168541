"""Offline prequential comparison: the same recorded events, the same learner, several policies.

In: a recorded stream. Out: for each policy, how good the predictions of a scorer would have been at
each publication interval, and what learning cost. No Kafka, no Redis, and the very `Trainer` that
the live loop drives.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from niwaki.model.errors import LearnError
from niwaki.model.evaluation import Evaluation
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policies import POLICIES, Static
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.rejects import Tally
from niwaki.stream.offline.history import History
from niwaki.stream.offline.predictions import PredictionsFile
from niwaki.stream.offline.words import listed
from niwaki.stream.recordings.chunks import rebatch
from niwaki.stream.recordings.recording import Recording
from niwaki.stream.training.stopwatch import Stopwatch, shares
from niwaki.stream.training.trainer import Trainer, TrainerConfig


class Survey(NamedTuple):
    """The findings of one reading of a recording."""

    events: int
    constant_ne: float
    """Normalized entropy of a prediction of the click rate before each event: the baseline of every
    model."""


def survey(
    recording: Recording,
    schema: Schema,
    tally: Tally,
    limit_events: int | None = None,
    *,
    on_bytes: Callable[[int], object] | None = None,
) -> Survey:
    """Read the recording once. `tally` takes what was left out. Raises `ConfigError` where that is
    too much, or where there is nothing to learn."""
    evaluation = Evaluation()
    for chunk in recording.read(schema, limit_events=limit_events, on_bytes=on_bytes):
        labels_B = chunk.batch.labels_B
        clicks_B = evaluation.label_sum + np.cumsum(labels_B, dtype=np.float64) - labels_B
        rates_B = (clicks_B + 0.5) / (evaluation.events + np.arange(len(labels_B)) + 1)
        evaluation.update(np.log(rates_B / (1 - rates_B)), labels_B)
        tally.add(len(labels_B), chunk.rejects, chunk.odd)
    tally.check(recording.name, recording.config.max_rejected_ratio)
    if evaluation.label_sum in (0, evaluation.events):
        value = int(evaluation.label_sum > 0)
        rule = f"all {evaluation.events:,} labels are {value}: there is nothing to learn"
        raise ConfigError(recording.name, f"{rule}; --label names another column")
    return Survey(evaluation.events, evaluation.normalized_entropy)


def backtest_policy(
    batches: Iterable[EventBatch],
    config: TrainerConfig,
    *,
    publish_every: Sequence[int],
    predictions: PredictionsFile | None = None,
    on_events: Callable[[int], None] = lambda events: None,
) -> tuple[dict[str, Any], History]:
    """Run one policy over `batches`. The first of `publish_every` is the interval that the other
    served measures are of, and the `predictions` that are written."""
    trainer = Trainer(config)
    replicas = {every: trainer.add_replica(every) for every in publish_every}
    served = replicas[publish_every[0]]
    history = History(trainer, served)
    rows = predictions.of_policy(config.pruning.policy, served) if predictions else None
    started_s, watch = time.perf_counter(), Stopwatch()
    for batch in batches:
        watch.lap("read")
        version = served.count
        step = trainer.step(batch)
        if step.quarantined:  # what a recording shows would not be what it says
            raise LearnError(step.quarantined[0].reason)
        watch.add(step.seconds)
        for replica in replicas.values():
            if replica.due(step.move):
                replica.refresh()
        watch.lap("publish")
        history.stepped(step)
        if rows is not None:
            rows.add(batch, step.logits_B, version)
        on_events(len(batch))
    if rows is not None:
        rows.finish()
    elapsed_s = time.perf_counter() - started_s
    return {
        "ne": trainer.prequential.total.normalized_entropy,
        "served_ne": {
            str(every): replica.evaluation.total.normalized_entropy
            for every, replica in replicas.items()
        },
        "auc": served.evaluation.total.auc,
        "calibration": served.evaluation.total.calibration,
        "sparsity_ratio": served.sparsity_ratio,
        "train_cost_ratio": trainer.learner.learned_multiply_adds
        / (trainer.events * trainer.learner.branches.dense_cost),
        "events_per_s": trainer.events / elapsed_s,
        "drifts": [drift["event"] for drift in history.drifts],
        "prunings": [pruning["event"] for pruning in history.prunings],
        "publications": served.count,
        "profile": shares(watch.seconds),
    }, history


def backtest(
    recording: Recording,
    config: TrainerConfig,
    found: Survey,
    *,
    policies: Sequence[str],
    publish_every: Sequence[int],
    limit_events: int | None = None,
    predictions: PredictionsFile | None = None,
    on_events: Callable[[int], None] = lambda events: None,
) -> dict[str, Any]:
    """Results of every policy over the same recorded events. Events that break the schema are left
    out, as in a trainer. `found`: what `survey` has found with the same limit. `predictions`: takes
    the predictions of each policy."""

    def batches() -> Iterator[EventBatch]:
        chunks = recording.read(config.schema, limit_events=limit_events)
        return rebatch((chunk.batch for chunk in chunks), config.training.batch_events)

    results = {}
    for policy in policies:
        pruning = msgspec.structs.replace(config.pruning, policy=policy)
        # Only the measures are kept: the history has a trainer, and one at a time is enough.
        results[policy] = backtest_policy(
            batches(),
            msgspec.structs.replace(config, pruning=pruning),
            publish_every=publish_every,
            predictions=predictions,
            on_events=on_events,
        )[0]
    return {"events": found.events, "constant_ne": found.constant_ne, "policies": results}


def unfinished(result: Mapping[str, Any], pruning: PruningConfig) -> list[str]:
    """A note on the policies in a backtest's result that would have pruned, had there been more
    events."""
    waiting = [
        policy
        for policy, row in result["policies"].items()
        if issubclass(POLICIES[policy], Static) and not row["prunings"]
    ]
    if not waiting:
        return []
    begins = f"pruning begins after {pruning.warmup_events:,} (pruning.warmup_events)"
    takes = f"takes at least {pruning.pruning_events:,} (pruning.pruning_events)"
    few = f"{result['events']:,} events are too few for {listed(waiting)}"
    return [f"{few}: {begins} and {takes}"]
