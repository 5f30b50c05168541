"""The benchmark of columns of further kinds measures what it says."""

import numpy as np
import pytest

from benchmarks.columns.__main__ import (
    BUDGETS,
    PAIRS,
    Sampling,
    cost,
    history_mb,
    paired,
    sampled,
    seam,
    variants,
    worth,
)
from benchmarks.columns.claims import pair_claims, seam_claims
from niwaki.model.features.schema import Schema
from niwaki.stream.recordings.writing import batch_to_table, write_recording
from tests.support.streams import LISTS, list_events


@pytest.fixture
def recording(tmp_path):
    """A recording of lists."""
    path = tmp_path / "events.parquet"
    with write_recording(path) as file:
        file.write(batch_to_table(list_events(1_500), LISTS))
    return path


def test_variants_differ_in_lists_and_memory_only():
    by, of = PAIRS["hackernews"]
    schema = Schema(categorical=(by, of), lists=("words",), numeric=("n",))
    found = variants("hackernews", schema)
    assert found["plain"].lists == () and found["plain"].ignore == ("words",)
    assert found["lists"] == schema and found["all"].lists == ("words",)
    assert found["histories"].histories == found["all"].histories != ()
    assert {one.categorical for one in found.values()} == {schema.categorical}


def test_each_part_gives_finite_figures(recording):
    assert np.isfinite(worth(recording, LISTS, 1_000, 0)["served_ne"])
    whole, part = (sampled(recording, LISTS, 1_000, 0, Sampling(ratio)) for ratio in (1.0, 0.3))
    assert whole["events"] == part["events"] == 1_000 and whole["served_ne"] != part["served_ne"]
    entropies = [seam(recording, LISTS, "user", 900, 0, added) for added in (True, False)]
    assert np.isfinite(entropies).all()
    rows = [
        {"recording": "hackernews", "variant": variant, "seed": 0, "served_ne": ne}
        for variant, ne in zip(("column added", "column from then on"), entropies, strict=True)
    ]
    (claim,) = seam_claims(rows, "hackernews")
    assert claim["value"] == pytest.approx(entropies[0] / entropies[1] - 1)


def test_pairs_are_compared_with_none_and_with_all(recording):
    rows = [
        {"recording": "hotel", "variant": name, "seed": 0} | paired(recording, LISTS, 900, 0, one)
        for name, one in BUDGETS.items()
    ]
    assert [row["living"] for row in rows] == [0, 3, 3, 9, 9] and rows[0]["candidates"] == 9
    (claim,) = pair_claims(rows, "hotel")
    best = min(rows[0]["served_ne"], rows[2]["served_ne"])
    assert claim["value"] == pytest.approx(rows[1]["served_ne"] / best - 1)


def test_costs_are_of_lists_and_columns_alone():
    found = cost(2)
    assert set(found["step_ms"]) == {"base", "columns", "lists"} and np.isfinite(found["ratio"])
    assert 100 < history_mb() < 300
