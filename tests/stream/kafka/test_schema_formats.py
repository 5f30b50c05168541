"""Payloads of Avro and Protobuf, written by their own libraries and read as JSON."""

import base64
import json
from datetime import date
from decimal import Decimal
from io import BytesIO
from uuid import UUID

import pytest
from fastavro import parse_schema, schemaless_writer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from niwaki.stream.kafka.schema_formats import avro_to_json, protobuf_to_json

Field = descriptor_pb2.FieldDescriptorProto


def avro(schema: object, value: object) -> bytes:
    """The payload of a value."""
    out = BytesIO()
    schemaless_writer(out, parse_schema(schema), value)
    return out.getvalue()


def read_avro(schema: object, value: object) -> object:
    """`value` as it comes out as JSON."""
    to_json = avro_to_json(json.dumps(schema), [])
    return json.loads(to_json(avro(schema, value)))


def record(*fields: tuple[str, object], name: str = "Click") -> dict[str, object]:
    return {
        "type": "record",
        "name": name,
        "namespace": "shop",
        "fields": [{"name": field, "type": kind} for field, kind in fields],
    }


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ("long", 2**53 + 1, 2**53 + 1),
        ("boolean", True, True),
        ("double", 9.5, 9.5),
        ("double", float("nan"), None),
        ("string", "Zoë", "Zoë"),
        (["null", "string"], None, None),
        (["null", "string"], "ann", "ann"),
        (["null", "long", "string"], 7, 7),
        ("bytes", "Zoë".encode(), "Zoë"),
        ("bytes", b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
        ({"type": "fixed", "name": "F", "size": 3}, b"abc", "abc"),
        ({"type": "enum", "name": "E", "symbols": ["APP", "WEB"]}, "WEB", "WEB"),
        ({"type": "array", "items": "bytes"}, [b"a", b"b"], ["a", "b"]),
        ({"type": "map", "values": "int"}, {"a": 1}, {"a": 1}),
        (record(("x", "int"), name="Inner"), {"x": 3}, {"x": 3}),
        ({"type": "int", "logicalType": "date"}, date(2024, 2, 29), "2024-02-29"),
        ({"type": "int", "logicalType": "time-millis"}, 61_000, 61_000),
        (
            {"type": "long", "logicalType": "timestamp-millis"},
            1_700_000_000_123,
            1_700_000_000_123,
        ),
        (
            {"type": "long", "logicalType": "timestamp-micros"},
            1_700_000_000_123_456,
            1_700_000_000_123_456,
        ),
        (
            ["null", {"type": "long", "logicalType": "local-timestamp-millis"}],
            1_700_000_000_123,
            1_700_000_000_123,
        ),
        (
            {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
            Decimal("19.90"),
            19.9,
        ),
        (
            {"type": "string", "logicalType": "uuid"},
            UUID(int=5),
            "00000000-0000-0000-0000-000000000005",
        ),
    ],
)
def test_a_value_of_avro_becomes_the_json_that_a_person_would_write(kind, value, read):
    assert read_avro(record(("value", kind)), {"value": value}) == {"value": read}


def test_a_schema_of_avro_may_name_those_that_it_refers_to_even_as_a_union_of_them():
    inner, outer = record(("x", "int"), name="Inner"), record(("inner", "shop.Inner"), name="Outer")
    whole = {**outer, "fields": [{"name": "inner", "type": inner}]}
    others = [("shop.Inner", json.dumps(inner)), ("shop.Outer", json.dumps(outer))]
    payload = avro(whole, {"inner": {"x": 3}})
    assert json.loads(avro_to_json(json.dumps("shop.Outer"), others)(payload)) == {
        "inner": {"x": 3}
    }
    union = avro_to_json(json.dumps(["shop.Inner", "shop.Outer"]), others)
    assert json.loads(union(b"\x02" + payload)) == {"inner": {"x": 3}}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        # With the first two, a short message would crash the process or take all of its memory.
        (record(("next", ["null", "shop.Click"])), "type shop.Click contains itself"),
        (record(("x", {"type": "array", "items": "null"})), "items of an array take no bytes"),
        (
            record(("x", {"type": "array", "items": record(("n", "null"), name="Empty")})),
            "items of an array take no bytes",
        ),
    ],
)
def test_a_schema_that_lets_a_short_message_exhaust_the_process_is_refused(schema, why):
    with pytest.raises(ValueError, match=why):
        avro_to_json(json.dumps(schema), [])


def test_bytes_that_are_left_over_or_missing_do_not_fit_a_schema_of_avro():
    schema = record(("user", "string"))
    to_json, payload = avro_to_json(json.dumps(schema), []), avro(schema, {"user": "ann"})
    with pytest.raises(ValueError, match="1 bytes are left over"):
        to_json(payload + b"\0")
    with pytest.raises(EOFError):
        to_json(payload[:-1])


def field(
    name: str, number: int, kind: int, type_name: str = "", *, repeated: bool = False
) -> Field:
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    return Field(name=name, number=number, type=kind, type_name=type_name or None, label=label)


def proto(name: str, *messages: descriptor_pb2.DescriptorProto, imports: tuple[str, ...] = ()):
    return descriptor_pb2.FileDescriptorProto(
        name=name, package="shop", syntax="proto3", message_type=messages, dependency=imports
    )


MESSAGE = descriptor_pb2.DescriptorProto
DEVICE = MESSAGE(name="Device", field=[field("model", 1, Field.TYPE_STRING)])
CLICK = MESSAGE(
    name="Click",
    field=[
        field("itemId", 1, Field.TYPE_INT64),
        field("label", 2, Field.TYPE_INT32),
        field("price", 3, Field.TYPE_DOUBLE),
        field("place", 4, Field.TYPE_ENUM, ".shop.Click.Place"),
        field("at", 5, Field.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
        field("seen", 6, Field.TYPE_MESSAGE, ".google.protobuf.Int64Value"),
        field("device", 7, Field.TYPE_MESSAGE, ".shop.Device"),
        field("tags", 8, Field.TYPE_BYTES, repeated=True),
        field("scores", 9, Field.TYPE_MESSAGE, ".shop.Click.ScoresEntry", repeated=True),
        field("big", 10, Field.TYPE_UINT64, repeated=True),
    ],
    enum_type=[
        descriptor_pb2.EnumDescriptorProto(
            name="Place",
            value=[
                descriptor_pb2.EnumValueDescriptorProto(name="TOP", number=0),
                descriptor_pb2.EnumValueDescriptorProto(name="FOOT", number=1),
            ],
        )
    ],
    nested_type=[
        MESSAGE(
            name="ScoresEntry",
            options=descriptor_pb2.MessageOptions(map_entry=True),
            field=[field("key", 1, Field.TYPE_BOOL), field("value", 2, Field.TYPE_INT64)],
        ),
        MESSAGE(name="View", field=[field("page", 1, Field.TYPE_FIXED64)]),
    ],
)
KNOWN = ("google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto")
FILES = [
    proto("device.proto", DEVICE),
    proto(
        "clicks.proto",
        MESSAGE(name="First", field=[field("x", 1, Field.TYPE_INT32)]),
        CLICK,
        imports=(*KNOWN, "device.proto"),
    ),
]
SCHEMA_AND_OTHERS = (
    base64.b64encode(FILES[1].SerializeToString()).decode(),
    [("device.proto", base64.b64encode(FILES[0].SerializeToString()).decode())],
)


def message(name: str):
    """A new message of one of the types in `FILES`."""
    pool = descriptor_pool.DescriptorPool()
    known = descriptor_pool.Default()
    for one in map(known.FindFileByName, KNOWN):
        pool.AddSerializedFile(one.serialized_pb)
    for one in FILES:
        pool.AddSerializedFile(one.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))()


PROTOBUF_TO_JSON = protobuf_to_json(*SCHEMA_AND_OTHERS)


def read_protobuf(payload: bytes) -> object:
    return json.loads(PROTOBUF_TO_JSON(payload))


def test_a_message_of_protobuf_keeps_its_names_and_its_numbers():
    click = message("shop.Click")
    click.itemId, click.price, click.place = 2**60 + 1, 9.5, 1
    click.at.seconds = 1_700_000_000
    click.seen.value = 2**61 + 1
    click.device.model = "Zoë"
    click.tags.extend([b"a", b"\xff"])
    click.scores[True] = 2**62 + 1
    click.big.append(2**64 - 1)
    assert read_protobuf(b"\x02\x02" + click.SerializeToString()) == {
        "itemId": 2**60 + 1,
        "label": 0,  # not on the wire, since it is the default
        "price": 9.5,
        "place": "FOOT",
        "at": "2023-11-14T22:13:20Z",
        "seen": 2**61 + 1,
        "device": {"model": "Zoë"},
        "tags": ["a", "/w=="],
        "scores": {"true": 2**62 + 1},
        "big": [2**64 - 1],
    }


def test_a_message_of_protobuf_leaves_out_what_may_be_absent_and_is():
    found = read_protobuf(b"\x02\x02")
    assert not found.keys() & {"at", "seen", "device"}
    assert (found["itemId"], found["place"], found["tags"]) == (0, "TOP", [])


def test_the_message_index_chooses_the_message_and_a_zero_stands_for_the_first():
    first, view = message("shop.First"), message("shop.Click.View")
    first.x, view.page = 5, 6
    assert read_protobuf(b"\0" + first.SerializeToString()) == {"x": 5}
    assert read_protobuf(b"\x02\0" + first.SerializeToString()) == {"x": 5}
    assert read_protobuf(b"\x04\x02\0" + view.SerializeToString()) == {"page": 6}


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "is cut off"),
        (b"\x04\x02", "is cut off"),
        (b"\xff" * 20, "is cut off"),
        (b"\x01", "is negative"),
        (b"\x02\x01", "is negative"),
        (b"\x02\x10", r"no message at index \[8\]"),
    ],
)
def test_a_message_index_that_leads_nowhere_is_said(payload, why):
    with pytest.raises(ValueError, match=why):
        read_protobuf(payload)


def test_a_schema_of_protobuf_may_import_the_options_that_every_registry_knows():
    file = proto("clicks.proto", DEVICE, imports=("confluent/meta.proto",))
    text = base64.b64encode(file.SerializeToString()).decode()
    assert json.loads(protobuf_to_json(text, [])(b"\0\x0a\x01a")) == {"model": "a"}


AVRO_TO_JSON = avro_to_json(
    json.dumps(
        record(
            ("label", "int"),
            ("users", {"type": "array", "items": "string"}),
            ("prices", {"type": "map", "values": ["null", "double", "bytes"]}),
            ("day", {"type": "int", "logicalType": "date"}),
            ("cost", {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 2}),
        )
    ),
    [],
)


@pytest.mark.parametrize("to_json", [AVRO_TO_JSON, PROTOBUF_TO_JSON], ids=["avro", "protobuf"])
@given(payload=st.binary(max_size=60))
def test_whatever_a_payload_holds_the_answer_is_json_or_an_error(to_json, payload):
    for bytes_ in (payload, b"\x02\x02" + payload):
        try:
            read = to_json(bytes_)
        except Exception:
            continue
        assert isinstance(json.loads(read), dict)
