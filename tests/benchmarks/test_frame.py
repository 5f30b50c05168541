"""The frame of the benchmarks: one JSON object as promised, no claim hidden, fair pairs; and one
benchmark."""

import importlib
import json
import math
import os
import re
import subprocess
import sys

import pytest

from benchmarks.frame import (
    ROOT,
    Findings,
    Rows,
    at_least,
    at_most,
    main,
    paired,
    spread,
    table,
)

KEYS = ["name", "date", "commit", "machine", "command", "setting", "rows", "claims"]


def findings(quick: bool) -> Findings:
    """A benchmark for tests."""
    rows = [
        {"what": "a", "seconds": 0.25, "events": 1_000},
        {"what": "b", "seconds": math.nan, "events": None},
    ]
    return Findings(rows, [at_least("kept", 2, 1), at_most("broken", 2, 1)], {"quick": quick})


def test_json_is_one_object_and_nothing_else(capsys):
    main("example", findings, ["--json", "--quick"])
    result = json.loads(capsys.readouterr().out)
    assert list(result) == KEYS
    assert result["command"] == "python -m benchmarks.example --quick --json"
    assert result["setting"] == {"quick": True}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert re.fullmatch(r"[0-9a-f]{7,}\+?|unknown", result["commit"])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("drift", "--traces"),
        ("growth", "--threads"),
        ("ingest", "--recording"),
        ("learner", "--streams"),
        ("quality", "--budgets"),
        ("scoring", "--only"),
        ("severity", "--seeds"),
        ("training", "--batches"),
    ],
)
def test_the_help_of_a_benchmark_names_its_own_options_and_keeps_its_lines(name, option, capsys):
    program = importlib.import_module(f"benchmarks.{name}.__main__")
    with pytest.raises(SystemExit) as end:
        program.run_main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"\n  {option} " in text and "\n  --quick " in text
    assert program.__doc__.strip() in text


def test_what_is_not_a_number_is_null_in_json(capsys):
    main("example", findings, ["--json"])
    assert json.loads(capsys.readouterr().out)["rows"][1] == {
        "what": "b",
        "seconds": None,
        "events": None,
    }


def test_a_claim_that_does_not_hold_is_printed(capsys):
    main("example", findings, [])
    text = capsys.readouterr().out
    assert "holds: kept (value 2, bound 1)" in text
    assert "DOES NOT HOLD: broken (value 2, bound 1)" in text


@pytest.mark.parametrize(
    ("value", "least", "most"), [(1.0, True, True), (0.5, False, True), (math.nan, False, False)]
)
def test_a_claim_holds_up_to_its_bound_and_never_for_what_is_not_a_number(value, least, most):
    assert at_least("claim", value, 1.0)["holds"] is least
    assert at_most("claim", value, 1.0)["holds"] is most


def test_a_table_is_markdown_with_numbers_to_the_right():
    assert table(
        [{"stage": "poll", "events_per_s": 123_456.0}, {"stage": "learn", "events_per_s": None}]
    ) == [
        "| stage | events per s |",
        "| ----- | -----------: |",
        "| poll  |      123,456 |",
        "| learn |              |",
    ]


def test_the_spread_is_median_smallest_and_largest():
    assert spread([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)


def test_a_pair_is_measured_in_turns_after_a_warm_up():
    turns = []
    pair = paired(lambda: turns.append("a"), lambda: turns.append("b"), rounds=3)
    assert "".join(turns) == "ba" + "ab" + "ba" + "ab"
    assert pair.ratio.low <= pair.ratio.median <= pair.ratio.high
    assert 0 < pair.first_s.low and 0 < pair.second_s.low


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_come_back_from_a_file_as_they_were(tmp_path, name):
    rows = [
        {"stream": "a", "seed": 0, "delays": [1, None], "by_layer": {"top.0": 0.5}, "none": None},
        {"stream": "a", "seed": 1, "third": 1 / 3, "whole": 1.0, "text": 'ä "quoted"'},
    ]
    kept = Rows(tmp_path / name, ("stream", "seed"))
    for row in [rows[0] | {"delays": []}, *rows]:
        kept.add(row)
    again = Rows(tmp_path / name, ("stream", "seed"))
    assert list(map(repr, again)) == list(map(repr, rows)) == list(map(repr, kept))
    assert again.get("a", 1) == rows[1] and again.get("b", 1) is None
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*/results/rows.*")), ids=str)
def test_kept_rows_are_read_and_each_says_at_which_commit_it_was_measured(path):
    rows = Rows(path, ("commit",))
    assert rows.all() and all(rows)
    assert path.stat().st_size < 300_000


@pytest.mark.slow
def test_ingest_runs_and_prints_what_the_frame_promises():
    env = {name: value for name, value in os.environ.items() if name != "KAFKA_HOME"}
    command = [sys.executable, "-m", "benchmarks.ingest", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result) == KEYS and result["setting"]["kafka"] == "embedded broker"
    assert len(result["rows"]) == 2 * 9 and len(result["claims"]) == 2 * 3
    for row in result["rows"]:
        assert 0 < row["low"] <= row["events_per_s"] <= row["high"]
    for row in result["rows"]:
        if (row["path"], row["wire"]) == ("poll", "json"):
            assert row["of_poll_json"] == 1


def test_pipeline_runs_and_prints_what_the_frame_promises():
    # The embedded broker starts faster than an Apache Kafka, and what is measured does not matter
    # here.
    env = {name: value for name, value in os.environ.items() if name != "KAFKA_HOME"}
    command = [sys.executable, "-m", "benchmarks.pipeline", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result) == KEYS and result["name"] == "pipeline"
    assert {row["stage"] for row in result["rows"]} >= {
        "encode JSON",
        "produce to Kafka",
        "poll",
        "decode",
        "encode",
        "watch",
    }
    for row in result["rows"]:
        assert 0 < row["low"] <= row["us_per_event"] <= row["high"]
        assert row["events_per_s"] == pytest.approx(1e6 / row["us_per_event"])
    for phase in ("dense", "sparse"):
        assert sum(row[f"share_{phase}"] or 0 for row in result["rows"]) == pytest.approx(1)
    for claim in result["claims"]:
        assert set(claim) == {"claim", "value", "bound", "holds"}
        assert isinstance(claim["holds"], bool) and math.isfinite(claim["value"])


def test_the_cost_of_snapshots_is_measured_in_each_way():
    command = [sys.executable, "-m", "benchmarks.pipeline.snapshots", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result) == KEYS and result["setting"]["snapshot_mb"] > 5
    assert {row["snapshot"] for row in result["rows"]} == {
        "none",
        "in the loop",
        "beside the loop",
    }
