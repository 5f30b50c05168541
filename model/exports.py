"""What a learner hands to those who predict with it: everything, or what has changed since they last had it.

In: the rows that each batch taught something. Out: their sorted numbers, once for each reader, and the tensors that go
with them.
"""

from typing import NamedTuple

import numpy as np
import torch

from model.network import NetworkShape


class Export(NamedTuple):
    """What a scorer needs: everything, or the rows changed since an earlier export."""

    shape: NetworkShape
    tensors: dict[str, torch.Tensor]


class Changes:
    """Which rows of which table were learned since its reader last said that it has them."""

    def __init__(self) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {"embedding": [], "linear": []}

    def sorted(self) -> dict[str, torch.Tensor]:
        """Sorted ids of the rows, by table."""
        nothing = torch.empty(0, dtype=torch.int64)
        for table, rows in self.rows.items():
            ids = np.sort(torch.cat([nothing, *rows]).numpy())  # several times as fast as `unique`
            self.rows[table] = [torch.from_numpy(ids[np.diff(ids, prepend=-1) > 0])]
        return {table: rows[0] for table, rows in self.rows.items()}

    def clear(self) -> None:
        """Begin anew."""
        self.rows = {table: [] for table in self.rows}
