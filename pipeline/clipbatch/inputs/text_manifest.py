"""A .txt manifest, also .txt.gz or .txt.zst, or `-` for one on standard input: one path or url a line, blank lines
and # comments skipped.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError, reading_failed
from clipbatch.inputs.lister import BATCH_ROWS, MAX_NAME_BYTES, batch, check_names, listed
from clipbatch.inputs.opening import CHUNK_BYTES, copied, decompressed, suffix_of, whole_lines
from clipbatch.storage.atomic import sha256_of
from clipbatch.storage.uris import absolute, folder_of, is_text, is_url, name_of


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
        return text == "-" or (there and suffix_of(name_of(text)) == ".txt")

    def identity(self) -> str:
        self._file.seek(0)
        digest = sha256_of(self._file)
        place = "-" if self.text == "-" else absolute(self.text)
        return f"{place} sha256:{digest} root:{self._root}"

    def fields(self) -> list[pa.Field]:
        return []

    def batches(self) -> Iterator[pa.RecordBatch]:
        found = False
        self._file.seek(0)
        for line, lines in whole_lines(decompressed(self._file, name_of(self.text)), self.text):
            if b"\0" in lines:
                raise InputError(f"the manifest {self.text} is not a text file: write one path a line")
            for rows in self._rows(lines):
                check_names(rows["uri"], partial(self._where, line, lines))
                found = found or rows.num_rows > 0
                yield rows
        if not found:
            raise InputError(f"the manifest {self.text} names no images: write one path a line")

    def _where(self, first: int, lines: bytes, row: int) -> str:
        """The place of the first name in `lines` that is too long."""
        sizes = (len(line) if line[:1] != b"#" and not line.isspace() else 0 for line in lines.split(b"\n"))
        number = next((number for number, size in enumerate(sizes, first) if size > MAX_NAME_BYTES), first)
        return f"line {number} of the manifest {self.text}"

    def _open(self) -> BinaryIO:
        if self.text == "-":  # read once, used twice: for the identity and for the rows
            spool = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the lister)
            try:
                while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
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
            raise reading_failed(f"the manifest {self.text}", error) from error

    def _rows(self, lines: bytes) -> Iterator[pa.RecordBatch]:
        """The names in `lines`; slowly where they or the root are not UTF-8."""
        try:
            text = lines.decode()
        except UnicodeDecodeError:
            text = ""
        if not (text and is_text(self._root)):
            names = [line.rstrip("\r") for line in os.fsdecode(lines).split("\n")]
            yield batch([name for name in names if name and not name.isspace() and name[0] != "#"], self._root)
            return
        found = pc.split_pattern(pa.array([text]), "\n").flatten()
        if "\r" in text:
            found = pc.ascii_rtrim(found, "\r")
        other = pc.or_(pc.or_(pc.starts_with(found, "#"), pc.utf8_is_space(found)), pc.equal(found, ""))
        found = found.filter(pc.invert(other))
        for start in range(0, len(found), BATCH_ROWS):
            yield listed(found.slice(start, BATCH_ROWS), self._root)
