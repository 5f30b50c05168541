"""The HTTP application around a model that serves: `/score`, the Open Inference Protocol, health,
metrics and OpenAPI.

In: something that has the newest model (`Serving`), such as a scorer that follows the store. Out:
answers, each by exactly one version. A small body is decoded and scored between two turns of the
event loop, since handing it over would cost more; a large one on a thread, so that no other request
waits behind it, and so is a compressed one, which may become large. `serving/bodies` reads headers
and bodies; this module answers a `RequestError` with its status.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from niwaki.model.published.served import PublishedModel
from niwaki.pruning.errors import RuleError
from niwaki.serving import openapi
from niwaki.serving.bodies import content, inference, wire
from niwaki.serving.bodies.arrow_rows import ARROW, arrow_answer, hash_arrow
from niwaki.serving.bodies.wire import Answer, RequestError
from niwaki.serving.errors import NotReady
from niwaki.serving.metrics import OUTCOMES, ScoringMetrics
from niwaki.serving.scorer import Serving


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server (the `[serve]` section)."""

    host: str = "127.0.0.1"
    """Address that is listened on; 0.0.0.0 for every interface."""
    port: int = 8080
    """Port, 0..65535; 0 takes a free one."""
    max_body_bytes: int = 4_194_304
    """Longest body of a request, inflated where it is compressed, >= 1; a longer one is answered
    with 413."""
    max_events: int = 4_096
    """Most events or candidates in one request, >= 1; more are answered with 413."""
    max_age_s: float = 0.0
    """Once the checkpoint that serves is older, `/v2/health/ready` fails, while scoring goes on. 0:
    any age will do."""
    read_timeout_s: float = 10.0
    """Longest wait for a request's body, > 0; then 408."""
    inline_bytes: int = 32_768
    """Bodies up to this length are scored on the event loop, longer ones on a thread, >= 0."""
    threads: int = 2
    """Threads for long bodies, >= 1, in each worker; each request takes one core."""
    workers: int = 1
    """Processes that score, >= 1, with one copy of the tables. 1: the process that follows Redis
    scores; more: it only follows, and is a further one. Linux only."""
    compact_tables: bool = False
    """True: only the rows of tables that are there are in memory, coded as in checkpoints. They
    take a hundredth of the memory, and scoring takes one and a half times to twice as long. For one
    worker."""
    stop_timeout_s: float = 10.0
    """On SIGTERM, how long requests in flight may take to finish, >= 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise RuleError("port", "must be in 0..65535", self.port)
        for name, least in (
            ("max_body_bytes", 1),
            ("max_events", 1),
            ("threads", 1),
            ("workers", 1),
            ("inline_bytes", 0),
        ):
            if getattr(self, name) < least:
                raise RuleError(name, f"must be at least {least}", getattr(self, name))
        for name in ("max_age_s", "stop_timeout_s"):
            if not getattr(self, name) >= 0:
                raise RuleError(name, "must not be negative", getattr(self, name))
        if self.compact_tables and self.workers > 1:
            raise RuleError("compact_tables", "needs workers = 1", self.compact_tables)
        if not self.read_timeout_s > 0:
            raise RuleError("read_timeout_s", "must be greater than 0", self.read_timeout_s)


def create_app(scorer: Serving, config: ServeConfig) -> Starlette:
    """The ASGI application around a scorer, which is the caller's to start and to close."""
    endpoints = _Endpoints(scorer, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        endpoints.close()

    app = Starlette(
        routes=[
            Route("/score", endpoints.post_score, methods=["POST"]),
            Route("/v2", endpoints.server, methods=["GET"]),
            Route("/v2/health/live", endpoints.live, methods=["GET"]),
            Route("/v2/health/ready", endpoints.ready, methods=["GET"]),
            *(
                route
                for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
                for route in (
                    Route(model, endpoints.model, methods=["GET"]),
                    Route(f"{model}/ready", endpoints.ready, methods=["GET"]),
                    Route(f"{model}/infer", endpoints.infer, methods=["POST"]),
                )
            ),
            Route("/metrics", endpoints.metrics, methods=["GET"]),
            Route("/openapi.json", endpoints.openapi, methods=["GET"]),
        ],
        lifespan=lifespan,
        middleware=[Middleware(_DirectScore, endpoints=endpoints)],
        exception_handlers={
            RequestError: _refused,
            HTTPException: _not_routed,
            ClientDisconnect: _gone,
            500: _failed,
        },
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """One method a route."""

    def __init__(self, scorer: Serving, config: ServeConfig):
        self._scorer, self._config = scorer, config
        self._metrics = ScoringMetrics(scorer)
        self._pool = ThreadPoolExecutor(config.threads, "niwaki-score")

    def close(self) -> None:
        self._pool.shutdown()

    async def post_score(self, request: Request) -> Response:
        return await self._answer("score", request, self._score, ARROW)

    async def infer(self, request: Request) -> Response:
        self._named(request)
        return await self._answer("infer", request, self._infer, content.BINARY)

    async def server(self, _: Request) -> Response:
        return _json({"name": "niwaki", "version": "2", "extensions": inference.EXTENSIONS})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        self._named(request)
        scorer, limit_s = self._scorer, self._config.max_age_s
        if scorer.version:
            _check_version(request, scorer.version)
        if not scorer.version:
            reason = "nothing has been published yet"
        elif limit_s and scorer.age_s > limit_s:
            reason = (
                f"the checkpoint is {scorer.age_s:.0f} s old, at most {limit_s:.0f} s are allowed"
            )
        elif not scorer.following:
            reason = "newer checkpoints are no longer looked for"
        else:
            return _json({"ready": True, "version": scorer.version, "age_s": scorer.age_s})
        return _json({"ready": False, "reason": reason, "version": scorer.version}, 503)

    async def model(self, request: Request) -> Response:
        self._named(request)
        header = self._model().header
        _check_version(request, header.version)
        return _json(inference.model_metadata(header, self._scorer.name))

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=self._metrics.TYPE)

    async def openapi(self, _: Request) -> Response:
        header = self._model().header if self._scorer.version else None
        return _json(openapi.document(self._scorer.name, self._config.max_events, header))

    def _score(self, request: Request, kind: str, body: bytes) -> Answer:
        model = self._model()
        read = hash_arrow if kind == ARROW else wire.hash_score
        hashed = read(body, model.encoder, self._config.max_events)
        probabilities_B = model.predict_hashed(hashed)
        self._metrics.events.inc(len(probabilities_B))
        if ARROW in request.headers.get("accept", ""):
            return arrow_answer(model.header.version, probabilities_B)
        return wire.score_answer(model.header, probabilities_B)

    def _infer(self, request: Request, kind: str, body: bytes) -> Answer:
        model = self._model()
        _check_version(request, model.header.version)
        json_bytes = content.json_bytes(request.headers)
        schema = model.header.schema
        asked = inference.read_infer(body, json_bytes, schema, self._config.max_events)
        self._metrics.events.inc(len(asked.batch))
        probabilities_B = model.predict(asked.batch)
        return inference.infer_answer(model.header, probabilities_B, self._scorer.name, asked)

    async def _answer(
        self,
        endpoint: str,
        request: Request,
        answer: Callable[[Request, str, bytes], Answer],
        *types: str,
    ) -> Response:
        """`answer` to a body, which may be JSON or one of other `types`."""
        outcome = "failed"
        try:
            kind = content.read_type(request.headers, *types)
            encoding = content.encoding(request.headers)
            body = await self._read(request)
            started_s = time.perf_counter()
            if len(body) <= self._config.inline_bytes and not encoding:
                answered = answer(request, kind, body)
            else:  # a compressed body may be a long one
                answered = await asyncio.get_running_loop().run_in_executor(
                    self._pool, self._unpacked, partial(answer, request, kind), body, encoding
                )
            self._metrics.seconds.observe(time.perf_counter() - started_s)
            outcome = "scored"
        except RequestError as refusal:
            outcome = OUTCOMES.get(refusal.status, "refused")
            raise
        except ClientDisconnect:
            outcome = "gone"
            raise
        finally:
            self._metrics.requests[endpoint, outcome].inc()
        if answered.json_bytes is None:
            return Response(answered.content, media_type=answered.type)
        headers = {inference.JSON_BYTES_HEADER: str(answered.json_bytes)}
        return Response(answered.content, headers=headers, media_type=content.BINARY)

    def _unpacked(self, answer: Callable[[bytes], Answer], body: bytes, encoding: str) -> Answer:
        if encoding:
            body = content.inflate(body, encoding, self._config.max_body_bytes)
        return answer(body)

    async def _read(self, request: Request) -> bytes:
        limit = self._config.max_body_bytes
        length = request.headers.get("content-length", "0")
        if len(length) > 18 or int(length) > limit:
            raise RequestError(413, "body", f"must be at most {limit} bytes", length[:80])
        chunks: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(self._config.read_timeout_s):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    chunks.append(message.get("body", b""))
                    more = message.get("more_body", False)
                    size += len(chunks[-1])
                    if size > limit:
                        raise RequestError(413, "body", f"must be at most {limit} bytes")
        except TimeoutError as error:
            raise RequestError(
                408, "body", f"must arrive within {self._config.read_timeout_s} s"
            ) from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _model(self) -> PublishedModel:
        try:
            return self._scorer.model
        except NotReady as error:
            raise RequestError(
                503, "model", "must be published first", self._scorer.name
            ) from error

    def _named(self, request: Request) -> None:
        name = request.path_params.get("name", self._scorer.name)
        if name != self._scorer.name:
            raise RequestError(404, "name", f"must be {self._scorer.name}", name[:80])


class _DirectScore:
    """The way of `POST /score` past routes and error handlers, which take longer than to score some
    candidates. Everything else goes on to `app`."""

    def __init__(self, app: ASGIApp, endpoints: _Endpoints):
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/score" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await self._endpoints.post_score(request)
        except RequestError as refusal:
            response = _refusal(request, refusal)
        except ClientDisconnect:
            return  # nobody reads an answer
        await response(scope, receive, send)


def _check_version(request: Request, present: int) -> None:
    """Raise `RequestError` where the path names another version than the one that serves."""
    version = request.path_params.get("version", str(present))
    if version != str(present):
        raise RequestError(404, "version", f"must be {present}, which serves now", version[:80])


def _json(answer: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def _refusal(request: Request, refusal: RequestError) -> Response:
    answer = wire.refusal_answer(refusal, protocol=request.url.path.startswith("/v2"))
    # After these statuses the rest of the body is not wanted.
    headers = {"connection": "close"} if refusal.status in (408, 413) else {}
    if refusal.status == 415 and refusal.field == "content-encoding":
        headers["accept-encoding"] = ", ".join(content.ENCODINGS)
    return Response(answer, refusal.status, headers, "application/json")


# Starlette calls each of these for one kind of error, and types all of them with `Exception`.
def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _refusal(request, error)


def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    field, value = "path", request.url.path
    if error.status_code == 405:
        field, value = "method", request.method
    refusal = RequestError(error.status_code, field, "must be one in /openapi.json", value[:80])
    response = _refusal(request, refusal)
    response.headers.update(error.headers or {})
    return response


def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


def _failed(request: Request, _: Exception) -> Response:
    return _refusal(request, RequestError(500, "server", "failed; its log says why"))
