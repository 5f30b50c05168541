"""The scoring server, as the command line and tests start it.

In: settings, and the store that is followed or a scorer that follows it. Out: a server that runs
until it is told to stop; requests in flight are answered first.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

import torch

from niwaki.serving.app import ServeConfig
from niwaki.serving.listener import listen, new_server, url_of
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig

log = logging.getLogger("niwaki")


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
            listen(config) as listener,
            Scorer(CheckpointStore(store)) as scorer,
        ):
            scorer.follow()
            log.info("serving %s on %s", scorer.name, url_of(listener))
            new_server(scorer, config).run([listener])
    finally:
        signal.signal(signal.SIGTERM, before)
    log.info("stopped serving")


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
