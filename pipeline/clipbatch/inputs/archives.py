"""Tar and zip archives, such as WebDataset shards. Each image in an archive becomes a row. Nothing is unpacked.

Archives are read in place. A member's name is never used as a path, so `--root` does not apply. With
`--columns json,txt`, the text of an image's sidecars is copied to columns of that name. This takes 1 KB of memory per
member of the archive that is being listed. Without `--columns`, memory does not grow with the archive, except for the
directory of a zip. To list a tar in a store, we read it once from front to back and skip members larger than 4 MiB. To
list a zip, we read its directory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import pyarrow as pa

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.archive_members import PACKED, Member, Sidecars, is_archive_name
from clipbatch.inputs.folders import LEFTOVERS, is_folder, is_image_name, is_leftover, root_of
from clipbatch.inputs.lister import BATCH_ROWS, MAX_NAME_BYTES, SPAN, uri_rows
from clipbatch.inputs.sidecars import MAX_BATCH_CHARACTERS, MAX_BYTES, text_of
from clipbatch.inputs.table_files import remote_folder_entries
from clipbatch.inputs.tar import NoTarError, tar_members
from clipbatch.inputs.zip import NoZipError, zip_members
from clipbatch.storage.archives import read_member
from clipbatch.storage.files import Container
from clipbatch.storage.ranges import InPieces, open_container
from clipbatch.storage.uris import absolute, folder_of, is_text, is_url, uri_of
from clipbatch.types import Encoded, Span

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}


class Archive:
    """One archive. Every member with the name of an image becomes a row, even a link that cannot be read."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text, self._all_files = text, settings.all_files
        self._captions = settings.caption_file
        names = [name.lstrip(".") for name in settings.columns or ()]
        self._columns = list(dict.fromkeys([*names, *([self._captions] if self._captions else [])]))
        self.passed_over: Counter[str] = Counter()
        self.incomplete: list[str] = []
        for name in self._columns:
            if not is_text(name):
                raise InputError(f"--columns {name!r} is not UTF-8: name a suffix of sidecar files, such as json")
        if text.lower().endswith(PACKED):
            raise InputError(_packed(text, "compressed"))

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        return is_archive_name(text) and (is_url(text) or os.path.isfile(text))

    def identity(self) -> str:
        return self.text if is_url(self.text) else os.path.abspath(self.text)

    def fields(self) -> list[pa.Field]:
        return [pa.field(name, pa.string()) for name in self._columns]

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            file = open_container(self.text)
            sidecars = Sidecars(self._columns)
            images = self._images(file, sidecars)
            if self._columns:
                images = iter([*images])  # a sidecar may come after its image
            has_images = False
            for batch in self._batches(file, images, sidecars):
                has_images = True
                yield batch
        except OSError as error:
            raise InputError(
                f"cannot read the archive {self.text}: {error.strerror or error}; make it readable, or leave it out"
            ) from error
        if not has_images:
            self._note("holds no images")

    def _note(self, what: str) -> None:
        self.passed_over[f"({self.text} {what})"] += 1

    def _note_damage(self, what: str) -> None:
        self._note(what)
        self.incomplete.append(self.text)

    def _members(self, file: Container) -> Iterator[Member]:
        """All members. Raises: InputError if the file is not an archive of the kind that its suffix says."""
        try:
            if self.text.lower().endswith(".zip"):
                yield from zip_members(file, InPieces(file) if is_url(self.text) else file, self._note_damage)
            else:
                yield from tar_members(InPieces(file) if is_url(self.text) else file, self._note_damage)
        except NoTarError as error:
            start = bytes(file.read_at(0, 8))
            kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
            if kind not in (None, "zip"):
                raise InputError(_packed(self.text, f"compressed by {kind}")) from error
            what = f"it is a {kind} file" if kind else "its first block is not a tar header"
            raise InputError(
                f"{self.text} is not a tar archive ({file.size} bytes; {what}): leave it out, or replace it"
            ) from error
        except NoZipError as error:
            raise InputError(
                f"{self.text} is not a zip archive ({file.size} bytes; {error}): leave it out, or replace it"
            ) from error

    def _images(self, file: Container, sidecars: Sidecars) -> Iterator[tuple[int, Member]]:
        """The members that become rows, each with its number in the archive."""
        for at, member in enumerate(self._members(file)):
            if (size := len(os.fsencode(member.name))) > MAX_NAME_BYTES:
                raise InputError(
                    f"member {at + 1} of {self.text} has a name of {size} bytes, and the limit is {MAX_NAME_BYTES}: "
                    "pack the archive again with a shorter name"
                )
            is_image = is_image_name(member.name)
            if not self._all_files and is_leftover(member.name):
                self.passed_over[LEFTOVERS] += 1
            elif self._columns and sidecars.add(at, member, is_image=is_image):
                continue
            elif is_image or (self._all_files and member.is_file):
                yield at, member
            else:
                self.passed_over[os.path.splitext(member.name)[1].lower()] += 1

    def _batches(
        self, file: Container, images: Iterator[tuple[int, Member]], sidecars: Sidecars
    ) -> Iterator[pa.RecordBatch]:
        members: list[Member] = []
        texts: list[list[str | None]] = [[] for _ in self._columns]
        size = 0
        for at, member in images:
            members.append(member)
            for column, text in enumerate(self._texts(file, sidecars.sidecars_of(at, member)) if self._columns else ()):
                texts[column].append(text)
                size += len(text or "")
            if len(members) == BATCH_ROWS or size >= MAX_BATCH_CHARACTERS:
                yield self._batch(members, texts)
                members, texts, size = [], [[] for _ in self._columns], 0
        if members:
            yield self._batch(members, texts)

    def _texts(self, file: Container, sidecars: list[Member | None] | None) -> list[str | None]:
        """The text of an image's sidecars, one per column. sidecars: None if we cannot tell which they are."""
        if sidecars is None:
            self.passed_over["(images whose key occurs again, so that no sidecar is surely theirs)"] += 1
            return [None] * len(self._columns)
        return [self._text(file, *one) for one in zip(sidecars, self._columns, strict=True)]

    def _text(self, file: Container, sidecar: Member | None, column: str) -> str | None:
        """The text of a sidecar. None, with a note, if there is no sidecar or it cannot be read."""
        if sidecar is None:
            self.passed_over[f"(images without .{column})"] += 1
            return None
        span = Span(start=sidecar.start, length=sidecar.length, method=sidecar.method)
        content = read_member(file, span, MAX_BYTES)
        if isinstance(content, Encoded):
            if column != self._captions:
                return content.data.decode("utf-8", "backslashreplace")
            if (text := text_of(content.data)) is None:
                self.passed_over[f"(.{column} not UTF-8)"] += 1
            return text
        if content.status == "empty":
            return ""
        self.passed_over[f"(.{column} {content.status})"] += 1
        return None

    def _batch(self, members: list[Member], texts: list[list[str | None]]) -> pa.RecordBatch:
        root = folder_of(self.text) if is_url(self.text) else root_of(self.text)
        container = uri_of(self.text, root)
        names = [member.name for member in members]
        try:
            uris = pa.array([f"{container}#{name}" for name in names], pa.string())
        except UnicodeEncodeError:
            uris = pa.array([f"{container}#{_as_text(name)}" for name in names], pa.string())
        spans = pa.StructArray.from_arrays(
            [
                pa.repeat(container, len(members)),
                pa.array([member.start for member in members], pa.int64()),
                pa.array([member.length for member in members], pa.int64()),
                pa.array([member.method for member in members], pa.string()),
            ],
            fields=list(SPAN),
        )
        carried = [(field, pa.array(texts[at], pa.string())) for at, field in enumerate(self.fields())]
        return uri_rows(uris, root if is_text(root) else "/", spans, carried)


class ArchiveFolder:
    """A folder that holds archives and no images. Lists all its archives, in byte order of their names."""

    def __init__(self, text: str, settings: SourceSettings) -> None:
        self.text = text
        self.incomplete: list[str] = []
        entries, leftovers = _sorted_entries(text, settings)
        paths = [os.path.join(text, name) for name, _ in entries if is_archive_name(name)]
        self._archives = [Archive(path, settings) for path in paths]
        folder = next((name for name, is_folder in entries if is_folder), None)
        if folder is not None:
            raise InputError(
                f"the folder {text} is ambiguous: it holds archives ({paths[0]}) and folders ({folder}); "
                f"name the archives ('{os.path.join(text, '*' + os.path.splitext(paths[0])[1])}', quoted) or the "
                "folders"
            )
        others = (name for name, _ in entries if not is_archive_name(name))
        self.passed_over = Counter(os.path.splitext(name)[1].lower() for name in others) + leftovers

    @staticmethod
    def accepts(text: str, settings: SourceSettings) -> bool:
        holds_archives = False
        try:
            for name, inner in _entries(text):
                if not settings.all_files and _is_leftover(name, inner):
                    continue
                if is_image_name(name):
                    return False
                holds_archives = holds_archives or is_archive_name(name)
        except OSError:  # not a folder, or one that cannot be read: `Directory` reports that
            return False
        return holds_archives

    def identity(self) -> str:
        return absolute(self.text)

    def fields(self) -> list[pa.Field]:
        return self._archives[0].fields()

    def batches(self) -> Iterator[pa.RecordBatch]:
        for archive in self._archives:
            yield from archive.batches()
            self.passed_over += archive.passed_over
            self.incomplete += archive.incomplete


def _sorted_entries(folder: str, settings: SourceSettings) -> tuple[list[tuple[str, bool]], Counter[str]]:
    """The entries of `folder` in byte order of their names, without leftovers, and the number of leftovers."""
    entries, leftovers = [], Counter[str]()
    for name, inner in sorted(_entries(folder), key=lambda entry: os.fsencode(entry[0])):
        if not settings.all_files and _is_leftover(name, inner):
            leftovers[LEFTOVERS] += 1
        else:
            entries.append((name, inner))
    return entries, leftovers


def _is_leftover(name: str, is_folder: bool) -> bool:
    return is_leftover(f"{name}/" if is_folder else name)


def _entries(folder: str) -> Iterator[tuple[str, bool]]:
    """Each entry of `folder`, a path or url: its name and whether it is a folder. Raises: OSError."""
    if is_url(folder):
        yield from (entry for entry in remote_folder_entries(folder) if entry[0])
        return
    with os.scandir(folder) as entries:
        yield from ((entry.name, is_folder(entry)) for entry in entries)


def _packed(text: str, how: str) -> str:
    return (
        f"{text} is {how} as a whole, so no member can be read without reading all those before it: decompress it; "
        "that hardly makes it larger, since images are compressed already"
    )


def _as_text(name: str) -> str:
    """A member's name, percent-encoded if it is not UTF-8."""
    return name if is_text(name) else quote_from_bytes(name.encode("utf-8", "surrogateescape"))
