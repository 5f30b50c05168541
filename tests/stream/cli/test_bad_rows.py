"""Rows that cannot be learned from: nothing is lost without a word, and nothing hangs."""

import math

import pytest

from tests.support.inputs import BASE, EVENTS, changed, csv_text, json_lines, parquet

ARGUMENTS = ("--policy", "dense", "--json")
TEXT = csv_text(BASE)


def lines_with(**bad: str) -> str:
    """The text with whole lines replaced, by number from 1 (the header)."""
    lines = TEXT.splitlines()
    for number, text in bad.items():
        lines[int(number.removeprefix("line")) - 1] = text
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("command", ["backtest", "check", "schema"])
def test_two_rows_with_a_wrong_number_of_fields_are_two_rejects_told_with_line_and_rule(
    command, put, niwaki
):
    path = put("clicks.csv", lines_with(line17="1,2,3", line40="1,2,3,4,5,6"))
    more = ARGUMENTS if command == "backtest" else ("--json",)
    ran = niwaki(command, path, *more)
    assert ran.code == 0, ran.err
    assert (ran.json["events"], ran.json["rejected"]) == (EVENTS - 2, 2)
    (reject,) = ran.json["rejects"]
    assert (reject["kind"], reject["place"]) == ("row", "clicks.csv, line 17")
    assert reject["rule"] == "must have 5 fields, has 3"
    ran = niwaki(command, path, *more[:-1])
    assert "2 of 400 events were left out" in ran.err and "line 17" in ran.err


def test_a_quote_that_is_not_closed_costs_its_own_line_and_no_other(put, niwaki):
    found = niwaki("backtest", put("clicks.csv", lines_with(line5='1,0,"u1,2,3')), *ARGUMENTS).json
    assert (found["events"], found["rejected"]) == (EVENTS - 1, 1)
    assert found["rejects"][0]["place"] == "clicks.csv, line 5"


def test_too_many_bad_rows_are_an_error_with_the_account_and_a_way_on(put, niwaki):
    table = changed(price=lambda row: math.inf if row["ts"] % 10 == 1 else row["price"])
    bad = sum(row["price"] == math.inf for row in table)
    path = put("clicks.csv", csv_text(table))
    ran = niwaki("backtest", path, *ARGUMENTS)
    assert ran.code == 1
    assert f"{bad} of 400 events were left out" in ran.err
    assert "price: must be finite in 32 bits, got inf" in ran.err
    assert "--max-rejected-ratio" in ran.err
    assert ran.json["rejected"] == bad and "error" in ran.json
    ran = niwaki("backtest", path, "--max-rejected-ratio", "0.5", *ARGUMENTS)
    assert (ran.code, ran.json["events"]) == (0, EVENTS - bad)


def test_odd_text_among_numbers_is_missing_and_told(put, niwaki):
    table = changed(price=lambda row: "cheap" if row["ts"] % 97 == 0 else row["price"])
    odd = sum(row["price"] == "cheap" for row in table)
    assert odd
    for path in (put("a.csv", csv_text(table)), put("a.jsonl", json_lines(table))):
        found = niwaki("backtest", path, *ARGUMENTS).json
        assert (found["events"], found["rejected"]) == (EVENTS, 0)
        assert found["read_as_missing"] == [{"field": "price", "events": odd, "value": "'cheap'"}]


@pytest.mark.parametrize(
    ("name", "label", "text"),
    [
        ("ratings", lambda row: row["item"] % 5 + 1, "--threshold"),
        ("hundred", lambda row: 100 * row["label"], "--threshold"),
        ("names", lambda row: "buy" if row["label"] else "view", "--positive"),
        ("missing", lambda row: row["label"] if row["ts"] % 3 == 0 else "", "--missing-label"),
        ("zeros", lambda row: 0, "all 400 labels are 0"),
        ("ones", lambda row: 1, "all 400 labels are 1"),
    ],
)
def test_labels_that_need_a_decision_are_an_error_that_names_the_values_and_the_way_on(
    name, label, text, put, niwaki
):
    table = changed(label=label)
    for path in (put("a.csv", csv_text(table)), put("a.jsonl", json_lines(table))):
        ran = niwaki("backtest", path, *ARGUMENTS)
        assert ran.code == 1
        assert text in ran.err, ran.err


@pytest.mark.parametrize(
    ("label", "options"),
    [
        (lambda row: 5 if row["label"] else 2, ("--threshold", "4")),
        (lambda row: "buy" if row["label"] else "view", ("--positive", "buy")),
        (lambda row: 1 if row["label"] else "", ("--missing-label", "negative")),
    ],
)
def test_the_way_on_leads_to_the_figures_of_plain_labels(label, options, put, niwaki):
    plain = niwaki("backtest", put("plain.csv", TEXT), *ARGUMENTS).json
    table = changed(label=label)
    for path in (put("a.csv", csv_text(table)), put("a.jsonl", json_lines(table))):
        found = niwaki("backtest", path, *options, *ARGUMENTS).json
        assert found["events"] == EVENTS
        assert found["policies"]["dense"]["ne"] == plain["policies"]["dense"]["ne"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("empty.jsonl", b"", "is empty"),
        ("header.csv", b"ts,label,user\n", "no"),
        ("two.csv", TEXT.replace("item", "user", 1).encode(), "two columns called 'user'"),
        ("image.csv", b"\x89PNG\r\n\x1a\n" + bytes(500), "image.csv"),
        ("nulls.parquet", parquet(changed(label=lambda row: None)), "label"),
        ("no_label.csv", TEXT.replace("label", "outlook", 1).encode(), "--label"),
    ],
)
def test_a_file_with_nothing_to_learn_from_is_one_line_that_says_so(
    name, content, text, put, niwaki
):
    for command in ("schema", "backtest"):
        ran = niwaki(command, put(name, content))
        assert ran.code == 1
        assert text in ran.err and "Traceback" not in ran.err
        assert len(ran.err.strip().splitlines()) <= 3
