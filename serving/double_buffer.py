"""The model of each version, made beside the one that serves: nobody who scores waits, or sees half
of a change.

In: a full checkpoint, or deltas to the one that serves. Out: a model to try out, and then to
`adopt`. Two sets of tables take turns (left-right, Ramalhete & Correia, 2013): a delta is written
to the set in reserve, which serves from then on, and later to the other. A set is written to only
once no model on it is alive; where a caller still holds one, it keeps that set, and a fresh one is
made. So memory is that of two sets, and of one more for each older model that is held. Compact
rows are never changed: each model has its own, so there is one set, and another while a model is
made.
"""

import weakref

import msgspec
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.published.checkpoint import Header
from niwaki.model.published.served import ModelFrame, PublishedModel, Tables

Checkpoint = tuple[Header, dict[str, torch.Tensor]]


class Shelf:
    """The place of tables: the memory of this process, where nobody else reads them."""

    def empty_tables(self, frame: ModelFrame) -> Tables:
        """Fresh tables of a model's shapes, all zero; those of the experts that are not among
        them are compact."""
        return frame.empty_tables()

    def is_read(self, tables: Tables) -> bool:
        """True while another process may still read `tables`, so that they must not be
        written to."""
        return False


class CompactShelf(Shelf):
    """A place where the tables of the experts are compact: they take a hundredth of the memory,
    and scoring takes one and a half times to twice as long."""

    def empty_tables(self, frame: ModelFrame) -> Tables:
        return frame.memory.empty()


class DoubleBuffer:
    """One thread makes and adopts models; any thread may read `model`."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        """`shelf`: the place of tables; None: the memory of this process."""
        self._shelf = shelf or Shelf()
        self.model: PublishedModel | None = None
        """The model that serves."""
        self._reserve: Tables | None = None
        self._reader: weakref.ref[PublishedModel] | None = None
        """The model that served from the reserve last."""
        self._missing: list[Checkpoint] = []
        """The checkpoints that the reserve has not had yet; a full one comes first where there is
        no reserve."""

    def make(self, path: list[Checkpoint]) -> PublishedModel:
        """The model after `path`: a full checkpoint and deltas, or only deltas to the one that
        serves.

        Raises `CheckpointError`. The model that serves stays as it is.
        """
        header, _ = path[0]
        if not header.base:
            _check_order(header, path[1:])
            frame = ModelFrame.of(header)
            return PublishedModel.after(path, frame, self._shelf.empty_tables(frame))
        if self.model is None:
            raise CheckpointError(f"version {header.version}", "is a delta, and nothing is held")
        _check_order(self.model.header, path)
        return self._make_from(self.model, path)

    def _make_from(self, served: PublishedModel, deltas: list[Checkpoint]) -> PublishedModel:
        """The model after deltas to `served`, on the tables in reserve."""
        if self._reserve is None or self._is_read(self._reserve):
            self._reserve = self._shelf.empty_tables(served.frame)
            self._reader = None
            if not self._missing or self._missing[0][0].base:
                full = msgspec.structs.replace(served.header, base=0)
                self._missing = [(full, served.tensors(compact=False))]
        changes = self._missing + deltas
        self._missing = []
        # The reserve is lost if this fails or comes to nothing: a fresh one is made then.
        tables = self._reserve
        self._reserve = None
        return PublishedModel.after(changes, served.frame, tables, served)

    def _is_read(self, tables: Tables) -> bool:
        alive = self._reader is not None and self._reader() is not None
        return alive or self._shelf.is_read(tables)

    def adopt(self, model: PublishedModel, path: list[Checkpoint]) -> None:
        """Serve from `model`, which `path` made."""
        before = self.model
        self.model = model
        self._reserve = self._reader = None
        if before is not None and path[0][0].base:
            self._reserve = before.tables
            self._reader = weakref.ref(before)
        self._missing = [(header, model.without_compact(tensors)) for header, tensors in path]


def _check_order(before: Header, deltas: list[Checkpoint]) -> None:
    """Raise `CheckpointError` unless each delta changes the checkpoint before it."""
    for delta, _ in deltas:
        delta.check_follows(before)
        before = delta
