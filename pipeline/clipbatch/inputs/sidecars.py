"""Captions in files beside the images of a folder: `a/001.txt` or `a/001.json` for `a/001.jpg`.

A sidecar has the name of its image but for the suffix, which is the column of `--caption-column`. They are read when
the run is planned, by many threads, since what is frozen is what is compared. That is one small read an image. Archives
have their sidecars inside (`archive_members`), where other rules hold.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.opening import store_error
from clipbatch.storage.failures import RemoteError
from clipbatch.storage.ranges import open_container
from clipbatch.storage.uris import is_text, is_url

MAX_BYTES = 2**20
_THREADS, _REMOTE_THREADS = 16, 64
# Sidecars that a thread reads in turn.
_AT_ONCE = 256

# The text of a sidecar, or None and the reason in words.
_Read = tuple[str | None, str]


class CaptionFiles:
    """The sidecars of an input's images, if `settings` name a caption column."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        """text: the input, as the user wrote it. Raises: InputError for a suffix that is not UTF-8."""
        self._text, self._column = text, settings.caption_file
        self._images = self.read = 0
        if self._column is not None and not is_text(self._column):
            raise InputError(f"--caption-column {self._column!r} is not UTF-8: name a suffix of files, such as txt")

    def fields(self) -> list[pa.Field]:
        """The column that the sidecars become; none if they are not asked for."""
        return [] if self._column is None else [pa.field(self._column, pa.string())]

    def is_one(self, name: str) -> bool:
        """Whether a file of this name is a sidecar, and no image, whatever files are asked for."""
        return self._column is not None and name.endswith(f".{self._column}")

    def carried(self, names: list[str], notes: Counter[str]) -> list[tuple[pa.Field, pa.Array]]:
        """The texts of the sidecars of images, as a column. names: paths or urls. notes: gets what cannot be read.

        Raises: InputError if a store fails.
        """
        if self._column is None:
            return []
        paths = [f"{os.path.splitext(name)[0]}.{self._column}" for name in names]
        chunks = [paths[at : at + _AT_ONCE] for at in range(0, len(paths), _AT_ONCE)]
        threads = _REMOTE_THREADS if names and is_url(names[0]) else _THREADS
        with ThreadPoolExecutor(threads, thread_name_prefix="sidecars") as pool:
            results = [result for some in pool.map(_read_all, chunks) for result in some]
        self._images += len(names)
        self.read += sum(text is not None for text, _ in results)
        why = Counter(reason for text, reason in results if text is None)
        notes.update({self._note(reason): count for reason, count in why.items()})
        return [(self.fields()[0], pa.array([text for text, _ in results], pa.string()))]

    def check(self) -> None:
        """Raises: InputError if no image has a sidecar, after all were read."""
        if self._column is not None and self._images and not self.read:
            raise InputError(
                f"none of the {self._images} images of {self._text} has a file .{self._column} beside it, which "
                "--caption-column names: name the suffix of such files, as in txt or json:FIELD, or give a table"
            )

    def discount(self, passed_over: Counter[str]) -> None:
        """Take the sidecars that were read out of the files that were passed over."""
        suffix = f".{self._column}".lower()
        if self._column is not None and suffix in passed_over:
            passed_over[suffix] = max(0, passed_over[suffix] - self.read)
            if not passed_over[suffix]:
                del passed_over[suffix]

    def _note(self, reason: str) -> str:
        return f"(images without .{self._column})" if reason == "missing" else f"(.{self._column} {reason})"


def text_of(content: bytes | bytearray) -> str | None:
    """The text of a caption's file; None if it is not UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_all(paths: list[str]) -> list[_Read]:
    return [_remote(path) if is_url(path) else _local(path) for path in paths]


def _local(path: str) -> _Read:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except FileNotFoundError:
        return None, "missing"
    except (OSError, ValueError):
        return None, "unreadable"
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            return None, "unreadable"
        if facts.st_size > MAX_BYTES:
            return None, "too_large"
        return _of_bytes(os.read(file, MAX_BYTES))
    except OSError:
        return None, "unreadable"
    finally:
        os.close(file)


def _remote(url: str) -> _Read:
    try:
        file = open_container(url)
        return (None, "too_large") if file.size > MAX_BYTES else _of_bytes(file.read_at(0, file.size))
    except FileNotFoundError:
        return None, "missing"
    except RemoteError as error:
        if error.status == "missing":
            return None, "missing"
        raise store_error(f"read {url}", error) from error
    except (OSError, ValueError) as error:
        raise store_error(f"read {url}", error) from error


def _of_bytes(content: bytes | bytearray) -> _Read:
    text = text_of(content)
    return text, "" if text is not None else "not UTF-8"
