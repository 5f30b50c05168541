"""The scoring server, as the command line and tests start it.

In: settings, and the store that is followed or a scorer that follows it. Out: a server that runs
until it is told to stop; requests in flight are answered first.
"""

import contextlib
import gc
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import torch

from niwaki.model.published.served import PublishedModel
from niwaki.serving.app import ServeConfig
from niwaki.serving.double_buffer import CompactShelf
from niwaki.serving.errors import ServingError
from niwaki.serving.listener import bind, listen, new_server, url_of
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.serving.workers.link import State
from niwaki.serving.workers.team import Team

log = logging.getLogger("niwaki")

_STATE_EVERY_S = 0.2  # between two looks at the follower and the workers


def run(config: ServeConfig, store: StoreConfig) -> None:
    """Serve the model in `store` until SIGTERM or Ctrl-C; requests in flight are answered first.
    For the main thread.

    Raises `StoreRefused` where Redis refuses, `ServingError` where the port can't be had or workers
    can't be started.
    """
    if config.workers > 1 and not hasattr(os, "memfd_create"):
        raise ServingError("serve.workers: more than one needs Linux")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), listen(config) as listener:
            (_run_workers if config.workers > 1 else _run_alone)(config, store, listener)
    finally:
        signal.signal(signal.SIGTERM, before)
    log.info("stopped serving")


def _run_alone(config: ServeConfig, store: StoreConfig, listener: socket.socket) -> None:
    # A compact network is too small to be split over threads; several requests at once are not.
    torch.set_num_threads(1)
    shelf = CompactShelf() if config.compact_tables else None
    with Scorer(CheckpointStore(store), shelf) as scorer:
        scorer.follow()
        log.info("serving %s on %s", scorer.name, url_of(listener))
        gc.freeze()  # or all that is imported would be searched for cycles now and then
        new_server(scorer, config).run([listener])


def _run_workers(config: ServeConfig, store: StoreConfig, listener: socket.socket) -> None:
    """Follow the store in this process, and score in others. `listener` has shown that the port is
    free; nobody is heard at it before there are workers."""
    port, url = listener.getsockname()[1], url_of(listener)
    listener.close()
    torch.set_num_threads(1)
    with bind(config, port), tempfile.TemporaryDirectory(prefix="niwaki-serve-") as folder:
        team = Team(config, port, store.name, folder)
        with contextlib.closing(team), _Publisher(CheckpointStore(store), team) as scorer:
            scorer.follow()
            team.start()
            log.info("serving %s on %s with %d workers", scorer.name, url, config.workers)
            while True:
                team.check()
                state = State(
                    following=scorer.following,
                    swaps=scorer.swaps,
                    refusals=dict(scorer.refusals),
                )
                team.tell_state(state)
                time.sleep(_STATE_EVERY_S)


class _Publisher(Scorer):
    """A scorer that tells workers of each version."""

    def __init__(self, store: CheckpointStore, team: Team):
        super().__init__(store, team)
        self._team = team

    def swapped(self, model: PublishedModel) -> None:
        self._team.publish(model)


@contextlib.contextmanager
def running(scorer: Scorer, config: ServeConfig) -> Iterator[str]:
    """Serve from a thread of this process while the context lasts; yields the URL. The scorer is
    the caller's."""
    with listen(config) as listener:
        server = new_server(scorer, config)
        thread = threading.Thread(
            target=server.run, args=([listener],), name="niwaki-serve", daemon=True
        )
        thread.start()
        try:
            yield url_of(listener)
        finally:
            server.should_exit = True
            thread.join()
