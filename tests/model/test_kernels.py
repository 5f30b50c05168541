"""Compiled loops do what a plain formula says, and are found again, or made again, wherever they
may be kept."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import niwaki.model
from niwaki.model.deep.embeddings import Embedded, EmbeddingTables
from niwaki.model.features.lists import no_lists
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.linear.expert import BayesianLinear, contributions
from niwaki.model.linear.kernels import compiled_logits
from niwaki.model.rows import DirtyRows, gather, scatter

ROOT = Path(niwaki.model.__file__).resolve().parent.parent
HALF_LIVES = [50.0, 1_000.0]


class PlainLinear:
    """The step of `BayesianLinear` in 64 bits, one row at a time. A row is in slots of one group
    only."""

    def __init__(self, rows: int, group_S: np.ndarray, variance_G: np.ndarray):
        self.group_S = group_S
        self.log_s_GK = np.repeat(np.log(variance_G)[:, None], len(HALF_LIVES), 1)
        self.squares_GK = np.zeros_like(self.log_s_GK)
        self.evidence_R2K = np.zeros((rows, 2, len(HALF_LIVES)))
        self.learned_R = np.zeros(rows, int)
        self.events = 0

    def learn(self, rows_BS: np.ndarray, values_BS: np.ndarray, labels_B: np.ndarray) -> None:
        self.events += len(labels_B)
        slots = rows_BS.shape[1]
        for row in np.unique(rows_BS):
            idle = self.events - self.learned_R[row]
            self.evidence_R2K[row] *= 0.5 ** (idle / np.array(HALF_LIVES))
            self.learned_R[row] = self.events
        old_R2K, prior_SK = self.evidence_R2K.copy(), np.exp(-self.log_s_GK)[self.group_S]
        descent_GK = np.zeros_like(self.log_s_GK)
        for k in range(len(HALF_LIVES)):
            prior_S = prior_SK[:, k]
            b_BS, q_BS = old_R2K[rows_BS, 0, k], old_R2K[rows_BS, 1, k]
            variance_BS = 1 / (prior_S + q_BS)
            prediction_B = 1 / (1 + np.exp(-(b_BS * variance_BS * values_BS).sum(1)))
            curvature_B = prediction_B * (1 - prediction_B)
            spread_B = (variance_BS * values_BS**2).sum(1)
            # d logit / d log s = x b / (s (1/s + q)^2)
            slope_BS = values_BS * b_BS * prior_S * variance_BS**2
            np.add.at(
                descent_GK[:, k],
                self.group_S,
                ((prediction_B - labels_B)[:, None] * slope_BS).sum(0),
            )
            for row in np.unique(rows_BS):
                events, places = np.nonzero(rows_BS == row)
                x = values_BS[events, places]
                gradient = ((prediction_B - labels_B)[events] * x).sum()
                together = ((curvature_B * spread_B)[events] * abs(x)).sum()
                gained = (curvature_B[events] * x**2).sum()
                prior = prior_S[np.flatnonzero(rows_BS == row)[-1] % slots]
                b, q = old_R2K[row, :, k]
                variance = 1 / (prior + q)
                mean = b * variance - variance * gradient / (1 + together)
                q += gained / (1 + max(together - variance * gained, 0))
                self.evidence_R2K[row, :, k] = mean * (prior + q), q
        self.squares_GK += descent_GK**2
        step_GK = 0.2 * descent_GK / (np.sqrt(self.squares_GK) + 1e-3)
        self.log_s_GK = np.clip(self.log_s_GK - step_GK, -12, math.log(2))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12), st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_a_step_of_the_linear_expert_is_what_the_plain_formula_says(seed, slots, events, rows):
    # Few rows, so that one row stands in several slots of an event, all of one group, and in
    # several events.
    rng = np.random.default_rng(seed)
    group_S = rng.integers(0, 3, slots)
    variance_G = rng.uniform(0.01, 1, 3).astype(np.float32)
    linear = BayesianLinear(
        3 * rows, group_S.tolist(), variance_G.tolist(), HALF_LIVES, shrinkage_rate=0.2
    )
    plain = PlainLinear(3 * rows, group_S, variance_G)
    linear.events = plain.events = 10_000  # shrinkage is learned by then
    for _ in range(5):
        rows_BS = group_S * rows + rng.integers(0, rows, (events, slots))
        values_BS = rng.normal(size=(events, slots)).astype(np.float32)
        labels_B = rng.integers(0, 2, events).astype(np.float32)
        lists = no_lists(events)
        learned, _ = linear.learn(rows_BS, values_BS, lists, Outcomes.made(labels_B))
        plain.learn(rows_BS, values_BS, labels_B)
        assert sorted(learned.tolist()) == np.unique(rows_BS).tolist()
        np.testing.assert_allclose(linear.evidence_R2K, plain.evidence_R2K, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(linear.log_s_GK, plain.log_s_GK, rtol=1e-4, atol=1e-4)
    assert np.array_equal(linear.learned_R, plain.learned_R)
    assert linear.touched_rows == len(linear.touched()) == np.count_nonzero(plain.learned_R)
    each = contributions(
        linear.evidence_R2K,
        linear.prior_SK(),
        *map(torch.from_numpy, (rows_BS, values_BS)),
        lists,
    )
    b_BSK, q_BSK = plain.evidence_R2K[rows_BS].transpose(2, 0, 1, 3)
    expected = b_BSK / (np.exp(-plain.log_s_GK)[group_S] + q_BSK) * values_BS[:, :, None]
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-5)
    said_BS, logits_BK = (
        np.empty((events, slots), np.float32),
        np.empty((events, len(HALF_LIVES)), np.float32),
    )
    arrays = linear.evidence_R2K.numpy(), linear.prior_SK().numpy(), rows_BS, values_BS
    compiled_logits(len(HALF_LIVES))(*arrays, said_BS, logits_BK)
    assert np.array_equal(said_BS, each[:, :, 0])
    np.testing.assert_allclose(logits_BK, expected.sum(1), rtol=1e-4, atol=1e-5)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.sampled_from([1, 4, 16])
)
@settings(deadline=None, max_examples=50)
def test_a_step_of_embeddings_sums_gradients_of_an_id_and_squares_of_each_event(
    seed, fields, events, width
):
    rng = np.random.default_rng(seed)
    tables = EmbeddingTables(range(fields), 20, width, rate=0.05)
    rows = 20 * fields
    weight_RD, squares_R = np.zeros((rows, width)), np.zeros(rows)
    for _ in range(4):
        rows_BF = rng.integers(0, 20, (events, fields)) + 20 * np.arange(fields)
        gradient_BVD = rng.normal(size=(events, fields + 1, width)).astype(
            np.float32
        )  # one vector is no field's
        halves = [np.split(whole, [events // 2]) for whole in (rows_BF, gradient_BVD)]
        tables.update(*zip(map(Embedded, halves[0]), halves[1], strict=True))
        sums_RD, gradient_BFD = np.zeros((rows, width)), gradient_BVD[:, :fields].astype(np.float64)
        np.add.at(sums_RD, rows_BF, gradient_BFD)
        np.add.at(squares_R, rows_BF, np.square(gradient_BFD).mean(2))
        weight_RD -= 0.05 * sums_RD / np.sqrt(squares_R + 1e-2)[:, None]
        np.testing.assert_allclose(tables.weight_RD, weight_RD, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(tables.squares_R, squares_R, rtol=1e-4)
    assert tables.touched_rows == len(tables.touched()) == np.count_nonzero(squares_R)
    assert tables.touched_F.tolist() == np.count_nonzero(squares_R.reshape(fields, 20), 1).tolist()
    norms_X = np.sqrt(np.square(weight_RD).reshape(fields, 20, width).sum(1)).flatten()
    np.testing.assert_allclose(tables.column_norms(), norms_X, rtol=1e-4, atol=1e-5)
    restored = EmbeddingTables(range(fields), 20, width, rate=0.05)
    restored.restore(tables.state())
    assert restored.touched_F.tolist() == tables.touched_F.tolist()


@given(
    st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=20), max_size=12),
    st.integers(0, 12),
)
@settings(max_examples=50)
def test_changes_are_the_rows_learned_since_they_were_last_cleared_each_once(batches, cleared):
    changes, linear, expected = DirtyRows(0), BayesianLinear(300, [0], [0.1], [1e9], 0.0), {}
    for place, rows in enumerate(batches):
        if place == cleared:
            changes.clear(linear.events)
            expected = {}
        rows_B1, ones_B = np.array(rows)[:, None], np.ones(len(rows), np.float32)
        changes.mark_dirty(
            "linear",
            *linear.learn(rows_B1, ones_B[:, None], no_lists(len(rows)), Outcomes.made(ones_B)),
        )
        expected |= dict.fromkeys(rows)
        assert changes.rows()["linear"].tolist() == sorted(expected)
    changes.mark_dirty("linear", linear.touched())
    assert (
        sorted(changes.rows()["linear"].tolist())
        == linear.touched().tolist()
        == sorted({*sum(batches, [])})
    )


@given(
    st.lists(st.integers(0, 199), unique=True),
    st.sampled_from([(3,), (2, 3), (1,), (0,)]),
    st.booleans(),
)
@settings(max_examples=50)
def test_rows_are_taken_from_and_put_into_tables_of_any_shape(rows, shape, double):
    table = torch.rand(200, *shape, 2, dtype=torch.float64 if double else torch.float32)[
        ..., 0
    ]  # not contiguous
    if len(shape) > 1:
        table = table.contiguous()
    rows_U, before = torch.tensor(rows, dtype=torch.int64), table.clone()
    assert torch.equal(gather(table, rows_U), before[rows_U])
    scatter(table, rows_U, -gather(table, rows_U))
    before[rows_U] *= -1
    assert torch.equal(table, before)


def import_doubled(place: Path, **variables: str) -> list[str]:
    """How often a process of its own found the kernel in `place` compiled, how often it compiled
    it, and 2 * 21."""
    counts = "sum(f.stats.cache_hits.values()), len(f.stats.cache_misses)"
    code = f"from doubled import doubled as f; print({counts}, f(21))"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{place}", **variables}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_kernel_is_compiled_once_for_a_machine_or_at_each_start_where_nothing_can_be_written(
    tmp_path,
):
    source = "from niwaki.model.jit import kernel\n@kernel('int64(int64)')\n"
    source += "def doubled(x):\n    return 2 * x\n"
    (tmp_path / "doubled.py").write_text(source)
    assert import_doubled(tmp_path) == ["0", "1", "42"]
    assert import_doubled(tmp_path) == ["1", "0", "42"]
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    (tmp_path / "__pycache__").write_text("in the way")
    nowhere = {name: "/dev/null/x" for name in ("NUMBA_CACHE_DIR", "HOME", "XDG_CACHE_HOME")}
    assert import_doubled(tmp_path, **nowhere) == ["0", "1", "42"]
