"""A folder that jobs are dropped into: which are waiting, in work and done. Knows nothing of what is in them.

    in/NAME         a job, put there by a rename (write it elsewhere on the same file system, or under a name that
                    begins with a dot or ends in .tmp or .part)
    working/NAME    the one in work
    done/NAME       finished, with its answer in done/NAME.json
    failed/NAME     refused, with the reason in failed/NAME.json
    runs/NAME/      its run directory

An answer is written before its job is moved, so a job that lies in `working/` when a service starts was interrupted,
wherever that was, and is done again, which finds what is finished. A name that was used before is numbered (NAME-2), so
nothing is ever written over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbatch.storage.atomic import locked, remove_leftovers, write_json, writing_failed
from clipbatch.storage.paths import as_path

_UNFINISHED = (".tmp", ".part")


class Spool:
    """The folder at `path`, made where it is not there. Used by one thread of one process: see `locked`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises: InputError where it cannot be made, or is not UTF-8."""
        self.path = Path(path).absolute()
        as_path(self.path)
        self.incoming, self.working, self.done, self.failed, self.runs = (
            self.path / name for name in ("in", "working", "done", "failed", "runs")
        )
        try:
            for folder in (self.incoming, self.working, self.done, self.failed, self.runs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_failed(self.path, error) from error
        for folder in (self.done, self.failed):
            remove_leftovers(folder)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other services away. The lock goes with the process. Raises: BusyError where another one is there."""
        return locked(self.path, f"another process serves {self.path}: stop it, or use another folder")

    def waiting(self) -> list[str]:
        """Names of the jobs in `in/`, the oldest first."""
        found = []
        for entry in os.scandir(self.incoming):
            if not entry.name.startswith(".") and not entry.name.endswith(_UNFINISHED):
                with contextlib.suppress(FileNotFoundError):  # taken back meanwhile
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        return [name for _, name in sorted(found)]

    def interrupted(self) -> list[str]:
        """Jobs that an earlier service had in work."""
        return sorted(name for name in os.listdir(self.working) if not name.startswith("."))

    def count_death(self, name: str) -> int:
        """Note that a service has ended with this job in work; returns how many have."""
        file = self._deaths(name)
        deaths = 1 + (int(file.read_text() or 0) if file.exists() else 0)
        file.write_text(str(deaths))
        return deaths

    def forget_deaths(self, name: str) -> None:
        self._deaths(name).unlink(missing_ok=True)

    def _deaths(self, name: str) -> Path:
        return self.working / f".{name}.deaths"

    def take(self, name: str) -> str | None:
        """Move a job from `in/` to `working/`; returns the name that it has from now on, None where it is gone."""
        stem, suffix = os.path.splitext(name)
        given, number = name, 1
        while any((folder / given).exists() for folder in (self.working, self.done, self.failed, self.runs)):
            number += 1
            given = f"{stem}-{number}{suffix}"
        try:
            os.rename(self.incoming / name, self.working / given)
        except FileNotFoundError:
            return None
        return given

    def finish(self, name: str, answer: Mapping[str, Any], *, failed: bool) -> None:
        """Write the answer of a job and move it out of `working/`."""
        folder = self.failed if failed else self.done
        write_json(folder / f"{name}.json", answer)
        os.rename(self.working / name, folder / name)
        self.forget_deaths(name)
