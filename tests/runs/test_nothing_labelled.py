"""A run in which nothing worked is no success: exit code 4, the likely cause, and a page that says so."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO, Cli, error_in, rows
from tests.support.corpus import photo
from tests.support.servers import Buckets, buckets

NOTHING = "none of the 4 images could be labelled: 0 ok, 4 missing. Likely cause: "


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`photos/shoes/` with four images, and `lists/` for manifests."""
    (tmp_path / "photos" / "shoes").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    for number in range(4):
        photo(np.random.default_rng(number), 60, 40).save(tmp_path / "photos" / "shoes" / f"{number}.jpg")
    return tmp_path


def by_root(tree: Path) -> str:
    return "".join(f"photos/shoes/{number}.jpg\n" for number in range(4))


def by_file(tree: Path) -> str:
    return "".join(f"{number}.jpg\n" for number in range(4))


@pytest.mark.parametrize(
    ("names", "place", "hint"),
    [
        pytest.param(by_root, "lists", ".", id="they are relative to a parent of the manifest's folder"),
        pytest.param(by_file, "photos", "photos/shoes", id="they are in a folder beside the manifest"),
    ],
)
def test_relative_names_that_do_not_exist_are_found_where_they_are(
    warm: Cli, tree: Path, names: Callable[[Path], str], place: str, hint: str
) -> None:
    manifest, out = tree / place / "list.txt", tree / "out"
    manifest.write_text(names(tree))
    run = ("run", manifest, *DEMO, "--out", out)
    said = warm(*run, code=4).stderr
    assert NOTHING + f"names are relative (without --root), and were looked for in {tree / place}, " in said
    assert error_in(said)
    (root,) = re.findall(r": --root (\S+?)\. ", said)
    assert Path(root) == tree / hint
    warm(*run, "--root", root, "--overwrite")
    assert rows(out)["status"].to_pylist() == ["ok"] * 4


def test_names_relative_to_the_working_folder_are_found_there(warm: Cli, tree: Path) -> None:
    (tree / "far" / "lists").mkdir(parents=True)
    (tree / "far" / "lists" / "list.txt").write_text(by_file(tree))
    here = tree / "photos" / "shoes"
    run = ("run", tree / "far" / "lists" / "list.txt", *DEMO, "--out", tree / "out")
    assert f"they are in {here}: --root {here}" in warm(*run, code=4, cwd=here).stderr


@pytest.mark.parametrize(
    ("header", "row", "cause"),
    [
        (
            "image,there",
            "SKU-{0},photos/shoes/{0}.jpg",
            "column 'there' names files that exist there: --uri-column there",
        ),
        ("image,place", "{0}.jpg,photos/shoes", "with column 'place' before them they exist"),
        ("image,title", "SKU-{0},a shoe", "'SKU-0' does not look like a file: name the column of files"),
        ("image,title", "/no/such/disk/{0}.jpg,a shoe", "/no does not exist on this machine: is the disk mounted"),
        ("image,title", ",a shoe", "the column of names is empty"),
    ],
)
def test_another_column_or_place_is_the_cause(warm: Cli, tree: Path, header: str, row: str, cause: str) -> None:
    manifest = tree / "products.csv"
    manifest.write_text("\n".join([header, *(row.format(number) for number in range(4))]))
    said = warm("run", manifest, *DEMO, "--out", tree / "out", code=4).stderr
    assert NOTHING in said
    assert cause in said


def test_what_the_first_error_says_is_the_cause_where_files_exist(warm: Cli, tree: Path) -> None:
    for path in (tree / "photos" / "shoes").iterdir():
        path.write_bytes(b"<!DOCTYPE html>" + bytes(100))
    out = tree / "out"
    said = warm("run", tree / "photos", *DEMO, "--out", out, code=4).stderr
    assert "Likely cause: the first error is unsupported: " + rows(out)["error"][0].as_py() in said
    warm("report", out)
    page = (out / "report.html").read_text()
    assert "Nothing could be labelled" in page
    assert "Finished" not in page
    assert "Likely cause: <bdi>the first error is unsupported" in page
    assert "nothing could be labelled, likely because the first error is" in warm("status", out).stdout
    warm("verify", out)
    warm("run", "--out", out, "--max-bad", "100%")  # so they are to be bad rows


def test_a_process_stops_at_once_when_none_of_its_first_thousand_rows_is_ok(warm: Cli, tree: Path) -> None:
    manifest, out = tree / "list.txt", tree / "out"
    good = tree / "photos" / "shoes" / "0.jpg"
    manifest.write_text("".join(f"none/{number}.jpg\n" for number in range(1999)) + f"{good}\n")
    run = ("run", manifest, *DEMO, "--shard-size", 64, "--batch-size", 32)
    said = warm(*run, "--out", out, code=4).stderr
    count = int(re.findall(r"none of the first (\d+) images could be labelled: 0 ok", said)[0])
    assert 1000 <= count < 1999
    assert "Likely cause: names are relative" in said
    assert "--max-bad 100%" in said
    assert not json.loads(warm("status", out, "--json").stdout)["complete"]
    warm(*run, "--out", out, "--max-bad", "100%")
    assert json.loads(warm("status", out, "--json").stdout)["status"] == {"missing": 1999, "ok": 1}
    warm("run", "--out", out)  # complete, and one row is ok
    good.rename(good.with_suffix(".old"))
    warm("run", "--out", out, "--retry-bad")  # nothing of what it tries is ok
    # One row among the first that is ok, and the rest is read.
    manifest.write_text(f"{good.with_suffix('.old')}\n" + manifest.read_text())
    said = warm(*run, "--out", tree / "other", "--one-line").stdout
    assert said.startswith(f"{tree / 'other'}: over 99.9% of the images are bad; 2001 images: 1 ok, 2000 missing;")


def test_a_rank_is_not_judged_but_the_whole_run_is_by_who_completes_it(warm: Cli, tree: Path) -> None:
    good, bad = tree / "photos" / "shoes" / "0.jpg", tree / "none.jpg"
    for name, names, last in (("some", [bad, good], 0), ("none", [bad, bad], 4)):
        (tree / f"{name}.txt").write_text("".join(f"{path}\n" for path in names))
        plan = ("plan", tree / f"{name}.txt", *DEMO, "--shard-size", 1, "--batch-size", 1, "--out", tree / name)
        warm(*plan)
        run = ("run", "--out", tree / name, "--world-size", 2, "--rank")
        warm(*run, 0)
        warm(*run, 1, code=last)
        warm(*run, 0, code=last)
        assert (tree / name / "report.json").exists()


def test_an_increment_is_judged_with_its_dataset(warm: Cli, tree: Path) -> None:
    folder, out = tree / "photos", tree / "dataset"
    small = ("--batch-size", 32, "--shard-size", 64)
    command = ("run", folder, *DEMO, *small, "--incremental", "--out", out, "--one-line")
    kept = {path: path.read_bytes() for path in (folder / "shoes").iterdir()}
    for path in kept:
        path.write_bytes(b"no image")
    for _ in range(2):  # the second time, nothing is new
        said = warm(*command, code=4).stderr
        assert "none of the 4 images could be labelled" in said
        first = out / "increment-00001"  # --incremental refuses --overwrite and --retry-bad
        assert f"Correct the command and remove {first}, or put" in said
        assert f"back and run: clipbatch run --out {first} --retry-bad; if" in said
    for path, content in list(kept.items())[:2]:
        path.write_bytes(content)
    assert "2 images (0 new, 2 changed, 2 known): 2 ok" in warm(*command).stdout
    warm("run", "--out", out / "increment-00001")
    (folder / "new.jpg").write_bytes(b"no image")
    assert "100% of the images are bad; 1 images (1 new" in warm(*command).stdout
    for number in range(1500):
        (folder / f"{number}.jpg").write_bytes(b"")
    assert "100% of the images are bad; 1500 images (1500 new" in warm(*command).stdout
    (tree / "bad.jpg").write_bytes(b"no image")
    plain = out / "increment-test"  # a run beside increments, which is none of them
    assert "give --overwrite, or put" in warm("run", tree / "bad.jpg", *DEMO, *small, "--out", plain, code=4).stderr


def test_scoring_again_is_not_judged(warm: Cli, tree: Path) -> None:
    (tree / "bad.jpg").write_bytes(b"no image")
    run = ("run", tree / "bad.jpg", *DEMO, "--embeddings", "--out", tree / "out")
    warm(*run, code=4)
    warm("rescore", tree / "out", "--labels", "x,y", "--out", tree / "again")


@pytest.fixture(scope="module")
def store() -> Iterator[Buckets]:
    with buckets() as store:
        store.put("bucket")
        store.put("bucket/0.jpg", b"no image")
        yield store


def test_a_store_without_credentials_is_the_cause(warm: Cli, store: Buckets, tree: Path) -> None:
    (tree / "list.txt").write_text("".join(f"s3://bucket/{number}.jpg\n" for number in range(4)))
    run = ("run", tree / "list.txt", *DEMO, "--out", tree / "out")
    none = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"), "")
    store.guard(True)
    try:
        said = warm(*run, code=4, env={**store.env, **none, "HOME": str(tree)}).stderr
    finally:
        store.guard(False)
    assert "Likely cause: no credentials for s3:// are set here: neither AWS_ACCESS_KEY_ID nor AWS_PROFILE" in said


def test_the_share_of_bad_rows_comes_first_above_one_in_twenty(warm: Cli, tree: Path) -> None:
    good = tree / "photos" / "shoes" / "0.jpg"
    for bad, first in ((1, "20 images: 19 ok, 1 missing"), (2, "9.5% of the images are bad")):
        names = [str(good)] * 19 + [str(tree / "none.jpg")] * bad
        (tree / "list.txt").write_text("\n".join(names))
        out = tree / f"out-{bad}"
        said = warm("run", tree / "list.txt", *DEMO, "--out", out).stdout
        assert said.splitlines()[0] == first
        assert "images/s" not in said  # it was too short
        assert "bound by" not in said
        warm("report", out)
        page = (out / "report.html").read_text()
        assert ("of the images are bad" in page) == (bad == 2)
        assert "Images a second</dt>" not in page
        line = warm("run", "--out", out, "--one-line").stdout
        assert line.startswith(f"{out}: {'' if bad == 1 else f'{first}; '}{19 + bad} images")
