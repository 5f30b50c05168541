"""The file of a backtest's predictions: a row an event, and the figures that were printed come out
of it again."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from niwaki.model.evaluation import binary_entropy
from tests.support.inputs import BASE, EVENTS, changed, csv_text, parquet

ARGUMENTS = ("--publish-every", "128,50", "--json")


def normalized_entropy(labels: np.ndarray, predictions: np.ndarray) -> float:
    losses = -np.where(labels > 0, np.log(predictions), np.log1p(-predictions))
    return float(losses.mean()) / binary_entropy(float(labels.mean(dtype=np.float64)))


def rows_of(table: pa.Table, policy: str) -> pa.Table:
    return table.filter(pa.compute.equal(table["policy"], policy))


def test_the_figures_that_were_printed_can_be_computed_from_the_file(put, niwaki, tmp_path):
    path, out = put("clicks.csv", csv_text(BASE)), tmp_path / "predictions.parquet"
    ran = niwaki("backtest", path, "--policy", "dense,adaptive", "--predictions", out, *ARGUMENTS)
    assert ran.code == 0, ran.err
    assert f"{2 * EVENTS:,} rows in {out}" in ran.err
    table = pq.read_table(out)
    assert table["policy"].to_pylist() == ["dense"] * EVENTS + ["adaptive"] * EVENTS
    for policy, printed in ran.json["policies"].items():
        rows = rows_of(table, policy)
        labels = rows["label"].to_numpy()
        for column, figure in (
            ("prediction", printed["served_ne"]["128"]),
            ("learned", printed["ne"]),
        ):
            found = normalized_entropy(labels, rows[column].to_numpy())
            assert found == pytest.approx(figure, abs=1e-9), (policy, column)
        assert rows["version"].to_pylist() == [at // 128 for at in range(EVENTS)]
        assert rows["prediction"].to_pylist()[:128] == [0.5] * 128  # no click rate is known yet


def test_rows_are_the_events_in_their_order_as_the_schema_reads_them(put, niwaki, tmp_path):
    table = changed(
        label=lambda row: 5 if row["label"] else 2,
        price=lambda row: None if row["ts"] % 7 == 0 else row["price"],
    )
    path, out = put("clicks.parquet", parquet(table)), tmp_path / "p.parquet"
    ran = niwaki(
        "backtest", path, "--threshold", "4", "--policy", "dense", "--predictions", out, *ARGUMENTS
    )
    assert ran.code == 0, ran.err
    found = pq.read_table(out).to_pylist()
    assert list(found[0]) == [
        *("ts", "label", "user", "item", "price", "policy", "version", "prediction", "learned")
    ]
    assert [row["label"] for row in found] == [float(row["label"]) for row in BASE]
    assert [row["item"] for row in found] == [str(row["item"]) for row in BASE]
    prices = [None if row["price"] is None else np.float32(row["price"]) for row in table]
    assert [row["price"] for row in found] == prices
    assert [row["ts"] for row in found] == [
        datetime.fromtimestamp(row["ts"] / 1000, UTC) for row in BASE
    ]


def test_no_file_is_left_by_a_backtest_that_fails(put, niwaki, tmp_path):
    out = tmp_path / "predictions.parquet"
    path = put("clicks.csv", csv_text(changed(label=lambda row: 1)))
    ran = niwaki("backtest", path, "--label", "label", "--predictions", out)
    assert ran.code == 1 and "nothing to learn" in ran.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clicks.csv"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("p.csv", "--predictions: writes Parquet: the name must end in .parquet, got '"),
        ("p.parquet.gz", "--predictions: writes Parquet: the name must end in .parquet, got '"),
        ("clicks.parquet", "--predictions: must not name a file of the recording, got '"),
        ("none/p.parquet", "none/p.parquet: can't be read or written (No such file or directory)"),
    ],
)
def test_a_file_that_can_not_be_meant_is_refused_before_anything_is_read(
    put, niwaki, tmp_path, out, said
):
    path = put("clicks.parquet", parquet(BASE))
    ran = niwaki("backtest", path, "--predictions", tmp_path / out)
    assert ran.code == 1 and said in ran.err
    assert path.read_bytes() == parquet(BASE)


def test_a_column_of_the_events_that_has_the_name_of_an_added_one_is_an_error(
    put, niwaki, tmp_path
):
    table = changed(version=lambda row: f"v{row['item'] % 3}")
    path, out = put("clicks.csv", csv_text(table)), tmp_path / "p.parquet"
    ran = niwaki("backtest", path, "--predictions", out)
    assert ran.code == 1 and "rename it, or --ignore it, got 'version'" in ran.err
    ran = niwaki("backtest", path, "--policy", "dense", "--ignore", "version", "--predictions", out)
    assert ran.code == 0, ran.err
