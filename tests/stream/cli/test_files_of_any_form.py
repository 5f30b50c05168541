"""Files as other tools write them: each gives the events, and the figures, of the plain one."""

import json

import pyarrow as pa
import pytest

from tests.support.inputs import (
    BASE,
    COMPRESS,
    EVENTS,
    arrow_file,
    changed,
    csv_text,
    iso,
    json_lines,
    parquet,
    rows,
    zipped,
)

TEXT, LINES = csv_text(BASE), json_lines(BASE)
ARGUMENTS = ("--policy", "dense", "--json")


def with_price(form) -> str:
    return csv_text(changed(price=lambda row: form(row["price"])))


SAME = {
    "plain.csv": TEXT,
    "crlf.csv": csv_text(BASE, end="\r\n"),
    "no_end_of_line.csv": TEXT.rstrip("\n"),
    "empty_lines.csv": TEXT.replace("\n", "\n\n"),
    "mark.csv": "\ufeff" + TEXT,
    "utf16.csv": TEXT.encode("utf-16"),
    "tab.tsv": csv_text(BASE, "\t"),
    "pipe.txt": csv_text(BASE, "|"),
    "semicolon.csv": csv_text(changed(price=lambda row: str(row["price"]).replace(".", ",")), ";"),
    "colons.dat": TEXT.replace(",", "::"),
    "quoted.csv": TEXT.replace("label", '"label"').replace("u1,", '"u1",'),
    "thousands.csv": with_price(lambda price: f"{price:,.3f}"),
    "currency.csv": with_price(lambda price: f"${price}"),
    "percent.csv": with_price(lambda price: f"{price}%"),
    "words.csv": csv_text(changed(label=lambda row: "yes" if row["label"] else "no")),
    "booleans.csv": csv_text(changed(label=lambda row: str(bool(row["label"])))),
    "signs.csv": csv_text(changed(label=lambda row: 2 * row["label"] - 1)),
    "floats.csv": csv_text(changed(label=lambda row: float(row["label"]))),
    "seconds.csv": csv_text(changed(ts=lambda row: row["ts"] // 1000)),
    "micros.csv": csv_text(changed(ts=lambda row: row["ts"] * 1000)),
    "nanos.csv": csv_text(changed(ts=lambda row: row["ts"] * 1000_000)),
    "float_seconds.csv": csv_text(changed(ts=lambda row: row["ts"] / 1000)),
    "iso.csv": csv_text(changed(ts=iso)),
    "utc.csv": csv_text(changed(ts=lambda row: iso(row, "%Y-%m-%d %H:%M:%S UTC"))),
    "american.csv": csv_text(changed(ts=lambda row: iso(row, "%m/%d/%Y %I:%M:%S %p"))),
    "float_ids.csv": csv_text(changed(item=lambda row: float(row["item"]))),
    "lines.jsonl": LINES,
    "lines.json": LINES,
    "lines_mark.jsonl": "\ufeff" + LINES,
    "array.json": json.dumps(BASE),
    "pretty_array.json": json.dumps(BASE, indent=2),
    "pretty.json": "\n".join(json.dumps(row, indent=2) for row in BASE),
    "no_newlines.json": "".join(map(json.dumps, BASE)),
    "booleans.jsonl": json_lines(changed(label=lambda row: bool(row["label"]))),
    "signs.jsonl": json_lines(changed(label=lambda row: 2 * row["label"] - 1)),
    "text.jsonl": json_lines(
        changed(label=lambda row: str(row["label"]), price=lambda row: str(row["price"]))
    ),
    "iso.jsonl": json_lines(changed(ts=lambda row: iso(row) + "Z")),
    "float_ids.jsonl": json_lines(changed(item=lambda row: float(row["item"]))),
    "plain.parquet": parquet(BASE),
    "signs.parquet": parquet(changed(label=lambda row: 2 * row["label"] - 1)),
    "booleans.parquet": parquet(changed(label=lambda row: bool(row["label"]))),
    "float_ids.parquet": parquet(changed(item=lambda row: float(row["item"]))),
    "plain.arrow": arrow_file(BASE),
    "plain.feather": arrow_file(BASE, "lz4"),
    "named_wrongly.jsonl": COMPRESS["gz"](LINES.encode()),
    "named_wrongly.gz": LINES,
    "plain.csv.zip": zipped("plain.csv", TEXT.encode()),
    **{f"plain.csv.{end}": compress(TEXT.encode()) for end, compress in COMPRESS.items()},
    "plain.parquet.gz": COMPRESS["gz"](parquet(BASE)),
}


@pytest.fixture(scope="module")
def figures():
    """The figures of the plain file, once they are known."""
    return {}


@pytest.mark.parametrize("name", SAME)
def test_one_stream_gives_one_figure_whatever_its_form(name, put, niwaki, figures):
    ran = niwaki("backtest", put(name, SAME[name]), *ARGUMENTS)
    assert ran.code == 0, ran.err + ran.out
    found = ran.json
    assert (found["events"], found["rejected"]) == (EVENTS, 0)
    figures.setdefault("ne", found["policies"]["dense"]["ne"])
    assert found["policies"]["dense"]["ne"] == pytest.approx(figures["ne"], abs=1e-6)


def test_several_files_are_one_stream_in_the_order_of_their_time(put, niwaki, figures):
    parts = [BASE[250:], BASE[:100], BASE[100:250]]
    files = [put(f"{at}.csv", csv_text(part)) for at, part in enumerate(parts)]
    ran = niwaki("backtest", *files, *ARGUMENTS)
    assert ran.json["events"] == EVENTS
    plain = niwaki("backtest", put("plain.csv", TEXT), *ARGUMENTS).json
    assert ran.json["policies"]["dense"]["ne"] == plain["policies"]["dense"]["ne"]


def test_a_folder_of_spark_is_read_without_its_marks(put, niwaki, tmp_path):
    put("clicks.parquet/part-00000-a.snappy.parquet", parquet(BASE[:200]))
    put("clicks.parquet/part-00001-b.snappy.parquet", parquet(BASE[200:]))
    put("clicks.parquet/_SUCCESS", b"")
    put("clicks.parquet/.part-00000-a.snappy.parquet.crc", b"crc")
    ran = niwaki("backtest", tmp_path / "clicks.parquet", *ARGUMENTS)
    assert (ran.json["events"], ran.json["rejected"]) == (EVENTS, 0)


def test_the_folders_of_hive_are_columns(put, niwaki, tmp_path):
    for at, country in enumerate(("de", "jp", "__HIVE_DEFAULT_PARTITION__")):
        put(f"clicks/country={country}/part-0.parquet", parquet(BASE[at::3]))
    found = niwaki("check", tmp_path / "clicks", "--json").json
    assert found["events"] == EVENTS
    assert "country" in found["schema"]["categorical"]
    (column,) = [one for one in found["columns"] if one["name"] == "country"]
    assert column["distinct"] == 2 and column["missing"] > 0


def test_names_are_given_where_a_file_has_none(put, niwaki):
    path = put("clicks.txt", csv_text(BASE, "\t", header=False))
    ran = niwaki("backtest", path, *ARGUMENTS)
    assert ran.code == 1 and "--names" in ran.err
    ran = niwaki("backtest", path, "--names", "ts,label,user,item,price", *ARGUMENTS)
    assert ran.json["events"] == EVENTS


def test_an_encoding_is_given_where_text_is_not_utf8(put, niwaki):
    table = changed(user=lambda row: row["user"].replace("u", "ü"))
    path = put("clicks.csv", csv_text(table).encode("latin-1"))
    ran = niwaki("backtest", path, *ARGUMENTS)
    assert ran.code == 1 and "--encoding" in ran.err
    ran = niwaki("backtest", path, "--encoding", "latin-1", *ARGUMENTS)
    assert (ran.json["events"], ran.json["rejected"]) == (EVENTS, 0)
    found = niwaki("check", path, "--encoding", "latin-1", "--json").json
    assert any("ü" in str(column["examples"]) for column in found["columns"])


def test_criteos_own_file_needs_no_names(put, niwaki):
    line = "\t".join(["{label}", *["{n}"] * 12, "", *["{c:08x}"] * 25, ""])
    lines = [
        line.format(label=row["label"], n=at % 50, c=row["item"]) for at, row in enumerate(BASE)
    ]
    found = niwaki("check", put("train.txt", "\n".join(lines) + "\n"), "--json").json
    assert found["schema"]["label"] == "label"
    assert len(found["columns"]) == 40 and found["events"] == EVENTS


def test_a_nested_column_is_a_path_and_an_envelope_is_opened(put, niwaki):
    nested = [
        {
            "ts": row["ts"],
            "label": row["label"],
            "user": {"id": row["user"], "vip": row["price"] > 50},
        }
        for row in BASE
    ]
    wrapped = [{"op": "c", "payload": {"before": None, "after": row}} for row in BASE]
    table = pa.Table.from_pylist(nested)
    for path in (put("a.jsonl", json_lines(nested)), put("a.parquet", parquet(table))):
        found = niwaki("check", path, "--json").json
        assert found["schema"]["categorical"] == ["user.id"], found
        assert found["schema"]["numeric"] == ["user.vip"]
        assert (found["events"], found["rejected"]) == (EVENTS, 0)
    found = niwaki("check", put("b.jsonl", json_lines(wrapped)), "--json").json
    assert found["envelope"] == "payload.after"
    ran = niwaki("backtest", put("b.jsonl", json_lines(wrapped)), *ARGUMENTS)
    assert (ran.json["events"], ran.json["rejected"]) == (EVENTS, 0)


def test_integers_that_are_ids_are_names_however_many_there_are(put, niwaki):
    many = [
        row | {"item": 10_000 + (row["item"] * 7919 + at) % 1500}
        for at, row in enumerate(rows(1600))
    ]
    for path in (put("a.csv", csv_text(many)), put("a.jsonl", json_lines(many))):
        found = niwaki("check", path, "--json").json
        assert found["schema"]["categorical"] == ["user", "item"]
        assert found["schema"]["numeric"] == ["price"]
