"""Exports of the compact network to ONNX, TorchScript or safetensors, for a server of one's own.

In: a published model. Out: bytes. ONNX and TorchScript hold the forward pass from embeddings,
prepared numerics and contributions of the linear expert's slots to the probability. Hashing and the
tables, which are lookups, stay with the server: `inputs` computes what these networks read.
safetensors holds every tensor of the model but its tables.

Shapes: B events, F fields, D embedding width, M prepared numerics, S slots, K time scales, V
vectors in the interaction, E = K + 1 experts.
"""

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from niwaki.model.deep.interaction import SOFTENING, for_cosines, gain_of
from niwaki.model.deep.network import Network, Stack
from niwaki.model.features.schema import EventBatch
from niwaki.model.mixture.mixture import LOGIT_RANGE
from niwaki.model.published.checkpoint import tensors_only
from niwaki.model.published.served import ServedModel
from niwaki.pruning.errors import RuleError
from niwaki.serving.errors import ServingError
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, ValueInfoProto

FORMATS = ("onnx", "torchscript", "safetensors")
_OPSET = 17
_IR_VERSION = 8


def published(config: StoreConfig, format: str) -> bytes:
    """The network that is published now, exported as by `export`. Raises `ServingError` if nothing
    is published."""
    with Scorer(CheckpointStore(config)) as scorer:
        scorer.refresh()
        return export(scorer.model, format)


def export(model: ServedModel, format: str) -> bytes:
    """The network of `model` in one of `FORMATS`. Raises `RuleError` for another format, and for
    any but safetensors where there are further experts; `ServingError` without the package
    `onnx`."""
    if format not in FORMATS:
        raise RuleError("--format", f"must be one of {', '.join(FORMATS)}", format)
    if model.further and format != "safetensors":
        further = ", ".join(expert.name for expert in model.further)
        rule = f"must be safetensors for a model with further experts ({further})"
        raise RuleError("--format", rule, format)
    if format == "onnx":
        return _onnx(model)
    if format == "torchscript":
        return _torchscript(model)
    return tensors_only(
        {name: tensor for name, tensor in model.rest.items() if name != "linear.prior"}
    )


def inputs(model: ServedModel, batch: EventBatch) -> dict[str, np.ndarray]:
    """Inputs of the exported network, float32: vectors (B, F, D), numerics (B, M), contributions
    (B, S, K)."""
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
            if network.shape.interaction == "cosine":
                vectors_BVD = for_cosines(vectors_BVD, float(gain_of(network.vectors)))
            products_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
            parts.append(products_BVV.flatten(1).index_select(1, self._pairs))
        return self._mlp("top", torch.cat(parts, 1)).squeeze(1)

    def _mlp(self, stack: Stack, x: torch.Tensor) -> torch.Tensor:
        names = self._network.layer_names(stack)
        for name in names:
            weight_OI, bias_O = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
            x = torch.addmm(bias_O, x, weight_OI.T)
            x = x if name == names[-1] else x.relu()
        return x


def _pair_places(network: Network) -> torch.Tensor:
    """int64: places of the products of all pairs of vectors in a flat V x V matrix."""
    rows, columns = torch.triu_indices(network.vectors, network.vectors, offset=1).unbind()
    return rows * network.vectors + columns


def _torchscript(model: ServedModel) -> bytes:
    shape, scales = model.shape, len(model.mixture_weights) - 2
    example = (
        torch.zeros(2, shape.fields, shape.embedding_dim),
        torch.zeros(2, shape.numerics),
        torch.zeros(2, shape.slots, scales),
    )
    buffer = io.BytesIO()
    with torch.inference_mode(False):
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch has no types for it
            _Compact(model), example, check_trace=False
        )
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


def _onnx(model: ServedModel) -> bytes:
    try:
        from onnx import checker, helper
    except ImportError as error:
        raise ServingError(
            "an export to ONNX needs the extra `onnx`: pip install 'niwaki[onnx]'"
        ) from error
    graph = _OnnxGraph(model)
    exported = helper.make_model(
        graph.complete(), opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="niwaki"
    )
    exported.ir_version = _IR_VERSION
    checker.check_model(exported)
    data: bytes = exported.SerializeToString()
    return data


class _OnnxGraph:
    """The forward pass from `inputs` to probabilities, as nodes and constants of ONNX."""

    def __init__(self, model: ServedModel):
        self._network, parameters = model.network.whole(model.parameters)
        self._mixture = model.mixture_weights.astype(np.float32)
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, np.ndarray] = {
            name: tensor.numpy() for name, tensor in parameters.items()
        }

    def complete(self) -> "GraphProto":
        """The graph from its inputs to `probabilities`."""
        from onnx import helper, numpy_helper

        shape = self._network.shape
        self._write_probabilities(self._correction())
        return helper.make_graph(
            self._nodes,
            "niwaki",
            [
                _value("vectors", "B", shape.fields, shape.embedding_dim),
                _value("numerics", "B", shape.numerics),
                _value("contributions", "B", shape.slots, len(self._mixture) - 2),
            ],
            [_value("probabilities", "B")],
            [
                numpy_helper.from_array(np.asarray(values, order="C"), name)
                for name, values in self._constants.items()
            ],
        )

    def _correction(self) -> str:
        """(B, 1): `niwaki.model.deep.inference.DeepInference.corrections`."""
        network = self._network
        node, constant = self._node, self._constant
        width, count = network.shape.embedding_dim, network.shape.fields
        vectors = "vectors"
        if network.shape.bottom:
            axis = constant("axis_1", [1])
            one = node("Unsqueeze", "dense", self._mlp("bottom", "numerics"), axis)
            vectors, count = node("Concat", "all_vectors", "vectors", one, axis=1), count + 1
        flat = node("Reshape", "flat", vectors, constant("flat_shape", [-1, count * width]))
        if network.shape.columns is not None:  # `inputs` gives zeros for the others
            flat = node("Gather", "read", flat, constant("columns", network.read.numpy()), axis=1)
        first = constant("first", 0)
        parts = [flat, "numerics", node("Gather", "first_scale", "contributions", first, axis=2)]
        if network.pair_count:
            if network.shape.interaction == "cosine":
                vectors = self._softened(vectors)
            transposed = node("Transpose", "transposed", vectors, perm=[0, 2, 1])
            products = node("MatMul", "products", vectors, transposed)
            flat_shape = constant("products_shape", [-1, count * count])
            flat_products = node("Reshape", "flat_products", products, flat_shape)
            places = constant("pairs", _pair_places(network).numpy())
            parts.append(node("Gather", "pair_products", flat_products, places, axis=1))
        return self._mlp("top", node("Concat", "top_inputs", *parts, axis=1))

    def _softened(self, vectors: str) -> str:
        """(B, V, D): vectors whose dot products are the cosines that the network reads."""
        node, constant = self._node, self._constant
        last = constant("vector_axis", [2])
        square = node("ReduceSum", "square", node("Mul", "squares", vectors, vectors), last)
        softening = constant("softening", SOFTENING, np.float32)
        length = node("Sqrt", "length", node("Add", "softened_square", square, softening))
        direction = node("Div", "direction", vectors, length)
        gain = constant("gain", np.sqrt(gain_of(self._network.vectors)), np.float32)
        return node("Mul", "cosine_vectors", direction, gain)

    def _write_probabilities(self, correction: str) -> None:
        """Experts, and their mixture, from the deep expert's correction."""
        node, constant = self._node, self._constant
        slots_axis = constant("slots_axis", [1])
        linear = node("ReduceSum", "linear", "contributions", slots_axis, keepdims=0)
        first = node("Gather", "first_linear", linear, constant("first_column", [0]), axis=1)
        experts = node("Concat", "experts", linear, node("Add", "deep", first, correction), axis=1)
        low = constant("low", -LOGIT_RANGE, np.float32)
        high = constant("high", LOGIT_RANGE, np.float32)
        clipped = node("Clip", "clipped", experts, low, high)
        weights = constant("mixture", self._mixture[1:, None], np.float32)
        bias = constant("bias", self._mixture[:1], np.float32)
        logits = node("Gemm", "logits", clipped, weights, bias)
        flat = node("Reshape", "flat_logits", logits, constant("flat_out", [-1]))
        node("Sigmoid", "probabilities", flat)

    def _mlp(self, stack: Stack, x: str) -> str:
        names = self._network.layer_names(stack)
        for name in names:
            x = self._node("Gemm", f"{name}.out", x, f"{name}.weight", f"{name}.bias", transB=1)
            x = x if name == names[-1] else self._node("Relu", f"{name}.relu", x)
        return x

    def _node(self, kind: str, output: str, *names: str, **attributes: Any) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def _constant(self, name: str, values: object, kind: type = np.int64) -> str:
        self._constants[name] = np.asarray(values, kind)
        return name


def _value(name: str, *sizes: int | str) -> "ValueInfoProto":
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
