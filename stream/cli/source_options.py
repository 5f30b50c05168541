"""Options of the commands that read recorded events: the form of the files, and the roles of their
columns.

In: what a user wrote on the command line, and the configuration. Out: a `Recording`, settings with
a schema, and notes on what was decided about it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import msgspec
import typer

from niwaki.pruning.errors import RuleError
from niwaki.stream.cli.console import progress
from niwaki.stream.cli.options import load, replaced
from niwaki.stream.errors import ConfigError

if TYPE_CHECKING:
    from niwaki.stream.recordings.proposal import Asked
    from niwaki.stream.recordings.recording import Recording

_OF_FILES = ("separator", "names", "encoding", "envelope", "max_rejected_ratio")
"""Options that are settings of the `[events]` section; the others are roles of columns."""
_FILES = "Form of the files"
_COLUMNS = "Roles of the columns, where no schema is given"


def _option(help: str, panel: str) -> Any:
    return typer.Option(help=help, rich_help_panel=panel)


@dataclass(frozen=True)
class SourceOptions:
    """The options, as they were given; None or empty where they were not."""

    separator: Annotated[
        str | None, _option("Text between fields, such as ';' or '::'; else it is seen.", _FILES)
    ] = None
    names: Annotated[
        str | None, _option("Names of the columns of a file without a header: a,b,c.", _FILES)
    ] = None
    encoding: Annotated[
        str | None, _option("Encoding of text, such as latin-1; else UTF-8.", _FILES)
    ] = None
    envelope: Annotated[
        str | None, _option("Path of the event in each row, such as payload.after.", _FILES)
    ] = None
    max_rejected_ratio: Annotated[
        float | None, _option("Share of events that may be left out, 0..1; else 0.01.", _FILES)
    ] = None
    label: Annotated[str | None, _option("Column with the outcome.", _COLUMNS)] = None
    threshold: Annotated[
        float | None, _option("A label of at least this is a click: for ratings, counts.", _COLUMNS)
    ] = None
    positive: Annotated[
        list[str] | None, _option("Values of the label that are a click: a,b.", _COLUMNS)
    ] = None
    missing_label: Annotated[
        str | None, _option("An event without a label: reject, or negative (no click).", _COLUMNS)
    ] = None
    timestamp: Annotated[str | None, _option("Column with the event time.", _COLUMNS)] = None
    categorical: Annotated[list[str] | None, _option("Columns that are names: a,b.", _COLUMNS)] = (
        None
    )
    numeric: Annotated[list[str] | None, _option("Columns that are numbers: a,b.", _COLUMNS)] = None
    lists: Annotated[
        list[str] | None, _option("Columns of lists, or of maps to weights: a,b.", _COLUMNS)
    ] = None
    list_separator: Annotated[
        str | None, _option("Text between the values of a list; else it is seen.", _COLUMNS)
    ] = None
    shares: Annotated[
        list[str] | None,
        _option("Columns with the values of another: history=item; history= for none.", _COLUMNS),
    ] = None
    weight: Annotated[str | None, _option("Column with the weight of an event.", _COLUMNS)] = None
    sampling_ratio: Annotated[
        str | None,
        _option("Column with the share of events without a click that were kept.", _COLUMNS),
    ] = None
    ignore: Annotated[list[str] | None, _option("Columns that are not read: a,b.", _COLUMNS)] = None

    def events(self, settings: Any) -> Any:
        """The `[events]` section of `settings`, with the options in it."""
        given = {name: getattr(self, name) for name in _OF_FILES}
        if self.names is not None:
            given["names"] = _listed([self.names])
        try:
            return replaced(settings.events, given)
        except RuleError as error:
            option = f"--{error.field.replace('_', '-')}"
            raise ConfigError(option, error.rule, shown=error.value) from error

    def asked(self, envelope: str) -> "Asked":
        """The roles that were asked for."""
        from niwaki.stream.recordings.proposal import Asked

        return Asked(
            label=self.label,
            threshold=self.threshold,
            positive=_listed(self.positive),
            missing_label=self.missing_label,
            timestamp=self.timestamp,
            categorical=_listed(self.categorical),
            numeric=_listed(self.numeric),
            lists=_listed(self.lists),
            list_separator=self.list_separator,
            shares=_pairs(self.shares),
            weight=self.weight,
            sampling_ratio=self.sampling_ratio,
            ignore=_listed(self.ignore),
            envelope=envelope or None,
        )

    def refuse_roles(self, config: Path | None) -> None:
        """Raise `ConfigError` if a role was asked for: the configuration has a schema."""
        for field in fields(self):
            if field.name not in _OF_FILES and getattr(self, field.name):
                option = f"--{field.name.replace('_', '-')}"
                raise ConfigError(option, f"can't change the [schema] of {config}; change it there")


class Opened(NamedTuple):
    """A recording, and the settings to read it with."""

    recording: "Recording"
    settings: Any
    """A `Config` with a schema."""
    notes: list[str]
    """Decisions about the schema, if it was proposed."""


def takes_source(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator for a command with a parameter `source`: the command gets the options of
    `SourceOptions`, and the parameter has them all."""
    hints = get_type_hints(SourceOptions, include_extras=True)
    signature = inspect.signature(command)
    kept = [one for one in signature.parameters.values() if one.name != "source"]
    added = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[field.name]
        )
        for field in fields(SourceOptions)
    ]

    @wraps(command)
    def run(*given: Any, **named: Any) -> None:
        options = SourceOptions(
            **{field.name: named.pop(field.name) for field in fields(SourceOptions)}
        )
        command(*given, **named, source=options)

    run.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*kept, *added)}
    return run


def open_source(files: Sequence[Path], config: Path | None, source: SourceOptions) -> Opened:
    """The recording, and the settings with its schema: that of the configuration, or the one that
    its first rows suggest."""
    with progress("looking at the first events"):
        return _opened(files, config, source)


def _opened(files: Sequence[Path], config: Path | None, source: SourceOptions) -> Opened:
    from niwaki.stream.recordings.recording import Recording

    settings = load(config)
    events = source.events(settings)
    recording = Recording(files, events)
    if settings.schema is not None:
        source.refuse_roles(config)
        return Opened(recording, msgspec.structs.replace(settings, events=events), [])
    proposal = recording.propose(source.asked(events.envelope))
    events = proposal.settings(events)
    settings = msgspec.structs.replace(settings, schema=proposal.schema, events=events)
    return Opened(recording.read_with(events), settings, list(proposal.notes))


def _pairs(given: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """The pairs of `--shares`, each COLUMN=COLUMN. The last "=" counts, since names may have it."""
    pairs = []
    for one in _listed(given):
        name, mark, owner = one.rpartition("=")
        if not mark or not name:
            raise ConfigError("--shares", "must be COLUMN=COLUMN, such as history=item", one)
        pairs.append((name, owner))
    return tuple(pairs)


def _listed(given: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(name for one in given or () for name in one.split(","))
