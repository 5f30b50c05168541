"""Rows of large tables: sorted, copied, written and marked."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.model.rows import ascending, gather, lazy_zeros, mark, scatter

row_lists = st.lists(
    st.one_of(st.integers(0, 3_000), st.integers(0, 2**22), st.integers(0, 2**40)), max_size=60
)


@given(row_lists)
def test_rows_of_tables_of_any_size_are_sorted(rows):
    rows_U = np.array(rows, np.int64)
    before_U = rows_U.copy()
    assert ascending(rows_U).tolist() == sorted(rows)
    assert (rows_U == before_U).all()


@given(st.sets(st.integers(0, 199), max_size=200), st.integers(1, 4))
def test_rows_that_were_written_are_read_and_no_others_change(rows, width):
    rows_U = torch.tensor(sorted(rows), dtype=torch.int64)
    records = lazy_zeros(200, 2 * width + 2)
    table = records[:, : 2 * width].view(200, 2, width)
    values = 1 + torch.rand(len(rows_U), 2, width, generator=torch.Generator().manual_seed(0))
    scatter(table, rows_U, values)
    assert torch.equal(gather(table, rows_U), values)
    others = np.setdiff1d(np.arange(200), rows_U.numpy())
    assert not table[others].any() and not records[:, 2 * width :].any()


@given(st.sets(st.integers(0, 199), max_size=200))
def test_marked_rows_are_those_that_were_named(rows):
    marks_R = np.zeros(200, bool)
    mark(marks_R, np.array(sorted(rows), np.int64))
    assert set(np.flatnonzero(marks_R).tolist()) == rows
