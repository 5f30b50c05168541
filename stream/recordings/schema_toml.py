"""Settings as TOML that can be read back, and into a configuration file that a person wrote.

In: a schema and the settings of its events. Out: text, or a file in which these sections are new
and all else, comments too, is as it was.
"""

import os
import tempfile
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import RuleError, shorten
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig

_MADE = ("max_list_values", "weight", "sampling_ratio")
"""Settings of a schema that a person makes, and that no proposal changes unasked."""
_ALWAYS = ("label", "timestamp", "categorical", "numeric", "ignore")
_DERIVED = ("crosses", "time_features")
"""Settings of a schema that a person makes, and that name columns."""
_DEFAULT = Schema(categorical=("_",))
_DEFAULTS = msgspec.to_builtins(_DEFAULT)
_OF_FILES = ("envelope", "decimal", "separator", "names", "encoding")
"""Settings of `[events]` that are about the form of the events for which a schema is proposed."""


def sections_toml(sections: Mapping[str, msgspec.Struct]) -> str:
    """TOML of whole sections, by name. Raises `ConfigError` for what TOML cannot hold."""
    return _checked({name: _plain(section) for name, section in sections.items()})


def schema_toml(schema: Schema, events: EventsConfig) -> str:
    """The `[schema]` section, and of `[events]` what is not the default."""
    sections = {"schema": _schema_section(schema)}
    if changed := _changed(events):
        sections["events"] = changed
    return _checked(sections)


def write_into(path: Path, schema: Schema, events: EventsConfig) -> list[str]:
    """Put the sections into a configuration file, which is made if it is not there. Returns notes
    on settings of the old section that no longer hold."""
    try:
        text = path.read_bytes().decode("utf-8") if path.exists() else ""
        document = tomlkit.parse(text.removeprefix("\ufeff"))
        expected = document.unwrap()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(str(path), f"can't be read as TOML ({error})") from error
    kept, notes = _derived(expected.get("schema"), schema)
    given = _schema_section(schema) | kept
    old = _section(path, expected, "schema")
    wanted = {name: value for name, value in given.items() if value != [] or name in old}
    _put(document, expected, "schema", wanted, set(old) - set(wanted))
    changed, old = _changed(events), _section(path, expected, "events")
    if changed or old:
        # A setting of the file that is the default now must not stay as it was.
        gone = {name for name in _OF_FILES if name in old and name not in changed}
        _put(document, expected, "events", changed, gone)
    written = document.as_string()
    if "\r\n" in text and "\n" not in text.replace("\r\n", ""):
        written = written.replace("\r\n", "\n").replace("\n", "\r\n")
    _replace(path, _verified(written, expected))
    return notes


def _section(path: Path, expected: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a section; empty where it is not there."""
    section = expected.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(str(path), f"{name} must be a section: [{name}]")
    return section


def _put(
    document: tomlkit.TOMLDocument,
    expected: dict[str, Any],
    name: str,
    settings: Mapping[str, Any],
    gone: Collection[str],
) -> None:
    """Give a section of the document `settings`, and take those that are `gone` away; in
    `expected`, too."""
    if name not in document:
        text = document.as_string()
        for _ in range(2 - min(len(text) - len(text.rstrip("\r\n")), 2) if text else 0):
            document.add(tomlkit.nl())
        document[name] = tomlkit.table()
    section: Any = document[name]
    plain = expected.setdefault(name, {})
    for one in gone:
        del section[one], plain[one]
    with _before_last_comments(section):
        for one, value in settings.items():
            if plain.get(one) != value:
                if isinstance(plain.get(one), dict):  # perhaps a section that lies elsewhere
                    del section[one]
                section[one] = _inline(value)
            plain[one] = value


@contextmanager
def _before_last_comments(section: Any) -> Iterator[None]:
    """Context in which what is added to a section comes directly after its last setting: comments
    that follow it may be about the next section."""
    body = section.value.body if isinstance(section, tomlkit.items.Table) else []
    settings = [at for at, (key, _) in enumerate(body) if key is not None]
    first = settings[-1] + 1 if settings else 0
    comments = body[first:]
    del body[first:]
    yield
    body.extend(comments)


def _derived(section: Any, schema: Schema) -> tuple[dict[str, Any], list[str]]:
    """Of the settings that a person made of columns, those that the new schema takes, and notes on
    the others."""
    kept: dict[str, Any] = {}
    notes = []
    for name in _DERIVED if isinstance(section, dict) else ():
        wanted = section.get(name)
        taken = []
        for one in wanted if isinstance(wanted, list) else ():
            try:
                msgspec.convert(msgspec.to_builtins(schema) | {name: [one]}, Schema)
            except (msgspec.ValidationError, RuleError) as error:
                reason = str(error).partition(" - at ")[0]
                notes.append(f"schema.{name}: {shorten(one)} is removed ({reason})")
            else:
                taken.append(one)
        if taken:
            kept[name] = taken
    for name in _MADE if isinstance(section, dict) else ():
        if name not in section or getattr(schema, name) != getattr(_DEFAULT, name):
            continue
        try:
            msgspec.convert(msgspec.to_builtins(schema) | {name: section[name]}, Schema)
        except (msgspec.ValidationError, RuleError) as error:
            reason = str(error).partition(" - at ")[0]
            notes.append(f"schema.{name}: {shorten(section[name])} is removed ({reason})")
        else:
            kept[name] = section[name]
    return kept, notes


def _schema_section(schema: Schema) -> dict[str, Any]:
    """The settings of a schema that are not the default, and the roles of columns."""
    given = {**_plain(schema), "timestamp": schema.timestamp or ""}
    names = [name for name in _DEFAULTS if name in given]
    usual = {name: _as_list(value) for name, value in _DEFAULTS.items()}
    return {name: given[name] for name in names if name in _ALWAYS or given[name] != usual[name]}


def _changed(events: EventsConfig) -> dict[str, Any]:
    usual = _plain(EventsConfig())
    return {name: value for name, value in _plain(events).items() if value != usual.get(name)}


def _plain(section: msgspec.Struct) -> dict[str, Any]:
    """The settings of a section without those that are None, which TOML does not have."""
    settings: dict[str, Any] = msgspec.to_builtins(section)
    return {name: _as_list(value) for name, value in settings.items() if value is not None}


def _as_list(value: Any) -> Any:
    """Tuples as lists, as TOML reads them back."""
    if isinstance(value, list | tuple):
        return [_as_list(one) for one in value]
    if isinstance(value, dict):
        return {name: _as_list(one) for name, one in value.items() if one is not None}
    return value


def _inline(value: Any) -> Any:
    """A table of a section as one on its own line."""
    if not isinstance(value, dict):
        return value
    table = tomlkit.inline_table()
    table.update(value)
    return table


def _checked(sections: Mapping[str, Any]) -> str:
    """The text of sections, read back and compared."""
    try:
        inline = {
            name: {one: _inline(value) for one, value in section.items()}
            for name, section in sections.items()
        }
        text: str = tomlkit.dumps(inline)
    except (ValueError, TOMLKitError) as error:
        raise ConfigError("schema", f"has a name that TOML can't hold ({error})") from error
    return _verified(text, sections)


def _verified(text: str, expected: Mapping[str, Any]) -> str:
    """The text, if a file of it says what is expected. Raises `ConfigError` if not."""
    try:
        same = tomllib.loads(text.encode().decode()) == expected
    except (tomllib.TOMLDecodeError, UnicodeEncodeError) as error:
        # Half of a surrogate pair, for one, is in no file.
        raise ConfigError("schema", f"has a name that TOML can't hold ({error})") from error
    if not same:
        raise ConfigError("schema", "has a name that TOML can't hold")
    return text


def _replace(path: Path, text: str) -> None:
    """Replace the file at once, as readable for others as it was, wherever a link leads."""
    path = path.resolve()
    try:
        mode = path.stat().st_mode & 0o7777 if path.exists() else None
        # Only for its owner at first: a configuration may hold a password.
        number, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
        unfinished = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(text.encode())
            unfinished.chmod(0o644 if mode is None else mode)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(str(path), f"can't be written ({error.strerror})") from error
