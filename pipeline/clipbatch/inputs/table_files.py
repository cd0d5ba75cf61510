"""Which inputs are tables, and the files of one. A folder is a table only where it holds files of one kind of table
and nothing else (but hidden files and those of a leading underscore), so that a stray list among photographs is never
taken for the input.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from clipbatch.errors import InputError
from clipbatch.inputs.archive_members import is_archive_name
from clipbatch.inputs.folders import is_image_name
from clipbatch.inputs.opening import is_compressed, suffix_of
from clipbatch.inputs.remote_folders import top
from clipbatch.storage.stores import is_web, open_store
from clipbatch.storage.uris import is_url, name_of

ARROW = (".arrow", ".feather")
COLUMNAR = (".parquet", *ARROW)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", *COLUMNAR)


def table_files(text: str) -> tuple[str, list[str]] | None:
    """The suffix and the files, by name in byte order, of the table that is `text`; None where it is none.

    Raises: InputError for a folder of tables of several kinds.
    """
    name = name_of(text)
    if os.path.isfile(text) or (is_url(text) and not text.endswith("/") and _is_table(name)):
        return (suffix_of(name), [text]) if _is_table(name) else None
    try:
        names = _names(text)
    except OSError:  # no folder, or one that whoever takes it says more about
        return None
    kinds = sorted({suffix_of(name) for name in names})
    if len(kinds) > 1:
        raise InputError(
            f"the folder {text} holds tables of several kinds ({', '.join(kinds)}): name the files to take"
        )
    return (kinds[0], [os.path.join(text, name) for name in names]) if names else None


def far_folder(url: str) -> tuple[tuple[str, bool], ...]:
    """What is right in `url`, and whether it is a folder, if that may be a folder of a store by its name and is there.

    Raises: InputError where it cannot be listed.
    """
    name = name_of(url)
    is_file = is_image_name(name) or is_archive_name(name) or suffix_of(name) in (".txt", *SUFFIXES)
    if not is_web(url) and (url.endswith("/") or not is_file):
        open_store(url)  # which names what is wrong with it
        with contextlib.suppress(FileNotFoundError):  # which whoever takes it says more about
            return top(url.rstrip("/"))
    return ()


def _is_table(name: str) -> bool:
    suffix = suffix_of(name)
    return suffix in SUFFIXES and not (suffix in COLUMNAR and is_compressed(name))


def _names(folder: str) -> list[str]:
    """The files of a folder that holds nothing but tables; none for another folder."""
    names = []
    for name, is_file in _far(folder) if is_url(folder) else _near(folder):
        if name[0] in "._":
            continue
        if not (is_file and _is_table(name)):
            return []
        names.append(name)
    return sorted(names, key=os.fsencode)


def _near(folder: str) -> Iterator[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        yield from ((entry.name, entry.is_file()) for entry in entries)


def _far(url: str) -> Iterator[tuple[str, bool]]:
    return ((name, not is_folder) for name, is_folder in far_folder(url) if name)
