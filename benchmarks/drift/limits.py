"""The physical limit of each drift's delay: no detector that raises a false alarm every gamma
events notices it sooner on average.

In: a kind of drift and a click rate. Out: (ln(gamma KL) - 1) / KL events, where KL is the mean
divergence of the clicks after the drift from those before it, per event, given all that can be seen
of the event (Lorden, 1971; the term -1 is that of a Bernoulli signal whose change is known). It
holds for detectors that know the truth before and after; ours know neither.
"""

import math
from functools import cache

import msgspec
import numpy as np

from benchmarks.drift.streams import AGAIN, AT, KINDS, stream
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.synthetic.world import World

SEEDS = range(5)
GAMMA = DriftConfig().expected_events_between_false_alarms


@cache
def limit(name: str, rate: float) -> float:
    """Events; NaN for kinds that change what is seen and not the clicks, and for gradual ones."""
    kind = KINDS.get(name.removeprefix("first day: "))
    if kind is None or "gradual" in kind.drifts or not ("concept" in name or "rate" in name):
        return math.nan
    divergence = float(np.mean([_divergence(name, rate, seed) for seed in SEEDS]))
    return (math.log(GAMMA * divergence) - 1) / divergence


def _divergence(name: str, rate: float, seed: int) -> float:
    config = stream(rate, seed, name.removeprefix("first day: "))
    changed, calm = World(config), World(msgspec.structs.replace(config, drifts=()))
    size = len(changed.draw(0).labels_B)
    blocks = [b for b in range(changed.blocks) if AT <= b * size and (b + 1) * size <= AGAIN]
    blocks = blocks[:1] or [changed.blocks - 1]
    found = [
        (changed.draw(block).probability_B, calm.draw(block).probability_B) for block in blocks
    ]
    after_B, before_B = (
        np.concatenate(side).astype(np.float64) for side in zip(*found, strict=True)
    )
    click_B = after_B * np.log(after_B / before_B)
    none_B = (1 - after_B) * np.log((1 - after_B) / (1 - before_B))
    return float((click_B + none_B).mean())
