"""A learner's state for another schema than the one that it was saved with.

In: the tensors of a snapshot, and two schemas. Out: the tensors with which a learner of the new
schema goes on: what both schemas know keeps all that was learned of it; a new column begins at the
prior, and with weights that leave every prediction as it is; what is gone is dropped. Row numbers,
slots, inputs of the network and columns of tables are matched by names, never by places. (A pair of
fields is one in the order of the schema: in the other order it is a new one.)

Shapes: F fields, D embedding width, N numerics, X inputs of an MLP.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from niwaki.model.deep.network import COLUMNS, Network
from niwaki.model.features.schema import Schema
from niwaki.model.learner import Learner
from niwaki.model.linear.expert import WITHHELD
from niwaki.model.linear.pairs import Candidates
from niwaki.model.linear.slots import Slots
from niwaki.stream.errors import ConfigError

Tensors = dict[str, torch.Tensor]
Names = Sequence[Hashable]
_KEPT = ("label", "label_threshold", "label_positive", "timestamp")
"""Settings by which a model would be one of something else."""


def check_change(old: Schema, new: Schema, block: object) -> None:
    """Raise `ConfigError` where a model of `old` can't go on with `new`. `block`: sides of the
    blocks of weights that are pruned, or None."""
    way = "move the snapshot away to start anew"
    for option in _KEPT:
        if getattr(old, option) != getattr(new, option):
            rule = f"differs from that of the snapshot, {getattr(old, option)!r}; {way}"
            raise ConfigError(f"schema.{option}", rule, str(getattr(new, option)))
    if block is not None:
        rule = f"can't go on with other columns where blocks of weights are pruned; {way}"
        raise ConfigError("schema", rule)


def describe_change(old: Schema, new: Schema) -> str:
    """The change in words, for a log."""
    before, after = set(_inputs(old)), set(_inputs(new))
    parts = [
        f"{verb} {', '.join(sorted(names))}"
        for verb, names in (("new:", after - before), ("gone:", before - after))
        if names
    ]
    lists = set(new.list_fields) & set(old.single_fields)
    if lists:
        parts.append(f"a list now: {', '.join(sorted(lists))}")
    return "; ".join(parts) or "other settings of the same columns"


def _inputs(schema: Schema) -> tuple[str, ...]:
    return (*schema.fields, *schema.numerics)


class _Layout(NamedTuple):
    """The names of everything that a schema's model has places for."""

    schema: Schema
    slots: Slots
    network: Network
    slots_S: list[Hashable]
    """A name of each slot."""

    @classmethod
    def of(cls, schema: Schema, learner: Learner, living: torch.Tensor) -> "_Layout":
        """The layout of a model of `schema` with the settings of `learner`. `living`: its living
        pairs."""
        config = learner.config
        slots = Slots(schema, config.encoder(schema), config.pair_budget, living.numpy())
        block = learner.branches.dense.network.shape.block
        network = config.network(schema, len(slots), block)
        seen: dict[int, int] = {}
        names: list[Hashable] = []
        for group in slots.group_S:
            seen[group] = seen.get(group, 0) + 1
            names.append((*slots.names_G[group], seen[group]))  # two codes share a group
        return cls(schema, slots, network, names)

    def numerics(self) -> list[Hashable]:
        """A name of each prepared numeric: scores, then marks."""
        return [(kind, name) for kind in ("score", "mark") for name in self.schema.numerics]

    def inputs(self, network: Network) -> list[Hashable]:
        """A name of each input of the top MLP of this network, or of one that was cut out of it."""
        width = network.shape.embedding_dim
        vectors = [*self.schema.fields, ""][: network.vectors]  # "" is that of the numerics
        entries = [("vector", name, d) for name in vectors for d in range(width)]
        dots = [("dot", frozenset(pair)) for pair in itertools.combinations(vectors, 2)]
        return [
            *(entries[place] for place in network.read.tolist()),
            *self.numerics(),
            *(("slot", name) for name in self.slots_S),
            *(dots if network.pair_count else []),
        ]


def adapted(tensors: Mapping[str, torch.Tensor], old: Schema, learner: Learner) -> Tensors:
    """The tensors of `Learner.state` for the schema of `learner`, from those of a learner of `old`
    with the same settings. `learner` has learned nothing; its fresh weights are those of new
    units."""
    before = _Layout.of(old, learner, tensors["pairs.living"])
    pairs = _living_pairs(tensors, before.slots.candidates, learner)
    after = _Layout.of(learner.schema, learner, pairs["pairs.living"])
    adapter = _Adapter(before, after, learner)
    found = pairs | {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(("mixture.", "expert.", "merit.")) or name == "numerics.counts"
    }
    for part in (
        adapter.embedding,
        adapter.linear,
        adapter.numerics,
        adapter.memory,
        adapter.branches,
    ):
        found |= part(tensors)
    return found


def _living_pairs(
    tensors: Mapping[str, torch.Tensor], before: Candidates, learner: Learner
) -> Tensors:
    """The state of living pairs: those of both schemas live on, and others have the slots that are
    left."""
    candidates, fresh = learner.slots.candidates, learner.pairs.state()
    slot_of = {before.key(one): at for at, one in enumerate(tensors["pairs.living"].tolist())}
    living, from_X = [], []
    for slots, some in candidates.spans():
        count = slots.stop - slots.start
        known = [pair for pair in some if candidates.key(pair) in slot_of]
        chosen = [*known, *(pair for pair in some if pair not in set(known))][:count]
        living += chosen
        from_X += [slot_of.get(candidates.key(pair), -1) for pair in chosen]
    gains = _taken(tensors["pairs.gains"], fresh["gains"], np.array(from_X, np.int64), 1)
    return {
        "pairs.living": torch.tensor(living, dtype=torch.int64),
        "pairs.gains": gains,
        "pairs.fresh": fresh["fresh"],
        "pairs.counts": fresh["counts"],
    }


class _Adapter:
    """Moves the parts of a state from one layout to another."""

    def __init__(self, before: _Layout, after: _Layout, learner: Learner):
        self._before, self._after, self._learner = before, after, learner
        self._rows = learner.config.table_rows
        fields, owners = after.schema.fields, after.schema.owners
        self._field_F = _moved(before.schema.fields, fields)
        """For each field of the old schema its place in the new one, or -1."""
        self._owner_F = np.array(
            [at if at >= 0 and owners[at] == at else -1 for at in self._field_F.tolist()], np.int64
        )

        self._zero_fields = {
            name
            for at, name in enumerate(fields)
            if owners[at] == at and name not in before.schema.fields
        }
        """New fields with rows of their own, which are zero."""

    def embedding(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Rows of the tables of both; of a column that shares another's from now on, none."""
        rows_U, kept_U = self._moved_rows(tensors["embedding.rows"], self._owner_F)
        return {
            "embedding.rows": rows_U,
            "embedding.weight": tensors["embedding.weight"][kept_U],
            "embedding.squares": tensors["embedding.squares"][kept_U],
        }

    def linear(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Rows and prior variances of the linear expert."""
        before, after = self._before, self._after
        rows = tensors["linear.rows"].numpy()
        old, new = before.slots.places, after.slots.places
        place_U = np.full(len(rows), -1, np.int64)
        in_fields = rows < old.first_pair
        field_U = self._field_F[rows[in_fields] // self._rows] if len(self._field_F) else rows[:0]
        place_U[in_fields] = np.where(
            field_U < 0, -1, field_U * self._rows + rows[in_fields] % self._rows
        )
        if new.pair_rows:
            in_pairs = (rows >= old.first_pair) & (rows < old.first_score)
            place_U[in_pairs] = rows[in_pairs] - old.first_pair + new.first_pair
        names = [
            *before.numerics(),
            *((name, c) for name in before.schema.numerics for c in range(old.codes)),
            "constant",
        ]
        targets = [
            *after.numerics(),
            *((name, c) for name in after.schema.numerics for c in range(new.codes)),
            "constant",
        ]
        rest = rows >= old.first_score
        moved_U = _moved(names, targets)[rows[rest] - old.first_score]
        place_U[rest] = np.where(moved_U < 0, -1, moved_U + new.first_score)
        kept_U = torch.from_numpy(np.flatnonzero(place_U >= 0))
        fresh = self._learner.linear.state()
        log_s_GK = fresh["log_s"].clone()
        new_pairs = [
            group
            for group, name in enumerate(after.slots.names_G)
            if name[0] in ("pair", "crossed") and name not in before.slots.names_G
        ]
        log_s_GK[new_pairs] = WITHHELD  # their rows may hold evidence of other pairs
        return {
            "linear.rows": torch.from_numpy(place_U)[kept_U],
            "linear.evidence": tensors["linear.evidence"][kept_U],
            "linear.learned": tensors["linear.learned"][kept_U],
            "linear.log_s": self._by_group(tensors["linear.log_s"], log_s_GK),
            "linear.squares": self._by_group(tensors["linear.squares"], fresh["squares"]),
        }

    def numerics(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Moments, knots and the sample."""
        from_N = _moved(self._after.schema.numerics, self._before.schema.numerics)
        fresh = self._learner.numerics.state()
        return {
            f"numerics.{name}": _taken(tensors[f"numerics.{name}"], fresh[name], from_N, axis)
            for name, axis in (("moments", 1), ("knots", 0), ("sample", 1))
        }

    def memory(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Ages, histories and rates: those of both that are kept in the same way."""
        found: Tensors = {}
        same = self._same_memory()
        for table, empty in self._learner.memory.empty().items():
            rows, values = f"{table}.rows", f"{table}.values"
            if table == "age":
                ages = _moved(self._before.schema.ages, self._after.schema.ages)
                given = tensors.get(rows, torch.empty(0, dtype=torch.int64))
                found[rows], kept_U = self._moved_rows(given, ages)
                found[values] = tensors[values][kept_U] if len(given) else empty[:0]
            elif table.removesuffix(".index") in same:
                found[rows], found[values] = tensors[rows], tensors[values]
            else:
                found[rows], found[values] = torch.empty(0, dtype=torch.int64), empty[:0]
        return found

    def _same_memory(self) -> set[str]:
        old, new = self._before.schema, self._after.schema
        if old.max_keys != new.max_keys:
            return set()
        histories = {f"history.{one.name}" for one in new.histories if one in old.histories}
        if (old.rate_half_life_s, old.rate_evidence) != (new.rate_half_life_s, new.rate_evidence):
            return histories
        rates = set(old.rate_columns) & set(new.rate_columns)
        return histories | {f"rate.{'*'.join(names)}" for names in rates}

    def branches(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """The networks, the units that they have, and masks that are being learned."""
        before, after = self._before.network, self._after.network
        kept = {
            name.removeprefix("kept."): tensor
            for name, tensor in tensors.items()
            if name.startswith("kept.")
        }
        new_kept = {name: index for name, index in kept.items() if self._has(name)}
        if COLUMNS in kept:
            old_C = np.zeros(before.shape.fields * before.shape.embedding_dim, bool)
            old_C[kept[COLUMNS].numpy()] = True
            alive_C = self._by_column(torch.from_numpy(old_C), True)
            new_kept[COLUMNS] = alive_C.nonzero().squeeze(1)
        found = {f"kept.{name}": index for name, index in new_kept.items()}
        for place, old, new in (
            ("dense", before, after),
            ("reference", before, after),
            ("sparse", before.cut_to(kept), after.cut_to(new_kept)),
        ):
            if f"{place}.weight.top.0.weight" in tensors:
                units = new_kept if place == "sparse" else {}
                for kind in ("weight", "first", "second"):
                    prefix = f"{place}.{kind}."
                    own = {
                        name.removeprefix(prefix): tensor
                        for name, tensor in tensors.items()
                        if name.startswith(prefix)
                    }
                    moved = self._parameters(own, old, new, units, kind == "weight")
                    found |= {f"{prefix}{name}": tensor for name, tensor in moved.items()}
        if any(name.startswith("masks.") for name in tensors):
            found |= self._masks(tensors)
        return found

    def _parameters(
        self, own: Tensors, old: Network, new: Network, units: Tensors, fresh: bool
    ) -> Tensors:
        """One network's tensors. `units`: those of the whole network that it has, by group; empty:
        all. `fresh`: False: new ones are zero, as moments are."""
        whole = self._learner.branches.dense.parameters
        found: Tensors = {}
        for name, shape in new.shapes.items():
            if name == "top.0.weight":
                inputs, before = self._after.inputs(new), self._before.inputs(old)
                start_OX = torch.zeros(shape)
                if fresh:
                    first = [place for place, one in enumerate(inputs) if self._may_be_fresh(one)]
                    every = self._after.inputs(self._after.network)
                    columns = torch.from_numpy(_moved([inputs[one] for one in first], every))
                    rows_OX = whole[name][:, columns]
                    start_OX[:, first] = rows_OX[units["top.0"]] if "top.0" in units else rows_OX
                found[name] = _taken(own[name], start_OX, _moved(inputs, before), 1)
            elif name == "bottom.0.weight" and name in own:
                from_X = _moved(self._after.numerics(), self._before.numerics())
                found[name] = _taken(own[name], torch.zeros(shape), from_X, 1)
            elif name in own:
                found[name] = own[name]
            else:  # a bottom MLP that there was not before
                found[name] = whole[name].clone() if fresh else torch.zeros(shape)
        return found

    def _may_be_fresh(self, name: Hashable) -> bool:
        """True for a new input of the network that is zero until something is learned of it, so
        that any weight leaves the predictions as they are."""
        if not isinstance(name, tuple):
            return False
        if name[0] == "vector":
            return name[1] in self._zero_fields
        if name[0] == "dot":
            return any(one in self._zero_fields for one in name[1])
        return bool(name[0] == "slot")

    def _masks(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Masks in the course of a pruning: new units live, and are worth as much as the best."""
        found = {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith("masks.") and self._has(name.split(".", 2)[2])
        }
        for kind, start in (("alive", 1.0), ("importance", None)):
            name = f"masks.{kind}.{COLUMNS}"
            if name in tensors:
                best = float(tensors[name].max()) if start is None else start
                found[name] = self._by_column(tensors[name], best)
            for group in self._after.network.groups:
                one = f"masks.{kind}.{group.name}"
                if one not in found and any(n.startswith(f"masks.{kind}.") for n in tensors):
                    of_type = next(t for n, t in tensors.items() if n.startswith(f"masks.{kind}."))
                    found[one] = torch.ones(group.size, dtype=of_type.dtype)
        return found

    def _has(self, group: str) -> bool:
        """True if the new network has this group of units."""
        return any(group == one.name for one in self._after.network.units)

    def _by_column(self, values_C: torch.Tensor, start: float) -> torch.Tensor:
        """Values of the columns of all tables; `start` for those of new fields."""
        width = self._after.network.shape.embedding_dim
        values_FD = values_C.view(-1, width)
        fields = _moved(self._after.schema.fields, self._before.schema.fields)
        start_FD = torch.full((len(fields), width), start, dtype=values_C.dtype)
        return _taken(values_FD, start_FD, fields, 0).flatten()

    def _by_group(self, values_GK: torch.Tensor, fresh_GK: torch.Tensor) -> torch.Tensor:
        groups = _moved(self._after.slots.names_G, self._before.slots.names_G)
        return _taken(values_GK, fresh_GK, groups, 0)

    def _moved_rows(
        self, rows_U: torch.Tensor, place_F: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of tables that lie one after the other, at the new places of their tables; and which
        of them are left."""
        tables_U, local_U = np.divmod(rows_U.numpy(), self._rows)
        new_U = place_F[tables_U] if len(place_F) else np.full(len(tables_U), -1)
        kept_U = np.flatnonzero(new_U >= 0)
        rows = new_U[kept_U] * self._rows + local_U[kept_U]
        return torch.from_numpy(rows), torch.from_numpy(kept_U)


def _moved(names: Names, others: Names) -> np.ndarray:
    """int64: the place of each name among `others`, or -1."""
    places = {name: place for place, name in enumerate(others)}
    return np.array([places.get(name, -1) for name in names], np.int64)


def _taken(
    values: torch.Tensor, start: torch.Tensor, from_X: np.ndarray, axis: int
) -> torch.Tensor:
    """`start` with slices along `axis` taken from `values`, where `from_X` says from where."""
    taken = start.clone()
    to = torch.from_numpy(np.flatnonzero(from_X >= 0))
    source = torch.from_numpy(from_X[from_X >= 0])
    return taken.index_copy_(axis, to, values.index_select(axis, source))
