import io
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.content import Bytes
from niwaki.stream.files.json_values import is_json, read_values
from niwaki.stream.files.pieces import Part, column_names, read_pieces
from niwaki.stream.files.text import open_text

SCALAR = (
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(['}{"', "{[", '\\"', "\n"])
)
NESTED = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=3), NESTED, max_size=4), max_size=8)
BLOCKS = st.sampled_from([1, 2, 3, 7, 20, 64, 10_000])


def read(data: bytes | str, block_bytes: int = 2**18, encoding: str = ""):
    """The values of a text, the line of each, and the rejects."""
    content = Bytes(io.BytesIO(data.encode() if isinstance(data, str) else data).read)
    values, lines, rejects = [], [], []
    text = open_text(Path("events.json"), content, encoding)
    for some in read_values(text.data, block_bytes=block_bytes):
        assert len(some.rows) == len(some.places_B)
        values += some.rows
        lines += some.places_B.tolist()
        rejects += some.rejects
    return values, lines, rejects


LAYOUTS = {
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "lines without an end": lambda rows: "\n".join(map(json.dumps, rows)),
    "lines as Windows has them": lambda rows: "".join(json.dumps(row) + "\r\n" for row in rows),
    "an array": lambda rows: json.dumps(rows),
    "an array over lines": lambda rows: json.dumps(rows, indent=2),
    "an array of lines": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "one right after another": lambda rows: "".join(map(json.dumps, rows)),
    "with spaces between": lambda rows: " ".join(map(json.dumps, rows)),
    "pretty": lambda rows: "\n".join(json.dumps(row, indent=4) for row in rows),
    "pretty without indents": lambda rows: "\n".join(json.dumps(row, indent=0) for row in rows),
    "with record separators": lambda rows: "".join(f"\x1e{json.dumps(row)}\n" for row in rows),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(rows=OBJECTS, block_bytes=BLOCKS)
def test_every_object_is_read_in_whatever_layout_and_wherever_blocks_begin(
    layout, rows, block_bytes
):
    values, _, rejects = read(LAYOUTS[layout](rows), block_bytes)
    assert ([json.loads(value) for value in values], rejects) == (rows, [])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-32-be"])
def test_byte_order_marks_and_encodings_cost_no_value(mark, codec):
    rows = [{"user": "Zoë"}, {"user": "日本"}]
    for layout in LAYOUTS.values():
        data = (mark + layout(rows)).encode(codec)
        values, _, _ = read(data, 5, "" if mark or codec == "utf-8" else codec)
        assert list(map(json.loads, values)) == rows


def test_the_line_of_each_value_is_told():
    text = '\n{"a":1}\n\n{\n "a":2\n}{"a":3}\n[\n{"a":4},\n\n{"a":5}\n]\n{"a":6}'
    for block_bytes in (1, 4, 1000):
        assert read(text, block_bytes)[1] == [2, 4, 6, 8, 10, 12]


GOOD = '{"user": "u", "item": {"id": [1, 2]}}'


@pytest.mark.parametrize(
    "broken",
    [
        '{"user": "u", "item"',
        '{"user": "u", ',
        '{"user": "u',
        '{"user": "u\\',
        '{"user": ',
        '{"user": {"id": 1}',
        '{"user": [1, 2',
        '{"user" "u"}',
        '{"user": NaN}',
        "{",
        "garbage",
        '"user": "u"}',
        "null",
        "[1, 2",
        '{"user": "caf\udce9"}',
    ],
)
def test_a_broken_line_costs_that_line_wherever_blocks_begin(broken):
    text = "\n".join([GOOD, GOOD, broken, GOOD, GOOD, GOOD]).encode("utf-8", "surrogateescape")
    for block_bytes in (1, 3, 10, 50, 10_000):
        values, lines, rejects = read(text, block_bytes)
        assert (lines, rejects) == ([1, 2, 3, 4, 5, 6], [])
        assert values[2] == broken.strip().encode("utf-8", "surrogateescape")
        assert values[:2] + values[3:] == [GOOD.encode()] * 5


@pytest.mark.parametrize("cut", [5, 20, 30, 45])
@pytest.mark.parametrize("array", [True, False])
def test_a_broken_object_of_several_lines_costs_no_other(cut, array):
    whole = json.dumps({"user": "u", "items": [{"id": 1}, {"id": 2}]}, indent=2)
    objects = [whole, whole, whole[:cut], whole, whole]
    text = "\n".join(objects)
    if array:
        text = "[\n" + ",\n".join("  " + each.replace("\n", "\n  ") for each in objects) + "\n]"
    for block_bytes in (7, 100, 10_000):
        values, _, _ = read(text, block_bytes)
        assert len(values) == 5
        sound = [json.loads(value) for at, value in enumerate(values) if at != 2]
        assert sound == [json.loads(whole)] * 4
        with pytest.raises(json.JSONDecodeError):
            json.loads(values[2])


def test_objects_of_any_depth_are_read():
    deep = '{"a":' * 500 + "1" + "}" * 500
    assert read(f"{deep}\n{deep}{deep}")[0] == [deep.encode()] * 3


def test_a_value_that_is_too_large_is_one_reject(monkeypatch):
    monkeypatch.setattr("niwaki.stream.files.json_values.LONGEST_VALUE_BYTES", 1000)
    text = '{"a":1}\n{"a":"' + "x" * 5000 + '"}\n{"a":[\n' + "1,\n" * 2000 + ']}\n{"a":2}\n'
    values, lines, rejects = read(text, 100)
    assert (values, lines) == ([b'{"a":1}', b'{"a":2}'], [1, 2005])
    assert [(reject.position, reject.kind) for reject in rejects] == [(2, "json"), (3, "json")]


@pytest.mark.parametrize("broken", ['{"a": [', '{"a": 1', '{"a": {"b": 1}', '{"a'])
def test_thousands_of_broken_objects_are_found_in_a_time_that_grows_as_their_number(broken):
    def seconds(count: int) -> float:
        text = f"{broken}\n{GOOD}\n" * count
        begin = time.process_time()
        values, _, _ = read(text, 2**22)
        assert len(values) == 2 * count
        return time.process_time() - begin

    assert seconds(8000) < 8 * max(seconds(2000), 0.05)


@pytest.mark.parametrize("text", ['{"a":1}', ' \n{"a"', '[{"a"', "[\n  {", "[]", "[1, 2]"])
def test_json_is_told_by_its_first_bytes(text):
    assert is_json(text.encode())


@pytest.mark.parametrize("text", ["a,b", '"a","b"', "[ts],[label]", "1,{}"])
def test_delimited_text_is_not_taken_for_json(text):
    assert not is_json(text.encode())


def test_pieces_have_the_size_asked_for(tmp_path):
    path = tmp_path / "events.csv"  # the name does not matter
    path.write_text("".join(f'{{"at": {at}}}\n' for at in range(10_000)))
    for chunk_rows, limit in ((1, 10), (999, None), (4000, 9000), (10_000, None), (10**6, 10_001)):
        options = {"chunk_rows": chunk_rows, "limit": limit}
        pieces = list(read_pieces(Part(path), EventsConfig(), **options))
        values = [value for piece in pieces for value in piece.rows]
        count = min(limit or 10_000, 10_000)
        assert values == [b'{"at": %d}' % at for at in range(count)]
        assert {len(piece.rows) for piece in pieces[:-1]} <= {chunk_rows}
        assert [place for piece in pieces for place in piece.places_B] == [*range(1, count + 1)]
        assert {piece.unit for piece in pieces} == {"line"}
    assert column_names(Part(path), EventsConfig()) is None
