"""Lists and maps of Avro and Protobuf: what comes out as JSON is read as any other list."""

import base64
import json
from io import BytesIO

import pytest
from fastavro import parse_schema, schemaless_writer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from niwaki.model.features.schema import Schema
from niwaki.stream.kafka.schema_formats import avro_to_json, protobuf_to_json
from tests.support.messages import decode

Field = descriptor_pb2.FieldDescriptorProto
SCHEMA = Schema(lists=("seen",), timestamp=None)
PAIR = {
    "type": "record",
    "name": "Pair",
    "fields": [{"name": "value", "type": "long"}, {"name": "weight", "type": "double"}],
}


def lists(message: bytes) -> list:
    batch, _, rejects = decode(message, schema=SCHEMA)
    assert rejects == []
    return batch.lists[0].to_pylist()[0]


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        ({"type": "array", "items": "string"}, ["a", "b"], [("a", 1.0), ("b", 1.0)]),
        ({"type": "array", "items": ["null", "long"]}, [7, None], [("7", 1.0)]),
        ({"type": "array", "items": "bytes"}, [b"a"], [("a", 1.0)]),
        ({"type": "map", "values": "float"}, {"a": 0.5, "b": 0.0}, [("a", 0.5)]),
        ({"type": "array", "items": PAIR}, [{"value": 7, "weight": 0.5}], [("7", 0.5)]),
        (["null", {"type": "array", "items": "string"}], None, None),
        (["null", {"type": "array", "items": "string"}], [], []),
        ("string", "a|b", [("a", 1.0), ("b", 1.0)]),
    ],
)
def test_arrays_and_maps_of_avro_are_lists(kind, value, read):
    fields = [{"name": "label", "type": "int"}, {"name": "seen", "type": kind}]
    schema = {"type": "record", "name": "Click", "fields": fields}
    out = BytesIO()
    schemaless_writer(out, parse_schema(schema), {"label": 1, "seen": value})
    assert lists(avro_to_json(json.dumps(schema), [])(out.getvalue())) == read


def protobuf_file(seen: Field, *nested: descriptor_pb2.DescriptorProto):
    label = Field(name="label", number=1, type=Field.TYPE_INT32, label=Field.LABEL_OPTIONAL)
    click = descriptor_pb2.DescriptorProto(name="Click", field=[label, seen], nested_type=nested)
    return descriptor_pb2.FileDescriptorProto(
        name="click.proto", syntax="proto3", message_type=[click]
    )


REPEATED = protobuf_file(
    Field(name="seen", number=2, type=Field.TYPE_INT64, label=Field.LABEL_REPEATED)
)
ENTRY = descriptor_pb2.DescriptorProto(
    name="SeenEntry",
    options=descriptor_pb2.MessageOptions(map_entry=True),
    field=[
        Field(name="key", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL),
        Field(name="value", number=2, type=Field.TYPE_FLOAT, label=Field.LABEL_OPTIONAL),
    ],
)
MAP = protobuf_file(
    Field(
        name="seen",
        number=2,
        type=Field.TYPE_MESSAGE,
        type_name=".Click.SeenEntry",
        label=Field.LABEL_REPEATED,
    ),
    ENTRY,
)


@pytest.mark.parametrize(
    ("file", "value", "read"),
    [
        (REPEATED, [7, 8], [("7", 1.0), ("8", 1.0)]),
        (REPEATED, [], []),
        (MAP, {"a": 0.5}, [("a", 0.5)]),
        (MAP, {}, []),
    ],
)
def test_repeated_fields_and_maps_of_protobuf_are_lists(file, value, read):
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    click = message_factory.GetMessageClass(pool.FindMessageTypeByName("Click"))
    text = base64.b64encode(file.SerializeToString()).decode()
    payload = b"\0" + click(label=1, seen=value).SerializeToString()
    assert lists(protobuf_to_json(text, [])(payload)) == read
