"""Small seeded click streams for tests: two fields and two numerics that matter, one field that
does not."""

import numpy as np
import pyarrow as pa
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import LIST, EventBatch, Schema

SCHEMA = Schema(categorical=("user", "item", "noise"), numeric=("age", "price"))
SMALL = LearnerConfig(
    table_rows=512,
    pair_rows=4096,
    max_list_pairs=4,
    pair_trial_events=512,
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


LISTS = Schema(
    categorical=("user", "item", "last"),
    numeric=("age",),
    lists=("history", "tags"),
    shares={"history": "item", "last": "item"},
)
"""Events with lists: `history` has items, and so has the column `last`; `tags` has weights."""


def list_events(count: int, *, seed: int = 0, longest: int = 6) -> EventBatch:
    """`count` events; clicks follow the tastes that a history shows. Some lists are missing, and
    some are empty."""
    rng, taste = np.random.default_rng(seed), np.random.default_rng(7)
    vectors, likes = taste.normal(size=(30, 3)), taste.normal(size=12)
    item = rng.integers(0, 30, count)
    histories, tags, score = [], [], np.zeros(count)
    for b in range(count):
        seen = rng.integers(0, 30, rng.integers(0, longest + 1)).tolist()
        marks = [
            (int(tag), float(rng.integers(1, 4)))
            for tag in rng.choice(12, rng.integers(0, 3), replace=False)
        ]
        if seen:
            score[b] += 3 * float(vectors[seen].mean(0) @ vectors[item[b]])
        total = sum(weight for _, weight in marks)
        if total:
            score[b] += sum(weight * likes[tag] for tag, weight in marks) / total
        histories.append(None if rng.random() < 0.05 else [(f"i{one}", 1.0) for one in seen])
        tags.append(None if rng.random() < 0.05 else [(f"t{one}", w) for one, w in marks])
    last = [None if not one else one[-1][0] for one in histories]
    columns = [f"u{one}" for one in rng.integers(0, 40, count)], [f"i{one}" for one in item], last
    return EventBatch(
        (rng.random(count) < 1 / (1 + np.exp(-score))).astype(np.float32),
        1_700_000_000 + np.arange(count) * 0.5,
        tuple(pa.array(column, pa.string()) for column in columns),
        rng.normal(size=(count, 1)).astype(np.float32),
        (pa.array(histories, LIST), pa.array(tags, LIST)),
    )
