"""Metrics for Prometheus: of a run while it works and when it has ended, in a file or on a port. `serving.metrics` has
those of a service, in the same format.

The file is for the textfile collector of Prometheus' node exporter. While a run works, it also holds what the last
invocation left in it: an alert on a missing or old time of success must not go by whether a run is working.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter as Counts
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server, write_to_textfile
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from clipbatch.config.validation import host_and_port
from clipbatch.errors import InputError
from clipbatch.runs.report import Report
from clipbatch.storage.atomic import writing_failed
from clipbatch.workers.progress import Log

WRITE_EVERY_S = 15.0
# What an invocation that ended well leaves, with the help text. A later one keeps it until it ends well itself.
_AT_END = {
    "labelled_rows": "Rows that the last invocation labelled.",
    "duration_seconds": "How long the last invocation took.",
    "increment_new_rows": "Rows that were new when the input was listed.",
    "increment_changed_rows": "Rows that were changed when the input was listed.",
    "increment_known_rows": "Rows that were known when the input was listed.",
    "last_success_timestamp_seconds": "When an invocation last succeeded.",
}
_ROWS = "clipbatch_rows"


def exposition(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """All metrics as text, and its content type. accept: as in the header of a request, which may ask for OpenMetrics;
    otherwise it is Prometheus' own format."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def images_counter(registry: CollectorRegistry) -> Counter:
    """The counter of images by status, which runs and services have."""
    return Counter("clipbatch_images", "Images labelled, by status.", ["status"], registry=registry)


class RunMetrics:
    """The metrics of one invocation of `run`. An `Observer` of its progress."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"clipbatch_{name}", text, registry=self.registry)

        self._images = images_counter(self.registry)
        self._running = gauge("running", "1 while a run works, 0 when it has ended.")
        self._planned = gauge("planned_rows", "Rows that this process is responsible for.")
        self._done = gauge("done_rows", "Rows of these that are done.")
        self._bad = gauge("bad_rows", "Rows of these that are done and have no scores, as far as they were counted.")
        self._rate = gauge("images_per_second", "Rate of the last invocation, without loading the model.")
        self._left = gauge("left_seconds", "Seconds left at this rate; NaN while it is not known.")
        self._restarts = gauge("worker_restarts", "Workers that ended in the last invocation.")
        self._progress = gauge("last_progress_timestamp_seconds", "When rows were last done; at first, when it began.")
        gauge("start_timestamp_seconds", "When the last invocation began.").set_to_current_time()
        self._progress.set_to_current_time()
        self._left.set(float("nan"))
        self._running.set(1)
        self._earlier: _Earlier | None = None

    def begin(self, total: int, done: int, bad: int) -> None:
        self._planned.set(total)
        self._done.set(done)
        self._bad.set(bad)

    def show(self, done: int, bad: int, images_per_s: float, left_s: float | None) -> None:
        self._done.set(done)
        self._bad.set(bad)
        self._rate.set(images_per_s)
        self._left.set(float("nan") if left_s is None else left_s)
        self._progress.set_to_current_time()

    def part_done(self, counts: Mapping[str, int]) -> None:
        for status, count in counts.items():
            self._images.labels(status).inc(count)

    def worker_ended(self) -> None:
        self._restarts.inc()

    def keep(self, file: Path) -> None:
        """Also show what the last invocation left in `file`, if there is such a file."""
        with contextlib.suppress(OSError, ValueError):  # somebody else's file, or a damaged one, is written over
            names = {_ROWS, *(f"clipbatch_{name}" for name in _AT_END)}
            families = text_string_to_metric_families(file.read_text(encoding="utf-8"))
            self._earlier = _Earlier([family for family in families if family.name in names])
            self.registry.register(self._earlier)

    def succeed(self, report: Report) -> None:
        """Replace what an earlier invocation left by the figures of `report`."""
        if self._earlier is not None:
            self.registry.unregister(self._earlier)
        reports = [*report.get("finished", ()), *([report] if "this_run" in report else ())]
        total: Counts[str] = Counts()
        by_status = Gauge(_ROWS, "Rows of the run by status.", ["status"], registry=self.registry)
        for each in reports:
            done = each["this_run"]
            total.update({"rows": done["rows"], "seconds": done["seconds"], "restarts": done["restarts"]})
            for status, count in each["status"].items():
                by_status.labels(status).inc(count)
        self._rate.set(reports[-1]["this_run"]["images_per_s"] if reports else 0.0)
        self._left.set(0)
        self._restarts.set(total["restarts"])
        values: dict[str, float] = {
            "labelled_rows": total["rows"],
            "duration_seconds": total["seconds"],
            "last_success_timestamp_seconds": time.time(),
        }
        if increment := report.get("increment"):
            for name in ("new", "changed", "known"):
                values[f"increment_{name}_rows"] = increment[name]
        for name, value in values.items():
            Gauge(f"clipbatch_{name}", _AT_END[name], registry=self.registry).set(value)

    def end(self) -> None:
        """The invocation has ended, well or not."""
        self._running.set(0)

    def write(self, file: Path) -> None:
        """Write `file` in Prometheus' text format; it is replaced as a whole. Raises: InputError if that fails."""
        try:
            write_to_textfile(str(file), self.registry)
        except OSError as error:
            raise writing_failed(file, error) from error


class _Earlier(Collector):
    """Metrics that an earlier invocation has left."""

    def __init__(self, families: Collection[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


@contextlib.contextmanager
def published(file: Path | None, port: str | None, log: Log) -> Iterator[RunMetrics]:
    """Within the context, metrics are written to `file` every 15 seconds and at the end, and served on [HOST:]PORT.

    Raises: InputError if the file cannot be written, or the port cannot be used.
    """
    metrics = RunMetrics()
    with contextlib.ExitStack() as stack:
        # A port that is in use is refused before the file says that this run works.
        url = None if port is None else stack.enter_context(_served(metrics, port))
        if file is not None:
            metrics.keep(file)
            metrics.write(file)
            stack.enter_context(_written(metrics, file))
        if url is not None:
            log.write("metrics", f"metrics are at {url}", url=url)
        try:
            yield metrics
        except BaseException:
            metrics.end()
            with contextlib.suppress(InputError):  # the first error is the one to show
                if file is not None:
                    metrics.write(file)
            raise
        metrics.end()
        if file is not None:
            metrics.write(file)


@contextlib.contextmanager
def _written(metrics: RunMetrics, file: Path) -> Iterator[None]:
    """Write `file` at intervals."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(WRITE_EVERY_S):
            with contextlib.suppress(InputError):  # a disk that is full for a while; the last time it is an error
                metrics.write(file)

    thread = threading.Thread(target=write, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _served(metrics: RunMetrics, port: str) -> Iterator[str]:
    """Serve the metrics on [HOST:]PORT; without HOST on loopback. Yields their url."""
    host, number = host_and_port(port, "metrics_port")
    try:
        server, thread = start_http_server(number, host, metrics.registry)
    except OSError as error:
        raise InputError(f"--metrics-port {port}: {error.strerror}; choose another address or port") from error
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
