"""Messages in Confluent's wire format: what a schema registry makes of them, and what happens while
it is away."""

import json
import logging
import subprocess
import sys
from contextlib import closing
from io import BytesIO

import msgspec
import pytest
from fastavro import parse_schema, schemaless_writer
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import RuleError
from niwaki.stream.app import new_reader
from niwaki.stream.errors import BrokerError, ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.kafka import registry as registry_module
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.kafka.reader import Reader
from niwaki.stream.kafka.registry import new_decoder
from niwaki.stream.kafka.sink import EventSink
from niwaki.stream.kafka.source import EventSource
from tests.support.messages import texts
from tests.support.schema_registry import SchemaRegistry, framed

SCHEMA = Schema(categorical=("user",), numeric=("price",))
TIME = {"type": "long", "logicalType": "timestamp-millis"}
AVRO = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "label", "type": "int"},
        {"name": "ts", "type": TIME},
        {"name": "user", "type": ["null", "string"]},
        {"name": "price", "type": "double"},
    ],
}
ID_ABSENT = 7


def event(user: str, label: int = 1) -> dict[str, object]:
    return {"label": label, "ts": 1_700_000_000_123, "user": user, "price": 2.5}


def avro(user: str) -> bytes:
    out = BytesIO()
    schemaless_writer(out, parse_schema(AVRO), event(user))
    return out.getvalue()


def protobuf_file() -> descriptor_pb2.FileDescriptorProto:
    kinds = {"label": "INT32", "ts": "INT64", "user": "STRING", "price": "DOUBLE"}
    fields = [
        descriptor_pb2.FieldDescriptorProto(
            name=name,
            number=number,
            type=f"TYPE_{kind}",
            label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        )
        for number, (name, kind) in enumerate(kinds.items(), 1)
    ]
    click = descriptor_pb2.DescriptorProto(name="Click", field=fields)
    return descriptor_pb2.FileDescriptorProto(
        name="click.proto", syntax="proto3", message_type=[click]
    )


def protobuf(user: str, label: int = 1) -> bytes:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(protobuf_file().SerializeToString())
    click = message_factory.GetMessageClass(pool.FindMessageTypeByName("Click"))
    return b"\0" + click(**event(user, label)).SerializeToString()


@pytest.fixture
def registry():
    with SchemaRegistry().running() as running:
        yield running


def decoder_of(url: str, **changes: object):
    config = KafkaConfig(**{"schema_registry_url": url} | changes)
    return new_decoder(config, SCHEMA, EventsConfig())


@pytest.mark.parametrize("where", ["process", "inline"])
def test_all_formats_of_a_registry_are_read_from_a_topic_beside_plain_events(
    kafka_config, registry, where
):
    ids = {
        "avro": registry.register("avro", json.dumps(AVRO)),
        "protobuf": registry.register(
            "protobuf", "", "PROTOBUF", serialized=protobuf_file().SerializeToString()
        ),
        "json": registry.register("json", '{"type": "object"}', "JSON"),
    }
    values = [
        json.dumps(event("plain")).encode(),
        framed(ids["avro"], avro("avro")),
        framed(ID_ABSENT, avro("nobody")),
        framed(ids["protobuf"], protobuf("protobuf", label=0)),
        framed(ids["avro"], b"\x01"),
        framed(ids["json"], json.dumps(event("json")).encode()),
        b"\0",
        json.dumps(event("last")).encode(),
    ]
    config = kafka_config(reader=where, schema_registry_url=registry.url)
    ensure_topic(config, config.topic)
    with EventSink(config) as sink:
        for value in values:
            sink.send(value)
    with closing(new_reader(config, SCHEMA, EventsConfig())) as reader:
        reader.start({})
        polls = []
        while sum(poll.messages for poll in polls) < len(values):
            polls += filter(None, [reader.read(0.1)])
    users = [user for poll in polls for user in texts(poll.batch)[0]]
    assert users == ["plain", "avro", "protobuf", "json", "last"]
    assert [row[3] for poll in polls for row in poll.after_B4.tolist()] == [0, 1, 3, 5, 7]
    assert {t for poll in polls for t in poll.batch.times_s_B.tolist()} == {1_700_000_000.123}
    assert [label for poll in polls for label in poll.batch.labels_B.tolist()] == [1, 1, 0, 1, 1]
    rejects = [(record, reject) for poll in polls for record, reject in poll.rejects]
    assert [(record.offset, reject.kind) for record, reject in rejects] == [
        (2, "registry"),
        (4, "registry"),
        (6, "json"),
    ]
    assert rejects[0][0].value == values[2]  # dead letters are as they came
    assert f"404 to /schemas/ids/{ID_ABSENT}" in rejects[0][1].reason
    assert f"must fit schema {ids['avro']} of the registry (EOFError" in rejects[1][1].reason


def test_a_schema_is_asked_for_once_and_an_unknown_id_once_for_each_poll(registry):
    schema_id = registry.register("clicks", json.dumps(AVRO))
    decoder = decoder_of(registry.url + "/")
    good, absent = framed(schema_id, avro("ann")), framed(schema_id + 1, avro("bob"))
    for _ in range(2):
        decoded = decoder.decode([good, absent, good, absent])
        assert texts(decoded.batch) == [["ann", "ann"]]
        assert [one.position for one in decoded.rejects] == [1, 3]
    assert registry.asked == [
        f"/schemas/ids/{schema_id}",
        *[f"/schemas/ids/{schema_id + 1}"] * 2,
    ]
    registry.register("clicks", json.dumps(AVRO))
    assert texts(decoder.decode([absent]).batch) == [["bob"]]


def test_schemas_that_a_schema_refers_to_are_asked_for_by_subject_and_version(registry):
    when = {"type": "record", "name": "When", "fields": [{"name": "ms", "type": TIME}]}
    registry.register("a/when", '"string"')
    registry.register("a/when", json.dumps(when))
    place = {"type": "record", "name": "Place", "fields": [{"name": "when", "type": "When"}]}
    registry.register("place", json.dumps(place), references=[("When", "a/when", 2)])
    fields = [
        {"name": "label", "type": "int"},
        {"name": "user", "type": "string"},
        {"name": "place", "type": "Place"},
    ]
    outer = {"type": "record", "name": "Outer", "fields": fields}
    references = [("Place", "place", 1), ("When", "a/when", 2)]
    schema_id = registry.register("outer", json.dumps(outer), references=references)
    config = KafkaConfig(schema_registry_url=registry.url)
    schema = Schema(categorical=("user",), timestamp="place.when.ms")
    decoder = new_decoder(config, schema, EventsConfig())
    decoded = decoder.decode([framed(schema_id, b"\x02\x06ann\x80\x01")])
    assert texts(decoded.batch) == [["ann"]]
    assert decoded.batch.times_s_B.tolist() == [0.064]
    assert registry.asked[1:] == ["/subjects/place/versions/1", "/subjects/a%2Fwhen/versions/2"]


def test_files_that_a_protobuf_imports_are_fetched_in_their_serialized_form(registry):
    file = protobuf_file()
    registry.register("click", "", "PROTOBUF", serialized=file.SerializeToString())
    outer = descriptor_pb2.FileDescriptorProto(
        name="any name", syntax="proto3", dependency=["click.proto"]
    )
    field = outer.message_type.add(name="Outer").field.add(name="click", number=1)
    field.type, field.type_name, field.label = field.TYPE_MESSAGE, ".Click", 1
    schema_id = registry.register(
        "outer",
        "",
        "PROTOBUF",
        serialized=outer.SerializeToString(),
        references=[("click.proto", "click", 1)],
    )
    config = KafkaConfig(schema_registry_url=registry.url)
    schema = Schema(label="click.label", timestamp="click.ts", categorical=("click.user",))
    decoder = new_decoder(config, schema, EventsConfig(unknown_columns="ignore"))
    inner = protobuf("ann")[1:]
    payload = b"\0\x0a" + bytes([len(inner)]) + inner
    decoded = decoder.decode([framed(schema_id, payload)])
    assert texts(decoded.batch) == [["ann"]]


@pytest.mark.parametrize(
    ("text", "kind", "why"),
    [
        ('{"type": "record"}', "AVRO", "can be used, unlike"),
        ("[" * 100_000, "AVRO", "can be used, unlike"),
        ("no base64", "PROTOBUF", "can be used, unlike"),
        ("<xsd/>", "XML", "its type XML is none of AVRO, JSON and PROTOBUF"),
        (
            json.dumps(AVRO | {"fields": [{"name": "x", "type": "Click"}]}),
            "AVRO",
            "contains itself",
        ),
    ],
)
def test_a_schema_that_cannot_be_used_rejects_its_messages_and_no_others(
    registry, caplog, text, kind, why
):
    schema_id = registry.register("odd", text, kind, serialized=b"\xff")
    decoder = decoder_of(registry.url)
    plain = json.dumps(event("ann")).encode()
    for _ in range(2):
        decoded = decoder.decode([framed(schema_id, b"\0\0"), plain])
        assert texts(decoded.batch) == [["ann"]] and decoded.message_B.tolist() == [1]
        assert [(one.position, one.kind) for one in decoded.rejects] == [(0, "registry")]
        assert why in decoded.rejects[0].reason
    assert caplog.text.count(f"schema {schema_id} of the registry can't be used") == 1


@pytest.mark.parametrize("status", [None, 500, 503, 429])
def test_while_the_registry_is_away_messages_wait_and_none_is_lost(
    kafka_config, caplog, monkeypatch, status
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(registry_module, "_BACKOFF_S", (0.01, 0.02))
    registry = SchemaRegistry()
    schema_id = registry.register("clicks", json.dumps(AVRO))
    config = kafka_config(schema_registry_url=registry.url, max_poll_messages=2)
    ensure_topic(config, config.topic)
    with EventSink(config) as sink:
        for number in range(5):
            sink.send(framed(schema_id, avro(f"u{number}")))
    decoder = new_decoder(config, SCHEMA, EventsConfig())
    with closing(Reader(EventSource(config), decoder)) as reader:
        reader.start({})
        registry.status = status or 0

        def read_until(done) -> None:
            while not done():
                assert reader.read(0.05) is None

        if status is None:
            read_until(lambda: caplog.text.count("no schema registry answers"))
            for _ in range(3):
                assert reader.read(0.05) is None
        with registry.running():
            if status is not None:
                read_until(lambda: len(registry.asked) >= 3)
                registry.status = 0
            polls = []
            while sum(poll.messages for poll in polls) < 5:
                polls += filter(None, [reader.read(0.05)])
    users = [user for poll in polls for user in texts(poll.batch)[0]]
    assert users == ["u0", "u1", "u2", "u3", "u4"]
    assert not any(poll.rejects for poll in polls)
    assert caplog.text.count("no schema registry answers at " + registry.url) == 1
    assert caplog.text.count("the schema registry is back") == 1
    assert "HTTP Request" not in caplog.text


def test_a_registry_that_asks_for_a_login_gets_it_and_nobody_sees_the_password(caplog):
    registry = SchemaRegistry(login=("key", "s3cr:t"))
    message = framed(registry.register("clicks", json.dumps(AVRO)), avro("ann"))
    login = {"schema_registry_username": "key", "schema_registry_password": "s3cr:t"}
    with registry.running():
        assert texts(decoder_of(registry.url, **login).decode([message]).batch) == [["ann"]]
        for wrong in ({}, login | {"schema_registry_password": "wr0ng"}):
            with pytest.raises(BrokerError) as caught:
                decoder_of(registry.url, **wrong).decode([message])
            text = "refuses access (401): check kafka.schema_registry_username and"
            assert text in str(caught.value)
            assert "wr0ng" not in str(caught.value) + caplog.text
        registry.status = 403
        with pytest.raises(BrokerError, match=r"refuses access \(403\): check kafka.schema_"):
            decoder_of(registry.url, **login).decode([message])
    shown = repr(KafkaConfig(schema_registry_url=registry.url, **login))
    assert "schema_registry_username='key'" in shown and "s3cr" not in shown


def test_what_is_no_registry_is_told_from_one_that_lacks_a_schema(registry):
    message = framed(registry.register("clicks", json.dumps(AVRO)), avro("ann"))
    with pytest.raises(BrokerError, match=r"404 to /schemas.*check kafka\.schema_registry_url"):
        decoder_of(registry.url + "/elsewhere").decode([message])
    registry.status = 301
    with pytest.raises(BrokerError, match=r"answers 301 to .*check kafka\.schema_registry_url"):
        decoder_of(registry.url).decode([message])


def test_a_registry_over_tls_is_trusted_by_the_authorities_that_are_named(tmp_path, caplog):
    certificate, key = str(tmp_path / "tls.crt"), str(tmp_path / "tls.key")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    try:
        subprocess.run(make.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not on the PATH")
    registry = SchemaRegistry(certificate=(certificate, key))
    message = framed(registry.register("clicks", json.dumps(AVRO)), avro("ann"))
    with registry.running():
        trusting = decoder_of(registry.url, ssl_cafile=certificate)
        assert texts(trusting.decode([message]).batch) == [["ann"]]
        assert decoder_of(registry.url).decode([message]) is None
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


@pytest.mark.parametrize("envelope", ["", "payload"])
def test_without_a_registry_the_reject_says_what_the_message_is_and_what_to_set(envelope):
    decoder = EventDecoder(SCHEMA, EventsConfig(envelope=envelope))
    (reject,) = decoder.decode([framed(70_001, avro("ann"))]).rejects
    assert (reject.kind, reject.reason) == (
        "registry",
        "value: looks like Confluent's wire format with schema id 70001; to read it, set"
        " kafka.schema_registry_url",
    )


def test_a_message_that_is_too_long_is_not_even_looked_at(registry):
    decoder = decoder_of(registry.url, max_event_bytes=20)
    (reject,) = decoder.decode([framed(1, bytes(20))]).rejects
    assert (reject.kind, registry.asked) == ("size", [])


@pytest.mark.parametrize("package", ["fastavro", "httpx", "google.protobuf"])
def test_without_the_extra_the_error_says_what_to_install(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.removeprefix("google.")
    with pytest.raises(ConfigError, match=rf"{name}: pip install 'niwaki\[registry\]'"):
        new_reader(KafkaConfig(schema_registry_url="http://r:1"), SCHEMA, EventsConfig())
    assert isinstance(new_decoder(KafkaConfig(), SCHEMA, EventsConfig()), EventDecoder)


@pytest.mark.parametrize(
    "url",
    [
        "registry:8081",
        "ftp://registry",
        "http://",
        "http://ann:s3cret@registry",
        "http://registry:99999",
        "http://registry?key=s3cret",
        "http://reg istry",
    ],
)
def test_an_address_that_is_none_is_refused_without_being_shown(url):
    with pytest.raises(
        RuleError, match=r"^schema_registry_url: must be http\[s\]://host"
    ) as caught:
        KafkaConfig(schema_registry_url=url)
    assert "s3cret" not in str(caught.value)


def test_a_password_needs_a_name():
    with pytest.raises(RuleError, match="^schema_registry_username: must be set with schema_"):
        KafkaConfig(schema_registry_url="https://r", schema_registry_password="s3cret")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_whatever_follows_an_id_costs_no_other_message(registry, noise):
    if not registry.schemas:
        registry.register("avro", json.dumps(AVRO))
        registry.register("proto", "", "PROTOBUF", serialized=protobuf_file().SerializeToString())
        registry.decoder = decoder_of(registry.url)
    one, other = (kept.id for kept in registry.schemas)
    values = [framed(one, avro("ann")), *(framed(one, bytes_) for bytes_ in noise)]
    values += [framed(other, protobuf("bob")), *(framed(other, bytes_) for bytes_ in noise)]
    decoded = registry.decoder.decode([*values, msgspec.json.encode(event("eve"))])
    found = dict(zip(decoded.message_B.tolist(), texts(decoded.batch)[0], strict=True))
    assert found[0] == "ann" and found[len(noise) + 1] == "bob" and found[len(values)] == "eve"
    assert sorted([*found, *(reject.position for reject in decoded.rejects)]) == list(
        range(len(values) + 1)
    )
