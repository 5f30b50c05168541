"""Recorded streams: one file, several, or a folder of them, in the order of their event time.

In: paths, and a `Schema`, or none, for which one is proposed. Out: `Chunk`s of events, with a
`Reject` for each row that breaks the schema, as a trainer would dead-letter it. Memory does not
grow with the files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import msgspec
import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError, EventError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.envelope import Envelope
from niwaki.stream.events.rejects import Tally
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.files.pieces import Part, Piece, column_names, parts, read_pieces
from niwaki.stream.recordings.chunks import Chunk, in_order_of_time
from niwaki.stream.recordings.proposal import Asked, Proposal, Sample, propose

CHUNK_EVENTS = 65_536
SAMPLE_EVENTS = 20_000
"""Rows from which a schema is proposed."""
_FIRST_ROWS = 1_000
_DEFAULTS = EventsConfig()


class Recording:
    """A recorded stream that can be read any number of times."""

    def __init__(self, paths: str | Path | Sequence[str | Path], config: EventsConfig = _DEFAULTS):
        given = [paths] if isinstance(paths, str | Path) else paths
        self.paths = [Path(path) for path in given]
        self.config = config
        self.parts = parts(self.paths)
        self.name = ", ".join(map(str, self.paths))
        """The paths as a message names them."""
        self.size_bytes = sum(part.size_bytes for part in self.parts)

    def read_with(self, config: EventsConfig) -> "Recording":
        """The same files, read with other settings."""
        other = copy(self)
        other.config = config
        return other

    def sample(self, limit: int = SAMPLE_EVENTS) -> Sample:
        """The first rows as they are."""
        pieces = list(self._first_pieces(limit))
        rejects = [piece.placed(reject) for piece in pieces for reject in piece.rejects]
        if rejects and not sum(len(piece.rows) for piece in pieces):
            tally = Tally()
            tally.add(0, rejects)
            tally.check(self.name, self.config.max_rejected_ratio)
        sample = Sample.of_pieces(pieces)
        if not sample.rows:
            raise ConfigError(self.name, "has no events")
        return sample

    def _first_pieces(self, limit: int) -> Iterator[Piece]:
        left = limit
        for part in self.parts:
            for piece in read_pieces(part, self.config, limit=left, chunk_rows=limit):
                left -= len(piece.rows)
                yield piece
                if left <= 0:
                    return

    def propose(self, asked: Asked, limit: int = SAMPLE_EVENTS) -> Proposal:
        """The schema that the first rows suggest. Raises `ConfigError` where they suggest none."""
        return propose(self.sample(limit), asked)

    def read(
        self,
        schema: Schema,
        *,
        chunk_events: int = CHUNK_EVENTS,
        limit_events: int | None = None,
        on_bytes: Callable[[int], object] | None = None,
    ) -> Iterator[Chunk]:
        """The events, and what was left out, at most `chunk_events` of both at a time;
        `limit_events` in all. `on_bytes` is called with the number of further bytes read.

        Columns that the schema does not name are not read. Raises `ConfigError` if a file can't be
        read or lacks a column of the schema; of JSON, in which null may be left out, only if it
        lacks one that each event must have, or has a column of a similar name instead.
        """

        def chunks(reader: _PartReader) -> Iterator[Chunk]:
            return reader.chunks(chunk_events, on_bytes)

        begins = self._begins(schema)
        if len(begins) == 1 or schema.timestamp is None:
            read: Iterator[Chunk] = chain.from_iterable(chunks(reader) for _, reader in begins)
        else:
            read = in_order_of_time(begins, chunks)
        limited = _limited(read, limit_events)
        # The first chunk is read now, so that a fault of a file is reported at once.
        return chain(list(islice(limited, 1)), limited)

    def _begins(self, schema: Schema) -> list[tuple[float, "_PartReader"]]:
        """A reader of each part, with the event time at which it begins, seconds; in that order.
        Where there is one part, or no time, the parts keep their order."""
        readers = [_PartReader(part, schema, self.config) for part in self.parts]
        if len(readers) == 1 or schema.timestamp is None:
            return [(0.0, reader) for reader in readers]
        begins = [(reader.begin_s(), reader) for reader in readers]
        return sorted(begins, key=lambda begin: begin[0])

    def pieces(
        self, schema: Schema, *, chunk_events: int = CHUNK_EVENTS, limit: int | None = None
    ) -> Iterator[Piece]:
        """The rows as they are, to be passed on: the columns of the schema, file by file, in the
        order in which the files begin."""
        left = limit
        for _, reader in self._begins(schema):
            for piece in reader.pieces(chunk_events, left, None):
                yield piece
                if left is not None:
                    left -= len(piece.rows)
            if left == 0:
                return


def read_recording(
    paths: str | Path | Sequence[str | Path],
    schema: Schema,
    *,
    chunk_events: int = CHUNK_EVENTS,
    limit_events: int | None = None,
) -> Iterator[Chunk]:
    """The events of a recording; see `Recording.read`."""
    recording = Recording(paths)
    return recording.read(schema, chunk_events=chunk_events, limit_events=limit_events)


def propose_schema(paths: str | Path | Sequence[str | Path]) -> Schema:
    """The schema that a recording's first rows suggest; see `Recording.propose`."""
    return Recording(paths).propose(Asked()).schema


def _limited(chunks: Iterable[Chunk], limit_events: int | None) -> Iterator[Chunk]:
    left = limit_events
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        taken = min(len(chunk.batch), left)
        left -= taken + sum(reject.events for reject in chunk.rejects)
        yield chunk._replace(batch=chunk.batch.slice(0, taken))
        if left <= 0:
            return


class _PartReader:
    """Reads one file of a recording."""

    def __init__(self, part: Part, schema: Schema, config: EventsConfig):
        self._part = part
        self._schema = schema
        self._config = config
        self._envelope = Envelope(config.envelope) if config.envelope else None
        lenient = msgspec.structs.replace(config, unknown_columns="ignore")
        self._decoder = EventDecoder(schema, lenient)

    def pieces(
        self, chunk_rows: int, limit: int | None, on_bytes: Callable[[int], object] | None
    ) -> Iterator[Piece]:
        """Raw rows with the columns that the schema reads."""
        return read_pieces(
            self._part,
            self._config,
            columns=self._columns,
            limit=limit,
            chunk_rows=chunk_rows,
            on_bytes=on_bytes,
        )

    def begin_s(self) -> float:
        """Event time of the first event, seconds; infinite without one."""
        chunks = self.chunks(_FIRST_ROWS, None)
        times_s = (float(chunk.batch.times_s_B[0]) for chunk in chunks if len(chunk.batch))
        return next(times_s, np.inf)

    def chunks(self, chunk_rows: int, on_bytes: Callable[[int], object] | None) -> Iterator[Chunk]:
        """Events, and what was left out."""
        for piece in self.pieces(chunk_rows, None, on_bytes):
            try:
                chunk = self._decode(piece)
            except EventError as error:  # a whole column is of the wrong type
                raise ConfigError(str(piece.path), str(error)) from error
            rejects = [*map(piece.placed, piece.rejects), *chunk.rejects]
            if len(chunk.batch) or rejects:
                yield chunk._replace(rejects=rejects)

    def _decode(self, piece: Piece) -> Chunk:
        if isinstance(piece.rows, list):
            decoded = self._decoder.decode(piece.rows)
            rejects, odd, batch = decoded.rejects, decoded.odd, decoded.batch
        else:
            table = piece.rows if self._envelope is None else self._envelope.table_of(piece.rows)
            batch, rejects, odd = table_to_batch(
                table, self._schema, unknown_columns="ignore", decimal=self._config.decimal
            )
        return Chunk(batch, list(map(piece.located, rejects)), odd)

    @cached_property
    def _columns(self) -> list[str] | None:
        """The columns of the file that the schema reads, of those that have names; None: all."""
        names = column_names(self._part, self._config)
        if names is None:
            self._check_keys()
            return None
        if self._envelope is not None:
            return [self._config.envelope.split(".")[0]]
        where = str(self._part.path)
        return list(dict.fromkeys(_column_of(one, names, where) for one in self._schema.columns))

    def _check_keys(self) -> None:
        """Raise `ConfigError` for JSON that lacks a column that each event must have, or that has a
        key of a similar name in the place of another column: null may be left out."""
        schema = self._schema
        pieces = read_pieces(self._part, self._config, limit=_FIRST_ROWS, chunk_rows=_FIRST_ROWS)
        sample = Sample.of_pieces(islice(pieces, 1))
        if self._config.envelope:
            sample = sample.within(self._config.envelope)
        read = schema.columns
        maps = {f"{name}.": name for name in schema.lists}  # a sample has their keys as paths
        heads = (maps.get(next(filter(one.startswith, maps), "")) or one for one in sample.columns)
        names = list(dict.fromkeys(heads))
        others = [name for name in names if name not in (*read, *schema.ignore)]
        must = {schema.timestamp, schema.weight, schema.sampling_ratio}
        if schema.missing_label == "reject":
            must.add(schema.label)
        for name in read:
            absent = name not in names and names
            if absent and (name in must or nearest(name, others, cutoff=0.6)):
                _column_of(name, names, str(self._part.path))


def _column_of(wanted: str, names: Sequence[str], where: str) -> str:
    """The column of a file that holds the column `wanted`, or the object that `wanted` is a path
    into. Raises `ConfigError` if there is none."""
    if wanted in names:
        return wanted
    steps = wanted.split(".")
    for end in range(len(steps) - 1, 0, -1):
        if ".".join(steps[:end]) in names:
            return ".".join(steps[:end])
    meant = nearest(wanted, [name for name in names if name], cutoff=0) or "none"
    rule = f"has no column {wanted!r}, which the schema names; the nearest is {meant!r}"
    raise ConfigError(where, rule)
