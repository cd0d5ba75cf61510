"""Text manifests: .txt, .txt.gz, .txt.zst, or `-` for standard input. Each line is a path or a url.

Blank lines are skipped. Comments are skipped and counted: a line that starts with `#` signs and then ends, or continues
with a space or tab. Every other line is a name, such as `#1.jpg`. To name a file that looks like a comment, write
`./# 1.jpg`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError, reading_failed
from clipbatch.inputs.lister import BATCH_ROWS, check_names, file_rows, max_name_bytes, uri_rows
from clipbatch.inputs.opening import CHUNK_BYTES, decompressed, download, suffix_of, whole_lines
from clipbatch.storage.atomic import sha256_of
from clipbatch.storage.uris import absolute, folder_of, is_text, is_url, name_of

_COMMENT = "^#+([ \t]|$)"


class TextManifest:
    """A text manifest. Paths are relative to `--root`, or else to its folder (standard input: the working folder)."""

    incomplete: Sequence[str] = ()

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self._root = absolute(settings.root or (os.getcwd() if text == "-" else folder_of(text)))
        self.passed_over: Counter[str] = Counter()
        self._comments = f"(lines of {text} that are comments)"
        self._file = self._open()
        weakref.finalize(self, self._file.close)

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        may_exist = is_url(text) or os.path.isfile(text)
        return text == "-" or (may_exist and suffix_of(name_of(text)) == ".txt")

    def identity(self) -> str:
        self._file.seek(0)
        digest = sha256_of(self._file)
        place = "-" if self.text == "-" else absolute(self.text)
        return f"{place} sha256:{digest} root:{self._root}"

    def fields(self) -> list[pa.Field]:
        return []

    def batches(self) -> Iterator[pa.RecordBatch]:
        has_names = False
        self._file.seek(0)
        for line, lines in whole_lines(decompressed(self._file, name_of(self.text)), self.text):
            if b"\0" in lines:
                raise InputError(f"the manifest {self.text} is not a text file: write one path per line")
            if line == 1 and b"\n" not in lines and b"\r" in lines.rstrip(b"\r"):
                raise InputError(
                    f"the lines of {self.text} end with carriage returns only, as on old Macs: save it with line feeds"
                )
            for rows in self._rows(lines):
                check_names(rows["uri"], partial(self._where, line, lines))
                has_names = has_names or rows.num_rows > 0
                yield rows
        if not has_names:
            comments = self.passed_over[self._comments]
            only = f"it has nothing but {comments} lines of comments: " if comments else ""
            raise InputError(f"the manifest {self.text} names no images: {only}write one path per line")

    def _where(self, first: int, lines: bytes, row: int) -> str:
        """The line of the first name in `lines` that is too long, for messages."""
        for number, line in enumerate(lines.split(b"\n"), first):
            is_name = not (line.isspace() or re.match(_COMMENT.encode(), line))
            if is_name and len(line.rstrip(b"\r")) > max_name_bytes(line):
                return f"line {number} of the manifest {self.text}"
        return f"line {number} of the manifest {self.text}"

    def _open(self) -> BinaryIO:
        if self.text == "-":  # keep a copy, since we need it twice: for the identity and for the rows
            copy = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the lister)
            try:
                while chunk := sys.stdin.buffer.read(CHUNK_BYTES):
                    copy.write(chunk)
                copy.flush()
            except OSError as error:
                raise InputError(
                    f"cannot keep the manifest from standard input in {tempfile.gettempdir()}: {error.strerror}; "
                    "free some space there, or set TMPDIR"
                ) from error
            return copy
        if is_url(self.text):
            return download(self.text)
        try:
            return open(self.text, "rb")
        except OSError as error:
            raise reading_failed(f"the manifest {self.text}", error) from error

    def _rows(self, lines: bytes) -> Iterator[pa.RecordBatch]:
        """The names in `lines` as rows. Slow if they or the root are not UTF-8."""
        try:
            text = lines.decode()
        except UnicodeDecodeError:
            text = ""
        if not (text and is_text(self._root)):
            all_lines = (line.rstrip("\r") for line in os.fsdecode(lines).split("\n"))
            filled = [line for line in all_lines if line and not line.isspace()]
            names = [line for line in filled if not re.match(_COMMENT, line)]
            self.passed_over[self._comments] += len(filled) - len(names)
            yield file_rows(names, self._root)
            return
        uris = pc.split_pattern(pa.array([text]), "\n").flatten()
        if "\r" in text:
            uris = pc.ascii_rtrim(uris, "\r")
        uris = uris.filter(pc.invert(pc.or_(pc.utf8_is_space(uris), pc.equal(uris, ""))))
        if "#" in text:
            comments = pc.match_substring_regex(uris, _COMMENT)
            self.passed_over[self._comments] += pc.sum(comments).as_py() or 0
            uris = uris.filter(pc.invert(comments))
        for start in range(0, len(uris), BATCH_ROWS):
            yield uri_rows(uris.slice(start, BATCH_ROWS), self._root)
