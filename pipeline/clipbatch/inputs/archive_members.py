"""Members of an archive that say something of an image, as in WebDataset: `a/001.jpg` and `a/001.json`.

They share the folder and the name up to the first dot; what follows that dot is the column. Knows nothing of what they
hold.

What an archive's listing yields, and what an archive is called. Knows nothing of images.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass

SUFFIXES = (".tar", ".zip")
PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4")
MOST_BYTES = 2**60
"""No size or place in an archive is taken for true that is larger; Arrow counts to 2**63."""


def is_archive_name(name: str) -> bool:
    """Whether the suffix of `name` is that of an archive, also of one that `Archive` refuses."""
    return name.lower().endswith((*SUFFIXES, *PACKED))


@dataclass(slots=True)
class Member:
    """One entry of an archive that is no folder."""

    name: str
    """As it stands in the archive, with surrogates in place of bytes that are not UTF-8."""
    start: int
    length: int
    method: str
    """With start and length: its span (`container`)."""

    @property
    def is_file(self) -> bool:
        """Whether it holds data of its own: no link, device or other thing that cannot be read."""
        return not self.method.startswith("refused:")


def refused(name: str, reason: str) -> Member:
    """A member that cannot be read, and why."""
    return Member(name, 0, 0, f"refused:{reason}")


class Sidecars:
    """The sidecars of one archive, found by the image's name."""

    def __init__(self, columns: Sequence[str]) -> None:
        """columns: suffixes without their first dot, in any case."""
        self._suffixes = [name.lower() for name in columns]
        self._found: dict[tuple[str, str], list[tuple[int, Member]]] = {}

    def take(self, at: int, member: Member) -> bool:
        """Keep `member`, entry number `at` of the archive, if its suffix is a column; whether it is."""
        key, suffix = _parts(member.name)
        if suffix not in self._suffixes or not member.is_file:
            return False
        self._found.setdefault((key, suffix), []).append((at, member))
        return True

    def of(self, at: int, image: Member) -> list[Member | None]:
        """The sidecar of `image`, entry number `at`, for each column: the nearest of that name."""
        key, _ = _parts(image.name)
        found = (self._found.get((key, suffix), ()) for suffix in self._suffixes)
        return [min(there, key=lambda one: abs(one[0] - at))[1] if there else None for there in found]


def _parts(name: str) -> tuple[str, str]:
    """The name up to the first dot of its last component, and what follows that dot, in lower case."""
    folder, base = posixpath.split(name)
    first, _, suffix = base.partition(".")
    return f"{folder}/{first}", suffix.lower()
