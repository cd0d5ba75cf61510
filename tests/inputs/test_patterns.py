"""Patterns as inputs: what they match, in which order, and what becomes of a match."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing
from clipbatch.inputs.globbing import expand_braces
from tests.support.packing import listed, tar


def _uris(*inputs: object, **settings: object) -> list[str]:
    return [row["uri"] for row in listed(*inputs, **settings)[0]]


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with some files."""
    _touch(tmp_path, "b.jpg", "a/1.jpg", "a/10.jpg", "a/2.JPG", "a/x.txt", "a/deep/er/3.jpg", "é.jpg", "Z.jpg", "c.png")
    _touch(tmp_path, ".hidden.jpg", ".h/4.jpg", "a/.h/5.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["Z.jpg", "b.jpg", "é.jpg"]),
        ("?.jpg", ["Z.jpg", "b.jpg", "é.jpg"]),
        ("./[a-c].*", ["./b.jpg", "./c.png"]),
        ("[!a-c].*", ["Z.jpg", "é.jpg"]),
        ("a/*.jpg", ["a/1.jpg", "a/10.jpg"]),
        ("a/*", ["a/1.jpg", "a/10.jpg", "a/2.JPG", "a/deep/er/3.jpg"]),
        ("*/1*.jpg", ["a/1.jpg", "a/10.jpg"]),
        ("**/*.jpg", ["Z.jpg", "a/1.jpg", "a/10.jpg", "a/deep/er/3.jpg", "b.jpg", "é.jpg"]),
        ("a/**/*.jpg", ["a/1.jpg", "a/10.jpg", "a/deep/er/3.jpg"]),
        ("a/**/**/er/**/*.jpg", ["a/deep/er/3.jpg"]),
        ("**/deep/**/*.jpg", ["a/deep/er/3.jpg"]),
        ("a/**", ["a/1.jpg", "a/10.jpg", "a/2.JPG", "a/deep/er/3.jpg"]),
        (".*.jpg", [".hidden.jpg"]),
        ("**/.h/*.jpg", [".h/4.jpg", "a/.h/5.jpg"]),
        ("a*/", ["a/.h/5.jpg", "a/1.jpg", "a/10.jpg", "a/2.JPG", "a/deep/er/3.jpg"]),
        ("{b,c}.{jpg,png}", None),
        ("{b.jpg,c.png}", ["b.jpg", "c.png"]),
        ("{c,b}.*", ["c.png", "b.jpg"]),
        ("a/{1..2}*", ["a/1.jpg", "a/10.jpg", "a/2.JPG"]),
    ],
)
def test_a_pattern_matches_what_the_shell_matches_in_byte_order(
    here: Path, pattern: str, found: list[str] | None
) -> None:
    if found is None:
        with pytest.raises(InputError, match=r"'b.png' of '{b,c}.{jpg,png}' does not exist"):
            _uris(pattern)
        return
    assert _uris(pattern) == found
    absolute = [f"{here}/{name.removeprefix('./')}" for name in found]
    assert _uris(f"{here}/{pattern.removeprefix('./')}") == absolute


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "a"),
        ("a{b,c}d", "abd acd"),
        ("{,x}y", "y xy"),
        ("{a,b}{1,2}", "a1 a2 b1 b2"),
        ("{a,b{1..3},c}", "a b1 b2 b3 c"),
        ("x-{08..11}.tar", "x-08.tar x-09.tar x-10.tar x-11.tar"),
        ("{0000..0002}", "0000 0001 0002"),
        ("{3..1}", "3 2 1"),
        ("{1..9..4}", "1 5 9"),
        ("{-1..1}", "-1 0 1"),
        ("{a}", "{a}"),
        ("{}", "{}"),
        ("{a", "{a"),
        ("a}", "a}"),
        ("{a}{b,c}", "{a}b {a}c"),
        ("{1..}", "{1..}"),
    ],
)
def test_braces_stand_for_the_words_that_bash_makes_of_them(text: str, expected: str) -> None:
    assert " ".join(expand_braces(text)) == expected
    bash = subprocess.run(["bash", "-c", f"echo {text}"], capture_output=True, text=True, check=True)
    assert bash.stdout.split() == expected.split()


def test_a_file_of_the_pattern_s_very_name_wins(here: Path) -> None:
    for name in ("[ab].jpg", "{b,c}.jpg", "*.jpg"):
        _touch(here, name)
        assert _uris(name) == [name]
    assert _uris("[Z].jpg") == ["Z.jpg"]


@pytest.mark.parametrize(
    "pattern", ["*.gif", "none/*.jpg", "**/none/*.jpg", "b.jpg/*", "[", "x[1].jpg", "{b.jpg,*.gif}"]
)
def test_a_pattern_that_matches_nothing_is_refused(here: Path, pattern: str) -> None:
    with pytest.raises(InputError, match="nothing matches the pattern") as caught:
        _uris(pattern)
    assert str(here) in str(caught.value)


def test_a_shard_of_a_range_that_is_missing_is_named(here: Path) -> None:
    for number in (0, 1, 3):
        tar(here / f"s-{number:02}.tar", [(f"{number}.jpg", b"x")])
    with pytest.raises(InputError, match=r"'s-02.tar' of 's-{00..03}.tar' does not exist"):
        _uris("s-{00..03}.tar")
    assert _uris("s-{00..01}.tar") == ["s-00.tar#0.jpg", "s-01.tar#1.jpg"]
    assert _uris("s-{01,00}.tar") == ["s-01.tar#1.jpg", "s-00.tar#0.jpg"]
    assert _uris("s-*.tar") == ["s-00.tar#0.jpg", "s-01.tar#1.jpg", "s-03.tar#3.jpg"]


def test_each_match_is_an_input_of_its_own_where_none_is_an_image(here: Path) -> None:
    _touch(here, "in/folder/2.jpg", "in/notes.pdf")
    tar(here / "in" / "s.tar", [("1.jpg", b"x"), ("1.txt", b"hello")])
    (here / "in" / "z.txt").write_text("3.jpg\n")
    rows, passed_over = listed("in/*", columns=("txt",))
    assert [(row["uri"], row["txt"]) for row in rows] == [
        ("in/folder/2.jpg", None),
        ("in/s.tar#1.jpg", "hello"),
        ("3.jpg", None),
    ]
    assert passed_over == {".pdf": 1}


def test_beside_images_other_files_are_passed_over_unless_all_files_takes_them(here: Path) -> None:
    tar(here / "a" / "s.tar", [("1.jpg", b"x")])
    rows, passed_over = listed("a/*[gtr]")
    assert [row["uri"] for row in rows] == ["a/1.jpg", "a/10.jpg"]
    assert passed_over == {".txt": 1, ".tar": 1}
    assert _uris("a/*[gtr]", all_files=True) == ["a/1.jpg", "a/10.jpg", "a/s.tar", "a/x.txt"]


def test_a_pattern_of_nothing_that_is_an_input_is_refused(here: Path) -> None:
    _touch(here, "1.pdf", "2.pdf")
    with pytest.raises(InputError, match=r"of the 2 files that the pattern '\*.pdf' matches, none is an image"):
        _uris("*.pdf")
    assert _uris("*.pdf", all_files=True) == ["1.pdf", "2.pdf"]


def test_circles_of_links_end_and_broken_links_are_rows(here: Path) -> None:
    for name in ("self", "again"):
        os.symlink(".", here / "a" / name)
    os.symlink("nowhere", here / "a" / "dangling.jpg")
    os.symlink("circle.jpg", here / "a" / "circle.jpg")
    expected = ["a/1.jpg", "a/10.jpg", "a/circle.jpg", "a/dangling.jpg", "a/deep/er/3.jpg"]
    assert _uris("a/**/*.jpg") == expected
    assert _uris("a/*/1.jpg") == ["a/again/1.jpg", "a/self/1.jpg"]


def test_folders_deeper_than_python_recurses_are_walked(here: Path) -> None:
    deep = "/".join("d" * 1500)
    for depth in range(1, len(deep) + 1, 2):
        os.mkdir(deep[:depth])
    _touch(here, f"{deep}/x.jpg")
    try:
        assert _uris("d/**/*.jpg") == [f"{deep}/x.jpg"]
    finally:
        subprocess.run(["rm", "-r", here / "d"], check=True)  # deeper than pytest can remove


def test_a_folder_that_cannot_be_listed_is_noted(tmp_path: Path) -> None:
    """As another user, where the tests run as root."""
    _touch(tmp_path, "in/locked/1.jpg", "in/open/2.jpg")
    os.symlink("nowhere", tmp_path / "in" / "gone")
    (tmp_path / "in" / "locked").chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\n"
        "from clipbatch.config import SourceSettings\n"
        "from clipbatch.inputs import listing\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for text in ('in/**/*.jpg', 'in', 'in/*/*.jpg', 'in/[go]*'):\n"
        "    its = listing.Listing(listing.listers(SourceSettings(inputs=(text,))), None, ())\n"
        "    uris = [uri for batch in its.batches() for uri in batch['uri'].to_pylist()]\n"
        "    print(uris, dict(its.passed_over()), its.incomplete())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    (tmp_path / "in" / "locked").chmod(0o700)
    noted, gone = "'(in/locked cannot be listed)': 1}", "['in/gone', 'in/locked']"
    assert out.splitlines() == [
        f"['in/open/2.jpg'] {{{noted} ['in/locked']",  # `**` follows no links
        f"['in/locked', 'in/open/2.jpg'] {{'': 1}} {gone}",
        f"['in/open/2.jpg'] {{'(in/gone cannot be listed)': 1, {noted} {gone}",
        "['in/open/2.jpg'] {'': 1} ['in/gone']",
    ]


def test_the_identity_is_the_pattern_s_and_not_its_matches(here: Path) -> None:
    def identity(pattern: str) -> str:
        return listing.listers(SourceSettings(inputs=(pattern,)))[0].identity()

    before = identity("*.jpg")
    _touch(here, "new.jpg")
    assert identity("*.jpg") == identity(f"{here}/*.jpg") == before
    assert identity("*.png") != before


def test_a_pattern_of_more_names_than_can_be_meant_is_refused(here: Path) -> None:
    with pytest.raises(InputError, match="stand for more than 100000 names: use a manifest"):
        _uris("b.jpg" + "{,}" * 17)
