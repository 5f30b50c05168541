"""The sockets that are listened on, and the HTTP server that runs on one of them: the one home of
uvicorn.

In: an application and its settings. Out: a `uvicorn.Server`, to be run by whoever has a thread or a
process for it.
"""

import math
import socket

import uvicorn

from niwaki.serving.app import ServeConfig, create_app
from niwaki.serving.errors import ServingError
from niwaki.serving.scorer import Serving


def listen(config: ServeConfig) -> socket.socket:
    """A socket that listens at the address of `config`. Raises `ServingError`."""
    try:
        return socket.create_server(
            (config.host, config.port), family=_family(config), backlog=2048
        )
    except OSError as error:
        raise _no_port(config, error) from error


def bind(config: ServeConfig, port: int) -> socket.socket:
    """A socket at the address of `config` and `port`, which other processes may bind to as well and
    which does not listen yet. Of those that listen, the kernel gives each new connection to one.
    Raises `ServingError`."""
    bound = socket.socket(_family(config))
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((config.host, port))
    except OSError as error:
        bound.close()
        raise _no_port(config, error) from error
    return bound


def url_of(listener: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def new_server(scorer: Serving, config: ServeConfig) -> uvicorn.Server:
    """An HTTP server around a model that serves, which is the caller's to start and to close."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(scorer, config),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(config.stop_timeout_s),
        )
    )


def _family(config: ServeConfig) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in config.host else socket.AF_INET


def _no_port(config: ServeConfig, error: OSError) -> ServingError:
    where = f"{config.host}:{config.port}"
    return ServingError(f"serve.port: can't listen on {where} ({error.strerror})")
