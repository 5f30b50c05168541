"""A scorer of events by the newest checkpoint, for any process.

In: rows or an `EventBatch`. Out: click probabilities. A thread follows the store; it verifies and
tries out each checkpoint before it swaps one reference, between two requests. It fetches one
delta as a rule, every delta that it missed, or, at the start, the last full checkpoint and its
deltas. A checkpoint that can't be trusted, or isn't newer, is refused, and the one being served
stays. Scoring itself takes no lock and never waits for Redis.
"""

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np

from niwaki.model.errors import CheckpointError
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.schema import EventBatch
from niwaki.model.published.checkpoint import unpack
from niwaki.model.published.checks import check_finite
from niwaki.model.published.served import PublishedModel
from niwaki.serving.double_buffer import Checkpoint, CompactShelf, DoubleBuffer, Shelf
from niwaki.serving.errors import NotReady, ServingError, StoreRefused, StoreUnavailable
from niwaki.serving.store import CheckpointStore, Pointer, Watch

log = logging.getLogger("niwaki")

_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 5.0
_STOP_WITHIN_S = 0.2
REFUSALS = ("order", "missing", "bytes", "content", "prediction")
"""Kinds of refused checkpoints. order: not newer than the one that serves, or no change of it.
missing: the store has lost some of its bytes. bytes: damaged, or not readable. content: its header
or tensors are not those of a model. prediction: not possible, or not finite."""


class _Refusal(Exception):
    """A checkpoint is not taken over."""

    def __init__(self, kind: str, error: Exception):
        self.kind = kind
        text = str(error) if isinstance(error, CheckpointError) else repr(error)
        super().__init__(" ".join(text.split()))


@contextmanager
def _refusing(kind: str) -> Iterator[None]:
    """Whatever goes wrong inside is a refusal of that kind, but for a store that can't answer. No
    list of exceptions would do: a checkpoint may be wrong in ways that nobody has thought of, and
    the thread that follows must not end."""
    try:
        yield
    except ServingError:
        raise
    except Exception as error:
        raise _Refusal(kind, error) from error


class Serving(ABC):
    """Something that has the newest model of a name, as the HTTP server reads it."""

    name: str
    swaps = 0
    """Checkpoints taken over."""
    refusals: Mapping[str, int]
    """By kind, one of `REFUSALS`, checkpoints not taken over."""

    @property
    def refused(self) -> int:
        """Checkpoints not taken over."""
        return sum(self.refusals.values())

    @property
    @abstractmethod
    def newest(self) -> PublishedModel | None:
        """The model that serves now; None before the first checkpoint."""

    @property
    @abstractmethod
    def following(self) -> bool:
        """True while newer checkpoints are looked for."""

    @property
    def model(self) -> PublishedModel:
        """The model that serves now. Raises `NotReady` before the first checkpoint."""
        model = self.newest
        if model is None:
            raise NotReady(f"no checkpoint of {self.name!r} yet")
        return model

    @property
    def version(self) -> int:
        """Version of the checkpoint that serves now; 0 before the first."""
        model = self.newest
        return model.header.version if model else 0

    @property
    def age_s(self) -> float:
        """Seconds since the trainer made the checkpoint that serves now; infinite before the
        first."""
        model = self.newest
        return max(time.time() - model.header.created_s, 0.0) if model else math.inf


class Scorer(Serving):
    """Follows one model's published checkpoints from `follow` to `close`, scores with the newest.
    Threads may share it.

        with Scorer.from_redis("redis://127.0.0.1:6379/0") as scorer:
            probabilities = scorer.score([{"user": "u1", "item": 12, "price": 9.5}])

    For several calls that must be answered by one version, take `model` once and use that.
    """

    def __init__(self, store: CheckpointStore, shelf: Shelf | None = None):
        """`shelf`: where tables are kept; None: in the memory of this process."""
        self.store, self.name = store, store.name
        self.refusals: dict[str, int] = dict.fromkeys(REFUSALS, 0)
        self._versions = DoubleBuffer(shelf)
        self._held = ""
        """`upload` of the checkpoint that serves."""
        self._seen: Pointer | None = None
        self._trouble = "nothing is published"
        self._refreshing = threading.Lock()
        self._swapped = threading.Condition()
        self._stop = threading.Event()
        self._follower: threading.Thread | None = None

    @classmethod
    def from_redis(cls, url: str, name: str = "niwaki", compact_tables: bool = False) -> Self:
        """A scorer that follows the model `name` published at `url`. `compact_tables`: see
        `serve.compact_tables` in the configuration.

        Has its first checkpoint when it returns, if there is one. Where Redis can't be reached it
        goes on trying (see `wait`); where Redis refuses, raises `StoreRefused`.
        """
        shelf = CompactShelf() if compact_tables else None
        return cls(CheckpointStore.from_url(url, name), shelf).follow()

    @property
    def newest(self) -> PublishedModel | None:
        return self._versions.model

    @property
    def model(self) -> PublishedModel:
        """The model that serves now. Raises `NotReady` before the first checkpoint."""
        model = self._versions.model
        if model is None:
            raise NotReady(f"no checkpoint of {self.name!r} yet: {self._trouble}")
        return model

    @property
    def following(self) -> bool:
        return self._follower is not None and self._follower.is_alive()

    def score(self, events: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """(B,) float32 click probabilities of B rows, column name -> value. Label and timestamp are
        optional.

        Raises `FeatureError` for a row that the schema doesn't allow, `NotReady` before the first
        checkpoint.
        """
        model = self.model
        return model.predict(rows_to_batch(events, model.header.schema))

    def score_batch(self, batch: EventBatch) -> np.ndarray:
        """(B,) float32 click probabilities; labels are not read."""
        return self.model.predict(batch)

    def refresh(self) -> bool:
        """Look at the store now. True: a newer checkpoint serves from here on.

        Raises `StoreUnavailable`, `StoreRefused`.
        """
        with self._refreshing:
            pointer = self.store.head()
            while pointer is not None and pointer != self._seen:
                try:
                    path = self._fetch(pointer)
                    if path:
                        self._swap(self._try_out(path), path, pointer)
                        return True
                except _Refusal as refusal:
                    self._seen = pointer
                    self.refusals[refusal.kind] += 1
                    log.warning(
                        "refused version %d, version %d serves on: %s",
                        pointer.version,
                        self.version,
                        refusal,
                    )
                    return False
                # The store dropped it before it was fetched: there is a newer one.
                before, pointer = pointer, self.store.head()
                if pointer == before:
                    raise StoreRefused(
                        f"{self.store.address}: what version {pointer.version} changes is not kept"
                    )
            return False

    def wait(self, version: int = 1, timeout_s: float | None = None) -> bool:
        """Wait until `version` or a newer one serves; False after `timeout_s` without."""
        with self._swapped:
            return self._swapped.wait_for(lambda: self.version >= version, timeout_s)

    def follow(self) -> Self:
        """Start to follow the store, from another thread."""
        try:
            self.refresh()
        except StoreUnavailable as error:
            self._report(error)
        self._follower = threading.Thread(
            target=self._follow, name=f"niwaki-follow-{self.name}", daemon=True
        )
        self._follower.start()
        return self

    def close(self) -> None:
        """Stop following. The model that serves can still score."""
        self._stop.set()
        if self._follower is not None:
            self._follower.join()
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(self, pointer: Pointer) -> list[Checkpoint]:
        """The checkpoints from the model that serves to `pointer`; empty where one of them is no
        longer kept."""
        with _refusing("order"):
            self._check_newer(pointer)
        path = []
        for part in self.store.path(pointer, self._held):
            with _refusing("missing"):
                data = self.store.fetch(part)
            if data is None:
                return []
            with _refusing("bytes"):
                header, tensors = unpack(data)
            with _refusing("content"):
                if header.version != part.version:
                    rule = f"must be {part.version}"
                    raise CheckpointError("header.version", rule, header.version)
                check_finite(tensors)
            path.append((header, tensors))
        return path

    def _check_newer(self, pointer: Pointer) -> None:
        if pointer.version <= self.version:
            if not self._begins_anew(pointer):
                raise CheckpointError("version", "must be newer; has Redis lost its last writes?")
            log.warning(
                "the store was emptied: going back from version %d to %d",
                self.version,
                pointer.version,
            )
        if pointer.kind not in ("full", "delta"):
            raise CheckpointError("kind", "must be full or delta", pointer.kind)

    def _begins_anew(self, pointer: Pointer) -> bool:
        """True if a trainer that had to begin again, because the store was emptied, made `pointer`
        after the model that serves. `pointer` is of a version that is not greater. While the store
        holds the model that serves, a scorer takes no lesser version."""
        kept = {other.upload for other in self.store.versions()}
        return pointer.created_s > self.model.header.created_s and self._held not in kept

    def _try_out(self, path: list[Checkpoint]) -> PublishedModel:
        """The model after `path`, which has predicted once; so the first request finds it warm,
        too."""
        with _refusing("content"):
            model = self._versions.make(path)
        with _refusing("prediction"):
            probabilities_B = model.predict(rows_to_batch([{}, {}], model.header.schema))
            if not np.isfinite(probabilities_B).all():
                raise CheckpointError("predictions", "must be finite")
        return model

    def _swap(self, model: PublishedModel, path: list[Checkpoint], pointer: Pointer) -> None:
        now, shape = (
            model.header,
            self._versions.model.header.shape if self._versions.model else None,
        )
        with self._swapped:
            self._versions.adopt(model, path)
            self._seen, self._held = pointer, pointer.upload
            self.swaps += 1
            try:
                self.swapped(model)
            finally:
                self._swapped.notify_all()
        if now.shape != shape:  # another network, not only newer weights
            log.info(
                "serving version %d: %s, %.1f %% pruned",
                now.version,
                now.phase,
                100 * now.sparsity_ratio,
            )

    def swapped(self, model: PublishedModel) -> None:
        """Called, by the thread that swaps, with the model that serves from here on."""

    def _follow(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._stop.is_set():
            try:
                self.refresh()  # where subscribing is not possible, this is what is left: polling
                with self.store.watch() as watch:
                    self.refresh()  # published while we subscribed
                    self._report(None)
                    retry_s = _FIRST_RETRY_S
                    self._follow_told(watch)
            # The thread must not end whatever happens: nobody would serve a newer version again.
            except Exception as error:
                self._report(error)
                self._stop.wait(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)

    def _follow_told(self, watch: Watch) -> None:
        polled_s = time.monotonic()
        while not self._stop.is_set():
            told = watch.wait(min(_STOP_WITHIN_S, self.store.config.poll_interval_s))
            if told or time.monotonic() - polled_s >= self.store.config.poll_interval_s:
                self.refresh()
                polled_s = time.monotonic()

    def _report(self, trouble: Exception | None) -> None:
        """Log a trouble once, and once that it is over."""
        expected = trouble is None or isinstance(trouble, ServingError)
        text = str(trouble) if expected else repr(trouble)
        text = text if trouble else "nothing is published"
        if text != self._trouble:
            if trouble:
                log.warning("not following, trying again: %s", text)
            else:
                log.info("following %s again", self.store.address)
        self._trouble = text
