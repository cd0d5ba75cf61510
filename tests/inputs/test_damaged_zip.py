"""Zip archives that are cut off, or whose directory is damaged: what is before the cut stays, and the plan says so."""

import os
import struct
import zipfile
from pathlib import Path

import pytest

from clipbatch.errors import InputError
from tests.conftest import DEMO, Cli
from tests.support.packing import Files, Pipe, listed, names, read, zipped
from tests.support.servers import Handler, web

METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
FILES: Files = [(f"{number}.jpg", os.urandom(500) + bytes(500) + b"PK\7\x08PK\3\4") for number in range(20)]
UNKNOWN = "truncated: the archive ends before this member does"


def _streamed(path: Path, method: int, *, large: bool = False) -> bytes:
    """An archive of `FILES` whose sizes follow the data."""
    with Pipe(path) as pipe, zipfile.ZipFile(pipe, "w", method) as archive:  # type: ignore[call-overload]
        for name, data in FILES:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=large) as member:
                member.write(data)
    return path.read_bytes()


def _offsets(data: bytes, path: Path) -> list[int]:
    """Where each member's header is, and where the directory is."""
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        return [*(info.header_offset for info in archive.infolist()), archive.start_dir]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["seekable", "streamed", "streamed, 64 bits"])
def test_all_members_before_the_cut_are_read(tmp_path: Path, method: str, kind: str) -> None:
    path = tmp_path / "x.zip"
    if kind == "seekable":
        data = zipped(path, FILES, METHODS[method]).read_bytes()
    else:
        data = _streamed(path, METHODS[method], large="64" in kind)
    starts = _offsets(data, path)
    for cut in (starts[1] - 30, starts[1], starts[7] + 3, starts[7] + 60, starts[8] - 30, starts[20], starts[20] + 50):
        path.write_bytes(data[:cut])
        rows, passed_over = listed(path)
        whole = sum(end <= cut for end in starts[1:])
        assert read(rows[:whole]) == [content for _, content in FILES[:whole]]
        assert names(rows) == [name for name, _ in FILES[: len(rows)]]
        if cut <= starts[20]:
            assert passed_over == {f"({path} ends early)": 1}
            cut_off = read(rows[whole:])
            assert len(cut_off) == (cut - starts[whole] >= 60 if whole < 20 else 0)
            assert all(one == UNKNOWN or str(one).startswith("truncated: the archive ends here") for one in cut_off)
        else:
            assert passed_over == {f"({path} has no whole directory, so its members were looked for)": 1}


@pytest.mark.parametrize("method", METHODS)
def test_damage_inside_a_truncated_archive_is_skipped(tmp_path: Path, method: str) -> None:
    path = tmp_path / "x.zip"
    data = bytearray(zipped(path, FILES, METHODS[method]).read_bytes())
    starts = _offsets(bytes(data), path)
    data[starts[5] : starts[5] + 4] = b"none"
    path.write_bytes(data[: starts[20]])
    rows, passed_over = listed(path)
    # a stored member may hold what looks like a header; it is no whole member, and its name is no image's
    assert names(rows) == [name for name, _ in (*FILES[:5], *FILES[6:])]
    assert read(rows) == [content for _, content in (*FILES[:5], *FILES[6:])]
    assert passed_over[f"({path} is damaged at byte {starts[5]})"] == 1
    assert passed_over[f"({path} ends early)"] == 1


def test_encrypted_members_and_folders_are_recognised_without_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/", b"")
        archive.writestr("in/locked.jpg", b"x" * 50)
        archive.writestr("in/bzip2.jpg", b"x" * 50, zipfile.ZIP_BZIP2)
        archive.writestr("in/caf\u00e9.jpg", b"good")
        start = archive.getinfo("in/locked.jpg").header_offset
        end = archive.fp.tell()  # type: ignore[union-attr]
    data = bytearray(path.read_bytes()[:end])
    data[start + 6] |= 1
    path.write_bytes(data)
    rows, _ = listed(path)
    assert names(rows) == ["in/locked.jpg", "in/bzip2.jpg", "in/caf\u00e9.jpg"]
    locked, packed, good = read(rows)
    assert (locked, packed) == (
        "unsupported: encrypted; unpack it with its password",
        "unsupported: compressed by method 12; pack it stored or deflated",
    )
    assert good == b"good"


def test_a_wrong_size_reads_no_further_than_the_end_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    data = bytearray(zipped(path, FILES[:2]).read_bytes())
    second = _offsets(bytes(data), path)[1]
    struct.pack_into("<II", data, second + 18, 2**31, 2**31)
    path.write_bytes(data[:-10])
    rows, _ = listed(path)
    first, lying = read(rows, max_bytes=2**40)
    assert first == FILES[0][1]  # type: ignore[index]
    assert str(lying).startswith("truncated: the archive ends here")


@pytest.mark.parametrize("data", [b"", b"PK\3\4 and no more", b"no zip" * 100, bytes(1000), b"PK\5\6" + bytes(3)])
def test_a_file_without_members_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"x.zip is not a zip archive \(.*\): leave it out, or replace it"):
        listed(tmp_path / "x.zip")


def test_a_truncated_archive_on_the_web_is_read_up_to_its_end(tmp_path: Path) -> None:
    data = zipped(tmp_path / "x.zip", FILES).read_bytes()[:5000]

    def ranges(handler: Handler) -> None:
        first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        end = first + len(part) - 1
        handler.head(206, Content_Length=len(part), Content_Range=f"bytes {first}-{end}/{len(data)}")
        handler.send(part)

    with web() as server:
        server.answers["/x.zip"] = ranges
        rows, passed_over = listed(f"{server.root}/x.zip")
        assert read(rows[:-1]) == [content for _, content in FILES[: len(rows) - 1]]
        assert str(read(rows[-1:])[0]).startswith("truncated: ")
        assert passed_over == {f"({server.root}/x.zip ends early)": 1}


def test_the_plan_says_that_an_archive_ends_early(cli: Cli, tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", FILES)
    path.write_bytes(path.read_bytes()[:5000])
    assert f"({path} ends early)" in cli("plan", path, *DEMO, "--out", tmp_path / "out").stdout
