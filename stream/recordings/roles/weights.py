"""Columns that say how much an event weighs, or how many were left out beside it.

In: facts of columns, and what a user asks for. Out: an error for a column that can't be used so,
and the words that mention one that could. None is taken unasked: it changes all that is measured.
"""

import math

from niwaki.stream.errors import ConfigError
from niwaki.stream.recordings.columns import Facts
from niwaki.stream.recordings.names import is_sampling_name, is_weight_name
from niwaki.stream.recordings.roles.asked import Asked, option_of

RULES = {"weight": "numbers >= 0", "sampling_ratio": "numbers in (0, 1]"}
"""The values that a column must hold, by its role."""
_VALID_SHARE = 0.9


def check_weights(facts: dict[str, Facts], asked: Asked) -> None:
    """Raise `ConfigError` if a column that is asked for holds something else."""
    for role, rule in RULES.items():
        name = getattr(asked, role)
        if name and _fitting(facts[name], role) < _VALID_SHARE:
            examples = ", ".join(facts[name].examples) or "none"
            raise ConfigError(
                option_of(role),
                f"must be a column of {rule} in every event; it has {examples}",
                name,
            )


def mention(facts: Facts, asked: Asked) -> str:
    """The words about a column that could be a weight or a sampling ratio; empty for others."""
    name = facts.name
    if not asked.weight and is_weight_name(name) and _fitting(facts, "weight") == 1:
        return f"--weight {name} would weigh events by it"
    if not asked.sampling_ratio and is_sampling_name(name):
        if _fitting(facts, "sampling_ratio") == 1:
            return f"--sampling-ratio {name} would undo a sampling of events without a click"
    return ""


def _fitting(facts: Facts, role: str) -> float:
    """Share of rows with a value that the role allows, 0..1."""
    if facts.unread is not None:
        return 0.0
    least, most = (0.0, math.inf) if role == "weight" else (5e-324, 1.0)
    fitting = sum(rows for number, rows in facts.numbers.items() if least <= number <= most)
    return fitting / max(len(facts.texts), 1)
