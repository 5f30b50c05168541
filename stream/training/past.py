"""A recording that a trainer learns before it reads its topic.

In: files, and the progress of an earlier start. Out: batches, cut as those of a topic are, and the
progress after each, which a snapshot holds: a restart in the middle of the recording goes on behind
the last event that the snapshot has. The files are read once before anything is learned, so that
what is wrong with them is told at once.
"""

import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.rejects import Tally
from niwaki.stream.kafka.overlap import Overlap, OverlapState, microseconds, shown_time
from niwaki.stream.recordings.chunks import rebatch
from niwaki.stream.recordings.recording import Recording

log = logging.getLogger("niwaki")

OPTION = "--history"
LOG_EVERY_S = 30.0
"""Seconds from one line of the log about progress to the next."""


class PastState(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The progress of a trainer through a recording, as a snapshot holds it."""

    events: int
    """Events of the recording that have been learned."""
    checksum: int
    """CRC-32 of their times and labels."""
    complete: bool
    """True once the whole recording is learned, and the topic is read."""
    overlap: OverlapState | None
    """None before."""


class Progress:
    """The progress of a trainer through a recording, and the overlap with the topic behind it."""

    def __init__(self, state: PastState | None = None):
        self.events = state.events if state else 0
        self.checksum = state.checksum if state else 0
        self.complete = state.complete if state else False
        self.overlap = Overlap(state.overlap) if state and state.overlap else None
        """None until the recording is complete."""

    def add(self, batch: EventBatch) -> None:
        """Count a batch that is learned now."""
        self.events += len(batch)
        self.checksum = _checksum(batch, self.checksum)

    @property
    def state(self) -> PastState:
        """The state for a snapshot."""
        return PastState(
            events=self.events,
            checksum=self.checksum,
            complete=self.complete,
            overlap=self.overlap.state if self.overlap else None,
        )


class Past:
    """The recording of `train --history`. Its files are not opened before they are needed: a
    restart does without them."""

    def __init__(
        self,
        paths: Sequence[Path],
        schema: Schema,
        events: EventsConfig,
        *,
        log_every_s: float = LOG_EVERY_S,
    ):
        if schema.timestamp is None:
            rule = (
                "needs events with a time, which says where the topic goes on: name its column as"
                " schema.timestamp, or leave the option out and the topic is read from kafka.start"
            )
            raise ConfigError(OPTION, rule)
        self._paths = paths
        self._schema = schema
        self._events = events
        self._log_every_s = log_every_s
        self._told_s = time.monotonic()
        self.events = 0
        """Events that can be learned, once `survey` has read the recording."""
        self._end_us = 0

    @cached_property
    def recording(self) -> Recording:
        """The files. Raises `ConfigError` where there are none."""
        return Recording(self._paths, self._events)

    def check(self) -> None:
        """Raise `ConfigError` where the files are not there."""
        _ = self.recording

    def survey(self, stop: Callable[[], bool]) -> bool:
        """Read the recording once, and log what it holds and what is left out of it; False: stopped
        before the end. Raises `ConfigError` where too much is left out, or nothing is there."""
        name, tally = self.recording.name, Tally()
        log.info("reading %s, which is learned before the topic", name)
        begin_us, end_us, ahead = None, 0, 0
        self.events, now_us = 0, time.time_ns() // 1000
        for chunk in self.recording.read(self._schema):
            if stop():
                return False
            tally.add(len(chunk.batch), chunk.rejects, chunk.odd)
            if not len(chunk.batch):
                continue
            times_us_B = microseconds(chunk.batch)
            first_us, last_us = int(times_us_B.min()), int(times_us_B.max())
            begin_us = first_us if begin_us is None else min(begin_us, first_us)
            end_us = last_us if not self.events else max(end_us, last_us)
            ahead += int((times_us_B > now_us).sum())
            self.events += len(chunk.batch)
        for line in tally.lines():
            log.warning("%s", line)
        tally.check(name, self._events.max_rejected_ratio)
        begin, end = shown_time(begin_us or 0), shown_time(end_us)
        self._end_us = end_us
        log.info("%s holds %s events, from %s to %s", name, f"{self.events:,}", begin, end)
        if ahead:
            log.warning(
                "%s of them are of the future, and the topic's events up to %s will count as"
                " learned: is schema.timestamp_format right?",
                *(f"{ahead:,}", end),
            )
        return True

    def batches(
        self, progress: Progress, batch_events: int, stop: Callable[[], bool]
    ) -> Iterator[EventBatch]:
        """The events that `progress` does not have, in batches, after `survey`. It is that after a
        batch when the batch is handed over, and complete after the last one; `stop` ends all at any
        batch."""
        stopped, overlap = False, Overlap(OverlapState(end_us=self._end_us))

        def chunks() -> Iterator[EventBatch]:
            nonlocal stopped
            for events in self._behind(progress, overlap):
                stopped = stop()
                if stopped:
                    return
                yield events

        for batch in rebatch(chunks(), batch_events):
            if stopped:  # this one may be cut short, which no event has asked for
                return
            progress.add(batch)
            yield batch
            if stop():
                return
        if not stopped:
            progress.complete, progress.overlap = True, overlap

    def tell(self, progress: Progress, evaluation: dict[str, float], *, last: bool = False) -> None:
        """Log the progress, if that is due or this is the `last` call. `evaluation`: the summary of
        a window of predictions, each made just before its event was learned."""
        if last or time.monotonic() - self._told_s >= self._log_every_s:
            self._told_s = time.monotonic()
            log.info(
                "learned %s of %s recorded events; normalized entropy of the last window %.4f",
                f"{progress.events:,}",
                f"{self.events:,}",
                evaluation.get("normalized_entropy", np.nan),
            )

    def _behind(self, progress: Progress, overlap: Overlap) -> Iterator[EventBatch]:
        """The events behind those of an earlier start; `overlap` takes in all. Raises `ConfigError`
        unless the recording begins with those."""
        left, checksum, expected = progress.events, 0, progress.checksum
        for chunk in self.recording.read(self._schema):
            events = chunk.batch
            overlap.record(events)
            known = events.slice(0, min(left, len(events)))
            if len(known):
                left -= len(known)
                checksum = _checksum(known, checksum)
                if not left and checksum != expected:
                    self._refuse(progress)
            yield events.slice(len(known), len(events))
        if left:
            self._refuse(progress)

    def _refuse(self, progress: Progress) -> None:
        rule = (
            f"must begin with the {progress.events:,} events that the snapshot has of a recording:"
            " give that recording again, or move the snapshot away to start anew"
        )
        raise ConfigError(OPTION, rule, shown=self.recording.name)


def _checksum(batch: EventBatch, before: int) -> int:
    """CRC-32 of times and labels, the same however the events are cut into batches."""
    both_B2 = np.stack([batch.times_s_B, batch.labels_B.astype(np.float64)], 1)
    return zlib.crc32(both_B2.tobytes(), before)
