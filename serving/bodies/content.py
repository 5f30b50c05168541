"""The content of a request: what its headers say of the body, and the body unpacked.

In: headers, and the bytes of a body. Out: the bytes that were meant, never more than the limit,
whatever a body would inflate to; or a `RequestError`. It knows no HTTP server.
"""

import zlib
from collections.abc import Mapping
from email.message import Message

from niwaki.serving.bodies.inference import JSON_BYTES_HEADER
from niwaki.serving.bodies.wire import RequestError

ENCODINGS = {"gzip": 31, "deflate": 15}
"""Ways to compress a body, and the `wbits` of zlib for each."""
JSON, BINARY = "application/json", "application/octet-stream"
_UTF_8 = ("", "utf-8", "utf8", "us-ascii", "ascii")


def read_type(headers: Mapping[str, str], *others: str) -> str:
    """The type of the content: application/json where it is JSON in UTF-8, or of no type that is
    said, or one of `others`. Raises `RequestError` for any other."""
    said = headers.get("content-type", JSON)
    if said == JSON or said in others:
        return said
    header = Message()  # the standard library's parser of a type and its parameters
    header["content-type"] = said[:1_000]  # its time is more than proportional to the length
    kind = header.get_content_type()
    if kind in others:
        return kind
    if kind != JSON and not kind.endswith("+json"):
        rule = ", or ".join(["must be application/json or another type of JSON", *others])
        raise RequestError(415, "content-type", rule, said[:80])
    if str(header.get_param("charset", "")).lower() not in _UTF_8:
        raise RequestError(415, "content-type", "must be in UTF-8: charset=utf-8", said[:80])
    return JSON


def encoding(headers: Mapping[str, str]) -> str:
    """The key of `ENCODINGS` by which the body is compressed; empty where it is not."""
    said = headers.get("content-encoding", "identity")
    name = said.strip().lower().removeprefix("x-")  # x-gzip is gzip, says HTTP
    if name in ("identity", ""):
        return ""
    if name not in ENCODINGS:
        rule = f"must be one of {', '.join(ENCODINGS)} and identity"
        raise RequestError(415, "content-encoding", rule, said[:80])
    return name


def json_bytes(headers: Mapping[str, str]) -> int | None:
    """The length of the JSON before binary tensors; None where none is said."""
    said = headers.get(JSON_BYTES_HEADER)
    if said is None:
        return None
    if not (said.isascii() and said.isdecimal() and len(said) <= 18 and int(said)):
        raise RequestError(400, JSON_BYTES_HEADER, "must be a number of bytes, >= 1", said[:80])
    return int(said)


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """The content of a compressed `body`, at most `limit` bytes."""
    inflater = zlib.decompressobj(ENCODINGS[encoding])
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        rule = f"must be what the body is compressed by ({error})"
        raise RequestError(400, "content-encoding", rule, encoding) from error
    if len(content) > limit:
        raise RequestError(413, "body", f"must be at most {limit} bytes when it is inflated")
    if not inflater.eof or inflater.unused_data:
        rule = "must be of a body that is whole and ends where its content does"
        raise RequestError(400, "content-encoding", rule, encoding)
    return content
