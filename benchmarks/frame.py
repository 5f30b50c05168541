"""The frame that every benchmark stands in: what it prints, and how to measure on a machine that
others use, too.

In: a function that measures, and answers with rows and claims. Out: one JSON object, or the same as
tables to read. A claim that does not hold is printed as such; it is a finding and no failure, so
the exit code is 0.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent


class Spread(NamedTuple):
    """Summary of several measurements of one quantity."""

    median: float
    low: float
    """The smallest."""
    high: float
    """The largest."""


class Rows:
    """Measured rows, identified by some of their fields and kept in a file where one is given.

    A file named `*.parquet` holds compressed Parquet: one column per identifying field, and the
    whole row as JSON text in the column `row`, so that nothing is lost on the way. It is written
    anew with each row. Every other file holds JSON Lines and grows at its end.
    """

    def __init__(self, path: Path | None, fields: Sequence[str]):
        """`path`: an existing file is continued. `fields`: those that identify a row."""
        self._path, self._fields = path, tuple(fields)
        lines = _lines(path) if path and path.exists() else []
        self._rows = {self._key(row): row for row in map(msgspec.json.decode, lines)}

    def get(self, *key: Any) -> dict[str, Any] | None:
        """The row with these values of the identifying fields, or None if it is not measured."""
        return self._rows.get(key)

    def all(self) -> list[dict[str, Any]]:
        """Every row, in the order in which they were measured."""
        return list(self._rows.values())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows.values())

    def add(self, row: dict[str, Any]) -> None:
        """Keep a new row, or a new measurement of a known one."""
        self._rows[self._key(row)] = row
        if self._path is None:
            return
        if self._path.suffix == ".parquet":
            self._write_parquet(self._path)
            return
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")

    def _key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[field] for field in self._fields)

    def _write_parquet(self, path: Path) -> None:
        columns = {name: [row[name] for row in self] for name in self._fields}
        columns["row"] = [msgspec.json.encode(row).decode() for row in self]
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(pa.table(columns), unfinished, compression="zstd", compression_level=19)
        unfinished.replace(path)


def _lines(path: Path) -> list[str]:
    """The rows in a file of `Rows`, each as JSON text."""
    if path.suffix == ".parquet":
        return pq.read_table(path, columns=["row"])["row"].to_pylist()
    return path.read_text("utf-8").splitlines()


class Pair(NamedTuple):
    """Two ways to do one thing, measured in turns."""

    ratio: Spread
    """Seconds of the first over seconds of the second, within a round: above 1, the second is
    faster."""
    first_s: Spread
    second_s: Spread


class Findings(NamedTuple):
    """Result of a benchmark."""

    rows: list[dict[str, Any]]
    """All with the same keys."""
    claims: list[dict[str, Any]]
    """As `at_least` and `at_most` make them."""
    setting: dict[str, Any]
    """Conditions of the rows: sizes, rounds, servers."""
    tables: str = ""
    """Markdown for a person, in the place of one table of all rows."""


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest."""
    return Spread(median(values), min(values), max(values))


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> Pair:
    """Time both in each of `rounds` rounds, after one round to warm up, the first one first in
    every other round.

    The machine's other work then falls on both alike, and the median ratio says more than two
    separate medians.
    """
    first_s, second_s = [], []
    for place in range(rounds + 1):
        turns = [(first, first_s), (second, second_s)]
        for run, taken_s in turns if place % 2 else reversed(turns):
            started_s = time.perf_counter()
            run()
            taken_s.append(time.perf_counter() - started_s)
    first_s, second_s = first_s[1:], second_s[1:]
    ratio = spread([a / b for a, b in zip(first_s, second_s, strict=True)])
    return Pair(ratio, spread(first_s), spread(second_s))


def at_least(claim: str, value: float, bound: float) -> dict[str, Any]:
    """The claim that `value` is at least `bound`."""
    return {"claim": claim, "value": value, "bound": bound, "holds": value >= bound}


def at_most(claim: str, value: float, bound: float) -> dict[str, Any]:
    """The claim that `value` is at most `bound`."""
    return {"claim": claim, "value": value, "bound": bound, "holds": value <= bound}


def main(
    name: str,
    measure: Callable[[bool], Findings],
    arguments: Sequence[str] | None = None,
    own: argparse.ArgumentParser | None = None,
) -> None:
    """The program `python -m benchmarks.NAME`. `measure(quick)` does the work. `own`: a parser
    without help, which has read the options of this benchmark alone; they are in the help, too."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=sys.modules[measure.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[own] if own else [],
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer events and rounds: shows that it runs, not how fast",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )
    given = parser.parse_args(arguments)
    flags = " ".join(f"--{flag}" for flag in ("quick", "json") if getattr(given, flag))
    head = {
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "command": f"python -m benchmarks.{name} {flags}".rstrip(),
    }
    found = measure(given.quick)
    result = head | {"setting": found.setting, "rows": found.rows, "claims": found.claims}
    print(json.dumps(_plain(result)) if given.json else text(result, found.tables))


def seeds_of(text: str) -> list[int]:
    """The seeds in A-B, both counted, or in A alone: an option's type."""
    first, *rest = text.split("-", 1)
    try:
        seeds = list(range(int(first), int(rest[0] if rest else first) + 1))
    except ValueError:
        seeds = []
    if not seeds:
        raise argparse.ArgumentTypeError(f"seeds must read A-B with A <= B, got {text!r}")
    return seeds


def commit() -> str:
    """The commit that is checked out, with a plus sign if files differ from it; "unknown" without
    git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """The machine in general terms, and how busy it was when we came."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    software = f"Python {platform.python_version()}, torch {version('torch')}"
    hardware = f"{cores} cores, {platform.machine()}, {memory_gb:.0f} GB"
    return f"{hardware}, load {os.getloadavg()[0]:.1f}, {software}"


def text(result: Mapping[str, Any], tables: str = "") -> str:
    """A result for a person: Markdown that can stand in a README as it is. `tables`: in the place
    of all rows."""
    setting = ", ".join(f"{name} {_cell(value)}" for name, value in result["setting"].items())
    lines = [
        f"{result['name']}, {result['date']}, commit {result['commit']}",
        result["machine"],
        result["command"],
        setting,
    ]
    lines += ["", *([tables] if tables else table(result["rows"]))]
    for claim in result["claims"]:
        verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
        figures = f"(value {_cell(claim['value'])}, bound {_cell(claim['bound'])})"
        lines += ["", f"{verdict}: {claim['claim']} {figures}"]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows with the same keys as the lines of a Markdown table, numbers to the right."""
    names = list(rows[0])
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    cells = [
        [name.replace("_", " ") for name in names],
        *([_cell(row[name]) for name in names] for row in rows),
    ]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]

    def line(words: Sequence[str]) -> str:
        parts = (
            w.rjust(n) if right else w.ljust(n)
            for w, n, right in zip(words, widths, numeric, strict=True)
        )
        return f"| {' | '.join(parts)} |"

    rule = [
        "-" * (n - 1) + ":" if right else "-" * n for n, right in zip(widths, numeric, strict=True)
    ]
    return [line(cells[0]), line(rule), *map(line, cells[1:])]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> Any:
    """`value` with null in the place of what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
