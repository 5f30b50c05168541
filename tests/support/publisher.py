"""A small learner that makes a checkpoint whenever a test asks for one, each with other weights
than the last."""

import time
from typing import Any

import msgspec

from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch
from niwaki.model.learner import Learner
from niwaki.model.published.checkpoint import Header, TrainingStatus, pack, unpack
from niwaki.model.published.served import PublishedModel
from niwaki.model.published.tensors import Export
from tests.support.streams import SCHEMA, SMALL, click_events


class Publisher:
    """Learns a little before each checkpoint, and remembers what every version predicts."""

    def __init__(self, **of_learner: object) -> None:
        """`of_learner`: for `Learner`, beside schema and config."""
        self.learner = Learner(SCHEMA, SMALL, **of_learner)
        self._changes = self.learner.track_dirty_rows()
        self.events = click_events(64, seed=99)
        """Always the same events to score."""
        self.answers: dict[int, list[float]] = {}
        """What each version made so far predicts for `events`."""

    def checkpoint(self, version: int, *, base: int = 0, **changes: object) -> tuple[Header, bytes]:
        """A checkpoint, or a delta to the one made before it that goes back to the full one `base`.
        `changes`: fields of its header that are not as they should be."""
        learner = self.learner
        batch = click_events(64, seed=version)
        learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
        full = learner.export(learner.mixture.weights)
        changed = learner.export(learner.mixture.weights, self._changes.rows())
        tensors = changed.tensors if base else full.tensors
        self._changes.clear(learner.events)
        header = _header(learner, full, version, created_s=time.time())
        self.answers[version] = (
            PublishedModel.from_checkpoint(header, full.tensors).predict(self.events).tolist()
        )
        header = msgspec.structs.replace(header, base=base, **changes)
        return header, pack(header, tensors)

    def prune(self) -> None:
        """Cut the network down, so that the next checkpoint has another shape."""
        learner = self.learner
        learner.branches.prune()
        for step in range(20):
            batch = click_events(64, seed=1000 + step)
            learner.learn(learner.encoder.encode(batch), Outcomes.of(batch), 0.3, table_ratio=0.5)
        learner.branches.cut()


def published(learner: Learner, version: int, base: int = 0, rows=None) -> tuple[Header, dict]:
    """A checkpoint, as it comes out of its bytes."""
    made = learner.export(learner.mixture.weights, rows)
    header = _header(learner, made, version, base=base)
    return unpack(pack(header, made.tensors))


def _header(learner: Learner, made: Export, version: int, **about: Any) -> Header:
    """The header of a version that follows the one before it."""
    return Header.of(
        learner.description(),
        TrainingStatus("dense", "adaptive", 0.1),
        shape=made.shape,
        version=version,
        parent=version - 1,
        **about,
    )


def rows(batch: EventBatch) -> list[dict[str, object]]:
    """The events of `batch` as a client sends them: missing values left out."""
    columns = {
        name: column.to_pylist()
        for name, column in zip(SCHEMA.categorical, batch.categorical, strict=True)
    }
    columns |= {name: batch.numerics_BN[:, i].tolist() for i, name in enumerate(SCHEMA.numeric)}
    events = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return [{name: v for name, v in event.items() if v is not None and v == v} for event in events]
