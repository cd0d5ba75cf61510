"""Second copies, in `copies/`, of the files that a run cannot do without: `run.json`, `model.json`, `text.npy` and, if
it has heads, `heads.safetensors`.

We write each copy right after its file, with the same bytes. Both contain a digest of their content (that of `text.npy`
is in `model.json`, those of the heads are in `run.json`). So if the two differ, we know which one is damaged. Runs of
old versions have neither digests nor copies.

The order matters if a process is killed in between:
    create  run.json, then copies/run.json. A run may lack its copy; the next invocation writes it.
    remove  copies/run.json, then run.json. So a copy without its file always means damage.

This module does not know the content of the files and repairs nothing. `damage` does that.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from clipbatch.errors import InputError
from clipbatch.rundir.records import OtherVersionError, unseal
from clipbatch.rundir.shapes import DamagedRecordError
from clipbatch.storage.atomic import publish, writing_failed
from clipbatch.storage.paths import AnyPath

FOLDER = "copies"
NAMES = ("run.json", "heads.safetensors", "model.json", "text.npy")
T = TypeVar("T")


def content(folder: AnyPath, name: str) -> bytes | None:
    """The bytes of the copy of `name` in the run directory `folder`; None if there is no readable copy."""
    with contextlib.suppress(OSError):
        return (folder / FOLDER / name).read_bytes()
    return None


def make(folder: AnyPath, name: str) -> None:
    """Write the copy of the file `name`, unless it is up to date. Raises: InputError if that fails."""
    with contextlib.suppress(FileNotFoundError):
        put(folder / FOLDER, name, (folder / name).read_bytes())


def put(folder: AnyPath, name: str, data: bytes) -> None:
    """Publish `data` as the file `name`, unless it is there already. Creates `folder`. Raises: as `make`."""
    with contextlib.suppress(OSError):
        if (folder / name).read_bytes() == data:
            return
    if isinstance(folder, Path):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise writing_failed(folder, error) from error
    with publish(folder / name) as file:
        file.write(data)


def remove(folder: AnyPath) -> None:
    """Remove all copies."""
    for name in NAMES:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / FOLDER / name).unlink()
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):  # the folder holds other files
            (folder / FOLDER).rmdir()


def read(folder: AnyPath, name: str) -> bytes | None:
    """The bytes of the file `name`; None if neither the file nor its copy exists.

    Raises: InputError with the remedy if the file cannot be read, or is missing while its copy exists.
    """
    if (data := present(folder, name)) is None and content(folder, name) is not None:
        raise damaged(folder, name, "it is missing")
    return data


def present(folder: AnyPath, name: str) -> bytes | None:
    """As `read`, but None also if only the copy exists, for which it does not look."""
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise damaged(folder, name, error.strerror or str(error)) from error


def parsed(folder: AnyPath, name: str, data: bytes, parse: Callable[[bytes], T]) -> T:
    """Parse `data`, the bytes of the JSON file `name`, with `parse`.

    Raises: InputError with the remedy if the file is damaged, lacks the digest that its copy has, or was written by
    another version.
    """
    try:
        value, has_digest = parse(data), unseal(data)[1] is not None
    except DamagedRecordError as error:
        raise damaged(folder, name, str(error)) from error
    except OtherVersionError as error:
        if unseal(data)[1] is None and content(folder, name) is not None:
            raise damaged(folder, name, "its bytes are not those that were written") from error
        raise InputError(f"{folder / name} was written by {error}; finish the run with that version") from error
    if not has_digest and content(folder, name) is not None:
        raise damaged(folder, name, "its bytes are not those that were written")
    return value


def damaged(folder: AnyPath, name: str, why: str) -> InputError:
    """The error for a damaged file. The remedy depends on whether its copy exists."""
    remedy = f"restore it from a backup, or label the images into a folder other than {folder}"
    if content(folder, name) is not None:
        remedy = f"clipbatch verify {shlex.quote(str(folder))} --restore restores it from its copy"
    return InputError(f"{folder / name} is damaged: {why}; {remedy}")
