"""The learner's benchmark: nobody sees what comes later, rows are kept, claims are what they
say."""

import json
import math

import numpy as np
import pytest
from river import linear_model

from benchmarks.baselines import PlainDLRM, RecentRate, River, Stream, VowpalWabbit, one_stream
from benchmarks.frame import Rows
from benchmarks.learner.__main__ import ROW_FIELDS, run_main, run_niwaki, serve
from benchmarks.learner.tables import (
    DELAYS,
    NIWAKI,
    claims,
    merged,
    summarise,
    tables,
    worst_window,
)
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.recordings.writing import write_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig


def stream(events: int, labels: np.ndarray | None = None) -> Stream:
    made = [table_to_batch(table, SCHEMA)[0] for table in generate(SyntheticConfig(events=events))]
    found = one_stream("made", SCHEMA, made, None)
    if labels is None:
        return found
    batch = found.events
    return Stream(
        "made", SCHEMA, EventBatch(labels, batch.times_s_B, batch.categorical, batch.numerics_BN)
    )


def run(name: str, events: Stream) -> dict[int, np.ndarray]:
    if name == NIWAKI:
        return run_niwaki({}, 128, events, 0)
    if name == "vw":
        pytest.importorskip("vowpalwabbit", reason="extra `bench`")
    made = {
        "rate": RecentRate,
        "river": lambda s: River(s, linear_model.LogisticRegression()),
        "dlrm": PlainDLRM,
        "vw": lambda s: VowpalWabbit(s, "-q ::"),
    }
    return serve(made[name](events), events)


@pytest.mark.parametrize("name", ["rate", "river", "vw", "dlrm", NIWAKI])
def test_no_prediction_depends_on_labels_that_are_not_yet_known(name):
    labels = np.random.default_rng(0).integers(0, 2, 2_600).astype(np.float32)
    changed = labels.copy()
    changed[1_100:] = 1 - changed[1_100:]
    first, second = run(name, stream(2_600, labels)), run(name, stream(2_600, changed))
    for delay in DELAYS:
        block = -(-delay // 128) * 128
        known = 1_100 // block * block
        if not known:  # before there is a model, the click rate so far
            known, block = 1_100 // 128 * 128, 128
        assert np.array_equal(first[delay][: known + block], second[delay][: known + block])
    assert not np.array_equal(first[128], second[128])


def test_a_delay_longer_than_the_stream_leaves_the_click_rate_so_far():
    logits = run("rate", stream(1_000))[5_000]
    assert not logits[:128].any() and logits[128:].all()
    assert len(np.unique(logits)) == len(range(0, 1_000, 128))


def test_the_worst_window_is_the_share_beyond_three_standard_errors():
    labels = np.zeros(60_000, np.float32)
    labels[::4] = 1
    logits = np.full(60_000, math.log(0.25 / 0.75), np.float32)
    assert worst_window(logits, labels) == pytest.approx(0, abs=1e-6)
    logits[40_000:] = math.log(0.3 / 0.7)
    assert worst_window(logits, labels) == pytest.approx(
        0.2 - 3 * math.sqrt(0.25 * 0.75 / 20_000) / 0.25, abs=1e-4
    )


def row(system: str, ne: float, seed: int = 0, stream: str = "s") -> dict:
    by_delay = {f"ne_{d}": ne for d in DELAYS} | {f"second_half_{d}": 0.9 for d in DELAYS}
    by_delay |= {f"window_error_{d}": 0.0 for d in DELAYS}
    return {
        "stream": stream,
        "events": 50_000,
        "system": system,
        "seed": seed,
        "commit": "c",
    } | by_delay


def test_a_claim_compares_the_worst_seed_and_stream_with_the_best_of_the_others_but_the_dlrm():
    rows = [row(NIWAKI, 0.90), row(NIWAKI, 0.88, 1), row(NIWAKI, 0.89, 2)]
    rows += [row("DLRM, plain", 0.91), row("constant CTR", 1.0), row("linear", 0.905)]
    rows += [row(NIWAKI, 0.7, stream="easy"), row("linear", 0.9, stream="easy")]
    made = {claim["claim"].split(":")[0]: claim for claim in claims(merged(rows), set())}
    best = made["on each recording and at each delay"]
    assert (
        best["value"] == pytest.approx(0.90 / 0.905)
        and not best["holds"]
        and "worst of 6: s at" in best["claim"]
    )
    assert made["on each stream and at each delay"]["value"] == pytest.approx(0.90 / 0.91)


def test_a_table_has_a_row_for_each_system_and_a_spread_where_there_are_seeds():
    rows = merged(
        [
            row(NIWAKI, 0.90),
            row(NIWAKI, 0.88, 1),
            row(NIWAKI, 0.89, 2),
            row("linear", 0.905, stream="t"),
        ]
    )
    lines = tables(rows, ["linear", NIWAKI]).splitlines()
    assert lines[:4] == [
        "| NE, a publication every 128 | s | t |",
        "|---|---|---|",
        "| linear |  | 0.9050 |",
        f"| {NIWAKI} | 0.8900 (0.8800 to 0.9000) |  |",
    ]


def test_rows_are_kept_with_their_commit_and_not_measured_again(tmp_path, capsys):
    schema, kept = Schema(categorical=("c_item",), numeric=("n_price",)), tmp_path / "rows.jsonl"
    (tmp_path / "recordings").mkdir()
    with write_recording(tmp_path / "recordings" / "small.parquet") as recording:
        for table in generate(SyntheticConfig(events=1_500)):
            recording.write(table.select(["ts", "label", *schema.categorical, *schema.numeric]))
    command = [
        "--json",
        "--events",
        "1500",
        "--recordings",
        str(tmp_path / "recordings"),
        "--rows",
        str(kept),
    ]
    printed = []
    for more in (["--only", "constant", "last"], ["--only", "constant", "last"], ["--print"]):
        run_main([*command, *more])
        printed.append(json.loads(capsys.readouterr().out)["rows"])
    assert printed[0] == printed[1] == printed[2] and {row["system"] for row in printed[0]} == {
        "constant CTR",
        "CTR of the last 5,000",
    }
    assert len(kept.read_text().splitlines()) == len(printed[0]) == 6
    assert all(row["commit"] for row in printed[0])
    assert Rows(kept, ROW_FIELDS).get("small", 1_500, "constant CTR", 0)["ne_128"] > 0


def test_measures_have_every_delay():
    measures = summarise(run("rate", stream(1_500)), stream(1_500).events.labels_B)
    assert {f"ne_{delay}" for delay in DELAYS} <= measures.keys()
