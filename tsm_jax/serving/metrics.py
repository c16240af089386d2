"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one service; their names and meanings are below."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        disable_created_metrics()  # a second series for each, which nothing here reads

        def histogram(name: str, about: str, buckets=_SECONDS) -> Histogram:
            return Histogram(name, about, buckets=buckets, registry=registry)

        self.requests = Counter(
            "tsm_requests", "Answered requests.", ["path", "status"], registry=registry
        )
        self.request_seconds = histogram(
            "tsm_request_seconds", "From a prediction's headers to its answer."
        )
        self.decode_seconds = histogram("tsm_decode_seconds", "Decoding of a video, or a window.")
        self.compute_seconds = histogram("tsm_compute_seconds", "The network, for a batch.")
        self.batch_size = histogram("tsm_batch_size", "Clips in a batch.", _SIZES)
        self.frames = Counter("tsm_frames", "Frames that the network was shown.", registry=registry)
        self.dropped = Counter(
            "tsm_dropped_frames",
            "Frames of streams that came faster than they were computed.",
            registry=registry,
        )
        self.deaths = Counter(
            "tsm_process_failures", "Processes that failed.", ["process"], registry=registry
        )

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when it is asked for."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
