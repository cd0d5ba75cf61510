"""How far a run is, for whoever watches: a bar on a terminal, a line every 30 seconds elsewhere, or JSON lines."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
import time
from typing import Any

LINE_EVERY_S = 30.0


def log_json(event: str, **values: Any) -> None:
    """One line for a log collector on standard error: when, what, and `values`."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
    with contextlib.suppress(OSError):  # a log on a full disk is no reason to stop
        print(json.dumps({"time": now, "event": event, **values}), file=sys.stderr, flush=True)


class Progress:
    """Shows how many rows are done, on standard error; `quiet` shows nothing."""

    def __init__(self, *, total: int, done: int, bad: int, quiet: bool, as_json: bool = False) -> None:
        """total: rows to be done here and before; done, bad: of them, rows in parts that are there already. as_json:
        lines for a log collector, also on a terminal."""
        self.done, self.bad = done, bad
        self._total = total
        self._said = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._bar = None
        self._silent, self._as_json = quiet, as_json
        if not quiet and not as_json and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=" images", smoothing=0.1, dynamic_ncols=True)

    def say(self, text: str) -> None:
        """A remark on the run, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self._as_json and not self._silent:
            log_json("message", message=text)
        elif not self._silent:
            with contextlib.suppress(OSError):  # a log on a full disk is no reason to stop
                print(text, file=sys.stderr, flush=True)

    def show(self, done: int, bad: int, bottleneck: str) -> None:
        """`done` rows are done by now, `bad` of them without scores; fewer than before where a worker has died."""
        more, self.done, self.bad = done - self.done, done, bad
        if self._bar is not None:
            self._bar.set_postfix_str(f"{bad} bad, bound by {bottleneck}", refresh=False)
            self._bar.update(more)
            return
        now = time.monotonic()
        first_done, begun = self._first = self._first or (done, now)  # rates count from here, not while models load
        if not self._silent and now - self._said >= LINE_EVERY_S:
            self._said = now
            rate = (done - first_done) / (now - begun) if now > begun else 0.0
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

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
