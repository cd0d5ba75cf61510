"""Child processes of this package: start one, talk to it in JSON lines, wait with a deadline, say how it ended.

Work that may die (a decoder, a driver) or that needs torch runs in a process of its own. `Child` is the parent's side
of that process and `Parent` is the child's side. What the two say to each other is up to the modules that use them; a
child that fails says so in a `failure`, which `raise_failure` turns into an exception in the parent again.
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
from clipbatch.errors import ClipbatchError, brief, from_message
from clipbatch.workers import signals

_LOG_LINES = 40
# How often a parent that waits looks whether a signal has asked it to end.
_POLL_S = 0.2
_PIECE_BYTES = 2**16


def safe_environment() -> dict[str, str]:
    """The environment for `python -m`: without the working folder on the path (from Python 3.11 on), where a user's
    torch.py would be taken for the library."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def working_folder() -> str | None:
    """The folder for a child to work in: None for this process's own, or `/` if that has been deleted.

    torch cannot be loaded in a deleted folder. Relative paths lead nowhere then, and have been refused before.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        return "/"
    return None


def describe_exit(code: int) -> str:
    """How a process ended, in words, from its exit code as `subprocess` gives it."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    except ValueError:
        return f"by signal {-code}"


class Child:
    """`python -m MODULE ARGUMENTS`. As a context manager it kills the process at the end.

    One thread may receive while another one sends.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        aloud: bool = False,
        pass_fds: Sequence[int] = (),
        max_line_bytes: int = 2**28,
    ) -> None:
        """aloud: the process writes to our standard error; otherwise its last lines are kept for `log`.

        max_line_bytes: a longer line counts as the end of the process, as does one that is not JSON.
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
        """Write `message` as a line of JSON. If the process has died, `receive` will say so."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: `close` has closed the pipe
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message.

        Raises: TimeoutError if none comes within `timeout_s`; EOFError if the process has ended or wrote something that
        is not a line of JSON, for which it is killed.
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
        """The exit code; waits until the process has ended. Negative: the signal that killed it."""
        code = self._process.wait()
        self._logging.join(timeout=1)  # a child of its own may keep the pipe open
        return code

    def how_it_ended(self) -> str:
        """As `describe_exit` says it; waits until the process has ended."""
        return describe_exit(self.exit_code())

    def log(self) -> list[str]:
        """The last lines that it wrote to standard error."""
        return list(self._lines)

    def kill(self) -> None:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, on a dead file server
            self._process.wait(timeout=5)

    def close(self) -> None:
        """Kill the process and close its pipes, which would add up where many runs follow one another."""
        self.kill()
        self._logging.join(timeout=1)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is None or (pipe is self._process.stderr and self._logging.is_alive()):
                continue
            with contextlib.suppress(OSError):  # words that were on their way to a process that is dead
                pipe.close()

    def _keep_log(self) -> None:
        for line in self._process.stderr or ():
            self._lines.append(line.decode(errors="replace").rstrip())


def messages_of(module: str, *arguments: str, aloud: bool = False) -> Iterator[dict[str, Any]]:
    """All messages of `python -m MODULE ARGUMENTS`, which works through one task by itself.

    Raises: the error that it reports; ClipbatchError if it dies.
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
    """Raises: the error that `message` reports, if it is a `failure`."""
    if isinstance(message, dict) and "exit_code" in message:
        raise from_message(message["exit_code"], message["message"])


def failure(error: BaseException) -> dict[str, Any]:
    """What a child says of an exception.

    `exit_code`; `message`, a traceback unless the error is one of ours; `what`, its type and first line.
    """
    ours = isinstance(error, ClipbatchError)
    code = error.exit_code if isinstance(error, ClipbatchError) else ClipbatchError.exit_code
    message = str(error) if ours else "".join(traceback.format_exception(error))
    return {"exit_code": code, "message": message, "what": brief(error)}


class Parent:
    """The child's side. Make it before any library can print: standard output belongs to the messages from then on."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._lock = threading.Lock()
        os.dup2(2, 1)  # what a library prints goes to standard error, not between our lines

    def send(self, message: Any) -> None:
        """Write `message` as a line of JSON; any thread may."""
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()

    def messages(self) -> Iterator[Any]:
        """What the parent sends, until it closes the pipe or dies."""
        return map(json.loads, sys.stdin)


def serve(work: Callable[[Parent], None]) -> None:
    """Do `work` and end the process. An exception is sent as a `failure`, and its code becomes the exit code."""
    parent, code = Parent(), 0
    try:
        work(parent)
    except Exception as error:
        report = failure(too_little_memory(error) or error)
        code = report["exit_code"]
        parent.send(report)
    sys.stderr.flush()
    os._exit(code)  # reading threads may hang in a file that never answers
