"""Models of events with lists, shared embeddings and pruned columns, as scorers have them."""

import numpy as np
import pytest
import torch

from niwaki.model.deep.network import Network
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.published.served import PublishedModel
from niwaki.serving.network_export import export, inputs
from tests.support.publisher import published
from tests.support.streams import LISTS, SMALL, list_events
from tests.support.trainers import learn_all


def logits(model: PublishedModel, batch) -> np.ndarray:
    return model.logits(model.experts(model.encoder.encode(batch)))


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_a_scorer_predicts_lists_as_the_learner_does_after_full_checkpoints_and_deltas(
    cut, columns
):
    learner = Learner(LISTS, SMALL, prunes_tables=columns)
    changes, test = learner.track_dirty_rows(), list_events(300, seed=9)
    learn_all(learner, list_events(1_500))
    if cut:
        learner.branches.prune()
        for start in range(0, 1_500, 64):
            part = list_events(1_500, seed=1).slice(start, start + 64)
            learner.learn(learner.encoder.encode(part), Outcomes.of(part), 0.3, 0.5)
        learner.branches.cut()
        if columns:
            shared_FD = learner.branches.network.shape.alive_FD()[
                [LISTS.fields.index(name) for name in ("item", "last", "history")]
            ]
            assert (shared_FD.any(0) & ~shared_FD.all(0)).any()  # one has what another has not
    model = PublishedModel.from_checkpoint(*published(learner, 1))
    changes.clear(learner.events)
    expected_B = learner.predict(learner.encoder.encode(test))
    np.testing.assert_allclose(logits(model, test), expected_B, atol=1e-6)
    for version in (2, 3):
        learn_all(learner, list_events(200, seed=version))
        delta = published(learner, version, 1, changes.rows())
        changes.clear(learner.events)
        model = PublishedModel.after([delta], model.frame, model.tables, model)
        expected_B = learner.predict(learner.encoder.encode(test))
        np.testing.assert_allclose(logits(model, test), expected_B, atol=1e-6)
    whole = PublishedModel.from_checkpoint(*published(learner, 4))
    np.testing.assert_array_equal(logits(whole, test), logits(model, test))


def test_exported_networks_predict_lists_as_the_model_does():
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    learner, test = Learner(LISTS, SMALL), list_events(100, seed=9)
    learn_all(learner, list_events(1_000))
    model = PublishedModel.from_checkpoint(*published(learner, 1))
    given, expected_B = inputs(model, test), model.predict(test)
    session = runtime.InferenceSession(export(model, "onnx"))
    np.testing.assert_allclose(session.run(None, given)[0], expected_B, atol=1e-5)


def test_a_network_of_lists_has_a_vector_and_a_slot_for_each():
    learner = Learner(LISTS, SMALL)
    shape = learner.branches.dense.network.shape
    assert shape.fields == 5 and len(learner.slots) == shape.slots
    assert learner.slots.lists == 2 + SMALL.max_list_pairs
    assert isinstance(Network(shape).read, torch.Tensor)
