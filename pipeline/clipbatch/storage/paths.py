"""The place of a run directory: a local folder, or a prefix in an object store that is used like one.

`StorePath` has the few methods of `pathlib.Path` that a run directory needs. One request writes a whole object, so
nothing is renamed; a folder exists as soon as something is in it. Requests that fail are tried again. Errors of a store
end the run as InputError, except FileNotFoundError.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from clipbatch.errors import InputError
from clipbatch.storage.retries import patiently
from clipbatch.storage.stores import open_store
from clipbatch.storage.uris import is_text, is_url


@dataclass(frozen=True, slots=True)
class StorePath:
    """A url in an object store, such as s3://bucket/scores."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(posixpath.join(self.url, name))

    @property
    def name(self) -> str:
        return posixpath.basename(self.url)

    def exists(self) -> bool:
        return self._type() != "NotFound"

    def is_file(self) -> bool:
        return self._type() == "File"

    def read_bytes(self) -> bytes:
        """Raises: FileNotFoundError."""
        with self.open_input() as file:
            data: bytes = file.read()
        return data

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: Any) -> None:
        """Write the object, whole or not at all."""

        def put() -> None:
            store, path = open_store(self.url)
            with store.open_output_stream(path) as stream:
                stream.write(data)

        with _named(self.url):
            patiently(put, self.url)

    def unlink(self, missing_ok: bool = False) -> None:
        with _named(self.url), contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            store, path = open_store(self.url)
            store.delete_file(path)

    def open_input(self) -> Any:
        """Open the object for reads at any position (pyarrow.NativeFile). Raises: FileNotFoundError."""
        with _named(self.url):
            store, path = open_store(self.url)
            return store.open_input_file(path)

    def entries(self) -> list[Any]:
        """The present entries of the folder (pyarrow.fs.FileInfo); none where it does not exist."""
        from pyarrow.fs import FileSelector, PyFileSystem

        with _named(self.url):
            store, path = open_store(self.url)
            if isinstance(store, PyFileSystem):  # of fsspec, and most of these cache listings
                store.handler.fs.invalidate_cache()
            return list(store.get_file_info(FileSelector(path, allow_not_found=True)))

    def _type(self) -> str:
        with _named(self.url):
            store, path = open_store(self.url)
            return str(store.get_file_info(path).type.name)


AnyPath = Union[Path, StorePath]


def as_path(text: str | os.PathLike[str] | StorePath, *, any_name: bool = False) -> AnyPath:
    """The place that `text` names, a url or a path.

    any_name: accept names that are not UTF-8; else they raise InputError, since readers of Parquet cannot open them.
    """
    if isinstance(text, StorePath):
        return text
    if not (any_name or is_text(str(text))):
        raise InputError(f"{str(text)!r} is not UTF-8, and Parquet files there could not be read: choose another name")
    return StorePath(text.rstrip("/")) if isinstance(text, str) and is_url(text) else Path(text)


def list_names(folder: AnyPath) -> set[str]:
    """The names in `folder`; none where it does not exist."""
    if isinstance(folder, StorePath):
        return {entry.base_name for entry in folder.entries()}
    with contextlib.suppress(FileNotFoundError):
        return set(os.listdir(folder))
    return set()


def modified(folder: AnyPath) -> dict[str, float]:
    """By the names in `folder`, when each was last written; unix time in seconds. Raises: OSError; InputError."""
    if isinstance(folder, StorePath):
        return {entry.base_name: (entry.mtime_ns or 0) / 1e9 for entry in folder.entries()}
    times = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                times[entry.name] = entry.stat(follow_symlinks=False).st_mtime
    return times


def parquet_source(file: AnyPath) -> Any:
    """`file` in a form that pyarrow.parquet can read."""
    return file.open_input() if isinstance(file, StorePath) else file


@contextlib.contextmanager
def _named(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        what = str(error).partition("\n")[0]
        raise InputError(
            f"cannot use {url}: {what}; check the bucket's name, the credentials and the network"
        ) from error
