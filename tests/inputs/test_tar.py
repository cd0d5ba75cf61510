"""Tar archives of every format, whole and broken: which members are found, and that their bytes are the right ones."""

import io
import os
import shutil
import socket
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from clipbatch.errors import InputError
from tests.support.packing import files, listed, names, read, tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
CHANGED = "corrupt: the archive was changed after it was listed, or is damaged"
LINK = "which holds no data"
ODD = [
    "a.jpg",
    "a.jpg",  # again
    "./b.jpg",
    "../../etc/passwd.jpg",
    "/absolute/c.jpg",
    "line\nbreak\t'\".jpg",
    "豆/é.JPG",
    f"{'folder/' * 15}d.jpg",
    " .jpg",
    "#1#2.jpg",
    "50%20.jpg",
]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_member_is_found_with_its_name_and_its_bytes(tmp_path: Path, kind: str) -> None:
    long = [] if kind == "ustar" else ["x" * 300 + ".jpg", "y/" * 2000 + "z.jpg", "ü" * 90 + ".png"]
    packed = files([*ODD, *long, "last.jpg"])
    rows, passed_over = listed(tar(tmp_path / "x.tar", packed, FORMATS[kind]))
    assert names(rows) == [name for name, _ in packed]
    assert read(rows) == ["empty: 0 bytes", *(data for _, data in packed[1:])]
    assert {row["uri"].partition("#")[0] for row in rows} == {str(tmp_path / "x.tar")}
    assert passed_over == {}
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_a_name_that_is_not_utf8_is_percent_encoded(tmp_path: Path, kind: str) -> None:
    named = [os.fsdecode(b"caf\xe9 50%.jpg"), os.fsdecode(b"\xff" * 150 + b".jpg"), "plain%.jpg"]
    rows, _ = listed(tar(tmp_path / "x.tar", files(["0.jpg", *named]), FORMATS[kind]))
    assert names(rows) == ["0.jpg", "caf%E9%2050%25.jpg", "%FF" * 150 + ".jpg", "plain%.jpg"]
    assert read(rows)[1:] == [data for _, data in files(["0.jpg", *named])[1:]]


@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_the_tar_command_packs_is_found(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    (folder / "b.jpg").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg/1.png", f"b.jpg/{'x' * 70}.gif", "notes.txt", "no-suffix"):
        (folder / name).write_bytes(name.encode() * 1000)
    os.symlink("a.jpg", folder / "symbolic.jpg")
    os.link(folder / "a.jpg", folder / "hard.jpg")
    if kind != "v7":
        os.mkfifo(folder / "pipe.jpg")
    command = ["tar", f"--format={kind}", "--sort=name", "-cf", "x.tar", "in"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    rows, passed_over = listed(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as archive:
        members = [m for m in archive if not m.isdir() and m.name.endswith(("jpg", "png", "gif"))]
        assert names(rows) == [member.name for member in members]
        for member, got in zip(members, read(rows), strict=True):
            content = archive.extractfile(member) if member.isreg() else None
            if content:
                assert got == content.read()
            else:
                assert isinstance(got, str)
                assert got.startswith("unsupported: ")
                assert LINK in got or "a pipe" in got
    assert passed_over == {".txt": 1, "": 1}


@pytest.mark.parametrize("kind", ["oldgnu", "gnu", "posix"])
def test_a_sparse_file_is_a_row_that_says_so_and_what_follows_it_is_read(tmp_path: Path, kind: str) -> None:
    with open(tmp_path / "a.jpg", "wb") as file:
        for at in range(0, 2**22, 2**17):  # many holes, so that their map takes further blocks
            file.seek(at)
            file.write(b"data")
        file.truncate(2**23)
    (tmp_path / "b.jpg").write_bytes(b"dense")
    command = ["tar", "--sparse", "--hole-detection=raw", f"--format={kind}", "-cf", "x.tar", "a.jpg", "b.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 2**20
    rows, _ = listed(tmp_path / "x.tar")
    assert names(rows) == ["a.jpg", "b.jpg"]
    sparse, dense = read(rows)
    assert (str(sparse).startswith("unsupported: a sparse file"), dense) == (True, b"dense")


def header(name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000", signed: bool = False) -> bytes:
    """A header block with a valid checksum. size: the raw field. signed: sum signed bytes, as some old programs did."""
    block = struct.pack("100s8s8s8s12s12s8sc100s8s247x", name, b"", b"", b"", size, b"", b" " * 8, kind, b"", magic)
    total = sum(byte - 256 * (byte > 127 and signed) for byte in block)
    return block[:148] + b"%06o\0 " % total + block[156:]


def octal(size: int) -> bytes:
    return b"%011o\0" % size


def test_sizes_above_8_gib_are_understood(tmp_path: Path) -> None:
    size = 9 * 2**30 + 5
    after = 512 + (size + 511) // 512 * 512
    with open(tmp_path / "x.tar", "wb") as file:  # a hole on the disk
        file.write(header(b"large.jpg", b"\x80" + size.to_bytes(11, "big")))
        file.seek(after)
        file.write(header(b"small.jpg", octal(3)) + b"abc".ljust(512, b"\0") + bytes(1024))
    rows, passed_over = listed(tmp_path / "x.tar")
    assert [(row["span"]["start"], row["span"]["length"]) for row in rows] == [(512, size), (after + 512, 3)]
    assert read(rows) == [f"too_large: {size} bytes, over the limit of {256 * 2**20}", b"abc"]
    assert passed_over == {}


def pax(kind: bytes, **records: str) -> bytes:
    content = b""
    for name, value in records.items():
        line = f" {name.replace('_', '.')}={value}\n".encode()
        length = len(line) + next(n for n in range(1, 9) if len(str(len(line) + n)) == n)
        content += b"%d" % length + line
    return header(b"pax", octal(len(content)), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def test_extended_headers_count_for_the_next_member_and_global_ones_for_all(tmp_path: Path) -> None:
    data = b"abc".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(
        pax(b"g", comment="of all", path="everywhere.jpg")
        + header(b"1", octal(3)) + data
        + pax(b"x", path="own.jpg", size="2") + header(b"2", octal(0)) + data
        + header(b"3", octal(1)) + data
        + bytes(1024)
    )  # fmt: skip
    rows, passed_over = listed(tmp_path / "x.tar")
    assert names(rows) == ["everywhere.jpg", "own.jpg", "everywhere.jpg"]
    assert read(rows) == [b"abc", b"ab", b"a"]
    assert passed_over == {}


def test_headers_of_old_and_of_unknown_programs_are_understood(tmp_path: Path) -> None:
    data = b"abc".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(
        header(b"label.jpg", octal(512), b"V") + data
        + header(b"caf\xe9\xe9.jpg", octal(3), b"\0", magic=b"", signed=True) + data
        + header(b"v7-folder.jpg/", octal(0), b"\0", magic=b"")
        + header(b"contiguous.jpg", b"       3 \0", b"7") + data
        + header(b"unknown.jpg", octal(3), b"?") + data
        + bytes(512)
    )  # fmt: skip
    rows, passed_over = listed(tmp_path / "x.tar")
    assert names(rows) == ["caf%E9%E9.jpg", "contiguous.jpg", "unknown.jpg"]
    assert read(rows) == [b"abc"] * 3
    assert passed_over == {}


def test_concatenated_archives_are_all_listed(tmp_path: Path) -> None:
    for number in range(3):
        tar(tmp_path / f"{number}.tar", files([f"{number}.jpg", "same.jpg"]))
    (tmp_path / "x.tar").write_bytes(b"".join((tmp_path / f"{n}.tar").read_bytes() for n in range(3)))
    rows, passed_over = listed(tmp_path / "x.tar")
    assert names(rows) == [name for number in range(3) for name in (f"{number}.jpg", "same.jpg")]
    assert read(rows)[1::2] == [data for _, data in files(["", "same.jpg"])[1:]] * 3
    assert passed_over == {}


def test_a_truncated_archive_loses_only_what_follows_the_cut(tmp_path: Path) -> None:
    packed = files([f"{'long' * 40}{number}.jpg" if number == 3 else f"{number}.jpg" for number in range(6)])
    whole = tar(tmp_path / "whole.tar", packed).read_bytes()
    rows, _ = listed(tmp_path / "whole.tar")
    content = max(row["span"]["start"] + row["span"]["length"] for row in rows)
    for cut in [*range(512, content, 217), content]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        left, passed_over = listed(tmp_path / "cut.tar")
        assert names(left) == names(rows)[: len(left)]
        assert len(left) >= sum(row["span"]["start"] <= cut for row in rows)
        got = read(left)
        for row, (_, data), found in zip(left, packed, got, strict=False):
            there = cut - row["span"]["start"]
            if there >= len(data):
                assert found == (data or "empty: 0 bytes")
            else:
                assert found == f"truncated: the archive ends here, after {there} of {len(data)} bytes"
        assert passed_over == {f"({tmp_path}/cut.tar ends early)": 1}


def test_a_damaged_header_loses_one_member_and_is_noted_where_tarfile_stops_silently(tmp_path: Path) -> None:
    packed = files([f"{number}.jpg" for number in range(1, 9)])
    data = bytearray(tar(tmp_path / "x.tar", packed).read_bytes())
    rows, _ = listed(tmp_path / "x.tar")
    bad = rows[4]["span"]["start"] - 512
    data[bad + 3] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(data)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert len(archive.getnames()) == 4
    left, passed_over = listed(tmp_path / "x.tar")
    assert left == rows[:4] + rows[5:]
    assert read(left)[1:] == [data for name, data in packed[1:] if name != "5.jpg"]
    assert passed_over == {f"({tmp_path}/x.tar is damaged at byte {bad})": 1}
    assert read(rows)[4] == f"{CHANGED}: the member's header is not where it was; start a new run"


@pytest.mark.parametrize(
    "records", [b"99999 path=a\n", b"x path=a\n", b"-5 path=a\n", b"12 path a.jpg", b"9 size=-1\n"]
)
def test_extended_headers_that_lie_are_damage(tmp_path: Path, records: bytes) -> None:
    member = header(b"1.jpg", octal(3)) + b"abc".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(
        member + header(b"pax", octal(len(records)), b"x") + records.ljust(512, b"\0") + member + bytes(1024)
    )
    rows, passed_over = listed(tmp_path / "x.tar")
    assert (names(rows), read(rows)) == (["1.jpg"] * 2, [b"abc"] * 2)
    assert passed_over == {f"({tmp_path}/x.tar is damaged at byte 1024)": 1}


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777x", b"-1"])
def test_sizes_that_no_file_has_are_damage(tmp_path: Path, size: bytes) -> None:
    member = header(b"1.jpg", octal(3)) + b"abc".ljust(512, b"\0")
    (tmp_path / "x.tar").write_bytes(member + header(b"2.jpg", size) + member + bytes(1024))
    rows, passed_over = listed(tmp_path / "x.tar")
    assert (names(rows), read(rows)) == (["1.jpg"] * 2, [b"abc"] * 2)
    assert passed_over == {f"({tmp_path}/x.tar is damaged at byte 1024)": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a tar archive \(0 bytes"),
        (b"x", r"not a tar archive \(1 bytes; its first block is not a tar header"),
        (b"<html>".ljust(4000), "first block is not a tar header"),
        (b"\xff\xd8\xff\xe0".ljust(20_000, b"\1"), "first block is not a tar header"),
        (b"PK\3\4".ljust(2000, b"\1"), "it is a zip file"),
        (b"\x1f\x8b\x08".ljust(2000, b"\1"), "compressed by gzip as a whole.*decompress it"),
        (b"\x28\xb5\x2f\xfd".ljust(2000, b"\1"), "compressed by zstd"),
        (bytes(10_240), "no images in"),
    ],
)
def test_a_file_that_is_not_a_tar_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        listed(tmp_path / "x.tar")
    assert str(tmp_path / "x.tar") in str(caught.value)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".TAR.ZST", ".tar.bz2", ".tar.xz"])
def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(b"x")
    with pytest.raises(InputError, match=r"x\.\S+ is compressed as a whole.*decompress it"):
        listed(tmp_path / f"x{suffix}")


def test_an_archive_that_changes_after_it_was_listed_never_gives_other_pixels(tmp_path: Path) -> None:
    packed = [(f"{number}.jpg", bytes([number]) * 700) for number in range(1, 6)]
    rows, _ = listed(tar(tmp_path / "x.tar", packed))
    shutil.copy(tmp_path / "x.tar", tmp_path / "keep.tar")
    moved = f"{CHANGED}: the member's header is not where it was; start a new run"
    tar(tmp_path / "x.tar", packed[::-1])
    assert read(rows) == [moved, moved, packed[2][1], moved, moved]
    tar(tmp_path / "x.tar", [("0.jpg", b""), *packed])
    assert read(rows) == [moved] * 5
    tar(tmp_path / "x.tar", packed[:2])
    os.truncate(tmp_path / "x.tar", 3 * 512)
    assert read(rows) == [packed[0][1], *[moved] * 4]
    (tmp_path / "x.tar").unlink()
    assert read(rows) == ["missing: No such file or directory"] * 5
    (tmp_path / "x.tar").mkdir()
    assert read(rows) == ["unreadable: not a file"] * 5
    (tmp_path / "x.tar").rmdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "x.tar"))
    assert read(rows[:1]) == ["unreadable: not a file"]
    (tmp_path / "x.tar").unlink()
    shutil.copy(tmp_path / "keep.tar", tmp_path / "x.tar")  # another file, the same bytes
    assert read(rows) == [data for _, data in packed]


def test_max_bytes_is_checked_before_a_member_is_read(tmp_path: Path) -> None:
    rows, _ = listed(tar(tmp_path / "x.tar", [("a.jpg", bytes(100)), ("b.jpg", bytes(101))]))
    assert read(rows, max_bytes=100) == [bytes(100), "too_large: 101 bytes, over the limit of 100"]


def test_a_thousand_members_are_listed_as_by_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}) as archive:
        for number in range(1000):
            info = tarfile.TarInfo(f"{'d' * (number % 300)}/{number}.jpg")
            info.size, info.mtime = number % 1500, number / 7
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    rows, _ = listed(path)
    with tarfile.open(path) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive]
    assert [(n, r["span"]["start"], r["span"]["length"]) for n, r in zip(names(rows), rows, strict=True)] == expected
