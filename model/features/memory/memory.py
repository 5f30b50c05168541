"""The memory beside the experts: ages of values, histories, and rates, as one.

In: `HashedEvents`. Out: finished `Features`. All of it is in tables, which are learned, published
and restored row by row, so a published model completes events as the learner did when it was
published, and needs no other store.

Shapes: B events, H histories.
"""

from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.features.ages import Ages
from niwaki.model.features.encoder import Encoder, Features, HashedEvents
from niwaki.model.features.lists import ListRows
from niwaki.model.features.memory.histories import Histories
from niwaki.model.features.memory.keyed import KeyedRows
from niwaki.model.features.memory.rates import COLUMNS, Rates
from niwaki.model.features.outcomes import Outcomes
from niwaki.model.features.schema import Schema

Tables = Mapping[str, torch.Tensor]


class Memory:
    """The memory of a schema's model; that of a published model is read from its tables."""

    def __init__(self, schema: Schema, encoder: Encoder):
        """`encoder`: of the schema's events."""
        rows = encoder.rows
        self._empty_rows_H = encoder.empty_rows_L[len(schema.lists) :]
        self._ages = Ages(schema, rows)
        self._histories = [
            Histories(f"history.{one.name}", one.last, schema.max_keys) for one in schema.histories
        ]
        self._rates = [
            Rates(
                f"rate.{'*'.join(names)}",
                schema.rate_half_life_s,
                schema.rate_evidence,
                schema.max_keys,
            )
            for names in schema.rate_columns
        ]
        self._every = [one.where == "all" for one in schema.histories]
        first = len(schema.fields) - len(schema.histories)
        owners = schema.owners
        self._fields = [
            (rows * (first + place), rows * owners[first + place])
            for place in range(len(schema.histories))
        ]
        """For each history, where its rows begin in the linear expert's table, and where those of
        its embeddings do."""
        keyed = [one.keyed for one in self._histories] + [one.keyed for one in self._rates]
        self._keyed: list[KeyedRows] = keyed
        self.shapes: dict[str, tuple[int, ...]] = {
            table: (size, 1) for table, size in self._ages.sizes.items()
        }
        """Shape of each table, by its name."""
        for table in keyed:
            self.shapes |= table.shapes
        self.types = {
            table: torch.float64 if table in self._ages.sizes else torch.int64
            for table in self.shapes
        }
        """Type of each table, by its name."""
        self._table_rows = rows

    def broken_rule(self, tensors: Tables) -> tuple[str, str] | None:
        """The tensor of a checkpoint whose histories name values that no table has, and the rule;
        None: there is none. Everything else that rows may hold leads nowhere."""
        for one in self._histories:
            name = f"{one.keyed.name}.values"
            if not one.names_rows_of(tensors[name].numpy(), self._table_rows):
                return f"tensor {name}", f"must name values of 0 to {self._table_rows - 1}"
        return None

    def empty(self) -> dict[str, torch.Tensor]:
        """Tables in which nothing is remembered."""
        tables = {table: self._ages.empty() for table in self._ages.sizes}
        for one in self._keyed:
            tables |= one.empty()
        return tables

    def complete(self, hashed: HashedEvents, tables: Tables | None = None) -> Features:
        """Finished features of B events, nothing remembered. `tables`: those to read; None: this
        object's own."""
        features = self._ages.complete(hashed, None if tables is None else tables.get("age"))
        if not self._keyed:
            return features
        keys_BM, times_s_B = hashed.keys_BM.numpy(), hashed.times_s_B.numpy()
        keys = [np.ascontiguousarray(keys_B) for keys_B in keys_BM.T]
        lists = [
            self._list(place, keys[place], *one.read(keys[place], times_s_B, tables))
            for place, one in enumerate(self._histories)
        ]
        rates = [
            one.read(keys[place], times_s_B, tables)
            for place, one in enumerate(self._rates, len(self._histories))
        ]
        return _with(features, lists, rates)

    def learn(
        self, hashed: HashedEvents, outcomes: Outcomes
    ) -> tuple[Features, dict[str, torch.Tensor]]:
        """As `complete`, event by event, and each is remembered after it was completed; also the
        rows of each table that have changed. Ages are left to `see`."""
        features = self._ages.complete(hashed)
        changed: dict[str, torch.Tensor] = {}
        if not self._keyed:
            return features, changed
        keys_BM, times_s_B = hashed.keys_BM.numpy(), hashed.times_s_B.numpy()
        keys = [np.ascontiguousarray(keys_B) for keys_B in keys_BM.T]
        clicks_B = outcomes.labels_B >= 0.5
        lists, rates = [], []
        for place, history in enumerate(self._histories):
            values_B = np.ascontiguousarray(hashed.values_BH.numpy()[:, place])
            counts_B = (values_B != 0) & (clicks_B | self._every[place])
            *found, rows = history.learn(keys[place], values_B, times_s_B, counts_B)
            lists.append(self._list(place, keys[place], *found))
            changed |= rows
        for place, rate in enumerate(self._rates, len(self._histories)):
            found_B2, rows = rate.learn(keys[place], times_s_B, outcomes)
            rates.append(found_B2)
            changed |= rows
        return _with(features, lists, rates), changed

    def see(self, features: Features) -> dict[str, torch.Tensor]:
        """Remember the ages of values; returns the rows that have changed."""
        return self._ages.see(features)

    def export(self, rows: Tables) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint: of each table all rows that are not empty or, for a delta,
        those that `rows` names."""
        tensors = self._ages.export(rows)
        for one in self._keyed:
            found = {} if one.name in rows else one.touched()
            for table, values in one.tables.items():
                rows_U = rows[table] if table in rows else found[table]
                tensors |= {f"{table}.rows": rows_U, f"{table}.values": values[rows_U]}
        return tensors

    def restore(self, tensors: Tables) -> None:
        """Continue where `export` was taken of all rows."""
        self._ages.restore(tensors)
        for one in self._keyed:
            one.restore(tensors)

    def _list(
        self, place: int, keys_B: np.ndarray, values_V: np.ndarray, offsets: np.ndarray
    ) -> ListRows:
        """A history as a list: missing where the key is, empty where nothing is known of it."""
        own, owner = self._fields[place]
        counts_B = np.diff(offsets)
        alone_B = counts_B == 0
        out_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(counts_B, 1))])
        local_V = np.empty(out_offsets[-1], np.int64)
        filled_V = np.ones(len(local_V), bool)
        filled_V[out_offsets[:-1][alone_B]] = False
        local_V[filled_V] = values_V
        local_V[~filled_V] = np.where(keys_B[alone_B] == 0, 0, self._empty_rows_H[place])
        shares_V = np.repeat(1 / np.maximum(counts_B, 1), np.maximum(counts_B, 1))
        return ListRows(local_V + own, local_V + owner, shares_V.astype(np.float32), out_offsets)


def _with(features: Features, lists: list[ListRows], rates: list[np.ndarray]) -> Features:
    """The features with histories after the other lists, and rates as the last numerics."""
    numerics_BN = features.numerics_BN
    if rates:
        first = numerics_BN.shape[1] - COLUMNS * len(rates)
        made_BN = torch.from_numpy(np.concatenate(rates, 1))
        numerics_BN = torch.cat([numerics_BN[:, :first], made_BN], 1)
    return features._replace(numerics_BN=numerics_BN, lists=(*features.lists, *lists))
