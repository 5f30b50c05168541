"""JSON values: found whole however they are laid out, and broken text costs itself."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.stream.files.content import Bytes
from niwaki.stream.files.json_values import read_json
from niwaki.stream.files.text import Text

LEAF = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\{}[],\n:é'))
OBJECT = st.dictionaries(
    st.text(st.sampled_from('k"{}\\'), min_size=1, max_size=3),
    LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.text(max_size=2), LEAF, max_size=2),
    min_size=1,
    max_size=4,
)
LAYOUTS = {
    "lines": lambda values: "".join(json.dumps(value) + "\n" for value in values),
    "array": json.dumps,
    "pretty array": lambda values: json.dumps(values, indent=2),
    "pretty": lambda values: "\n".join(json.dumps(value, indent=2) for value in values),
    "together": lambda values: "".join(map(json.dumps, values)),
    "with commas": lambda values: "[" + ",\n".join(map(json.dumps, values)) + "\n]\n",
}


def read(text: str):
    stream = io.BytesIO(text.encode())
    pieces = list(read_json(Text(Bytes(stream.read), "utf-8"), chunk_rows=3))
    values = [value for piece in pieces for value in piece.rows]
    places = [place for piece in pieces for place in piece.places_B.tolist()]
    return values, places, [one for piece in pieces for one in piece.rejects]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(values=st.lists(OBJECT, min_size=1, max_size=8))
def test_every_object_is_found_whole_in_every_layout(layout, values):
    found, _, rejects = read(LAYOUTS[layout](values))
    assert [json.loads(value) for value in found] == values
    assert rejects == []


@pytest.mark.parametrize("layout", ["lines", "pretty", "with commas"])
def test_a_value_is_told_with_the_line_at_which_it_begins(layout):
    values = [{"a": at, "b": "x"} for at in range(5)]
    text = LAYOUTS[layout](values)
    for place, value in zip(read(text)[1], values, strict=True):
        line = "\n".join(text.splitlines()[place - 1 :]).lstrip("[ ")
        assert json.JSONDecoder().raw_decode(line)[0] == value


def test_broken_text_between_objects_is_one_reject():
    pretty = json.dumps({"a": 1}, indent=2)
    found, _, rejects = read(f"{pretty}\nnonsense\n{pretty}\n")
    assert [json.loads(value) for value in found] == [{"a": 1}] * 2
    assert [(one.kind, one.position) for one in rejects] == [("json", 4)]


def test_a_broken_line_of_json_lines_is_handed_on_to_whoever_decodes():
    lines = ['{"a": 1}', "nonsense", '{"a": NaN}', '{"a":']
    found, places, _ = read("\n".join(lines) + "\n\n" + lines[0])
    assert [value.decode() for value in found] == [*lines, lines[0]]
    assert places == [1, 2, 3, 4, 6]
