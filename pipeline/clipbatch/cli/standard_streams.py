"""Standard input, output and error, in whatever state the caller left them: open, closed, or with nobody reading.

What a command does never depends on whether somebody reads its output. A closed stream is connected to the null device;
otherwise one of our files could get its number (0, 1 or 2), which child processes use as a stream. If a write fails,
the error is kept and all further output of that stream is dropped. At the end of the command, the kind of result
decides whether the command has failed.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Any

_result = {"is_printed": True}


def result_is_on_disk() -> None:
    """Call this in commands whose result is on disk. They succeed even if their summary cannot be printed."""
    _result["is_printed"] = False


class _Output(io.FileIO):
    """A standard stream that keeps its first error in `failed` instead of raising it, and then drops all output."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        left = view = memoryview(data).cast("B")
        while left and self.failed is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.failed = error
            else:
                if written is None:  # the caller's pipe is non-blocking and full
                    select.select([], [self], [])
                left = left[written or 0 :]
        return len(view)


class StandardStreams:
    """The streams of this process. Sets `sys.stdin`, `sys.stdout` and `sys.stderr`."""

    def __init__(self) -> None:
        """Create it before anything opens a file."""
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        if sys.stdin is None:
            sys.stdin = open(0, closefd=False)  # noqa: SIM115  (open until the process ends)
        self._output = _Output(1, "w", closefd=False)
        sys.stdout = _text(self._output, sys.stdout)
        sys.stderr = _text(_Output(2, "w", closefd=False), sys.stderr)

    def close(self, code: int) -> int:
        """Flush all output. Returns the exit code of a command that ended with `code`.

        A reader that stops reading is no failure. After any other error, a command whose result is its output has
        failed; the error is printed to standard error.
        """
        sys.stdout.flush()
        failed = self._output.failed
        if failed is not None and failed.errno != errno.EPIPE:
            print(f"clipbatch: cannot write to standard output: {failed.strerror}", file=sys.stderr)
            code = code or int(_result["is_printed"])
        sys.stderr.flush()
        return code


def _text(raw: _Output, old: Any) -> io.TextIOWrapper:
    """A text stream on `raw`, with the encoding and buffering of `old`, Python's own stream (None if it was closed).

    Names that are not UTF-8 are printed byte for byte. Characters that the encoding lacks are printed as escapes.
    """
    encoding, through = getattr(old, "encoding", "utf-8"), getattr(old, "write_through", False)
    return io.TextIOWrapper(
        raw if through else io.BufferedWriter(raw),  # as Python does with PYTHONUNBUFFERED
        encoding,
        "surrogateescape" if encoding.lower() == "utf-8" else "backslashreplace",
        line_buffering=getattr(old, "line_buffering", False),
        write_through=through,
    )
