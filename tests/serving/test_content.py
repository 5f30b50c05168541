"""What the HTTP server makes of the type and the encoding of a body: those that clients use are
understood, and no body is inflated beyond the limit."""

import gzip
import json
import tracemalloc
import zlib

import pytest

from niwaki.serving.bodies import content
from niwaki.serving.bodies.wire import RequestError
from tests.support.publisher import rows
from tests.support.served import JSON, error

EMPTY = b'{"events": []}'
PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}


def packed(encoding: str) -> dict[str, str]:
    return {**JSON, "content-encoding": encoding}


# Types


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; charset=utf8",
        "application/json ; CharSet=US-ASCII",
        'application/json; profile="a; charset=latin-1"; charset=utf-8',
        "application/json; odata.metadata=minimal; charset",
        "application/json;",
        "application/vnd.clicks.v1+json",
        "application/ld+json; profile=x; charset=utf-8",
    ],
)
def test_json_may_come_under_every_name_that_clients_give_it(served, kind):
    headers = {"content-type": kind}
    assert served.client.post("/score", content=EMPTY, headers=headers).status_code == 200


def test_a_body_without_a_type_is_json(served):
    response = served.client.post("/score", content=EMPTY)
    assert "content-type" not in response.request.headers and response.status_code == 200


NO_TYPE = "must be application/json or another type of JSON, or application/vnd.apache.arrow.stream"


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("application/x-www-form-urlencoded", NO_TYPE),
        ("text/plain; charset=utf-8", NO_TYPE),
        ("", NO_TYPE),
        ("json", NO_TYPE),
        ("application/octet-stream", NO_TYPE),
        ("application/json; charset=latin-1", "must be in UTF-8: charset=utf-8"),
        ("application/json; charset=UTF-16", "must be in UTF-8: charset=utf-8"),
        ("application/x+json;charset=\xe9", "must be in UTF-8: charset=utf-8"),
    ],
)
def test_another_type_or_charset_is_415_and_named(served, kind, rule):
    headers = {"content-type": kind.encode("latin-1")}
    response = served.client.post("/score", content=EMPTY, headers=headers)
    assert error(response) == (415, "content-type", rule, kind)


# Encodings


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "x-gzip"])
def test_a_compressed_body_is_scored_as_the_same_body_plain(served, publisher, encoding):
    body = json.dumps({"events": rows(publisher.events)}).encode()
    packer = PACKERS[encoding.lower().removeprefix("x-")]
    answer = served.client.post("/score", content=packer(body), headers=packed(encoding))
    assert answer.json() == {"version": 12, "probabilities": publisher.answers[12]}
    plain = served.client.post("/score", content=body, headers=packed("identity"))
    assert plain.json() == answer.json()


def test_a_compressed_body_may_be_short_for_many_events(served):
    body = json.dumps({"events": [{"user": "u1"}] * 100}).encode()
    assert len(gzip.compress(body)) * 10 < len(body)
    answer = served.client.post("/score", content=gzip.compress(body), headers=packed("gzip"))
    assert len(answer.json()["probabilities"]) == 100


@pytest.mark.parametrize("packer", PACKERS.values(), ids=list(PACKERS))
def test_a_body_that_inflates_beyond_the_limit_is_413_and_up_to_it_is_scored(served, packer):
    encoding = next(name for name in PACKERS if PACKERS[name] is packer)
    for length, status in ((100_000, 200), (100_001, 413), (50_000_000, 413)):
        body = packer(EMPTY + b" " * (length - len(EMPTY)))
        assert len(body) <= 100_000
        response = served.client.post("/score", content=body, headers=packed(encoding))
        assert response.status_code == status, length
        if status == 413:
            rule = "must be at most 100000 bytes when it is inflated"
            assert error(response)[1:3] == ("body", rule)
    assert served.metrics()["niwaki_requests_total", "score", "too_large"] >= 2


def test_a_bomb_never_takes_more_memory_than_the_limit_allows():
    bomb = gzip.compress(b" " * 200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="at most 1000000 bytes"):
            content.inflate(bomb, "gzip", 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


DAMAGES = {
    "plain": lambda whole: EMPTY,
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "without its last byte": lambda whole: whole[:-1],
    "another sum": lambda whole: whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
    "more after it": lambda whole: whole + b"x",
    "twice": lambda whole: whole + whole,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("encoding", PACKERS)
def test_a_damaged_compressed_body_is_400_and_names_the_encoding(served, encoding, damage):
    body = DAMAGES[damage](PACKERS[encoding](EMPTY))
    if (encoding, damage) == ("deflate", "another sum"):
        body = body[:-1] + bytes([body[-1] ^ 1])
    response = served.client.post("/score", content=body, headers=packed(encoding))
    status, field, rule, value = error(response)
    assert (status, field, value) == (400, "content-encoding", encoding)
    assert rule.startswith("must be ")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
def test_another_encoding_is_415_and_says_which_are_understood(served, encoding):
    response = served.client.post("/score", content=EMPTY, headers=packed(encoding))
    rule = "must be one of gzip, deflate and identity"
    assert error(response) == (415, "content-encoding", rule, encoding)
    assert response.headers["accept-encoding"] == "gzip, deflate"
