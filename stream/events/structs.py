"""Types of JSON objects with columns of any name."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from niwaki.stream.errors import ConfigError

_FORBIDDEN = frozenset('\\"')


def can_be_fields(names: Iterable[str]) -> bool:
    """True if a struct can have fields of these names."""
    return not any(set(name) & _FORBIDDEN or not name.isprintable() for name in names)


def new_struct(
    columns: Sequence[tuple[str, Any, object]],
    *,
    omit_defaults: bool = False,
    forbid_unknown_fields: bool = False,
) -> type[msgspec.Struct]:
    """A struct type with fields f0, f1, ..., which in JSON have the names of their columns. A
    column may be called "class" or "a b"."""
    names = {f"f{at}": column[0] for at, column in enumerate(columns)}
    fields = [(field, *column[1:]) for field, column in zip(names, columns, strict=True)]
    try:
        return msgspec.defstruct(
            "Event",
            fields,
            rename=names,
            gc=False,
            omit_defaults=omit_defaults,
            forbid_unknown_fields=forbid_unknown_fields,
        )
    except ValueError as error:
        raise ConfigError("schema", f"a column can't have that name ({error})") from error
