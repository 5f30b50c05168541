"""A published model predicts as its experts are defined, on any network."""

import numpy as np
import pytest
import torch

from niwaki.model.config import LearnerConfig
from niwaki.model.deep.network import Network
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema
from niwaki.model.learner import Learner
from niwaki.model.published.served import ServedModel
from tests.support.networks import correction
from tests.support.streams import SCHEMA, SMALL, click_events
from tests.support.trainers import served_by

CHANGES = [
    {},
    {"bottom": ()},
    {"interaction": "dot"},
    {"interaction": "none"},
    {"embedding_dim": 0},
    {"pair_rows": 0},
    {"numeric_codes": False},
    {"top": (7,), "half_lives_events": (1000.0,)},
    {"cut": True},
    {"cut": True, "bottom": ()},
    {"cut": True, "interaction": "none"},
    {"block": (4, 4)},
    {"block": (1, 1)},
    {"block": (3, 5), "bottom": ()},
    {"block": (1, 1), "interaction": "none"},
]
"""To `SMALL`; cut: units and columns of the tables are cut out; block: such blocks of weights
are."""


def served(schema: Schema, changes: dict) -> ServedModel:
    columns, block = changes.get("cut", False), changes.get("block")
    changes = {name: value for name, value in changes.items() if name not in ("cut", "block")}
    config = LearnerConfig(
        **{name: getattr(SMALL, name) for name in SMALL.__struct_fields__} | changes
    )
    learner, cut = Learner(schema, config, prunes_tables=columns, block=block), columns or block
    for start in range(0, 512, 64):
        if cut and start == 256:
            learner.branches.prune()
        batch = click_events(512).slice(start, start + 64)
        if not schema.numeric:
            batch = type(batch)(
                batch.labels_B, batch.times_s_B, batch.categorical, batch.numerics_BN[:, :0]
            )
        learner.learn(
            learner.encoder.encode(batch),
            Outcomes.of(batch),
            *((0.5, 0.5) if learner.branches.masks else ()),
        )
    if cut:
        learner.branches.cut()
        assert learner.multiply_adds <= 0.5 * learner.branches.dense_cost
    if columns:
        assert (
            0
            < len(learner.branches.network.shape.columns)
            < learner.branches.dense.network.columns.size
        )
    return served_by(learner, learner.export(learner.mixture.weights))


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("numeric", [True, False])
@pytest.mark.parametrize("events", [0, 1, 300])
def test_the_experts_of_a_published_model_are_those_of_the_definition(changes, numeric, events):
    schema = SCHEMA if numeric else Schema(categorical=SCHEMA.categorical)
    model = served(schema, changes)
    batch = click_events(max(events, 1), seed=3).slice(0, events)
    if not numeric:
        batch = type(batch)(
            batch.labels_B, batch.times_s_B, batch.categorical, batch.numerics_BN[:, :0]
        )
    features = model.encoder.encode(batch)
    inputs = model.inputs(features)
    network = Network(model.shape, model.network.kept)
    read = model.vectors(features), inputs.numerics_BM, inputs.contributions_BS
    deep_B = inputs.linear_BK[:, 0] + correction(network, model.parameters, *read)
    expected_BE = torch.cat([inputs.linear_BK, deep_B[:, None]], 1).numpy()
    found_BE = model.experts(features)
    assert found_BE.shape == expected_BE.shape
    np.testing.assert_allclose(found_BE, expected_BE, atol=2e-5)


def test_a_batch_and_its_parts_are_scored_alike():
    model = served(SCHEMA, {})
    batch = click_events(300, seed=4)
    parts = [model.predict(batch.slice(start, start + 100)) for start in range(0, 300, 100)]
    np.testing.assert_allclose(np.concatenate(parts), model.predict(batch), atol=1e-6)
