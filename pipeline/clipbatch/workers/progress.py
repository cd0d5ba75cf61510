"""The log of an invocation and the progress of a run, on standard error. Stops a run in which too many images are bad.

On a terminal there is a bar, with remarks above it. Elsewhere, as under cron or Slurm, each line begins with the local
time and a level, and a line of progress comes every 30 seconds. On request, each line is JSON.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clipbatch.errors import NothingLabelledError, TooManyBadError
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import finite
from clipbatch.types import Level, counts_text
from clipbatch.workers import words

LINE_EVERY_S = 30.0
# Work that took less than this has no rate and no bottleneck worth a word.
MIN_RATE_S = 10.0
# A process stops if none of its first rows, so many, is ok.
FIRST_ROWS = 1000


def log_json(event: str, level: Level = "info", **values: Any) -> None:
    """Write one line of JSON to standard error, for a log collector: the time, `level`, `event` and `values`."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    with contextlib.suppress(OSError):  # a run goes on even if the disk of its log is full
        print(json.dumps({"time": now, "level": level, "event": event, **finite(values)}), file=sys.stderr, flush=True)


def log_line(text: str, level: Level = "info") -> None:
    """Write `text` to standard error: as it is on a terminal, and elsewhere after the local time and the level."""
    if not sys.stderr.isatty():
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        text = f"{now} {level.upper():7} {text}"
    with contextlib.suppress(OSError):  # as in log_json
        print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What an invocation tells its user or a log collector, apart from its result."""

    quiet: bool = False
    as_json: bool = False

    @property
    def is_file(self) -> bool:
        """Whether lines of text go to something that is no terminal."""
        return not self.quiet and not self.as_json and not sys.stderr.isatty()

    def write(self, event: str, text: str, level: Level = "info", **values: Any) -> None:
        """Write a line: `text`, or as JSON `event` and `values`."""
        if self.quiet:
            return
        if self.as_json:
            log_json(event, level, **values)
        else:
            log_line(text, level)


class Observer(Protocol):
    """Is told how a run goes on."""

    def begin(self, total: int, done: int, bad: int) -> None:
        """`done` of the `total` rows of this process are done, `bad` of them without scores."""

    def show(self, done: int, bad: int, images_per_s: float, left_s: float | None) -> None:
        """As `begin`, with the rate since the model was loaded. left_s: None if that cannot be said yet."""

    def part_done(self, counts: Mapping[str, int]) -> None:
        """A part was written. counts: its rows by status."""

    def worker_ended(self) -> None:
        """A worker has ended although nobody told it to."""


class Progress:
    """Shows how many rows are done. quiet: shows nothing."""

    def __init__(
        self,
        *,
        total: int,
        done: int,
        bad: int,
        quiet: bool,
        as_json: bool = False,
        observer: Observer | None = None,
    ) -> None:
        """total: rows of the run that this process is responsible for. done, bad: how many of them are in existing
        parts, and how many of those have no scores. as_json: write JSON lines, also on a terminal."""
        self.done, self.bad = done, bad
        self._total = total
        self._last_line_s = time.monotonic()
        # Rows done and the time at the first call of `show`. Rates count from then, so loading a model does not count.
        self._first: tuple[int, float] | None = None
        self._log = Log(quiet=quiet, as_json=as_json)
        self._observer = observer
        # While the model is loaded, a bar without a count; after that, the one that counts.
        self._bar = self._loading_bar = None
        if observer:
            observer.begin(total, done, bad)
        if done < total and not quiet and not as_json and sys.stderr.isatty():
            from tqdm import tqdm

            layout = f"loading the model, then {total - done} images ({{elapsed}})"
            self._loading_bar = tqdm(bar_format=layout, leave=False, dynamic_ncols=True)

    def say(self, text: str, level: Level = "info") -> None:
        """Show a remark; on a terminal it appears above the bar."""
        self.write("message", text, level, message=text)

    def write(self, event: str, text: str, level: Level = "info", **values: Any) -> None:
        """As `Log.write`; on a terminal, `text` appears above the bar."""
        bar = self._loading_bar if self._bar is None else self._bar
        if bar is not None:
            bar.write(text, file=sys.stderr)
        else:
            self._log.write(event, text, level, **values)

    def loaded(self) -> None:
        """A worker has loaded its model. Only now a bar counts, so its rate leaves out the time of loading."""
        if self._loading_bar is not None:
            from tqdm import tqdm

            self._close_loading_bar()
            self._bar = tqdm(total=self._total, initial=self.done, unit=" images", smoothing=0.1, dynamic_ncols=True)

    def tick(self) -> None:
        """Show that time passes. Called about once a second."""
        if self._loading_bar is not None:
            self._loading_bar.refresh()

    def show(self, done: int, bad: int, bottleneck: str) -> None:
        """Show that `done` rows are done, `bad` of them without scores. Both may be lower than in the last call: when a
        worker dies, the rows of its unfinished shard are not done any more. bottleneck: '' before the first batch."""
        more, self.done, self.bad = done - self.done, done, bad
        now = time.monotonic()
        first_done, start = self._first = self._first or (done, now)
        rate = (done - first_done) / (now - start) if now > start else 0.0
        left_s = (self._total - done) / rate if rate > 0 else None
        if self._observer:
            self._observer.show(done, bad, rate, left_s)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{bad} bad, bound by {bottleneck}" if bottleneck else "", refresh=False)
            self._bar.update(more)
        elif bottleneck and now - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now
            speed = "" if left_s is None else f"{words.rate(rate)}/s, {words.seconds(left_s)} left, "
            self._log.write(
                "progress",
                f"{done} of {self._total} images, {speed}{bad} bad, bound by {bottleneck}",
                done=done,
                total=self._total,
                bad=bad,
                images_per_s=_rounded(rate),
                left_s=None if left_s is None else round(left_s),
                bottleneck=bottleneck,
            )

    def skip(self, rows: int) -> None:
        """Leave `rows` out of the rate, which the next `show` has among those done: another rank has done them."""
        if self._first is not None:
            first_done, start = self._first
            self._first = first_done + rows, start

    def extend(self, rows: int) -> None:
        """Count `rows` more in the total: this process does a part of another rank."""
        self._total += rows
        if self._observer:
            self._observer.begin(self._total, self.done, self.bad)
        if self._bar is not None:
            self._bar.total = self._total

    def part_done(self, counts: Mapping[str, int]) -> None:
        """A part was written. counts: its rows by status."""
        if self._observer:
            self._observer.part_done(counts)

    def worker_ended(self) -> None:
        """A worker has ended although nobody told it to."""
        if self._observer:
            self._observer.worker_ended()

    def close(self) -> None:
        self._close_loading_bar()
        if self._bar is not None:
            self._bar.close()

    def _close_loading_bar(self) -> None:
        if self._loading_bar is not None:
            self._loading_bar.close()
            self._loading_bar = None


def check_bad(bad: int, allowed: int | None, run: RunDir) -> None:
    """Raises: TooManyBadError if more than `allowed` images are bad. None: any number may be."""
    if allowed is not None and bad > allowed:
        raise TooManyBadError(
            f"{bad} bad images, more than --max-bad allows ({allowed}): look at status and error in {run.parts}, or "
            "raise --max-bad; finished parts stay"
        )


def check_any_ok(rows: int, bad: Mapping[str, int]) -> None:
    """Raises: NothingLabelledError if none of `rows` is ok, the first that a process has done. bad: by status."""
    if rows >= FIRST_ROWS and sum(bad.values()) >= rows:
        raise NothingLabelledError(f"none of the first {rows} images could be labelled: {counts_text(bad)}")


def _rounded(rate: float) -> float:
    """A rate with one decimal, or with two digits if it is small."""
    return round(rate, 1) if rate >= 10 else float(f"{rate:.2g}")
