"""Shows the progress of a run: a bar on a terminal, a line every 30 seconds elsewhere, or lines of JSON on request.

Also stops a run in which too many images are bad.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from clipbatch.errors import NothingLabelledError, TooManyBadError
from clipbatch.rundir.layout import RunDir
from clipbatch.types import counts_text

LINE_EVERY_S = 30.0
# Work that took less than this has no rate and no bottleneck worth a word.
MIN_RATE_S = 10.0
# A process stops if none of its first rows, so many, is ok.
FIRST_ROWS = 1000


def log_json(event: str, **values: Any) -> None:
    """Write one line of JSON to standard error, for a log collector: the time, `event` and `values`."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    with contextlib.suppress(OSError):  # a run goes on even if the disk of its log is full
        print(json.dumps({"time": now, "event": event, **values}), file=sys.stderr, flush=True)


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


class Progress:
    """Shows on standard error how many rows are done. quiet: shows nothing."""

    def __init__(self, *, total: int, done: int, bad: int, quiet: bool, as_json: bool = False) -> None:
        """total: rows of the run that this process is responsible for. done, bad: how many of them are in existing
        parts, and how many of those have no scores. as_json: write JSON lines, also on a terminal."""
        self.done, self.bad = done, bad
        self._total = total
        self._last_line_s = time.monotonic()
        # Rows done and the time at the first call of `show`. Rates count from then, so loading a model does not count.
        self._first: tuple[int, float] | None = None
        self._bar = None
        self._silent, self._as_json = quiet, as_json
        if not quiet and not as_json and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=" images", smoothing=0.1, dynamic_ncols=True)

    def say(self, text: str) -> None:
        """Show a remark; on a terminal it appears above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._as_json and not self._silent:
            log_json("message", message=text)
        elif not self._silent:
            with contextlib.suppress(OSError):  # as in log_json
                print(text, file=sys.stderr, flush=True)

    def show(self, done: int, bad: int, bottleneck: str) -> None:
        """Show that `done` rows are done, `bad` of them without scores. Both may be lower than in the last call: when a
        worker dies, the rows of its unfinished shard are not done any more."""
        more, self.done, self.bad = done - self.done, done, bad
        if self._bar is not None:
            self._bar.set_postfix_str(f"{bad} bad, bound by {bottleneck}", refresh=False)
            self._bar.update(more)
            return
        now = time.monotonic()
        first_done, start = self._first = self._first or (done, now)
        if not self._silent and now - self._last_line_s >= LINE_EVERY_S:
            self._last_line_s = now
            rate = (done - first_done) / (now - start) if now > start else 0.0
            left_s = (self._total - done) / rate if rate > 0 else None
            if self._as_json:
                log_json(
                    "progress",
                    done=done,
                    total=self._total,
                    bad=bad,
                    images_per_s=round(rate, 1),
                    left_s=None if left_s is None else round(left_s),
                    bottleneck=bottleneck,
                )
                return
            speed = "" if left_s is None else f"{rate:.0f}/s, {left_s / 60:.0f} min left, "
            self.say(f"{done} of {self._total} images, {speed}{bad} bad, bound by {bottleneck}")

    def extend(self, rows: int) -> None:
        """Count `rows` more in the total: this process does a shard of another rank."""
        self._total += rows
        if self._bar is not None:
            self._bar.total = self._total

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
