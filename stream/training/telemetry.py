"""Every Prometheus metric of a trainer, declared once, and the HTTP server that shows them.

Beside the walk. In: plain numbers, which the loop hands over as they arise. Out: `/metrics`. Each
scrape computes the ages anew, so they keep growing while the loop stands still. Prometheus computes
rates: throughput is `rate(niwaki_events_total[1m])`. Labels are bounded: once a label has
`MAX_LABEL_VALUES` values, all further ones count together as "other".
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from wsgiref.simple_server import WSGIServer

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    start_http_server,
)

from niwaki.pruning.errors import RuleError
from niwaki.pruning.policy import Phase
from niwaki.serving.errors import STORE_KINDS
from niwaki.stream.errors import ConfigError
from niwaki.stream.training.stopwatch import STAGES

MAX_LABEL_VALUES = 32
SERIES = ("learning", "served")
"""Series of evaluations. learning: the learner predicts each event just before it learns it.
served: the checkpoint published last before the event predicts it."""

# A second series for each counter, which no panel shows. The library declares no types for it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class TelemetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Address of the HTTP server of a trainer's metrics (the `[telemetry]` section)."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 9464
    """Port of `/metrics`, 0..65535; 0 chooses a free one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise RuleError("port", "must be in 0..65535", self.port)


class Telemetry:
    """The metrics of one trainer, in a registry of their own."""

    def __init__(
        self, drifts_of: Iterable[tuple[str, str]] = (), *, clock: Callable[[], float] = time.time
    ):
        """`drifts_of`: (detector, signal) of each detector, so that its count starts at 0. `clock`:
        returns seconds since the epoch."""
        self.registry = CollectorRegistry()
        self._clock = clock
        self._serving: tuple[WSGIServer, threading.Thread] | None = None
        self._values: dict[str, set[str]] = {}
        self._event_time_s = math.nan
        self._published_s = math.nan
        self._saved_s = math.nan

        self._events = self._counter("niwaki_events", "Events by what became of them.", "outcome")
        self._rejected = self._counter(
            "niwaki_rejected_events", "Dead-lettered events by the rule they broke.", "rule"
        )
        self._lag = self._gauge(
            "niwaki_lag_events", "Messages in the topic that are in no batch yet.", "partition"
        )
        self._outlier_times = self._counter(
            "niwaki_outlier_times", "Event times far from those around them, put back."
        )
        self._messages = self._counter("niwaki_polled_messages", "Messages polled.")
        self._polled_bytes = self._counter("niwaki_polled_bytes", "Bytes of the messages polled.")
        self._stages = self._counter(
            "niwaki_stage_seconds", "Time spent, by stage of the walk.", "stage"
        )
        self._age(
            "niwaki_event_age_seconds", "Age of the last learned event.", lambda: self._event_time_s
        )

        self._log_loss = self._gauge(
            "niwaki_log_loss_nats", "Mean log loss in the last window.", "series"
        )
        self._entropy = self._gauge(
            "niwaki_normalized_entropy_ratio",
            "Log loss over the entropy of the base rate, last window.",
            "series",
        )
        self._calibration = self._gauge(
            "niwaki_calibration_ratio",
            "Sum of predictions over sum of labels, in the last window.",
            "series",
        )
        self._auc = self._gauge(
            "niwaki_auc_ratio", "Area under the ROC curve in the last window.", "series"
        )
        self._base_rate = self._gauge(
            "niwaki_base_rate_ratio", "Share of clicks in the last window.", "series"
        )

        self._collisions = self._gauge(
            "niwaki_collision_ratio",
            "Share of a field's values hashed to a row of another one, estimated.",
            "field",
        )

        self._pair_worth = self._gauge(
            "niwaki_pair_worth_nats",
            "Log loss that a pair of columns has saved lately, for each event; of pairs that live.",
            "pair",
        )

        self._resting = self._gauge(
            "niwaki_network_resting", "1 while the network rests since it does not earn its cost."
        )
        self._network_gain = self._gauge(
            "niwaki_network_gain_ratio",
            "Share of the log loss that the network saves, where network_rate is auto.",
        )

        self._phase = self._gauge(
            "niwaki_phase", "1 for the phase that the learner is in, 0 for the others.", "phase"
        )
        self._drifts = self._counter(
            "niwaki_drifts",
            "Drifts noticed; answered: true where the network was regrown for it, or would be.",
            "detector",
            "signal",
            "answered",
        )
        self._drift_mean = self._gauge(
            "niwaki_drift_mean",
            "Mean of the signal before and after the last drift.",
            "detector",
            "signal",
            "side",
        )
        self._drift_error = self._gauge(
            "niwaki_drift_error",
            "Standard error of the difference of those means.",
            "detector",
            "signal",
        )
        self._watched = self._gauge(
            "niwaki_watched_events",
            "Events in which the detector could notice a drift.",
            "detector",
            "signal",
        )
        self._expected = self._gauge(
            "niwaki_expected_events",
            "Events between false alarms that it is calibrated to.",
            "detector",
            "signal",
        )
        self._prunings = self._counter("niwaki_prunings", "Networks cut.")
        self._forced = self._counter(
            "niwaki_forced_handovers", "Networks that took over though they predicted worse."
        )
        self._regrowths = self._counter("niwaki_regrowths", "Regrowths of the dense network.")
        self._sparsity = self._gauge(
            "niwaki_sparsity_ratio", "Share of a layer's units cut away.", "layer"
        )
        self._kept = self._gauge(
            "niwaki_multiply_adds_ratio", "Multiply-adds of the network, as a share of dense."
        )
        self._budget = self._gauge(
            "niwaki_budget_ratio", "Share of the dense multiply-adds allowed: set, or chosen."
        )

        self._version = self._gauge(
            "niwaki_published_version", "Version of the last published checkpoint."
        )
        self._bytes = self._gauge(
            "niwaki_published_bytes", "Size of the last published checkpoint."
        )
        self._dense_bytes = self._gauge("niwaki_dense_bytes", "Size of the dense model as float32.")
        self._age(
            "niwaki_published_age_seconds",
            "Time since the last publication.",
            lambda: self._published_s,
        )
        self._failures = self._counter(
            "niwaki_publication_failures", "Failures of the store, by their cause.", "kind"
        )
        self._interrupted = self._gauge(
            "niwaki_publication_interrupted", "1 while the store takes no checkpoints."
        )
        self._age(
            "niwaki_snapshot_age_seconds", "Time since the last snapshot.", lambda: self._saved_s
        )
        self._snapshot_failures = self._counter(
            "niwaki_snapshot_failures", "Snapshots that could not be written."
        )
        self._snapshot_failing = self._gauge(
            "niwaki_snapshot_failing", "1 while the last snapshot could not be written."
        )

        for outcome in ("learned", "rejected", "quarantined"):
            self._events.labels(outcome)
        for stage in STAGES:
            self._stages.labels(stage)
        for kind in STORE_KINDS:
            self._failures.labels(kind)
        for detector, signal in drifts_of:
            labels = self._bounded("detector", detector), self._bounded("signal", signal)
            for answered in ("true", "false"):
                self._drifts.labels(*labels, answered)

    def quarantined(self, events: int) -> None:
        """Count events that were not learned, since something of their step was not finite."""
        self._events.labels("quarantined").inc(events)

    def learned(self, events: int, *, event_time_s: float, outlier_times: int = 0) -> None:
        """Count a learned batch. `event_time_s`: time of its last event, seconds since the epoch; 0
        where events carry no time. `outlier_times`: event times in it that were put back."""
        self._events.labels("learned").inc(events)
        self._outlier_times.inc(outlier_times)
        if event_time_s:
            self._event_time_s = event_time_s

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Add seconds to stages, by their names in `stream.training.stopwatch.STAGES`."""
        for stage, taken_s in seconds.items():
            self._stages.labels(stage).inc(taken_s)

    def rejected(self, rule: str, events: int = 1) -> None:
        """Count events that were dead-lettered because they broke `rule`."""
        self._events.labels("rejected").inc(events)
        self._rejected.labels(self._bounded("rule", rule)).inc(events)

    def polled(self, messages: int, size_bytes: int) -> None:
        """Count the messages of a poll and the bytes of all of them."""
        self._messages.inc(messages)
        self._polled_bytes.inc(size_bytes)

    def lag(self, events_by_partition: Mapping[int, int]) -> None:
        """Show the trainer's distance from the end of each partition, in messages."""
        for partition, events in events_by_partition.items():
            self._lag.labels(str(partition)).set(events)

    def evaluated(self, series: str, summary: Mapping[str, float]) -> None:
        """Show the last window of a series, one of `SERIES`. `summary`: measures by name, as
        `Evaluation.summary` returns them; a missing measure shows as NaN. Raises `ValueError` for
        an unknown series."""
        if series not in SERIES:
            raise ValueError(f"series must be one of {', '.join(SERIES)}, got {series!r}")
        for gauge, measure in (
            (self._log_loss, "log_loss"),
            (self._entropy, "normalized_entropy"),
            (self._calibration, "calibration"),
            (self._auc, "auc"),
            (self._base_rate, "base_rate"),
        ):
            gauge.labels(series).set(summary.get(measure, math.nan))

    def collisions(self, by_field: Mapping[str, float]) -> None:
        """Show, by field, the estimated share of values that share a table row with another value,
        0..1."""
        for field, ratio in by_field.items():
            self._collisions.labels(self._bounded("field", field)).set(ratio)

    def pairs(self, worth: Mapping[str, float]) -> None:
        """Show the pairs of columns that live, and the log loss that each saves, nats for each
        event."""
        self._pair_worth.clear()
        for pair, nats in worth.items():
            self._pair_worth.labels(pair).set(nats)

    def network(self, *, resting: bool, gain_ratio: float) -> None:
        """Show whether the network rests, and the share of the log loss that it saves; NaN: it is
        not measured."""
        self._resting.set(resting)
        self._network_gain.set(gain_ratio)

    def phase(self, name: str) -> None:
        """Show the phase that the learner is in now."""
        for phase in Phase:
            self._phase.labels(str(phase)).set(phase == name)

    def drift(
        self,
        detector: str,
        signal: str,
        *,
        before: float,
        after: float,
        error: float,
        answered: bool,
    ) -> None:
        """Count a drift. `before`, `after`: means of the detector's signal on either side of the
        drift; `error`: the standard error of their difference; `answered`: False where nothing is
        regrown for it."""
        labels = self._bounded("detector", detector), self._bounded("signal", signal)
        self._drifts.labels(*labels, str(answered).lower()).inc()
        self._drift_mean.labels(*labels, "before").set(before)
        self._drift_mean.labels(*labels, "after").set(after)
        self._drift_error.labels(*labels).set(error)

    def watched(
        self, detector: str, signal: str, events: int, *, expected_events: float | None
    ) -> None:
        """Show the number of events in which a detector could have fired. `expected_events`: events
        between false alarms that the detector is calibrated to; None if it is not calibrated."""
        labels = self._bounded("detector", detector), self._bounded("signal", signal)
        self._watched.labels(*labels).set(events)
        self._expected.labels(*labels).set(math.nan if expected_events is None else expected_events)

    def pruned(self, *, forced: bool) -> None:
        """Count a cut to a sparse network. `forced`: the network predicts worse, but the wait for a
        better one had reached its bound."""
        self._prunings.inc()
        self._forced.inc(forced)

    def regrown(self) -> None:
        """Count a regrowth of the dense network."""
        self._regrowths.inc()

    def sparsity(
        self, by_layer: Mapping[str, float], *, multiply_adds_ratio: float, budget_ratio: float
    ) -> None:
        """Show the share of units cut away, by layer, of the network to be published; its
        multiply-adds as a share of the dense network's; and the share allowed. All are 0..1."""
        for layer, ratio in by_layer.items():
            self._sparsity.labels(self._bounded("layer", layer)).set(ratio)
        self._kept.set(multiply_adds_ratio)
        self._budget.set(budget_ratio)

    def published(
        self, version: int, size_bytes: int, *, dense_bytes: int, created_s: float
    ) -> None:
        """Show a checkpoint that the store has taken. `dense_bytes`: size of the dense model as
        float32; `created_s`: seconds since the epoch."""
        self._version.set(version)
        self._bytes.set(size_bytes)
        self._dense_bytes.set(dense_bytes)
        self._published_s = created_s
        self._interrupted.set(0)

    def publication_failed(self, kind: str) -> None:
        """Count a failure of the store, and show that it takes no checkpoints until the next
        `published`. `kind`: one of `serving.errors.STORE_KINDS`."""
        self._failures.labels(kind).inc()
        self._interrupted.set(1)

    def saved(self, time_s: float) -> None:
        """Note that a snapshot was written at `time_s`, seconds since the epoch."""
        self._saved_s = time_s
        self._snapshot_failing.set(0)

    def snapshot_failed(self) -> None:
        """Count a snapshot that could not be written."""
        self._snapshot_failures.inc()
        self._snapshot_failing.set(1)

    def start(self, config: TelemetryConfig) -> int:
        """Serve `/metrics` until `stop`; returns the port. Raises `ConfigError` if it can't listen
        on the address."""
        try:
            server, thread = start_http_server(config.port, config.host, self.registry)
        except OSError as error:
            place = f"{config.host}:{config.port}"
            raise ConfigError(
                "telemetry.port", f"can't listen on {place} ({error.strerror or error})"
            ) from error
        self._serving = server, thread
        return server.server_port

    def stop(self) -> None:
        """End the HTTP server and free its port; without a `start` before, do nothing."""
        if self._serving:
            server, thread = self._serving
            server.shutdown()
            server.server_close()
            thread.join()
            self._serving = None

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _age(self, name: str, text: str, since_s: Callable[[], float]) -> None:
        """Declare a gauge of the seconds since `since_s()`; NaN as long as that is NaN."""
        self._gauge(name, text).set_function(lambda: self._clock() - since_s())

    def _bounded(self, label: str, value: str) -> str:
        """The value itself, or "other" once the label has `MAX_LABEL_VALUES` values."""
        values = self._values.setdefault(label, set())
        if value not in values and len(values) >= MAX_LABEL_VALUES:
            return "other"
        values.add(value)
        return value
