"""The Prometheus metrics of the scoring server, declared once.

In: counts and times from the endpoints, and a scorer, which is read when Prometheus asks. Out: a
registry.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from niwaki.serving.scorer import Scorer

_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0)
OUTCOMES = {408: "late", 413: "too_large", 503: "not_ready"}
"""Outcome of a request by the status of its answer; "refused" for the others."""

# Else each counter would have a second series, which nobody looks at.
# The function has no types in prometheus_client.
disable_created_metrics()  # type: ignore[no-untyped-call]


class ScoringMetrics(Collector):
    """All metrics of the server."""

    def __init__(self, scorer: Scorer):
        self._scorer = scorer
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "niwaki_scoring_seconds",
            "Time from the body of a request to that of its answer.",
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.requests = Counter(
            "niwaki_requests",
            "Requests to score, by what became of them.",
            ("endpoint", "outcome"),
            registry=self.registry,
        )
        self.events = Counter(
            "niwaki_scored_events", "Events or candidates scored.", registry=self.registry
        )
        for endpoint in ("score", "infer"):
            for outcome in ("scored", "refused", "failed", "gone", *OUTCOMES.values()):
                self.requests.labels(endpoint, outcome)
        self.registry.register(self)

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
        yield CounterMetricFamily(
            "niwaki_refused_checkpoints", "Checkpoints not taken over.", scorer.refused
        )
