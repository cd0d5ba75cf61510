"""What a service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from clipbatch.runs.metrics import exposition, images_counter


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.images = images_counter(registry)
        self.jobs = Counter("clipbatch_jobs", "Jobs of the spool, by result.", ["result"], registry=registry)
        self.job_seconds = Histogram("clipbatch_job_seconds", "From taking a job to its answer.", registry=registry)
        self.requests = Counter("clipbatch_http_requests", "Requests answered, by code.", ["code"], registry=registry)
        self.request_seconds = Histogram(
            "clipbatch_http_request_seconds", "From a request to classify to its answer.", registry=registry
        )
        self.in_hand = Gauge("clipbatch_http_requests_in_hand", "Requests taken, not answered.", registry=registry)

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """What Prometheus reads, and its content type. accept: as `exposition` takes it."""
        return exposition(self._registry, accept)

    def answered(self, code: int) -> None:
        """Count an answer over HTTP."""
        self.requests.labels(code).inc()

    def labelled(self, statuses: dict[str, int]) -> None:
        """Count images by status."""
        for status, count in statuses.items():
            self.images.labels(status).inc(count)


__all__ = ["Metrics"]
