"""The training benchmark: who takes part, in which phase, on which events."""

import argparse
import math

import msgspec

from benchmarks.training import __main__ as training
from benchmarks.training import systems
from benchmarks.training.events import recorded


def test_every_phase_is_measured_on_the_same_events_and_pruned_networks_take_what_they_are_said_to(
    monkeypatch,
):
    monkeypatch.setattr(training, "TOPS", {"512-256": (64, 32)})
    monkeypatch.setattr(
        training, "MODEL", msgspec.structs.replace(training.MODEL, table_rows=64, bottom=(8,))
    )
    monkeypatch.setattr(training, "QUICK", training.Size(1_024, 2_048, 128, 256, 2, (128,)))
    found = training.measure(True, argparse.Namespace(threads=2, only=None, batches=None))
    phases = ["dense", *(f"sparse, {sparsity:.0%}" for sparsity in training.SPARSITIES)]
    expected = [
        *((systems.plain(threads), "dense") for threads in (1, 2)),
        *((name, phase) for name in systems.VARIANTS for phase in phases),
    ]
    expected += [(name, "sparse, 90%") for name in systems.UNITS]
    assert [(row["system"], row["phase"]) for row in found.rows] == expected
    for row in found.rows:
        assert row["events_per_s"] > row["with_hashing_per_s"] > 0 and math.isfinite(
            row["normalized_entropy"]
        )
    done = {
        (row["system"], row["phase"]): round(row["multiply_adds_per_s"] / row["events_per_s"])
        for row in found.rows
    }
    for name in systems.VARIANTS:
        dense, *sparse = (done[name, phase] for phase in phases)
        assert sparse[0] <= 0.2 * dense and sparse == sorted(sparse, reverse=True)
    for name in systems.UNITS:
        share = done[name, "sparse, 90%"] / done[systems.DEFAULTS, "dense"]
        assert 0.09 < share < 0.101  # four blocks of each layer stay whatever the budget


def test_made_up_events_are_the_same_each_time_and_fields_matter():
    first, second = (recorded(2_000).events for _ in range(2))
    assert first.categorical == second.categorical and (first.labels_B == second.labels_B).all()
    assert 0.1 < first.labels_B.mean() < 0.5
