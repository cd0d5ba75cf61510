"""Work that needs torch, done for a command in a process of its own: JSON lines from it, its failures as ours.

`lines` is the command's side, `speak` the process's. A process that dies takes nothing with it but its answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from clipbatch.errors import ClipbatchError, from_message
from clipbatch.stages.memory import too_little_memory
from clipbatch.workers import signals
from clipbatch.workers.worker import working_folder


def safe_environment() -> dict[str, str]:
    """The environment for `python -m`: without the working folder on the path (from Python 3.11 on), where a user's
    torch.py would be taken for the library."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def ending(code: int) -> str:
    """How a process ended, in words."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    except ValueError:
        return f"by signal {-code}"


Say = Callable[[dict[str, Any]], None]
_LOG_BYTES = 2000


def lines(module: str, *arguments: str, aloud: bool = False) -> Iterator[dict[str, Any]]:
    """What `python -m MODULE ARGUMENTS` says, a line at a time. aloud: its standard error is ours, else only shown
    where it dies.

    Raises: the error that it reports; ClipbatchError where it dies.
    """
    command = [sys.executable, "-m", module, *arguments]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if aloud else log,
            env=safe_environment(),
            cwd=working_folder(),
        ) as process,
    ):
        assert process.stdout
        try:
            for line in process.stdout:
                signals.check()
                message: dict[str, Any] = json.loads(line)
                if "exit_code" in message:
                    raise from_message(message["exit_code"], message["message"])
                yield message
            signals.check()
            if code := process.wait():
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_BYTES))
                said = log.read().decode(errors="replace")
                if refusal := too_little_memory(said):
                    raise refusal
                raise ClipbatchError(f"the process {module} ended {ending(code)}\n{said}".rstrip())
        finally:
            process.kill()


def speak(work: Callable[[Say], None]) -> None:
    """Do `work`, which says JSON objects, and end the process; an exception is said, too."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between our lines

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    code = 0
    try:
        work(say)
    except Exception as raised:
        error = too_little_memory(raised) or raised
        ours = isinstance(error, ClipbatchError)
        code = error.exit_code if isinstance(error, ClipbatchError) else 1
        say({"exit_code": code, "message": str(error) if ours else "".join(traceback.format_exception(error))})
    sys.stderr.flush()
    os._exit(code)  # reading threads may hang in a file that never answers
