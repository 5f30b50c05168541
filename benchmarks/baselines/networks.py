"""Networks of others in torch: a plain DLRM, and DIN.

Lists are values and offsets, as niwaki has them, and are padded nowhere. Where the schema says that
a list or a column shares another's embeddings, these networks share them, too.

Shapes: B events, F fields (lists included), L lists, N numerics, M = 2N prepared numerics, D
embedding dimension, V vectors of an event, X values of a list.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as fn

from benchmarks.baselines.stream import Stream
from niwaki.model.config import LearnerConfig
from niwaki.model.features.encoder import HashedEvents
from niwaki.model.features.lists import ListRows
from niwaki.model.features.numerics import Numerics, prepare

_ATTENTION_WIDTH = 36


class PlainDLRM(torch.nn.Module):
    """Embeddings, their dot products and a bottom MLP's vector into a top MLP (Naumov et al.,
    arXiv:1906.00091); of a list, the mean of its values' embeddings.

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
        dim = config.embedding_dim
        fields = len(schema.fields)
        self._columns, numerics = len(schema.numeric), 2 * len(schema.numeric)
        self._numerics = Numerics(self._columns, config.numeric_horizon_events)
        self.table = torch.nn.Embedding(max(fields, 1) * config.table_rows, dim, sparse=True)
        torch.nn.init.normal_(self.table.weight, std=0.05)
        vectors = fields + (1 if numerics else 0)
        self._pairs = torch.triu_indices(vectors, vectors, 1)
        self.bottom = _mlp((numerics, *config.bottom, dim)) if numerics else None
        self.top = _mlp((vectors * dim + self._pairs.shape[1], *config.top, 1))
        self._add_parts(dim)
        self._tables_optimizer = torch.optim.Adagrad(self.table.parameters(), lr=embedding_rate)
        dense = [p for name, p in self.named_parameters() if not name.startswith("table")]
        self._network_optimizer = torch.optim.Adam(dense, lr=network_rate, fused=True)

    def forward(self, events: HashedEvents) -> torch.Tensor:
        singles_BFD = self.table(events.embedded_BF)
        vectors = [singles_BFD]
        if events.lists:
            vectors.append(self._list_vectors(events.lists, singles_BFD))
        if self.bottom is not None:
            numerics_BN = events.raw_numerics_BN[:, : self._columns]
            prepared = prepare(numerics_BN, self._numerics.scale())
            scores_BM = torch.from_numpy(prepared.scores_BM)
            vectors.append(self.bottom(scores_BM).unsqueeze(1))
        vectors_BVD = torch.cat(vectors, 1)
        dots_BVV = vectors_BVD @ vectors_BVD.transpose(1, 2)
        inputs = [vectors_BVD.flatten(1), dots_BVV[:, self._pairs[0], self._pairs[1]]]
        return self.top(torch.cat(inputs, 1)).squeeze(1)

    @torch.no_grad()
    def predict(self, start: int, stop: int) -> np.ndarray:
        return self(self._stream.hashed.part(start, stop)).numpy()

    def learn(self, start: int, stop: int) -> None:
        self.step(self._stream.hashed.part(start, stop), self._labels_B[start:stop])

    def step(self, events: HashedEvents, labels_B: torch.Tensor) -> np.ndarray:
        """Learn one batch; (B,), its logits before."""
        logits_B = self(events)
        loss = fn.binary_cross_entropy_with_logits(logits_B, labels_B)
        for optimizer in (self._tables_optimizer, self._network_optimizer):
            optimizer.zero_grad()
        with torch.sparse.check_sparse_tensor_invariants(
            False
        ):  # the default, said aloud: without it torch warns
            loss.backward()
            for optimizer in (self._tables_optimizer, self._network_optimizer):
                optimizer.step()
        self._numerics.update(events.raw_numerics_BN[:, : self._columns])
        return logits_B.detach().numpy()

    def _add_parts(self, dim: int) -> None:
        """Make the parts that a kind of network has beyond these."""

    def _list_vectors(self, lists: Sequence[ListRows], singles_BFD: torch.Tensor) -> torch.Tensor:
        """(B, L, D): a vector of each list."""
        return self._pooled(lists)

    def _pooled(self, lists: Sequence[ListRows]) -> torch.Tensor:
        """(B, L, D): the mean of each list's embeddings, by the weights of its values."""
        flat = ListRows.concat(lists)
        bags_LBD = fn.embedding_bag(
            torch.from_numpy(flat.embedded_V),
            self.table.weight,
            torch.from_numpy(flat.offsets[:-1]),
            mode="sum",
            sparse=True,
            per_sample_weights=torch.from_numpy(flat.shares_V),
        )
        return bags_LBD.view(len(lists), -1, bags_LBD.shape[1]).transpose(0, 1)


class DIN(PlainDLRM):
    """The DLRM with the local activation unit of the Deep Interest Network (Zhou et al. 2018,
    arXiv:1706.06978, section 4.3) in the place of the mean, for lists that share the candidate's
    embeddings; the mean for the others.

    A list's vector is the sum of its values' embeddings, each times an activation: an MLP of 36
    units over the value, the candidate, their product and their difference. As in the paper, no
    softmax. Dot products and everything else are the DLRM's, so the two differ by this alone.
    """

    def _add_parts(self, dim: int) -> None:
        schema = self._stream.schema
        self._candidate = schema.single_fields.index(self._stream.candidate)
        self._attended = [
            schema.shares.get(name) == self._stream.candidate for name in schema.lists
        ]
        self.activation = torch.nn.Sequential(
            torch.nn.Linear(4 * dim, _ATTENTION_WIDTH),
            torch.nn.PReLU(),
            torch.nn.Linear(_ATTENTION_WIDTH, 1),
        )

    def _list_vectors(self, lists: Sequence[ListRows], singles_BFD: torch.Tensor) -> torch.Tensor:
        others = [
            one for one, is_attended in zip(lists, self._attended, strict=True) if not is_attended
        ]
        pooled = list(self._pooled(others).unbind(1)) if others else []
        candidate_BD = singles_BFD[:, self._candidate]
        vectors = [
            self._attend(one, candidate_BD) if is_attended else pooled.pop(0)
            for one, is_attended in zip(lists, self._attended, strict=True)
        ]
        return torch.stack(vectors, 1)

    def _attend(self, rows: ListRows, candidate_BD: torch.Tensor) -> torch.Tensor:
        """(B, D): the sum of a list's embeddings by their activations."""
        flat = ListRows.concat([rows])
        counts_B = torch.from_numpy(np.diff(flat.offsets))
        events_X = torch.repeat_interleave(counts_B)
        values_XD = self.table(torch.from_numpy(flat.embedded_V))
        candidates_XD = candidate_BD[events_X]
        seen = values_XD, candidates_XD, values_XD * candidates_XD, values_XD - candidates_XD
        activations_X1 = self.activation(torch.cat(seen, 1))
        # 1 in a list without weights.
        weights_X = torch.from_numpy(flat.shares_V) * counts_B[events_X]
        summed_BD = torch.zeros_like(candidate_BD)
        return summed_BD.index_add(0, events_X, values_XD * activations_X1 * weights_X[:, None])


def _mlp(widths: tuple[int, ...]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [torch.nn.Linear(widths[i], widths[i + 1]), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])
