"""Click rates made in the stream, for each value of a column or combination of columns.

In: events in the order of the stream. Out: for each event the smoothed click rate of its key, and
the evidence for it, strictly from the past: events of one time do not see each other. Counts fade
with the time of events; where that begins anew more than 30 days earlier, rows go on from there.
The rate is drawn to that of the whole stream, which is counted in the same way, by a number of
events as evidence (a beta prior), and is given in log odds, as logits are.

Shapes: B events, R rows of W numbers, P places of the index.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.features.event_clock import BEHIND_S
from niwaki.model.features.memory.keyed import (
    FIRST,
    ORDER,
    TIME,
    WRITTEN,
    KeyedRows,
    Order,
    Written,
    claim,
    find,
)
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.jit import inlined, kernel, types

COLUMNS = 2
"""Numbers for each event: the rate in log odds, and log1p of the events that it was counted of."""
_I1, _I2 = types.int64[::1], types.int64[:, ::1]
_F1, _F2, _D1 = types.float32[::1], types.float32[:, ::1], types.float64[::1]
_EVENTS, _CLICKS, _WAITING_EVENTS, _WAITING_CLICKS = FIRST, FIRST + 1, FIRST + 2, FIRST + 3
"""Places in a row, float64: sums of earlier times as of the row's time, and of that time itself."""
_WHOLE = 1
"""Key of the whole stream."""


class Rates:
    """The rates of one combination of columns."""

    def __init__(self, name: str, half_life_s: float, evidence_events: float, max_keys: int):
        """`half_life_s`: of counts, seconds, > 0. `evidence_events`: events as evidence for the
        rate of the whole stream, > 0. `max_keys`: keys that are counted at once."""
        self._constants = math.log(2) / half_life_s, evidence_events
        self.keyed = KeyedRows(name, max_keys + 1, FIRST + 4)

    def read(
        self,
        keys_B: np.ndarray,
        times_s_B: np.ndarray,
        tables: Mapping[str, torch.Tensor] | None = None,
    ) -> np.ndarray:
        """(B, 2) float32: rate and evidence, NaN for a missing key; nothing is counted. `keys_B`:
        int64, 0 = missing. `times_s_B`: 0 = at the latest time that is known. `tables`: those to
        read; None: this object's own."""
        out_B2 = np.empty((len(keys_B), COLUMNS), np.float32)
        _read(*self.keyed.arrays(tables), keys_B, times_s_B, *self._constants, out_B2)
        return out_B2

    def learn(
        self, keys_B: np.ndarray, times_s_B: np.ndarray, outcomes: Outcomes
    ) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
        """As `read`, event by event, and each event is counted after it was read; also the rows of
        each table that have changed. How a stream is cut into batches makes no difference."""
        keyed = self.keyed
        out_B2 = np.empty((len(keys_B), COLUMNS), np.float32)
        log = keyed.log(2 * len(keys_B))
        state = *keyed.arrays(), keyed.order, keyed.used
        events = keys_B, times_s_B, outcomes.labels_B, np.ascontiguousarray(outcomes.importance_B)
        _learn(*state, *events, *self._constants, out_B2, log)
        return out_B2, keyed.changed(log)


@inlined
def _counts(
    rows_RW: np.ndarray, index_P: np.ndarray, key: int, time_s: float, decay: float
) -> tuple[float, float]:
    """Events and clicks of a key that an event at a time sees."""
    row = find(rows_RW, index_P, key)
    events = clicks = 0.0
    if row != 0:
        sums = rows_RW[row].view(np.float64)
        events, clicks = sums[_EVENTS], sums[_CLICKS]
        if time_s == 0 or time_s > sums[TIME] or time_s < sums[TIME] - BEHIND_S:
            events += sums[_WAITING_EVENTS]
            clicks += sums[_WAITING_CLICKS]
            if time_s > sums[TIME]:
                fade = math.exp(-decay * (time_s - sums[TIME]))
                events *= fade
                clicks *= fade
    return events, clicks


@inlined
def _write(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    key: int,
    time_s: float,
    decay: float,
    evidence: float,
    out_2: np.ndarray,
) -> None:
    """Write what an event at a time sees."""
    out_2[:] = np.nan
    if key != 0:
        all_events, all_clicks = _counts(rows_RW, index_P, _WHOLE, time_s, decay)
        prior = (all_clicks + 0.5) / (all_events + 1)
        events, clicks = _counts(rows_RW, index_P, key, time_s, decay)
        out_2[0] = math.log(
            (clicks + evidence * prior) / (events - clicks + evidence * (1 - prior))
        )
        out_2[1] = math.log1p(events)


@inlined
def _count(sums: np.ndarray, time_s: float, label: float, weight: float, decay: float) -> None:
    """Count an event in a row."""
    if sums[_WAITING_EVENTS] == 0 and sums[_EVENTS] == 0:
        sums[TIME] = time_s
    elif time_s > sums[TIME] or (time_s != 0 and time_s < sums[TIME] - BEHIND_S):
        # Nothing fades where the stream has begun anew at an earlier time.
        fade = math.exp(-decay * max(time_s - sums[TIME], 0.0))
        sums[_EVENTS] = (sums[_EVENTS] + sums[_WAITING_EVENTS]) * fade
        sums[_CLICKS] = (sums[_CLICKS] + sums[_WAITING_CLICKS]) * fade
        sums[_WAITING_EVENTS] = sums[_WAITING_CLICKS] = 0
        sums[TIME] = time_s
    sums[_WAITING_EVENTS] += weight
    sums[_WAITING_CLICKS] += weight * label


@kernel(types.void(_I2, _I1, _I1, _D1, types.float64, types.float64, _F2))
def _read(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    keys_B: np.ndarray,
    times_s_B: np.ndarray,
    decay: float,
    evidence: float,
    out_B2: np.ndarray,
) -> None:
    for b in range(len(keys_B)):
        _write(rows_RW, index_P, keys_B[b], times_s_B[b], decay, evidence, out_B2[b])


@kernel(
    types.void(_I2, _I1, ORDER, _I1, _I1, _D1, _F1, _F1, types.float64, types.float64, _F2, WRITTEN)
)
def _learn(
    rows_RW: np.ndarray,
    index_P: np.ndarray,
    order: Order,
    used: np.ndarray,
    keys_B: np.ndarray,
    times_s_B: np.ndarray,
    labels_B: np.ndarray,
    weights_B: np.ndarray,
    decay: float,
    evidence: float,
    out_B2: np.ndarray,
    written: Written,
) -> None:
    for b in range(len(keys_B)):
        key, time_s = keys_B[b], times_s_B[b]
        label, weight = np.float64(labels_B[b]), np.float64(weights_B[b])
        _write(rows_RW, index_P, key, time_s, decay, evidence, out_B2[b])
        row = claim(rows_RW, index_P, order, used, _WHOLE, written)
        _count(rows_RW[row].view(np.float64), time_s, label, weight, decay)
        if key != 0:
            row = claim(rows_RW, index_P, order, used, key, written)
            _count(rows_RW[row].view(np.float64), time_s, label, weight, decay)
