"""Plain JSON is read straight to hashed events, and gives what the slower way gives, or nothing."""

import json
import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.schema import Schema
from niwaki.serving.bodies import wire
from niwaki.serving.bodies.json_rows import scan_score

SCHEMA = Schema(
    categorical=("user", "item", "größe"),
    numeric=("price", "age"),
    lists=("seen",),
    ignore=("note",),
    weight="w",
    crosses=(("user", "item"),),
    time_features=("hour",),
)
ENCODER = Encoder(SCHEMA, rows=1_024)


def slowly(body: bytes, encoder: Encoder = ENCODER, most: int = 100) -> HashedEvents:
    return encoder.encode(wire.read_score(body, encoder.schema, most))


def arrays(hashed: HashedEvents) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in hashed.tensors] + [
        part for rows in hashed.lists for part in rows
    ]


def check_same(found: HashedEvents, expected: HashedEvents) -> None:
    for one, other in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


EVENT = {
    "user": "u1",
    "item": 4711,
    "größe": "ÄÖ 🌳",
    "price": 9.950000000000001,
    "age": -1.5e-7,
    "seen": ["a", 2, None],
    "ts": 1_700_000_000_123,
    "note": "x",
    "w": 2,
}
PLAIN = [
    {"events": [EVENT, {}, {"user": None, "item": True, "price": None, "age": False}]},
    {"events": []},
    {"context": {"user": 12, "price": 0.1, "seen": {"a": 0.5, "b": 2}}, "candidates": [{}]},
    {"candidates": [{"item": "4711.0"}, {"item": -3}, {"item": 0, "seen": None}]},
    {"candidates": [{"item": str(i), "seen": ["x"] * i} for i in range(9)], "context": {"age": 1}},
    {"context": {"ts": 1, "seen": "a|b"}, "candidates": [{"item": i} for i in range(20)]},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("body", PLAIN)
def test_a_plain_body_is_read_at_once_and_gives_what_the_library_gives(body, indent):
    text = json.dumps(body, ensure_ascii=False, indent=indent).encode()
    found = scan_score(text, ENCODER, 100)
    assert found is not None
    check_same(found, slowly(text))


NOT_PLAIN = [
    b"",
    b"{}",
    b"[]",
    b'{"events": [{}]',
    b'{"events": [{}]} {}',
    b'{"events": [{},]}',
    b'{"events": [{"user": "a" "item": 1}]}',
    b'{"events": [{"user": 01}]}',
    b'{"events": [{"price": 1.}]}',
    b'{"events": [{"price": .5}]}',
    b'{"events": [{"price": 1e}]}',
    b'{"events": [{"price": "1"}]}',
    b'{"events": [{"price": 1e39}]}',
    b'{"events": [{"price": NaN}]}',
    b'{"events": [{"price": nul}]}',
    b'{"events": [{"user": tru}]}',
    b'{"events": [{"user": "\\u00e9"}]}',
    b'{"events": [{"user": "a\nb"}]}',
    b'{"events": [{"user": "\xff"}]}',
    b'{"events": [{"user": -0}]}',
    b'{"events": [{"user": 1.5}]}',
    b'{"events": [{"user": 123456789012345678901}]}',
    b'{"events": [{"user": ["u"]}]}',
    b'{"events": [{"colour": "red"}]}',
    b'{"events": [{"label": 1}]}',
    b'{"events": [{"seen": [1 2]}]}',
    b'{"events": [{"seen": [{"a": 1}}]}',
    b'{"events": [{"seen": [["a"]]}]}',
    b'{"events": [{"ts": "now"}]}',
    b'{"events": [{"ts": 1e30}]}',
    b'{"events": [], "candidates": []}',
    b'{"events": [], "context": {}}',
    b'{"context": {}, "context": {}, "candidates": []}',
    b'{"context": {"user": 1}, "candidates": [{"user": 1}]}',
    b'{"context": {}}',
    b'{"events": [{' + b"}, {" * 100 + b"}]}",
    b'{"events": [{"user": "a", "user\0": 1}]}',
    b'{"events": [{}]}\0',
]


@pytest.mark.parametrize("body", NOT_PLAIN)
def test_whatever_is_not_plain_is_left_to_the_library(body):
    assert scan_score(body, ENCODER, 100) is None


names = st.sampled_from([*SCHEMA.columns[3:], "ts", "note", "w"])
texts = st.text(st.characters(codec="utf-8"), max_size=9) | st.sampled_from(["4711.0", "-0.0", ""])
numbers = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(width=32, allow_nan=False, allow_infinity=False)
    | st.integers(-(2**70), 2**70)
    | st.integers(-5, 2_000_000_000_000)
)
scalars = st.none() | st.booleans() | texts | numbers
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=2)
objects = st.dictionaries(names, values, max_size=5)
bodies = st.fixed_dictionaries({"events": st.lists(objects, max_size=4)}) | st.fixed_dictionaries(
    {"candidates": st.lists(objects, max_size=4)}, optional={"context": objects}
)


@settings(max_examples=400, deadline=None)
@given(bodies, st.booleans())
@example({"candidates": [{"price": 16777217.000000002}]}, True)
@example({"candidates": [{"price": 1.1754943508222875e-38}]}, True)
def test_any_json_gives_what_the_library_gives_or_nothing(body, escaped):
    text = json.dumps(body, ensure_ascii=escaped).encode()
    found = scan_score(text, ENCODER, 100)
    if found is not None:
        check_same(found, slowly(text))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_body_is_read_as_the_library_reads_it_or_not_at_all(data):
    whole = json.dumps(PLAIN[data.draw(st.integers(0, 4))], ensure_ascii=False).encode()
    at, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    text = whole[:at] + data.draw(st.binary(max_size=3) | st.just(b"")) + whole[end:]
    found = scan_score(text, ENCODER, 100)
    if found is not None:
        check_same(found, slowly(text))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(1, 17))
def test_a_number_is_read_to_its_last_bit_however_it_is_written(number, digits):
    text = f"{number:.{digits}g}"
    body = f'{{"events": [{{"price": {text}}}]}}'.encode()
    found = scan_score(body, ENCODER, 1)
    if found is not None and math.isfinite(float(text)):
        assert found.raw_numerics_BN[0, 0] == torch.tensor(float(text), dtype=torch.float32)


def test_nearly_all_numbers_that_clients_write_are_plain():
    numbers = np.random.default_rng(0).lognormal(0, 5, 10_000)
    bodies = (
        msgspec.json.encode({"events": [{"price": value, "age": float(np.float32(value))}]})
        for value in numbers.tolist()
    )
    assert sum(scan_score(body, ENCODER, 1) is None for body in bodies) < 10


@pytest.mark.parametrize("form, value", [("iso", "2024-05-01T10:00:00Z"), ("s", 1714557600.25)])
def test_times_of_every_form_are_read(form, value):
    schema = Schema(categorical=("a",), timestamp_format=form, time_features=("hour",))
    encoder = Encoder(schema, rows=64)
    body = json.dumps({"context": {"ts": value}, "candidates": [{"a": 1}, {"a": 2}]}).encode()
    found = scan_score(body, encoder, 10)
    assert found is not None and found.times_s_B[1] > 1.7e9
    check_same(found, slowly(body, encoder))
