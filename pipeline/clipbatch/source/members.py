"""What an archive's listing yields, and what an archive is called. Knows nothing of images."""

from __future__ import annotations

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
