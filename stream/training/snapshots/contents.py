"""The content of a snapshot: model, phase, detectors and Kafka positions as one.

In: a trainer, its publication and the positions after its last batch. Out: a file that a restart
continues from, event for event. It holds no pickle. A snapshot that does not fit the config is
refused with the settings that differ: going on without it would forget or repeat events, so a
person must decide.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.errors import CheckpointError
from niwaki.model.experts import names_of_experts, tensors_of_experts
from niwaki.model.features.schema import Schema
from niwaki.model.published.checkpoint import parts_as, unpack_as
from niwaki.pruning.errors import shorten
from niwaki.stream.errors import ConfigError
from niwaki.stream.kafka.reader import Positions
from niwaki.stream.training.changed_schema import adapted, check_change, describe_change
from niwaki.stream.training.past import PastState
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshots.files import (
    Damaged,
    SnapshotConfig,
    SnapshotFiles,
    write_synced,
)
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainerState

log = logging.getLogger("niwaki")
Tensors = dict[str, torch.Tensor]
_LEARNER, _REPLICA = "learner.", "replica."


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
    settings: dict[str, Any] = {}
    """The sections of the config that may change from one start to the next, as plain data."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The place of a snapshot in the stream, and in the series of publications."""

    topic: str
    positions: Positions
    version: int
    """The last version that had been published."""
    past: PastState | None = None
    """The progress through a recording; None: there is none."""


def save_snapshot(
    config: SnapshotConfig, trainer: Trainer, replica: ServedReplica, place: Place
) -> Path:
    """Write a snapshot and wait for the disk; returns its path. Either it is there in full, or
    those before are. Raises `OSError`."""
    files = SnapshotFiles(config)
    unfinished = files.unfinished(os.getpid())
    write_snapshot(unfinished, trainer, replica.state(), place)
    return files.finish(unfinished)


def write_snapshot(
    path: Path, trainer: Trainer, replica: Mapping[str, np.ndarray], place: Place
) -> None:
    """Write a snapshot to `path`, synced. `replica`: the state of the published series. Raises
    `OSError`."""
    state, tensors = trainer.state()
    tensors |= {f"{_REPLICA}{name}": torch.from_numpy(array) for name, array in replica.items()}
    header = SnapshotHeader(
        schema=trainer.learner.schema,
        model=trainer.learner.config,
        trainer=state,
        topic=place.topic,
        positions=place.positions,
        version=place.version,
        past=place.past,
        settings=_settings(trainer.config),
    )
    write_synced(path, parts_as(header, tensors))


def load_snapshot(
    config: SnapshotConfig, trainer: Trainer, replica: ServedReplica, topic: str
) -> SnapshotHeader | None:
    """Bring `trainer` and its `replica` to where the newest whole snapshot was taken; None if there
    is none. Damaged ones that are newer are set aside. One of another schema is taken over as
    `changed_schema` says, unless the config is strict.

    Raises `ConfigError` if it does not fit the config, or if there are snapshots and none is whole.
    """
    files, damaged = SnapshotFiles(config), {}
    for path in files.paths():
        try:
            data = files.read(path)
            header, tensors = unpack_as(data, SnapshotHeader)
        except Damaged as error:
            damaged[path] = str(error)
        except OSError as error:
            damaged[path] = error.strerror or str(error)
        except CheckpointError as error:
            if path.name == "snapshot.niwaki" and "damaged" in error.rule:
                damaged[path] = str(error)
                continue
            rule = f"{path} is whole, but not for this program ({error}); move the folder away"
            raise ConfigError("snapshot.directory", f"{rule} to start anew") from error
        else:
            _restore(config, header, tensors, trainer, replica, topic)
            for other, reason in damaged.items():
                moved = files.set_aside(other)
                log.warning("%s is damaged (%s): set aside as %s", other, reason, moved.name)
            if damaged:
                log.warning("going on from the older snapshot %s", path)
            return header
    if damaged:
        path, reason = next(iter(damaged.items()))
        others = f", and neither can {len(damaged) - 1} older" if len(damaged) > 1 else ""
        raise ConfigError(
            "snapshot.directory",
            f"{path} can't be read ({reason}){others}; move the folder away to start anew",
        )
    files.check_not_only_damaged()
    return None


def _restore(
    config: SnapshotConfig,
    header: SnapshotHeader,
    tensors: Tensors,
    trainer: Trainer,
    replica: ServedReplica,
    topic: str,
) -> None:
    learner = trainer.learner
    experts = names_of_experts(name.removeprefix(_LEARNER) for name in tensors)
    fixed = {
        "model": (_plain(header.model), _plain(learner.config)),
        "pruning": (
            _unit(header.trainer.learner.branches.block),
            _unit(learner.branches.dense.network.shape.block),
        ),
        "kafka": ({"topic": header.topic}, {"topic": topic}),
    }
    own = list(names_of_experts(tensors_of_experts(learner.further)))
    # In this order: with other experts, models of equal settings are different ones, too.
    differing = dict(differences({"EXPERTS": list(experts)}, {"EXPERTS": own}))
    for section, (before, now) in fixed.items():
        differing |= differences(before, now, f"{section}.")
    changed = header.schema != learner.schema
    if changed and config.strict_schema:
        change = describe_change(header.schema, learner.schema)
        differing["schema"] = f"differs from that of the snapshot ({change})"
    if differing:
        first, *others = differing.items()
        rest = "".join(f"; {name}: {values}" for name, values in others)
        way = f"set that back, or move the folder {config.directory} away to start anew"
        raise ConfigError(first[0], f"{first[1]}{rest}; {way}")
    if changed:
        tensors = _for_other_schema(tensors, header, trainer)
    trainer.restore(header.trainer, tensors)
    published = {
        name: tensor.numpy() for name, tensor in tensors.items() if name.startswith(_REPLICA)
    }
    replica.restore({name.removeprefix(_REPLICA): array for name, array in published.items()})
    _tell_changes(header, trainer.config)


def _tell_changes(header: SnapshotHeader, config: TrainerConfig) -> None:
    if not header.settings:
        return
    found = differences(header.settings, _settings(config))
    if told := "; ".join(f"{name}: {values}" for name, values in found):
        log.info("changed since the snapshot, and taken as in the config: %s", told)


def _settings(config: TrainerConfig) -> dict[str, Any]:
    sections = {"pruning": config.pruning, "drift": config.drift, "training": config.training}
    return {name: _plain(section) for name, section in sections.items()}


def _plain(section: msgspec.Struct) -> dict[str, Any]:
    """A section as JSON has it, so that one that was read again is equal."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(section))
    return plain


def _unit(block: tuple[int, int] | None) -> dict[str, Any]:
    """The settings of the unit that is pruned. `block`: its outputs and inputs."""
    unit = "neuron" if block is None else "weight" if tuple(block) == (1, 1) else "block"
    return {"unit": unit} | ({"block": list(block)} if block and unit == "block" else {})


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """The settings of a snapshot that the config has otherwise: name, and both values in words."""
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        else:
            values = shorten(old), shorten(new)
            yield f"{prefix}{name}", f"{values[0]} in the snapshot, {values[1]} in the config"


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
