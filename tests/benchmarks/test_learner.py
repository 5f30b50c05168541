"""The learner's benchmark: nobody sees what comes later, rows are kept, claims are what they
say."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from river import linear_model

from benchmarks.baselines.linear import RecentRate, River, VowpalWabbit
from benchmarks.baselines.networks import DIN, PlainDLRM
from benchmarks.baselines.stream import Stream, one_stream, without_lists
from benchmarks.frame import Rows
from benchmarks.learner.__main__ import ROW_FIELDS, run_main
from benchmarks.learner.systems import run_niwaki, serve, systems
from benchmarks.learner.tables import (
    DELAYS,
    INTEREST,
    NIWAKI,
    claims,
    merged,
    request_auc,
    summarise,
    tables,
    worst_window,
)
from niwaki.model.features.schema import LIST, EventBatch, Schema
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
    return Stream("made", SCHEMA, dataclasses.replace(found.events, labels_B=labels))


WITH_LISTS = Schema(
    categorical=("user", "item", "last"),
    numeric=("price",),
    lists=("words", "history"),
    shares={"history": "item", "last": "item"},
)


def stream_with_lists(events: int, labels: np.ndarray | None = None) -> Stream:
    """Items are clicked that the history holds; a tenth of the histories are missing, and a tenth
    empty."""
    rng = np.random.default_rng(3)
    items, users = rng.integers(0, 20, events), rng.integers(0, 9, events)
    histories = [
        None if draw < 0.1 else list(rng.integers(0, 20, 0 if draw < 0.2 else 6))
        for draw in rng.random(events)
    ]
    if labels is None:
        near = [item in (history or ()) for item, history in zip(items, histories, strict=True)]
        labels = (rng.random(events) < np.where(near, 0.8, 0.2)).astype(np.float32)
    columns = [users, items, rng.integers(0, 20, events)]
    lists = [
        [None if one is None else [(str(v), 1.0) for v in one] for one in histories],
        [[("old", 0.5), ("new", 2.0)][draw:] for draw in rng.integers(0, 2, events)],
    ]
    batch = EventBatch(
        labels,
        np.arange(events) // 4 * 1.0,
        tuple(pa.array(column.astype(str)) for column in columns),
        rng.normal(size=(events, 1)).astype(np.float32),
        tuple(pa.array(column, LIST) for column in reversed(lists)),
    )
    return one_stream("lists", WITH_LISTS, [batch.slice(0, 500), batch.slice(500, events)], None)


def measures(predictions: dict[int, np.ndarray], events: Stream) -> dict:
    return summarise(predictions, events.events.labels_B, events.events.times_s_B)


def run(name: str, events: Stream) -> dict[int, np.ndarray]:
    if name == NIWAKI:
        return run_niwaki({}, 128, events, 0)
    if name == "vw":
        pytest.importorskip("vowpalwabbit", reason="extra `bench`")
    made = {
        "rate": RecentRate,
        "river": lambda s: River(s, linear_model.LogisticRegression()),
        "dlrm": PlainDLRM,
        INTEREST: DIN,
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


def test_the_systems_that_see_lists_do_not_see_labels_to_come_and_are_changed_by_lists():
    labels = stream_with_lists(600).events.labels_B
    changed = labels.copy()
    changed[300:] = 1 - changed[300:]
    first, second = stream_with_lists(600, labels), stream_with_lists(600, changed)
    for name in ("rate", "river", "vw", "dlrm", INTEREST, NIWAKI):
        found = run(name, first)[128]
        assert np.array_equal(found[:384], run(name, second)[128][:384])
        blind = first.without_lists()
        if name not in ("rate", INTEREST):
            assert np.array_equal(found, run(name, blind)[128]) == (name == "rate")


def test_a_list_reaches_vowpal_wabbit_with_its_weights_and_crossed_as_asked():
    pytest.importorskip("vowpalwabbit", reason="extra `bench`")
    events = stream_with_lists(600)
    words, history = (column.to_pylist() for column in events.events.lists)
    at = next(i for i, found in enumerate(history) if found and words[i][0][0] == "old")
    text = VowpalWabbit(events)._text(at)
    assert "|d old:0.5 new:2 |e " + " ".join(value for value, _ in history[at]) in text
    longer = stream_with_lists(8_000)
    found = [
        measures(serve(system, longer), longer)["second_half_128"]
        for system in (VowpalWabbit(longer), VowpalWabbit(longer, crosses=[("item", "history")]))
    ]
    assert found[1] < 0.95 * found[0]


def test_the_candidate_is_the_column_that_lists_share_or_the_one_with_most_values():
    events = stream_with_lists(600)
    assert events.candidate == "item"
    assert events.without_lists().schema == without_lists(WITH_LISTS)
    assert events.without_lists().schema.shares == {"last": "item"}
    assert stream(600).candidate == max(
        SCHEMA.categorical,
        key=lambda name: len(set(stream(600).categories[SCHEMA.categorical.index(name)])),
    )


def test_bags_are_means_by_weight_and_shared_values_have_one_embedding():
    events = stream_with_lists(600)
    model = PlainDLRM(events)
    part = events.hashed.part(40, 140)
    bags = model._pooled(part.lists).detach()
    table = model.table.weight.detach()
    for place, rows in enumerate(part.lists):
        for b in range(100):
            span = slice(rows.offsets[b], rows.offsets[b + 1])
            expected = sum(
                share * table[row]
                for row, share in zip(rows.embedded_V[span], rows.shares_V[span], strict=True)
            )
            assert torch.allclose(bags[b, place], expected, atol=1e-6)
    items = {
        value: row
        for value, row in zip(events.categories[1], events.hashed.embedded_BF[:, 1], strict=True)
    }
    values = [value for one in events.events.lists[1].to_pylist() for value, _ in one or ()]
    assert set(events.hashed.lists[1].embedded_V) >= {int(items[value]) for value in set(values)}


def test_din_is_what_its_formula_says_event_by_event():
    events = stream_with_lists(600)
    model = DIN(events)
    part = events.hashed.part(40, 140)
    singles = model.table(part.embedded_BF)
    vectors = model._list_vectors(part.lists, singles)
    assert torch.equal(vectors[:, 0], model._pooled(part.lists[:1])[:, 0])
    rows = part.lists[1]
    for b in range(100):
        candidate, expected = singles[b, 1], torch.zeros(16)
        for row in rows.embedded_V[rows.offsets[b] : rows.offsets[b + 1]]:
            value = model.table.weight[row]
            seen = torch.cat([value, candidate, value * candidate, value - candidate])
            expected = expected + model.activation(seen) * value
        assert torch.allclose(vectors[b, 1], expected, atol=1e-6)
    before = [parameter.clone() for parameter in model.activation.parameters()]
    model.learn(0, 500)
    after = model.activation.parameters()
    assert not any(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_the_auc_within_a_request_is_the_mean_over_requests_by_their_events():
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 60, 400)).astype(np.float64)
    labels = (rng.random(400) < 0.3).astype(np.float32)
    logits = rng.integers(-3, 4, 400).astype(np.float32)  # with ties
    aucs, sizes = [], []
    for time in np.unique(times):
        shown, clicked = logits[times == time], labels[times == time] > 0.5
        if clicked.any() and not clicked.all():
            apart = shown[clicked][:, None] - shown[~clicked]
            aucs.append(((apart > 0) + 0.5 * (apart == 0)).mean())
            sizes.append(len(shown))
    shuffled = rng.permutation(400)
    assert 5 < len(sizes) < 60
    assert request_auc(logits[shuffled], labels[shuffled], times[shuffled]) == pytest.approx(
        np.average(aucs, weights=sizes)
    )


def test_there_is_no_auc_within_requests_of_single_events():
    logits, labels = np.arange(400, dtype=np.float32), np.tile([0, 1], 200).astype(np.float32)
    times = np.arange(400.0)
    assert request_auc(logits, labels, times) is None
    times[1] = times[0]
    assert request_auc(logits, labels, times) is None
    assert request_auc(logits, labels, times // 2) == 1


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


def row(system: str, ne: float, seed: int = 0, stream: str = "s", wide: bool | None = None) -> dict:
    by_delay = {f"ne_{d}": ne for d in DELAYS} | {f"second_half_{d}": 0.9 for d in DELAYS}
    by_delay |= {f"window_error_{d}": 0.0 for d in DELAYS}
    return {
        "stream": stream,
        "events": 50_000,
        "system": system,
        "seed": seed,
        "commit": "c",
        **({} if wide is None else {"wide": wide}),
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


def test_recordings_with_lists_have_tables_of_their_own_and_each_its_distance_from_the_best_peer():
    rows = [row(NIWAKI, 0.90), row("linear", 0.905)]
    rows += [row(NIWAKI, ne, seed, "wide", True) for seed, ne in enumerate((0.88, 0.86))]
    rows += [row("linear", 0.9, 0, "wide", True), row(INTEREST, 0.89, 0, "wide", True)]
    rows += [row(INTEREST, 0.885, 1, "wide", True)]
    rows += [row("niwaki without lists", 0.5, 0, "wide", True)]
    made = {claim["claim"]: claim for claim in claims(merged(rows), set())}
    for delay in ("128", "5,000"):
        distance = made[f"wide at {delay}: over the best peer, {INTEREST}"]
        assert distance["value"] == pytest.approx(0.88 / 0.885) and not distance["holds"]
    others = next(claim for claim in made if claim.startswith("on each recording and at each"))
    assert "worst of 3: s at" in others
    text = tables(merged(rows), [INTEREST, "linear", NIWAKI])
    narrow, wide = text.split("**Recordings with lists and more columns**")
    assert "| NE, a publication every 128 | s |" in narrow and "wide" not in narrow
    assert "| NE, a publication every 128 | wide |" in wide


def test_systems_run_where_they_make_sense():
    narrow = Schema(categorical=("a", "b"))
    many = Schema(categorical=tuple("abcdefghijklmn"))
    on_narrow, on_many, on_lists = (
        {name for name, system in systems().items() if system.suits(schema)}
        for schema in (narrow, many, WITH_LISTS)
    )
    assert "Vowpal Wabbit, -q ::" in on_narrow - on_many - on_lists
    assert {INTEREST, "niwaki without lists"} <= on_lists - on_narrow - on_many
    assert {NIWAKI, "niwaki without pairs"} <= on_narrow & on_many & on_lists


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
    events = stream(1_500)
    assert {f"ne_{delay}" for delay in DELAYS} <= measures(run("rate", events), events).keys()
