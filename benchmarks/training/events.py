"""The events of the training benchmark: made up, with 13 numerics and 26 fields.

In: a number of events and a seed. Out: a stream that all systems learn in one order.
"""

import numpy as np
import pyarrow as pa

from benchmarks.baselines.stream import Stream
from niwaki.model.features.schema import EventBatch, Schema

FIELDS = 26
NUMERICS = 13
ROWS = 1_000_000
SCHEMA = Schema(
    categorical=tuple(f"c{i}" for i in range(FIELDS)),
    numeric=tuple(f"n{i}" for i in range(NUMERICS)),
    timestamp=None,
)


def recorded(events: int, seed: int = 0) -> Stream:
    """Made-up events: a click depends on each value by itself, on four pairs of fields, and on the
    numerics, one of them squared. Fields have from 10 to 30,000 values, a few of them frequent."""
    rng = np.random.default_rng(seed)
    counts_F = np.geomspace(10, 30_000, FIELDS).astype(int)
    values_BF = (counts_F * rng.random((events, FIELDS)) ** 3).astype(np.int64)
    numerics_BN = rng.normal(size=(events, NUMERICS)).astype(np.float32)
    logits_B = (
        numerics_BN @ rng.normal(size=NUMERICS) * 0.15 + 0.3 * (numerics_BN[:, 0] ** 2 - 1) - 1.2
    )
    for f, count in enumerate(counts_F):
        logits_B += 0.25 * rng.normal(size=count)[values_BF[:, f]]
    for f in range(0, 16, 4):
        tastes = [rng.normal(size=(counts_F[g], 4))[values_BF[:, g]] for g in (f, f + 1)]
        logits_B += 0.25 * (tastes[0] * tastes[1]).sum(1)
    labels_B = (rng.random(events) < 1 / (1 + np.exp(-logits_B))).astype(np.float32)
    columns = tuple(pa.array(column).cast(pa.string()) for column in values_BF.T)
    return Stream("made up", SCHEMA, EventBatch(labels_B, np.zeros(events), columns, numerics_BN))
