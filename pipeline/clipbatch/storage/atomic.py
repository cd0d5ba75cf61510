"""Write files that appear whole or not at all: temp file beside the target, fsync, rename, fsync of the folder.

A process that is killed in between leaves a temp file. Its name contains the host, the process id and the time at which
the process began, so that a later run can tell whether the writer still lives. The id alone does not tell: ids are used
again, and often where there are only 32,768 of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from clipbatch.errors import BusyError, InputError
from clipbatch.storage.paths import AnyPath, StorePath

_TEMP = re.compile(r"\..+\.(?P<host>[^.]*)-(?P<pid>\d+)(?:\.(?P<begun>\d+))?\.tmp")
_HOST = re.sub(r"[^A-Za-z0-9_-]", "_", socket.gethostname())


@contextlib.contextmanager
def publish(target: AnyPath) -> Iterator[BinaryIO]:
    """Open a temp file for writing. At the end of the block it becomes `target` in one step; after an exception it is
    removed.

    In a store, the content is kept in memory and written as one object at the end.
    Raises: InputError where the disk is full or the folder cannot be written, with the folder and the remedy.
    """
    if isinstance(target, StorePath):
        buffer = io.BytesIO()
        yield buffer
        target.write_bytes(buffer.getbuffer())
        return
    temp = temp_name(target)
    try:
        with open(temp, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, target)
        sync_folder(target.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temp.unlink()
        if isinstance(error, OSError):
            raise writing_failed(target, error) from error
        raise


def temp_name(target: Path) -> Path:
    """The path of the temp file that this process writes and then renames to `target`."""
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}.{_begun()}.tmp")


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut. If the power fails before this returns, the new file may be
    gone. Its shard then counts as open, and doing it again writes the same bytes."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems cannot sync a folder, and rename durably without it
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def as_json(value: Any) -> bytes:
    """`value` as indented JSON with sorted keys. Raises: ValueError for NaN and infinite numbers, which no JSON has."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinite numbers, also inside objects and lists."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(target: AnyPath, value: Any) -> None:
    """Publish `value` as indented JSON with sorted keys, and null for NaN and infinite numbers."""
    with publish(target) as file:
        file.write(as_json(finite(value)))


def remove_leftovers(folder: AnyPath) -> None:
    """Remove temp files and folders in `folder` whose writer was a process of this host that no longer runs."""
    if isinstance(folder, StorePath):
        return
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            match = _TEMP.fullmatch(entry.name)
            if match and match["host"] == _HOST and not is_alive(int(match["pid"]), match["begun"]):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def is_alive(pid: int, begun: str | None = None) -> bool:
    """Whether the process `pid` of this host is the writer, and can still write.

    begun: when the writer began; None or 0 where that is not known. A zombie cannot write. Zombies may stay for ever in
    a container, whose first process may never wait for the children that it inherits.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    facts = _stat(pid)
    if facts[:1] == ["Z"]:
        return False
    return begun in (None, "0") or not facts or facts[19] == begun


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat (proc(5)) from the state on; empty where it cannot be read."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return []


def _begun() -> str:
    """When this process began, in clock ticks since the machine's start; 0 where that is not known."""
    return (_stat(os.getpid()) or ["0"] * 20)[19]


@contextlib.contextmanager
def locked(folder: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `folder`, which is created if it does not exist. The lock ends with the process at the latest.

    Raises: BusyError with the message `busy` where another process holds it; InputError where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise writing_failed(folder, error) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(busy) from error
        yield
    finally:
        os.close(file)


def writing_failed(target: AnyPath, error: OSError) -> InputError:
    """The error for an output that cannot be written, with the remedy."""
    remedy = {
        errno.ENOSPC: "free some space there, then run the same command again",
        errno.EDQUOT: "the quota is used up: free some space, then run the same command again",
        errno.EFBIG: "raise the file-size limit (ulimit -f) or choose a smaller --shard-size",
        errno.EACCES: "make it writable for this user, or choose another --out",
        errno.EROFS: "it is mounted read-only: choose another --out",
        errno.ENOENT: "the folder has gone: put it back, or choose another --out",
        errno.EEXIST: "a file is in the way: choose another --out",
        errno.ENOTDIR: "a file is in the way: choose another --out",
    }.get(error.errno or 0, "check the disk, then run the same command again")
    return InputError(f"cannot write {target}: {error.strerror or error}; {remedy}")


def file_sha256(path: AnyPath) -> str:
    """sha256 of the file at `path`, in hexadecimal. Raises: OSError."""
    with path.open_input() if isinstance(path, StorePath) else open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: Any, between: Callable[[], object] = lambda: None) -> str:
    """sha256 of the rest of `file`, in hexadecimal. between: called after each mebibyte."""
    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
        between()
    return digest.hexdigest()
