"""The learner's benchmark: nobody sees what comes later, rows are kept, claims are what they say."""

import json
import math

import numpy as np
import pytest
from river import linear_model

from benchmarks.baselines import PlainDLRM, RecentRate, River, Stream, VowpalWabbit, one_stream
from benchmarks.frame import Rows
from benchmarks.learner import DELAYS, NIWAKI, ROW_FIELDS, claims, run_main, run_niwaki, serve, summarise, worst_window
from model.features import EventBatch, Schema
from stream.events import table_to_batch
from stream.recording import write_recording
from stream.synthetic import SCHEMA, SyntheticConfig, generate


def stream(events: int, labels: np.ndarray | None = None) -> Stream:
    made = [table_to_batch(table, SCHEMA)[0] for table in generate(SyntheticConfig(events=events))]
    found = one_stream("made", SCHEMA, made, None)
    if labels is None:
        return found
    batch = found.events
    return found._replace(events=EventBatch(labels, batch.times_s_B, batch.categorical, batch.numerics_BN))


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
        known = 1_100 // 128 * 128 if delay == 128 else 1_100 // block * block
        assert np.array_equal(first[delay][: known + block], second[delay][: known + block])
    assert not np.array_equal(first[128], second[128])


def test_a_delay_longer_than_the_stream_leaves_an_even_chance():
    assert not run("rate", stream(1_000))[5_000].any()


def test_the_worst_window_is_the_share_beyond_three_standard_errors():
    labels = np.zeros(60_000, np.float32)
    labels[::4] = 1
    logits = np.full(60_000, math.log(0.25 / 0.75), np.float32)
    assert worst_window(logits, labels) == pytest.approx(0, abs=1e-6)
    logits[40_000:] = math.log(0.3 / 0.7)
    assert worst_window(logits, labels) == pytest.approx(0.2 - 3 * math.sqrt(0.25 * 0.75 / 20_000) / 0.25, abs=1e-4)


def test_a_claim_compares_with_the_best_of_the_others_and_not_with_the_dlrm():
    rows = [
        {"stream": "s", "events": 50_000, "system": name, "second_half": 0.9, "window_error_1000": 0.0}
        | {f"ne_{delay}": ne for delay in DELAYS}
        for name, ne in ((NIWAKI, 0.90), ("DLRM, plain", 0.91), ("constant CTR", 1.0), ("linear", 0.905))
    ]
    made = {claim["claim"]: claim for claim in claims(rows, set())}
    best, dlrm = made["s at 128: over the best of the others"], made["s at 128: over the plain DLRM"]
    assert best["value"] == pytest.approx(0.90 / 0.905) and not best["holds"]
    assert dlrm["value"] == pytest.approx(0.90 / 0.91) and dlrm["holds"]


def test_rows_are_kept_with_their_commit_and_not_measured_again(tmp_path, capsys):
    schema, kept = Schema(categorical=("c_item",), numeric=("n_price",)), tmp_path / "rows.jsonl"
    (tmp_path / "recordings").mkdir()
    with write_recording(tmp_path / "recordings" / "small.parquet") as recording:
        for table in generate(SyntheticConfig(events=1_500)):
            recording.write(table.select(["ts", "label", *schema.categorical, *schema.numeric]))
    command = ["--json", "--events", "1500", "--recordings", str(tmp_path / "recordings"), "--rows", str(kept)]
    printed = []
    for _ in range(2):
        run_main([*command, "--only", "constant", "last"])
        printed.append(json.loads(capsys.readouterr().out)["rows"])
    assert printed[0] == printed[1] and {row["system"] for row in printed[0]} == {
        "constant CTR",
        "CTR of the last 5,000",
    }
    assert len(kept.read_text().splitlines()) == len(printed[0]) == 6
    assert all(row["commit"] for row in printed[0])
    assert Rows(kept, ROW_FIELDS).get("small", 1_500, "constant CTR", 0)["ne_128"] > 0


def test_measures_have_every_delay():
    measures = summarise(run("rate", stream(1_500)), stream(1_500).events.labels_B)
    assert {f"ne_{delay}" for delay in DELAYS} <= measures.keys()
