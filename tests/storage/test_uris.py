"""Where a uri leads, and whether that is inside of --root."""

from pathlib import Path

import pytest

from clipbatch.storage.uris import is_outside, path_of
from tests.conftest import DEMO, Cli, rows


@pytest.mark.parametrize(
    ("uri", "root", "path"),
    [
        ("a/b.jpg", "/data", "/data/a/b.jpg"),
        ("/a/b.jpg", "/data", "/a/b.jpg"),
        ("file:///a/%ff.jpg", "/data", "/a/\udcff.jpg"),
        ("s3://bucket/a.jpg", "/data", "s3://bucket/a.jpg"),
        ("a b.jpg", "s3://bucket/in", "s3://bucket/in/a b.jpg"),
        ("https://host/a.jpg", "s3://bucket/in", "https://host/a.jpg"),
    ],
)
def test_a_uri_starts_from_its_root_unless_it_says_where_it_is(uri: str, root: str, path: str) -> None:
    assert path_of(uri, root) == path


@pytest.mark.parametrize(
    ("uri", "root", "outside"),
    [
        ("a/b.jpg", "/data", False),
        ("a/../b.jpg", "/data", False),
        ("/data/b.jpg", "/data", False),
        ("../b.jpg", "/data", True),
        ("/database/b.jpg", "/data", True),
        ("/etc/passwd", "/data", True),
        ("file:///etc/passwd", "/data", True),
        ("https://host/b.jpg", "/data", True),
        ("a.jpg", "s3://bucket/in", False),
        ("s3://bucket/in/a.jpg", "s3://bucket/in", False),
        ("s3://bucket/inside/a.jpg", "s3://bucket/in", True),
        ("../a.jpg", "s3://bucket/in", True),
        ("x/%2e%2e%2f%2e%2e%2fa.jpg", "https://host/in", True),
        ("/etc/passwd", "s3://bucket/in", True),
    ],
)
def test_what_leads_out_of_the_root(uri: str, root: str, outside: bool) -> None:
    assert is_outside(path_of(uri, root), root) is outside


def test_two_dots_after_a_link_are_followed_to_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    assert is_outside(f"{tmp_path}/root/link/../secret.jpg", f"{tmp_path}/root")
    assert not is_outside(f"{tmp_path}/root/link/a.jpg", f"{tmp_path}/root")


def test_a_row_that_leads_out_of_the_root_is_not_read(warm: Cli, photos: Path, tmp_path: Path) -> None:
    first, second = sorted(photos.glob("*.jpg"))[:2]
    (tmp_path / "list.txt").write_text(
        f"{first.name}\n../{photos.name}/{second.name}\n../../../etc/passwd\n/etc/passwd\n"
    )
    warm("run", tmp_path / "list.txt", "--root", photos, *DEMO, "--out", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert found["status"].to_pylist() == ["ok", "ok", "unreadable", "unreadable"]
    assert found["error"].to_pylist()[2:] == [f"outside of --root {photos.absolute()}"] * 2
