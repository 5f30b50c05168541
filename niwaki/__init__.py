"""niwaki: a click model that never stops learning, served sparse, and grown dense again when the world changes.

The public names. Each is imported from its room when it is first asked for, so `import niwaki` costs nothing:

    from niwaki import Scorer
    scorer = Scorer.from_redis("redis://localhost:6379/0")
    scorer.score([{"user": "u1", "item": "i7"}])

The command line is `niwaki`, or `python -m niwaki`.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.scorer import Scorer
    from stream.river_classifier import RiverClassifier

__version__ = "0.1.0"
__all__ = ["RiverClassifier", "Scorer", "__version__"]

_HOMES = {"RiverClassifier": "stream.river_classifier", "Scorer": "serving.scorer"}
_ROOMS = ("pruning", "model", "serving", "stream")
_PLACE = Path(__file__).resolve().parent.parent
_hidden: dict[str, ModuleType] = {}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'niwaki' has no attribute {name!r}")
    found = getattr(_import(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _import(name: str) -> ModuleType:
    """Import a module of ours.

    The rooms have everyday names. Where the caller has a `model` or a `stream` too, that one keeps the name, and ours
    is known only to its own kind.
    """
    if not any(map(_has_namesake, _ROOMS)):
        return import_module(name)
    theirs = _take_out()
    sys.modules.update(_hidden)
    sys.path.insert(0, str(_PLACE))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(_PLACE))
        _hidden.update(_take_out())
        sys.modules.update(theirs)


def _has_namesake(room: str) -> bool:
    if room in sys.modules:
        file = getattr(sys.modules[room], "__file__", None)
    else:
        spec = find_spec(room)
        file = spec and spec.origin
    return file is None or Path(file).resolve().parent.parent != _PLACE


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in _ROOMS]
    return {name: sys.modules.pop(name) for name in names}
