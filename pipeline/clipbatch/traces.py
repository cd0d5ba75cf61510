"""Where `--profile` puts the traces of several processes. Knows nothing of how they are made."""

from __future__ import annotations

import os
from pathlib import Path

from clipbatch.errors import InputError


def check_trace(path: str | None) -> None:
    """Raises: InputError where no file can be written at `path`, which would show only when the work is done."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)) or Path(path).is_dir():
        raise InputError(f"--profile {path}: it has to be a file in a folder that is there and can be written")


def numbered(path: str | None, what: str, number: int, of: int) -> str | None:
    """`path`, with `what` and `number` in its name where there are several: trace.json, trace-worker1.json."""
    if path is None or of == 1:
        return path
    whole = Path(path)
    return str(whole.with_name(f"{whole.stem}-{what}{number}{whole.suffix}"))
