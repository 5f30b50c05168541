import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.evaluation import binary_entropy, log_losses
from niwaki.model.features.encoder import Encoder
from niwaki.pruning.errors import RuleError
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig, DriftMonitor
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.recordings.recording import propose_schema, read_recording
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.drift_plan import plan_drifts
from niwaki.stream.synthetic.generator import (
    bayes_log_loss,
    drift_points,
    drifts_path,
    generate,
    read_drift_points,
    true_probabilities,
    write_stream,
)
from niwaki.stream.synthetic.world import SyntheticConfig

EVERY_DRIFT = [
    "abrupt:concept@30000",
    "abrupt:concept@30000:0.3",
    "gradual:concept@30000+10000",
    "abrupt:base_rate@30000:0.3",
    "gradual:base_rate@30000+10000:0.02",
    "abrupt:new_items@30000:0.9:0.03",
    "gradual:new_items@30000+10000",
    "abrupt:values@30000:c_item",
    "abrupt:values@30000:c_device",
    "gradual:values@30000+10000:n_price",
]


def stream(*drifts: str, events: int = 50_000, **options) -> SyntheticConfig:
    return SyntheticConfig(events=events, drifts=drifts, **options)


def table(config: SyntheticConfig) -> pa.Table:
    return pa.concat_tables(generate(config))


def cells(events: pa.Table) -> np.ndarray:
    """Click rate of each combination of segment and category, in the order of their names."""
    rates = events.group_by(["c_segment", "c_category"]).aggregate([("label", "mean")])
    return rates.sort_by([("c_segment", "ascending"), ("c_category", "ascending")])[
        "label_mean"
    ].to_numpy()


@settings(max_examples=8, deadline=None)
@given(chunk_events=st.integers(100, 60_000))
def test_the_stream_is_the_same_whatever_the_chunk_size(chunk_events):
    config = stream("abrupt:concept@50%", "gradual:new_items@40%+30%", events=40_000)
    chunks = list(generate(config, chunk_events=chunk_events))
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_events}
    assert pa.concat_tables(chunks).combine_chunks().equals(table(config).combine_chunks())


def test_the_seed_decides_everything():
    assert table(stream(seed=1)).equals(table(stream(seed=1)))
    assert not table(stream(seed=1)).equals(table(stream(seed=2)))


@pytest.mark.parametrize("drift", EVERY_DRIFT)
def test_a_drift_changes_nothing_before_it_and_something_after(drift):
    with_it, without = table(stream(drift)), table(stream())
    assert with_it.slice(0, 30_000).equals(without.slice(0, 30_000))
    assert not with_it.slice(30_000).equals(without.slice(30_000))


def test_events_read_as_the_schema_says_with_time_that_advances():
    config = stream(events_per_s=2.0)
    batch, rejects = table_to_batch(table(config), SCHEMA)[:2]
    assert (len(batch), rejects) == (50_000, [])
    assert (np.diff(batch.times_s_B) >= 0).all()
    assert batch.times_s_B[-1] - config.start_s == pytest.approx(25_000, abs=1)


def test_users_and_items_are_popular_by_zipfs_law_and_numerics_have_heavy_tails():
    events = table(stream(events=200_000))
    for column, size in (("c_user", 5000), ("c_item", 1000)):
        counts = np.sort(pc.value_counts(events[column]).flatten()[1].to_numpy())[::-1]
        assert counts[0] / counts[9] == pytest.approx(np.log(2) / np.log(11 / 10), rel=0.1)
        assert len(counts) > 0.8 * size
    for column in ("n_price", "n_age_h", "n_clicks"):
        values = events[column].drop_null().to_numpy()
        assert values.max() > 25 * np.median(values)


def test_the_asked_for_share_of_values_is_missing():
    events = table(stream(missing_ratio=0.2))
    for column in events.column_names:
        may_miss = column in ("c_brand", "c_device") or column.startswith("n_")
        assert events[column].null_count / 50_000 == pytest.approx(0.2 if may_miss else 0, abs=0.01)


@pytest.mark.parametrize("base_rate", [0.01, 0.05, 0.2])
def test_the_base_rate_is_as_asked_for_before_and_after_a_concept_drift(base_rate):
    probabilities = true_probabilities(
        stream("abrupt:concept@50%", events=200_000, base_rate=base_rate)
    )
    for half in np.split(probabilities, 2):
        assert half.mean() == pytest.approx(base_rate, rel=0.03)


def test_the_base_rate_drifts_at_once_or_along_its_width():
    drifts = (
        "abrupt:base_rate@40000:0.3",
        "gradual:base_rate@80000+40000:0.05",
        "recurring:base_rate@160000",
    )
    probabilities = true_probabilities(stream(*drifts, events=200_000))
    means = [
        probabilities[start : start + 4000].mean()
        for start in (0, 36_000, 40_000, 98_000, 120_000, 160_000)
    ]
    assert means == pytest.approx([0.1, 0.1, 0.3, 0.175, 0.05, 0.3], rel=0.1)


def test_clicks_happen_with_their_true_probability():
    config = stream(*EVERY_DRIFT[2:5], events=200_000, daily_cycle=0.5)
    p, y = true_probabilities(config), table(config)["label"].to_numpy()
    for part in np.array_split(np.argsort(p), 20):
        assert abs(y[part].sum() - p[part].sum()) < 5 * np.sqrt((p[part] * (1 - p[part])).sum())


def test_the_true_probabilities_have_the_least_log_loss():
    config = stream(events=200_000)
    p, y = true_probabilities(config), table(config)["label"].to_numpy()
    logits = np.log(p / (1 - p))
    losses = log_losses(logits, y)
    assert losses.mean() == pytest.approx(bayes_log_loss(p), abs=4 * losses.std() / np.sqrt(len(y)))
    for other in (logits + 0.2, logits * 1.1, np.full(len(p), np.log(y.mean() / (1 - y.mean())))):
        assert log_losses(other, y).mean() > losses.mean()
    assert 0.5 < bayes_log_loss(p) / binary_entropy(y.mean()) < 0.75


def test_without_signal_clicks_are_pure_chance():
    assert bayes_log_loss(true_probabilities(stream(signal=0.0))) == pytest.approx(
        binary_entropy(0.1), rel=1e-3
    )


def test_a_recurring_concept_is_the_one_before():
    events = table(stream("abrupt:concept@100000", "recurring:concept@200000", events=300_000))
    first, second, third = (cells(events.slice(start, 100_000)) for start in (0, 100_000, 200_000))
    assert np.corrcoef(first, third)[0, 1] > 0.95
    assert np.corrcoef(first, second)[0, 1] < 0.6


def test_a_smaller_share_of_preferences_makes_a_smaller_drift():
    def correlation(share: float) -> float:
        events = table(stream(f"abrupt:concept@50%:{share}", events=200_000))
        return np.corrcoef(cells(events.slice(0, 100_000)), cells(events.slice(100_000)))[0, 1]

    assert correlation(0.1) > correlation(0.4) > correlation(1.0)


def test_in_a_gradual_drift_old_and_new_are_mixed():
    drifted, old, new = (
        true_probabilities(stream(*drifts, events=60_000))
        for drifts in (("gradual:concept@20000+20000",), (), ("abrupt:concept@1",))
    )
    assert (drifted[:20_000] == old[:20_000]).all()
    np.testing.assert_allclose(drifted[40_000:], new[40_000:])
    share, width = np.arange(1, 20_001) / 20_001, slice(20_000, 40_000)
    np.testing.assert_allclose(drifted[width], (1 - share) * old[width] + share * new[width])


def test_new_items_have_ids_never_seen_and_a_click_rate_of_their_own():
    events = table(stream("abrupt:new_items@100000:0.9:0.03", events=200_000))
    seen = pc.unique(events["c_item"].slice(0, 100_000))
    after = events.slice(100_000)
    new = pc.invert(pc.is_in(after["c_item"], seen))
    assert pc.mean(new).as_py() == pytest.approx(0.9, abs=0.005)
    assert pc.mean(after.filter(new)["label"]).as_py() == pytest.approx(0.03, rel=0.1)
    assert pc.mean(after.filter(pc.invert(new))["label"]).as_py() > 0.06


def test_items_come_and_go_and_come_back():
    drifts = ("gradual:new_items@30000+20000:0.5", "recurring:new_items@70000")
    items = table(stream(*drifts, events=100_000))["c_item"]
    before, mixed, after, back = (
        pc.unique(items.slice(start, 20_000)) for start in (0, 30_000, 50_000, 70_000)
    )
    old = [
        pc.mean(pc.is_in(items.slice(start, 20_000), before)).as_py() for start in (30_000, 50_000)
    ]
    assert old == pytest.approx([0.75, 0.5], abs=0.03)
    assert pc.all(pc.less(back, 1000)).as_py() and not pc.all(pc.less(after, 1000)).as_py()
    assert pc.any(pc.greater_equal(mixed, 1000)).as_py()


@pytest.mark.parametrize("field", SCHEMA.categorical + SCHEMA.numeric)
def test_replaced_values_are_new_and_nothing_else_changes(field):
    drifted, plain = table(stream(f"abrupt:values@25000:{field}")), table(stream())
    assert drifted.drop_columns([field]).equals(plain.drop_columns([field]))
    before, after = drifted[field].slice(0, 25_000), drifted[field].slice(25_000)
    if field.startswith("n_"):
        assert pc.all(pc.equal(after, pc.multiply(plain[field].slice(25_000), 100))).as_py()
    else:
        assert not pc.any(pc.is_in(after.drop_null(), pc.unique(before.drop_null()))).as_py()
    assert after.null_count == plain[field].slice(25_000).null_count


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_drifts_are_seen_in_the_log_loss_of_a_linear_model_soon_and_nothing_else(seed):
    config = SyntheticConfig(seed=seed)
    adwin = DetectorConfig(detector="ADWIN", signal="log_loss")
    monitor, drifts, losses = DriftMonitor(DriftConfig(detectors=(adwin,))), [], []
    encoder = Encoder(SCHEMA, rows=1 << 14)
    weights, squares = np.zeros(7 << 14), np.ones(7 << 14)  # Adagrad
    for chunk in generate(config):
        batch, _ = table_to_batch(chunk, SCHEMA)[:2]
        rows_BF = encoder.encode(batch).rows_BF.numpy()
        for start in range(0, len(batch), 128):
            rows, y = rows_BF[start : start + 128], batch.labels_B[start : start + 128]
            logits = weights[rows].sum(1) - 2
            first_event = sum(map(len, losses))
            losses.append(log_losses(logits, y))
            drifts += monitor.update({"log_loss": losses[-1]}, first_event, np.zeros(len(y)))
            gradient = np.broadcast_to(1 / (1 + np.exp(-logits)) - y, rows.T.shape).T
            np.add.at(squares, rows, gradient**2)
            np.add.at(weights, rows, -0.15 * gradient / np.sqrt(squares[rows]))
    assert np.concatenate(losses)[50_000:100_000].mean() < 0.88 * binary_entropy(0.1)
    true = [point["event"] for point in drift_points(config)]
    assert len(drifts) == len(true) == 2
    for drift, event in zip(drifts, true, strict=True):
        assert 0 <= drift.event - event < 2_000
        assert drift.after > drift.before


def test_the_truth_is_written_beside_the_stream(tmp_path):
    config, told = stream("gradual:base_rate@20%+1000:0.2", "abrupt:concept@50%"), []
    for suffix in ("parquet", "jsonl.gz", "csv"):
        path = tmp_path / f"clicks.{suffix}"
        write_stream(config, path, on_events=told.append)
        assert read_drift_points(path) == drift_points(config)
        assert drift_points(config)[0] == {
            "event": 10_000, "width": 1000, "kind": "gradual", "what": "base_rate", "base_rate": 0.2
        }  # fmt: skip
        schema = propose_schema(path)
        assert set(schema.categorical + schema.numeric) == set(SCHEMA.categorical + SCHEMA.numeric)
        assert sum(len(chunk.batch) for chunk in read_recording(path, SCHEMA)) == 50_000
    assert sum(told) == 3 * 50_000
    assert '"bayes_log_loss"' in drifts_path(path).read_text()


def test_of_a_recording_without_truth_no_drifts_are_known(tmp_path):
    assert read_drift_points(tmp_path / "clicks.parquet") == []
    drifts_path(tmp_path / "clicks.parquet").write_text("{")
    with pytest.raises(ConfigError, match="clicks.parquet.drifts.json: can't be read"):
        read_drift_points(tmp_path / "clicks.parquet")


def test_drifts_are_planned_in_the_order_of_their_events():
    points = plan_drifts(["abrupt:concept@80%", "gradual:new_items@10%+5%:0.2"], 1000, [])
    assert [(point.event, point.width) for point in points] == [(100, 50), (800, 0)]


@pytest.mark.parametrize(
    "drift, text",
    [
        ("concept@5", "must read KIND:WHAT@POSITION"),
        ("abrupt:concept@", "must read"),
        (
            "abrubt:concept@50",
            r"abrubt is none of abrupt, gradual, recurring .did you mean abrupt\?",
        ),
        ("abrupt:items@50", r"items is none of concept, .* .did you mean new_items\?"),
        ("abrupt:concept@0", "within the 1000 events"),
        ("abrupt:concept@100%", "within the 1000 events"),
        ("abrupt:concept@1.5", "whole events, or percent"),
        ("abrupt:concept@50+10", "an abrupt one has none"),
        ("gradual:concept@50", "a gradual drift has a width"),
        ("gradual:concept@50+0", "a gradual drift has a width"),
        ("abrupt:base_rate@50", "abrupt:base_rate takes 1 value"),
        ("abrupt:base_rate@50:1", "above 0 and below 1"),
        ("abrupt:concept@50:0", "above 0 and at most 1"),
        ("abrupt:concept@50:half", "must be a number"),
        ("abrupt:new_items@50:0.5:0.1:2", "takes 0 to 2 value"),
        ("recurring:concept@50:0.5", "recurring:concept takes 0 value"),
        ("abrupt:values@50:c_colour", "values takes one of c_user"),
        ("recurring:concept@50", "recurring needs an earlier drift of concept"),
    ],
)
def test_a_drift_that_cannot_be_is_refused_with_what_was_given(drift, text):
    with pytest.raises(ConfigError, match=f"drifts: .*{text}.*got"):
        SyntheticConfig(events=1000, drifts=(drift,))


@pytest.mark.parametrize("field", ["events", "base_rate", "users", "items", "events_per_s"])
def test_a_stream_that_cannot_be_is_refused(field):
    with pytest.raises(RuleError, match=f"{field}: must be .*, got 0"):
        SyntheticConfig(**{field: 0})
