"""Standard input, output and error as the caller left them: open, closed, on a full disk, or a pipe that nobody reads.

What a command does never depends on whether somebody reads what it prints. A closed stream becomes the null device, so
that no file of ours gets its number, 0, 1 or 2, which child processes take for a stream. A write that fails is noted
and all further output of that stream is dropped; whether the command then counts as failed is decided at its end.
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
    """Say that this command's result is what it leaves on disk, so that it is a success also where its summary cannot
    be printed."""
    _result["is_printed"] = False


class _Output(io.FileIO):
    """A standard stream; keeps the first error in `failed` in place of raising it, and drops what comes after."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        left = view = memoryview(data).cast("B")
        while left and self.failed is None:
            try:
                written = super().write(left)
            except OSError as error:
                self.failed = error
            else:
                if written is None:  # the caller's pipe does not wait, and is full
                    select.select([], [self], [])
                left = left[written or 0 :]
        return len(view)


class StandardStreams:
    """The streams of this process, as `sys.stdin`, `sys.stdout` and `sys.stderr`."""

    def __init__(self) -> None:
        """To be made before anything opens a file."""
        for fd in (0, 1, 2):
            try:
                os.fstat(fd)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if sys.stdin is None:
            sys.stdin = open(0, closefd=False)  # noqa: SIM115  (as long as the process)
        self._output = _Output(1, "w", closefd=False)
        sys.stdout = _text(self._output, sys.stdout)
        sys.stderr = _text(_Output(2, "w", closefd=False), sys.stderr)

    def close(self, code: int) -> int:
        """Write out what waits, and return the exit code of a command that ended with `code`.

        A reader that has read enough is no failure. Any other error makes a failure of a command whose result is what
        it prints, and is said on standard error.
        """
        sys.stdout.flush()
        failed = self._output.failed
        if failed is not None and failed.errno != errno.EPIPE:
            print(f"clipbatch: cannot write to standard output: {failed.strerror}", file=sys.stderr)
            code = code or int(_result["is_printed"])
        sys.stderr.flush()
        return code


def _text(raw: _Output, old: Any) -> io.TextIOWrapper:
    """`raw` with the encoding and the buffering of `old`, the stream that Python made, None where it was closed.

    Names that are not UTF-8 are printed byte for byte, and letters that the encoding lacks as escapes.
    """
    encoding, through = getattr(old, "encoding", "utf-8"), getattr(old, "write_through", False)
    return io.TextIOWrapper(
        raw if through else io.BufferedWriter(raw),  # as Python does with PYTHONUNBUFFERED
        encoding,
        "surrogateescape" if encoding.lower() == "utf-8" else "backslashreplace",
        line_buffering=getattr(old, "line_buffering", False),
        write_through=through,
    )
