"""How fast a compact network scores beside the dense one it was cut from, and what its publication costs.

Scoring: the same ids and numerics on both sides, by the scorer's own code, from embedding rows to logits: the compact
network, the dense one in eager PyTorch, the dense one with the pruned units' weights at zero (masked), and the dense
one in ONNX Runtime where that is installed (the extra `onnx`). Weights are fresh: what they are does not change how
long they take, and units are cut from every layer alike. Publication: a generated stream is learned and published to a
Redis, and a scorer takes each version over; its share is of the time that learning takes in the same run.
"""

import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from benchmarks.frame import Findings, Spread, at_least, at_most, main, paired
from model.encoder import Features
from model.exports import Export
from model.learner import Learner, LearnerConfig
from model.network import Network
from model.served import ServedModel
from pruning.policy import PruningConfig
from serving.export import export
from serving.scorer import Scorer
from serving.store import CheckpointStore
from stream.backtest import rebatch
from stream.drift import DriftConfig
from stream.events import table_to_batch
from stream.local import embedded_redis
from stream.synthetic import SCHEMA, SyntheticConfig, generate
from stream.trainer import Trainer, TrainingConfig

TOPS = ((512, 256), (1024, 1024, 512, 256))
SPARSITIES = (0.8, 0.9, 0.95)
CANDIDATES = (1, 16, 128, 1024)
HYPOTHESES = {  # candidates 128, sparsity 0.9: times the dense network in PyTorch, and in ONNX Runtime
    TOPS[0]: (5.0, 3.0),
    TOPS[1]: (8.0, 5.0),
}
_LEAST_S = 0.01


def measure(quick: bool) -> Findings:
    """Scoring first, then publication."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    worst = np.inf
    for top in TOPS:
        for sparsity in SPARSITIES[1:2] if quick else SPARSITIES:
            for candidates in CANDIDATES[2:3] if quick else CANDIDATES:
                found = _compare(top, sparsity, candidates, rounds=3 if quick else 9)
                rows += found
                ratios = {row["beside"]: row["times_as_fast"] for row in found}
                worst = min(worst, ratios["dense, PyTorch"])
                if (candidates, sparsity) == (128, 0.9):
                    for beside, bound in zip(("dense, PyTorch", "dense, ONNX Runtime"), HYPOTHESES[top], strict=True):
                        if beside in ratios:
                            claims.append(at_least(_claim(beside, top), ratios[beside], bound))
    claims.append(at_least("never slower than the dense network in PyTorch: the least of all ratios", worst, 1.0))
    published, setting = _publish(4_096 if quick else 81_920, 2_048 if quick else 40_960)
    return Findings(rows, claims + published, {"threads": 1, "rounds": 3 if quick else 9} | setting)


def _claim(beside: str, top: tuple[int, ...]) -> str:
    return f"128 candidates, 90 % pruned, top {'-'.join(map(str, top))}: times as fast as {beside}"


def _compare(top: tuple[int, ...], sparsity: float, candidates: int, rounds: int) -> list[dict[str, Any]]:
    """The compact network beside each of the others."""
    learner, features = _learner(top, candidates)
    dense = _served(learner, learner.dense.network, learner.dense.parameters)
    narrow = _narrowed(learner.dense.network, sparsity)
    slices = {name: tuple(slice(0, size) for size in shape) for name, shape in narrow.shapes.items()}
    weights = {name: t[slices[name]].clone() for name, t in learner.dense.parameters.items()}
    compact = _served(learner, narrow, weights)
    masked = {name: torch.zeros_like(t) for name, t in learner.dense.parameters.items()}
    for name, tensor in masked.items():
        tensor[slices[name]] = weights[name]
    others: dict[str, Callable[[], Any]] = {
        "dense, PyTorch": lambda: dense.experts(features),
        "masked, PyTorch": lambda: masked_model.experts(features),
    }
    masked_model = _served(learner, learner.dense.network, masked)
    if find_spec("onnx") and find_spec("onnxruntime"):
        others["dense, ONNX Runtime"] = _onnx(dense, features)
    rows = []
    for beside, other in others.items():
        times = _times(lambda: compact.experts(features))
        pair = paired(_repeated(other, times), _repeated(lambda: compact.experts(features), times), rounds)
        about = {"top": "-".join(map(str, top)), "sparsity": sparsity, "candidates": candidates, "beside": beside}
        us = {"us": _us(pair.first_s, times), "compact_us": _us(pair.second_s, times)}
        ratio = {"times_as_fast": pair.ratio.median, "low": pair.ratio.low, "high": pair.ratio.high}
        rows.append(about | us | ratio)
    return rows


def _learner(top: tuple[int, ...], candidates: int) -> tuple[Learner, Features]:
    table = next(generate(SyntheticConfig(events=candidates, drifts=()), chunk_events=candidates))
    batch = table_to_batch(table, SCHEMA)[0]
    learner = Learner(SCHEMA, LearnerConfig(top=top))
    features = learner.encoder.encode(batch)
    learner.learn(features, batch.labels_B)
    return learner, features


def _narrowed(network: Network, sparsity: float) -> Network:
    """Every layer as wide as the budget allows, by the same factor."""
    low, high = 0.0, 1.0
    for _ in range(30):
        factor = (low + high) / 2
        narrow = network.narrowed({group.name: max(1, int(group.size * factor)) for group in network.groups})
        within = narrow.cost.total({}) <= (1 - sparsity) * network.cost.total({})
        low, high = (factor, high) if within else (low, factor)
    return network.narrowed({group.name: max(1, int(group.size * low)) for group in network.groups})


def _served(learner: Learner, network: Network, weights: dict[str, torch.Tensor]) -> ServedModel:
    tensors = learner.export(learner.mixture.weights).tensors
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("network.")}
    scales = len(learner.config.half_lives_events)
    model = ServedModel(SCHEMA, learner.encoder, embedding_dim=learner.config.embedding_dim, scales=scales)
    model.apply(Export(network.shape, tensors | {f"network.{name}": tensor for name, tensor in weights.items()}))
    return model


def _onnx(model: ServedModel, features: Features) -> Callable[[], Any]:
    """Its embeddings and what the linear expert says are looked up by the same code as for the others."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = InferenceSession(export(model, "onnx"), options, providers=["CPUExecutionProvider"])

    def score() -> Any:
        with torch.inference_mode():
            inputs, vectors_BFD = model.inputs(features), model.vectors(features)
            contributions_BSK = model.contributions(inputs)
        read = {"vectors": vectors_BFD.numpy(), "numerics": inputs.numerics_BM.numpy()}
        return session.run(None, read | {"contributions": contributions_BSK.numpy()})

    return score


def _times(run: Callable[[], Any]) -> int:
    """How often to run so that the clock can tell."""
    run()
    started_s = time.perf_counter()
    run()
    return max(1, round(_LEAST_S / (time.perf_counter() - started_s)))


def _repeated(run: Callable[[], Any], times: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(times):
            run()

    return repeat


def _us(taken_s: Spread, times: int) -> float:
    return 1e6 * taken_s.median / times


def _publish(events: int, warmup_events: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Claims about publications every 1,000 events once a network has been cut, and the figures behind them."""
    training = TrainingConfig()
    half = warmup_events // 2
    pruning = PruningConfig(policy="static", warmup_events=half - training.batch_events, pruning_events=half)
    trainer = Trainer(SCHEMA, LearnerConfig(), pruning, DriftConfig(), training)
    publication, version, base = trainer.follow(training.publish_every_events), 0, 0
    learning_s, publishing_s, servable_s, deltas, fulls = 0.0, 0.0, [], [], []
    tables = generate(SyntheticConfig(events=events, drifts=()), chunk_events=1_024)
    with (
        embedded_redis(shutil.which("redis-server")) as url,
        CheckpointStore.from_url(url) as store,
        Scorer.from_redis(url) as scorer,
    ):
        for batch in rebatch((table_to_batch(table, SCHEMA)[0] for table in tables), training.batch_events):
            started_s = time.perf_counter()
            step = trainer.step(batch)
            learned_s = time.perf_counter()
            measured = trainer.events > warmup_events + training.publish_every_events
            learning_s += (learned_s - started_s) * measured
            if not publication.due(step):
                continue
            version, base = version + 1, 0 if publication.full_due else base
            about = {"version": version, "parent": version - 1, "offsets": {}, "created_s": time.time()}
            header, data = trainer.checkpoint(publication, base=base, **about)
            assert store.publish(header, data)
            publication.refresh()
            publishing_s += (time.perf_counter() - learned_s) * measured
            assert scorer.wait(version, 30)
            base = base or version
            if measured:
                (deltas if header.base else fulls).append(len(data))
                servable_s.append(time.perf_counter() - learned_s)
        _, last_full = trainer.checkpoint(publication, **about | {"version": version + 1})
        dense_bytes = trainer.learner.dense_bytes
    setting = {"delta_bytes": float(np.median(deltas)), "full_bytes": len(last_full), "dense_bytes": dense_bytes}
    setting |= {"learned_to_servable_p50_s": float(np.median(servable_s)), "publications": len(deltas) + len(fulls)}
    return [
        at_most(
            "bytes of a delta every 1,000 events over those of a full checkpoint",
            setting["delta_bytes"] / len(last_full),
            0.1,
        ),
        at_most(
            "bytes of a full checkpoint, 90 % pruned, over the dense model's float32 bytes, touched rows",
            len(last_full) / dense_bytes,
            0.35,
        ),
        at_most("seconds of publishing every 1,000 events over seconds of learning", publishing_s / learning_s, 0.05),
        at_most(
            "from the last event's learning to a scorer that serves it, p95, seconds",
            float(np.quantile(servable_s, 0.95)),
            1.0,
        ),
    ], setting


if __name__ == "__main__":
    main("scoring", measure)
