import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.content import Bytes
from niwaki.stream.files.delimited import read_delimited
from niwaki.stream.files.pieces import Part, column_names, read_pieces
from niwaki.stream.files.text import open_text

PATH = Path("events.csv")
NAMES = ("ts", "label", "user")
WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)
VALUE = (
    st.none() | WORD | st.sampled_from(['"', '""', "a,b", "a\nb", "a\r\nb", "\r", '",\n"', r"\N"])
)
BLOCKS = st.sampled_from([1, 2, 3, 7, 20, 64, 10_000])


def read(data: bytes | str, block_bytes: int = 2**20, columns=None, **config):
    """The rows of a text as tuples, the line of each, and the rejects."""
    content = Bytes(io.BytesIO(data.encode() if isinstance(data, str) else data).read)
    events = EventsConfig(**config)
    text = open_text(PATH, content, events.encoding)
    rows, lines, rejects = [], [], []
    for some in read_delimited(PATH, text, events, columns=columns, block_bytes=block_bytes):
        assert len(some.rows) == len(some.places_B)
        rows += [tuple(row.values()) for row in some.rows.to_pylist()]
        lines += some.places_B.tolist()
        rejects += some.rejects
    return rows, lines, rejects


def names(data: bytes | str, **config) -> list[str]:
    content = Bytes(io.BytesIO(data.encode() if isinstance(data, str) else data).read)
    text = open_text(PATH, content, "")
    return next(read_delimited(PATH, text, EventsConfig(**config))).rows.column_names


def field(value: str | None, quote: bool) -> str:
    """A field as CSV has it: null is bare."""
    if value is None:
        return ""
    special = not value or value == r"\N" or any(mark in value for mark in ',"\r\n')
    return '"' + value.replace('"', '""') + '"' if quote or special else value


def line_of(values, end: str, quote: bool = False) -> str:
    return ",".join(field(value, quote) for value in values) + end


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(WORD.filter(bool), VALUE, VALUE), max_size=12),
    end=st.sampled_from(["\n", "\r\n"]),
    quote=st.booleans(),
    block_bytes=BLOCKS,
    final=st.booleans(),
)
def test_a_table_reads_back_equal_wherever_blocks_begin(rows, end, quote, block_bytes, final):
    texts = [line_of(row, end, quote) for row in [NAMES, *rows]]
    text = "".join(texts) if final else "".join(texts).removesuffix(end)
    found, lines, rejects = read(text, block_bytes, names=NAMES)
    assert (found, rejects) == (rows, [])
    begins = [len("".join(texts[:at]).encode().splitlines()) + 1 for at in range(1, len(texts))]
    assert lines == begins


BROKEN = st.sampled_from(
    [
        ("1,2", "row", "must have 3 fields, has 2"),
        ("1,2,3,4", "row", "must have 3 fields, has 4"),
        ('1,"x\ny",3,4', "row", "must have 3 fields, has 4"),
        ('1,"never closed,3', "row", "has a quote that is not closed"),
        ('1,2,"', "row", "has a quote that is not closed"),
        ("1,caf\udce9,3", "encoding", "must be utf-8, its byte 0xe9 is not"),
        ('1,"caf\udcff",3', "encoding", "must be utf-8, its byte 0xff is not"),
    ]
)
SOUND = st.tuples(
    st.sampled_from("ab"),
    st.sampled_from(["c", "é d", 'e"f"', 'g, "h"', "i\nj", None]),
    st.just("k"),
)


@settings(max_examples=300, deadline=None)
@given(
    before=st.lists(SOUND, max_size=6),
    after=st.lists(SOUND, max_size=6),
    broken=BROKEN,
    end=st.sampled_from(["\n", "\r\n"]),
    block_bytes=BLOCKS,
)
def test_a_broken_row_costs_that_row_wherever_blocks_begin(before, after, broken, end, block_bytes):
    wrong, kind, rule = broken
    texts = [line_of(NAMES, end), *(line_of(row, end) for row in before)]
    text = "".join([*texts, wrong, end, *(line_of(row, end) for row in after)])
    data = text.encode("utf-8", "surrogateescape")
    rows, _, rejects = read(data, block_bytes, names=NAMES)
    assert rows == before + after
    (reject,) = rejects
    assert (reject.kind, reject.field) == (kind, "row") and reject.rule.startswith(rule)
    assert reject.position == len("".join(texts).encode("utf-8").splitlines()) + 1


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::", "\x01"])
def test_the_separator_is_seen_in_the_first_lines(separator):
    text = "\n".join(separator.join(row) for row in [NAMES, ("1", "2,5", "a b"), ("3", "4", "c")])
    assert read(text if separator != "," else text.replace("2,5", "25"))[0][1] == ("3", "4", "c")
    assert names(text.replace("2,5", "25")) == list(NAMES)


def test_a_separator_within_quotes_does_not_count():
    assert names('title;"a,b,c"\n"x, y";1\n"u, v, w";3\n') == ["title", "a,b,c"]
    assert names('user,"a;b;c;d",item\nu,"1;2;3;4",i\n') == ["user", "a;b;c;d", "item"]


@pytest.mark.parametrize("given_separator", ["~", "||", "\\t", "\\x02", "§"])
def test_the_separator_that_is_given_counts(given_separator):
    real = {"\\t": "\t", "\\x02": "\x02"}.get(given_separator, given_separator)
    text = f"ts{real}la,bel{real}user\n1{real}0,5{real}u\x1f1\n2{real}{real}\n"
    assert read(text, separator=given_separator)[0] == [("1", "0,5", "u\x1f1"), ("2", None, None)]


def test_a_reject_shows_the_separator_of_the_file():
    _, _, (reject,) = read("a::b\nx::y\nx::y::z\nx::y\n", block_bytes=5)
    assert (reject.position, reject.value) == (3, "'x::y::z'")


def test_quotes_have_no_meaning_where_the_separator_is_several_characters():
    assert read('a::b\n"x::y"\n"u::v\n')[0] == [('"x', 'y"'), ('"u', "v")]


def test_only_a_bare_empty_field_and_a_bare_n_are_null():
    text = 'a,b,c,d,e\n,"",\\N,"\\N",NA\n'
    assert read(text)[0] == [(None, "", None, r"\N", "NA")]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.text(st.sampled_from('ab,\\"\n'), max_size=8), min_size=1, max_size=8),
    block_bytes=BLOCKS,
)
def test_quotes_that_a_backslash_escapes_are_read_as_spark_writes_them(values, block_bytes):
    """A value with a quote is quoted, and the quotes and backslashes in it are escaped."""
    values = ['say "hi", there', *values]
    texts = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    lines = "".join(f'{at},1,"{text}"\n' for at, text in enumerate(texts))
    rows, _, rejects = read("ts,label,user\n" + lines, block_bytes)
    assert rejects == []
    assert [row[2] for row in rows] == values


def test_a_backslash_before_the_last_quote_of_a_field_is_a_backslash():
    rows, _, rejects = read('ts,label,user\n1,1,"C:\\"\n2,0,"D:\\"\n')
    assert (rows, rejects) == ([("1", "1", "C:\\"), ("2", "0", "D:\\")], [])


def test_quotes_within_other_fields_are_literal():
    text = 'a,b\nTV 42",x "y" z\n5" or 6",7"\n'
    assert read(text) == ([('TV 42"', 'x "y" z'), ('5" or 6"', '7"')], [2, 3], [])


def test_a_quote_that_is_not_closed_swallows_nothing_however_many_quotes_follow():
    lines = ["a,b,c", *(f'{at},"x, {at}",y' for at in range(500))]
    lines[200], lines[400] = '1,"open,y', '2",open,"y'
    rows, _, rejects = read("\n".join(lines), block_bytes=1000)
    assert len(rows) == 498
    assert [(reject.position, reject.rule) for reject in rejects] == [
        (201, "has a quote that is not closed"),
        (401, "has a quote that is not closed"),
    ]


def test_a_record_of_several_lines_is_at_most_a_megabyte_long():
    long = "x\n" * (2**20 // 2)
    rows, _, rejects = read(f'a,b\n1,"{long}"\n2,"u\nv"\n', block_bytes=2**16)
    assert rows == [("2", "u\nv")]
    assert rejects[0].rule == "has a quote that is not closed" and rejects[0].position == 2
    assert len(rejects) == 2**20 // 2 + 1  # each line of it is a wrong row


def test_blank_lines_are_left_out_and_lines_are_still_counted():
    for end in ("\n", "\r\n", "\r"):
        text = end.join(["", "a,b", "", "1,2", "", "", "3,4", "5", "", "6,7", "", ""])
        for block_bytes in (1, 5, 1000):
            rows, lines, rejects = read(text, block_bytes)
            assert (rows, lines) == ([("1", "2"), ("3", "4"), ("6", "7")], [4, 7, 10])
            assert [reject.position for reject in rejects] == [8]


def test_a_lone_return_among_other_line_ends_ends_a_line():
    text = 'a,b\n1,2\r3,4\n"x\ry",5\n6,7\r\n'
    for block_bytes in (1, 4, 1000):
        rows = [("1", "2"), ("3", "4"), ("x\ry", "5"), ("6", "7")]
        assert read(text, block_bytes) == (rows, [2, 3, 4, 6], [])


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
def test_a_byte_order_mark_tells_the_encoding_and_costs_nothing(codec):
    text = "label,name\n1,Zoë\n0,日本\n"
    mark = "\ufeff" if codec.endswith("be") else ""
    for block_bytes in (3, 1000):
        rows, lines, rejects = read((mark + text).encode(codec), block_bytes)
        assert (rows, lines, rejects) == ([("1", "Zoë"), ("0", "日本")], [2, 3], [])
    assert names((mark + text).encode(codec)) == ["label", "name"]


@pytest.mark.parametrize("codec", ["latin-1", "cp1252", "utf-16-le", "shift_jis", "utf8"])
def test_an_encoding_that_is_given_is_read_wherever_blocks_begin(codec):
    name = "日本" if codec == "shift_jis" else "Zoë"
    data = f"label,name\n1,{name}\n0,x\n".encode(codec)
    for block_bytes in (1, 2, 3, 1000):
        assert read(data, block_bytes, encoding=codec)[0] == [("1", name), ("0", "x")]


def test_damage_in_another_encoding_costs_its_row():
    rows, _, (reject,) = read(b"label,name\n1,a\n0,b\x81\n1,c\n", encoding="cp1252")
    assert rows == [("1", "a"), ("1", "c")]
    assert (reject.position, reject.kind) == (3, "encoding")
    assert reject.rule == "must be cp1252, its byte 0x81 is not"


def test_a_row_that_is_not_utf_8_says_the_way_on():
    _, _, (reject,) = read(b"label,name\n1,Zo\xeb\n")
    assert "0xeb" in reject.rule and "--encoding latin-1" in reject.rule


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_text_without_a_mark_that_looks_like_utf_16_is_named(codec):
    with pytest.raises(ConfigError, match=f"looks like UTF-..; read it with --encoding {codec}"):
        read("label,name\n1,Zoë\n".encode(codec) * 20)


def test_an_unknown_encoding_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="nearest is latin_1.*got 'latin_l'"):
        read("a,b\n1,2\n", encoding="latin_l")
    with pytest.raises(ConfigError, match="must be an encoding"):
        read("a,b\n1,2\n", encoding="base64")


def test_what_is_no_text_is_said():
    with pytest.raises(ConfigError, match="neither text nor of another kind"):
        read(bytes(range(256)) * 20)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (",ts,label\n0,1,2\n", ["", "ts", "label"]),  # an index of pandas
        ("ts,label\nr1,1,2\nr2,3,4\n", ["", "ts", "label"]),  # names of rows of R
        ("ts,label\n1,2,\n3,4,\n", ["ts", "label", ""]),  # separators at the ends
        ('"ts","la\nbel"\n1,2\n', ["ts", "la\nbel"]),
        ("sep=;\r\nts;label\r\n1;2\r\n", ["ts", "label"]),  # of Excel
        ("ts,label\n", ["ts", "label"]),
        ("name\nanna\n", ["name"]),
    ],
)
def test_the_first_line_is_the_header_unless_it_looks_like_data(text, wanted):
    assert names(text) == wanted


@pytest.mark.parametrize("first", ["1,u1,i1", "u1,2024-01-05,i1", "u1,,i1", "u,i,-1.5e3"])
def test_a_file_without_a_header_says_how_to_name_its_columns(first):
    with pytest.raises(ConfigError, match=rf"no header; .*3 columns with --names a,b,c; .*{first}"):
        read(f"{first}\n2,u2,i2\n")


def test_names_that_are_given_name_the_columns():
    rows = [("1", "0", "u1"), ("2", "1", "u2")]
    body = "1,0,u1\n2,1,u2\n"
    assert read(body, names=NAMES)[:2] == (rows, [1, 2])
    for header in ("ts,label,user", "time,click,user", "a,b,b"):
        assert read(f"{header}\n{body}", names=NAMES)[:2] == (rows, [2, 3])
    with pytest.raises(ConfigError, match="has 3 columns and not the 2 of names; .*'1,0,u1'"):
        read(body, names=("ts", "label"))


def test_two_columns_of_one_name_are_said_in_one_line():
    with pytest.raises(
        ConfigError, match="two columns called 'user'; give other names with --names"
    ):
        read("ts,user,user\n1,2,3\n")


def test_the_files_of_criteo_are_known_without_a_header():
    line = "\t".join(["1", *map(str, range(13)), *("a" * 8 for _ in range(26))])
    found = names(f"{line}\n{line}\n")
    assert (found[:2], found[13:15], found[-1], len(found)) == (
        ["label", "I1"],
        ["I13", "C1"],
        "C26",
        40,
    )


def test_a_header_that_is_not_utf_8_is_named():
    with pytest.raises(ConfigError, match="has a header that must be utf-8, .* 0xe9"):
        read("prix_é,b\n1,2\n".encode("latin-1"))


def test_only_the_columns_that_are_asked_for_are_read():
    text = 'a,b,c\n1,"x\ny",3\n4,5\n'
    rows, lines, rejects = read(text, columns=["c", "a", "none"])
    assert (rows, lines, len(rejects)) == ([("1", "3")], [2], 1)
    _, lines, rejects = read(text, columns=[])
    assert (lines, len(rejects)) == ([2], 1)


def test_a_line_of_many_megabytes_costs_that_line(monkeypatch):
    monkeypatch.setattr("niwaki.stream.files.delimited.LONGEST_LINE_BYTES", 1000)
    rows, lines, rejects = read(f"a,b\n1,2\n3,{'x' * 5000}\n4,5\n", block_bytes=100)
    assert (rows, lines) == ([("1", "2"), ("4", "5")], [2, 4])
    assert [reject.position for reject in rejects] == [3]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(['"', ",", "\n", "a", "\r", "\r\n", '""', '1,"y\nz",w\n', "é"])),
    st.sampled_from([1, 2, 5, 13, 40]),
)
def test_any_text_is_read_alike_wherever_blocks_begin(body, block_bytes):
    text = "1,2,3\n1,2,3\n" + "".join(body)
    assert read(text, block_bytes, names=NAMES) == read(text, names=NAMES)


def test_the_rows_are_those_of_python_s_reader(tmp_path):
    path = tmp_path / "events.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        writer.writerows((at, f'say "{at}",\n{at}', "x" * (at % 50)) for at in range(30_000))
    with path.open(newline="") as file:
        wanted = [tuple(value or None for value in row) for row in csv.reader(file)]
    assert column_names(Part(path), EventsConfig()) == list(wanted[0])
    pieces = list(read_pieces(Part(path), EventsConfig(), chunk_rows=7000))
    assert [len(piece.rows) for piece in pieces] == [7000] * 4 + [2000]
    assert [tuple(row.values()) for piece in pieces for row in piece.rows.to_pylist()] == wanted[1:]
    assert pieces[-1].places_B[-1] == 2 * 30_000 and pieces[0].unit == "line"
