"""The label, less its usual course of a day.

In: labels and event times. Out: for each event the label, seasonally adjusted; nothing during the
first day of event time, in which the daily cycle is measured.
"""

from collections.abc import Mapping

import numpy as np

from niwaki.stream.drift.observations import Observations
from niwaki.stream.drift.seasonal.seasonality import Seasonality


class AdjustedLabel:
    """The label, seasonally adjusted; not defined during the first day of event time."""

    def __init__(self) -> None:
        self._season = Seasonality(learned=False)

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray | None:
        """Adjusted labels, float64 (B,); None during the first day."""
        labels_B = observed.labels_B.astype(np.float64)
        adjusted_B = self._season.update(labels_B, observed.times_s_B)
        return adjusted_B if self._season.known else None

    def reset(self) -> None:
        """Change nothing: labels do not depend on what the model has learned."""

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        return {f":{name}": array for name, array in self._season.state().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken."""
        self._season.restore({name: arrays[f":{name}"] for name in self._season.state()})
