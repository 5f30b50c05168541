"""Checkpoints with the right checksum and wrong contents: changes of tensors and of header fields,
for property tests."""

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from hypothesis import strategies as st

from niwaki.model.published.checkpoint import Header, pack_as, unpack_as

Parts = tuple[dict[str, Any], dict[str, torch.Tensor]]
Change = Callable[[Parts], None]

_TYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_NUMBERS = (
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    1,
    127,
    2**31 - 1,
    2**62,
    -(2**62),
    1e300,
)
_ABSURD = (
    *(-1, 0, 1, 3, 2**31, 2**53, 2**63, 10**30, 1e308, -0.5, True, None, "", "x"),
    *([], [-1], [0], [1, 2], [10**9, 10**9], [1] * 1000, {}, {"x": 1}),
)
_SHAPES: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
    lambda tensor: tensor.flatten(),
    lambda tensor: tensor[None],
    lambda tensor: tensor[..., None],
    lambda tensor: tensor[:-1] if tensor.dim() else tensor,
    lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() else tensor,
    lambda tensor: tensor[:0] if tensor.dim() else tensor,
    lambda tensor: tensor.flatten()[:1].reshape(()) if tensor.numel() else tensor,
)


def _name(parts: Parts, place: int) -> str:
    names = sorted(parts[1])
    return names[place % len(names)]


def _drop(place: int) -> Change:
    def change(parts: Parts) -> None:
        del parts[1][_name(parts, place)]

    return change


def _retype(place: int, kind: torch.dtype) -> Change:
    def change(parts: Parts) -> None:
        name = _name(parts, place)
        parts[1][name] = parts[1][name].to(kind)

    return change


def _reshape(place: int, how: int) -> Change:
    def change(parts: Parts) -> None:
        name = _name(parts, place)
        parts[1][name] = _SHAPES[how](parts[1][name]).contiguous()

    return change


def _set(place: int, at: int, number: float, everywhere: bool) -> Change:
    def change(parts: Parts) -> None:
        name = _name(parts, place)
        tensor = parts[1][name].clone()
        if not tensor.numel():
            return
        if tensor.is_floating_point():
            most = torch.finfo(tensor.dtype)
            value = float(number)
            if abs(value) < float("inf"):
                value = min(max(value, most.min), most.max)
        elif tensor.dtype is torch.bool:
            value = bool(number)
        else:
            limits = torch.iinfo(tensor.dtype)
            value = 0 if number != number else int(min(max(number, limits.min), limits.max))
        flat = tensor.view(-1)
        flat[slice(None) if everywhere else at % len(flat)] = value
        parts[1][name] = tensor

    return change


def _exchange(one: int, other: int) -> Change:
    def change(parts: Parts) -> None:
        first, second = _name(parts, one), _name(parts, other)
        parts[1][first], parts[1][second] = parts[1][second], parts[1][first]

    return change


def _field(section: str, place: int, value: object, gone: bool) -> Change:
    def change(parts: Parts) -> None:
        fields = parts[0][section] if section else parts[0]
        if not isinstance(fields, dict) or not fields:
            return
        name = sorted(fields)[place % len(fields)]
        if gone:
            del fields[name]
        elif name not in ("version", "base", "parent"):
            fields[name] = value

    return change


_places = st.integers(0, 10**6)
changes = st.lists(
    st.one_of(
        st.builds(_drop, _places),
        st.builds(_retype, _places, st.sampled_from(_TYPES)),
        st.builds(_reshape, _places, st.integers(0, len(_SHAPES) - 1)),
        st.builds(_set, _places, _places, st.sampled_from(_NUMBERS), st.booleans()),
        st.builds(_exchange, _places, _places),
        st.builds(
            _field,
            st.sampled_from(("", "shape", "dense_shape", "schema")),
            _places,
            st.sampled_from(_ABSURD),
            st.booleans(),
        ),
    ),
    min_size=1,
    max_size=3,
)
"""One to three changes of a checkpoint."""


def changed(data: bytes, wanted: list[Change]) -> bytes:
    """A checkpoint with these changes and the checksum of what it is now."""
    header, tensors = unpack_as(data, Header)
    parts = msgspec.to_builtins(header), dict(tensors)
    for change in wanted:
        if parts[1]:
            change(parts)
    return pack_as(parts[0], parts[1])


def as_version(data: bytes, version: int, base: int = 0) -> tuple[Header, bytes]:
    """The same checkpoint as another version. `base`: see `Header`."""
    header, tensors = unpack_as(data, Header)
    header = msgspec.structs.replace(header, version=version, parent=version - 1, base=base)
    return header, pack_as(header, tensors)
