"""A schema registry over HTTP, with the paths, answers and error codes of Confluent's."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from niwaki.stream.offline.local import free_port


class Kept(NamedTuple):
    """A schema of a subject. `serialized`: a FileDescriptorProto, of Protobuf's alone."""

    subject: str
    version: int
    id: int
    kind: str
    text: str
    serialized: bytes
    references: list[dict[str, Any]]


class SchemaRegistry:
    """A registry on a port of its own. `login`: the name and password that it asks for.
    `certificate`: files with its certificate and key; None: it speaks no TLS."""

    def __init__(
        self,
        login: tuple[str, str] | None = None,
        certificate: tuple[str, str] | None = None,
    ):
        self.port, self.login, self.certificate = free_port(), login, certificate
        self.schemas: list[Kept] = []
        self.asked: list[str] = []
        """Paths of all requests so far."""
        self.status = 0
        """Status of every answer; 0: what the registry says."""

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def register(
        self,
        subject: str,
        text: str = "",
        kind: str = "AVRO",
        *,
        serialized: bytes = b"",
        references: Sequence[tuple[str, str, int]] = (),
    ) -> int:
        """The id of a new schema. `references`: name, subject and version of each."""
        version = 1 + sum(one.subject == subject for one in self.schemas)
        named = [dict(zip(("name", "subject", "version"), one, strict=True)) for one in references]
        new_id = 100_001 + len(self.schemas)
        self.schemas.append(Kept(subject, version, new_id, kind, text, serialized, named))
        return new_id

    @contextmanager
    def running(self) -> Iterator["SchemaRegistry"]:
        """Answers requests, on the same port each time."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = registry._answer(self.path, self.headers.get("Authorization"))
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            if self.certificate:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self.certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    def _answer(self, target: str, authorization: str | None) -> tuple[int, dict[str, Any]]:
        self.asked.append(target)
        if self.status:
            return self.status, {"error_code": self.status, "message": "as it was told"}
        if self.login:
            expected = base64.b64encode(":".join(self.login).encode()).decode()
            if authorization != f"Basic {expected}":
                return 401, {"error_code": 401, "message": "Unauthorized"}
        parts = urlsplit(target)
        serialized = parse_qs(parts.query).get("format") == ["serialized"]
        match list(map(unquote, parts.path.split("/")[1:])):
            case ["schemas", "ids", number]:
                for one in self.schemas:
                    if one.id == int(number):
                        return 200, _body(one, serialized)
                return 404, {"error_code": 40403, "message": f"Schema {number} not found"}
            case ["subjects", subject, "versions", number]:
                for one in self.schemas:
                    if (one.subject, one.version) == (subject, int(number)):
                        place = {"subject": one.subject, "version": one.version, "id": one.id}
                        return 200, place | _body(one, False)
                return 404, {"error_code": 40401, "message": f"Subject {subject} not found"}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}


def _body(one: Kept, serialized: bool) -> dict[str, Any]:
    """As Confluent's: the type is named unless it is Avro, references if there are any."""
    text = base64.b64encode(one.serialized).decode() if serialized else one.text
    body: dict[str, Any] = {"schema": text}
    if one.kind != "AVRO":
        body["schemaType"] = one.kind
    if one.references:
        body["references"] = one.references
    return body


def framed(schema_id: int, payload: bytes) -> bytes:
    """A message in Confluent's wire format."""
    return b"\0" + schema_id.to_bytes(4, "big") + payload
