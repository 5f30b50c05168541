"""Settings as TOML that can be read back, and into a configuration file that a person wrote.

In: a schema and the settings of its events. Out: text, or a file in which these sections are new
and all else, comments too, is as it was.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomlkit
from tomlkit.exceptions import TOMLKitError

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig

_ALWAYS = ("label", "timestamp", "categorical", "numeric", "ignore")
_DERIVED = ("crosses", "time_features")
"""Settings of a schema that a person makes, and that name columns."""


def sections_toml(sections: Mapping[str, msgspec.Struct]) -> str:
    """TOML of whole sections, by name. Raises `ConfigError` for what TOML cannot hold."""
    plain = {name: _plain(msgspec.to_builtins(section)) for name, section in sections.items()}
    return _checked(plain)


def schema_toml(schema: Schema, events: EventsConfig) -> str:
    """The `[schema]` section, and of `[events]` what is not the default."""
    return _checked(_sections(schema, events))


def write_into(path: Path, schema: Schema, events: EventsConfig) -> list[str]:
    """Put the sections into a configuration file, which is made if it is not there. Returns notes
    on settings of the old section that no longer hold."""
    try:
        text = path.read_text("utf-8") if path.exists() else ""
        document = tomlkit.parse(text)
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
        raise ConfigError(str(path), f"can't be read as TOML ({error})") from error
    notes = []
    for name, settings in _sections(schema, events).items():
        section = document.setdefault(name, tomlkit.table())
        if name == "schema":
            notes += _drop(section, settings, schema)
        section.update(settings)
    _write(path, _verified(document.as_string(), schema))
    return notes


def _drop(section: Any, settings: Mapping[str, Any], schema: Schema) -> list[str]:
    """Remove the settings that the new section has not; those that a person made of columns stay
    where the columns are still there."""
    notes = []
    for name in [name for name in section if name not in settings]:
        if name in _DERIVED and _holds(section[name], schema):
            continue
        if name in _DERIVED:
            notes.append(f"schema.{name} is removed: it names columns that are no names now")
        del section[name]
    return notes


def _holds(value: Any, schema: Schema) -> bool:
    names = {name for one in value for name in ([one] if isinstance(one, str) else one)}
    columns = {name.removeprefix("age:") for name in names} - {"hour", "weekday"}
    return columns <= set(schema.categorical)


def _sections(schema: Schema, events: EventsConfig) -> dict[str, dict[str, Any]]:
    given = {"label": schema.label, "timestamp": ""} | _plain(msgspec.to_builtins(schema))
    default = msgspec.to_builtins(Schema(categorical=("_",)))
    kept = {n: v for n, v in given.items() if n in _ALWAYS or v != default[n]}
    kept["timestamp"] = schema.timestamp or ""
    ordered = {name: kept[name] for name in given if name in kept} | {
        "timestamp": kept["timestamp"]
    }
    sections = {"schema": ordered}
    settings, usual = msgspec.to_builtins(events), msgspec.to_builtins(EventsConfig())
    changed = {n: list_of(v) for n, v in settings.items() if list_of(v) != list_of(usual[n])}
    return sections | ({"events": changed} if changed else {})


def list_of(value: Any) -> Any:
    """A tuple as a list, as TOML reads it back."""
    return list(value) if isinstance(value, tuple) else value


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that are None, which TOML does not have."""
    return {name: list_of(value) for name, value in settings.items() if value is not None}


def _checked(sections: Mapping[str, Any]) -> str:
    """The text of sections, read back and compared."""
    try:
        text: str = tomlkit.dumps(sections)
        same = tomllib.loads(text) == msgspec.to_builtins(sections)
    except (ValueError, UnicodeError, TOMLKitError) as error:
        raise ConfigError("schema", f"has a name that TOML can't hold ({error})") from error
    if not same:
        raise ConfigError("schema", "has a name that TOML can't hold")
    return text


def _verified(text: str, schema: Schema) -> str:
    read = tomllib.loads(text)["schema"]
    for name in ("categorical", "numeric", "ignore"):
        if tuple(read[name]) != getattr(schema, name):
            raise ConfigError("schema", f"has a name in {name} that TOML can't hold")
    return text


def _write(path: Path, text: str) -> None:
    """Replace the file at once."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(text, "utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise ConfigError(str(path), f"can't be written ({error.strerror})") from error
