"""The model of each version, made beside the one that serves: nobody who scores waits, nor sees
half of a change.

In: a full checkpoint, or deltas to the one that serves. Out: a model to try out, and then to
`adopt`. Two sets of tables take turns (left-right, Ramalhete & Correia, 2013): a delta is written
to the set in reserve, which serves from then on, and later to the other. A set is written to only
once no model on it is alive; where a caller still holds one, it keeps that set, and a fresh one is
made. So memory is that of two sets, and of one more for each older model that is held.
"""

import weakref

import msgspec
import torch

from niwaki.model.errors import CheckpointError
from niwaki.model.published.checkpoint import Header
from niwaki.model.published.served import PublishedModel, Tables

Checkpoint = tuple[Header, dict[str, torch.Tensor]]


class DoubleBuffer:
    """One thread makes and adopts; any thread may read `model`."""

    def __init__(self) -> None:
        self.model: PublishedModel | None = None
        """The one that serves."""
        self._reserve: Tables | None = None
        self._reader: weakref.ref[PublishedModel] | None = None
        """The model that served from the reserve last."""
        self._lacks: list[Checkpoint] = []
        """What the reserve has not had yet; begins with a full checkpoint where there is no
        reserve."""

    def make(self, path: list[Checkpoint]) -> PublishedModel:
        """The model after `path`: a full checkpoint and deltas, or only deltas to the one that
        serves.

        Raises `CheckpointError`. What serves stays as it is.
        """
        (header, tensors), *deltas = path
        before = header
        if header.base:
            if self.model is None:
                raise CheckpointError(
                    f"version {header.version}", "is a delta, and nothing is held"
                )
            deltas, before = path, self.model.header
        for delta, _ in deltas:
            delta.check_follows(before)
            before = delta
        if not header.base:
            model = PublishedModel.from_checkpoint(header, tensors)
            return model.successor(deltas, model.tables)
        if self._reserve is None or (self._reader and self._reader() is not None):
            self._reserve, self._reader = self.model.frame.empty_tables(), None
            if not self._lacks or self._lacks[0][0].base:
                self._lacks = [
                    (msgspec.structs.replace(self.model.header, base=0), self.model.tensors())
                ]
        changes, self._lacks = self._lacks + path, []
        tables, self._reserve = (
            self._reserve,
            None,
        )  # lost if this fails, or comes to nothing: a fresh one is made then
        return self.model.successor(changes, tables)

    def adopt(self, model: PublishedModel, path: list[Checkpoint]) -> None:
        """Serve from `model`, which `path` made."""
        before = self.model
        self.model = model
        if before is not None and path[0][0].base:
            self._reserve, self._reader = before.tables, weakref.ref(before)
        else:
            self._reserve = self._reader = None
        self._lacks = list(path)
