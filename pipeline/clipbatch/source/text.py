"""A .txt manifest, or `-` for one on standard input: one path or url a line, blank lines and # comments skipped."""

from __future__ import annotations

import codecs
import hashlib
import os
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.source.remote import copied
from clipbatch.source.rows import batch
from clipbatch.uris import absolute, folder_of, is_url, name_of

_CHUNK_BYTES = 4 * 2**20


class TextManifest:
    """Paths are relative to the manifest's folder or url (standard input: the working folder), or to `--root`."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self._root = absolute(settings.root or (os.getcwd() if text == "-" else folder_of(text)))
        self.passed_over: Counter[str] = Counter()
        self._file = self._open()
        weakref.finalize(self, self._file.close)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        there = is_url(text) or os.path.isfile(text)
        return text == "-" or (there and name_of(text).lower().endswith(".txt"))

    def identity(self) -> str:
        self._file.seek(0)
        digest = hashlib.sha256()
        while chunk := self._file.read(_CHUNK_BYTES):
            digest.update(chunk)
        place = "-" if self.text == "-" else absolute(self.text)
        return f"{place} sha256:{digest.hexdigest()} root:{self._root}"

    def fields(self) -> list[pa.Field]:
        return []

    def batches(self) -> Iterator[pa.RecordBatch]:
        found = False
        for lines in self._line_groups():
            names = [name for line in lines if (name := line.rstrip("\r")) and not name.isspace() and name[0] != "#"]
            found = found or bool(names)
            yield batch(names, self._root)
        if not found:
            raise InputError(f"the manifest {self.text} names no images: write one path a line")

    def _open(self) -> BinaryIO:
        if self.text == "-":  # read once, used twice: for the identity and for the rows
            spool = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the lister)
            try:
                while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
                    spool.write(chunk)
                spool.flush()
            except OSError as error:
                raise InputError(
                    f"cannot keep the manifest from standard input in {tempfile.gettempdir()}: {error.strerror}; "
                    "free some space there, or set TMPDIR"
                ) from error
            return spool
        if is_url(self.text):
            return copied(self.text)
        try:
            return open(self.text, "rb")
        except OSError as error:
            raise InputError(f"cannot read the manifest {self.text}: {error.strerror}") from error

    def _line_groups(self) -> Iterator[list[str]]:
        self._file.seek(0)
        rest = b""
        if self._file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            if b"\0" in chunk:
                raise InputError(f"the manifest {self.text} is not a text file: write one path a line")
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield os.fsdecode(whole).split("\n")
        if rest:
            yield os.fsdecode(rest).split("\n")
