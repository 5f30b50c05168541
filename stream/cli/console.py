"""Output of the command line: results on stdout, progress and log lines on stderr."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from niwaki.stream.errors import ConfigError

if TYPE_CHECKING:
    from niwaki.model.published.checkpoint import Header
    from niwaki.stream.events.rejects import Tally

console, errors = Console(), Console(stderr=True)


def log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )


@contextmanager
def progress(task: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; yields what is called with the number of further
    events."""
    columns = (
        SpinnerColumn(),
        TextColumn(task),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bars:
        bar = bars.add_task(task, total=total)
        yield lambda events: bars.advance(bar, events)


def print_line(text: str) -> None:
    """Print one line of a result as it stands."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_rows(rows: list[tuple[str, str]], title: str) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    console.print(table)


def print_error(text: str) -> None:
    """Print the line of an error."""
    errors.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def print_notes(notes: Sequence[str]) -> None:
    """Print what was decided about a recording, on stderr."""
    for note in notes:
        errors.print(f"niwaki: {note}", markup=False, highlight=False, soft_wrap=True)


def print_account(tally: "Tally") -> None:
    """Print what was left out of a recording, on stderr."""
    print_notes(tally.lines())


@contextmanager
def accounted(tally: "Tally", *, as_json: bool) -> Iterator[None]:
    """Context of a command that reads events: whatever becomes of it, what was left out is told; in
    JSON also the error."""
    try:
        yield
    except ConfigError as error:
        if as_json:
            print(json.dumps({"error": str(error), "events": tally.events} | tally.as_dict()))
        raise
    print_account(tally)


def print_columns(name: str, events: int, report: Sequence[Mapping[str, Any]]) -> None:
    """Show what the columns of the first `events` events of a recording are, what they are used as
    and why, and what looks wrong."""
    print_line(f"{name}, the first {events:,} events")
    table = Table(show_lines=True)
    wrong = any(column["warnings"] for column in report)
    for header in ("column", "used as", "values", *(["looks wrong"] if wrong else [])):
        table.add_column(header, overflow="fold")
    for column in report:
        examples = ", ".join(map(str, column["examples"])) or "none"
        counts = f"{column['distinct']:,} distinct, {column['missing']:,} missing"
        if lists := column["lists"]:
            counts += f", {lists['empty']:,} empty, typically {lists['typical']:g} values,"
            counts += f" at most {lists['longest']:,}"
        table.add_row(
            Text(f"{column['name']}\n({column['kind']})"),
            Text(f"{column['role']}: {column['why']}"),
            Text(f"{counts}: {examples}"),
            *([Text("; ".join(column["warnings"]))] if wrong else []),
        )
    console.print(table)


def print_backtest(result: dict[str, Any], profile: bool = False) -> None:
    """The measures of each policy, and where its time went if a `profile` is wanted."""
    print_line(
        f"{result['events']:,} events. Normalized entropy (NE), lower is better; of the click rate"
        f" so far as prediction it is {result['constant_ne']:.4f}"
    )
    policies = result["policies"]
    table = Table()
    table.add_column("measure")
    for name in policies:
        table.add_column(name, justify="right")
    measures: dict[str, Callable[[dict[str, Any]], str]] = {
        "NE, predict then learn": lambda row: f"{row['ne']:.4f}"
    }
    for each in next(iter(policies.values()))["served_ne"]:
        measures[f"NE, served, every {int(each):,}"] = partial(_served, each)
    measures |= {
        "AUC": lambda row: f"{row['auc']:.4f}",
        "calibration": lambda row: f"{row['calibration']:.3f}",
        "sparsity": lambda row: f"{row['sparsity_ratio']:.1%}",
        "learning cost": lambda row: f"{row['train_cost_ratio']:.1%}",
        "events/s": lambda row: f"{row['events_per_s']:,.0f}",
        "drifts": lambda row: str(len(row["drifts"])),
        "prunings": lambda row: str(len(row["prunings"])),
    }
    for label, shown in measures.items():
        table.add_row(label, *map(shown, policies.values()))
    console.print(table)
    if profile:
        _print_profile(result)


def _served(every: str, row: dict[str, Any]) -> str:
    return f"{row['served_ne'][every]:.4f}"


def _print_profile(result: dict[str, Any]) -> None:
    """Shares of the stages of the walk, by policy."""
    policies = result["policies"]
    table = Table(title="share of each stage", title_justify="left")
    table.add_column("stage")
    for name in policies:
        table.add_column(name, justify="right")
    for stage in next(iter(policies.values()))["profile"]:
        table.add_row(stage, *(f"{row['profile'][stage]:.1%}" for row in policies.values()))
    console.print(table)


def print_checkpoint(name: str, header: "Header", size_bytes: int) -> None:
    """Show the checkpoint that is published as `name`."""
    evaluation = ", ".join(f"{measure} {value:.4g}" for measure, value in header.evaluation.items())
    layers = ", ".join(f"{layer} {ratio:.1%}" for layer, ratio in header.sparsity_by_layer.items())
    rows = [
        ("version", f"{header.version}, after version {header.parent}"),
        ("age", f"{time.time() - header.created_s:,.1f} s"),
        ("events learned", f"{header.events:,}"),
        ("source offsets", ", ".join(f"{p}: {offset:,}" for p, offset in header.offsets.items())),
        ("policy, phase", f"{header.policy}, {header.phase}"),
        (
            "multiply-adds",
            f"{header.multiply_adds:,} of {header.dense_multiply_adds:,},"
            f" sparsity {header.sparsity_ratio:.1%}",
        ),
        ("sparsity by layer", layers),
        ("bytes", f"{size_bytes:,}, dense {header.dense_bytes:,}"),
        ("evaluation, last window", evaluation),
    ]
    print_rows(rows, name)
