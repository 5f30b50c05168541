"""Signals of one column of the events: values never seen before, and shifts of its distribution.

In: table rows and numeric values, as the model reads them. Out: a value for each event. Memory is
bounded: one bit for each row of a field's table, or 64 shares for each column.
"""

from collections.abc import Mapping

import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.stream.drift.observations import Observations

_BUCKETS = 64
_QUANTILES = np.linspace(0, 1, 16)[1:-1]
_FIRST_EVENTS = 2_048
_LONG_EVENTS, _RECENT_EVENTS = 100_000.0, 5_000.0  # half-lives


class Unseen:
    """1 for an event whose value of the column no event before it had, else 0.

    Two values that are hashed to one row count as one. A missing value counts as seen.
    """

    begun = False

    def __init__(self, schema: Schema, rows: int, column: str):
        """`rows`: of the column's table. `column`: one of `schema.fields`."""
        self._rows = rows
        self._place = schema.fields.index(column)
        self._seen_R = np.zeros(rows, bool)

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray:
        """Values of the signal, float64 (B,)."""
        rows_B = observed.rows_BF[:, self._place] % self._rows
        rows_U, first_U = np.unique(rows_B, return_index=True)
        unseen_B = np.zeros(len(rows_B))
        unseen_B[first_U[~self._seen_R[rows_U] & (rows_U > 0)]] = 1
        self._seen_R[rows_U] = True
        return unseen_B

    def reset(self) -> None:
        """Change nothing: a value stays seen."""

    def state(self) -> dict[str, np.ndarray]:
        """One bit a row."""
        return {"": np.packbits(self._seen_R)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._seen_R = np.unpackbits(arrays[""], count=self._rows).astype(bool)


class Stability:
    """Logarithm of how much more often the event's value of the column occurs recently than in the
    long run; its mean is one side of the population stability index.

    Numbers are put into buckets at quantiles of the first events, rows by their remainder.
    """

    begun = False

    def __init__(self, schema: Schema, rows: int, column: str):
        """`column`: one of `schema.fields` or `schema.numeric`. `rows` is not used."""
        self._numeric = column not in schema.fields
        self._place = (schema.numeric if self._numeric else schema.fields).index(column)
        self._first = np.empty(0)
        self._edges = np.empty(0)
        self._counts_2K = np.ones((2, _BUCKETS))  # in the long run, and recently

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray:
        """Values of the signal, float64 (B,), by the shares before this batch."""
        columns = observed.numerics_BN if self._numeric else observed.rows_BF
        values_B = columns[:, self._place]
        if self._numeric and not len(self._edges):
            self._find_edges(values_B)
            return np.zeros(len(values_B))
        buckets_B = self._buckets(values_B)
        shares_2K = self._counts_2K / self._counts_2K.sum(1, keepdims=True)
        logs_B: np.ndarray = np.log(shares_2K[1] / shares_2K[0])[buckets_B]
        fade_21 = 0.5 ** (len(values_B) / np.array([[_LONG_EVENTS], [_RECENT_EVENTS]]))
        # One event in each bucket beforehand keeps the logarithm finite.
        self._counts_2K = (
            (self._counts_2K - 1) * fade_21 + np.bincount(buckets_B, minlength=_BUCKETS) + 1
        )
        return logs_B

    def reset(self) -> None:
        """Change nothing: the shares follow the stream by themselves."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        return {":first": self._first, ":edges": self._edges, ":counts": self._counts_2K}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._first = arrays[":first"].copy()
        self._edges = arrays[":edges"].copy()
        self._counts_2K = arrays[":counts"].copy()

    def _find_edges(self, values_B: np.ndarray) -> None:
        """Collect the first numbers, and cut them into buckets once there are enough."""
        self._first = np.append(self._first, values_B)
        known = self._first[~np.isnan(self._first)]
        if len(self._first) >= _FIRST_EVENTS and len(known):
            self._edges = np.quantile(known, _QUANTILES)
            self._first = np.empty(0)

    def _buckets(self, values_B: np.ndarray) -> np.ndarray:
        """Bucket of each value, (B,) in 0 .. 63; the last one holds missing numbers."""
        if not self._numeric:
            return values_B % _BUCKETS
        return np.where(np.isnan(values_B), _BUCKETS - 1, np.searchsorted(self._edges, values_B))
