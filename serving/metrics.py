"""The Prometheus metrics of the scoring server, declared once.

In: counts and times from the endpoints, and what serves, which is read when Prometheus asks. Out:
the text that Prometheus reads. Where several processes serve, each writes its counts to a file in
the folder that PROMETHEUS_MULTIPROC_DIR names, and whichever is asked answers with the sums.
"""

import os
from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from niwaki.serving.scorer import Serving

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0)
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable with the folder of several processes' counts, read when this module is imported."""
OUTCOMES = {408: "late", 413: "too_large", 503: "not_ready"}
"""Outcome of a request by the status of its answer; "refused" for the others."""

# Else each counter would have a second series, which nobody looks at.
# The function has no types in prometheus_client.
disable_created_metrics()  # type: ignore[no-untyped-call]


class ScoringMetrics(Collector):
    """All metrics of the server."""

    TYPE = CONTENT_TYPE_LATEST
    """Content type of `text`."""

    def __init__(self, scorer: Serving):
        self._scorer = scorer
        registry = CollectorRegistry()
        self.seconds = Histogram(
            "niwaki_scoring_seconds",
            "Time from the body of a request to that of its answer.",
            buckets=_BUCKETS_S,
            registry=registry,
        )
        requests = Counter(
            "niwaki_requests",
            "Requests to score, by what became of them.",
            ("endpoint", "outcome"),
            registry=registry,
        )
        self.events = Counter(
            "niwaki_scored_events", "Events or candidates scored.", registry=registry
        )
        self.requests = {
            (endpoint, outcome): requests.labels(endpoint, outcome)
            for endpoint in ("score", "infer")
            for outcome in ("scored", "refused", "failed", "gone", *OUTCOMES.values())
        }
        """By endpoint and outcome, the counter of requests."""
        if os.environ.get(FOLDER):
            registry = CollectorRegistry()
            # As above.
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        self._registry = registry
        registry.register(self)

    def text(self) -> bytes:
        """All metrics, of all processes, as Prometheus reads them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The counts of the scorer, read when Prometheus asks."""
        scorer = self._scorer
        yield GaugeMetricFamily(
            "niwaki_served_version", "Version that serves; 0: none yet.", scorer.version
        )
        if scorer.version:
            yield GaugeMetricFamily(
                "niwaki_served_age_seconds", "Age of the checkpoint that serves.", scorer.age_s
            )
        yield CounterMetricFamily("niwaki_swaps", "Checkpoints taken over.", scorer.swaps)
        refused = CounterMetricFamily(
            "niwaki_refused_checkpoints", "Checkpoints not taken over, by kind.", labels=("kind",)
        )
        for kind, count in scorer.refusals.items():
            refused.add_metric((kind,), count)
        yield refused
