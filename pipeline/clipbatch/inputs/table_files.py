"""Find out whether an input is a table, and which files it consists of.

A folder is a table if it holds table files of one kind and nothing else, apart from hidden files and names with a
leading underscore. So a list among photographs never counts as the input. A folder is also a table if Hugging Face's
`datasets` saved a data set there with `save_to_disk`. Its splits then follow one another.
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
from clipbatch.inputs.remote_folders import root_entries
from clipbatch.storage.ranges import open_ranged
from clipbatch.storage.stores import is_web, open_store
from clipbatch.storage.uris import is_url, name_of

ARROW = (".arrow", ".feather")
COLUMNAR = (".parquet", *ARROW)
# Files that `save_to_disk` writes beside the files of a data set, and beside the folders of its splits.
_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", *COLUMNAR)


def table_files(text: str) -> tuple[str, list[str]] | None:
    """Suffix and files of the table `text`, in byte order of their names; None if `text` is not a table.

    Raises: InputError if a folder holds tables of several kinds.
    """
    name = name_of(text)
    if os.path.isfile(text) or (is_url(text) and not text.endswith("/") and _is_table(name)):
        return (suffix_of(name), [text]) if _is_table(name) else None
    try:
        names = saved if (saved := _saved_dataset_files(text)) is not None else _table_names(text)
    except OSError:  # not a folder, or one that cannot be read: another lister reports that
        return None
    kinds = sorted({suffix_of(name) for name in names})
    if len(kinds) > 1:
        raise InputError(
            f"the folder {text} holds tables of several kinds ({', '.join(kinds)}): name the files to take"
        )
    return (kinds[0], [os.path.join(text, name) for name in names]) if names else None


def remote_folder_entries(url: str) -> tuple[tuple[str, bool], ...]:
    """The entries of the folder `url` of a store, and whether each is a folder.

    Empty if `url` has the name of a file, is on the web, or does not exist. Raises: InputError if it cannot be listed.
    """
    name = name_of(url)
    is_file = is_image_name(name) or is_archive_name(name) or suffix_of(name) in (".txt", *SUFFIXES)
    if not is_web(url) and (url.endswith("/") or not is_file):
        open_store(url)  # raises InputError if the url is wrong
        with contextlib.suppress(FileNotFoundError):  # `RemoteFolder` reports that
            return root_entries(url.rstrip("/"))
    return ()


def _saved_dataset_files(folder: str) -> list[str] | None:
    """The files of a data set that `datasets` saved in `folder`, relative to it; None if there is no such data set.

    Raises: OSError; InputError if the data set is incomplete, or we cannot read it without `datasets`.
    """
    names = {name for name, _ in (_remote_entries(folder) if is_url(folder) else _local_entries(folder))}
    if _SPLITS in names:
        splits = _json(folder, _SPLITS).get("splits") or []
        parts = [(split, _saved_dataset_files(os.path.join(folder, split))) for split in splits if split in names]
        if not parts or len(parts) < len(splits) or not all(files for _, files in parts):
            raise InputError(
                f"{os.path.join(folder, _SPLITS)} names splits that are incomplete: save the dataset again"
            )
        return [f"{split}/{name}" for split, files in parts for name in files or ()]
    if not {_STATE, _INFO} <= names:
        return None
    state = _json(folder, _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"the dataset in {folder} keeps its order in a separate file: save it again after flatten_indices()"
        )
    files = [str(entry.get("filename")) for entry in state.get("_data_files") or () if isinstance(entry, dict)]
    if not files or not all(name in names and name.endswith(".arrow") for name in files):
        raise InputError(
            f"the dataset in {folder} is incomplete: its {_STATE} names files that do not exist; save it again"
        )
    return files


def _json(folder: str, name: str) -> JsonObject:
    """The JSON object in a file. Raises: InputError if there is none."""
    path = os.path.join(folder, name)
    try:
        if is_url(path):
            with open_ranged(path) as file:
                value = json.loads(file.read())
        else:
            with open(path, "rb") as local:
                value = json.load(local)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}, which lists the files of a dataset: {error}; save it again") from error
    if not isinstance(value, dict):
        raise InputError(
            f"cannot read {path}, which lists the files of a dataset: it is not a JSON object; save it again"
        )
    return value


def _is_table(name: str) -> bool:
    suffix = suffix_of(name)
    return suffix in SUFFIXES and not (suffix in COLUMNAR and is_compressed(name))


def _table_names(folder: str) -> list[str]:
    """The table files of a folder that holds nothing but tables. Empty for any other folder."""
    names = []
    for name, is_file in _remote_entries(folder) if is_url(folder) else _local_entries(folder):
        if name[0] in "._" or is_leftover(f"{name}/"):
            continue
        if not (is_file and _is_table(name)):
            return []
        names.append(name)
    return sorted(names, key=os.fsencode)


def _local_entries(folder: str) -> Iterator[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        yield from ((entry.name, entry.is_file()) for entry in entries)


def _remote_entries(url: str) -> Iterator[tuple[str, bool]]:
    return ((name, not is_folder) for name, is_folder in remote_folder_entries(url) if name)
