"""Child processes: start one, exchange JSON lines with it, wait with a deadline, and say how it ended.

Work that may crash (in a decoder or a driver) or that needs torch runs in a child process. `Child` is the parent's
side and `Parent` is the child's side. Other modules define the messages. One message is common to all: a child that
fails sends a `failure`, and `raise_failure` raises it as an exception in the parent.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clipbatch.config.memory_limits import too_little_memory
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import ClipbatchError, brief, from_message
from clipbatch.workers import signals

_LOG_LINES = 40
# A waiting parent checks this often whether a signal has asked it to stop.
_POLL_S = 0.2
_PIECE_BYTES = 2**16


def safe_environment() -> dict[str, str]:
    """The environment for `python -m`. From Python 3.11 on it keeps the working folder off the import path; otherwise
    a torch.py in that folder would be imported instead of the library."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def working_folder() -> str | None:
    """The working folder for a child: None for that of this process, or `/` if that has been deleted.

    torch cannot be imported in a deleted folder. Relative paths do not work there either; they were refused earlier.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        return "/"
    return None


def describe_exit(code: int) -> str:
    """How a process ended, in words. code: an exit code as `subprocess` returns it."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    except ValueError:
        return f"by signal {-code}"


class Child:
    """A process `python -m MODULE ARGUMENTS`. Used as a context manager, it is killed at the end.

    One thread may call `receive` while another calls `send`.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        aloud: bool = False,
        pass_fds: Sequence[int] = (),
        max_line_bytes: int = 2**28,
    ) -> None:
        """aloud: the process writes to our standard error. Otherwise `log` returns the last lines that it wrote.

        max_line_bytes: a longer line, or one that is not JSON, is treated as the end of the process.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if aloud else subprocess.PIPE,
            pass_fds=pass_fds,
            env=safe_environment(),
            cwd=working_folder(),
        )
        self._max_line_bytes = max_line_bytes
        self._received = bytearray()
        self._lines: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
        self._logging = threading.Thread(target=self._keep_log, daemon=True)
        self._logging.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, message: Any) -> None:
        """Write `message` as a line of JSON. If the process has died, only the next `receive` reports it."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: `close` has closed the pipe
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float | None = None) -> Any:
        """Wait for the next message and return it.

        Raises: TimeoutError if none arrives within `timeout_s`; EOFError if the process has ended, or has written
        something that is not a line of JSON (it is killed then).
        """
        assert self._process.stdout
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        stdout = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while b"\n" not in self._received:
            left_s = _POLL_S if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no answer within {timeout_s:g} s")
            if poll.poll(1000 * min(left_s, _POLL_S)):
                piece = os.read(stdout, _PIECE_BYTES)
                self._received += piece
                if not piece or len(self._received) > self._max_line_bytes:
                    break
            if threading.current_thread() is threading.main_thread():
                signals.check()
        line, end, rest = self._received.partition(b"\n")
        try:
            message = json.loads(line) if end else None
        except ValueError:
            message = None
        if message is None:
            self._process.kill()
            raise EOFError("the process has ended")
        self._received = rest
        return message

    def exit_code(self) -> int:
        """Wait until the process has ended. Returns its exit code; if negative, the signal that killed it."""
        code = self._process.wait()
        self._logging.join(timeout=1)  # not for ever: a grandchild may still hold the pipe open
        return code

    def how_it_ended(self) -> str:
        """Wait until the process has ended. Returns the words of `describe_exit`."""
        return describe_exit(self.exit_code())

    def log(self) -> list[str]:
        """The last lines that the process wrote to standard error."""
        return list(self._lines)

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel cannot end it: it waits for a file server
            self._process.wait(timeout=5)

    def close(self) -> None:
        """Kill the process and close its pipes. Open pipes would add up in a process that starts many runs."""
        self.kill()
        self._logging.join(timeout=1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is None or (pipe is self._process.stderr and self._logging.is_alive()):
                continue
            with contextlib.suppress(OSError):  # unsent data for a dead process
                pipe.close()

    def _keep_log(self) -> None:
        for line in self._process.stderr or ():
            self._lines.append(line.decode(errors="replace").rstrip())


def messages_of(module: str, *arguments: str, aloud: bool = False) -> Iterator[JsonObject]:
    """All messages of `python -m MODULE ARGUMENTS`, a process that does one task and needs no orders.

    Raises: the error that the process reports; ClipbatchError if it dies.
    """
    with Child(module, *arguments, aloud=aloud) as child:
        while True:
            try:
                message = child.receive()
            except EOFError:
                break
            raise_failure(message)
            yield message
        if child.exit_code():
            if refusal := too_little_memory("\n".join(child.log())):
                raise refusal
            raise ClipbatchError("\n".join([f"the process {module} ended {child.how_it_ended()}", *child.log()]))


def raise_failure(message: Any) -> None:
    """Raises: the error in `message`, if `message` is a `failure`."""
    if isinstance(message, dict) and "exit_code" in message:
        raise from_message(message["exit_code"], message["message"])


def failure(error: BaseException) -> JsonObject:
    """The message in which a child reports an exception.

    `exit_code`; `message`, the text of an error of clipbatch or the traceback of any other; `what`, the error's type
    and first line.
    """
    ours = isinstance(error, ClipbatchError)
    code = error.exit_code if isinstance(error, ClipbatchError) else ClipbatchError.exit_code
    message = str(error) if ours else "".join(traceback.format_exception(error))
    return {"exit_code": code, "message": message, "what": brief(error)}


class Parent:
    """The child's connection to its parent. Create it before any library can print: from then on, standard output
    carries only messages, and what libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def send(self, message: Any) -> None:
        """Write `message` as a line of JSON. Thread-safe."""
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def messages(self) -> Iterator[Any]:
        """The parent's messages, until the parent closes the pipe or dies."""
        return map(json.loads, sys.stdin)


def serve(work: Callable[[Parent], None]) -> None:
    """Call `work`, then end the process. An exception is sent as a `failure`, and its code becomes the exit code."""
    parent, code = Parent(), 0
    try:
        work(parent)
    except Exception as error:
        report = failure(too_little_memory(error) or error)
        code = report["exit_code"]
        parent.send(report)
    sys.stderr.flush()
    os._exit(code)  # a normal exit would wait for reading threads, which may hang on a dead file server
