"""Which inputs are tables, and the files of one. A folder is a table only where it holds files of one kind of table
and nothing else (but hidden files and those of a leading underscore), so that a stray list among photographs is never
taken for the input; or where `datasets` saved one there (`save_to_disk`), with its splits in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.inputs.archive_members import is_archive_name
from clipbatch.inputs.folders import is_image_name, is_leftover
from clipbatch.inputs.opening import is_compressed, suffix_of
from clipbatch.inputs.remote_folders import top
from clipbatch.storage.ranges import open_ranged
from clipbatch.storage.stores import is_web, open_store
from clipbatch.storage.uris import is_url, name_of

ARROW = (".arrow", ".feather")
COLUMNAR = (".parquet", *ARROW)
# What `save_to_disk` writes beside the files of a dataset, and beside the folders of its splits.
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", *COLUMNAR)


def table_files(text: str) -> tuple[str, list[str]] | None:
    """The suffix and the files, by name in byte order, of the table that is `text`; None where it is none.

    Raises: InputError for a folder of tables of several kinds.
    """
    name = name_of(text)
    if os.path.isfile(text) or (is_url(text) and not text.endswith("/") and _is_table(name)):
        return (suffix_of(name), [text]) if _is_table(name) else None
    try:
        names = saved if (saved := _saved(text)) is not None else _names(text)
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


def _saved(folder: str) -> list[str] | None:
    """The files of a dataset that `datasets` saved in `folder`, as names from there; None where there is none.

    Raises: OSError; InputError where it cannot be read without `datasets`.
    """
    names = {name for name, _ in (_far(folder) if is_url(folder) else _near(folder))}
    if _SPLITS in names:
        splits = _json(folder, _SPLITS).get("splits") or []
        parts = [(split, _saved(os.path.join(folder, split))) for split in splits if split in names]
        if not parts or len(parts) < len(splits) or not all(files for _, files in parts):
            raise InputError(f"{os.path.join(folder, _SPLITS)} names splits that are not whole: save the dataset again")
        return [f"{split}/{name}" for split, files in parts for name in files or ()]
    if not {_STATE, _INFO} <= names:
        return None
    state = _json(folder, _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"the dataset in {folder} keeps its order in a file of its own: save it again after flatten_indices()"
        )
    files = [str(entry.get("filename")) for entry in state.get("_data_files") or () if isinstance(entry, dict)]
    if not files or not all(name in names and name.endswith(".arrow") for name in files):
        raise InputError(
            f"the dataset in {folder} is not whole: its {_STATE} names files that are not there: save it again"
        )
    return files


def _json(folder: str, name: str) -> JsonObject:
    """The object in a file. Raises: InputError where there is none."""
    path = os.path.join(folder, name)
    try:
        if is_url(path):
            with open_ranged(path) as file:
                found = json.loads(file.read())
        else:
            with open(path, "rb") as local:
                found = json.load(local)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}, by which datasets saved its files: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"cannot read {path}, by which datasets saved its files: it is no JSON object")
    return found


def _is_table(name: str) -> bool:
    suffix = suffix_of(name)
    return suffix in SUFFIXES and not (suffix in COLUMNAR and is_compressed(name))


def _names(folder: str) -> list[str]:
    """The files of a folder that holds nothing but tables; none for another folder."""
    names = []
    for name, is_file in _far(folder) if is_url(folder) else _near(folder):
        if name[0] in "._" or is_leftover(f"{name}/"):
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
