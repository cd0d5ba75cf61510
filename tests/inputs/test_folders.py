"""Listing the input: which names become rows, in which order, and what is refused."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing as listings
from clipbatch.inputs.folders import LEFTOVERS, SUFFIXES
from clipbatch.storage.uris import path_of

LIST = """
import json, sys
from clipbatch.inputs import listing as source
from clipbatch.config import SourceSettings
listers = source.listers(SourceSettings(inputs=(sys.argv[1],), root=sys.argv[2] if sys.argv[2:] else None))
identity = listers[0].identity()
rows = [row for batch in source.Listing(listers, None, ()).batches() for row in batch.to_pylist()]
print(json.dumps([identity, rows]))
"""


def _rows(*inputs: object, **settings: Any) -> tuple[list[dict[str, str]], Counter[str]]:
    """The listing of `inputs` as rows, and the count of files left out."""
    listers = listings.listers(SourceSettings(inputs=tuple(map(str, inputs)), **settings))
    listing = listings.Listing(listers, settings.get("limit"), ())
    table = pa.Table.from_batches(listing.batches())
    return table.to_pylist(), listing.passed_over()


def _names(*inputs: object, **settings: Any) -> list[str]:
    return [row["uri"] for row in _rows(*inputs, **settings)[0]]


def _touch(folder: Path, *names: str | bytes) -> Path:
    """Empty files, with the folders on the way; a name that ends in a slash is a folder."""
    for name in names:
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not path.endswith(b"/"):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return folder


def test_a_folder_is_listed_depth_first_with_names_in_byte_order(tmp_path: Path) -> None:
    names = ["B.jpg", "Z/1.jpg", "a/1.jpg", "a/10.jpg", "a/2.jpg", "a/b/c.jpg", "a.jpg", "b.jpg", "é.jpg", "豆.jpg"]
    assert _names(_touch(tmp_path, *reversed(names))) == [f"{tmp_path}/{name}" for name in names]


def test_the_uri_is_the_name_as_given_and_relative_to_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_touch(tmp_path, "in/x.jpg", "one.png"))
    found, _ = _rows("in", "one.png", f"{tmp_path}/in")
    assert [row["uri"] for row in found] == ["in/x.jpg", "one.png", f"{tmp_path}/in/x.jpg"]
    assert [row["root"] for row in found] == [str(tmp_path), str(tmp_path), "/"]
    assert all(os.path.isfile(path_of(row["uri"], row["root"])) for row in found)


def test_every_known_suffix_is_listed_in_upper_and_lower_case(tmp_path: Path) -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"} <= SUFFIXES
    names = {f"x{case(suffix)}" for suffix in SUFFIXES for case in (str.lower, str.upper, str.title)}
    assert _names(_touch(tmp_path, *names)) == [f"{tmp_path}/{name}" for name in sorted(names)]


def test_files_left_out_are_counted_by_suffix(tmp_path: Path) -> None:
    _touch(tmp_path, "x.jpg", "x.jpg.txt", "a/y.TXT", "a/README", "a/.jpg", "b.tar.gz", "a/jpg", "empty/")
    found, passed_over = _rows(tmp_path)
    assert [row["uri"] for row in found] == [f"{tmp_path}/x.jpg"]
    assert passed_over == {".txt": 2, "": 3, ".gz": 1}


LEFT = ["._1.jpg", "a/._2.PNG", "__MACOSX/._1.jpg", "__MACOSX/a/3.jpg", "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg"]
LEFT += [".thumbnails/x.png", "a/.@__thumb/s1.jpg", ".AppleDouble/1.jpg", "@eaDir/1.jpg@SynoEAStream"]
KEPT = ["1.jpg", "@eaDir.jpg", "MACOSX/2.jpg", "a/.hidden.jpg", "a/_.jpg", "thumbnails/1.jpg"]


def test_leftovers_of_macos_and_nas_boxes_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_touch(tmp_path, *(f"in/{name}" for name in [*LEFT, *KEPT])))
    for text in ("in", "in/", f"{tmp_path}/in"):
        found, passed_over = _rows(text)
        assert [os.path.relpath(row["uri"], text) for row in found] == KEPT
        assert passed_over == {LEFTOVERS: len(LEFT)}
    found, passed_over = _rows("in/**/*.[jp][pn]g")
    assert [row["uri"] for row in found] == [f"in/{name}" for name in KEPT if "/." not in name]
    assert passed_over == {LEFTOVERS: 2}  # `**` and `*` match no leading dot
    assert len(_names("in", all_files=True)) == len(LEFT) + len(KEPT) + 1  # the folder @eaDir/1.jpg
    assert _names("in/@eaDir") == ["in/@eaDir/1.jpg", "in/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg"]
    assert _names("in/@eaDir/*/*.jpg") == ["in/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg"]
    assert _names("in/._1.jpg") == ["in/._1.jpg"]
    (tmp_path / "m.txt").write_text("in/._1.jpg\n")
    assert _names("m.txt") == ["in/._1.jpg"]
    with pytest.raises(InputError, match=r"holds no images \(2 other files\): --all-files"):
        _names(_touch(tmp_path / "left", "._1.jpg", "@eaDir/1.jpg"))


def test_all_files_lists_every_file_and_no_folder(tmp_path: Path) -> None:
    names = ["0.jpg/", "0.jpg/in.bin", "README", "a/y.txt", "empty/", "x.jpg"]
    _touch(tmp_path, *names)
    found, passed_over = _rows(tmp_path, all_files=True)
    assert [row["uri"] for row in found] == [f"{tmp_path}/{n.rstrip('/')}" for n in names if n != "empty/"]
    assert passed_over == {}
    assert _names(tmp_path / "README", all_files=True) == [f"{tmp_path}/README"]


def test_everything_with_an_image_name_is_a_row_and_folders_are_listed_as_well(tmp_path: Path) -> None:
    _touch(tmp_path, "album.jpg/1.jpg", "empty.png/")
    os.mkfifo(tmp_path / "pipe.gif")
    os.symlink("nowhere", tmp_path / "dangling.jpg")
    os.symlink("circle.jpg", tmp_path / "circle.jpg")
    expected = ["album.jpg", "album.jpg/1.jpg", "circle.jpg", "dangling.jpg", "empty.png", "pipe.gif"]
    assert _names(tmp_path) == [f"{tmp_path}/{name}" for name in expected]
    assert _names(tmp_path / "dangling.jpg") == [f"{tmp_path}/dangling.jpg"]


def test_links_to_folders_are_followed_unless_they_lead_back_to_a_parent(tmp_path: Path) -> None:
    _touch(tmp_path, "elsewhere/1.jpg", "in/2.jpg", "in/deep/3.jpg")
    for name, target in (("there", "../elsewhere"), ("self", "."), ("up", ".."), ("deep/back", "../../in")):
        os.symlink(target, tmp_path / "in" / name)
    expected = ["2.jpg", "deep/3.jpg", "there/1.jpg", "up/elsewhere/1.jpg"]
    assert _names(tmp_path / "in") == [f"{tmp_path}/in/{name}" for name in expected]


@pytest.mark.parametrize(
    "name", ["a b.jpg", "line\nbreak.jpg", "🐝.jpg", "#1.jpg", "50%20.jpg", "tab\t'\".jpg", " .jpg"]
)
def test_an_odd_name_is_listed_verbatim(tmp_path: Path, name: str) -> None:
    _touch(tmp_path, name)
    ((row,), _) = _rows(tmp_path)
    assert row["uri"] == f"{tmp_path}/{name}"
    assert os.path.isfile(path_of(row["uri"], row["root"]))


@pytest.mark.parametrize("text", ["in", "m.txt"])
def test_a_name_that_is_not_utf8_becomes_a_file_uri_of_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    names = [b"in/caf\xe9 50%.jpg", b"in/d\xff/1.jpg", b"in/plain.jpg"]
    _touch(tmp_path, *names)
    (tmp_path / "m.txt").write_bytes(b"\n".join(names))
    monkeypatch.chdir(tmp_path)
    found, _ = _rows(text)
    file_uris = [f"file://{tmp_path}/in/{name}" for name in ("caf%E9%2050%25.jpg", "d%FF/1.jpg")]
    assert [row["uri"] for row in found] == [*file_uris, "in/plain.jpg"]
    paths = [path_of(row["uri"], row["root"]) for row in found]
    assert [os.fsencode(path) for path in paths] == [os.fsencode(tmp_path) + b"/" + name for name in names]
    assert all(map(os.path.isfile, paths))


def test_a_working_folder_whose_name_is_not_utf8_can_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, b"d\xff/1.jpg")
    monkeypatch.chdir(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    ((row,), _) = _rows(".")
    assert os.path.isfile(path_of(row["uri"], row["root"]))


@pytest.mark.parametrize(("names", "other"), [((), 0), (("a.txt", "b/c.mp4"), 2)])
def test_a_folder_without_images_is_refused_with_what_it_holds(
    tmp_path: Path, names: tuple[str, ...], other: int
) -> None:
    with pytest.raises(InputError, match=rf"holds no images \({other} other files\): --all-files"):
        _names(_touch(tmp_path, *names))


@pytest.mark.parametrize("name", ["none", "none.jpg", "none.txt", "notes.pdf", "pipe.txt"])
def test_an_input_that_does_not_exist_or_is_of_an_unknown_kind_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(_touch(tmp_path, "notes.pdf") / "pipe.txt")
    with pytest.raises(
        InputError, match=r"does not exist, or is not a folder, image, manifest .*--all-files"
    ) as caught:
        _names(tmp_path / name)
    assert (name in str(caught.value), caught.value.exit_code) == (True, 3)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 5)])
def test_a_limit_stops_the_listing_across_inputs(tmp_path: Path, limit: int, count: int) -> None:
    _touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg")
    (tmp_path / "m.txt").write_text("5.jpg\n")
    everything = _names(tmp_path / "a", tmp_path / "b", tmp_path / "m.txt")
    assert _names(tmp_path / "a", tmp_path / "b", tmp_path / "m.txt", limit=limit) == everything[:count]


@pytest.mark.parametrize(
    "content",
    [
        b"1.jpg\nsub/2 3.jpg\n",
        b"1.jpg\nsub/2 3.jpg",
        b"1.jpg\r\nsub/2 3.jpg\r\n",
        b"\n# all of it\n1.jpg\n   \n\r\n# 0.jpg\n#\r\n##\n#\t\nsub/2 3.jpg\n\n",
        b"\xef\xbb\xbf1.jpg\nsub/2 3.jpg\n",
        b"\xef\xbb\xbf# all of it\n1.jpg\nsub/2 3.jpg\n",
    ],
    ids=["plain", "no newline at the end", "CRLF", "comments and blanks", "BOM", "BOM before a comment"],
)
def test_a_manifest_has_one_path_per_line_relative_to_its_folder_or_the_root(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "M.TXT").write_bytes(content)
    for more, root in (({}, tmp_path), ({"root": "/data"}, "/data")):
        found, _ = _rows(tmp_path / "M.TXT", **more)
        assert found == [{"uri": uri, "root": str(root), "span": None} for uri in ("1.jpg", "sub/2 3.jpg")]
    assert [path_of(uri, "/data") for uri in ("a b.jpg", "/abs/1.jpg")] == ["/data/a b.jpg", "/abs/1.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"], ids=["UTF-8", "other bytes"])
def test_a_name_may_begin_with_a_number_sign_and_comments_are_counted(tmp_path: Path, encoding: str) -> None:
    names = ["#1.jpg", "#/2.jpg", "#é.jpg", "##3.jpg", "#", "#.jpg", "a #4.jpg", " # 5.jpg", "./# 6.jpg", "#x y.jpg"]
    lines = ["# one", *names[:4], "#", "##", "#\ttwo", "### three", *names[5:], "# 7.jpg"]
    (tmp_path / "m.txt").write_bytes("\r\n".join(lines).encode(encoding))
    found, passed_over = _rows(tmp_path / "m.txt")
    kept = [*names[:4], *names[5:]]
    if encoding == "latin-1":
        kept[2] = f"file://{tmp_path}/%23%E9.jpg"
    assert [row["uri"] for row in found] == kept
    assert passed_over == {f"(lines of {tmp_path}/m.txt that are comments)": 6}


def test_a_manifest_of_several_chunks_loses_no_line_between_them(tmp_path: Path) -> None:
    names = [f"{'x' * (n % 90)}{n}.jpg" for n in range(200_000)]
    (tmp_path / "m.txt").write_text("\n".join(names))
    assert (tmp_path / "m.txt").stat().st_size > 2 * 4 * 2**20
    assert _names(tmp_path / "m.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1.jpg\0\n2.jpg\n", "m.txt is not a text file"),
        ("1.jpg\n".encode("utf-16"), "m.txt is not a text file"),
        (b"", "m.txt names no images: write one path per line"),
        (b"\n# 1.jpg\n  \n", "m.txt names no images: it has nothing but 1 lines of comments"),
        (b"1.jpg\r2.jpg\r", "the lines of .*m.txt end with carriage returns only, as on old Macs: save it with line"),
    ],
)
def test_a_manifest_that_is_empty_or_not_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        _names(tmp_path / "m.txt")


def _listed_by_itself(folder: Path, content: bytes, *args: str) -> subprocess.CompletedProcess[bytes]:
    """The identity and rows that a process of its own prints for the input `args[0]`, with `content` on its stdin."""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", LIST, *args]
    return subprocess.run(command, input=content, capture_output=True, cwd=folder, timeout=120)


def test_a_manifest_on_standard_input_is_relative_to_the_working_folder_or_the_root(tmp_path: Path) -> None:
    content = b"# list\n#1.jpg\r\n\nsub/2.jpg"
    identities = set()
    for text, args, root in (
        (content, ("-",), str(tmp_path)),
        (content, ("-", "/data"), "/data"),
        (content + b"\n", ("-", "/data"), "/data"),
    ):
        process = _listed_by_itself(tmp_path, text, *args)
        assert process.returncode == 0, process.stderr
        identity, rows = json.loads(process.stdout)
        assert rows == [{"uri": uri, "root": root, "span": None} for uri in ("#1.jpg", "sub/2.jpg")]
        identities.add(identity)
    assert len(identities) == 3
    assert b"InputError: the manifest - names no images" in _listed_by_itself(tmp_path, b"", "-").stderr


@pytest.mark.parametrize("name", ["-", "m.txt"])
def test_a_manifest_leaves_no_open_file_behind(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.txt").write_text("1.jpg\n")
    assert _listed_by_itself(tmp_path, b"1.jpg\n", name).stderr == b""


def test_a_manifest_has_the_same_identity_until_its_names_or_root_change(tmp_path: Path) -> None:
    def identity(content: str, root: str | None = None) -> str:
        (tmp_path / "m.txt").write_text(content)
        (lister,) = listings.listers(SourceSettings(inputs=(str(tmp_path / "m.txt"),), root=root))
        return lister.identity()

    assert identity("1.jpg\n") == identity("1.jpg\n")
    assert len({identity("1.jpg\n"), identity("1.jpg\n", "/data"), identity("2.jpg\n")}) == 3
