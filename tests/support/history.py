"""A random history of some images, and of the dataset of increments that follows them night by night.

By day images are added, changed, put back, touched and taken away, with times from all centuries, and increments are
removed. What an image holds shows in its width and height, which no two contents share, and one in nine is broken; so
rows are checked against the files alone. Every file has the same number of bytes, unless only that tells that it has
changed.
"""

import contextlib
import functools
import io
import os
import random
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.support.corpus import photo

FILE_BYTES = 6_000
_SIDES = range(24, 64)
_NAME_LENGTH = len("0000.jpg")
_YEAR_S = 31_556_952
_ODD_YEARS = (1601, 1677, 1901, 1969, 2262, 2300, 2400, 9999)
# Of the input: a folder, a list that also names what is gone, an archive that is packed anew each day.
KINDS = ("folder", "folder", "list", "tar")


@dataclass(frozen=True, kw_only=True)
class Version:
    """What an image is at a time."""

    content: int
    extra_bytes: int = 0
    time_ns: int

    @property
    def look(self) -> tuple[int, int]:
        return self.extra_bytes, self.time_ns


class History:
    """Of the images in `root/in` and the dataset `root/dataset`. One seed gives the same days every time."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kind = KINDS[seed % len(KINDS)]
        # Only then may a change leave size and time as they were.
        self.hashed = self.rng.random() < 0.3
        self.options = ("--hash-contents",) if self.hashed else ()
        self.images, self.dataset = root / "in", root / "dataset"
        self.images.mkdir()
        self.input = {"folder": self.images, "list": root / "list.txt", "tar": root / "in.tar"}[self.kind]
        self.there: dict[str, Version] = {}
        self._past: dict[str, list[Version]] = {}
        self._contents = 0
        self._tar_times: set[int] = set()
        # Increments, so far.
        self.removed = 0
        # Of all increments that ever had rows.
        self._names: set[str] = set()
        for _ in range(8):
            self._add()
        self._write_input()

    def day(self) -> None:
        """Change some images and remove some increments."""
        rng = self.rng
        for act in rng.choices((self._add, self._change, self._revert, self._touch, self._take), k=rng.randrange(6)):
            act()
        self._write_input()
        made = self.increments()
        if made and rng.random() < 0.35:
            gone = rng.choice(([made[0]], [made[-1]], made, rng.sample(made, rng.randint(1, len(made)))))
            for path in gone:
                shutil.rmtree(path)
            self.removed += len(gone)
        if rng.random() < 0.05:
            strange = self.dataset / f"increment-{int(max(self._names, default='increment-0')[10:]) + 2:05d}"
            strange.mkdir(parents=True, exist_ok=True)
            (strange / rng.choice(("notes.txt", ".nfs0001"))).touch()

    def increments(self) -> list[Path]:
        """The run directories of the dataset, the oldest first."""
        return sorted(path.parent for path in self.dataset.glob("increment-*/run.json"))

    def labelled(self) -> set[str]:
        """The names of the increments that have rows."""
        return {part.parent.parent.name for part in self.dataset.glob("increment-*/parts/part-*.parquet")}

    def note_names(self, before: set[str]) -> list[str]:
        """What is wrong with the names that a night has given. before: `labelled` before it."""
        new = self.labelled() - before
        wrong = [f"{name} has had other rows" for name in sorted(new & self._names)]
        self._names |= new
        return wrong

    def last_rows(self) -> dict[str, dict[str, Any]]:
        """The last row of each image, by its uri."""
        return {row["uri"]: row for path in self.increments() for row in rows_of(path)}

    def problems(self, said: dict[str, Any]) -> list[str]:
        """What is wrong after a night that went to its end. said: its report."""
        last = {uri[-_NAME_LENGTH:]: row for uri, row in self.last_rows().items()}
        wrong = []
        for name, version in self.there.items():
            row = last.get(name, {"status": "none", "width": 0, "height": 0})
            expected, found = shape(version.content), (row["width"], row["height"])
            if (row["status"] == "ok", found) != ((False, (None, None)) if is_broken(version) else (True, expected)):
                wrong.append(f"{name} is {expected}, broken: {is_broken(version)}, and its row {row['status']} {found}")
        gone = self._past.keys() - self.there.keys() if self.kind == "list" else ()
        wrong += [f"{name} is gone, and its row not" for name in gone if last.get(name, {}).get("status") != "missing"]
        counts = said["increment"]
        listed = len(self._past) if self.kind == "list" else len(self.there)
        if counts["new"] + counts["changed"] + counts["known"] != listed:
            wrong.append(f"{listed} images are listed, and the report says {counts}")
        if said["rows_done"] != counts["new"] + counts["changed"]:
            wrong.append(f"{said['rows_done']} rows were made, and the report says {counts}")
        return wrong

    def _add(self) -> None:
        name = f"{len(self._past):04d}.jpg"
        self._put(name, Version(content=self._new_content(), time_ns=self._time_ns()))

    def _change(self) -> None:
        name = self._some()
        old, content = self.there[name], self._new_content()
        if self.hashed and self.rng.random() < 0.5:
            self._put(name, replace(old, content=content))
        elif self.rng.random() < 0.3:
            self._put(name, replace(old, content=content, extra_bytes=old.extra_bytes + 1 + self.rng.randrange(9)))
        else:
            self._put(name, replace(old, content=content, time_ns=self._time_ns()))

    def _revert(self) -> None:
        """Put an image back as it was at some time, also one that is gone."""
        name = self.rng.choice(sorted(self._past))
        self._put(name, self.rng.choice(self._past[name]))

    def _touch(self) -> None:
        name = self._some()
        self._put(name, replace(self.there[name], time_ns=self._time_ns()))

    def _take(self) -> None:
        if len(self.there) > 1:
            name = self._some()
            del self.there[name]
            (self.images / name).unlink()

    def _some(self) -> str:
        return self.rng.choice(sorted(self.there))

    def _new_content(self) -> int:
        self._contents += 1
        return self._contents

    def _time_ns(self) -> int:
        """Years before and after 2020, by the second and by the nanosecond, and now and then from another century."""
        year = self.rng.choice(_ODD_YEARS) if self.rng.random() < 0.15 else self.rng.uniform(2019, 2021)
        return int((year - 1970) * _YEAR_S + self.rng.randrange(10**7)) * 10**9 + self.rng.choice((0, 1, 999_999_999))

    def _put(self, name: str, version: Version) -> None:
        """Write an image with a time as the file system can hold it. Where it would look as one of another content did,
        the time is chosen again."""
        path, past = self.images / name, self._past.setdefault(name, [])
        path.write_bytes(encoded(version))
        version = replace(version, time_ns=set_time(path, version.time_ns))
        while not self.hashed and any(old.content != version.content and old.look == version.look for old in past):
            version = replace(version, time_ns=set_time(path, self._time_ns()))
        self.there[name] = version
        past.append(version)

    def _write_input(self) -> None:
        if self.kind == "list":
            self.input.write_text("".join(f"{self.images / name}\n" for name in self._past))
        if self.kind == "tar":
            with tarfile.open(self.input, "w") as tar:
                for name in sorted(self.there):
                    tar.add(self.images / name, name, filter=_without_time)
            while (time_ns := set_time(self.input, self._time_ns())) in self._tar_times:
                pass
            self._tar_times.add(time_ns)


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of the run in `out`, in order."""
    return [row for part in sorted(out.glob("parts/part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def shape(content: int) -> tuple[int, int]:
    """Width and height of an image of that content, in pixels."""
    return _SIDES[content % len(_SIDES)], _SIDES[content // len(_SIDES)]


def is_broken(version: Version) -> bool:
    return version.content % 9 == 0


def encoded(version: Version) -> bytes:
    """A JPEG file of FILE_BYTES and the version's extra bytes, filled up by a comment; or no image of that size."""
    size = FILE_BYTES + version.extra_bytes
    if is_broken(version):
        return b"no image %d" % version.content + b" " * (size - len(b"no image %d" % version.content))
    image, plain, full = (
        photo(np.random.default_rng(version.content), *shape(version.content)),
        io.BytesIO(),
        io.BytesIO(),
    )
    image.save(plain, "JPEG", quality=60)
    image.save(full, "JPEG", quality=60, comment=b"x" * (size - 4 - len(plain.getvalue())))
    return full.getvalue()


def set_time(path: Path, time_ns: int) -> int:
    """The time that the file has then, which may be the nearest one that the file system can hold."""
    os.utime(path, ns=(time_ns, time_ns))
    return path.stat().st_mtime_ns


def _without_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0
    return member


@functools.cache
def death() -> "Death":
    """The one of this process, since what it adds to the interpreter stays."""
    return Death()


class Death:
    """A process that dies, played in this one: after some changes below a folder, the file system takes no more there.

    So what the process would have cleaned up stays as well.
    """

    def __init__(self) -> None:
        self._below = ""
        self._left = 0
        sys.addaudithook(self._hook)

    def during(self, folder: Path, changes: int, work: Callable[[], None]) -> bool:
        """Do `work`, and die at the change of that number; whether it came so far."""
        self._below, self._left = str(folder), changes
        with contextlib.suppress(Exception):  # how it ends is of no interest
            work()
        self._below = ""
        return self._left < 0

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._below or event not in _CHANGES or not str(args[0]).startswith(self._below):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        self._left -= 1
        if self._left < 0:
            raise OSError(5, "killed")


_CHANGES = frozenset({"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"})
