"""A .txt manifest, also .txt.gz or .txt.zst, or `-` for one on standard input: one path or url a line.

Blank lines are passed over. So are comments, which are counted: `#` signs that are alone in their line, or that a space
or tab follows. Every other line is a name, such as `#1.jpg`; `./# 1.jpg` is how to write a name like a comment.
"""

from __future__ import annotations

import os
import re
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
from clipbatch.inputs.lister import BATCH_ROWS, batch, check_names, listed, most_bytes
from clipbatch.inputs.opening import CHUNK_BYTES, copied, decompressed, suffix_of, whole_lines
from clipbatch.storage.atomic import sha256_of
from clipbatch.storage.uris import absolute, folder_of, is_text, is_url, name_of

_COMMENT = "^#+([ \t]|$)"


class TextManifest:
    """Paths are relative to the manifest's folder or url (standard input: the working folder), or to `--root`."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self._root = absolute(settings.root or (os.getcwd() if text == "-" else folder_of(text)))
        self.passed_over: Counter[str] = Counter()
        self._comments = f"(lines of {text} that are comments)"
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
            if line == 1 and b"\n" not in lines and b"\r" in lines.rstrip(b"\r"):
                raise InputError(
                    f"the lines of {self.text} end in carriage returns alone, as on old Macs: save it with line feeds"
                )
            for rows in self._rows(lines):
                check_names(rows["uri"], partial(self._where, line, lines))
                found = found or rows.num_rows > 0
                yield rows
        if not found:
            comments = self.passed_over[self._comments]
            only = f"it has nothing but {comments} lines of comments: " if comments else ""
            raise InputError(f"the manifest {self.text} names no images: {only}write one path a line")

    def _where(self, first: int, lines: bytes, row: int) -> str:
        """The place of the first name in `lines` that is too long."""
        for number, line in enumerate(lines.split(b"\n"), first):
            is_name = not (line.isspace() or re.match(_COMMENT.encode(), line))
            if is_name and len(line.rstrip(b"\r")) > most_bytes(line):
                return f"line {number} of the manifest {self.text}"
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
            split = (line.rstrip("\r") for line in os.fsdecode(lines).split("\n"))
            filled = [line for line in split if line and not line.isspace()]
            names = [line for line in filled if not re.match(_COMMENT, line)]
            self.passed_over[self._comments] += len(filled) - len(names)
            yield batch(names, self._root)
            return
        found = pc.split_pattern(pa.array([text]), "\n").flatten()
        if "\r" in text:
            found = pc.ascii_rtrim(found, "\r")
        found = found.filter(pc.invert(pc.or_(pc.utf8_is_space(found), pc.equal(found, ""))))
        if "#" in text:
            comments = pc.match_substring_regex(found, _COMMENT)
            self.passed_over[self._comments] += pc.sum(comments).as_py() or 0
            found = found.filter(pc.invert(comments))
        for start in range(0, len(found), BATCH_ROWS):
            yield listed(found.slice(start, BATCH_ROWS), self._root)
