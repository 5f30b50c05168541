"""The formats of a schema registry: Avro and Protobuf, read as JSON.

In: a schema as a registry keeps it, with those that it refers to. Out: a function from a payload,
the bytes of a message after the schema's id, to JSON. Both steps raise `ValueError` or an error of
the library's for what they can't read; `registry` makes rejects of these.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from typing import Any

import msgspec

ToJson = Callable[[bytes], bytes]
Schemas = Sequence[tuple[str, str]]
"""Name and text of schemas, each after those that it refers to."""

# Dates and UUIDs become text, NaN becomes null, which is a missing number.
_encode = msgspec.json.Encoder(decimal_format="number").encode
_TIMES = ("timestamp-", "local-timestamp-", "time-")
_WRAPPER = "niwaki_wrapper"
_KNOWN_PROTOS = (
    "any descriptor source_context type api duration empty field_mask struct timestamp wrappers"
).split()  # each after those that it imports
_KNOWN_FOLDER = "google/protobuf/"
_OPTIONS_PROTO = "confluent/meta.proto"
"""A file that every registry knows; a schema that imports it gets options from it, no fields."""
_LONGEST_VARINT_BITS = 63


def avro_to_json(schema: str, others: Schemas) -> ToJson:
    """The reader of a writer's schema; `others`: those that it refers to.

    Times stay integers in the schema's unit; dates become ISO text, decimals numbers, enums names.
    Bytes become text where they are UTF-8, else base64.
    """
    from fastavro import parse_schema, schemaless_reader

    named: dict[str, Any] = {}
    for _, text in others:
        parse_schema(_avro_schema(text), named)
    # A record of one field has the bytes of that field; unlike a union it may refer to `others`.
    fields = [{"name": "value", "type": _avro_schema(schema)}]
    parsed = parse_schema({"type": "record", "name": _WRAPPER, "fields": fields}, named)
    _least_bytes(parsed, named, {})
    texts = (schema, *(text for _, text in others))
    has_bytes = any(kind in text for text in texts for kind in ("bytes", "fixed"))

    def to_json(payload: bytes) -> bytes:
        file = BytesIO(payload)
        value = schemaless_reader(file, parsed, None)["value"]  # type: ignore[index, call-overload]
        if file.tell() != len(payload):
            raise ValueError(f"{len(payload) - file.tell()} bytes are left over")
        return _encode(_with_text(value) if has_bytes else value)

    return to_json


def _avro_schema(text: str) -> Any:
    """The schema without the logical types of times, which would become objects, and of UUIDs that
    are text already."""

    def without(found: dict[str, Any]) -> dict[str, Any]:
        logical = found.get("logicalType")
        text = logical == "uuid" and found.get("type") == "string"
        if text or (isinstance(logical, str) and logical.startswith(_TIMES)):
            del found["logicalType"]
        return found

    return json.loads(text, object_hook=without)


def _least_bytes(schema: Any, named: Mapping[str, Any], known: dict[str, int | None]) -> int:
    """Size of the shortest payload of a parsed schema. Raises `ValueError` for schemas with which a
    short message could exhaust the stack or the memory. `known`: sizes by name, None for a type
    that is being measured."""
    if isinstance(schema, list):
        return 1 + min((_least_bytes(one, named, known) for one in schema), default=0)
    if isinstance(schema, str) and schema not in named:
        return 0 if schema == "null" else 1
    if isinstance(schema, str):
        size = known[schema] if schema in known else _least_bytes(named[schema], named, known)
        if size is None:
            raise ValueError(f"type {schema} contains itself")
        return size
    kind, name = schema["type"], schema.get("name")
    if kind in ("record", "error"):
        known[name] = None
        size = sum(_least_bytes(field["type"], named, known) for field in schema["fields"])
        known[name] = size
        return size
    if kind == "array":
        if not _least_bytes(schema["items"], named, known):
            raise ValueError("items of an array take no bytes")
        return 1
    if kind == "map":
        _least_bytes(schema["values"], named, known)
        return 1
    if kind == "fixed":
        return int(schema["size"])
    return 1 if kind == "enum" else _least_bytes(kind, named, known)


def _with_text(value: Any) -> Any:
    """`value` with text in the place of bytes that are UTF-8."""
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, dict):
        return {name: _with_text(one) for name, one in value.items()}
    if isinstance(value, list):
        return list(map(_with_text, value))
    return value


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


def protobuf_to_json(schema: str, others: Schemas) -> ToJson:
    """The reader of payloads that begin with a message index. `schema` and those of `others`, which
    it imports by name: a FileDescriptorProto in base64.

    Fields keep their names, 64-bit integers are numbers, enums names. Bytes are text where they are
    UTF-8, else base64. Timestamps, durations and their like are as Protobuf's own JSON has them.
    """
    from google.protobuf import descriptor_pb2
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    pool = DescriptorPool()
    for name in _KNOWN_PROTOS:
        known = import_module(f"google.protobuf.{name}_pb2")
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for name, text in (*others, ("schema.proto", schema)):
        if name.startswith(_KNOWN_FOLDER) or name == _OPTIONS_PROTO:
            continue
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
        file.name = name
        imports = [name for name in file.dependency if name != _OPTIONS_PROTO]
        del file.dependency[:], file.public_dependency[:], file.weak_dependency[:]
        file.dependency.extend(imports)
        # What is imported may be passed on: whoever names it imports it through this file.
        file.public_dependency.extend(range(len(imports)))
        pool.AddSerializedFile(file.SerializeToString())
    top = list(pool.FindFileByName("schema.proto").message_types_by_name.values())
    fields = _ProtobufFields(pool)
    kinds: dict[tuple[int, ...], Any] = {}

    def to_json(payload: bytes) -> bytes:
        index, at = _message_index(payload)
        if index not in kinds:
            kinds[index] = GetMessageClass(_message_at(top, index))
        return _encode(fields.values_of(kinds[index].FromString(payload[at:])))

    return to_json


class _ProtobufFields:
    """Values of messages by the names of their fields. A field without presence has its default
    where the wire has none; one with presence is left out."""

    def __init__(self, pool: Any):
        self._pool = pool
        self._fields: dict[str, list[tuple[str, bool, Callable[[Any], Any] | None]]] = {}

    def values_of(self, message: Any) -> dict[str, Any]:
        descriptor = message.DESCRIPTOR
        fields = self._fields.get(descriptor.full_name)
        if fields is None:
            fields = [
                (field.name, field.has_presence, self._reader(field)) for field in descriptor.fields
            ]
            self._fields[descriptor.full_name] = fields
        values = {}
        for name, may_lack, read in fields:
            if not may_lack or message.HasField(name):
                value = getattr(message, name)
                values[name] = value if read is None else read(value)
        return values

    def _reader(self, field: Any) -> Callable[[Any], Any] | None:
        """The function that makes JSON of a field's value; None where it is JSON already."""
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            read = self._reader_of_one(field.message_type.fields_by_name["value"]) or _same
            return lambda entries: {_key(key): read(entries[key]) for key in entries}
        one = self._reader_of_one(field)
        if field.is_repeated:
            return list if one is None else lambda values: list(map(one, values))
        return one

    def _reader_of_one(self, field: Any) -> Callable[[Any], Any] | None:
        if field.enum_type is not None:
            names = {one.number: one.name for one in field.enum_type.values}
            return lambda number: names.get(number, number)
        if field.type == field.TYPE_BYTES:
            return _text
        if field.message_type is None:
            return None
        if field.message_type.file.name == f"{_KNOWN_FOLDER}wrappers.proto":
            inner = self._reader_of_one(field.message_type.fields_by_name["value"]) or _same
            return lambda message: inner(message.value)
        return (
            self._known
            if field.message_type.file.name.startswith(_KNOWN_FOLDER)
            else (self.values_of)
        )

    def _known(self, message: Any) -> Any:
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=self._pool)


def _same(value: Any) -> Any:
    return value


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _message_index(payload: bytes) -> tuple[tuple[int, ...], int]:
    """The index at the beginning of a payload, and the place after it. Its length goes before it;
    length 0 stands for the first message of the file."""
    count, at = _varint(payload, 0)
    index = []
    for _ in range(count):
        number, at = _varint(payload, at)
        index.append(number)
    return tuple(index) or (0,), at


def _varint(payload: bytes, at: int) -> tuple[int, int]:
    """A number in zigzag encoding that must not be negative, and the place after it."""
    number = shift = 0
    while True:
        if at >= len(payload) or shift > _LONGEST_VARINT_BITS:
            raise ValueError("the message index is cut off")
        byte, at = payload[at], at + 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if number & 1:
        raise ValueError("the message index is negative")
    return number >> 1, at


def _message_at(top: Sequence[Any], index: tuple[int, ...]) -> Any:
    """The descriptor at an index: a number at each level, maps aside."""
    kinds, found = top, None
    for number in index:
        if number >= len(kinds):
            raise ValueError(f"the schema has no message at index {list(index)}")
        found = kinds[number]
        kinds = [one for one in found.nested_types if not one.GetOptions().map_entry]
    return found
