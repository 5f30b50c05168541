"""Rows of tables as they travel: numbers lose nothing, values no more than their precision says,
each row by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from niwaki.model.errors import CheckpointError
from niwaki.model.published.checkpoint import tensors_only
from niwaki.model.published.table_codes import (
    decode,
    decode_rows,
    drop_columns,
    encode,
    encode_rows,
    encode_values,
    restore_columns,
    rounded,
)

row_sets = st.sets(
    st.one_of(st.integers(0, 300), st.integers(0, 2**20), st.integers(0, 2**40)), max_size=40
)
values = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 12), st.just(2), st.just(3)), elements=st.floats(width=32)
)


def through_codes(tensors, precision):
    """The tensors as a trainer reckons with them once they are published."""
    return rounded(tensors, encode_values(tensors, precision))


@given(row_sets)
def test_row_numbers_come_back_as_they_were(rows):
    ascending = torch.tensor(sorted(rows), dtype=torch.int64)
    assert torch.equal(decode_rows(encode_rows(ascending)), ascending)


def test_row_numbers_take_a_byte_each_where_every_tenth_row_is_there():
    rows = np.flatnonzero(np.random.default_rng(1).random(1_000_000) < 0.1)
    stored = encode_rows(torch.from_numpy(rows))
    assert stored.numpy().nbytes < 1.01 * len(rows)


def test_row_numbers_take_a_bit_of_the_table_each_where_every_second_row_is_there():
    rows = np.flatnonzero(np.random.default_rng(1).random(1_000_000) < 0.5)
    stored = encode_rows(torch.from_numpy(rows))
    assert stored.numpy().nbytes <= 1_000_000 / 8
    assert torch.equal(decode_rows(stored), torch.from_numpy(rows))


def test_row_numbers_that_do_not_ascend_are_refused():
    for rows in ([3, 3], [3, 2], [-1, 2]):
        with pytest.raises(ValueError, match="must ascend"):
            encode_rows(torch.tensor(rows))


def tables(linear: np.ndarray) -> dict[str, torch.Tensor]:
    rows = torch.arange(len(linear))
    embedding = torch.zeros(len(linear), 4)
    return {
        "linear.rows": rows,
        "linear.values": torch.from_numpy(linear),
        "embedding.rows": rows,
        "embedding.values": embedding,
    }


@given(values, st.sampled_from(["float32", "float16", "int8", "int4"]))
def test_what_comes_back_is_what_a_trainer_reckons_with(linear, precision):
    tensors = tables(linear)
    there, here = decode(encode(tensors, precision)), through_codes(tensors, precision)
    assert there.keys() == tensors.keys()
    for name, tensor in here.items():
        assert np.array_equal(there[name].numpy(), tensor.numpy(), equal_nan=True)


@given(values, st.sampled_from([("float16", 2.0**-11), ("int8", 2**0.25 / 254)]))
def test_a_value_is_off_by_no_more_than_a_share_of_its_rows_largest(linear, precision):
    name, share = precision
    came = through_codes(tables(linear), name)["linear.values"].numpy()
    for before, after in zip(linear, came, strict=True):
        largest = np.abs(before).max()
        if largest <= 64:
            assert np.abs(after - before).max() <= 1.001 * share * largest + 2.0**-24
        else:
            assert np.array_equal(after, before, equal_nan=True)


@given(values)
def test_a_value_in_4_bits_is_off_by_no_more_than_a_share_of_its_rows_largest(linear):
    linear[:, 1] = np.abs(linear[:, 1])  # a precision is not negative
    came = through_codes(tables(linear), "int4")["linear.values"].numpy()
    for before, after in zip(linear, came, strict=True):
        largest = np.abs(before).max()
        levels = np.array([[14], [30]]) if largest <= 1 else np.array([[254], [254]])
        if largest <= 64:
            share = 1.001 * 2**0.25 / levels
            assert (np.abs(after - before) <= share * largest + 2.0**-30).all()
        else:
            assert np.array_equal(after, before, equal_nan=True)


@given(values, st.integers(-40, 8), st.sampled_from(["float16", "int8", "int4"]))
def test_rounding_again_changes_nothing(linear, exponent, precision):
    with np.errstate(over="ignore", invalid="ignore"):
        at_once = np.concatenate([linear, np.full((1, 2, 3), 2.0**exponent, np.float32)])
    once = through_codes(tables(at_once), precision)
    twice = through_codes(once, precision)["linear.values"]
    assert np.array_equal(once["linear.values"].numpy(), twice.numpy(), equal_nan=True)


@given(values, st.integers(0, 11), st.sampled_from(["float16", "int8", "int4"]))
def test_a_row_does_not_depend_on_the_others(linear, row, precision):
    if row < len(linear):
        alone = through_codes(tables(linear[row : row + 1]), precision)["linear.values"][0]
        assert np.array_equal(
            alone.numpy(),
            through_codes(tables(linear), precision)["linear.values"][row].numpy(),
            equal_nan=True,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"linear.scales": torch.zeros(3, dtype=torch.int8)},
        {"linear.scales": torch.zeros(2)},
        {
            "linear.exact": torch.tensor([5], dtype=torch.int32),
            "linear.in_full": torch.zeros(1, 2, 3),
        },
        {"linear.exact": torch.tensor([0], dtype=torch.int32)},
        {"linear.values": torch.zeros(2, 2, 3, dtype=torch.int16)},
        {"linear.rows": torch.zeros(2)},
        {"linear.rows": torch.zeros(2, 1, dtype=torch.uint8)},
    ],
)
def test_parts_that_do_not_fit_together_are_refused(wrong):
    stored = encode(tables(np.ones((2, 2, 3), np.float32)), "int8")
    with pytest.raises(CheckpointError):
        decode(stored | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"linear.values": torch.zeros(11, dtype=torch.uint8)},
        {"linear.values": torch.zeros(2, 6, dtype=torch.uint8)},
        {"linear.scales": torch.zeros(3, dtype=torch.int8)},
        {"linear.scales": torch.zeros(2, 1, dtype=torch.int8)},
        {"linear.in_full": torch.zeros(0, 6)},
    ],
)
def test_parts_in_4_bits_that_do_not_fit_together_are_refused(wrong):
    stored = encode(tables(np.ones((2, 2, 3), np.float32)), "int4")
    assert stored["linear.values"].shape == (6,)
    with pytest.raises(CheckpointError):
        decode(stored | wrong)


@st.composite
def pruned_tables(draw):
    """Which columns of three fields of ten rows each are alive, and some rows that are zero in the
    others."""
    alive_FD = torch.from_numpy(draw(hnp.arrays(np.bool_, (3, 4))))
    rows = torch.tensor(sorted(draw(st.sets(st.integers(0, 29)))), dtype=torch.int64)
    drawn = draw(hnp.arrays(np.float32, (len(rows), 4), elements=st.floats(-100, 100, width=32)))
    embedding = torch.from_numpy(drawn).masked_fill(~alive_FD[rows // 10], 0.0)
    return alive_FD, tables(np.zeros((2, 2, 3), np.float32)) | {
        "embedding.rows": rows,
        "embedding.values": embedding,
    }


@given(pruned_tables(), st.sampled_from([("float32", 4), ("float16", 2), ("int8", 1), ("int4", 1)]))
def test_of_each_row_only_the_columns_alive_travel_and_all_come_back(pruned, precision):
    (alive_FD, tensors), (name, width) = pruned, precision
    stored = drop_columns(encode(tensors, name), alive_FD, 10)
    count = int(alive_FD[tensors["embedding.rows"] // 10].sum())
    assert stored["embedding.values"].numpy().nbytes == width * count
    there, here = decode(restore_columns(stored, alive_FD, 10)), through_codes(tensors, name)
    assert there.keys() == here.keys()
    assert all(torch.equal(tensor, there[key]) for key, tensor in here.items())


@pytest.mark.parametrize(
    "change", ["a value less", "a row beyond", "no rows", "an exact row beyond"]
)
def test_columns_that_do_not_fit_their_rows_are_refused(change):
    alive_FD = torch.tensor([[True, False], [True, True]])
    rows, full = torch.tensor([0, 3, 7]), torch.tensor([[100.0, 0], [1, 0], [2, 3]])
    whole = tables(np.zeros((2, 2, 3), np.float32)) | {
        "embedding.rows": rows,
        "embedding.values": full,
    }
    stored = drop_columns(encode(whole, "int8"), alive_FD, 5)
    if change == "a value less":
        stored["embedding.values"] = stored["embedding.values"][1:]
    elif change == "a row beyond":
        stored["embedding.rows"] = encode_rows(torch.tensor([0, 3, 10]))
    elif change == "no rows":
        del stored["embedding.rows"]
    else:
        stored["embedding.exact"] = torch.tensor([3], dtype=torch.int32)
    with pytest.raises(CheckpointError):
        restore_columns(stored, alive_FD, 5)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters='"\\'), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from(["b1", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "f8", "i8"]),
            st.lists(st.integers(0, 5), max_size=3),
        ),
        max_size=6,
    )
)
def test_tensors_are_written_as_the_library_of_safetensors_writes_them(shapes):
    arrays = {name: np.zeros(shape, kind) for name, (kind, shape) in shapes.items()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert tensors_only(tensors) == save(arrays)
