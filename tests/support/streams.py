"""Small seeded click streams for tests: two fields and two numerics that matter, one field that
does not."""

import numpy as np
import pyarrow as pa
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import EventBatch, Schema

SCHEMA = Schema(categorical=("user", "item", "noise"), numeric=("age", "price"))
SMALL = LearnerConfig(
    table_rows=512,
    pair_rows=4096,
    top=(32, 16),
    bottom=(8,),
    embedding_dim=4,
    network_rate=0.01,
    embedding_rate=0.1,
)


def click_events(
    count: int, *, seed: int = 0, flipped: bool = False, missing: float = 0.05
) -> EventBatch:
    """`count` events; clicks follow user x item tastes, which `flipped` turns round."""
    rng = np.random.default_rng(seed)
    user, item, noise = (
        rng.integers(0, 40, count),
        rng.integers(0, 30, count),
        rng.integers(0, 1000, count),
    )
    numerics = rng.normal(size=(count, 2)).astype(np.float32) * [1, 100]
    taste = np.random.default_rng(7)
    score = (
        2.5 * (taste.normal(size=(40, 3))[user] * taste.normal(size=(30, 3))[item]).sum(1)
        + numerics[:, 0]
    )
    labels = rng.random(count) < 1 / (1 + np.exp(score if flipped else -score))
    numerics[rng.random(numerics.shape) < missing] = np.nan
    columns = [
        pa.array([f"{name}{v}" for v in values])
        for name, values in (("u", user), ("i", item), ("n", noise))
    ]
    columns[2] = pa.array(
        [
            None if hole else v
            for v, hole in zip(columns[2].to_pylist(), rng.random(count) < missing, strict=True)
        ]
    )
    times_s = 1_700_000_000 + np.arange(count) * 0.5
    return EventBatch(
        labels.astype(np.float32),
        times_s,
        tuple(c.cast(pa.string()) for c in columns),
        numerics.astype(np.float32),
    )


def differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bit for bit in both; NaN is NaN."""
    assert first.keys() == second.keys()
    return [
        name
        for name in first
        if not np.array_equal(
            first[name].numpy(), second[name].numpy(), equal_nan=first[name].is_floating_point()
        )
    ]
