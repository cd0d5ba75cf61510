"""`clipbatch serve` in a process of its own, and jobs for its spool."""

import contextlib
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.conftest import DEMO, start

PATIENCE_S = 600.0


class Service:
    """A running service. `url` is where it answers over HTTP, if it does."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.url, self.said = process, "", list[str]()
        assert process.stderr
        for line in process.stderr:
            self.said.append(line)
            if line.startswith("serving "):
                break
        else:
            raise AssertionError(f"ended with {process.wait()}: {self.said}")
        if found := re.search(r"http://\S+:\d+", self.said[-1]):
            self.url = found[0]
        threading.Thread(target=lambda: self.said.extend(process.stderr or ()), daemon=True).start()

    def end(self, signum: int) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=PATIENCE_S)


@contextlib.contextmanager
def serving(*args: object, **environment: str) -> Iterator[Service]:
    """`clipbatch serve ARGS` with the embedded model; killed at the end, if it still runs."""
    process = start("serve", *args, *DEMO, "--device", "cpu", env={**os.environ, "HF_HUB_OFFLINE": "1", **environment})
    try:
        yield Service(process)
    finally:
        process.kill()
        process.communicate()


def drop(spool: Path, name: str, paths: Sequence[object]) -> None:
    """A job that appears whole."""
    (spool / f".{name}").write_text("".join(f"{path}\n" for path in paths))
    os.rename(spool / f".{name}", spool / "in" / name)


def answer(spool: Path, name: str, result: str = "done") -> dict[str, Any]:
    """The answer to a job, when it comes."""
    file, begun = spool / result / f"{name}.json", time.monotonic()
    while not file.exists():
        assert time.monotonic() - begun < PATIENCE_S, sorted(map(str, spool.glob("*/*")))
        time.sleep(0.02)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def wait_for(path: Path) -> None:
    begun = time.monotonic()
    while not path.exists():
        assert time.monotonic() - begun < PATIENCE_S, path
        time.sleep(0.002)
