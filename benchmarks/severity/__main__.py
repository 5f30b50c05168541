"""Two answers to a mild and to a severe drift: half of the pruned units regrow, or all.

In: synthetic streams with a drift in their middle, by which 30 % of the preferences change, or all.
Out: how good the predictions were that were served after the drift, and what learning cost, for
each answer. Both drifts get both answers: a policy that goes by the measured size of a drift gains
at most what one gains that always knows the truth.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch

from benchmarks.frame import Findings, Rows, at_most, commit, main, seeds_of
from niwaki.model.config import LearnerConfig
from niwaki.model.evaluation import binary_entropy
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policies import Adaptive
from niwaki.pruning.policy import Move, Phase
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig

EVENTS = 200_000
AT = 100_000
AFTER_EVENTS = 50_000
SERVED = 1_000
SHARES = {"mild, 30 % of the concept": 0.3, "severe, all of it": 1.0}
ROW_FIELDS = ("stream", "seed", "answer")


class PartlyRegrown(Adaptive):
    """After a drift half of what was pruned comes back, and is pruned again from its first event
    on."""

    def decide(self, events: int, drifted: bool, *rest: Any) -> Move:
        """As `Adaptive`, but for the dense phase."""
        if self.phase is Phase.DENSE and self.state.cycle:
            return self._enter(Phase.PRUNING, events, Move.PRUNE)
        return super().decide(events, drifted, *rest)

    def target_ratio(self, events: int) -> float:
        """From halfway on."""
        whole = super().target_ratio(events)
        return (
            (whole + self.budget) / 2 if self.phase is Phase.PRUNING and self.state.cycle else whole
        )


ANSWERS = {"all regrown": Adaptive, "half regrown": PartlyRegrown}


def measure_one(share: float, seed: int, answer: str) -> dict[str, Any]:
    """One whole run."""
    config = SyntheticConfig(events=EVENTS, seed=seed, drifts=(f"abrupt:concept@{AT}:{share}",))
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA,
            model=LearnerConfig(seed=seed),
            pruning=PruningConfig(),
            drift=DriftConfig(),
            training=TrainingConfig(),
        )
    )
    trainer.policy = ANSWERS[answer](trainer.policy.config)
    replica = trainer.add_replica(SERVED)
    found, losses = [], []
    for batch in rebatch((table_to_batch(table, SCHEMA)[0] for table in generate(config)), 128):
        before = replica.evaluation.total.loss_sum
        step = trainer.step(batch)
        found += [drift.event for drift in step.drifts]
        losses.append(replica.evaluation.total.loss_sum - before)
        if replica.due(step.move):
            replica.refresh()
    after = slice(AT // 128, (AT + AFTER_EVENTS) // 128)
    entropy = binary_entropy(replica.evaluation.total.base_rate)
    return {
        "served": replica.evaluation.total.normalized_entropy,
        "after_drift": float(np.sum(losses[after])) / (after.stop - after.start) / 128 / entropy,
        "cost": trainer.learner.learned_multiply_adds
        / (trainer.events * trainer.learner.branches.dense_cost),
        "drifts": found,
    }


def measure(quick: bool, rows: Path | None, seeds: Sequence[int]) -> Findings:
    """Both streams, both answers."""
    torch.set_num_threads(1)
    kept, found = Rows(rows, ROW_FIELDS), []
    for seed in seeds[: 1 if quick else None]:
        for stream, share in SHARES.items():
            for answer in ANSWERS:
                row = kept.get(stream, seed, answer)
                if row is None:
                    key = {"stream": stream, "seed": seed, "answer": answer}
                    row = key | measure_one(share, seed, answer) | {"commit": commit()}
                    kept.add(row)
                    print(msgspec.json.encode(row).decode(), file=sys.stderr, flush=True)
                found.append(row)
    lines, claims = [], []
    for stream in SHARES:
        all_, half = (
            [row for row in found if (row["stream"], row["answer"]) == (stream, one)]
            for one in ANSWERS
        )
        for answer, ours in zip(ANSWERS, (all_, half), strict=True):
            line = {"stream": stream, "answer": answer, "seeds": len(ours)}
            line |= {
                name: median(row[name] for row in ours)
                for name in ("served", "after_drift", "cost")
            }
            ratios = [
                row["after_drift"] / whole["after_drift"]
                for row, whole in zip(ours, all_, strict=True)
            ]
            lines.append(
                line
                | {"after_drift_over_all": median(ratios), "low": min(ratios), "high": max(ratios)}
            )
        claim = f"{stream}: served entropy in {AFTER_EVENTS:,} events after the drift"
        claim += ", half over all regrown"
        claims.append(at_most(claim, lines[-1]["after_drift_over_all"], 1.0))
    return Findings(lines, claims, {"events": EVENTS, "publish_every": SERVED, "seeds": len(seeds)})


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rows", type=Path, help="file that rows are kept in")
    parser.add_argument("--seeds", type=seeds_of, default=list(range(5)), help="as in 0-4")
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options.rows, options.seeds)

    main("severity", measured, rest, parser)


if __name__ == "__main__":
    run_main()
