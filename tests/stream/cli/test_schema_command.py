"""From a file to a configuration and a topic, each step as the program's own words propose it."""

import tomllib

import pytest

from niwaki.stream.config import load_config
from niwaki.stream.kafka.source import EventSource
from tests.support.inputs import BASE, EVENTS, changed, csv_text, json_lines

WRITTEN = """# Our settings.
[schema]
label = "old"   # to be replaced
categorical = ["user", "gone"]
crosses = [["user", "item"]]

[kafka]
topic = "clicks"  # kept
"""


def test_the_schema_goes_into_a_configuration_that_a_person_wrote_and_is_read_back(put, niwaki):
    path = put("clicks.csv", csv_text(changed(label=lambda row: 2 * row["label"] - 1)))
    config = put("niwaki.toml", WRITTEN)
    ran = niwaki("schema", path, "--into", config)
    assert ran.code == 0, ran.err
    text = config.read_text()
    assert "# Our settings." in text and "# kept" in text
    read = load_config(config, {})
    assert read.schema.label == "label" and read.schema.label_threshold == 1
    assert read.schema.categorical == ("user", "item")
    assert read.schema.crosses == (("user", "item"),)
    assert read.kafka.topic == "clicks"
    plain = niwaki("backtest", path, "--policy", "dense", "--json").json
    with_config = niwaki("backtest", path, "-c", config, "--policy", "dense", "--json").json
    assert with_config["events"] == plain["events"] == EVENTS


def test_what_is_printed_is_the_section_and_nothing_else_on_stdout(put, niwaki):
    ran = niwaki("schema", put("clicks.csv", csv_text(BASE)))
    read = tomllib.loads(ran.out)
    assert list(read) == ["schema"]
    assert read["schema"]["categorical"] == ["user", "item"]
    assert "milliseconds" in ran.err


@pytest.mark.parametrize("form", [csv_text, json_lines])
def test_options_decide_over_names_and_values(form, put, niwaki):
    table = changed(bought=lambda row: row["item"] % 2, when=lambda row: row["ts"] // 1000)
    path = put("clicks.txt", form(table))
    options = ["--label", "bought", "--timestamp", "when", "--numeric", "item", "--ignore", "price"]
    found = niwaki("check", path, *options, "--json").json["schema"]
    assert (found["label"], found["timestamp"], found["timestamp_format"]) == (
        "bought",
        "when",
        "s",
    )
    assert found["numeric"] == ["item"]
    assert "price" in found["ignore"] and "item" not in found["categorical"]


def test_options_decide_over_lists_their_separator_and_what_they_share(put, niwaki):
    table = changed(
        seen=lambda row: f"{row['item']}/{row['item'] + 1}",
        heavy=lambda row: row["price"],
        kept=lambda row: 0.5,
    )
    path = put("clicks.csv", csv_text(table))
    options = "--lists seen --list-separator / --shares seen=item".split()
    options += "--weight heavy --sampling-ratio kept".split()
    ran = niwaki("schema", path, *options)
    read = tomllib.loads(ran.out)["schema"]
    assert (read["lists"], read["list_separator"], read["shares"]) == (
        ["seen"],
        "/",
        {"seen": "item"},
    )
    assert (read["weight"], read["sampling_ratio"]) == ("heavy", "kept")
    assert 'shares = {seen = "item"}' in ran.out
    looked = niwaki("check", path, *options)
    assert "(lists of integers)" in looked.out and "--lists asks for it" in looked.out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--label", "lable"], "--label: must be a column of the events; the nearest is 'label'"),
        (["--numeric", "usr"], "the nearest is 'user'"),
        (["--threshold", "x"], "--threshold"),
        (["--max-rejected-ratio", "7"], "--max-rejected-ratio: must be in 0..1"),
        (["--encoding", "latin-11"], "the nearest is"),
        (["--names", "a,a,b,c,d"], "--names: must be different names"),
        (["--timestamp", "price"], "--timestamp"),
        (["--lists", "usr"], "--lists: must be a column of the events; the nearest is 'user'"),
        (["--shares", "user"], "--shares: must be COLUMN=COLUMN, such as history=item, got 'user'"),
        (["--shares", "user=itm"], "--shares: must be a column of the events; the nearest is 'it"),
        (["--weight", "user"], "--weight: must be a column of numbers >= 0 in every event"),
    ],
)
def test_an_option_that_cannot_be_is_named_with_the_way_on(options, text, put, niwaki):
    ran = niwaki("check", put("clicks.csv", csv_text(BASE)), *options)
    assert ran.code != 0
    assert text in ran.err.replace("\n", " ").replace("│", " "), ran.err


def test_roles_can_not_be_asked_for_beside_a_schema(put, niwaki):
    path, config = (
        put("clicks.csv", csv_text(BASE)),
        put("niwaki.toml", "[schema]\nnumeric = ['price']"),
    )
    ran = niwaki("backtest", path, "-c", config, "--label", "user")
    assert ran.code == 1 and "change it there" in ran.err


@pytest.mark.parametrize("form", [csv_text, json_lines])
def test_a_file_of_ones_own_becomes_a_topic_that_check_and_record_read(
    form, put, niwaki, kafka_config, tmp_path
):
    table = changed(label=lambda row: 5 if row["label"] else 2, ts=lambda row: row["ts"] // 1000)
    path, config = put("ratings.txt", form(table)), tmp_path / "niwaki.toml"
    kafka = kafka_config()
    assert niwaki("schema", path, "--threshold", "4", "--into", config).code == 0
    to = ("--topic", kafka.topic, "--bootstrap", kafka.bootstrap_servers)
    sent = niwaki("replay", path, "-c", config, *to, "--json")
    assert (sent.code, sent.json["events"]) == (0, EVENTS), sent.err
    with EventSource(kafka) as source:
        first = source.poll(10)[0].value
    assert b'"label":5' in first.replace(b" ", b"") or b'"label":2' in first.replace(b" ", b"")
    looked = niwaki("check", *to, "--threshold", "4", "--json").json
    assert (looked["events"], looked["rejected"]) == (EVENTS, 0)
    assert looked["schema"]["timestamp_format"] == "s"
    kept = tmp_path / "kept.parquet"
    assert niwaki("record", *to, "--out", kept, "-c", config).code == 0
    one = niwaki("backtest", path, "-c", config, "--policy", "dense", "--json").json
    two = niwaki("backtest", kept, "-c", config, "--policy", "dense", "--json").json
    assert two["events"] == EVENTS
    assert two["policies"]["dense"]["ne"] == pytest.approx(one["policies"]["dense"]["ne"], abs=1e-6)
