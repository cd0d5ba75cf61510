"""Expand patterns of paths and urls into names.

Paths follow bash with globstar: `{a,b}`, `{0000..0099}`, `*`, `?`, `[a-z]`, and `**` for any number of folders. `**`
does not follow links to folders.

Urls of a store know braces, `*` and `**` only, since `?`, `[` and `#` may occur in keys.

In both, only a dot in the pattern matches a leading dot in a name.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from clipbatch.errors import InputError
from clipbatch.inputs.folders import is_folder, is_lost
from clipbatch.inputs.remote_folders import entries
from clipbatch.storage.stores import is_web, scheme_of

MAGIC = re.compile(r"[*?[]")
_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?([0-9]+))?")


def expand_braces(text: str) -> Iterator[str]:
    """`text` with its braces replaced by each of their alternatives in turn; `text` itself if it has no braces."""
    depth, start, cuts = 0, 0, list[int]()
    for at, char in enumerate(text):
        if char == "{":
            depth += 1
            if depth == 1:
                start, cuts = at, [at]
        elif char == "," and depth == 1:
            cuts.append(at)
        elif char == "}" and depth:
            depth -= 1
            if depth == 0 and (choices := _choices(text, [*cuts, at])):
                for choice in choices:
                    for inner in expand_braces(choice):
                        for rest in expand_braces(text[at + 1 :]):
                            yield text[:start] + inner + rest
                return
    yield text


def _choices(text: str, cuts: list[int]) -> Iterator[str] | None:
    """The alternatives in a pair of braces, or the numbers of a range; None if it is neither.

    cuts: positions of the opening brace, the commas and the closing brace.
    """
    if len(cuts) > 2:
        return (text[a + 1 : b] for a, b in pairwise(cuts))
    bounds = _RANGE.fullmatch(text, cuts[0] + 1, cuts[1])
    return _numbers(bounds[1], bounds[2], int(bounds[3] or 1) or 1) if bounds else None


def _numbers(first: str, last: str, step: int) -> Iterator[str]:
    padded = any(re.match("-?0[0-9]", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    low, high = int(first), int(last)
    numbers = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    return (f"{number:0{width}}" for number in numbers)


def local_matches(pattern: str, unreadable: Callable[[str], None]) -> list[tuple[str, bool]]:
    """The paths that match `pattern`, each once, in byte order, and whether each is a folder.

    A pattern with `**` matches files only, since it finds the files in the folders anyway. unreadable: called with each
    folder that cannot be listed, or is a link that leads nowhere. Needs about 300 bytes of memory per match.
    """
    parts = [part for part in pattern.split("/") if part]
    parts = [part for at, part in enumerate(parts) if part != "**" or parts[at - 1 : at] != ["**"]]
    wanted = {True} if pattern.endswith("/") else {False} if "**" in parts else {True, False}
    matches: dict[str, bool] = {}
    todo, seen = [("/" if pattern.startswith("/") else "", 0)], set[tuple[str, int]]()
    while todo:
        folder, depth = task = todo.pop()
        if task in seen:  # several `**` can lead to the same folder in several ways
            continue
        seen.add(task)
        for path, is_dir, next_depth in _match_entries(folder, parts, depth, unreadable):
            if next_depth < len(parts):
                if is_dir:
                    todo.append((path, next_depth))
            elif is_dir in wanted:
                matches[path] = is_dir
    return sorted(matches.items(), key=lambda item: os.fsencode(item[0]))


def _match_entries(
    folder: str, parts: list[str], depth: int, unreadable: Callable[[str], None]
) -> Iterator[tuple[str, bool, int]]:
    """The entries of `folder` that match `parts[depth]`: path, whether it is a folder, and index of the next part."""
    part, last = parts[depth], depth == len(parts) - 1
    if not MAGIC.search(part):
        path = os.path.join(folder, part)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return
        except OSError:
            unreadable(path)
            return
        if not (last or os.path.exists(path)):
            unreadable(path)
        yield path, os.path.isdir(path), depth + 1
        return
    if part == "**" and not last:
        yield folder, True, depth + 1
    like = re.compile(fnmatch.translate("*" if part == "**" else part)).match
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                name, path = entry.name, os.path.join(folder, entry.name)
                if not like(name) or (name[0] == "." and part[0] != "."):
                    continue
                inner = is_folder(entry)
                if not (last or inner) and is_lost(entry, follows=part != "**"):
                    unreadable(path)
                if part != "**":
                    yield path, inner, depth + 1
                elif inner and not entry.is_symlink():
                    yield path, True, depth
                elif last:
                    yield path, inner, depth + 1
    except OSError:
        unreadable(folder)


def is_remote_pattern(url: str) -> bool:
    """Whether `url` is of a store and has a `*`. Web servers cannot list files, so a `*` in their urls is literal."""
    return "*" in url and not is_web(url)


def remote_matches(url: str) -> list[tuple[str, bool]]:
    """The urls that match the pattern `url`, each once, in byte order, and whether each is a folder.

    A pattern with `**` matches files only. Raises: InputError if the store cannot be listed.
    """
    bucket, *parts = [part for part in url.partition("://")[2].split("/") if part]
    if "*" in bucket:
        raise InputError(f"the pattern {url!r} has a * in its bucket: name the bucket")
    wanted = {True} if url.endswith("/") else {False} if "**" in parts else {True, False}
    matches = {place: inner for place, inner in _walk(f"{scheme_of(url)}://{bucket}", parts) if inner in wanted}
    return sorted(matches.items(), key=lambda item: os.fsencode(item[0]))


def _walk(folder: str, parts: list[str]) -> Iterator[tuple[str, bool]]:
    """The urls below `folder` that match `parts`, and whether each is a folder. May repeat urls."""
    part, further = parts[0], parts[1:]
    if further and part == "**":
        yield from _walk(folder, further)
    elif further and "*" not in part:
        yield from _walk(f"{folder}/{part}", further)
        return
    like = re.compile(".*".join(map(re.escape, part.replace("**", "*").split("*"))), re.DOTALL).fullmatch
    for name, inner in _entries(folder):
        place = f"{folder}/{name}"
        if not name or not like(name) or (name[0] == "." and part[0] != "."):
            continue
        if part == "**" and inner:
            yield from _walk(place, parts)
        elif not further:
            yield place, inner
        elif inner:
            yield from _walk(place, further)


def _entries(folder: str) -> list[tuple[str, bool]]:
    try:
        return list(entries(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
