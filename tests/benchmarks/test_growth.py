"""The growth benchmark: what one process measures, and what is claimed of it."""

import msgspec
import torch

from benchmarks.growth.__main__ import FREE_BYTES, Measured, Setting, claims, learner_of, one


def test_one_measurement_learns_and_knows_what_its_tables_take():
    threads = torch.get_num_threads()
    setting = Setting(rows=4_000, fields=4, width=16, phase="pruned")
    measured = one(msgspec.json.encode([setting, 1_024, threads]).decode())
    tables = learner_of(setting).tables
    assert measured.table_bytes > 4 * (tables.weight_RD.numel() + tables.squares_R.numel())
    assert measured.events_per_s > 0 and measured.resident_bytes > measured.table_bytes
    assert (
        learner_of(setting).branches.sparse
        and not learner_of(setting._replace(phase="dense")).branches.sparse
    )


def test_rates_are_compared_within_a_turn_and_memory_at_its_worst():
    small, large = (Setting(rows=rows) for rows in (100_000, 20_000_000))
    rates = [[100.0, 10.0, 50.0], [80.0, 8.0, 10.0]]
    found = {
        setting: [Measured(rate, FREE_BYTES + 2 * i, 2) for i, rate in enumerate(of)]
        for setting, of in zip((small, large), rates, strict=True)
    }
    rate, memory = claims(found)
    assert rate["value"] == 0.8 and rate["holds"]
    assert memory["value"] == 2.0 and not memory["holds"]
