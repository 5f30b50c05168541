"""Other click models for the learner's benchmark, all behind one interface: predict some events,
learn some events.

In: a `Stream`, a whole recording in memory. Each system learns only what is given to `learn`;
`predict` answers for any events, with the model as it stands. So a delay is a matter of when
`predict` is called, the same for everyone.

Shapes: B events, F fields, N numerics, D embedding dim, V vectors.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as fn
from river import linear_model, preprocessing

from niwaki.model.config import LearnerConfig
from niwaki.model.features.encoder import Encoder
from niwaki.model.features.numerics import Numerics, prepare
from niwaki.model.features.schema import EventBatch, Schema

EPSILON = 1e-6
_ENCODED_EVENTS = 8_192


@dataclass(frozen=True)
class Stream:
    """Events to learn from, in order. The forms that systems read are made once."""

    name: str
    schema: Schema
    events: EventBatch

    @cached_property
    def categories(self) -> list[list[str | None]]:
        """By column of `schema.categorical`: the values."""
        return [column.to_pylist() for column in self.events.categorical]

    @cached_property
    def rows_BF(self) -> torch.Tensor:
        """int64: the rows of fields in niwaki's tables."""
        encoder = Encoder(self.schema, rows=LearnerConfig().table_rows)
        starts = range(0, len(self.events), _ENCODED_EVENTS)
        parts = [
            self.events.slice(start, min(start + _ENCODED_EVENTS, len(self.events)))
            for start in starts
        ]
        return torch.cat([encoder.encode(part).rows_BF for part in parts])


class System(Protocol):
    """A click model under test."""

    def predict(self, start: int, stop: int) -> np.ndarray:
        """Logits of events `start` to `stop` (exclusive)."""

    def learn(self, start: int, stop: int) -> None:
        """Learn those events; called once for each, in order."""


class RecentRate:
    """The click rate of the last events, or of all."""

    def __init__(self, stream: Stream, window_events: int | None = None):
        self._sums = np.concatenate([[0.0], np.cumsum(stream.events.labels_B, dtype=np.float64)])
        self._window_events, self._learned = window_events, 0

    def predict(self, start: int, stop: int) -> np.ndarray:
        first = 0 if self._window_events is None else max(0, self._learned - self._window_events)
        rate = (self._sums[self._learned] - self._sums[first] + 0.5) / (self._learned - first + 1)
        return np.full(stop - start, np.log(rate / (1 - rate)), np.float32)

    def learn(self, start: int, stop: int) -> None:
        self._learned = stop


class River:
    """A model of River's on one-hot fields and standardised numerics, event by event."""

    def __init__(
        self, stream: Stream, model: linear_model.LogisticRegression | linear_model.AdPredictor
    ):
        fields = [
            [f"{name}={value}" for value in column]
            for name, column in zip(stream.schema.categorical, stream.categories, strict=True)
        ]
        self._fields, self._names = list(zip(*fields, strict=True)) or None, stream.schema.numeric
        self._numerics_BN, self._labels_B = (
            stream.events.numerics_BN.astype(np.float64),
            stream.events.labels_B,
        )
        self._scaler, self._model = preprocessing.StandardScaler(), model

    def predict(self, start: int, stop: int) -> np.ndarray:
        rates = [self._model.predict_proba_one(self._features(i))[True] for i in range(start, stop)]
        rates_B = np.clip(rates, EPSILON, 1 - EPSILON)
        return np.log(rates_B / (1 - rates_B)).astype(np.float32)

    def learn(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            if self._names:
                self._scaler.learn_one(self._present(i))
            self._model.learn_one(self._features(i), bool(self._labels_B[i] > 0.5))

    def _features(self, i: int) -> dict[str, float]:
        features = dict.fromkeys(self._fields[i], 1.0) if self._fields else {}
        return features | (self._scaler.transform_one(self._present(i)) if self._names else {})

    def _present(self, i: int) -> dict[str, float]:
        row = zip(self._names, self._numerics_BN[i].tolist(), strict=True)
        return {name: value for name, value in row if value == value}


class VowpalWabbit:
    """Vowpal Wabbit from its wheel: each column a namespace of its own, numerics as they come."""

    _LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def __init__(self, stream: Stream, options: str = ""):
        from vowpalwabbit import Workspace  # extra `bench`: the other systems run without it

        self._columns, self._numerics_BN = stream.categories, stream.events.numerics_BN
        self._labels_B = stream.events.labels_B
        self._workspace = Workspace(
            f"--quiet --loss_function logistic -b 22 --random_seed 0 {options}"
        )
        self._parsed: dict[int, object] = {}
        self._texts: dict[int, str] = {}

    def predict(self, start: int, stop: int) -> np.ndarray:
        return np.array(
            [self._workspace.predict(self._example(i)) for i in range(start, stop)], np.float32
        )

    def learn(self, start: int, stop: int) -> None:
        for i in range(start, stop):
            example = self._example(i)
            self._workspace.learn(example)
            self._workspace.finish_example(example)
            del self._parsed[i]

    def write(self, start: int, stop: int) -> None:
        """Write those events as Vowpal Wabbit's text, which is else done when one is first
        needed."""
        self._texts |= {i: self._text(i) for i in range(start, stop)}

    def _example(self, i: int) -> object:
        if i not in self._parsed:
            self._parsed[i] = self._workspace.example(self._texts.pop(i, None) or self._text(i))
        return self._parsed[i]

    def _text(self, i: int) -> str:
        words = ["1" if self._labels_B[i] > 0.5 else "-1"]
        for letter, column in zip(self._LETTERS, self._columns, strict=False):
            if column[i] is not None:
                words.append(f"|{letter} {column[i].translate(_NO_SYNTAX)}")
        for letter, value in zip(
            reversed(self._LETTERS), self._numerics_BN[i].tolist(), strict=False
        ):
            if value == value:
                words.append(f"|{letter} x:{value:.6g}")
        return " ".join(words)


_NO_SYNTAX = str.maketrans({character: "_" for character in " :|\t\n\r"})


class PlainDLRM(torch.nn.Module):
    """Embeddings, their dot products and a bottom MLP's vector into a top MLP (Naumov et al.,
    arXiv:1906.00091).

    Rows, widths and preparation of numerics are niwaki's; Adagrad on the tables, Adam on
    the rest. It lacks all that niwaki adds: zero-start embeddings, the linear expert, learned
    shrinkage, time scales, the mixture.
    """

    def __init__(
        self,
        stream: Stream,
        seed: int = 0,
        *,
        config: LearnerConfig | None = None,
        embedding_rate: float = 0.05,
        network_rate: float = 0.001,
    ):
        """`config`: of the widths; with other table rows than the default's, only `step` is of
        use."""
        super().__init__()
        torch.manual_seed(seed)
        config, schema = config or LearnerConfig(), stream.schema
        self._stream, self._labels_B = stream, torch.from_numpy(stream.events.labels_B)
        self._numerics_BN = torch.from_numpy(stream.events.numerics_BN)
        dim = config.embedding_dim
        fields = len(schema.fields)
        numerics = 2 * len(schema.numeric)
        self._numerics = Numerics(len(schema.numeric), config.numeric_horizon_events)
        self.table = torch.nn.Embedding(max(fields, 1) * config.table_rows, dim, sparse=True)
        torch.nn.init.normal_(self.table.weight, std=0.05)
        vectors = fields + (1 if numerics else 0)
        self._pairs = torch.triu_indices(vectors, vectors, 1)
        self.bottom = _mlp((numerics, *config.bottom, dim)) if numerics else None
        self.top = _mlp((vectors * dim + self._pairs.shape[1], *config.top, 1))
        self._tables_optimizer = torch.optim.Adagrad(self.table.parameters(), lr=embedding_rate)
        dense = [p for name, p in self.named_parameters() if not name.startswith("table")]
        self._network_optimizer = torch.optim.Adam(dense, lr=network_rate, fused=True)

    def forward(self, rows_BF: torch.Tensor, numerics_BN: torch.Tensor) -> torch.Tensor:
        vectors_BVD = self.table(rows_BF)
        if self.bottom is not None:
            scores_BM = prepare(numerics_BN, self._numerics.scale()).scores_BM
            vectors_BVD = torch.cat([vectors_BVD, self.bottom(scores_BM).unsqueeze(1)], 1)
        dots_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
        inputs = [vectors_BVD.flatten(1), dots_BVV[:, self._pairs[0], self._pairs[1]]]
        return self.top(torch.cat(inputs, 1)).squeeze(1)

    @torch.no_grad()
    def predict(self, start: int, stop: int) -> np.ndarray:
        return self(self._stream.rows_BF[start:stop], self._numerics_BN[start:stop]).numpy()

    def learn(self, start: int, stop: int) -> None:
        part = slice(start, stop)
        self.step(self._stream.rows_BF[part], self._numerics_BN[part], self._labels_B[part])

    def step(
        self, rows_BF: torch.Tensor, numerics_BN: torch.Tensor, labels_B: torch.Tensor
    ) -> np.ndarray:
        """Learn one batch; (B,), its logits before."""
        logits_B = self(rows_BF, numerics_BN)
        loss = fn.binary_cross_entropy_with_logits(logits_B, labels_B)
        for optimizer in (self._tables_optimizer, self._network_optimizer):
            optimizer.zero_grad()
        with torch.sparse.check_sparse_tensor_invariants(
            False
        ):  # the default, said aloud: without it torch warns
            loss.backward()
            for optimizer in (self._tables_optimizer, self._network_optimizer):
                optimizer.step()
        self._numerics.update(numerics_BN)
        return logits_B.detach().numpy()


def _mlp(widths: tuple[int, ...]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [torch.nn.Linear(widths[i], widths[i + 1]), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def one_stream(
    name: str, schema: Schema, batches: list[EventBatch], limit_events: int | None
) -> Stream:
    """All of `batches` as a `Stream`, or the first `limit_events`."""
    events = EventBatch.concat(batches)
    events = events.slice(0, min(len(events), limit_events or len(events)))
    flat = tuple(pa.concat_arrays([column]) for column in events.categorical)
    return Stream(
        name, schema, EventBatch(events.labels_B, events.times_s_B, flat, events.numerics_BN)
    )
