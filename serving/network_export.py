"""Exports of the compact network to ONNX, TorchScript or safetensors, for a server of one's own.

In: a published model. Out: bytes. ONNX and TorchScript hold the forward pass from embeddings,
prepared numerics and contributions of the linear expert's slots to the probability. Hashing and the
tables, which are lookups, stay with the server: `inputs` computes what these networks read.
safetensors holds every tensor of the model but its tables.

Shapes: B events, F fields, D embedding width, M prepared numerics, S slots, K time scales, V
vectors in the interaction, E = K + 1 experts.
"""

import io

import numpy as np
import torch
import torch.nn.functional as fn

from niwaki.model.deep.network import Network, Stack
from niwaki.model.features.schema import EventBatch
from niwaki.model.mixture import LOGIT_RANGE
from niwaki.model.published.checkpoint import tensors_only
from niwaki.model.published.served import ServedModel
from niwaki.serving.errors import ServingError
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig

FORMATS = ("onnx", "torchscript", "safetensors")
_OPSET = 17
_IR_VERSION = 8


def published(config: StoreConfig, format: str) -> bytes:
    """The network that is published now, as `export` writes it. Raises `ServingError` where nothing
    is."""
    with Scorer(CheckpointStore(config)) as scorer:
        scorer.refresh()
        return export(scorer.model, format)


def export(model: ServedModel, format: str) -> bytes:
    """The network of `model` in one of `FORMATS`. Raises `ServingError` without the package
    `onnx`."""
    if format not in FORMATS:
        raise ServingError(f"--format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "onnx":
        return _onnx(model)
    if format == "torchscript":
        return _torchscript(model)
    return tensors_only(
        {name: tensor for name, tensor in model.rest.items() if name != "linear.prior"}
    )


def inputs(model: ServedModel, batch: EventBatch) -> dict[str, np.ndarray]:
    """What the exported network reads of `batch`, float32: vectors (B, F, D), numerics (B, M),
    contributions (B, S, K)."""
    features = model.encoder.encode(batch)
    read = model.inputs(features)
    return {
        "vectors": model.vectors(features).numpy(),
        "numerics": read.numerics_BM.numpy(),
        "contributions": model.contributions(read).numpy(),
    }


class _Compact(torch.nn.Module):
    """The forward pass from `inputs` to probabilities, in operations that torch can trace."""

    def __init__(self, model: ServedModel):
        super().__init__()
        self._network, self._weights = model.network.whole(model.parameters)
        self._pairs = _pair_places(model.network)
        self._mixture = torch.from_numpy(model.mixture_weights).float()

    def forward(
        self, vectors_BFD: torch.Tensor, numerics_BM: torch.Tensor, contributions_BSK: torch.Tensor
    ) -> torch.Tensor:
        linear_BK = contributions_BSK.sum(1)
        correction_B = self._correction(vectors_BFD, numerics_BM, contributions_BSK[:, :, 0])
        deep_B = linear_BK[:, 0] + correction_B
        experts_BE = torch.cat([linear_BK, deep_B[:, None]], 1).clamp(-LOGIT_RANGE, LOGIT_RANGE)
        return (experts_BE @ self._mixture[1:] + self._mixture[0]).sigmoid()

    def _correction(
        self, vectors_BFD: torch.Tensor, numerics_BM: torch.Tensor, contributions_BS: torch.Tensor
    ) -> torch.Tensor:
        """(B,): `niwaki.model.deep.inference.DeepInference.corrections`."""
        network = self._network
        vectors_BVD = vectors_BFD  # zero already in columns that are cut
        if network.shape.bottom:
            dense_BD = self._mlp("bottom", numerics_BM)
            vectors_BVD = torch.cat([vectors_BFD, dense_BD.unsqueeze(1)], 1)
        read_BX = vectors_BVD.flatten(1)
        if network.shape.columns is not None:
            read_BX = read_BX.index_select(1, network.read)
        parts = [read_BX, numerics_BM, contributions_BS]
        if network.pair_count:
            dots_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
            parts.append(dots_BVV.flatten(1).index_select(1, self._pairs))
        return self._mlp("top", torch.cat(parts, 1)).squeeze(1)

    def _mlp(self, stack: Stack, x: torch.Tensor) -> torch.Tensor:
        names = self._network.layer_names(stack)
        for name in names:
            x = fn.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])
            x = x if name == names[-1] else x.relu()
        return x


def _pair_places(network: Network) -> torch.Tensor:
    """int64: places of the products of all pairs of vectors in a flat V x V matrix."""
    above, right = torch.triu_indices(network.vectors, network.vectors, offset=1)
    return above * network.vectors + right


def _torchscript(model: ServedModel) -> bytes:
    shape, scales = model.shape, len(model.mixture_weights) - 2
    example = (
        torch.zeros(2, shape.fields, shape.embedding_dim),
        torch.zeros(2, shape.numerics),
        torch.zeros(2, shape.slots, scales),
    )
    buffer = io.BytesIO()
    with torch.inference_mode(False):
        torch.jit.save(torch.jit.trace(_Compact(model), example, check_trace=False), buffer)
    return buffer.getvalue()


def _onnx(model: ServedModel) -> bytes:
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise ServingError(
            "an export to ONNX needs the extra `onnx`: pip install 'niwaki[onnx]'"
        ) from error
    shape, mixture = model.shape, model.mixture_weights.astype(np.float32)
    network, parameters = model.network.whole(model.parameters)
    constants: dict[str, np.ndarray] = {name: t.numpy() for name, t in parameters.items()}
    nodes = []

    def node(kind: str, output: str, *names: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def constant(name: str, values: object, kind: type = np.int64) -> str:
        constants[name] = np.asarray(values, kind)
        return name

    def mlp(name: str, hidden: int, x: str) -> str:
        for i in range(hidden + 1):
            layer = f"{name}.{i}"
            x = node("Gemm", f"{layer}.out", x, f"{layer}.weight", f"{layer}.bias", transB=1)
            x = node("Relu", f"{layer}.relu", x) if i < hidden else x
        return x

    vectors, count = "vectors", shape.fields
    if shape.bottom:
        one = node(
            "Unsqueeze",
            "dense",
            mlp("bottom", len(shape.bottom), "numerics"),
            constant("axis_1", [1]),
        )
        vectors, count = node("Concat", "all_vectors", "vectors", one, axis=1), count + 1
    said = node("Gather", "said", "contributions", constant("first", 0), axis=2)
    flat = node(
        "Reshape", "flat", vectors, constant("flat_shape", [-1, count * shape.embedding_dim])
    )
    if shape.columns is not None:  # `inputs` gives zeros for the others
        flat = node("Gather", "read", flat, constant("columns", network.read.numpy()), axis=1)
    parts = [flat, "numerics", said]
    if network.pair_count:
        turned = node("Transpose", "turned", vectors, perm=[0, 2, 1])
        dots = node("MatMul", "dots", vectors, turned)
        flat_dots = node("Reshape", "flat_dots", dots, constant("dots_shape", [-1, count * count]))
        places = constant("pairs", _pair_places(network).numpy())
        parts.append(node("Gather", "pair_dots", flat_dots, places, axis=1))
    correction = mlp("top", len(shape.top), node("Concat", "top_inputs", *parts, axis=1))
    linear = node("ReduceSum", "linear", "contributions", constant("slots_axis", [1]), keepdims=0)
    first = node("Gather", "first_linear", linear, constant("first_column", [0]), axis=1)
    experts = node("Concat", "experts", linear, node("Add", "deep", first, correction), axis=1)
    low, high = constant("low", -LOGIT_RANGE, np.float32), constant("high", LOGIT_RANGE, np.float32)
    clipped = node("Clip", "clipped", experts, low, high)
    weights, bias = (
        constant("mixture", mixture[1:, None], np.float32),
        constant("bias", mixture[:1], np.float32),
    )
    logits = node("Gemm", "logits", clipped, weights, bias)
    node(
        "Sigmoid",
        "probabilities",
        node("Reshape", "flat_logits", logits, constant("flat_out", [-1])),
    )

    def value(name: str, *sizes: int | str) -> object:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)

    graph = helper.make_graph(
        nodes,
        "niwaki",
        [
            value("vectors", "B", shape.fields, shape.embedding_dim),
            value("numerics", "B", shape.numerics),
            value("contributions", "B", shape.slots, len(mixture) - 2),
        ],
        [value("probabilities", "B")],
        [
            numpy_helper.from_array(np.asarray(values, order="C"), name)
            for name, values in constants.items()
        ],
    )
    found = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="niwaki"
    )
    found.ir_version = _IR_VERSION
    checker.check_model(found)
    return found.SerializeToString()
