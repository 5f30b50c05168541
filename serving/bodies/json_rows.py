"""The usual JSON of a request, straight to hashed events.

In: the bytes of a body, and the encoder of the model that is to score it. Out: `HashedEvents`, or
None where the body is not plain enough for the kernel in `json_scan.py`; `wire.py` then reads it
value by value. What candidates share is read, and hashed, once.

Shapes: B events, S columns of which only the place of each value is noted.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from niwaki.model.errors import FeatureError
from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.list_values import read_lists
from niwaki.model.features.lists import ListRows
from niwaki.model.features.values import UNITS_PER_S, read_time
from niwaki.serving.bodies.json_scan import (
    CATEGORICAL,
    NOTED,
    NUMERIC,
    TIME,
    UNREAD,
    Names,
    Rows,
    scan,
)


class _Layout:
    """The columns of a schema, as the kernel reads them."""

    def __init__(self, encoder: Encoder):
        schema = encoder.schema
        kinds = {name: (CATEGORICAL, i) for i, name in enumerate(schema.categorical)}
        kinds |= {name: (NUMERIC, i) for i, name in enumerate(schema.numeric)}
        kinds |= {name: (NOTED, i) for i, name in enumerate(schema.lists)}
        self.noted = len(schema.lists)
        """Number of columns of which the places of values are noted: lists, and perhaps the
        time."""
        self.noted_time = False
        """True where times are texts, which are noted; they come after the lists."""
        if schema.timestamp:
            self.noted_time = schema.timestamp_format not in UNITS_PER_S
            kinds[schema.timestamp] = (NOTED if self.noted_time else TIME, self.noted)
            self.noted += self.noted_time
        others = (schema.weight, schema.sampling_ratio, *schema.ignore)
        kinds |= {name: (UNREAD, 0) for name in others if name}
        texts = [name.encode() for name in kinds]
        kinds_X, places_X = np.array(list(kinds.values()), np.int64).T.copy()
        self.names = Names(
            np.frombuffer(b"".join(texts), np.uint8),
            np.cumsum([0, *map(len, texts)]),
            kinds_X,
            places_X,
            encoder.column_seeds,
            UNITS_PER_S.get(schema.timestamp_format, 1.0),
        )


_layout = lru_cache(maxsize=8)(_Layout)


def scan_score(body: bytes, encoder: Encoder, max_events: int) -> HashedEvents | None:
    """The events of `POST /score`; None where `body` is not plain, breaks a rule, or has more than
    `max_events`."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            return None
    schema = encoder.schema
    layout = _layout(encoder)
    room = min(body.count(b"{"), max_events + 2)
    rows = Rows(
        encoder.empty_hashes(room),
        np.empty((room, len(schema.numeric)), np.float32),
        np.empty(room),
        np.empty((room, layout.noted, 2), np.int64),
    )
    if not room:
        return None
    text_T = np.frombuffer(body + b"\0", np.uint8)
    names = layout.names
    count = scan(text_T, *names[:5], names.units_per_s, *rows)
    if not 0 <= count <= max_events:
        return None
    some = slice(1, count + 1)
    times_s_B = rows.times_s_R[some]
    lists: tuple[ListRows, ...] = ()
    if layout.noted:
        try:
            values = [_noted(body, rows.noted_RS2[: count + 1, s]) for s in range(layout.noted)]
            lists = tuple(
                _lists(values[place], count, encoder, place) for place in range(len(schema.lists))
            )
            if layout.noted_time:
                times_s = [read_time(value, schema) for value in values[-1]]
                times_s_B[:] = np.nan_to_num(times_s)
        except (FeatureError, msgspec.DecodeError, UnicodeError, RecursionError):
            return None
    return encoder.encode_hashes(rows.hashes_RF[some], rows.numerics_RN[some], times_s_B, lists)


def _noted(body: bytes, spans_R2: np.ndarray) -> Sequence[Any]:
    """The values of a column in the places `spans_R2`, of which the first is the context: one for
    each event, or only the one that all share."""
    (first, end), *others = spans_R2.tolist()
    if first >= 0:
        return [msgspec.json.decode(body[first:end])]
    return [None if start < 0 else msgspec.json.decode(body[start:stop]) for start, stop in others]


def _lists(values: Sequence[Any], count: int, encoder: Encoder, place: int) -> ListRows:
    """The rows of a list column, `values` of which are hashed once where all events share one."""
    schema = encoder.schema
    rows = encoder.encode_list(read_lists(values, schema.lists[place], schema), place)
    return rows if len(values) == count else rows.repeat(count)
