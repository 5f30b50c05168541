"""The columns of every synthetic stream, and the step from drawn events to an Arrow table.

Beneath `world`, which draws. In: a `Draw`, in which fields with named values are positions in
`VALUES`. Out: a table with ts, label and the columns of `SCHEMA`, in which missing values are null
and renamed values have the names that a drift of `values` gave them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import Schema

SCHEMA = Schema(
    categorical=(
        "c_user",
        "c_segment",
        "c_item",
        "c_category",
        "c_brand",
        "c_device",
        "c_placement",
    ),
    numeric=("n_price", "n_age_h", "n_clicks", "n_scroll"),
)
"""The columns of every synthetic stream."""

VALUES = {
    "c_segment": [f"s{i}" for i in range(8)],
    "c_category": [f"cat{i}" for i in range(12)],
    "c_brand": [f"brand{i:02}" for i in range(60)],
    "c_device": ["android", "ios", "windows", "mac", "tablet", "tv"],
    "c_placement": ["feed", "top", "side", "search", "related", "mail", "cart", "footer"],
}
"""Fields with named values: their names, the most frequent first where that matters."""
MAY_MISS = ("c_brand", "c_device")
"""Categorical fields that may be missing in an event."""
_NEW_ID = 1_000_000_000  # a drift of `values` adds this to an integer
_NEW_UNIT = 100.0  # and multiplies a numeric by this


class Draw(NamedTuple):
    """Events as they are drawn, before they become columns."""

    times_ms_B: np.ndarray
    columns: dict[str, np.ndarray]
    """Ids, numerics, or positions in `VALUES`; one past the end = missing."""
    missing_BN: np.ndarray
    renamed: dict[str, np.ndarray | int]
    """By field, the number of times that its values have been replaced."""
    probability_B: np.ndarray
    labels_B: np.ndarray


def drawn_table(draw: Draw, ids: Mapping[str, np.ndarray]) -> pa.Table:
    """Arrow table of drawn events; `ids` holds the integers of fields without named values."""
    columns = {"ts": draw.times_ms_B, "label": draw.labels_B}
    for field in SCHEMA.categorical:
        at_B, renamed = draw.columns[field], draw.renamed.get(field, 0)
        columns[field] = (
            ids[field][at_B] + renamed * _NEW_ID if field in ids else _names(field, at_B, renamed)
        )
    for n, field in enumerate(SCHEMA.numeric):
        values_B = draw.columns[field] * _NEW_UNIT ** draw.renamed.get(field, 0)
        columns[field] = pa.array(values_B.astype(np.float32), mask=draw.missing_BN[:, n])
    return pa.table(columns)


def _names(field: str, at_B: np.ndarray, renamed: np.ndarray | int) -> pa.Array:
    """Strings of a field with named values, null past the end of the names. Replaced values carry
    a number, as in "ios#1"."""
    values = VALUES[field]
    names = [
        name if not level else f"{name}#{level}"
        for level in range(int(np.max(renamed)) + 1)
        for name in values
    ]
    missing_B = at_B == len(values) if field in MAY_MISS else None
    codes = pa.array(at_B + renamed * len(values), mask=missing_B)
    return pa.DictionaryArray.from_arrays(codes, names).cast(pa.string())
