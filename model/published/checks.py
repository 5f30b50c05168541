"""The rules that a checkpoint must keep before anything is made of it.

In: a header and tensors whose checksum is right. Out: nothing, or a `CheckpointError`. A checksum
says that bytes are as they were packed, not that their packer was right; kernels check nothing, so
a wrong type, shape or row number would end the process that scores.
"""

import math
from collections.abc import Mapping

import torch

from niwaki.model.deep.network import Network
from niwaki.model.errors import CheckpointError
from niwaki.model.published import tensors as names
from niwaki.model.published.checkpoint import Header

_ROW_TYPES = (torch.int32, torch.int64)
_MOST_SCALES = 16
"""The kernels are compiled for their number, which takes the longer the more there are."""
_MOST_NUMBERS = 2**34
"""Numbers in all tables of a model, and widths of a network: beyond all memory."""
_TYPES = {names.MIXTURE: torch.float64, names.LIVING_PAIRS: torch.int64}
"""The types of the tensors that are not float32, without those of memory's tables."""


def check_header(header: Header) -> None:
    """Raise `CheckpointError` unless a model can be made of what `header` says."""
    shape, schema = header.shape, header.schema
    widths = (*shape.bottom, *shape.top, shape.slots, shape.embedding_dim)
    half_lives = header.half_lives_events
    rules = {
        "table_rows": (2 <= header.table_rows <= _MOST_NUMBERS, "must be at least 2"),
        "pair_rows": (0 <= header.pair_rows <= _MOST_NUMBERS, "must be at least 0"),
        "max_pairs": ((header.max_pairs or 0) >= 0, "must be at least 0"),
        "max_list_pairs": (header.max_list_pairs >= 0, "must be at least 0"),
        "half_lives_events": (
            0 < len(half_lives) <= _MOST_SCALES and min(half_lives) > 0,
            f"must be 1 to {_MOST_SCALES}, > 0",
        ),
        "shape": (
            shape.fields == len(schema.fields)
            and shape.numerics == 2 * len(schema.numerics)
            and shape.embedding_dim == header.dense_shape.embedding_dim
            and min(widths) >= 0
            and sum(widths) <= _MOST_NUMBERS
            and len(shape.top) > 0
            and min(shape.bottom + shape.top) > 0,
            "must be that of a network of the schema",
        ),
        "multiply_adds": (header.multiply_adds >= 0, "must be at least 0"),
        "dense_multiply_adds": (header.dense_multiply_adds > 0, "must be at least 1"),
        "events": (header.events >= 0, "must be at least 0"),
    }
    for name, (holds, rule) in rules.items():
        if not holds:
            raise CheckpointError(f"header.{name}", rule, getattr(header, name))


def check_room(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `CheckpointError` where tables of these shapes are larger than any memory."""
    if sum(math.prod(shape) for shape in shapes.values()) > _MOST_NUMBERS:
        raise CheckpointError("tables", "must fit into memory", dict(shapes))


def check_shapes(
    tensors: names.Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, torch.dtype],
) -> None:
    """Raise `CheckpointError` unless each tensor is there, of its shape and type. `types`: of
    those whose type depends on the schema. The types of row numbers are the caller's to check."""
    for name, shape in shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(f"tensor {name}", f"must be {list(shape)}", found)
        wanted = types.get(name, _TYPES.get(name, torch.float32))
        if names.is_rows(name):
            continue
        if tensors[name].dtype != wanted:
            raise CheckpointError(f"tensor {name}", f"must be {wanted}", tensors[name].dtype)


def not_finite(tensors: names.Tensors) -> str | None:
    """The name of a tensor that has a number which is not finite; None: there is none. Knots are
    infinite where they are not used."""
    for name, tensor in tensors.items():
        if name == names.KNOTS:
            finite = not bool(tensor.isnan().any())
        else:
            # Where a sum is finite, all are; it takes no memory. A sum may also overflow.
            finite = (
                not tensor.is_floating_point()
                or bool(tensor.sum().isfinite())
                or bool(tensor.isfinite().all())
            )
        if not finite:
            return name
    return None


def check_finite(tensors: names.Tensors) -> None:
    """Raise `CheckpointError` unless all numbers are finite."""
    if (name := not_finite(tensors)) is not None:
        raise CheckpointError(f"tensor {name}", "must be finite")


def check_experts(known: list[str], found: list[str]) -> None:
    """Raise `CheckpointError` unless the further experts `found` are those that are known."""
    if known != found:
        rule = f"must be {', '.join(known) or 'none'} for this program"
        raise CheckpointError("further experts", rule, shown=", ".join(found) or "none")


def check_blocks(network: Network, blocks: Mapping[str, torch.Tensor]) -> None:
    """Raise `CheckpointError` unless `blocks` are some of the network's, by group."""
    sizes = {group.name: group.size for group in network.groups} if network.shape.block else {}
    if blocks and set(blocks) != set(sizes):
        raise CheckpointError("blocks", f"must be those of {sorted(sizes)}", sorted(blocks))
    for group, blocks_N in blocks.items():
        ascending = blocks_N.dim() == 1 and bool((blocks_N.diff() > 0).all())
        if blocks_N.dtype != torch.int64 or not ascending or not within(blocks_N, sizes[group]):
            rule = f"must be blocks of a grid of {sizes[group]}"
            raise CheckpointError(f"tensor {names.blocks_of(group)}", rule)


def within(rows_U: torch.Tensor, size: int) -> bool:
    """True for integers of 0 .. `size` - 1."""
    if rows_U.dtype not in _ROW_TYPES:
        return False
    return not len(rows_U) or 0 <= int(rows_U.min()) <= int(rows_U.max()) < size
