"""HTTP bodies <-> rows and probabilities: our own `/score`, and what it shares with the Open
Inference Protocol (`serving/bodies/inference.py`).

In: the bytes of a body. Out: the events to score, and the bytes of an answer. Whatever is wrong
with a body becomes a `RequestError` that names the field, the rule and the value; nothing that a
client can send raises anything else. It knows no HTTP server.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from niwaki.model.errors import FeatureError
from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.published.checkpoint import Header
from niwaki.pruning.errors import RuleError, shorten
from niwaki.serving.bodies.json_rows import scan_score

Row = Mapping[str, Any]
B = TypeVar("B", bound=msgspec.Struct)

FINITE = "must be finite"
_NOT_JSON = {"NaN": None, "Infinity": math.inf, "-Infinity": -math.inf}
_NAMED = re.compile(
    "Object (?P<what>contains unknown|missing required) field `(?P<field>.*)`", re.DOTALL
)
_NAMED_RULES = {"contains unknown": "a field that is known", "missing required": "there"}


class RequestError(RuleError):
    """A request that breaks a rule, and the HTTP status of its answer."""

    def __init__(self, status: int, field: str, rule: str, shown: str = ""):
        """`shown`: the offending value as the client is to see it; empty: none is shown."""
        self.status = status
        super().__init__(field[:200], rule[:200], shown=shown)


class ScoreBody(msgspec.Struct, forbid_unknown_fields=True):
    """Either events, or one context and the candidates that complete it to one event each."""

    events: list[dict[str, Any]] | UnsetType = UNSET
    context: dict[str, Any] | UnsetType = UNSET
    candidates: list[dict[str, Any]] | UnsetType = UNSET


class Answer(NamedTuple):
    """The body of an answer."""

    content: bytes
    json_bytes: int | None = None
    """Length of the JSON that comes before binary tensors; None: there are none."""
    type: str = "application/json"
    """Content type, where there are no binary tensors."""


class ScoreAnswer(msgspec.Struct):
    """One probability an event or candidate, in their order, all of them by this version."""

    version: int
    probabilities: list[float]


def hash_score(body: bytes, encoder: Encoder, max_events: int) -> HashedEvents:
    """The events in the body of `POST /score`, hashed for the model of `encoder`: at once where the
    body is plain, else by way of `read_score`."""
    hashed = scan_score(body, encoder, max_events)
    if hashed is None:
        hashed = encoder.encode(read_score(body, encoder.schema, max_events))
    return hashed


def read_score(body: bytes, schema: Schema, max_events: int) -> EventBatch:
    """The events in the body of `POST /score`."""
    asked = decode(body, ScoreBody)
    if asked.events is not UNSET:
        if asked.context is not UNSET or asked.candidates is not UNSET:
            raise RequestError(400, "events", "must stand alone, without context and candidates")
        check_count("events", len(asked.events), max_events)
        return to_batch(asked.events, schema, lambda i, column: f"events[{i}].{column}")
    if asked.candidates is UNSET:
        raise RequestError(400, "events", "must be there, or candidates must")
    check_count("candidates", len(asked.candidates), max_events)
    context = {} if asked.context is UNSET else asked.context
    if not set().union(*asked.candidates).isdisjoint(context):
        i, column = next(
            (i, column)
            for i, row in enumerate(asked.candidates)
            for column in row
            if column in context
        )
        value = shorten(asked.candidates[i][column])
        raise RequestError(
            400, f"candidates[{i}].{column}", "must not be in the context too", value
        )

    def place(i: int, column: str) -> str:
        return f"context.{column}" if column in context else f"candidates[{i}].{column}"

    return to_batch(asked.candidates, schema, place, context)


def score_answer(header: Header, probabilities_B: np.ndarray) -> Answer:
    """The body that answers `POST /score`."""
    return Answer(msgspec.json.encode(ScoreAnswer(header.version, probabilities_B.tolist())))


def refusal_answer(refusal: RequestError, *, protocol: bool) -> bytes:
    """The body that answers a request which breaks a rule. `protocol`: in the form of the Open
    Inference Protocol, where `error` is a text."""
    reason = {"field": refusal.field, "rule": refusal.rule, "value": refusal.value}
    return msgspec.json.encode({"error": str(refusal), **reason} if protocol else {"error": reason})


def decode(body: bytes, kind: type[B]) -> B:
    """The JSON of a body, in the form of `kind`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _broken(error) from error
    except UnicodeDecodeError as error:
        raise RequestError(400, "body", "must be UTF-8") from error
    except msgspec.DecodeError as error:
        found = _decode_leniently(body, kind)
        if found is None:
            raise RequestError(400, "body", f"must be JSON: {error}") from error
        return found
    except RecursionError as error:
        raise RequestError(400, "body", "is nested too deeply") from error


def _decode_leniently(body: bytes, kind: type[B]) -> B | None:
    """A body with `NaN`, which is a missing value, or `Infinity`, which Python writes though they
    are not JSON; None where that is not what is wrong with it."""
    try:
        found = json.loads(body.decode(), parse_constant=_NOT_JSON.__getitem__)
        if b"\\u" in body:  # half of a surrogate pair, perhaps, which no answer could hold
            json.dumps(found, ensure_ascii=False).encode()
        _check_finite(found)
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise _broken(error) from error
    except RequestError:
        raise
    except (ValueError, RecursionError):
        return None


def _check_finite(value: Any, path: str = "") -> None:
    """Raise the `RequestError` of the first number in `value` that is infinite."""
    if isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, float | dict | list):
                _check_finite(part, f"{path}.{name}")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            if isinstance(part, float | dict | list):
                _check_finite(part, f"{path}[{i}]")
    elif isinstance(value, float) and math.isinf(value):
        raise RequestError(400, path.lstrip(".") or "body", FINITE, shorten(value))


def _broken(error: msgspec.ValidationError) -> RequestError:
    """The refusal of a body of another form."""
    rule, _, path = str(error).partition(" - at `$")
    field, names = path.rstrip("`").lstrip("."), _NAMED.fullmatch(rule)
    if names:
        field = f"{field}.{names['field']}".lstrip(".")
        rule = f"must be {_NAMED_RULES[names['what']]}"
    return RequestError(400, field or "body", rule[:1].lower() + rule[1:])


def check_count(field: str, count: int, max_events: int) -> None:
    """Raise `RequestError` where a request holds too many events."""
    if count > max_events:
        raise RequestError(413, field, f"must be at most {max_events}", str(count))


def to_batch(
    rows: Sequence[Row],
    schema: Schema,
    place: Callable[[int, str], str],
    shared: Row = MappingProxyType({}),
) -> EventBatch:
    """Columns of `rows`, and those that they share. `place`: what a client calls a column of row
    i."""
    try:
        return rows_to_batch(rows, schema, shared=shared)
    except FeatureError as first:
        for i, row in enumerate(rows):  # once more, one by one, to say which row it is
            try:
                rows_to_batch([row], schema, shared=shared)
            except FeatureError as error:
                raise RequestError(400, place(i, error.field), error.rule, error.value) from error
        raise RequestError(400, place(0, first.field), first.rule, first.value) from first
    except RecursionError as error:  # in showing a value
        raise RequestError(400, "body", "is nested too deeply") from error
