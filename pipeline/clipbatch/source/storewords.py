"""Names in a store from a url with `*`, and with `**` for any number of folders.

Nothing else is special there, since `?`, `[` and `#` are characters of keys. As on a disk, a leading dot is matched
only by a dot.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from clipbatch.errors import InputError
from clipbatch.source.remote import entries
from clipbatch.stores import is_web, scheme_of


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
