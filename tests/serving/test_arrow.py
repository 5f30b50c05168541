"""Arrow as the body of a request and of its answer: the probabilities of the same rows in JSON, and
every mistake named."""

import json

import numpy as np
import pyarrow as pa
import pytest

from niwaki.model.features.encoder import Encoder
from niwaki.model.features.schema import Schema
from niwaki.serving.bodies import wire
from niwaki.serving.bodies.arrow_rows import ARROW, hash_arrow
from niwaki.serving.bodies.wire import RequestError
from tests.support.publisher import rows
from tests.support.served import error

SCHEMA = Schema(
    categorical=("user", "item"),
    numeric=("price",),
    lists=("seen",),
    time_features=("hour",),
    ignore=("note",),
)
ENCODER = Encoder(SCHEMA, rows=256)


def stream(table: pa.Table, context: object = None, codec: str | None = None) -> bytes:
    if context is not None:
        table = table.replace_schema_metadata({"context": json.dumps(context)})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


TABLES = [
    pa.table({"user": ["a", None, ""], "item": [1, 2, None], "price": [1.5, None, 3.0]}),
    pa.table({"user": pa.array(["a", "b"]).dictionary_encode(), "price": pa.array([1, None])}),
    pa.table({"ts": pa.array([1_700_000_000_000, None]), "seen": [["a", "b"], None]}),
    pa.table({"item": pa.array([4711.0, None]), "price": ["1", " 2 "], "note": [{"x": 1}, None]}),
    pa.table({"item": [1, 2], "seen": pa.array([[("a", 0.5)], []], pa.map_("string", "float32"))}),
    pa.table({"item": pa.chunked_array([["a"], ["b", "c"]])}),
    pa.table({"item": pa.array([], pa.string())}),
]


@pytest.mark.parametrize("context", [{}, {"user": 12, "seen": ["x"], "ts": 5}, {"price": 2}])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_is_hashed_as_the_same_rows_in_json_are(table, context):
    context = {name: value for name, value in context.items() if name not in table.column_names}
    found = hash_arrow(stream(table, context), ENCODER, 10)
    seen = (
        [
            dict(value) if value and isinstance(value[0], tuple) else value
            for value in table["seen"].to_pylist()
        ]
        if "seen" in table.column_names
        else []
    )
    rows = table.to_pylist()
    for row, value in zip(rows, seen, strict=False):
        row["seen"] = value
    body = json.dumps({"context": context, "candidates": rows}).encode()
    expected = wire.hash_score(body, ENCODER, 10)
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    for one, other in zip(found.lists, expected.lists, strict=True):
        for part, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, same)


def test_times_of_arrow_are_read_by_their_own_type():
    for unit in ("s", "ms", "us", "ns"):
        times = pa.array([1_700_000_000], pa.timestamp("s")).cast(pa.timestamp(unit))
        found = hash_arrow(stream(pa.table({"ts": times})), ENCODER, 10)
        assert found.times_s_B.tolist() == [1_700_000_000.0]


GOOD = stream(TABLES[0])
MISTAKES = [
    (b"", "body", "Arrow IPC stream"),
    (b"{}", "body", "Arrow IPC stream"),
    (GOOD[: len(GOOD) // 2], "body", "Arrow IPC stream"),
    (stream(TABLES[0], codec="zstd"), "body", "compressed"),
    (stream(TABLES[1], codec="lz4"), "body", "compressed"),
    (stream(pa.table({"colour": ["red"]})), "rows.'colour'", "column of the schema"),
    (stream(pa.table([[1], [2]], ["item", "item"])), "rows.item", "there once"),
    (stream(TABLES[0], {"user": 1}), "rows.user", "in the context too"),
    (stream(TABLES[0], {"seen": {"a": -1}}), "context.seen", "weights"),
    (stream(TABLES[0], [1]), "context", "expected"),
    (stream(pa.table({"price": [1.0, 1e39]})), "rows[1].price", "finite in 32 bits"),
    (stream(pa.table({"price": ["cheap"]})), "rows[0].price", "number"),
    (stream(pa.table({"item": [["a"]]})), "rows[0].item", "string or a number"),
    (stream(pa.table({"item": list("abcdefghijk")})), "rows", "at most 10"),
]


@pytest.mark.parametrize("body, field, rule", MISTAKES)
def test_a_mistake_is_named(body, field, rule):
    with pytest.raises(RequestError) as broken:
        hash_arrow(body, ENCODER, 10)
    assert broken.value.field == field and rule in broken.value.rule


@pytest.mark.parametrize("at", range(8, len(GOOD), 13))
def test_a_damaged_stream_is_refused_or_read_and_breaks_nothing(at):
    damaged = GOOD[:at] + bytes([GOOD[at] ^ 0x55]) + GOOD[at + 1 :]
    try:
        hash_arrow(damaged, ENCODER, 10)
    except RequestError:
        pass


def test_the_answer_is_in_arrow_where_that_is_accepted(served, publisher):
    table = pa.Table.from_pylist(rows(publisher.events))
    for accept in ("application/json", ARROW):
        answer = served.client.post(
            "/score", content=stream(table), headers={"content-type": ARROW, "accept": accept}
        )
        assert answer.status_code == 200 and answer.headers["content-type"] == accept
        if accept == ARROW:
            with pa.ipc.open_stream(answer.content) as found:
                assert found.schema.metadata == {b"version": b"12"}
                probabilities = found.read_all()["probability"].to_pylist()
        else:
            probabilities = answer.json()["probabilities"]
        assert probabilities == pytest.approx(publisher.answers[12], abs=1e-7)
    refused = served.client.post("/score", content=b"x", headers={"content-type": ARROW})
    assert error(refused)[:2] == (400, "body")
