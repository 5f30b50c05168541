"""Signals: the quantities that drift detectors watch, one value for each event.

In: `Observations` of a batch. Out: an array for each signal that some detector reads; no other is
computed, and none before it is defined. `SIGNALS` is the table of all signals; a new one is one
record in it, with a class of its own if it remembers something. A signal of a column has the
column in its name, as `unseen:item`. Signals do not decide what a drift is.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import nearest
from niwaki.stream.drift.column_signals import Stability, Unseen
from niwaki.stream.drift.observations import Computation, Observations
from niwaki.stream.drift.page_hinkley import Direction
from niwaki.stream.drift.seasonal.adjusted_label import AdjustedLabel
from niwaki.stream.drift.seasonal.staleness import Staleness
from niwaki.stream.errors import ConfigError


class Signal(NamedTuple):
    """One quantity that a detector can watch."""

    name: str
    meaning: str
    compute: Callable[[Schema, int, str], Computation]
    """Makes the computation, from the schema, the number of rows of a field's table and the name of
    the column; signals that read no column use none of them."""
    counts: Direction = "both"
    """Changes of the mean that count, unless the detector's `direction` says otherwise."""
    of_the_network: bool = False
    """True if the signal jumps when another network begins to predict."""
    binary: bool = False
    """True for a signal that the detectors of `river.drift.binary` may read: zeros and ones."""
    columns: Callable[[Schema], tuple[str, ...]] | None = None
    """Columns that the signal can be computed of; None for a signal that reads no column."""

    @property
    def form(self) -> str:
        """The name as a detector's `signal` has it."""
        return f"{self.name}:COLUMN" if self.columns else self.name


class _Stateless:
    """A computation that remembers nothing."""

    begun = False

    def __init__(self, function: Callable[[Observations, np.ndarray], np.ndarray]):
        self._function = function

    def update(self, observed: Observations, errors_B: np.ndarray) -> np.ndarray:
        """The function's values, float64 (B,)."""
        return self._function(observed, errors_B)

    def reset(self) -> None:
        """Change nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """No arrays."""
        return {}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Change nothing."""


def _stateless(
    function: Callable[[Observations, np.ndarray], np.ndarray],
) -> Callable[[Schema, int, str], Computation]:
    return lambda schema, rows, column: _Stateless(function)


SIGNALS = {
    signal.name: signal
    for signal in (
        Signal(
            "excess_loss",
            "log loss less the entropy of the prediction, nats; 0 on average while the model is"
            " calibrated, at any time of day and at any stage of learning",
            _stateless(lambda observed, errors_B: errors_B * observed.logits_B),
            counts="up",
            of_the_network=True,
        ),
        Signal(
            "staleness",
            "the prediction's error times the difference between the logits of the slowest expert"
            " and of the next one, in units of its recent root mean square, seasonally adjusted; 0"
            " on average while the prediction is calibrated, above 0 where knowledge from long ago"
            " no longer holds",
            lambda schema, rows, column: Staleness(0),
            counts="up",
            of_the_network=True,
        ),
        Signal(
            "recent_staleness",
            "staleness of the second slowest expert against the third; above 0 where recent"
            " knowledge no longer holds, for instance because an old concept has come back",
            lambda schema, rows, column: Staleness(1),
            counts="up",
            of_the_network=True,
        ),
        Signal(
            "log_loss",
            "log loss of the prediction made before the event was learned, nats; falls whenever the"
            " model learns",
            _stateless(lambda observed, errors_B: observed.losses_B),
            counts="up",
            of_the_network=True,
        ),
        Signal(
            "calibration_error",
            "predicted probability less the label",
            _stateless(lambda observed, errors_B: errors_B),
            of_the_network=True,
        ),
        Signal(
            "label",
            "the label",
            _stateless(lambda observed, errors_B: observed.labels_B.astype(np.float64)),
            binary=True,
        ),
        Signal(
            "adjusted_label",
            "the label, seasonally adjusted; in the first day of event time, in which the daily"
            " cycle is measured, less its level of the last half hour, if there are 2.3 events a"
            " second",
            lambda schema, rows, column: AdjustedLabel(),
        ),
        Signal(
            "prediction",
            "predicted probability",
            _stateless(lambda observed, errors_B: observed.predictions()),
            of_the_network=True,
        ),
        Signal(
            "unseen",
            "1 where the column has a value that no event before had, else 0",
            Unseen,
            counts="up",
            columns=lambda schema: schema.single_fields,
        ),
        Signal(
            "stability",
            "logarithm of how much more often the column's value occurs recently than in the long"
            " run; its mean is one side of the population stability index",
            Stability,
            counts="up",
            columns=lambda schema: (*schema.single_fields, *schema.numeric),
        ),
    )
}
"""All signals, by name."""


def signal_named(name: str) -> Signal:
    """The record of a signal, by the name that a detector gives: `NAME` or `NAME:COLUMN`.

    Raises `ConfigError` for any other name. The column is not checked; `Signals` does so.
    """
    kind = name.partition(":")[0]
    column = name.partition(":")[2]
    signal = SIGNALS.get(kind)
    if signal and (bool(column) if signal.columns else name == kind):
        return signal
    forms = [one.form for one in SIGNALS.values()]
    meant = nearest(name, forms)
    hint = f" (did you mean {meant}?)" if meant else ""
    raise ConfigError("signal", f"must be one of {', '.join(forms)}{hint}", name)


class Signals:
    """Computes the signals that detectors read."""

    def __init__(self, schema: Schema, rows: int, names: Collection[str]):
        """`rows`: of each field's table. `names`: signals to compute, each `NAME` or `NAME:COLUMN`.

        Raises `ConfigError` for an unknown signal or column.
        """
        self.reads_columns = False
        """True if any signal is one of a column."""
        self.begun: frozenset[str] = frozenset()
        """Signals whose last values are made in another way than those before: detectors begin anew
        with them."""
        self._computations: dict[str, Computation] = {}
        for name in sorted(set(names)):
            signal = signal_named(name)
            column = name.partition(":")[2]
            if signal.columns:
                self.reads_columns = True
                columns = signal.columns(schema)
                if column not in columns:
                    rule = f"{signal.name} takes one of {', '.join(columns)}"
                    raise ConfigError("drift.detectors.signal", rule, name)
            self._computations[name] = signal.compute(schema, rows, column)

    def compute(self, observed: Observations) -> dict[str, np.ndarray]:
        """Values of the signals, float64 (B,), by name; a signal that is not defined yet is left
        out. Called in the order of events."""
        errors_B = observed.errors()
        signals = {}
        for name, computation in self._computations.items():
            values_B = computation.update(observed, errors_B)
            if values_B is not None:
                signals[name] = values_B
        self.begun = frozenset(name for name, one in self._computations.items() if one.begun)
        return signals

    def reset(self) -> None:
        """Announce that a drift's turmoil is over, so that scales are measured anew."""
        for computation in self._computations.values():
            computation.reset()

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays by name, for a snapshot."""
        return {
            f"{name}{part}": array
            for name, computation in self._computations.items()
            for part, array in computation.state().items()
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue where `state` was taken; a signal that is not among the arrays begins anew."""
        for name, computation in self._computations.items():
            parts = computation.state()
            if all(f"{name}{part}" in arrays for part in parts):
                computation.restore({part: arrays[f"{name}{part}"] for part in parts})
