"""The learner's snapshot on disk: model, phase, detectors and Kafka positions in one file.

In: a trainer, its publication and the positions after its last batch. Out: a file that a restart
continues from, event for event. The file is written beside its name, synced and renamed, so that a
crash at any moment leaves the one before. It holds no pickle.
"""

import logging
import os
from pathlib import Path

import msgspec
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.errors import CheckpointError
from niwaki.model.experts import names_of_experts, tensors_of_experts
from niwaki.model.features.schema import Schema
from niwaki.model.published.checkpoint import pack_as, unpack_as
from niwaki.pruning.errors import RuleError
from niwaki.stream.errors import ConfigError
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.training.changed_schema import adapted, check_change, describe_change
from niwaki.stream.training.past import PastState
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.trainer import Trainer, TrainerState

log = logging.getLogger("niwaki")
Tensors = dict[str, torch.Tensor]
_LEARNER, _REPLICA = "learner.", "replica."


class SnapshotConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Place and interval of snapshots (the `[snapshot]` section)."""

    directory: str = "niwaki-snapshots"
    """Folder of the snapshot file; made if it is not there."""
    every_s: float = 60.0
    """Seconds from one snapshot to the next, > 0; it is taken after a publication. One is also
    taken after that of a newly cut network, and at the end."""
    strict_schema: bool = False
    """True: a snapshot of another schema stops the trainer. False: the model goes on with what both
    schemas know."""

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise RuleError("every_s", "must be greater than 0", self.every_s)


class SnapshotHeader(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Header of a snapshot."""

    schema: Schema
    model: LearnerConfig
    trainer: TrainerState
    topic: str
    positions: Positions
    version: int
    """The last version that had been published."""
    past: PastState | None = None
    """The recording that was learned before the topic, or is being learned; None: none."""


def snapshot_path(config: SnapshotConfig) -> Path:
    """The snapshot's file, which may be there or not."""
    return Path(config.directory) / "snapshot.niwaki"


def save_snapshot(
    config: SnapshotConfig,
    trainer: Trainer,
    replica: ServedReplica,
    topic: str,
    positions: Positions,
    version: int,
    past: PastState | None = None,
) -> Path:
    """Write the snapshot; returns its path. Either it is there in full, or the one before is."""
    state, tensors = trainer.state()
    tensors |= {
        f"{_REPLICA}{name}": torch.from_numpy(array) for name, array in replica.state().items()
    }
    learner = trainer.learner
    header = SnapshotHeader(
        schema=learner.schema,
        model=learner.config,
        trainer=state,
        topic=topic,
        positions=positions,
        version=version,
        past=past,
    )
    directory = Path(config.directory)
    directory.mkdir(parents=True, exist_ok=True)
    path, unfinished = snapshot_path(config), directory / "snapshot.unfinished"
    with open(unfinished, "wb") as file:
        file.write(pack_as(header, tensors))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)
    return path


def load_snapshot(
    config: SnapshotConfig, trainer: Trainer, replica: ServedReplica, topic: str
) -> SnapshotHeader | None:
    """Bring `trainer` and its `replica` to where the snapshot was taken; None if there is none.
    One of another schema is taken over as `changed_schema` says, unless the config is strict.
    Raises `ConfigError` if it belongs to another model or topic or to other further experts, or is
    damaged: going on without it would forget or repeat events, so a person must
    decide."""
    path = snapshot_path(config)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        header, tensors = unpack_as(data, SnapshotHeader)
    except CheckpointError as error:
        raise ConfigError(
            "snapshot.directory", f"{path} can't be read ({error}); move it away to start anew"
        ) from error
    learner = trainer.learner
    block = learner.branches.dense.network.shape.block
    experts = names_of_experts(name.removeprefix(_LEARNER) for name in tensors)
    changed = header.schema != learner.schema
    agrees = {
        "schema": not (changed and config.strict_schema),
        "model": header.model == learner.config,
        "pruning.unit": header.trainer.learner.branches.block == block,
        "kafka.topic": header.topic == topic,
        "EXPERTS": experts == names_of_experts(tensors_of_experts(learner.further)),
    }
    for section, holds in agrees.items():
        if not holds:
            raise ConfigError(
                section, f"differs from that of the snapshot {path}; move it away to start anew"
            )
    if changed:
        tensors = _for_other_schema(tensors, header, trainer)
    trainer.restore(header.trainer, tensors)
    published = {
        name: tensor.numpy() for name, tensor in tensors.items() if name.startswith(_REPLICA)
    }
    replica.restore({name.removeprefix(_REPLICA): array for name, array in published.items()})
    return header


def _for_other_schema(tensors: Tensors, header: SnapshotHeader, trainer: Trainer) -> Tensors:
    """The tensors of a snapshot for a trainer of another schema. Events that were not yet looked at
    for drift are left out of that."""
    learner, old = trainer.learner, header.schema
    check_change(old, learner.schema, learner.branches.dense.network.shape.block)
    own = {
        name.removeprefix(_LEARNER): tensor
        for name, tensor in tensors.items()
        if name.startswith(_LEARNER)
    }
    others = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith((_LEARNER, "unchecked."))
    }
    moved = adapted(own, old, learner)
    log.info("the schema has changed (%s): the model goes on", describe_change(old, learner.schema))
    return others | {f"{_LEARNER}{name}": tensor for name, tensor in moved.items()}
