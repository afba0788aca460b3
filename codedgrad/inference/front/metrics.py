"""The counts of a predictor as text for Prometheus."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from codedgrad.errors import missing_extra
from codedgrad.inference.serving.counts import BOUNDS_S

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
except ImportError as error:
    raise missing_extra("serve", error) from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric as Family

    from codedgrad.inference.front.batcher import Batcher
    from codedgrad.inference.serving.predictor import CodedPredictor

_COUNTERS = {
    "asked": "Times that another worker was asked for help",
    "helped_others": "Batches that were computed for other workers",
    "abandoned": "Passes that were left because nobody needed them any more",
    "failed": "Batches that ended with an error",
    "stand_in_errors": "Times that the stand-in raised, or answered something else",
}


class Metrics:
    """Reads the counts whenever somebody asks for them."""

    def __init__(self, predictor: CodedPredictor, batcher: Batcher, worker: int):
        """Prepare a registry of its own, not that of the process."""
        self._predictor, self._batcher = predictor, batcher
        self._worker = str(worker)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' format."""
        return bytes(generate_latest(self._registry))

    def collect(self) -> Iterator[Family]:
        """Yields the metrics; this is what prometheus_client asks for."""
        stats, worker = self._predictor.stats(), [self._worker]
        answers = CounterMetricFamily(
            "codedgrad_serve_answers",
            "Batches that were answered, by whom",
            labels=["worker", "by"],
        )
        for by in ("exact", "helped", "stand_in"):
            name = {"exact": "model", "helped": "another_worker"}.get(by, by)
            answers.add_metric([*worker, name], stats[by])
        yield answers
        for name, text in _COUNTERS.items():
            family = CounterMetricFamily(
                f"codedgrad_serve_{name}", text, labels=["worker"]
            )
            family.add_metric(worker, stats[name])
            yield family
        refused = CounterMetricFamily(
            "codedgrad_serve_refused",
            "Queries that were refused because too many were under way",
            labels=["worker"],
        )
        refused.add_metric(worker, self._batcher.refused)
        yield refused
        under_way = GaugeMetricFamily(
            "codedgrad_serve_under_way",
            "Queries that were taken and are not answered",
            labels=["worker"],
        )
        under_way.add_metric(worker, self._batcher.under_way)
        yield under_way
        yield self._seconds()

    def _seconds(self) -> Family:
        by_bound, total_s = self._predictor.latencies()
        family = HistogramMetricFamily(
            "codedgrad_serve_seconds",
            "Seconds from a batch's coming to its answer",
            labels=["worker"],
        )
        names = [f"{bound:g}" if bound < 1e9 else "+Inf" for bound in BOUNDS_S]
        buckets = list(zip(names, accumulate(by_bound), strict=True))
        family.add_metric([self._worker], buckets, total_s)
        return family
