"""Second copies of the files without which a run is lost: `run.json`, `model.json` and `text.npy`, in `copies/`.

A copy is byte for byte its file, and is made right after it. Both carry the digest of what they hold (`text.npy` has it
in `model.json`), so that of two that differ it is known which one is damaged. A run of an old version has neither
digests nor copies.

    begun        run.json, then copies/run.json: whoever is killed in between leaves a run without a copy, and the next
                 invocation makes it
    thrown away  copies/run.json, then run.json: a copy without its file is damage, and never a run that was given up

Knows nothing of what is in the files, and mends nothing: `damage` does.
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
NAMES = ("run.json", "model.json", "text.npy")
T = TypeVar("T")


def content(folder: AnyPath, name: str) -> bytes | None:
    """What the copy of the file `name` in the run directory `folder` holds; None where there is none to be read."""
    with contextlib.suppress(OSError):
        return (folder / FOLDER / name).read_bytes()
    return None


def make(folder: AnyPath, name: str) -> None:
    """Copy the file `name` as it is now, unless that has been done. Raises: InputError where it cannot be written."""
    with contextlib.suppress(FileNotFoundError):
        put(folder / FOLDER, name, (folder / name).read_bytes())


def put(folder: AnyPath, name: str, data: bytes) -> None:
    """Publish the file `name` in `folder`, which is made, unless it holds `data` already. Raises: as `make`."""
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
        with contextlib.suppress(OSError):  # there is more in it
            (folder / FOLDER).rmdir()


def read(folder: AnyPath, name: str) -> bytes | None:
    """What the file `name` holds; None where neither it nor a copy of it is there.

    Raises: InputError with the remedy where it cannot be read, or is gone while its copy is there.
    """
    try:
        return (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if content(folder, name) is None:
            return None
        raise damaged(folder, name, "it is gone") from None
    except OSError as error:
        raise damaged(folder, name, error.strerror or str(error)) from error


def parsed(folder: AnyPath, name: str, data: bytes, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of `data`, which the JSON file `name` holds.

    Raises: InputError where it is damaged, with the remedy, also where it has lost the digest that its copy has; where
    it is of another version.
    """
    try:
        found, sealed = parse(data), unseal(data)[1] is not None
    except DamagedRecordError as error:
        raise damaged(folder, name, str(error)) from error
    except OtherVersionError as error:
        if unseal(data)[1] is None and content(folder, name) is not None:
            raise damaged(folder, name, "its bytes are not those that were written") from error
        raise InputError(f"{folder / name} was made by {error}; finish the run with that version") from error
    if not sealed and content(folder, name) is not None:
        raise damaged(folder, name, "its bytes are not those that were written")
    return found


def damaged(folder: AnyPath, name: str, why: str) -> InputError:
    """The refusal for a file of which there is a copy, or should be."""
    remedy = f"put it back from a backup, or label the images into a folder other than {folder}"
    if content(folder, name) is not None:
        remedy = f"clipbatch verify {shlex.quote(str(folder))} --restore puts back its copy"
    return InputError(f"{folder / name} is damaged: {why}; {remedy}")
