"""How fast the learner learns, dense and pruned, beside a plain PyTorch loop, Vowpal Wabbit and
River.

13 numerics and 26 fields, a million rows of 16 floats in all, a bottom MLP of 128, made-up events
that all systems learn in the same order. After a warm-up, and a pruning for those that are pruned,
all take turns at fresh events, round by round; a ratio is one of two rates in the same round. The
clock of a turn starts some thousand events into it, when the caches hold what this system needs and
not what the one before it did. Two threads learn; the plain loop has one and two, and its better
median counts. The learning rate is that of `Learner.learn` and of the plain loop's step on a
network of the same widths, from row numbers to changed weights; hashing, which the others do as
they learn, is added in a column of its own. Normalized entropy is that of predictions right before
a batch was learned.

Where blocks of weights, or single ones, are pruned in the place of neurons, the network of 512 and
256 is measured at 90 %. The network's step is also set against the best matrix product of this
machine, in multiply-adds a second: three products a layer, one forward and two back.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import torch
from river import linear_model

from benchmarks.baselines import PlainDLRM, River, Stream, System, VowpalWabbit
from benchmarks.frame import Findings, at_least, at_most, main, spread
from niwaki.model.evaluation import Evaluation
from niwaki.model.features.encoder import Features
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.learner import Learner, LearnerConfig
from niwaki.model.step import ParallelCall, run_in_turn
from niwaki.stream.training.second_thread import SecondThread

FIELDS, NUMERICS, ROWS = 26, 13, 1_000_000
SCHEMA = Schema(
    categorical=tuple(f"c{i}" for i in range(FIELDS)),
    numeric=tuple(f"n{i}" for i in range(NUMERICS)),
    timestamp=None,
)
MODEL = LearnerConfig(table_rows=ROWS // FIELDS, bottom=(128,))
TOPS = {"512-256": (512, 256), "1024-1024-512-256": (1024, 1024, 512, 256)}
BATCHES = (128, 512, 2048)
SPARSITIES = (0.8, 0.9, 0.95)
DEFAULTS, ALONE, PLAIN = "niwaki, defaults", "niwaki, network only", "plain PyTorch loop"
VARIANTS: dict[str, dict[str, Any]] = {
    DEFAULTS: {},
    ALONE: {
        "half_lives_events": (100_000.0,),
        "numeric_codes": False,
        "shrinkage_rate": 0.0,
        "mixture_half_life_events": 0.0,
        "debt_rate": 0.0,
    },
}
"""Network only: as little of the linear expert as the settings allow, one time scale, and no say in
the prediction beyond what the network adds to. There are more pairs of fields than `max_pairs`, so
none are made in either."""
UNITS = {"niwaki, blocks of 8 x 8": (8, 8), "niwaki, single weights": (1, 1)}
"""What else can be pruned than neurons, all else as in the defaults: 90 % pruned, with the smaller
top network."""
VW_LINEAR, RIVER_LOGISTIC, RIVER_ADPREDICTOR = (
    "Vowpal Wabbit, linear",
    "River, logistic regression",
    "River, AdPredictor",
)
OTHERS: dict[str, Callable[[Stream], System]] = {
    VW_LINEAR: VowpalWabbit,
    "Vowpal Wabbit, -q ::": lambda stream: VowpalWabbit(stream, "-q ::"),
    "Vowpal Wabbit, --nn 20 --inpass": lambda stream: VowpalWabbit(stream, "--nn 20 --inpass"),
    RIVER_LOGISTIC: lambda stream: River(stream, linear_model.LogisticRegression()),
    RIVER_ADPREDICTOR: lambda stream: River(stream, linear_model.AdPredictor()),
}
OTHERS_BATCH = 512


class Size(NamedTuple):
    """How much is learned."""

    warmup_events: int
    pruning_events: int
    turn_events: int
    """Of each turn, before the clock starts."""
    round_events: int
    rounds: int
    batches: tuple[int, ...]


QUICK, FULL = (
    Size(4_096, 4_096, 512, 2_048, 2, (512,)),
    Size(20_480, 10_240, 4_096, 8_192, 7, BATCHES),
)

Batch = tuple[Features, np.ndarray]


class Runner(NamedTuple):
    """A system in the state in which it is to be measured."""

    name: str
    top: str
    phase: str
    learn: Callable[[int, int, Sequence[Batch]], list[np.ndarray]]
    """Learns events from one place to another, which are also at hand as batches; their logits,
    where learning tells them."""
    predict: Callable[[int, int], list[np.ndarray]] | None
    """Where learning does not tell them; called right before `learn`, and not timed."""
    multiply_adds: int | None


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every row, and the claims that they bear out or not."""
    torch.set_num_threads(options.threads)
    size, best = QUICK if quick else FULL, best_product()
    torch.set_num_threads(1)
    size = size._replace(batches=tuple(options.batches or size.batches))
    together = SecondThread(options.threads).together if options.threads > 1 else run_in_turn
    before = size.warmup_events + size.pruning_events
    stream = recorded(before + (size.turn_events + size.round_events) * size.rounds)
    rows, ratios = [], {}
    for top, widths in TOPS.items():
        if options.only and top not in options.only:
            continue
        config = msgspec.structs.replace(MODEL, top=widths)
        warm = {name: _warm(config, changes, stream, size) for name, changes in VARIANTS.items()}
        for name, block in UNITS.items() if top == "512-256" else ():
            warm[name] = _warm(config, {}, stream, size, (0.9,), block)
        for batch in size.batches:
            counts = sorted({1, options.threads})
            runners = [_plain(config, stream, top, batch, before, count) for count in counts]
            runners += [
                _ours(name, top, phase, learner, together)
                for name, found in warm.items()
                for phase, learner in found.items()
            ]
            if top == "512-256" and batch == OTHERS_BATCH:
                runners += [_other(name, stream, before) for name in OTHERS]
            found, logits = _rounds(runners, stream, size, batch)
            rows += [
                _row(runner, batch, found, logits[runner], stream, before, size.round_events, best)
                for runner in runners
            ]
            ratios[top, batch] = found
    setting = {
        "warmup_events": size.warmup_events,
        "pruning_events": size.pruning_events,
        "threads": options.threads,
    }
    setting |= {
        "turn_events": size.turn_events,
        "round_events": size.round_events,
        "rounds": size.rounds,
        "rows": ROWS,
        "multiply_adds_per_s": best,
    }
    return Findings(rows, claims(rows, ratios), setting)


def recorded(events: int, seed: int = 0) -> Stream:
    """Made-up events: a click depends on each value by itself, on four pairs of fields, and on the
    numerics, one of them squared. Fields have from 10 to 30,000 values, a few of them frequent."""
    rng = np.random.default_rng(seed)
    counts_F = np.geomspace(10, 30_000, FIELDS).astype(int)
    values_BF = (counts_F * rng.random((events, FIELDS)) ** 3).astype(np.int64)
    numerics_BN = rng.normal(size=(events, NUMERICS)).astype(np.float32)
    logits_B = (
        numerics_BN @ rng.normal(size=NUMERICS) * 0.15 + 0.3 * (numerics_BN[:, 0] ** 2 - 1) - 1.2
    )
    for f, count in enumerate(counts_F):
        logits_B += 0.25 * rng.normal(size=count)[values_BF[:, f]]
    for f in range(0, 16, 4):
        tastes = [rng.normal(size=(counts_F[g], 4))[values_BF[:, g]] for g in (f, f + 1)]
        logits_B += 0.25 * (tastes[0] * tastes[1]).sum(1)
    labels_B = (rng.random(events) < 1 / (1 + np.exp(-logits_B))).astype(np.float32)
    columns = tuple(pa.array(column).cast(pa.string()) for column in values_BF.T)
    return Stream("made up", SCHEMA, EventBatch(labels_B, np.zeros(events), columns, numerics_BN))


def best_product() -> float:
    """Multiply-adds a second of the fastest of some matrix products, float32."""
    rates = []
    for n in (256, 512, 1024):
        first, second, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        taken_s = []
        for _ in range(20):
            started_s = time.perf_counter()
            torch.mm(first, second, out=out)
            taken_s.append(time.perf_counter() - started_s)
        rates.append(n**3 / min(taken_s))
    return max(rates)


def _warm(
    config: LearnerConfig,
    changes: dict[str, Any],
    stream: Stream,
    size: Size,
    sparsities: tuple[float, ...] = (0.0, *SPARSITIES),
    block: tuple[int, int] | None = None,
) -> dict[str, Learner]:
    """By phase: a learner that has seen all but the rounds' events, and the sparse ones have been
    pruned meanwhile. `sparsities`: 0 is dense. `block`: as for `Learner`."""
    learner = Learner(SCHEMA, msgspec.structs.replace(config, **changes), block=block)
    _learn(learner, _batches(learner, stream, 0, size.warmup_events, 512))
    batches = _batches(
        learner, stream, size.warmup_events, size.warmup_events + size.pruning_events, 512
    )
    found = {}
    for sparsity in sparsities:
        pruned = found[f"sparse, {sparsity:.0%}" if sparsity else "dense"] = _copy(learner)
        if not sparsity:
            _learn(pruned, batches)
            continue
        pruned.prune()
        for i, (features, labels_B) in enumerate(batches):
            done = min(1.0, (i + 1) / (0.75 * len(batches)))
            pruned.learn(features, labels_B, 1 - sparsity * (1 - (1 - done) ** 3))
        pruned.cut()
    return found


def _copy(learner: Learner) -> Learner:
    copied = Learner(SCHEMA, learner.config, block=learner.dense.network.shape.block)
    copied.restore(*learner.state())
    return copied


def _learn(learner: Learner, batches: Sequence[Batch]) -> list[np.ndarray]:
    return [learner.learn(features, labels_B) for features, labels_B in batches]


def _batches(
    learner: Learner, stream: Stream, start: int, stop: int, batch_events: int
) -> list[Batch]:
    cut = [
        stream.events.slice(at, min(at + batch_events, stop))
        for at in range(start, stop, batch_events)
    ]
    return [(learner.encoder.encode(events), events.labels_B) for events in cut]


def _ours(name: str, top: str, phase: str, learner: Learner, together: ParallelCall) -> Runner:
    own = _copy(learner)
    own.together = together

    def learn(start: int, stop: int, batches: Sequence[Batch]) -> list[np.ndarray]:
        return _learn(own, batches)

    return Runner(name, top, phase, learn, None, own.multiply_adds)


def plain(threads: int) -> str:
    """The name of the plain loop whose tensor operations run on so many threads."""
    return f"{PLAIN}, {threads} thread{'s' if threads > 1 else ''}"


def _plain(
    config: LearnerConfig, stream: Stream, top: str, batch: int, before: int, threads: int
) -> Runner:
    """Its rate grows with the root of the batch, as ours does."""
    loop = PlainDLRM(stream, config=config, network_rate=0.001 * (batch / 128) ** 0.5)

    def learn(start: int, stop: int, batches: Sequence[Batch]) -> list[np.ndarray]:
        torch.set_num_threads(threads)
        try:
            return [
                loop.step(f.rows_BF, f.numerics_BN, torch.from_numpy(labels_B))
                for f, labels_B in batches
            ]
        finally:
            torch.set_num_threads(1)

    learn(0, before, _batches(Learner(SCHEMA, config), stream, 0, before, batch))
    products = sum(
        p.numel()
        for name, p in loop.named_parameters()
        if p.dim() == 2 and not name.startswith("table")
    )
    return Runner(plain(threads), top, "dense", learn, None, products)


def _other(name: str, stream: Stream, before: int) -> Runner:
    """What is timed takes an event from text or values to changed weights; a twin predicts beside
    it."""
    timed, twin = OTHERS[name](stream), OTHERS[name](stream)

    def learn(start: int, stop: int, batches: Sequence[Batch]) -> list[np.ndarray]:
        timed.learn(start, stop)
        return []

    def predict(start: int, stop: int) -> list[np.ndarray]:
        if isinstance(timed, VowpalWabbit):
            timed.write(start, stop)
        logits = []
        for at in range(start, stop, OTHERS_BATCH):
            logits.append(twin.predict(at, min(at + OTHERS_BATCH, stop)))
            twin.learn(at, min(at + OTHERS_BATCH, stop))
        return logits

    for system in (timed, twin):
        system.learn(0, before)
    return Runner(name, "", "", learn, predict, None)


def _rounds(
    runners: Sequence[Runner], stream: Stream, size: Size, batch: int
) -> tuple[dict[tuple[str, str], list[tuple[float, float]]], dict[Runner, np.ndarray]]:
    """By name and phase, for each round: seconds of learning, and with hashing added. Also
    everyone's logits."""
    encoder = Learner(SCHEMA, msgspec.structs.replace(MODEL, top=(1,)))
    taken: dict[tuple[str, str], list[tuple[float, float]]] = {
        (r.name, r.phase): [] for r in runners
    }
    logits: dict[Runner, list[np.ndarray]] = {runner: [] for runner in runners}
    first = size.warmup_events + size.pruning_events
    for place in range(size.rounds):
        start = first + place * (size.turn_events + size.round_events)
        middle = start + size.turn_events
        stop = middle + size.round_events
        not_timed = _batches(encoder, stream, start, middle, batch)
        started_s = time.perf_counter()
        batches = _batches(encoder, stream, middle, stop, batch)
        hashing_s = time.perf_counter() - started_s
        for runner in runners if place % 2 else reversed(runners):
            if runner.predict:
                logits[runner] += runner.predict(start, stop)
            logits[runner] += runner.learn(start, middle, not_timed)
            started_s = time.perf_counter()
            logits[runner] += runner.learn(middle, stop, batches)
            learning_s = time.perf_counter() - started_s
            taken[runner.name, runner.phase].append(
                (learning_s, learning_s + (0 if runner.predict else hashing_s))
            )
    return taken, {runner: np.concatenate(parts) for runner, parts in logits.items()}


def _row(
    runner: Runner,
    batch: int,
    taken: dict[tuple[str, str], list[tuple[float, float]]],
    logits_B: np.ndarray,
    stream: Stream,
    before: int,
    events: int,
    best: float,
) -> dict[str, Any]:
    """`events`: timed in each round."""
    evaluation = Evaluation()
    evaluation.update(logits_B, stream.events.labels_B[before : before + len(logits_B)])
    rate = spread([events / learning_s for learning_s, _ in taken[runner.name, runner.phase]])
    done = 3 * runner.multiply_adds * rate.median if runner.multiply_adds else None
    return {
        "system": runner.name,
        "top": runner.top,
        "phase": runner.phase,
        "batch": batch,
        "events_per_s": rate.median,
        "low": rate.low,
        "high": rate.high,
        "times_plain": _ratio(taken, _best_plain(taken), (runner.name, runner.phase)),
        "with_hashing_per_s": median(
            events / both_s for _, both_s in taken[runner.name, runner.phase]
        ),
        "normalized_entropy": evaluation.normalized_entropy,
        "multiply_adds_per_s": done,
        "of_best_product": done / best if done else None,
    }


def _ratio(
    taken: dict[tuple[str, str], list[tuple[float, float]]],
    slower: tuple[str, str],
    faster: tuple[str, str],
    place: int = 0,
) -> float:
    """Median over rounds. `place`: 0 for learning, 1 with hashing."""
    return median(a[place] / b[place] for a, b in zip(taken[slower], taken[faster], strict=True))


def _best_plain(taken: dict[tuple[str, str], list[tuple[float, float]]]) -> tuple[str, str]:
    """The plain loop with the number of threads that suits it best, by the median of the rounds."""
    return min(
        (key for key in taken if key[0].startswith(PLAIN)),
        key=lambda key: median(s for s, _ in taken[key]),
    )


def claims(rows: list[dict[str, Any]], taken: dict[tuple[str, int], Any]) -> list[dict[str, Any]]:
    """What niwaki promises, as far as there are rows to tell."""
    made = []
    for (top, batch), found in taken.items():
        if batch != 512:
            continue
        for name in VARIANTS:
            other = _best_plain(found)
            about, bound = (
                f"{name}, {top}, batches of {batch}: times the {other[0]}",
                4.0 if top == "512-256" else 8.0,
            )
            made.append(
                at_least(
                    f"{about}, 90 % pruned", _ratio(found, other, (name, "sparse, 90%")), bound
                )
            )
            made.append(at_least(f"{about}, dense", _ratio(found, other, (name, "dense")), 1.3))
    found = taken.get(("512-256", OTHERS_BATCH), {})
    entropy = {(r["system"], r["phase"]): r["normalized_entropy"] for r in rows if (r["top"], r["batch"]) in
               (("512-256", OTHERS_BATCH), ("", OTHERS_BATCH))}  # fmt: skip
    for ours in [(name, "sparse, 90%") for name in VARIANTS] if (VW_LINEAR, "") in found else []:
        about, river = (
            f"{ours[0]}, 512-256, 90 % pruned, with hashing",
            (RIVER_LOGISTIC, RIVER_ADPREDICTOR),
        )
        made.append(
            at_least(f"{about}: times {VW_LINEAR}", _ratio(found, (VW_LINEAR, ""), ours, 1), 1.0)
        )
        times = min(_ratio(found, (name, ""), ours, 1) for name in river)
        made.append(at_least(f"{about}: times the faster of River's", times, 2.0))
        best = min(entropy[name, ""] for name in (VW_LINEAR, *river))
        made.append(
            at_most(
                f"{about}: normalized entropy over the best of theirs", entropy[ours] / best, 1.0
            )
        )
    return made


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--threads", type=int, default=2, help="threads that learn; the plain loop also tries one"
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="*",
        help=f"sizes of a batch, of {', '.join(map(str, BATCHES))}",
    )
    parser.add_argument("--only", nargs="*", help=f"top MLPs, of {', '.join(TOPS)}")
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("training", measured, rest)


if __name__ == "__main__":
    run_main()
