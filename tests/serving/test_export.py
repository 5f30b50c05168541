"""An exported network predicts what the scorer does."""

import io

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from niwaki.model.published.checkpoint import unpack
from niwaki.model.published.served import PublishedModel, ServedModel
from niwaki.pruning.errors import RuleError
from niwaki.serving.errors import NotReady
from niwaki.serving.network_export import export, inputs, published
from niwaki.serving.store import CheckpointStore
from tests.support.publisher import Publisher

LEARNERS = {
    "dense": {},
    "pruned": {},
    "pruned with the tables": {"prunes_tables": True},
    "dense, to be pruned in blocks": {"block": (4, 4)},
    "pruned in blocks": {"block": (4, 4)},
    "pruned weight by weight": {"block": (1, 1)},
}


@pytest.fixture(params=LEARNERS)
def model(request: pytest.FixtureRequest) -> ServedModel:
    publisher = Publisher(**LEARNERS[request.param])
    publisher.checkpoint(1)
    if not request.param.startswith("dense"):
        publisher.prune()
    return PublishedModel.from_checkpoint(*unpack(publisher.checkpoint(2)[1]))


@pytest.fixture
def events():
    return Publisher().events


def test_the_onnx_network_predicts_what_the_scorer_does(model, events):
    pytest.importorskip("onnx", reason="needs the extra `onnx`")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = runtime.InferenceSession(export(model, "onnx"), providers=["CPUExecutionProvider"])
    for batch in (events, events.slice(0, 1)):
        (probabilities_B,) = session.run(None, inputs(model, batch))
        assert np.abs(probabilities_B - model.predict(batch)).max() <= 1e-5


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_the_torchscript_network_predicts_what_the_scorer_does(model, events):
    network = torch.jit.load(io.BytesIO(export(model, "torchscript")))
    for batch in (events, events.slice(0, 1)):
        probabilities_B = network(*map(torch.from_numpy, inputs(model, batch).values())).numpy()
        assert np.abs(probabilities_B - model.predict(batch)).max() <= 1e-5


def test_the_safetensors_hold_every_tensor_of_the_compact_network(model):
    tensors = load(export(model, "safetensors"))
    blocks = {f"{name}.blocks": kept for name, kept in model.network.kept.items()}
    held = {**model.parameters, **blocks}
    assert {name for name in tensors if name.startswith("network.")} == {
        f"network.{name}" for name in held
    }
    for name, tensor in held.items():
        assert np.array_equal(tensors[f"network.{name}"], tensor.numpy())


def test_what_is_published_is_exported_deltas_included(redis_url, key_prefix):
    publisher = Publisher()
    with CheckpointStore.from_url(redis_url, key_prefix()) as store:
        with pytest.raises(NotReady):
            published(store.config, "safetensors")
        for version in (1, 2):
            checkpoint = publisher.checkpoint(version, base=version - 1)
            assert store.publish(*checkpoint)
        tensors = load(published(store.config, "safetensors"))
        with pytest.raises(
            RuleError, match="--format: must be one of onnx, torchscript, safetensors, got 'pickle'"
        ):
            published(store.config, "pickle")
    assert np.array_equal(
        tensors["network.top.0.weight"], unpack(checkpoint[1])[1]["network.top.0.weight"].numpy()
    )
