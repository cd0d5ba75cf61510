"""Which inputs are tables, and the files of one. A folder is a table only where it holds files of one kind of table
and nothing else (but hidden files and those of a leading underscore), so that a stray list among photographs is never
taken for the input."""

from __future__ import annotations

import os

from clipbatch.errors import InputError
from clipbatch.source.opening import is_compressed, suffix_of
from clipbatch.uris import is_url, name_of

ARROW = (".arrow", ".feather")
COLUMNAR = (".parquet", *ARROW)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", *COLUMNAR)


def table_files(text: str) -> tuple[str, list[str]] | None:
    """The suffix and the files, by name in byte order, of the table that is `text`; None where it is none.

    Raises: InputError for a folder of tables of several kinds.
    """
    if is_url(text) or os.path.isfile(text):
        name = name_of(text)
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


def _is_table(name: str) -> bool:
    suffix = suffix_of(name)
    return suffix in SUFFIXES and not (suffix in COLUMNAR and is_compressed(name))


def _names(folder: str) -> list[str]:
    """The files of a folder that holds nothing but tables; none for another folder."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] in "._":
                continue
            if not _is_table(entry.name) or not entry.is_file():
                return []
            names.append(entry.name)
    return sorted(names, key=os.fsencode)
