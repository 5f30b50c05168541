"""The forward and the backward pass of the deep expert, written out: what learning spends most of
its time on.

In: the inputs of a batch, then the error of each event's logit. Out: the logits' corrections, then
the gradients of the *summed* loss in every parameter, in the embeddings, and in masks where there
are any. `model.deep.network` says what is computed; `Network.correction` is the same function for
those who only predict. The compact network of the sparse phase, the dense one, and the dense one
under masks are this one code at different widths, and nothing is touched but what they hold; where
blocks of weights are pruned, what is left of the matrices is `model.deep.sparse`'s.

Buffers are kept while batches are of one size. Masks are straight-through: a unit that is masked
away still learns what it would be worth, but nothing flows through it. Columns of the tables are
masked in the vectors, or cut out: then they are zero in the dot products, and the top MLP has no
inputs for them.

Shapes: as in `model.deep.network`; I inputs of an MLP, O outputs, P dot products, X columns of the
tables.
"""

from collections.abc import Mapping

import numpy as np
import torch

from niwaki.model.deep import kernels
from niwaki.model.deep.interaction import compiled_dot_gradients, compiled_dots
from niwaki.model.deep.network import COLUMNS, Network, Parameters
from niwaki.model.deep.sparse import SparseMlp
from niwaki.pruning.blocks import BlockGroup
from niwaki.pruning.units import MaskGradient

Masks = Mapping[str, torch.Tensor]
"""By group: float32 (H,), 0 or 1."""


class Passes:
    """Both passes of one network, over parameters and gradients that somebody else owns."""

    def __init__(self, network: Network, parameters: Parameters, gradients: Parameters):
        """`gradients`: of the shapes of `parameters`; overwritten by each backward pass."""
        shape = network.shape
        self._shape = shape
        self._bottom = (
            _mlp("bottom", len(shape.bottom), network, parameters, gradients)
            if shape.bottom
            else None
        )
        self._top = _mlp("top", len(shape.top), network, parameters, gradients)
        self._columns = shape.fields * shape.embedding_dim
        self._cut_X = None if network.column_mask_FD is None else network.column_mask_FD.flatten()
        self._mask_X: torch.Tensor | None = None
        self._column_gradients: dict[str, MaskGradient] = {}
        self._read = network.read
        self._vectors = len(self._read)
        self._fields = self._vectors - (shape.embedding_dim if shape.bottom else 0)
        self._width = network.vectors * shape.embedding_dim
        self._first_pair = self._vectors + shape.numerics + shape.slots  # of the top's inputs
        self._pairs = network.pair_count
        if self._pairs:
            interaction = network.vectors, shape.embedding_dim
            self._take_dots, self._add_dot_gradients = (
                compiled_dots(*interaction),
                compiled_dot_gradients(*interaction),
            )
        self._events = -1

    def forward(
        self,
        table_RD: np.ndarray,
        rows_BF: np.ndarray,
        numerics_BM: torch.Tensor,
        slots_BS: torch.Tensor,
        masks: Masks | None = None,
    ) -> torch.Tensor:
        """(B,): what is to be added to the linear logit. Valid until the next pass, as all that is
        returned here. `rows_BF`: of the embeddings in `table_RD`."""
        self._reserve(len(numerics_BM))
        self._mask_X = masks.get(COLUMNS) if masks and self._cut_X is None else self._cut_X
        numerics, slots = self._places
        kernels.gather_embeddings(table_RD, rows_BF, self._wide)
        if self._mask_X is not None:
            columns_BX = self._wide_BX[:, : self._columns]
            if self._cut_X is None:
                self._given_BX = columns_BX.clone()
            columns_BX *= self._mask_X
            if self._cut_X is not None:
                self._x_BI[:, : self._fields] = self._wide_BX.index_select(
                    1, self._read[: self._fields]
                )
        numerics[:], slots[:] = numerics_BM.numpy(), slots_BS.numpy()
        if self._bottom:
            self._bottom.forward(self._numerics_BM, self._dense_BD, masks)
            if self._cut_X is not None:
                self._wide_BX[:, self._columns :] = self._dense_BD
        if self._pairs:
            self._take_dots(self._wide, self._x, self._first_pair)
        self._top.forward(self._x_BI, self._correction_B1, masks)
        return self._correction_B

    def backward(self, errors_B: torch.Tensor) -> torch.Tensor:
        """(B, V, D): the gradient in the vectors of the interaction, those of the fields first. All
        other gradients are where the parameters' are. `errors_B`: dL/dlogit of each event."""
        self._top.backward(self._x_BI, errors_B.unsqueeze(1))
        errors_BX, read = self._errors_BX, slice(0, self._vectors)
        if self._cut_X is not None:
            read_BX = self._top.input_gradient(read, torch.empty(len(errors_BX), self._vectors))
            errors_BX.zero_().index_copy_(1, self._read, read_BX)
        elif self._vectors:
            self._top.input_gradient(read, errors_BX)
        if self._pairs:
            self._top.input_gradient(
                slice(self._first_pair, self._first_pair + self._pairs), self._errors_BP
            )
            self._add_dot_gradients(self._pair_errors, self._wide, self._errors)
        if self._bottom:
            self._bottom.backward(self._numerics_BM, self._dense_errors_BD)
        self._column_gradients = {}
        if self._mask_X is not None:
            if self._cut_X is None:
                each_BX = errors_BX[:, : self._columns] * self._given_BX
                self._column_gradients[COLUMNS] = MaskGradient(
                    each_BX.mean(0), each_BX.square_().mean(0)
                )
            errors_BX[:, : self._columns] *= self._mask_X
        return self._errors_BVD

    def mask_gradients(self) -> dict[str, MaskGradient]:
        """By group: what the last backward pass says of its units."""
        found = (self._bottom.mask_gradients if self._bottom else {}) | self._top.mask_gradients
        return found | self._column_gradients

    def _reserve(self, events: int) -> None:
        """Buffers, and views of them: with small networks, making these at each pass takes longer
        than the pass."""
        if events == self._events:
            return
        self._events, dim, vectors, pairs = (
            events,
            self._shape.embedding_dim,
            self._vectors,
            self._first_pair,
        )
        slots = vectors + self._shape.numerics
        self._x_BI = torch.empty(events, pairs + self._pairs)
        self._x = self._x_BI.numpy()
        self._places = self._x[:, vectors:slots], self._x[:, slots:pairs]
        self._numerics_BM = self._x_BI[:, vectors:slots]
        self._correction_B1 = torch.empty(events, 1)
        self._correction_B = self._correction_B1[:, 0]
        self._errors_BVD = torch.empty(events, self._width // max(dim, 1), dim)
        self._errors, self._errors_BX = (
            self._errors_BVD.numpy(),
            self._errors_BVD.view(events, self._width),
        )
        # Whole vectors: the first of the inputs, unless columns are cut out.
        self._wide_BX = self._x_BI if self._cut_X is None else torch.empty(events, self._width)
        self._wide = self._wide_BX.numpy()
        if self._width:
            self._dense_BD, self._dense_errors_BD = (
                self._x_BI[:, self._fields : vectors],
                self._errors_BVD[:, -1],
            )
        self._errors_BP = torch.empty(events, self._pairs)
        self._pair_errors = self._errors_BP.numpy()


class _Mlp:
    """Rectified layers, and a linear one at the end.

    Of hidden layers events are the columns: the products, most of all those of narrow layers, are
    faster by up to a third then.
    """

    def __init__(self, name: str, hidden: int, parameters: Parameters, gradients: Parameters):
        names = [f"{name}.{i}" for i in range(hidden + 1)]
        self._names = names[:-1]
        self._weights, self._biases, self._weight_gradients, self._bias_gradients = (
            [tensors[f"{layer}.{part}"] for layer in names]
            for tensors in (parameters, gradients)
            for part in ("weight", "bias")
        )
        self._transposed = [weight.T for weight in self._weights]
        self._bias_arrays = [
            (bias.numpy(), of.numpy())
            for bias, of in zip(self._biases, self._bias_gradients, strict=True)
        ]
        self.mask_gradients: dict[str, MaskGradient] = {}
        self._active: list[torch.Tensor] = []
        self._masks: Masks | None = None
        self._passed: list[torch.Tensor] = []

    def forward(self, x_BI: torch.Tensor, out_BO: torch.Tensor, masks: Masks | None) -> None:
        """`out_BO` is written to."""
        self._reserve(len(x_BI), masks)
        x_IB = x_BI.T
        for i, name in enumerate(self._names):
            torch.mm(self._weights[i], x_IB, out=self._active[i])
            kernels.rectify(self._arrays[i][0], self._bias_arrays[i][0])
            if masks:
                kernels.apply_mask(self._arrays[i][0], masks[name].numpy(), self._passed[i].numpy())
            x_IB = self._passed[i]
        torch.addmm(self._biases[-1], self._passed_back[-1], self._transposed[-1], out=out_BO)

    def backward(self, x_BI: torch.Tensor, errors_BO: torch.Tensor) -> None:
        """All gradients but that in the inputs. `x_BI`: as in the forward pass."""
        torch.sum(errors_BO, 0, out=self._bias_gradients[-1])
        errors_OB = errors_BO.T
        for i in reversed(range(len(self._names))):
            torch.mm(errors_OB, self._passed_back[i], out=self._weight_gradients[i + 1])
            torch.mm(self._transposed[i + 1], errors_OB, out=self._errors[i])
            errors_OB, (active, errors) = self._errors[i], self._arrays[i]
            if self._masks:
                name, gradient = self._names[i], self.mask_gradients[self._names[i]]
                kernels.apply_mask_backward(errors, active, self._masks[name].numpy(),
                                     gradient.mean_U.numpy(), gradient.square_U.numpy())  # fmt: skip
            kernels.rectify_backward(errors, active, self._bias_arrays[i][1])
        torch.mm(errors_OB, x_BI, out=self._weight_gradients[0])

    def input_gradient(self, inputs: slice, out_BX: torch.Tensor) -> torch.Tensor:
        """In some of the inputs, after a backward pass."""
        return torch.mm(self._first_BH, self._weights[0][:, inputs], out=out_BX)

    def _reserve(self, events: int, masks: Masks | None) -> None:
        """Buffers by hidden layer: what its units say, what a mask lets through of it, and the
        gradient there."""
        if not self._active or self._active[0].shape[1] != events:
            widths = [len(bias) for bias in self._biases[:-1]]
            self._active, self._errors = (
                [torch.empty(width, events) for width in widths] for _ in range(2)
            )
            self._arrays = [
                (one.numpy(), of.numpy())
                for one, of in zip(self._active, self._errors, strict=True)
            ]
            self._first_BH = self._errors[0].T
            self._pass_on(self._active)
        self._masks = masks
        if not masks:
            self._pass_on(self._active)
        elif self._passed is self._active:
            self._pass_on([torch.empty_like(active) for active in self._active])
            self.mask_gradients = {
                name: MaskGradient(torch.empty(len(active)), torch.empty(len(active)))
                for name, active in zip(self._names, self._active, strict=True)
            }

    def _pass_on(self, passed: list[torch.Tensor]) -> None:
        if self._passed is not passed:
            self._passed, self._passed_back = passed, [one.T for one in passed]


class _BlockMlp(_Mlp):
    """The same with masks on blocks of weights."""

    def __init__(
        self,
        name: str,
        hidden: int,
        groups: Mapping[str, BlockGroup],
        parameters: Parameters,
        gradients: Parameters,
    ):
        super().__init__(name, hidden, parameters, gradients)
        self._groups = [groups[f"{name}.{i}"] for i in range(hidden + 1)]
        self._every, self._factors = self._weights, None

    def forward(self, x_BI: torch.Tensor, out_BO: torch.Tensor, masks: Masks | None) -> None:
        self._factors = (
            [group.spread(masks[group.name]) for group in self._groups] if masks else None
        )
        self._weights = (
            [w * m for w, m in zip(self._every, self._factors, strict=True)]
            if masks
            else self._every
        )
        self._transposed = [weight.T for weight in self._weights]
        super().forward(x_BI, out_BO, None)

    def backward(self, x_BI: torch.Tensor, errors_BO: torch.Tensor) -> None:
        super().backward(x_BI, errors_BO)
        if not self._factors:
            return
        events, layers_of = (
            len(errors_BO),
            (self._groups, self._every, self._weight_gradients, self._factors),
        )
        for group, weight_OI, gradient_OI, factor_OI in zip(*layers_of, strict=True):
            mean_U = group.sums(weight_OI * gradient_OI) / events
            # As if events were independent and the true mean zero: each event's own gradient would
            # take another pass.
            self.mask_gradients[group.name] = MaskGradient(mean_U, events * mean_U.square())
            gradient_OI *= factor_OI


def _mlp(
    name: str, hidden: int, network: Network, parameters: Parameters, gradients: Parameters
) -> _Mlp | SparseMlp:
    if network.patterns:
        return SparseMlp(name, hidden, network.patterns, parameters, gradients)
    if network.shape.block:
        return _BlockMlp(
            name, hidden, {group.name: group for group in network.groups}, parameters, gradients
        )
    return _Mlp(name, hidden, parameters, gradients)
