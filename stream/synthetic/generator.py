"""Seeded click streams with drifts at given points and known click probabilities.

In: a `SyntheticConfig`, with drifts in the language of `drift_plan`. Out: Arrow tables drawn from a
`World`, the same bytes whatever the chunk size, over a million events a second; and the truth about
them: where they drift, and the entropy of the true click probabilities, which is the least log loss
that anyone can reach.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.stream.errors import ConfigError
from niwaki.stream.files.content import rechunk, translated_file_errors
from niwaki.stream.recordings.writing import write_recording
from niwaki.stream.synthetic.world import SyntheticConfig, World


class _Truth(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about a generated stream, as it is written beside it."""

    drifts: list[dict[str, Any]]
    base_rate: float
    """Mean true click probability."""
    bayes_log_loss: float
    config: SyntheticConfig


def drift_points(config: SyntheticConfig) -> list[dict[str, Any]]:
    """The true drifts as plain data: the fields of `DriftPoint` that apply."""
    return [msgspec.to_builtins(point) for point in config.plan()]


def generate(config: SyntheticConfig, *, chunk_events: int = 65_536) -> Iterator[pa.Table]:
    """The stream: ts, label and the columns of `SCHEMA`, in tables of `chunk_events` events, the
    last one excepted."""
    world = World(config)
    tables = (world.table(world.draw(block)) for block in range(world.blocks))
    for table in rechunk(tables, chunk_events):
        yield table.combine_chunks()


def true_probabilities(config: SyntheticConfig) -> np.ndarray:
    """float64 (events,): the probability with which each event was clicked, given all that is
    visible of it."""
    world = World(config)
    return np.concatenate([world.draw(block).probability_B for block in range(world.blocks)])


def bayes_log_loss(probabilities: np.ndarray) -> float:
    """Mean log loss, in nats, that someone expects who knows the true `probabilities`: the least
    there is."""
    p = np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean())


def write_stream(
    config: SyntheticConfig, path: Path, *, on_events: Callable[[int], object] = lambda events: None
) -> None:
    """Write the stream to `path`, whose name says the format, and the truth to
    `drifts_path(path)`."""
    with write_recording(path) as recording:
        for table in generate(config):
            recording.write(table)
            on_events(len(table))
    probabilities = true_probabilities(config)
    truth = _Truth(
        drifts=drift_points(config),
        base_rate=float(probabilities.mean()),
        bayes_log_loss=bayes_log_loss(probabilities),
        config=config,
    )
    with translated_file_errors(drifts_path(path)):
        drifts_path(path).write_bytes(msgspec.json.format(msgspec.json.encode(truth)) + b"\n")


def drifts_path(path: Path) -> Path:
    """Path of the truth about a generated stream: FILE.drifts.json."""
    return path.with_name(path.name + ".drifts.json")


def read_drift_points(path: Path) -> list[dict[str, Any]]:
    """The true drifts of the recording at `path`; none where nothing is known of them."""
    beside = drifts_path(path)
    if not beside.exists():
        return []
    try:
        return msgspec.json.decode(beside.read_bytes(), type=_Truth).drifts
    except (msgspec.DecodeError, OSError) as error:
        raise ConfigError(str(beside), f"can't be read ({error})") from error
