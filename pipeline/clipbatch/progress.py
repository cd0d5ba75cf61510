"""How far a run is, for whoever watches: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time

LINE_EVERY_S = 30.0


class Progress:
    """Counts rows and shows them on standard error; `quiet` shows nothing."""

    def __init__(self, *, total: int, done: int, quiet: bool) -> None:
        """total: rows of the run; done: rows in parts that are there already."""
        self.bad = 0
        self._total, self._done, self._first = total, done, done
        self._begun = self._said = time.monotonic()
        self._bar = None
        self._silent = quiet
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=" images", smoothing=0.1, dynamic_ncols=True)

    def say(self, text: str) -> None:
        """A remark on the run, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif not self._silent:
            with contextlib.suppress(OSError):  # a log on a full disk is no reason to stop
                print(text, file=sys.stderr, flush=True)

    def advance(self, rows: int, bad: int, bottleneck: str) -> None:
        """`rows` more are done, `bad` of them without scores."""
        self._done += rows
        self.bad += bad
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.bad} bad, bound by {bottleneck}", refresh=False)
            self._bar.update(rows)
            return
        now = time.monotonic()
        if not self._silent and now - self._said >= LINE_EVERY_S:
            self._said = now
            rate = (self._done - self._first) / (now - self._begun)
            left_s = (self._total - self._done) / rate if rate else 0
            self.say(
                f"{self._done} of {self._total} images, {rate:.0f}/s, {left_s / 60:.0f} min left, "
                f"{self.bad} bad, bound by {bottleneck}"
            )

    def take_back(self, rows: int, bad: int) -> None:
        """`rows` that were done have to be done again, since their worker died before their part was written."""
        self._done -= rows
        self.bad -= bad
        if self._bar is not None:
            self._bar.update(-rows)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
