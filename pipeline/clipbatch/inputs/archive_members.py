"""Members of an archive that say something of an image, as in WebDataset: `a/001.jpg` and `a/001.json`.

They share the folder and the name up to the first dot, their key; what follows that dot is the column. Knows nothing of
what they hold.

Members of one key make one sample, wherever in the archive they are, until a suffix occurs again: there a new sample
begins. That tells a key's samples apart where all of them have the same suffixes. Where they have not, neighbours tell:
members of the key with no other key's between them. Each group of these then holds samples of its own, all with the
same suffixes, and no sidecar without an image. Else nobody can tell which sidecar is whose, and none is handed out.

What an archive's listing yields, and what an archive is called. Knows nothing of images.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

SUFFIXES = (".tar", ".zip")
PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4")
# No size or place in an archive is taken for true that is larger; Arrow counts to 2**63.
MAX_BYTES = 2**60


def is_archive_name(name: str) -> bool:
    """Whether the suffix of `name` is that of an archive, also of one that `Archive` refuses."""
    return name.lower().endswith((*SUFFIXES, *PACKED))


@dataclass(slots=True)
class Member:
    """One entry of an archive that is no folder."""

    # As it stands in the archive, with surrogates in place of bytes that are not UTF-8.
    name: str
    start: int
    length: int
    # With start and length: its span (`container`).
    method: str

    @property
    def is_file(self) -> bool:
        """Whether it holds data of its own: no link, device or other thing that cannot be read."""
        return not self.method.startswith("refused:")


def refused(name: str, reason: str) -> Member:
    """A member that cannot be read, and why."""
    return Member(name, 0, 0, f"refused:{reason}")


@dataclass(slots=True)
class _Entry:
    """A member of a key."""

    # Its number in the archive.
    at: int
    # The number of its group of neighbours.
    group: int
    suffix: str
    is_image: bool


# By suffix.
_Sample = dict[str, _Entry]


class Sidecars:
    """The sidecars of one archive, found by the image's name and number."""

    def __init__(self, columns: Sequence[str]) -> None:
        """columns: suffixes without their first dot, in any case."""
        self._suffixes = [name.lower() for name in columns]
        self._files: dict[int, Member] = {}
        self._entries: dict[str, list[_Entry]] = {}
        self._group, self._last_key = 0, ""
        self._samples: dict[str, dict[int, _Sample] | None] = {}

    def take(self, at: int, member: Member, *, is_image: bool) -> bool:
        """Keep `member`, entry number `at` of the archive; whether it is a file whose suffix is a column."""
        key, suffix = _parts(member.name)
        if key != self._last_key:
            self._group, self._last_key = self._group + 1, key
        self._entries.setdefault(key, []).append(_Entry(at, self._group, suffix, is_image))
        if is_image or suffix not in self._suffixes or not member.is_file:
            return False
        self._files[at] = member
        return True

    def of(self, at: int, image: Member) -> list[Member | None] | None:
        """The sidecar of `image`, entry number `at`, for each column; None where nobody can tell which are its own.

        To be asked when all members have been taken.
        """
        key, _ = _parts(image.name)
        if key not in self._samples:
            samples = _told_apart(self._entries[key], self._suffixes)
            members = ((entry.at, one) for one in samples or () for entry in one.values())
            self._samples[key] = None if samples is None else dict(members)
        samples_by_member = self._samples[key]
        if samples_by_member is None:
            return None
        sample = samples_by_member[at]
        return [self._files.get(sample[suffix].at) if suffix in sample else None for suffix in self._suffixes]


def _told_apart(entries: list[_Entry], wanted: Sequence[str]) -> list[_Sample] | None:
    """The samples of a key; None where they cannot be told apart, and one of the suffixes `wanted` is among them."""
    samples = _cut(entries)
    groups = [_cut(group) for _, group in groupby(entries, key=lambda entry: entry.group)]
    neighbours = list(chain.from_iterable(groups))
    if len(samples) == 1 or not any(entry.suffix in wanted for entry in entries):
        return samples
    firsts = {next(iter(group[0].values())).at for group in groups}
    if _alike(samples) and _starts(samples) - firsts == _starts(neighbours) - firsts:
        return samples
    with_images = (any(e.is_image for e in one.values()) or one.keys().isdisjoint(wanted) for one in neighbours)
    return neighbours if all(map(_alike, groups)) and all(with_images) else None


def _cut(entries: Iterable[_Entry]) -> list[_Sample]:
    """`entries` in turn as samples, of which a new one begins where a suffix occurs again."""
    samples: list[_Sample] = []
    for entry in entries:
        if not samples or entry.suffix in samples[-1]:
            samples.append({})
        samples[-1][entry.suffix] = entry
    return samples


def _alike(samples: list[_Sample]) -> bool:
    return all(one.keys() == samples[0].keys() for one in samples)


def _starts(samples: list[_Sample]) -> set[int]:
    return {next(iter(one.values())).at for one in samples}


def _parts(name: str) -> tuple[str, str]:
    """The name up to the first dot of its last component, and what follows that dot, in lower case."""
    folder, base = posixpath.split(name)
    first, _, suffix = base.partition(".")
    return f"{folder}/{first}", suffix.lower()
