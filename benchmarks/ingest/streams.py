"""The streams of the ingest benchmark: a wide one, and a narrow one.

In: a number of events, and a recording, if any. Out: tables of events and their schemas.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.recordings.writing import batch_to_table
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig

WIDE = Schema(
    categorical=tuple(f"c{at:02}" for at in range(26)),
    numeric=tuple(f"n{at:02}" for at in range(13)),
)


class Stream(NamedTuple):
    """Events to be ingested."""

    name: str
    schema: Schema
    table: pa.Table


def streams(recording: Path | None, events: int) -> Iterator[Stream]:
    """The wide one, and a narrow one."""
    yield Stream("wide", WIDE, wide_events(events))
    if recording:
        schema = propose_schema(recording)
        batches = [chunk.batch for chunk in read_recording(recording, schema, limit_events=events)]
        yield Stream(recording.stem, schema, batch_to_table(EventBatch.concat(batches), schema))
    else:
        chunks = generate(SyntheticConfig(events=events, drifts=()))
        yield Stream("synthetic", SCHEMA, pa.concat_tables(chunks).slice(0, events))


def wide_events(count: int) -> pa.Table:
    """Clicks that follow a few of 26 ids, between 10 and a million values each, and of 13
    numerics."""
    rng = np.random.default_rng(0)
    sizes = np.logspace(1, 6, len(WIDE.categorical)).astype(np.int64)
    ids_FB = (rng.random((len(sizes), count)) ** 2 * sizes[:, None]).astype(np.int64)
    numerics_NB = rng.normal(size=(len(WIDE.numeric), count)).round(4)
    logits_B = (
        numerics_NB[0]
        + rng.normal(size=sizes[0])[ids_FB[0]]
        + rng.normal(size=sizes[1])[ids_FB[1]]
        - 1
    )
    columns = {
        WIDE.label: (rng.random(count) < 1 / (1 + np.exp(-logits_B))).astype(np.float32),
        WIDE.timestamp: 1_700_000_000_000 + np.arange(count),
    }
    columns |= {
        name: [f"{value:08x}" for value in row]
        for name, row in zip(WIDE.categorical, ids_FB, strict=True)
    }
    return pa.table(columns | dict(zip(WIDE.numeric, numerics_NB, strict=True)))
