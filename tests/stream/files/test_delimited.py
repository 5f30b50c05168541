"""Delimited text: every row is read or told, wherever blocks end and whatever lies between
quotes."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.content import Bytes
from niwaki.stream.files.delimited import read_delimited
from niwaki.stream.files.text import open_text

NAME = Path("clicks.csv")
CELL = st.text(st.sampled_from('ab1,;"\n\r\té '), max_size=6)
TABLE = st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=12)
BLOCKS = st.integers(1, 60)
BROKEN = {
    "too few": ("1,2", "must have 3 fields, has 2"),
    "too many": ("1,2,3,4", "must have 3 fields, has 4"),
    "open": ('1,"2,3', "has a quote that is not closed"),
}


def read(data: bytes, *, block_bytes: int = 4096, **config: object):
    """Rows, their lines, and rejects by line."""
    settings = EventsConfig(**config)
    text = open_text(NAME, Bytes(io.BytesIO(data).read), settings.encoding)
    pieces = list(read_delimited(NAME, text, settings, block_bytes=block_bytes))
    rows = [row for piece in pieces for row in zip(*piece.rows.to_pydict().values(), strict=True)]
    lines = [line for piece in pieces for line in piece.places_B.tolist()]
    return rows, lines, {one.position: one for piece in pieces for one in piece.rejects}


@given(TABLE, BLOCKS)
def test_what_is_quoted_is_read_back_wherever_blocks_end(rows, block_bytes):
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("first", "second", "third"), *rows])
    found, _, rejects = read(out.getvalue().encode(), block_bytes=block_bytes, separator=",")
    assert (found, rejects) == (rows, {})


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 29), st.sampled_from(sorted(BROKEN))), max_size=6),
    BLOCKS,
)
def test_a_broken_row_costs_itself_and_no_other(good, broken, block_bytes):
    wrong = dict(broken)
    rows = [BROKEN[wrong[at]][0] if at in wrong else f"{at},x,{good}" for at in range(30)]
    found, places, rejects = read("\n".join(["a,b,c", *rows]).encode(), block_bytes=block_bytes)
    assert [row[0] for row in found] == [str(at) for at in range(30) if at not in wrong]
    assert places == [at + 2 for at in range(30) if at not in wrong]
    rules = {line - 2: one.rule for line, one in rejects.items()}
    assert rules == {at: BROKEN[kind][1] for at, kind in wrong.items()}


@given(st.sets(st.integers(0, 19)), BLOCKS)
def test_bytes_that_are_no_text_cost_their_row(bad, block_bytes):
    lines = [b"a,b"] + [b"%d,\xff" % at if at in bad else b"%d,x" % at for at in range(20)]
    rows, _, rejects = read(b"\n".join(lines), block_bytes=block_bytes)
    assert [int(row[0]) for row in rows] == [at for at in range(20) if at not in bad]
    assert {line - 2 for line in rejects} == bad
    assert all(one.kind == "encoding" and "--encoding" in one.rule for one in rejects.values())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::"])
def test_separators_and_ends_of_lines_are_seen(separator, end):
    lines = [separator.join(row) for row in (("a", "b", "c"), ("1", "2", "x"), ("3", "", "y"))]
    rows, lines, rejects = read(end.join(lines).encode())
    assert (rows, lines, rejects) == ([("1", "2", "x"), ("3", None, "y")], [2, 3], {})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"])
def test_text_in_other_encodings_is_read(encoding):
    data = "a,b\nü,1\nß,2\n".encode(encoding)
    given = {"encoding": encoding} if encoding in ("latin-1", "cp1252") else {}
    assert read(data, block_bytes=5, **given)[0] == [("ü", "1"), ("ß", "2")]


@pytest.mark.parametrize(
    ("data", "config", "text"),
    [
        (b"1,2\n3,4\n", {}, "has no header; name its 2 columns with --names a,b"),
        (b"a,b\n1,2\n", {"names": ("x",)}, "has 2 columns and not the 1 of names"),
        (b"a,a\n1,2\n", {}, "has two columns called 'a'"),
        (b"a,b\n1,2\n", {"encoding": "latin-11"}, "the nearest is"),
        ("a,b\n1,2\n".encode("utf-16-le"), {}, "--encoding utf-16-le"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(data, config, text):
    with pytest.raises(ConfigError, match=text):
        read(data, **config)


def test_names_stand_for_a_header_or_are_one():
    assert read(b"1,2\n3,4\n", names=("x", "y"))[0] == [("1", "2"), ("3", "4")]
    assert read(b"x,y\n3,4\n", names=("x", "y"))[0] == [("3", "4")]
