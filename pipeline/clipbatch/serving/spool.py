"""A folder that jobs are dropped into: which are waiting, in work and done. Knows nothing of what is in them.

    in/NAME         a job, put there by a rename (write it elsewhere on the same file system, or under a name that
                    begins with a dot or ends in .tmp or .part)
    working/NAME    the one in work
    done/NAME       finished, with its answer in done/NAME.json
    failed/NAME     refused, with the reason in failed/NAME.json
    runs/NAME/      its run directory

Whoever writes to `in/` chooses names, kinds and owners of files, so nothing there may end the service: what cannot be
taken is said once and passed by, and what is neither a file nor a folder fails. Nothing is ever written over: a name is
free only if neither it nor the name of its answer is in use anywhere, and is numbered (NAME-2) otherwise.

A job finishes in three steps: its answer is written to `working/.NAME.done` (or `.failed`), the job is moved, and the
answer is moved to its place. So an answer appears when all else is done, and a service that is killed in between finds
an answer that the next one puts in its place (`recover`). A job in `working/` without an answer is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipbatch.errors import InputError
from clipbatch.storage.atomic import locked, remove_leftovers, sync_folder, write_json, writing_failed
from clipbatch.storage.paths import as_path

# Of a job; a longer name is shortened, as temp files have names of up to 100 bytes more, and 255 is Linux's limit.
MAX_NAME_BYTES = 150
_UNFINISHED = (".tmp", ".part")
_RESULTS = ("done", "failed")


class Spool:
    """The folder at `path`, created where it does not exist. Used by one thread of one process: see `locked`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        root: str | None = None,
        only_own_files: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        """root: where links in a folder may lead, besides the folder itself. only_own_files: a job fails unless all its
        files belong to this process's user. say: told, once, what cannot be taken or moved.

        Raises: InputError where the folder cannot be created, or its name is not UTF-8."""
        self.path = Path(path).absolute()
        as_path(self.path)
        self.incoming, self.working, self.done, self.failed, self.runs = (
            self.path / name for name in ("in", "working", "done", "failed", "runs")
        )
        self._root, self._only_own_files, self.say = root, only_own_files, say
        self._said: set[str] = set()
        try:
            for folder in (self.incoming, self.working, self.done, self.failed, self.runs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_failed(self.path, error) from error
        for folder in (self.working, self.done, self.failed):
            remove_leftovers(folder)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Keep other services away. The lock goes with the process. Raises: BusyError where another one is there."""
        return locked(self.path, f"another process serves {self.path}: stop it, or use another folder")

    def waiting(self) -> list[str]:
        """Names of the jobs in `in/`, the oldest first, without those that cannot be taken."""
        jobs, names = [], set()
        try:
            with os.scandir(self.incoming) as entries:
                for entry in entries:
                    names.add(entry.name)
                    if entry.name in self._said or entry.name.startswith(".") or entry.name.endswith(_UNFINISHED):
                        continue
                    with contextlib.suppress(OSError):  # taken back meanwhile
                        jobs.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        except OSError as error:
            self._once("", f"cannot list {self.incoming}: {error.strerror}; make it readable for this user")
        self._said &= names | {""}
        return [name for _, name in sorted(jobs)]

    def interrupted(self) -> list[str]:
        """Jobs that an earlier service had in work."""
        return sorted(name for name in os.listdir(self.working) if not name.startswith("."))

    def count_death(self, name: str) -> int:
        """Note that a service has ended with this job in work; returns how many have."""
        file = self._beside(name, "deaths")
        with contextlib.suppress(OSError, ValueError):
            deaths = 1 + (int(file.read_text() or 0) if file.exists() else 0)
            file.write_text(str(deaths))
            return deaths
        return 1

    def forget_deaths(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._beside(name, "deaths").unlink(missing_ok=True)

    def take(self, name: str) -> str | None:
        """Move a job from `in/` to `working/`; returns the name that it has from now on, None where it cannot be taken.

        The caller checks what it is (`check`) only then, as its owner cannot exchange it there.
        """
        given = self._free_name(name)
        try:
            os.rename(self.incoming / name, self.working / given)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._once(name, f"cannot take the job {name!r}: {error.strerror}; it stays in {self.incoming}")
            return None
        return given

    def check(self, name: str) -> None:
        """Raises: InputError for a job in `working/` that is neither a file nor a folder, for a folder with a link that
        leads out of it and of the root, and, with `only_own_files`, for anything that belongs to another user."""
        job = self.working / name
        try:
            for path, status in _walk(job):
                self._check_entry(job, path, status)
        except OSError as error:
            raise InputError(f"cannot look at the job {name!r}: {error.strerror}; make it readable") from error

    def _check_entry(self, job: Path, path: str, status: os.stat_result) -> None:
        shown = repr(os.path.relpath(path, self.working))
        if self._only_own_files and status.st_uid != os.geteuid():
            raise InputError(f"{shown} belongs to user {status.st_uid}: --only-own-files takes those of this service")
        if path == str(job):
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise InputError(f"the job {shown} is a link, a pipe or a device: drop a file or a folder itself")
        elif stat.S_ISLNK(status.st_mode):
            target, fences = os.path.realpath(path), [os.path.realpath(job)]
            if self._root and "://" not in self._root:
                fences.append(os.path.realpath(self._root))
            if not any(target == fence or target.startswith(fence.rstrip("/") + "/") for fence in fences):
                raise InputError(
                    f"{shown} is a link that leads out of the job and of --root: put the file itself there"
                )

    def finish(self, name: str, answer: Mapping[str, Any], *, failed: bool) -> None:
        """Write the answer of a job and move both out of `working/`. Raises: InputError, OSError; then try again."""
        result = "failed" if failed else "done"
        write_json(self._beside(name, result), answer)
        self._move(name, result)

    def recover(self) -> None:
        """Move the jobs and answers that an earlier service had finished and not moved."""
        for entry in sorted(os.listdir(self.working)):
            stem, _, result = entry.rpartition(".")
            if stem.startswith(".") and result in _RESULTS and len(stem) > 1:
                try:
                    self._move(stem[1:], result)
                except OSError as error:
                    self._once(entry, f"cannot finish the job {stem[1:]!r}: {error.strerror}; it stays in working/")

    def _move(self, name: str, result: str) -> None:
        folder = self.path / result
        if os.path.lexists(self.working / name):
            os.rename(self.working / name, folder / name)
            sync_folder(folder)
        os.rename(self._beside(name, result), folder / f"{name}.json")
        self.forget_deaths(name)

    def _beside(self, name: str, what: str) -> Path:
        """A file of ours for the job `name` while it is in work; no job has a name that begins with a dot."""
        return self.working / f".{name}.{what}"

    def _free_name(self, name: str) -> str:
        """`name`, shortened and numbered as far as needed."""
        stem, suffix = os.path.splitext(name)
        if len(os.fsencode(name)) > MAX_NAME_BYTES:
            digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
            suffix = suffix if len(os.fsencode(suffix)) <= 16 else ""
            most = MAX_NAME_BYTES - len(os.fsencode(suffix)) - len(digest) - 1
            stem = os.fsencode(stem)[:most].decode(errors="ignore") + f"-{digest}"
        free, number = f"{stem}{suffix}", 1
        while any(self._is_used(other) for other in (free, f"{free}.json", *_owner(free))):
            number += 1
            free = f"{stem}-{number}{suffix}"
        return free

    def _is_used(self, name: str) -> bool:
        return any(os.path.lexists(f / name) for f in (self.working, self.done, self.failed, self.runs))

    def _once(self, name: str, text: str) -> None:
        if name not in self._said:
            self._said.add(name)
            self.say(text)


def _owner(name: str) -> tuple[str, ...]:
    """The job whose answer would have the name `name`, if one could have it."""
    return (name.removesuffix(".json"),) if name.endswith(".json") else ()


def _walk(job: Path) -> Iterator[tuple[str, os.stat_result]]:
    """A job and all that is in it, without following links."""
    status = os.lstat(job)
    yield str(job), status
    folders = [str(job)] if stat.S_ISDIR(status.st_mode) else []
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except PermissionError:  # nobody else can read it either: it becomes a row that says so
            continue
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            yield entry.path, status
            if stat.S_ISDIR(status.st_mode):
                folders.append(entry.path)


__all__ = ["MAX_NAME_BYTES", "Spool"]
