"""Archives as inputs: which members become rows, which sidecars go with an image, and reading from many threads."""

import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipbatch.config import ReadSettings, SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing
from clipbatch.inputs.folders import LEFTOVERS
from clipbatch.stages.read import Fetch
from clipbatch.storage.uris import path_of
from clipbatch.types import Encoded
from tests.support.packing import Files, files, item, listed, names, read, tar, zipped

PACKERS = {"tar": tar, "zip": zipped}


def _packed(folder: Path, kind: str, members: Files, name: str = "x") -> Path:
    return PACKERS[kind](folder / f"{name}.{kind}", members)


@pytest.mark.parametrize("kind", PACKERS)
def test_images_become_rows_and_other_members_are_counted_unless_all_files_is_set(tmp_path: Path, kind: str) -> None:
    members = files(["a.jpg", "a.json", "b.JPEG", "b.txt", "README", "c.tif", ".jpg", "jpg"])
    path = _packed(tmp_path, kind, members)
    rows, passed_over = listed(path)
    assert names(rows) == ["a.jpg", "b.JPEG", "c.tif"]
    assert passed_over == {".json": 1, ".txt": 1, "": 3}
    rows, passed_over = listed(path, all_files=True)
    assert names(rows) == [name for name, _ in members]
    assert (read(rows)[1:], passed_over) == ([data for _, data in members[1:]], {})
    assert names(listed(path, limit=2)[0]) == ["a.jpg", "b.JPEG"]


@pytest.mark.parametrize("kind", PACKERS)
def test_the_uri_begins_with_the_name_of_the_archive_and_root_does_not_apply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    path = _packed(tmp_path / "in", kind, [("../m.jpg", b"x")])
    monkeypatch.chdir(tmp_path)
    for given, root in ((f"in/x.{kind}", str(tmp_path)), (str(path), "/")):
        ((row,), _) = listed(given, root="/elsewhere")
        assert (row["uri"], row["root"], row["span"]["container"]) == (f"{given}#../m.jpg", root, given)
        assert read([row]) == [b"x"]
    identities = {listing.listers(SourceSettings(inputs=(text,)))[0].identity() for text in (f"in/x.{kind}", str(path))}
    assert identities == {str(path)}


@pytest.mark.parametrize("kind", PACKERS)
def test_an_archive_whose_name_is_not_utf8_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    folder.mkdir()
    _packed(folder, kind, [("m.jpg", b"x")], name=os.fsdecode(b"caf\xe9"))
    monkeypatch.chdir(folder)
    for text in (os.fsdecode(b"caf\xe9") + f".{kind}", "."):
        ((row,), _) = listed(text)
        assert row["uri"] == f"file://{tmp_path}/d%FF/{'./' * (text == '.')}caf%E9.{kind}#m.jpg"
        assert os.path.isfile(path_of(row["span"]["container"], row["root"]))
        assert read([row]) == [b"x"]


@pytest.mark.parametrize("kind", PACKERS)
def test_sidecars_are_copied_unchanged_wherever_in_the_archive_they_are(tmp_path: Path, kind: str) -> None:
    members = [
        ("a/001.txt", b"before"),
        ("a/001.jpg", b"image"),
        ("a/001.json", b'{"n": 1}\n'),
        ("a/001.seg.json", b"two dots"),
        ("b/001.jpg", b"image"),  # of another folder
        ("b/002.left.jpg", b"image"),
        ("b/002.right.png", b"image"),
        ("b/002.JSON", b"for both"),
        ("b/003.jpg", b"image"),
        ("b/003.txt", "caf\xe9 é".encode("latin-1")),
        ("b/003.json", b""),
        ("b/003.cls", b"7"),
        ("c.d/004.jpg", b"image"),
        ("c.d/005.jpg", b"image"),
        ("c.d/004.txt", b"far away"),
    ]
    path = _packed(tmp_path, kind, members)
    rows, passed_over = listed(path, columns=("json", "txt", ".seg.json", "json"))
    carried = [(name, row["json"], row["txt"], row["seg.json"]) for name, row in zip(names(rows), rows, strict=True)]
    assert carried == [
        ("a/001.jpg", '{"n": 1}\n', "before", "two dots"),
        ("b/001.jpg", None, None, None),
        ("b/002.left.jpg", "for both", None, None),
        ("b/002.right.png", "for both", None, None),
        ("b/003.jpg", "", "caf\\xe9 \\xe9", None),
        ("c.d/004.jpg", None, "far away", None),
        ("c.d/005.jpg", None, None, None),
    ]
    without = {"(images without .json)": 3, "(images without .txt)": 4, "(images without .seg.json)": 6}
    assert passed_over == {".cls": 1, **without}
    assert list(rows[0]) == ["uri", "root", "span", "json", "txt", "seg.json"]
    plain, passed_over = listed(path, columns=())
    assert [(row["uri"], row["span"]) for row in rows] == [(row["uri"], row["span"]) for row in plain]
    assert passed_over == {".txt": 3, ".json": 4, ".cls": 1}
    assert "a/001.seg.json" not in names(listed(path, columns=("json", "seg.json"), all_files=True)[0])


# Members in order; the caption of each image, `?` where nobody can tell. A caption's number is that of its image.
REPEATED = {
    "image first": ("s.jpg s.txt s.jpg s.txt s.jpg s.txt", "0 1 2"),
    "caption first": ("s.txt s.jpg s.txt s.jpg s.txt s.jpg", "0 1 2"),
    "another order each time": ("s.jpg s.txt s.json s.txt s.json s.jpg s.json s.jpg s.txt", "0 1 2"),
    "two images a sample": ("s.left.jpg s.right.jpg s.txt s.left.jpg s.right.jpg s.txt", "0 0 1 1"),
    "upper case": ("s.JPG s.TXT s.jpg s.txt", "0 1"),
    "others in between": ("a.jpg a.txt b.jpg b.txt a.jpg a.txt b.jpg b.txt", "0 0 1 1"),
    "by suffix, twice": ("a.jpg b.jpg a.txt b.txt a.jpg b.jpg a.txt b.txt", "0 0 1 1"),
    "a gap among neighbours": ("s.jpg s.txt s.jpg s.jpg s.txt", "? ? ?"),
    "a gap among neighbours, caption first": ("s.txt s.jpg s.jpg s.txt s.jpg", "? ? ?"),
    "two captions": ("s.jpg s.txt s.txt", "?"),
    "a gap that others tell": ("a.jpg a.txt b.jpg b.txt a.jpg b.jpg b.txt", "0 0 - 1"),
    "a gap by suffix": ("a.jpg b.jpg a.jpg b.jpg a.txt b.txt", "? ? ? ?"),
    "neighbours against the order": ("a.jpg b.jpg a.txt a.jpg b.txt a.txt", "? 0 ?"),
    "folders": ("x/s.jpg x/s.txt y/s.jpg y/s.txt x/s.jpg x/s.txt", "0 0 1"),
}


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("case", REPEATED)
def test_samples_with_a_repeated_key_get_their_own_sidecars(tmp_path: Path, kind: str, case: str) -> None:
    order, expected = REPEATED[case]
    seen: Counter[str] = Counter()
    members = []
    for name in order.split():
        members.append((name, str(seen[name.lower()]).encode()))
        seen[name.lower()] += 1
    rows, passed_over = listed(_packed(tmp_path, kind, members), columns=("txt",))
    untold = expected.split().count("?")
    wanted = [None if one in "?-" else one for one in expected.split()]
    assert [row["txt"] for row in rows] == wanted
    assert sum(count for what, count in passed_over.items() if "key occurs again" in what) == untold
    assert passed_over["(images without .txt)"] == expected.count("-")


def test_no_image_gets_the_sidecar_of_another_whatever_samples_lack(tmp_path: Path) -> None:
    dice = random.Random(14)
    for number in range(150):
        complete, members = dice.random() < 0.4, []
        suffixes = dice.sample(["jpg", "txt", "json", "cls"], 4)
        for sample in range(dice.randrange(2, 6)):
            dice.shuffle(suffixes)
            kept = [suffix for suffix in suffixes if complete or suffix == "jpg" or dice.random() < 0.7]
            members += [(f"s.{suffix}", b"%d" % sample) for suffix in kept]
            if not complete:  # what keeps samples apart in a shard whose other keys lie in between
                members.append((f"other-{sample}.jpg", b"x"))
        path = tar(tmp_path / f"{number}.tar", members)
        rows = [row for row in listed(path, columns=("txt", "json"))[0] if row["uri"].endswith("#s.jpg")]
        for at, row in enumerate(rows):
            whole = {suffix for name, data in members for suffix in [name[2:]] if data == b"%d" % at}
            for column in ("txt", "json"):
                assert row[column] == (str(at) if column in whole else None), (members, rows)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_sidecar_that_cannot_be_read_is_null_and_noted(tmp_path: Path, kind: str) -> None:
    members = [("1.jpg", b"x"), ("1.txt", bytes(2**20)), ("2.jpg", b"x"), ("2.txt", bytes(2**20 + 1))]
    rows, passed_over = listed(_packed(tmp_path, kind, members), columns=("txt",))
    assert [row["txt"] for row in rows] == ["\0" * 2**20, None]
    assert passed_over == {"(.txt too_large)": 1}
    if kind == "tar":
        os.truncate(tmp_path / "x.tar", 2**19)
        rows, passed_over = listed(tmp_path / "x.tar", columns=("txt",))
        assert [row["txt"] for row in rows] == [None]
        assert passed_over == {"(.txt truncated)": 1, f"({tmp_path}/x.tar ends early)": 1}


def test_batches_with_much_text_have_fewer_rows(tmp_path: Path) -> None:
    members = [(f"{n}.{suffix}", bytes(2**20)) for n in range(70) for suffix in ("jpg", "txt")]
    (lister,) = listing.listers(SourceSettings(inputs=(str(tar(tmp_path / "x.tar", members)),), columns=("txt",)))
    assert [len(batch) for batch in lister.batches()] == [64, 6]


def test_a_folder_of_archives_lists_all_of_them(tmp_path: Path) -> None:
    for number, kind in ((10, "tar"), (2, "tar"), (1, "zip")):
        _packed(tmp_path, kind, [(f"{number}.jpg", b"x"), ("1.txt", b"y")], name=f"shard-{number}")
    tar(tmp_path / "shard-3.TAR", [("empty.txt", b"")])
    (tmp_path / "sizes.json").write_text("{}")
    rows, passed_over = listed(tmp_path)
    assert [row["uri"] for row in rows] == [
        f"{tmp_path}/{name}" for name in ("shard-1.zip#1.jpg", "shard-10.tar#10.jpg", "shard-2.tar#2.jpg")
    ]
    assert read(rows) == [b"x"] * 3
    assert passed_over == {".txt": 4, ".json": 1, f"({tmp_path}/shard-3.TAR holds no images)": 1}
    rows, passed_over = listed(tmp_path, columns=("txt",))
    assert [row["txt"] for row in rows] == ["y", None, None]
    (lister,) = listing.listers(SourceSettings(inputs=(str(tmp_path),)))
    assert lister.identity() == str(tmp_path)


def test_a_folder_with_images_at_its_top_is_a_folder_of_images(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.jpg", b"x")])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "2.jpg").touch()
    (tmp_path / "z.jpg").touch()
    rows, passed_over = listed(tmp_path)
    assert [row["uri"] for row in rows] == [f"{tmp_path}/sub/2.jpg", f"{tmp_path}/z.jpg"]
    assert passed_over == {".tar": 1}


def test_a_folder_of_archives_and_folders_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.jpg", b"x")])
    (tmp_path / "sub").mkdir()
    message = rf"is ambiguous: it holds archives \({tmp_path}/a.tar\) and folders \(sub\); name the archives "
    with pytest.raises(InputError, match=rf"{message}\('{tmp_path}/\*.tar', quoted\)"):
        listed(tmp_path)


def test_a_folder_with_a_compressed_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", [("1.jpg", b"x")])
    (tmp_path / "b.tar.gz").touch()
    with pytest.raises(InputError, match=r"b.tar.gz is compressed as a whole.*decompress it"):
        listed(tmp_path)


@pytest.mark.parametrize("kind", PACKERS)
def test_an_archive_without_images_is_refused_with_what_it_holds(tmp_path: Path, kind: str) -> None:
    path = _packed(tmp_path, kind, files(["a.json", "b.txt"]))
    with pytest.raises(InputError, match=rf"no images in {path} \(2 other files\): --all-files"):
        listed(path)


def test_many_threads_read_from_few_open_archives_correctly(tmp_path: Path) -> None:
    rows = []
    for number in range(150):
        kind = ("tar", "zip")[number % 2]
        members = [(f"{n}.jpg", f"{number} {n}".encode() * 999) for n in range(4)]
        rows += listed(_packed(tmp_path, kind, members, name=str(number)))[0]
    fetch = Fetch(ReadSettings())
    items = [item(row, number) for number, row in enumerate(rows)] * 6
    items.sort(key=lambda one: hash((one.row_id * 7919) % 600))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(fetch, items))
    for one, content in zip(items, found, strict=True):
        assert isinstance(content, Encoded)
        assert content.data == f"{one.row_id // 4} {one.row_id % 4}".encode() * 999
    assert 0 < _open_below(tmp_path) <= 64
    del fetch
    assert _open_below(tmp_path) == 0


def _open_below(folder: Path) -> int:
    """How many files below `folder` this process has open."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(os.path.realpath(link).startswith(str(folder)) for link in links)


def test_a_hostile_member_name_touches_no_file(tmp_path: Path) -> None:
    target = tmp_path / "target.jpg"
    target.write_bytes(b"secret")
    members = [(str(target), b"1"), (f"../{target.name}", b"2"), ("x.jpg\0.txt", b"3"), ("a/../../target.jpg", b"4")]
    (tmp_path / "in").mkdir()
    for kind in PACKERS:
        rows, _ = listed(_packed(tmp_path / "in", kind, members))
        assert read(rows) == [b"1", b"2", b"3", b"4"]
    assert target.read_bytes() == b"secret"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "target.jpg", "x.tar", "x.zip"]


@pytest.mark.parametrize("kind", PACKERS)
def test_leftovers_in_and_beside_archives_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    left = ["__MACOSX/._1.jpg", "a/._1.jpg", "a/@eaDir/1.jpg/THUMB.jpg", "a/._1.txt"]
    path = _packed(tmp_path, kind, [*((name, b"left") for name in left), ("a/1.jpg", b"image"), ("a/1.txt", b"text")])
    rows, passed_over = listed(path, columns=("txt",))
    assert [(row["uri"], row["txt"]) for row in rows] == [(f"{path}#a/1.jpg", "text")]
    assert passed_over == {LEFTOVERS: 4}
    assert len(listed(path, all_files=True)[0]) == 6
    (tmp_path / f"._x.{kind}").write_bytes(b"\0\5\x16\7")
    (tmp_path / "@eaDir").mkdir()
    rows, passed_over = listed(tmp_path)
    assert [row["uri"] for row in rows] == [f"{path}#a/1.jpg"]
    assert passed_over == {LEFTOVERS: 3 + 1 + 2, ".txt": 1}
