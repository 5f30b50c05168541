"""niwaki: a click model that never stops learning, served sparse, and grown dense again when the world changes.

The public names. Each is imported from its room when it is first asked for, so `import niwaki` costs nothing:

    from niwaki import Scorer
    scorer = Scorer.from_redis("redis://localhost:6379/0")
    scorer.score([{"user": "u1", "item": "i7"}])

The command line is `niwaki`, or `python -m niwaki`.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.scorer import Scorer

__version__ = "0.1.0"
__all__ = ["Scorer", "__version__"]

_HOMES = {"Scorer": "serving.scorer"}
_ROOMS = ("pruning", "model", "serving", "stream")
_HERE = Path(__file__).resolve().parent.parent


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'niwaki' has no attribute {name!r}")
    _refuse_namesakes()
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _refuse_namesakes() -> None:
    """The rooms have everyday names. Say so when a package of the caller's own stands in the place of one of them."""
    for room in _ROOMS:
        spec = find_spec(room)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parent.parent != _HERE:
            place = "nothing" if spec is None else spec.origin or "a folder without __init__.py"
            raise ImportError(f"niwaki needs its own package {room!r} beside {_HERE / 'niwaki'}, and found {place}")
