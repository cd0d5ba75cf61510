"""Zip archives, whole and broken: which members are found, and that their bytes are the right ones."""

import os
import stat
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.support.packing import Pipe, files, listed, names, read, zipped

METHODS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
CHECKSUM = "corrupt: the archive is damaged here, or was changed after it was listed: CRC-32"
ODD = ["a.jpg", "a.jpg", "../../etc/passwd.jpg", "/absolute/c.jpg", "line\nbreak\t'\".jpg", "豆/é.JPG", "#1#2.jpg"]


@pytest.mark.parametrize("method", METHODS)
def test_every_member_is_found_with_its_name_and_its_bytes(tmp_path: Path, method: str) -> None:
    packed = files([*ODD, "x" * 300 + ".jpg", "y/" * 2000 + "z.jpg"])
    rows, passed_over = listed(zipped(tmp_path / "x.zip", [*packed, ("notes.txt", b"")], METHODS[method]))
    assert names(rows) == [name for name, _ in packed]
    assert read(rows) == ["empty: 0 bytes", *(data for _, data in packed[1:])]
    assert passed_over == {".txt": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize("options", [["-0"], ["-9"], ["-y"], ["-fz"]], ids=" ".join)
def test_what_the_zip_command_packs_is_found(tmp_path: Path, options: list[str]) -> None:
    needs("zip")
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/é.png", "notes.txt"):
        (folder / name).write_bytes(name.encode() * 1000)
    os.symlink("a.jpg", folder / "link.jpg")
    subprocess.run(["zip", "-qr", *options, "x.zip", "in"], cwd=tmp_path, check=True)
    rows, passed_over = listed(tmp_path / "x.zip")
    found = dict(zip(names(rows), read(rows), strict=True))
    link = "unsupported: a symbolic link inside of the archive, which holds no image"
    assert found == {
        "in/a.jpg": b"a.jpg" * 1000,
        "in/b/é.png": "b/é.png".encode() * 1000,
        "in/link.jpg": link if options == ["-y"] else b"a.jpg" * 1000,
    }
    assert passed_over == {".txt": 1}


def test_streamed_archives_zip64_and_archives_after_other_data_are_read(tmp_path: Path) -> None:
    packed = files(["0.jpg", "1.jpg", "2.jpg"])
    for name, target in (("streamed", Pipe(tmp_path / "streamed.zip")), ("large", tmp_path / "large.zip")):
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.comment = b"a comment"
            for member, data in packed:
                with archive.open(member, "w", force_zip64=name == "large") as file:
                    file.write(data)
        if isinstance(target, Pipe):
            target.close()
    (tmp_path / "prefixed.zip").write_bytes(b"#!/bin/sh\n" * 99 + (tmp_path / "large.zip").read_bytes())
    for name in ("streamed", "large", "prefixed"):
        rows, _ = listed(tmp_path / f"{name}.zip")
        assert read(rows) == ["empty: 0 bytes", packed[1][1], packed[2][1]]


@pytest.mark.parametrize("length", [100, 600, 60_000])
def test_a_member_whose_own_header_is_longer_than_the_directory_s_is_read(tmp_path: Path, length: int) -> None:
    info, data = zipfile.ZipInfo("1.jpg"), os.urandom(5000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info.extra = struct.pack("<HH", 0xCAFE, length) + bytes(length)
        archive.writestr(info, data)
        info.extra = b""  # in the directory
    rows, _ = listed(tmp_path / "x.zip")
    assert read(rows) == [data]


def test_names_of_old_dos_programs_are_understood(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("caf_.jpg", b"x")
    data = (tmp_path / "x.zip").read_bytes().replace(b"caf_.jpg", b"caf\x82.jpg")  # é in code page 437
    (tmp_path / "x.zip").write_bytes(data)
    rows, _ = listed(tmp_path / "x.zip")
    assert (names(rows), read(rows)) == (["café.jpg"], [b"x"])


def test_a_member_that_cannot_be_read_is_a_row_with_the_reason(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("folder.jpg/", b"")
        archive.writestr(link, b"1.jpg")
        archive.writestr("bzip2.jpg", b"x" * 100, zipfile.ZIP_BZIP2)
        archive.writestr("lzma.jpg", b"x" * 100, zipfile.ZIP_LZMA)
        archive.writestr("locked.jpg", b"x" * 100)
        archive.getinfo("locked.jpg").flag_bits |= 1
        archive.writestr("1.jpg", b"x" * 100)
    rows, _ = listed(tmp_path / "x.zip")
    assert dict(zip(names(rows), read(rows), strict=True)) == {
        "link.jpg": "unsupported: a symbolic link inside of the archive, which holds no image",
        "bzip2.jpg": "unsupported: compressed by method 12; pack it stored or deflated",
        "lzma.jpg": "unsupported: compressed by method 14; pack it stored or deflated",
        "locked.jpg": "unsupported: encrypted; unpack it with its password",
        "1.jpg": b"x" * 100,
    }


def test_a_bomb_is_inflated_no_further_than_max_bytes(tmp_path: Path) -> None:
    packed = [("bomb.jpg", bytes(50_000_000)), ("limit.jpg", bytes(1000)), ("over.jpg", bytes(1001))]
    rows, _ = listed(zipped(tmp_path / "x.zip", packed, zipfile.ZIP_DEFLATED))
    over = "too_large: more than the limit of {} bytes when inflated"
    assert read(rows, max_bytes=100_000) == [over.format(100_000), bytes(1000), bytes(1001)]
    assert read(rows[1:], max_bytes=1000) == [bytes(1000), over.format(1000)]
    rows, _ = listed(zipped(tmp_path / "y.zip", packed))
    assert read(rows, max_bytes=1000) == [
        "too_large: 50000000 bytes, over the limit of 1000",
        bytes(1000),
        "too_large: 1001 bytes, over the limit of 1000",
    ]


def test_a_damaged_member_does_not_affect_others(tmp_path: Path) -> None:
    packed = [(f"{number}.jpg", os.urandom(900) + bytes(900)) for number in range(5)]
    for method, answers in (
        ("stored", [CHECKSUM]),
        ("deflated", [CHECKSUM, "corrupt: deflated data", "truncated: deflated data"]),
    ):
        whole = zipped(tmp_path / "x.zip", packed, METHODS[method]).read_bytes()
        rows, _ = listed(tmp_path / "x.zip")
        for at in range(40, 900, 43):
            data = bytearray(whole)
            data[rows[2]["span"]["start"] + at] ^= 1 << at % 8
            (tmp_path / "x.zip").write_bytes(data)
            got = read(listed(tmp_path / "x.zip")[0])
            assert [*got[:2], *got[3:]] == [data for _, data in packed if _ != "2.jpg"]
            assert str(got[2]).startswith(tuple(answers))
        data = bytearray(whole)
        data[rows[2]["span"]["start"]] = 0
        (tmp_path / "x.zip").write_bytes(data)
        assert str(read(rows)[2]).startswith("corrupt: the archive was changed after it was listed, or is damaged")


def test_impossible_sizes_and_offsets_give_rows_too(tmp_path: Path) -> None:
    packed = files(["-", "0.jpg", "1.jpg", "2.jpg"])[1:]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in packed:
            archive.writestr(name, data)
        archive.getinfo("0.jpg").header_offset = 2**63 + 5
        archive.getinfo("1.jpg").compress_size = 2**40
        archive.getinfo("2.jpg").header_offset = 10**9
    rows, _ = listed(tmp_path / "x.zip")
    got = read(rows, max_bytes=2**50)
    assert [str(one).partition(":")[0] for one in got] == ["corrupt", "truncated", "corrupt"]
    assert str(read(rows)[1]) == f"too_large: {2**40} bytes, over the limit of {256 * 2**20}"


def test_an_archive_that_changes_after_it_was_listed_never_gives_other_pixels(tmp_path: Path) -> None:
    packed = [(f"{number}.jpg", bytes([number]) * 700) for number in range(1, 6)]
    rows, _ = listed(zipped(tmp_path / "x.zip", packed))
    zipped(tmp_path / "x.zip", packed[::-1])
    assert read(rows) == [CHECKSUM, CHECKSUM, packed[2][1], CHECKSUM, CHECKSUM]
    zipped(tmp_path / "x.zip", [("00.jpg", b"x"), *packed])
    assert all(str(one).startswith("corrupt: the archive ") for one in read(rows))
    (tmp_path / "x.zip").unlink()
    assert read(rows) == ["missing: No such file or directory"] * 5
