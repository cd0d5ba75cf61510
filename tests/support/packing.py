"""Archives for tests, and what clipbatch makes of them: its rows, and the bytes behind each row."""

import io
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipbatch.config import ReadSettings, SourceSettings
from clipbatch.inputs import listing as listings
from clipbatch.stages.read import Fetch
from clipbatch.storage.uris import path_of
from clipbatch.types import Encoded, Item, Span

Files = Iterable[tuple[str, bytes]]


def files(many: list[str]) -> list[tuple[str, bytes]]:
    """Members that differ in content and length; the first is empty."""
    contents = (f"{number} {name}" * (137 * number) for number, name in enumerate(many))
    return [(name, text.encode("utf-8", "surrogateescape")) for name, text in zip(many, contents, strict=True)]


def tar(path: Path, files: Files, kind: int = tarfile.GNU_FORMAT) -> Path:
    """A tar archive of `files` at `path`."""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> Path:
    """A zip archive of `files` at `path`; the same name may come twice."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = method, (stat.S_IFREG | 0o644) << 16
            with archive._lock:  # type: ignore[attr-defined]  # writestr warns of a second member of one name
                archive.NameToInfo.pop(name, None)
            archive.writestr(info, data)
    return path


class Pipe(io.RawIOBase):
    """A file that cannot seek, so that sizes and checksums come behind the data."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self._file.write(data)  # type: ignore[arg-type]

    def close(self) -> None:
        self._file.close()
        super().close()


def listed(*inputs: object, **settings: Any) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The rows of `inputs`, and what was passed over or noted."""
    listers = listings.listers(SourceSettings(inputs=tuple(map(str, inputs)), **settings))
    listing = listings.Listing(listers, settings.get("limit"), ())
    return pa.Table.from_batches(listing.batches()).to_pylist(), listing.passed_over()


def names(rows: list[dict[str, Any]]) -> list[str]:
    """The members' names."""
    return [row["uri"].partition("#")[2] for row in rows]


def item(row: dict[str, Any], number: int = 0) -> Item:
    """A row of an archive as an item to read."""
    span = row["span"]
    where = Span(start=span["start"], length=span["length"], method=span["method"])
    return Item(row_id=number, uri=row["uri"], path=path_of(span["container"], row["root"]), span=where)


def read(rows: list[dict[str, Any]], **settings: Any) -> list[bytes | str]:
    """What is read for each row: bytes, or `status: error`."""
    fetch = Fetch(ReadSettings(**{"read_retries": 0, **settings}))
    found = [fetch(item(row, number)) for number, row in enumerate(rows)]
    return [bytes(one.data) if isinstance(one, Encoded) else f"{one.status}: {one.error}" for one in found]
