"""One TOML file, and environment variables over it, into one frozen struct.

In: the path of a file and the environment. Out: a `Config`, every field of the right type and
range, or a `ConfigError` of one line that names the key, the rule and the value. Each section's
struct, with its defaults, stands beside the class that it configures. An override is
NIWAKI_SECTION__KEY: NIWAKI_KAFKA__TOPIC=clicks, NIWAKI_MODEL__TOP= '[256, 128]'. Its value is read
as TOML would read it, or taken as it stands where the key wants text.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import Schema
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.errors import RuleError, nearest
from niwaki.serving.app import ServeConfig
from niwaki.serving.store import StoreConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.kafka.connection import KafkaConfig, is_topic
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.telemetry import TelemetryConfig
from niwaki.stream.training.trainer import TrainerConfig, TrainingConfig

PREFIX = "NIWAKI_"
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set, one field a section."""

    schema: Schema | None = None
    """The columns of an event. It may be left out only where no event is read."""
    events: EventsConfig = EventsConfig()
    kafka: KafkaConfig = KafkaConfig()
    model: LearnerConfig = LearnerConfig()
    pruning: PruningConfig = PruningConfig()
    drift: DriftConfig = DriftConfig()
    training: TrainingConfig = TrainingConfig()
    redis: StoreConfig = StoreConfig()
    serve: ServeConfig = ServeConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    def __post_init__(self) -> None:
        topic, others = self.drift.topic, (self.kafka.topic, self.kafka.dead_letters)
        if topic and (topic in others or not is_topic(topic)):
            raise ConfigError(
                "drift.topic",
                f"must be the name of another topic than {' and '.join(others)}",
                topic,
            )

    def trainer(self) -> TrainerConfig:
        """The part that a trainer is made of. Raises `ConfigError` without a schema."""
        return TrainerConfig(
            schema=self.events_schema(),
            model=self.model,
            pruning=self.pruning,
            drift=self.drift,
            training=self.training,
        )

    def events_schema(self) -> Schema:
        """The schema, for those who read events."""
        if self.schema is None:
            raise ConfigError(
                "schema", "is missing; `niwaki schema FILE` proposes it for a recorded stream"
            )
        return self.schema


def load_config(path: str | Path | None = None, env: Mapping[str, str] = os.environ) -> Config:
    """The file's values over the defaults, and those of `env` over the file's. Without a path: no
    file."""
    tree = _read(Path(path)) if path is not None else {}
    known = _struct_type()
    names = _override(tree, env, known)
    for unknown in _unknown(tree, known, ""):
        key = unknown.where + unknown.name
        variables = [variable for at, variable in names.items() if f"{at}.".startswith(f"{key}.")]
        raise ConfigError([*variables, key][0], f"is not a known key; {_hint(unknown, known)}")
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise _explained(error, tree, known, names) from error


def _struct_type() -> inspect.StructType:
    """The type of a `Config`, for looking up keys."""
    known = inspect.type_info(Config)
    assert isinstance(known, inspect.StructType)
    return known


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(str(path), f"can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), "is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(path), f"is not TOML: {error}") from error


def _override(
    tree: dict[str, Any], env: Mapping[str, str], known: inspect.StructType
) -> dict[str, str]:
    """Put the variables into the tree; returns the variable's name by key, for messages.

    A name without "__" is none of ours: Kubernetes sets such ones (NIWAKI_SERVER_PORT=tcp://...)
    for services.
    """
    names = {}
    for name in sorted(env):
        steps = name.removeprefix(PREFIX).lower().split("__")
        if not name.startswith(PREFIX) or len(steps) < 2:
            continue
        key = ".".join(steps)
        names[key] = name
        table = tree
        for step in steps[:-1]:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise ConfigError(name, f"{step} is not a table")
        table[steps[-1]] = _literal(env[name], _type_at(known, key))
    return names


def _literal(text: str, known: inspect.Type | None) -> Any:
    """`text` as TOML reads a value; but as it stands where it is no TOML, or where only a string
    will do."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    if set(read) != {"value"}:
        return text
    kinds = {type(one) for one in _alternatives(known)}
    return (
        text if inspect.StrType in kinds and not isinstance(read["value"], str) else read["value"]
    )


def _alternatives(known: inspect.Type | None) -> tuple[inspect.Type, ...]:
    return known.types if isinstance(known, inspect.UnionType) else (known,) if known else ()


def _type_at(known: inspect.Type, key: str) -> inspect.Type | None:
    """The type of a dotted key, with [0] for an element; None if there is no such key."""
    at: inspect.Type | None = known
    for step in re.findall(r"[^.\[\]]+|\[[^\]]*\]", key):
        options, at = _alternatives(at), None
        for option in options:
            if isinstance(option, inspect.StructType):
                at = next((field.type for field in option.fields if field.encode_name == step), at)
            elif isinstance(option, inspect.VarTupleType) and step.startswith("["):
                at = option.item_type
            elif isinstance(option, inspect.DictType):
                at = option.value_type
    return at


class _Unknown(NamedTuple):
    """A key that no struct has."""

    where: str
    """The path of its section, with a point at the end."""
    name: str
    struct: inspect.StructType
    """The struct that lacks it."""


def _unknown(value: Any, known: inspect.Type, where: str) -> Iterator[_Unknown]:
    """Every key of `value` that no struct has."""
    for option in _alternatives(known):
        if isinstance(option, inspect.StructType) and isinstance(value, dict):
            fields = {field.encode_name: field.type for field in option.fields}
            for name, inner in value.items():
                if name in fields:
                    yield from _unknown(inner, fields[name], f"{where}{name}.")
                else:
                    yield _Unknown(where, name, option)
        elif isinstance(option, inspect.VarTupleType) and isinstance(value, list):
            for index, inner in enumerate(value):
                yield from _unknown(inner, option.item_type, f"{where[:-1]}[{index}].")


def _hint(unknown: _Unknown, known: inspect.StructType) -> str:
    """A hint that names the nearest key of the section, or a section that has the key, or all keys
    of the section."""
    names = [field.encode_name for field in unknown.struct.fields]
    key = nearest(unknown.name, names, cutoff=0.6)
    near = [unknown.where + key] if key else []
    elsewhere = (f"{field.encode_name}.{unknown.name}" for field in known.fields)
    near += [place for place in elsewhere if _type_at(known, place)]
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"


def _explained(
    error: msgspec.ValidationError,
    tree: dict[str, Any],
    known: inspect.Type,
    names: Mapping[str, str],
) -> ConfigError:
    """The error of msgspec, or of a section's own rule, as a `ConfigError`."""
    text, _, at = str(error).partition(" - at `$")
    key = at.rstrip("`").lstrip(".")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", text):
        return ConfigError(f"{key}.{missing[1]}", "is required")
    if isinstance(error.__cause__, RuleError):
        return _placed(error.__cause__, key, names)
    field = names.get(key, key)
    if kind := re.fullmatch(r"Expected `([^`]+)`(.*), got .*", text):
        words = [_WORDS.get(word, word) for word in kind[1].split(" | ") if word != "null"]
        return ConfigError(field, f"must be {' or '.join(words)}{kind[2]}", *_value_at(tree, key))
    kinds = _alternatives(_type_at(known, key))
    options = [value for one in kinds for value in getattr(one, "values", ())]
    if options and text.startswith("Invalid enum value"):
        words = [
            _WORDS[name]
            for one in kinds
            if (name := type(one).__name__.removesuffix("Type").lower()) in _WORDS
        ]
        rule = " or ".join([*words, f"one of {', '.join(map(str, options))}"])
        return ConfigError(field, f"must be {rule}", *_value_at(tree, key))
    return ConfigError(field, text)


def _placed(error: RuleError, key: str, names: Mapping[str, str]) -> ConfigError:
    """A section's own rule, with the path of the section before the field. `names`: environment
    variables by key."""
    place = f"{key}.{error.field}" if key else error.field
    return ConfigError(names.get(place, place), error.rule, shown=error.value)


def _value_at(tree: Any, key: str) -> tuple[Any, ...]:
    """The value of a key in the tree, in a tuple; empty where it can't be told, or shouldn't be."""
    for step in re.findall(r"[^.\[\]]+|\[[^\]]*\]", key):
        try:
            tree = tree[int(step[1:-1])] if step.startswith("[") else tree[step]
        except (KeyError, ValueError, IndexError, TypeError):
            return ()
    return () if "password" in key else (tree,)
