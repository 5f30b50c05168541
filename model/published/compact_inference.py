"""The forward pass of the experts over compact rows.

In: compact tables, and features of some events. Out: what `niwaki.model.linear.kernels` writes for
a plain table, to the bit, and the rows that lists and embeddings read, as small tables of their
own. Nothing is kept between two calls.

Shapes: B events, A events worked on together, F fields, S slots, P pairs, N numerics, M = 2N
scores, K time scales, E logits of an event, V values of lists, X inputs of the deep expert or
decoded rows.
"""

from functools import cache

import numpy as np

from niwaki.model.deep.embeddings import Embedded
from niwaki.model.features.lists import ListSlots
from niwaki.model.jit import kernel, types
from niwaki.model.linear.kernels import Kernel, locate_slots, sum_slots
from niwaki.model.published.compact import COMPACT_ROWS, CompactRows, gather_rows
from niwaki.model.rows import AHEAD_EVENTS

_F2, _I2 = types.float32[:, ::1], types.int64[:, ::1]


@cache
def compiled_compact_contributions(scales: int) -> Kernel:
    """The kernel of `niwaki.model.linear.kernels.compiled_contributions` for compact rows."""
    width = 2 * scales
    tables = types.Tuple((COMPACT_ROWS, _F2))
    events = types.Tuple((_I2, _I2, _F2, _I2, _F2))
    places = types.UniTuple(types.int64, 5)

    @kernel(types.void(tables, events, places, _I2, types.uint64[::1], _F2, types.int64, _F2))
    def write_contributions(
        tables: tuple[CompactRows, np.ndarray],
        events: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        places: tuple[int, int, int, int, int],
        pairs_P2: np.ndarray,
        seeds_P: np.ndarray,
        out_BX: np.ndarray,
        first_column: int,
        experts_BE: np.ndarray,
    ) -> None:
        """Some events at a time are located, decoded and summed. A row that the event before has in
        the same slot, as candidates of one request often have, is decoded once."""
        table, prior_SK = tables
        rows_BF, hashes_BF, scores_BM, code_BN, above_BN = events
        first_pair, first_score, first_code, codes, pair_rows = places
        slots = rows_BF.shape[1] + len(pairs_P2) + scores_BM.shape[1] + 2 * code_BN.shape[1] + 1
        rows_AS = np.empty((AHEAD_EVENTS, slots), np.int64)
        values_AS = np.empty((AHEAD_EVENTS, slots), np.float32)
        rows_X = np.empty(AHEAD_EVENTS * slots, np.int64)
        found_X2K = np.empty((AHEAD_EVENTS * slots, 2, scales), np.float32)
        found_XY = found_X2K.reshape(AHEAD_EVENTS * slots, width)
        for start in range(0, len(rows_BF), AHEAD_EVENTS):
            some = slice(start, min(start + AHEAD_EVENTS, len(rows_BF)))
            count = some.stop - start
            locate_slots(
                rows_BF[some],
                hashes_BF[some],
                scores_BM[some],
                code_BN[some],
                above_BN[some],
                first_pair,
                first_score,
                first_code,
                codes,
                pair_rows,
                pairs_P2,
                seeds_P,
                rows_AS,
                values_AS,
            )
            found = 0
            for s in range(slots):
                before = -1
                for a in range(count):
                    row = rows_AS[a, s]
                    if row != before:
                        rows_X[found] = row
                        found += 1
                    before = row
                    rows_AS[a, s] = found - 1
            gather_rows(table, rows_X[:found], found_XY[:found])
            for a in range(count):
                sum_slots(
                    found_X2K,
                    prior_SK,
                    rows_AS[a],
                    values_AS[a],
                    scales,
                    out_BX[start + a, first_column : first_column + slots],
                    experts_BE[start + a],
                )

    return write_contributions


def found_lists(table: CompactRows, lists: ListSlots) -> tuple[ListSlots, np.ndarray]:
    """The values of lists, and their rows as a table of their own."""
    start, stop = int(lists.offsets[0]), int(lists.offsets[-1])
    found = lists._replace(
        rows_X=np.arange(stop - start),
        values_X=lists.values_X[start:stop],
        slots_X=lists.slots_X[start:stop],
        offsets=lists.offsets - start,
    )
    return found, table.gather(lists.rows_X[start:stop])


def found_embeddings(table: CompactRows, embedded: Embedded) -> tuple[np.ndarray, Embedded]:
    """The rows that events read as a table of their own, and their places in it."""
    parts = [embedded.rows_BF.reshape(-1)]
    spans = [(int(rows.offsets[0]), int(rows.offsets[-1])) for rows in embedded.lists]
    parts += [
        rows.embedded_V[start:stop]
        for rows, (start, stop) in zip(embedded.lists, spans, strict=True)
    ]
    at = len(parts[0])
    places_BF = np.arange(at).reshape(embedded.rows_BF.shape)
    lists = []
    for rows, (start, stop) in zip(embedded.lists, spans, strict=True):
        lists.append(
            rows._replace(
                embedded_V=np.arange(at, at + stop - start),
                shares_V=rows.shares_V[start:stop],
                offsets=rows.offsets - start,
            )
        )
        at += stop - start
    return table.gather(np.concatenate(parts)), Embedded(places_BF, tuple(lists))
