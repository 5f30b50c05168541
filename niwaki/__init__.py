"""niwaki: a click model that never stops learning, served sparse, and grown dense again when the
world changes.

The public names. Each is imported from its room when it is first asked for, so `import niwaki`
costs nothing:

    from niwaki import Scorer
    scorer = Scorer.from_redis("redis://localhost:6379/0")
    scorer.score([{"user": "u1", "item": "i7"}])

The command line is `niwaki`, or `python -m niwaki`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from niwaki.river_classifier import RiverClassifier
    from niwaki.serving.scorer import Scorer

__version__ = "0.1.0"
__all__ = ["RiverClassifier", "Scorer", "__version__"]

_HOMES = {"RiverClassifier": "niwaki.river_classifier", "Scorer": "niwaki.serving.scorer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'niwaki' has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
