"""HTTP around a scorer: `/score`, the Open Inference Protocol, health, metrics and OpenAPI.

In: a scorer that follows the store. Out: answers, each by exactly one version. A small body is
decoded and scored between two turns of the event loop, since handing it over would cost more; a
large one on a thread, so that no other request waits behind it, and so is a compressed one, which
may become large. `serving/content.py` reads the headers and unpacks a body, `serving/wire.py` and
`serving/inference.py` check it; this module answers a `RequestError` with its status.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec
import torch
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from niwaki.model.published.served import PublishedModel
from niwaki.pruning.errors import RuleError
from niwaki.serving import content, inference, openapi, wire
from niwaki.serving.errors import NotReady, ServingError
from niwaki.serving.metrics import OUTCOMES, ScoringMetrics
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.serving.wire import Answer, RequestError

log = logging.getLogger("niwaki")


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
    """Threads for long bodies, >= 1; each request takes one core."""
    stop_timeout_s: float = 10.0
    """On SIGTERM, how long requests in flight may take to finish, >= 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise RuleError("port", "must be in 0..65535", self.port)
        for name, least in (
            ("max_body_bytes", 1),
            ("max_events", 1),
            ("threads", 1),
            ("inline_bytes", 0),
        ):
            if getattr(self, name) < least:
                raise RuleError(name, f"must be at least {least}", getattr(self, name))
        for name in ("max_age_s", "stop_timeout_s"):
            if not getattr(self, name) >= 0:
                raise RuleError(name, "must not be negative", getattr(self, name))
        if not self.read_timeout_s > 0:
            raise RuleError("read_timeout_s", "must be greater than 0", self.read_timeout_s)


def run(config: ServeConfig, store: StoreConfig) -> None:
    """Serve the model in `store` until SIGTERM or Ctrl-C; requests in flight are answered first.
    For the main thread.

    Raises `StoreRefused` where Redis refuses, `ServingError` where the port can't be had.
    """
    # A compact network is too small to be split over threads; several requests at once are not.
    torch.set_num_threads(1)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            contextlib.suppress(KeyboardInterrupt),
            _listen(config) as listener,
            Scorer(CheckpointStore(store)) as scorer,
        ):
            scorer.follow()
            log.info("serving %s on %s", scorer.name, _url(listener))
            _uvicorn(scorer, config).run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    log.info("stopped serving")


@contextlib.contextmanager
def running(scorer: Scorer, config: ServeConfig) -> Iterator[str]:
    """Serve from a thread of this process while the context lasts; yields the URL. The scorer is
    the caller's."""
    with _listen(config) as listener:
        server = _uvicorn(scorer, config)
        thread = threading.Thread(
            target=server.run, args=([listener],), name="niwaki-serve", daemon=True
        )
        thread.start()
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def create_app(scorer: Scorer, config: ServeConfig) -> Starlette:
    """The ASGI application around a scorer, which is the caller's to start and to close."""
    endpoints = _Endpoints(scorer, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        endpoints.close()

    app = Starlette(
        routes=[
            Route("/score", endpoints.score, methods=["POST"]),
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

    def __init__(self, scorer: Scorer, config: ServeConfig):
        self._scorer, self._config = scorer, config
        self._metrics = ScoringMetrics(scorer)
        self._pool = ThreadPoolExecutor(config.threads, "niwaki-score")

    def close(self) -> None:
        self._pool.shutdown()

    async def score(self, request: Request) -> Response:
        return await self._answer("score", request, self._score)

    async def infer(self, request: Request) -> Response:
        self._named(request)
        return await self._answer("infer", request, partial(self._infer, request))

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
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, _: Request) -> Response:
        header = self._model().header if self._scorer.version else None
        return _json(openapi.document(self._scorer.name, self._config.max_events, header))

    def _score(self, body: bytes) -> Answer:
        model = self._model()
        batch = wire.read_score(body, model.header.schema, self._config.max_events)
        self._metrics.events.inc(len(batch))
        return wire.score_answer(model.header, model.predict(batch))

    def _infer(self, request: Request, body: bytes) -> Answer:
        model = self._model()
        _check_version(request, model.header.version)
        json_bytes = content.json_bytes(request.headers)
        schema = model.header.schema
        asked = inference.read_infer(body, json_bytes, schema, self._config.max_events)
        self._metrics.events.inc(len(asked.batch))
        probabilities_B = model.predict(asked.batch)
        return inference.infer_answer(model.header, probabilities_B, self._scorer.name, asked)

    async def _answer(
        self, endpoint: str, request: Request, answer: Callable[[bytes], Answer]
    ) -> Response:
        outcome = "failed"
        try:
            content.check_type(request.headers, binary=endpoint == "infer")
            encoding = content.encoding(request.headers)
            body = await self._read(request)
            started_s = time.perf_counter()
            if len(body) <= self._config.inline_bytes and not encoding:
                answered = answer(body)
            else:  # a compressed body may be a long one
                answered = await asyncio.get_running_loop().run_in_executor(
                    self._pool, self._unpacked, answer, body, encoding
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
            self._metrics.requests.labels(endpoint, outcome).inc()
        if answered.json_bytes is None:
            return Response(answered.content, media_type="application/json")
        headers = {inference.JSON_BYTES_HEADER: str(answered.json_bytes)}
        return Response(answered.content, headers=headers, media_type="application/octet-stream")

    def _unpacked(self, answer: Callable[[bytes], Answer], body: bytes, encoding: str) -> Answer:
        if encoding:
            body = content.inflate(body, encoding, self._config.max_body_bytes)
        return answer(body)

    async def _read(self, request: Request) -> bytes:
        limit = self._config.max_body_bytes
        length = request.headers.get("content-length", "0")
        if len(length) > 18 or int(length) > limit:
            raise RequestError(413, "body", f"must be at most {limit} bytes", length[:80])
        body = bytearray()
        try:
            async with asyncio.timeout(self._config.read_timeout_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise RequestError(413, "body", f"must be at most {limit} bytes")
        except TimeoutError as error:
            raise RequestError(
                408, "body", f"must arrive within {self._config.read_timeout_s} s"
            ) from error
        return bytes(body)

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


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise ServingError(
            f"serve.port: can't listen on {config.host}:{config.port} ({error.strerror})"
        ) from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _uvicorn(scorer: Scorer, config: ServeConfig) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            create_app(scorer, config),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=math.ceil(config.stop_timeout_s),
        )
    )
