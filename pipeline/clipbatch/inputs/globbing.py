"""Names from a pattern: `{a,b}` and `{0000..0099}` as bash writes them, and `*`, `?`, `[a-z]`, `**` as its globstar.

`**` stands for any number of folders and does not follow links to folders; a leading dot is matched only by a dot.

Names in a store from a url with `*`, and with `**` for any number of folders.

Nothing else is special there, since `?`, `[` and `#` are characters of keys. As on a disk, a leading dot is matched
only by a dot.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from clipbatch.errors import InputError
from clipbatch.inputs.folders import is_folder
from clipbatch.inputs.remote_folders import entries
from clipbatch.storage.stores import is_web, scheme_of

MAGIC = re.compile(r"[*?[]")
_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)(?:\.\.-?([0-9]+))?")


def words(text: str) -> Iterator[str]:
    """`text` with its braces replaced by each of their alternatives in turn; itself where it has none."""
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
                    for inner in words(choice):
                        for rest in words(text[at + 1 :]):
                            yield text[:start] + inner + rest
                return
    yield text


def _choices(text: str, cuts: list[int]) -> Iterator[str] | None:
    """What stands between the `cuts`, or the numbers of a range; None where a pair of braces is neither."""
    if len(cuts) > 2:
        return (text[a + 1 : b] for a, b in pairwise(cuts))
    found = _RANGE.fullmatch(text, cuts[0] + 1, cuts[1])
    return _numbers(found[1], found[2], int(found[3] or 1) or 1) if found else None


def _numbers(first: str, last: str, step: int) -> Iterator[str]:
    padded = any(re.match("-?0[0-9]", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    low, high = int(first), int(last)
    numbers = range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
    return (f"{number:0{width}}" for number in numbers)


def matches(pattern: str, unreadable: Callable[[str], None]) -> list[tuple[str, bool]]:
    """What there is of names like `pattern`, each once, in byte order, and whether it is a folder.

    A pattern with `**` matches no folders, since it leads to what is in them. unreadable: told of folders that cannot
    be listed. Memory: some 300 bytes a match.
    """
    parts = [part for part in pattern.split("/") if part]
    parts = [part for at, part in enumerate(parts) if part != "**" or parts[at - 1 : at] != ["**"]]
    wanted = {True} if pattern.endswith("/") else {False} if "**" in parts else {True, False}
    found: dict[str, bool] = {}
    todo, seen = [("/" if pattern.startswith("/") else "", 0)], set[tuple[str, int]]()
    while todo:
        folder, depth = task = todo.pop()
        if task in seen:  # reached in several ways by several `**`
            continue
        seen.add(task)
        for path, inner, further in _step(folder, parts, depth, unreadable):
            if further < len(parts):
                if inner:
                    todo.append((path, further))
            elif inner in wanted:
                found[path] = inner
    return sorted(found.items(), key=lambda item: os.fsencode(item[0]))


def _step(
    folder: str, parts: list[str], depth: int, unreadable: Callable[[str], None]
) -> Iterator[tuple[str, bool, int]]:
    """What in `folder` is like `parts[depth]`: its path, whether it is a folder, and the part that comes next."""
    part, last = parts[depth], depth == len(parts) - 1
    if not MAGIC.search(part):
        path = os.path.join(folder, part)
        if os.path.lexists(path):
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
                if part != "**":
                    yield path, inner, depth + 1
                elif inner and not entry.is_symlink():
                    yield path, True, depth
                elif last:
                    yield path, inner, depth + 1
    except OSError:
        unreadable(folder)


def is_far_pattern(url: str) -> bool:
    """Whether there is a `*` in `url`, which is a store's: web servers list nothing, and take it as it stands."""
    return "*" in url and not is_web(url)


def far_matches(url: str) -> list[tuple[str, bool]]:
    """The urls that are like `url`, each once, in byte order, and whether each is a folder; none where it has `**`.

    Raises: InputError where the store cannot be listed.
    """
    bucket, *parts = [part for part in url.partition("://")[2].split("/") if part]
    if "*" in bucket:
        raise InputError(f"the pattern {url!r} has a * in its bucket: name the bucket")
    wanted = {True} if url.endswith("/") else {False} if "**" in parts else {True, False}
    found = {place: inner for place, inner in _walk(f"{scheme_of(url)}://{bucket}", parts) if inner in wanted}
    return sorted(found.items(), key=lambda item: os.fsencode(item[0]))


def _walk(folder: str, parts: list[str]) -> Iterator[tuple[str, bool]]:
    """What is below `folder` and like `parts`, and whether it is a folder; some of it more than once."""
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
