"""The learner's rate, dense and pruned, beside a plain PyTorch loop, Vowpal Wabbit and River.

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
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from benchmarks.baselines.stream import Stream
from benchmarks.frame import Findings, main, spread
from benchmarks.training.claims import best_plain, claims, ratio
from benchmarks.training.events import FIELDS, ROWS, SCHEMA, recorded
from benchmarks.training.systems import (
    OTHERS,
    OTHERS_BATCH,
    UNITS,
    VARIANTS,
    Runner,
    batches_of,
    copy_of,
    learn_all,
    other,
    ours,
    plain_loop,
)
from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import Evaluation
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.learner import Learner
from niwaki.model.step import run_in_turn
from niwaki.stream.training.second_thread import SecondThread

MODEL = LearnerConfig(table_rows=ROWS // FIELDS, bottom=(128,))
TOPS = {"512-256": (512, 256), "1024-1024-512-256": (1024, 1024, 512, 256)}
BATCHES = (128, 512, 2048)
SPARSITIES = (0.8, 0.9, 0.95)


class Size(NamedTuple):
    """Amounts of events and rounds."""

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


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every row, and the claims that they bear out or not."""
    torch.set_num_threads(options.threads)
    size, best = QUICK if quick else FULL, best_product()
    torch.set_num_threads(1)
    size = size._replace(batches=tuple(options.batches or size.batches))
    together = SecondThread(options.threads).run_parallel if options.threads > 1 else run_in_turn
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
            runners = [plain_loop(config, stream, top, batch, before, count) for count in counts]
            runners += [
                ours(name, top, phase, learner, together)
                for name, found in warm.items()
                for phase, learner in found.items()
            ]
            if top == "512-256" and batch == OTHERS_BATCH:
                runners += [other(name, stream, before) for name in OTHERS]
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


def best_product() -> float:
    """Multiply-adds a second of the fastest of some matrix products, float32."""
    rates = []
    for n in (256, 512, 1024):
        first = torch.randn(n, n)
        second = torch.randn(n, n)
        out = torch.empty(n, n)
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
    learn_all(learner, batches_of(learner, stream, 0, size.warmup_events, 512))
    batches = batches_of(
        learner, stream, size.warmup_events, size.warmup_events + size.pruning_events, 512
    )
    found = {}
    for sparsity in sparsities:
        pruned = found[f"sparse, {sparsity:.0%}" if sparsity else "dense"] = copy_of(learner)
        if not sparsity:
            learn_all(pruned, batches)
            continue
        pruned.branches.prune()
        for i, (features, labels_B) in enumerate(batches):
            done = min(1.0, (i + 1) / (0.75 * len(batches)))
            pruned.learn(features, Outcomes.made(labels_B), 1 - sparsity * (1 - (1 - done) ** 3))
        pruned.branches.cut()
    return found


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
        not_timed = batches_of(encoder, stream, start, middle, batch)
        started_s = time.perf_counter()
        batches = batches_of(encoder, stream, middle, stop, batch)
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
        "times_plain": ratio(taken, best_plain(taken), (runner.name, runner.phase)),
        "with_hashing_per_s": median(
            events / both_s for _, both_s in taken[runner.name, runner.phase]
        ),
        "normalized_entropy": evaluation.normalized_entropy,
        "multiply_adds_per_s": done,
        "of_best_product": done / best if done else None,
    }


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

    main("training", measured, rest, parser)


if __name__ == "__main__":
    run_main()
