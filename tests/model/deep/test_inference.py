"""One forward pass for predictions, equal to that of training and to its definition, on any
network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.model.config import LearnerConfig
from niwaki.model.deep.branch import Branch
from niwaki.model.deep.network import Network, NetworkShape
from niwaki.model.learner import Learner
from niwaki.model.mixture.mixture import mix
from tests.support.networks import correction, forward, inputs_of, predict, shapes
from tests.support.streams import SCHEMA, SMALL, click_events
from tests.support.trainers import learn_all


@st.composite
def networks(draw) -> Network:
    """Any network: of neurons, columns cut out or not, or of blocks, some of them left or all."""
    shape = draw(shapes())
    if shape.columns is not None or draw(st.booleans()):
        return Network(shape)
    block = draw(st.sampled_from([(1, 1), (4, 4), (3, 5)]))
    network = Network(
        NetworkShape(
            **{name: getattr(shape, name) for name in shape.__struct_fields__} | {"block": block}
        )
    )
    if draw(st.booleans()):
        return network
    return network.cut_to(
        {
            group.name: torch.tensor(sorted(draw(st.sets(st.integers(0, group.size - 1))))).long()
            for group in network.groups
        }
    )


@given(networks(), st.integers(0, 40), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_predictions_are_those_of_the_training_pass_and_of_the_definition(network, events, seed):
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: torch.randn(s, generator=generator) for name, s in network.shapes.items()}
    inputs = inputs_of(network.shape, events, generator)
    predicted_B = predict(network, parameters, inputs)
    trained_B = forward(Branch(network, parameters).passes, inputs)
    torch.testing.assert_close(predicted_B, trained_B, rtol=1e-5, atol=1e-5)
    expected_B = correction(network, parameters, *inputs)
    torch.testing.assert_close(predicted_B, expected_B, rtol=1e-4, atol=1e-3)


CHANGES = [
    {},
    {"bottom": ()},
    {"embedding_dim": 0},
    {"interaction": "dot"},
    {"interaction": "none"},
]


@pytest.mark.parametrize("changes", CHANGES, ids=str)
@pytest.mark.parametrize("block", [None, (4, 4)])
@pytest.mark.parametrize("cut", [False, True])
def test_a_learner_predicts_what_the_definition_says_to_a_millionth(changes, block, cut):
    config = LearnerConfig(
        **{name: getattr(SMALL, name) for name in SMALL.__struct_fields__} | changes
    )
    learner = Learner(SCHEMA, config, prunes_tables=not block, block=block)
    learn_all(learner, click_events(1000))
    learner.branches.prune()
    learn_all(learner, click_events(500, seed=1), target_ratio=0.5)
    if cut:
        learner.branches.cut()
        learn_all(learner, click_events(500, seed=2))
    hashed = learner.encoder.encode(click_events(200, seed=3))
    features = learner.memory.complete(hashed)
    inputs = learner._assemble(features)
    network, parameters = learner.branches.published()
    vectors_BFD = learner.tables.weight_RD[features.rows_BF]
    read = vectors_BFD, inputs.numerics_BM, inputs.contributions_BS
    deep_B = inputs.linear_BK[:, 0] + correction(network, parameters, *read)
    experts_BE = torch.cat([inputs.linear_BK, deep_B[:, None]], 1).numpy()
    expected_B = mix(learner.mixture.weights, experts_BE)
    np.testing.assert_allclose(learner.predict(hashed), expected_B, rtol=0, atol=1e-6)
