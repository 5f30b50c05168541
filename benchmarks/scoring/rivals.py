"""The served model as others would serve it, and networks of different sparsity to compare.

`PlainModel` is a plain PyTorch module: `nn.Embedding`, gathers for the linear expert, `nn.Linear`.
`onnx_runtime` is the exported graph, with the lookups of that module before it. Both start from the
same hashed ids and raw numerics as niwaki's scorer does, end with probabilities, and are checked to
give the same ones.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from niwaki.model.config import LearnerConfig
from niwaki.model.deep.interaction import for_cosines, gain_of
from niwaki.model.deep.network import Network
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.numerics import CODES, KNOTS
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import EventBatch
from niwaki.model.learner import Learner
from niwaki.model.linear.kernels import locate_slots
from niwaki.model.mixture.mixture import LOGIT_RANGE
from niwaki.model.published.served import ModelFrame, ServedModel
from niwaki.model.published.tensors import Export
from niwaki.serving.network_export import export
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig

Score = Callable[[HashedEvents], np.ndarray]


def learned(top: tuple[int, ...], events: int = 4_096) -> Learner:
    """A learner that has seen some events of the synthetic stream, so that no table is empty."""
    learner = Learner(SCHEMA, LearnerConfig(top=top))
    for table in generate(SyntheticConfig(events=events, drifts=()), chunk_events=512):
        batch = table_to_batch(table, SCHEMA)[0]
        learner.learn(learner.encoder.encode(batch), Outcomes.of(batch))
    return learner


def some_candidates(count: int) -> EventBatch:
    """Events to score."""
    return table_to_batch(
        next(generate(SyntheticConfig(events=count, seed=1, drifts=()), chunk_events=count)), SCHEMA
    )[0]


def compact(learner: Learner, sparsity: float) -> ServedModel:
    """The model with only the first units of each layer, every layer as wide as the budget allows
    by the same factor.

    Which units they are does not change how long they take."""
    network, weights = learner.branches.dense.network, learner.branches.dense.parameters
    narrow = narrowed(network, sparsity) if sparsity else network
    kept = {
        n: weights[n][tuple(slice(0, size) for size in shape)].clone()
        for n, shape in narrow.shapes.items()
    }
    return served(learner, narrow, kept)


def masked(learner: Learner, sparsity: float) -> ServedModel:
    """The dense model, with zeros in the place of the weights of pruned units: what people do by
    mistake."""
    narrow, weights = compact(learner, sparsity), learner.branches.dense.parameters
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for name, tensor in narrow.parameters.items():
        zeros[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
    return served(learner, learner.branches.dense.network, zeros)


def narrowed(network: Network, sparsity: float) -> Network:
    """`network` within (1 - sparsity) of its multiply-adds."""
    low, high = 0.0, 1.0
    for _ in range(30):
        factor = (low + high) / 2
        narrow = network.narrowed(
            {group.name: max(1, int(group.size * factor)) for group in network.groups}
        )
        within = narrow.cost.total({}) <= (1 - sparsity) * network.cost.total({})
        low, high = (factor, high) if within else (low, factor)
    return network.narrowed({group.name: max(1, int(group.size * low)) for group in network.groups})


def served(learner: Learner, network: Network, weights: dict[str, torch.Tensor]) -> ServedModel:
    """A scorer's model, with this network in the place of the learner's."""
    tensors = learner.export(learner.mixture.weights).tensors
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("network.")}
    tensors |= {f"network.{name}": tensor for name, tensor in weights.items()}
    dim, scales = learner.config.embedding_dim, len(learner.config.half_lives_events)
    frame = ModelFrame(
        SCHEMA, learner.encoder, learner.config.pair_budget, embedding_dim=dim, scales=scales
    )
    return ServedModel(frame, frame.empty_tables(), Export(network.shape, tensors))


def niwaki(model: ServedModel) -> Score:
    """niwaki's scorer, after hashing."""
    return lambda features: model.probabilities(model.logits(model.experts(features)))


def pytorch(model: ServedModel) -> Score:
    """`PlainModel`, eager."""
    plain = PlainModel(model).eval()

    def score(features: HashedEvents) -> np.ndarray:
        with torch.inference_mode():
            return plain(features.rows_BF, plain.pairs(features), features.raw_numerics_BN).numpy()

    return score


def onnx_runtime(model: ServedModel, threads: int) -> Score:
    """The exported graph. Raises `ImportError` without the extra `onnx`."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = InferenceSession(export(model, "onnx"), options, providers=["CPUExecutionProvider"])
    plain = PlainModel(model).eval()

    def score(features: HashedEvents) -> np.ndarray:
        with torch.inference_mode():
            read = plain.lookups(features.rows_BF, plain.pairs(features), features.raw_numerics_BN)
        return session.run(None, {name: tensor.numpy() for name, tensor in read.items()})[0]

    return score


class PlainModel(nn.Module):
    """The whole model from hashed ids and raw numerics to probabilities, in PyTorch's own
    modules."""

    def __init__(self, model: ServedModel):
        super().__init__()
        shape, rest = model.shape, model.rest
        self.embedding = nn.Embedding.from_pretrained(model.tables["embedding"], freeze=True)
        self.evidence_R2K, self.prior_SK = model.tables["linear"], rest["linear.prior"]
        self.moments_2N, self.knots_NQ = rest["numerics.moments"], rest["numerics.knots"]
        mixture = torch.from_numpy(model.mixture_weights).float()
        self.bias, self.mixture = mixture[0], mixture[1:]
        self.bottom = (
            self._mlp("bottom", len(shape.bottom), model.parameters) if shape.bottom else None
        )
        self.top = self._mlp("top", len(shape.top), model.parameters)
        vectors = shape.fields + bool(shape.bottom)
        self.gain = float(gain_of(vectors)) if shape.interaction == "cosine" else 0.0
        self.first, self.second = torch.triu_indices(vectors, vectors, offset=1)
        fields, numerics = (
            len(model.encoder.schema.fields),
            len(model.encoder.schema.numeric),
        )
        self.slots, self.fields = model.slots, fields
        first_score = model.slots.places.first_score
        self.scores = first_score + torch.arange(2 * numerics)
        self.codes = first_score + 2 * numerics + torch.arange(numerics) * CODES
        self.constant = len(self.evidence_R2K) - 1

    def pairs(self, features: HashedEvents) -> torch.Tensor:
        """(B, P): rows of the pairs that live, found by niwaki's kernel."""
        places = *self.slots.places, *self.slots.pairs
        events, nothing = len(features.rows_BF), np.empty((len(features.rows_BF), 0), np.float32)
        rows_BS = np.empty((events, self.slots.single), np.int64)
        values_BS = np.empty(rows_BS.shape, np.float32)
        ids = features.rows_BF.numpy(), features.hashes_BF.numpy()
        numerics = nothing, nothing.astype(np.int64), nothing
        locate_slots(*ids, *numerics, *places, rows_BS, values_BS)
        first = self.fields
        return torch.from_numpy(rows_BS[:, first : first + len(self.slots.pairs.fields_P2)])

    def forward(
        self, rows_BF: torch.Tensor, pairs_BP: torch.Tensor, numerics_BN: torch.Tensor
    ) -> torch.Tensor:
        """(B,) probabilities."""
        read = self.lookups(rows_BF, pairs_BP, numerics_BN)
        vectors_BVD, numerics_BM = read["vectors"], read["numerics"]
        contributions_BSK = read["contributions"]
        if self.bottom is not None:
            vectors_BVD = torch.cat([vectors_BVD, self.bottom(numerics_BM).unsqueeze(1)], 1)
        parts = [vectors_BVD.flatten(1), numerics_BM, contributions_BSK[:, :, 0]]
        vectors_BVD = for_cosines(vectors_BVD, self.gain) if self.gain else vectors_BVD
        products_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
        correction_B1 = self.top(torch.cat([*parts, products_BVV[:, self.first, self.second]], 1))
        linear_BK = contributions_BSK.sum(1)
        experts_BE = torch.cat([linear_BK, linear_BK[:, :1] + correction_B1], 1).clamp(
            -LOGIT_RANGE, LOGIT_RANGE
        )
        return (experts_BE @ self.mixture + self.bias).sigmoid()

    def lookups(
        self, rows_BF: torch.Tensor, pairs_BP: torch.Tensor, numerics_BN: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The inputs of the exported graph."""
        scores_BM, code_BN, above_BN = self._prepare(numerics_BN)
        events, below_BN = len(rows_BF), code_BN + self.codes
        constant_B1 = torch.full((events, 1), self.constant)
        rows = [
            rows_BF,
            pairs_BP,
            self.scores.expand(events, -1),
            below_BN,
            below_BN + 1,
        ]
        ids = torch.ones(events, rows_BF.shape[1] + pairs_BP.shape[1])
        values_BS = torch.cat([ids, scores_BM, 1 - above_BN, above_BN, torch.ones(events, 1)], 1)
        evidence_BS2K = self.evidence_R2K[torch.cat([*rows, constant_B1], 1)]
        means_BSK = evidence_BS2K[:, :, 0] / (self.prior_SK + evidence_BS2K[:, :, 1])
        contributions_BSK = means_BSK * values_BS[:, :, None]
        return {
            "vectors": self.embedding(rows_BF),
            "numerics": scores_BM,
            "contributions": contributions_BSK,
        }

    def _prepare(
        self, numerics_BN: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        missing_BN = numerics_BN.isnan()
        scores_BN = torch.where(
            missing_BN, 0.0, ((numerics_BN - self.moments_2N[0]) * self.moments_2N[1]).asinh()
        )
        values_NB, knots_NQ = numerics_BN.nan_to_num(0.0).T.contiguous(), self.knots_NQ
        last_N1 = (knots_NQ.isfinite().sum(1, keepdim=True) - 1).clamp(min=0)
        index_NB = torch.minimum(
            torch.searchsorted(knots_NQ, values_NB, right=True) - 1, last_N1 - 1
        ).clamp(min=0)
        low_NB, high_NB = (
            knots_NQ.gather(1, index_NB),
            knots_NQ.gather(1, (index_NB + 1).clamp(max=KNOTS - 1)),
        )
        above_BN = ((values_NB - low_NB) / (high_NB - low_NB)).clamp(0, 1).nan_to_num(0.0).T
        known_BN = ~missing_BN & knots_NQ[:, 0].isfinite()
        code_BN, above_BN = (
            torch.where(known_BN, index_NB.T + 1, 0),
            torch.where(known_BN, above_BN, 0.0),
        )
        return torch.cat([scores_BN, missing_BN.float()], 1), code_BN, above_BN

    def _mlp(self, name: str, hidden: int, parameters: dict[str, torch.Tensor]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(hidden + 1):
            weight, bias = parameters[f"{name}.{i}.weight"], parameters[f"{name}.{i}.bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight, layer.bias = (
                nn.Parameter(weight.clone(), False),
                nn.Parameter(bias.clone(), False),
            )
            layers += [layer, nn.ReLU()] if i < hidden else [layer]
        return nn.Sequential(*layers)
