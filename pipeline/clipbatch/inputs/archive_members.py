"""Members of archives, and the sidecars of an image in an archive.

A sidecar is a member with information about an image, as in WebDataset: `a/001.json` for `a/001.jpg`. Both have the
same key, which is the folder and the name up to the first dot. The suffix after that dot names the sidecar's column.

The problem: keys may repeat within an archive, and then it is not obvious which sidecar belongs to which image. Members
with one key form one sample, wherever they are in the archive. When a suffix occurs again, a new sample begins. This is
right if all samples of the key have the same suffixes. If they do not, we look at runs of neighbouring members with
this key. That is right if within each run all samples have the same suffixes and each sidecar has an image. If neither
holds, we cannot tell, and no image with that key gets sidecars.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

SUFFIXES = (".tar", ".zip")
PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4")
# The largest size or offset in an archive that we believe. Arrow's limit is 2**63.
MAX_BYTES = 2**60


def is_archive_name(name: str) -> bool:
    """Whether `name` has the suffix of an archive, including the compressed ones that `Archive` refuses."""
    return name.lower().endswith((*SUFFIXES, *PACKED))


@dataclass(slots=True)
class Member:
    """One entry of an archive, other than a folder. `start`, `length` and `method` are those of `types.Span`."""

    # As in the archive. Surrogates stand for bytes that are not UTF-8.
    name: str
    start: int
    length: int
    method: str

    @property
    def is_file(self) -> bool:
        """Whether the member holds data that we can read. Links and devices do not."""
        return not self.method.startswith("refused:")


def unreadable_member(name: str, reason: str) -> Member:
    """A member that cannot be read, with the reason for the `error` column."""
    return Member(name, 0, 0, f"refused:{reason}")


@dataclass(slots=True)
class _Entry:
    """A member, among those with the same key."""

    # Number of the member in the archive.
    at: int
    # Number of the run of neighbouring members with this key.
    group: int
    suffix: str
    is_image: bool


# The members of a sample by suffix.
_Sample = dict[str, _Entry]


class Sidecars:
    """Finds the sidecars of the images in one archive. Call `add` for all members, then `sidecars_of` for an image."""

    def __init__(self, columns: Sequence[str]) -> None:
        """columns: suffixes of sidecars, without the first dot, in upper or lower case."""
        self._suffixes = [name.lower() for name in columns]
        self._files: dict[int, Member] = {}
        self._entries: dict[str, list[_Entry]] = {}
        self._group, self._last_key = 0, ""
        self._samples: dict[str, dict[int, _Sample] | None] = {}

    def add(self, at: int, member: Member, *, is_image: bool) -> bool:
        """Record `member`, number `at` of the archive. Returns whether it is a sidecar for one of the columns."""
        key, suffix = _parts(member.name)
        if key != self._last_key:
            self._group, self._last_key = self._group + 1, key
        self._entries.setdefault(key, []).append(_Entry(at, self._group, suffix, is_image))
        if is_image or suffix not in self._suffixes or not member.is_file:
            return False
        self._files[at] = member
        return True

    def sidecars_of(self, at: int, image: Member) -> list[Member | None] | None:
        """The sidecar of `image`, member number `at`, for each column; None if we cannot tell which are its own."""
        key, _ = _parts(image.name)
        if key not in self._samples:
            samples = _split_samples(self._entries[key], self._suffixes)
            members = ((entry.at, one) for one in samples or () for entry in one.values())
            self._samples[key] = None if samples is None else dict(members)
        samples_by_member = self._samples[key]
        if samples_by_member is None:
            return None
        sample = samples_by_member[at]
        return [self._files.get(sample[suffix].at) if suffix in sample else None for suffix in self._suffixes]


def _split_samples(entries: list[_Entry], wanted: Sequence[str]) -> list[_Sample] | None:
    """The samples of a key; None if we cannot tell them apart and they contain a suffix in `wanted`."""
    samples = _split_at_repeats(entries)
    groups = [_split_at_repeats(group) for _, group in groupby(entries, key=lambda entry: entry.group)]
    neighbours = list(chain.from_iterable(groups))
    if len(samples) == 1 or not any(entry.suffix in wanted for entry in entries):
        return samples
    firsts = {next(iter(group[0].values())).at for group in groups}
    if _have_same_suffixes(samples) and _first_numbers(samples) - firsts == _first_numbers(neighbours) - firsts:
        return samples
    with_images = (any(e.is_image for e in one.values()) or one.keys().isdisjoint(wanted) for one in neighbours)
    return neighbours if all(map(_have_same_suffixes, groups)) and all(with_images) else None


def _split_at_repeats(entries: Iterable[_Entry]) -> list[_Sample]:
    """Split `entries` into samples: a new one begins where a suffix occurs again."""
    samples: list[_Sample] = []
    for entry in entries:
        if not samples or entry.suffix in samples[-1]:
            samples.append({})
        samples[-1][entry.suffix] = entry
    return samples


def _have_same_suffixes(samples: list[_Sample]) -> bool:
    return all(one.keys() == samples[0].keys() for one in samples)


def _first_numbers(samples: list[_Sample]) -> set[int]:
    return {next(iter(one.values())).at for one in samples}


def _parts(name: str) -> tuple[str, str]:
    """Key and suffix of a member: split at the first dot of the file name. The suffix is in lower case."""
    folder, base = posixpath.split(name)
    first, _, suffix = base.partition(".")
    return f"{folder}/{first}", suffix.lower()
