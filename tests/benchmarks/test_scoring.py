"""The scoring benchmark: all sides predict the same, networks are as narrow as they say, waits are
reckoned right."""

import importlib.util
import json

import msgspec
import numpy as np
import pytest

from benchmarks.scoring import rivals
from benchmarks.scoring.__main__ import parts, run_main
from benchmarks.scoring.compute import _measured, in_turns, request
from benchmarks.scoring.latency import _servable, _Taken
from benchmarks.scoring.publication import precision, time_taken
from niwaki.model.learner import Learner
from niwaki.serving.bodies import wire
from niwaki.stream.synthetic.columns import SCHEMA

ABOUT = {"what": "ids", "top": "64-32", "candidates": 128, "threads": 1}


@pytest.fixture(scope="module")
def learner() -> Learner:
    return rivals.learned((64, 32), events=2_048)


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_all_sides_predict_the_same_probabilities(learner, sparsity):
    features = learner.encoder.encode(rivals.some_candidates(200))
    model = rivals.compact(learner, sparsity)
    expected = rivals.niwaki(model)(features)
    others = [rivals.pytorch(model), rivals.pytorch(rivals.masked(learner, sparsity))]
    if importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime"):
        others.append(rivals.onnx_runtime(model, 1))
    for other in others:
        assert np.abs(other(features) - expected).max() < 1e-5
    assert expected.std() > 0.005


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_a_narrowed_network_is_within_its_budget_and_not_far_below(learner, sparsity):
    network = learner.branches.dense.network
    share = rivals.narrowed(network, sparsity).cost.total({}) / network.cost.total({})
    assert 0.7 * (1 - sparsity) < share <= 1 - sparsity


def test_a_request_asks_for_one_context_and_all_candidates():
    body = msgspec.json.decode(request(16))
    assert len(body["candidates"]) == 16 and "c_user" in body["context"]
    batch = wire.read_score(request(16), SCHEMA, 16)
    assert (
        len(batch) == 16
        and batch.categorical[0].to_pylist() == [str(body["context"]["c_user"])] * 16
    )


def test_subjects_are_called_in_turns_and_every_call_is_timed():
    order = []
    taken = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0)
    assert taken.keys() == {"a", "b"}
    assert all((burst > 0).all() for bursts in taken.values() for burst in bursts)
    assert len(order) == sum(
        len(burst) for bursts in taken.values() for burst in bursts
    ) + 4 + 2 * len(taken["a"])


def test_rows_of_all_sides_can_be_written_as_json():
    rows = _measured(
        {("niwaki", 0.9): lambda: 0, ("dense, PyTorch", 0.0): lambda: sum(range(2_000))}, 0.0, ABOUT
    )
    ours, theirs = json.loads(json.dumps(rows))
    assert ours["times_pytorch"] > 1 == theirs["times_pytorch"] and ours["times_onnx"] is None
    assert 0 < ours["p50_us"] <= ours["p99_us"] and ours["candidates_per_s"] > 0


def test_an_event_is_servable_with_the_first_version_that_reaches_beyond_it():
    one, other = _Taken(2.5, 2, "dense", 1, True), _Taken(4.5, 4, "dense", 1, False)
    assert _servable(5, [one, other]) == [one, one, other, other]


def test_less_exact_tables_are_smaller_and_cost_little():
    found = precision(True, None)
    rows, claims = found.rows, found.claims
    by_kind = {row["precision"]: row for row in rows}
    assert by_kind["float32"]["ne_cost"] == 0
    for smaller, larger in (("int4", "int8"), ("int8", "float16"), ("float16", "float32")):
        assert by_kind[smaller]["full_bytes"] < by_kind[larger]["full_bytes"]
        assert by_kind[smaller]["delta_bytes"] < by_kind[larger]["delta_bytes"]
    assert all(abs(row["ne_cost"]) < 0.001 for row in rows)
    assert all(row["compact_tables_bytes"] < row["plain_tables_bytes"] / 2 for row in rows)
    assert len(claims) == 16


def test_publishing_is_timed_beside_not_publishing():
    found = time_taken(True, None)
    assert found.rows and len(found.claims) == len(found.rows)
    for row in found.rows:
        assert min(row["events_per_s_publishing"], row["events_per_s_without"]) > 0
        assert row["loop_ms_a_publication"] > 0


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        run_main(["--only", "speed"])
    assert "--only must name parts among " + ", ".join(parts(None)) in capsys.readouterr().err
