"""The learner's rate and memory as the rows of the tables, the fields and the width of the network
grow.

Each measurement is a process of its own, which learns made-up rows in batches of 512: 13 numerics,
a frequent few ids and a long tail, spread over each field's table as a hash would. One size is
varied at a time; the others are 26 fields, a million rows in all, a top MLP of 512 and 256.
Settings take turns, and a ratio is one of two runs of the same turn.

Pruned: a network that takes a tenth of the dense multiply-adds from the start. Pairs of fields are
off, so that 8 fields and 64 differ in nothing else. Memory is the largest resident size of the
process, libraries and all.
"""

import argparse
import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from benchmarks.frame import ROOT, Findings, at_least, at_most, main, spread
from niwaki.model.config import LearnerConfig
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema
from niwaki.model.learner import Learner
from niwaki.model.step import ParallelCall, run_in_turn
from niwaki.stream.training.second_thread import SecondThread, tensor_threads

BATCH_EVENTS, NUMERICS = 512, 13
FREE_BYTES = 700_000_000
"""Bytes that a process may take beside the tables."""


class Setting(NamedTuple):
    """Setting of one measurement, made in a process of its own."""

    rows: int = 1_000_000
    """Of all fields together."""
    fields: int = 26
    width: int = 512
    """Of the top MLP's first layer; its second is half as wide."""
    phase: str = "dense"


class Measured(NamedTuple):
    """Result of one measurement."""

    events_per_s: float
    resident_bytes: int
    table_bytes: int
    """Tables with their optimizer state, touched or not."""


class Size(NamedTuple):
    """Amounts of events and turns."""

    events: int
    turns: int
    rows: tuple[int, ...]
    fields: tuple[int, ...]
    widths: tuple[int, ...]


QUICK = Size(8_192, 1, (100_000, 20_000_000), (8, 64), (256, 2048))
FULL = Size(
    65_536, 3, (100_000, 1_000_000, 5_000_000, 20_000_000), (8, 16, 26, 64), (256, 512, 1024, 2048)
)
PHASES = ("dense", "pruned")


def measure(quick: bool, options: argparse.Namespace) -> Findings:
    """Every setting in its turn, and the claims."""
    size = QUICK if quick else FULL
    sweeps = {"rows": size.rows, "fields": size.fields, "width": size.widths}
    settings = [
        Setting(**{name: value, "phase": phase})
        for name, values in sweeps.items()
        if not options.only or name in options.only
        for value in values
        for phase in PHASES
    ]
    found: dict[Setting, list[Measured]] = {setting: [] for setting in settings}
    for turn in range(size.turns):
        for setting in list(found) if turn % 2 else reversed(found):
            found[setting].append(_in_a_process(setting, size.events, options.threads))
    rows = []
    for setting, measured in found.items():
        rate = spread([one.events_per_s for one in measured])
        resident, tables = (
            median(values) for values in zip(*(one[1:] for one in measured), strict=True)
        )
        row = setting._asdict() | {"events_per_s": rate.median, "low": rate.low, "high": rate.high}
        rows.append(row | {"resident_mb": resident / 1e6, "table_mb": tables / 1e6})
    about = {
        "events": size.events,
        "turns": size.turns,
        "batch_events": BATCH_EVENTS,
        "threads": options.threads,
    }
    return Findings(rows, claims(found), about)


def claims(found: dict[Setting, list[Measured]]) -> list[dict[str, Any]]:
    """The claims about the largest tables, as far as they were measured."""
    made = []
    for phase in PHASES:
        small, large = (
            found.get(Setting(rows=rows, phase=phase)) for rows in (100_000, 20_000_000)
        )
        if small and large:
            ratio = median(
                b.events_per_s / a.events_per_s for a, b in zip(small, large, strict=True)
            )
            made.append(
                at_least(f"{phase}: rate with 20,000,000 rows over that with 100,000", ratio, 0.7)
            )
    resident = [
        (one.resident_bytes - FREE_BYTES) / one.table_bytes
        for measured in found.values()
        for one in measured
    ]
    made.append(
        at_most(
            "resident bytes less 700 MB over those of the tables, the worst of all",
            max(resident),
            1.15,
        )
    )
    return made


def _in_a_process(setting: Setting, events: int, threads: int) -> Measured:
    asked = msgspec.json.encode([setting, events, threads]).decode()
    command = [sys.executable, "-m", "benchmarks.growth", "--one", asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return msgspec.json.decode(done.stdout, type=Measured)


def one(asked: str) -> Measured:
    """One measurement, in this process."""
    setting, events, threads = msgspec.json.decode(asked, type=tuple[Setting, int, int])
    tensor_threads(threads)
    run_parallel = SecondThread(threads).run_parallel if threads > 1 else run_in_turn
    learner = learner_of(setting, run_parallel)
    rng, taken_s = np.random.default_rng(0), []
    for _ in range((events + events // 4) // BATCH_EVENTS):
        features, labels_B = made_up(setting, rng)
        started_s = time.perf_counter()
        learner.learn(features, Outcomes.made(labels_B))
        taken_s.append(time.perf_counter() - started_s)
    measured_s = taken_s[len(taken_s) // 5 :]
    tables = (learner.tables.weight_RD, learner.tables.squares_R, learner.linear.evidence_R2K)
    return Measured(
        BATCH_EVENTS * len(measured_s) / sum(measured_s),
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        sum(table.untyped_storage().nbytes() for table in tables),
    )


def learner_of(setting: Setting, run_parallel: ParallelCall = run_in_turn) -> Learner:
    """A fresh learner of that size."""
    categorical, numeric = (
        tuple(f"{kind}{i}" for i in range(count))
        for kind, count in (("c", setting.fields), ("n", NUMERICS))
    )
    config = LearnerConfig(
        table_rows=setting.rows // setting.fields,
        pair_rows=0,
        bottom=(128,),
        top=(setting.width, setting.width // 2),
    )
    schema = Schema(categorical=categorical, numeric=numeric, timestamp=None)
    narrow_ratio = None if setting.phase == "dense" else 0.1
    return Learner(schema, config, narrow_ratio, run_parallel=run_parallel)


def made_up(setting: Setting, rng: np.random.Generator) -> tuple[HashedEvents, np.ndarray]:
    """A batch of rows, numerics and labels."""
    rows, fields = setting.rows // setting.fields, setting.fields
    ids_BF = (rows * rng.random((BATCH_EVENTS, fields)) ** 3).astype(np.int64)
    rows_BF = ids_BF * 2_654_435_761 % rows + np.arange(fields) * rows
    numerics_BN = rng.normal(size=(BATCH_EVENTS, NUMERICS)).astype(np.float32)
    labels_B = (rng.random(BATCH_EVENTS) < 1 / (1 + np.exp(1 - numerics_BN[:, 0]))).astype(
        np.float32
    )
    times_s_B = torch.zeros(BATCH_EVENTS, dtype=torch.float64)
    rows = torch.from_numpy(rows_BF)
    numerics = torch.from_numpy(numerics_BN)
    nothing = torch.zeros(BATCH_EVENTS, 0, dtype=torch.int64)
    hashed = HashedEvents(rows, rows, rows, numerics, times_s_B, nothing, nothing.int())
    return hashed, labels_B


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and those of this benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--threads", type=int, default=2, help="threads that learn")
    parser.add_argument("--only", nargs="*", help="what to vary, of rows, fields, width")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args(arguments)
    if options.one:
        print(msgspec.json.encode(one(options.one)).decode())
        return

    def measured(quick: bool) -> Findings:
        return measure(quick, options)

    main("growth", measured, rest, parser)


if __name__ == "__main__":
    run_main()
