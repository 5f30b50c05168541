"""The label, less its usual course of a day.

In: labels and event times. Out: for each event the label, seasonally adjusted. During the first day
of event time, in which the daily cycle is measured, it is the label less its local level, and
nothing where the stream has too few events an hour for that.
"""

from collections.abc import Mapping

import numpy as np

from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.seasonal.local_level import LocalLevel
from niwaki.stream.drift.seasonal.seasonality import Seasonality


class AdjustedLabel:
    """The label, seasonally adjusted; in the first day less its local level."""

    def __init__(self) -> None:
        self._season = Seasonality(learned=False)
        self._local = LocalLevel()
        self._was_known = True
        self.begun = False

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray | None:
        """Adjusted labels, float64 (B,); None where a stream has few events, in its first day."""
        labels_B = observed.labels_B.astype(np.float64)
        adjusted_B = self._season.update(labels_B, observed.times_s_B)
        known = self._season.known
        self.begun = known and not self._was_known
        self._was_known = known
        if known:
            return adjusted_B
        return self._local.update(labels_B, observed.times_s_B)

    def reset(self) -> None:
        """Change nothing: labels do not depend on what the model has learned."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        arrays = self._season.state() | self._local.state()
        return {f":{name}": array for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._season.restore({name: arrays[f":{name}"] for name in self._season.state()})
        self._local.restore({name: arrays[f":{name}"] for name in self._local.state()})
        self._was_known = self._season.known
