"""The duration of a call: niwaki's scorer at each sparsity beside the dense network as others would
run it.

All subjects of one setting are measured in turns, a burst of calls each, for as many rounds as the
time allows; what else the machine does then falls on all alike. A ratio is that of the medians of
two bursts of one round.
"""

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch

from benchmarks.frame import Findings, at_least, spread
from benchmarks.scoring import rivals
from niwaki.serving.bodies import wire
from niwaki.stream.synthetic.columns import SCHEMA

TOPS = ((512, 256), (1024, 1024, 512, 256))
SPARSITIES = (0.0, 0.8, 0.9, 0.95)
CANDIDATES = (1, 16, 128, 1024)
THREADS = (1, 2)
# 128 candidates, 90 % pruned, one thread: times as fast as the dense network.
BOUNDS = {
    TOPS[0]: {"dense, PyTorch": 5.0, "dense, ONNX Runtime": 3.0},
    TOPS[1]: {"dense, PyTorch": 8.0, "dense, ONNX Runtime": 5.0},
}
_BURST_S = 0.01
_LEAST_ROUNDS = 5

Rows = list[dict[str, Any]]


def compute(quick: bool) -> Findings:
    """Seconds of a call by candidates, sparsity, width and threads."""
    rows: Rows = []
    seconds = 1.5 if quick else 10.0
    for top in TOPS:
        learner = rivals.learned(top)
        for candidates in (1, 128) if quick else CANDIDATES:
            batch = rivals.some_candidates(candidates)
            features = learner.encoder.encode(batch)
            for threads in THREADS[:1] if quick else THREADS:
                torch.set_num_threads(threads)
                scores = _subjects(learner, (0.0, 0.9) if quick else SPARSITIES, threads)
                _check_same(scores, features)
                calls = {name: _bound(score, features) for name, score in scores.items()}
                about = {
                    "what": "ids",
                    "top": _name(top),
                    "candidates": candidates,
                    "threads": threads,
                }
                rows += _measured(calls, seconds, about)
            torch.set_num_threads(1)
        rows += _requests(learner, top, seconds)
    return Findings(
        rows,
        _claims(rows),
        {"seconds_a_setting": seconds, "onnxruntime": bool(find_spec("onnxruntime"))},
    )


def _subjects(
    learner: Any, sparsities: tuple[float, ...], threads: int
) -> dict[tuple[str, float], rivals.Score]:
    """By name and sparsity."""
    dense = rivals.compact(learner, 0.0)
    subjects = {
        ("niwaki", sparsity): rivals.niwaki(rivals.compact(learner, sparsity))
        for sparsity in sparsities
    }
    subjects["dense, PyTorch", 0.0] = rivals.pytorch(dense)
    subjects["masked, PyTorch", 0.9] = rivals.pytorch(rivals.masked(learner, 0.9))
    if find_spec("onnx") and find_spec("onnxruntime"):
        subjects["dense, ONNX Runtime", 0.0] = rivals.onnx_runtime(dense, threads)
    return subjects


def _check_same(scores: Mapping[tuple[str, float], rivals.Score], features: Any) -> None:
    for sparsity, other in (
        (0.0, "dense, PyTorch"),
        (0.0, "dense, ONNX Runtime"),
        (0.9, "masked, PyTorch"),
    ):
        if (other, sparsity) in scores:
            off = np.abs(
                scores[other, sparsity](features) - scores["niwaki", sparsity](features)
            ).max()
            assert off < 1e-5, f"{other} differs from niwaki by {off}"


def _requests(learner: Any, top: tuple[int, ...], seconds: float) -> Rows:
    """One context with 128 candidates: from the bytes of a request to those of its answer, on both
    sides with the server's own decoding and hashing."""
    body = request(128)
    sparse = rivals.compact(learner, 0.9)
    dense = rivals.compact(learner, 0.0)
    encoder = learner.encoder

    def answer(score: rivals.Score) -> Callable[[], bytes]:
        def call() -> bytes:
            hashed = wire.hash_score(body, encoder, 4_096)
            return msgspec.json.encode(wire.ScoreAnswer(1, score(hashed).tolist()))

        return call

    calls = {
        ("niwaki", 0.9): answer(rivals.niwaki(sparse)),
        ("niwaki", 0.0): answer(rivals.niwaki(dense)),
    }
    calls["dense, PyTorch", 0.0] = answer(rivals.pytorch(dense))
    if find_spec("onnx") and find_spec("onnxruntime"):
        calls["dense, ONNX Runtime", 0.0] = answer(rivals.onnx_runtime(dense, 1))
    return _measured(
        calls, seconds, {"what": "request", "top": _name(top), "candidates": 128, "threads": 1}
    )


def request(candidates: int) -> bytes:
    """A body of `POST /score`: user, segment and device make the context, the other columns a
    candidate."""
    shared = ("c_user", "c_segment", "c_device", "c_placement", "n_clicks", "n_scroll")
    batch = rivals.some_candidates(candidates)
    columns = {
        name: column.to_pylist()
        for name, column in zip(SCHEMA.categorical, batch.categorical, strict=True)
    }
    columns |= {name: batch.numerics_BN[:, i].tolist() for i, name in enumerate(SCHEMA.numeric)}
    # JSON has no NaN: a missing numeric is null.
    given = {
        name: [None if value != value else value for value in values]
        for name, values in columns.items()
    }
    context = {name: given[name][0] for name in shared}
    rest = [name for name in given if name not in shared]
    rows = [
        dict(zip(rest, values, strict=True))
        for values in zip(*(given[name] for name in rest), strict=True)
    ]
    return msgspec.json.encode({"context": context, "candidates": rows})


def arrow_request(candidates: int) -> bytes:
    """The body of `request` as an Arrow IPC stream."""
    asked = msgspec.json.decode(request(candidates))
    table = pa.Table.from_pylist(asked["candidates"])
    table = table.replace_schema_metadata({"context": msgspec.json.encode(asked["context"])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def _measured(
    calls: Mapping[tuple[str, float], Callable[[], Any]], seconds: float, about: dict[str, Any]
) -> Rows:
    bursts = in_turns(calls, seconds)
    rows = []
    for key, taken in bursts.items():
        all_s = np.concatenate(taken)
        row = about | {"who": key[0], "sparsity": key[1], "calls": len(all_s)}
        row |= {
            "p50_us": 1e6 * float(np.quantile(all_s, 0.5)),
            "p99_us": 1e6 * float(np.quantile(all_s, 0.99)),
        }
        row["candidates_per_s"] = about["candidates"] / float(np.mean(all_s))
        for other, name in (
            ("dense, PyTorch", "times_pytorch"),
            ("dense, ONNX Runtime", "times_onnx"),
        ):
            ratios = [
                float(np.median(a) / np.median(b))
                for a, b in zip(bursts.get((other, 0.0), ()), taken, strict=False)
            ]
            middle = spread(ratios) if ratios else None
            row |= {name: middle.median if middle else None}
            row |= {
                f"{name}_low": middle.low if middle else None,
                f"{name}_high": middle.high if middle else None,
            }
        rows.append(row)
    return rows


def in_turns(calls: Mapping[Any, Callable[[], Any]], seconds: float) -> dict[Any, list[np.ndarray]]:
    """Seconds of each call, by subject and round."""
    counts = {}
    for key, call in calls.items():
        call()
        started_s = time.perf_counter()
        call()
        counts[key] = max(1, round(_BURST_S / (time.perf_counter() - started_s)))
    taken: dict[Any, list[np.ndarray]] = {key: [] for key in calls}
    until_s, rounds = time.perf_counter() + seconds, 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < until_s:
        order = list(calls.items())
        for key, call in order[rounds % len(order) :] + order[: rounds % len(order)]:
            call()  # whose tables and weights are then in the cache
            clock_s = np.empty(counts[key] + 1)
            clock_s[0] = time.perf_counter()
            for i in range(counts[key]):
                call()
                clock_s[i + 1] = time.perf_counter()
            taken[key].append(np.diff(clock_s))
        rounds += 1
    return taken


def _bound(score: rivals.Score, features: Any) -> Callable[[], Any]:
    return lambda: score(features)


def _name(top: tuple[int, ...]) -> str:
    return "-".join(map(str, top))


def _claims(rows: Rows) -> Rows:
    claims = []
    columns = {"dense, PyTorch": "times_pytorch", "dense, ONNX Runtime": "times_onnx"}
    for top, bounds in BOUNDS.items():
        for other, bound in bounds.items():
            for row in rows:
                at = (
                    row["what"],
                    row["top"],
                    row["candidates"],
                    row["threads"],
                    row["who"],
                    row["sparsity"],
                )
                if (
                    at == ("ids", _name(top), 128, 1, "niwaki", 0.9)
                    and row[columns[other]] is not None
                ):
                    text = f"128 candidates, 90 % pruned, top {_name(top)}, one thread"
                    text += f": times as fast as {other}"
                    claims.append(at_least(text, row[columns[other]], bound))
    ours = [
        row
        for row in rows
        if row["what"] == "ids" and row["who"] == "niwaki" and row["sparsity"] > 0
    ]
    for other, column in columns.items():
        ratios = [row[column] for row in ours if row[column] is not None]
        if ratios:
            claims.append(
                at_least(
                    f"pruned, never slower than {other}: the least of all ratios", min(ratios), 1.0
                )
            )
    return claims
