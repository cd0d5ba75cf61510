"""The report's numbers are those of the parts, its pictures come from a process that may die, its size is bounded."""

import base64
import contextlib
import io
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipbatch.rundir.layout import RunDir
from clipbatch.tools.htmlreport import gather, thumbnails, thumbnails_main
from clipbatch.tools.htmlreport.sources import sources
from tests.conftest import DEMO, Cli, children_of, rows
from tests.support.corpus import make_folder, photo


@pytest.fixture(scope="module")
def run(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    make_folder(place / "images", 150, seed=31, bad_fraction=0.2)
    warm("run", place / "images", *DEMO, "--shard-size", 32, "--out", place / "out")
    return place / "out"


def gathered(out: Path, examples: int = 3) -> gather.Gathered:
    return gather.gather(sources([str(out)]), examples=examples)


def test_the_numbers_are_those_of_the_parts(run: Path) -> None:
    found, table = gathered(run), rows(run).to_pylist()
    assert found.rows == 150
    assert found.statuses == Counter(row["status"] for row in table)
    bad = [row for row in table if row["status"] != "ok"]
    for status, messages in found.messages.items():
        errors = Counter(row["error"] for row in bad if row["status"] == status)
        assert {text: message.count for text, message in messages.items()} == errors
    listed = sorted((image.row_id, image.uri, image.error) for images in found.bad.values() for image in images)
    assert listed == [(row["row_id"], row["uri"], row["error"]) for row in bad]
    assert sum(count for _, count in found.published) == 150

    (labels,) = found.sets.values()
    good = [row for row in table if row["status"] == "ok"]
    assert {facts.name: facts.images for facts in labels.labels if facts.images} == Counter(r["label"] for r in good)
    assert len(labels.labels) == 10
    margins = {row["row_id"]: float(np.diff(np.sort(np.float32(row["scores"]))[-2:])[0]) for row in good}
    for facts in labels.labels:
        own = [row for row in good if row["label"] == facts.name]
        best = sorted(own, key=lambda row: -row["score"])[: min(3, -(-len(own) // 2))]
        assert [example.row_id for example in facts.confident] == [row["row_id"] for row in best]
        taken = {example.row_id for example in facts.confident}
        worst = sorted(own, key=lambda row: margins[row["row_id"]])[:3]
        assert [e.row_id for e in facts.doubtful] == [row["row_id"] for row in worst if row["row_id"] not in taken]
        for example in facts.doubtful:
            assert example.margin == pytest.approx(margins[example.row_id], abs=1e-6)
    assert labels.margins.quantile(0.5) == pytest.approx(np.median(list(margins.values())), abs=0.02)
    assert labels.scores.total == labels.margins.total == len(good)


def test_top_k_gives_the_same_margins(warm: Cli, run: Path, tmp_path: Path) -> None:
    warm("run", run.parent / "images", *DEMO, "--shard-size", 32, "--top-k", 3, "--out", tmp_path / "top")
    (full,), (top,) = gathered(run).sets.values(), gathered(tmp_path / "top").sets.values()
    assert top.margins.bars() == full.margins.bars()
    for ours, theirs in zip(top.labels, full.labels, strict=True):
        assert [e.runner_up for e in ours.doubtful] == [e.runner_up for e in theirs.doubtful]


GROUPS = """
[groups.animal]
labels = ["cat", "dog", "horse"]
templates = ["a photo of a {}."]
[groups.vehicle]
labels = ["a ship!", "a ship?", "truck"]
templates = ["a photo of {}."]
threshold = 0.6
"""


def test_label_groups_are_reported_separately_and_images_below_a_threshold_have_no_label(
    warm: Cli, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "groups.toml").write_text(GROUPS)
    made = ("--labels", tmp_path / "groups.toml", "--model", "clipbatch-demo", "--layout", "wide")
    warm("run", run.parent / "images", *made, "--out", tmp_path / "out")
    found, table = gathered(tmp_path / "out"), rows(tmp_path / "out")
    good = table.filter(pc.equal(table["status"].cast("string"), "ok"))
    assert list(found.sets) == ["animal", "vehicle"]
    for name, facts in found.sets.items():
        labels = Counter(good[f"{name}_label"].to_pylist())
        assert facts.unlabelled == labels.pop(None, 0)
        assert {label.name: label.images for label in facts.labels if label.images} == labels
        scores = np.sort([good[c] for c in good.column_names if c.startswith(f"{name}_score_")], axis=0)
        assert facts.margins.quantile(0.5) == pytest.approx(np.median(scores[-1] - scores[-2]), abs=0.02)
        assert facts.scores.total == facts.margins.total == len(good)
    assert found.sets["vehicle"].unlabelled > 0
    warm("report", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{found.sets['vehicle'].unlabelled} images have no label" in page
    assert '<bdi class="muted">animal:</bdi>' in page


WORDS = pa.dictionary(pa.int32(), pa.string())


@pytest.fixture(scope="module")
def snaps(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planned run over a few images of one's own, in the order of their names; nothing is labelled."""
    place = tmp_path_factory.mktemp("snaps")
    folder, exif = place / "images", Image.Exif()
    folder.mkdir()
    exif[0x112], exif[0x10F] = 6, "SECRET CAMERA"
    photo(np.random.default_rng(0), 640, 480).save(folder / "0-turned.jpg", exif=exif)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 300, 3), np.uint8)).save(folder / "1-noise.png")
    Image.new("1", (9000, 9000)).save(folder / "2-vast.png")
    (folder / "3-broken.jpg").write_bytes(b"<html>")
    (folder / "4-gone.jpg").symlink_to("nowhere")
    Image.new("RGB", (8, 3000), "red").save(folder / "5-thin.png")
    Image.new("I;16", (40, 40), 40_000).save(folder / "6-deep.png")
    warm("plan", folder, *DEMO, "--out", place / "out")
    return place / "out"


def test_thumbnails_are_small_upright_and_without_metadata_or_say_why_not(snaps: Path) -> None:
    made = thumbnails.make(RunDir(snaps), range(7))
    pictures = {row: base64.b64decode(made[row].base64) for row in (0, 1, 5, 6)}
    for data in pictures.values():
        assert len(data) <= thumbnails_main.MAX_BYTES
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            assert max(image.size) <= thumbnails_main.SIDE
    with Image.open(io.BytesIO(pictures[0])) as image:
        assert image.size == (120, 160)
        assert b"SECRET" not in pictures[0]
        assert not image.getexif()
    with Image.open(io.BytesIO(pictures[6])) as image:
        assert 140 < image.convert("L").getpixel((20, 20)) < 170  # not white
    assert "too many to decode for a thumbnail" in made[2].why
    assert made[3].why == "not an image of a known kind"
    assert "missing" in made[4].why
    assert not any(made[row].base64 for row in (2, 3, 4))


def is_at_work(pid: int) -> bool:
    """Whether a thumbnailer has begun with its first row, for which it opens the manifest."""
    with contextlib.suppress(OSError):
        return any("/manifest/" in os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_a_thumbnailer_that_dies_or_hangs_costs_one_picture(
    run: Path, signum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "IMAGE_S", 5.0)
    monkeypatch.setattr(thumbnails, "ALL_S", 300.0)
    before, struck = set(children_of(os.getpid())), list[int]()

    def strike() -> None:
        deadline = time.monotonic() + 60
        while not struck and time.monotonic() < deadline:
            for child in set(children_of(os.getpid())) - before:
                if is_at_work(child):
                    os.kill(child, signum)
                    struck.append(child)
                    break
            time.sleep(0.005)

    good = [row["row_id"] for row in rows(run).to_pylist() if row["status"] == "ok"]
    thread = threading.Thread(target=strike)
    thread.start()
    made = thumbnails.make(RunDir(run), good)
    thread.join()
    assert struck
    assert not Path(f"/proc/{struck[0]}").exists()
    whys = [thumbnail.why for thumbnail in made.values() if not thumbnail.base64]
    assert whys == ["it took too long" if signum == signal.SIGSTOP else "opening it ended the process"]
    assert sorted(made) == good


@pytest.mark.parametrize(
    "answer",
    [None, 7, [], {}, {"webp": 1}, {"webp": "<script>"}, {"webp": "UklGR'onerror="}, {"webp": 'UklGRAAAA" onload="x'}],
)
def test_only_webp_in_base64_gets_into_a_page(answer: Any) -> None:
    assert thumbnails.thumbnail_of(answer).base64 == ""


def test_a_report_is_small_and_self_contained_also_for_an_unfinished_run(warm: Cli, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out)
    assert warm("report", out).stdout == f"{out / 'report.html'}\n"
    page = (out / "report.html").read_text()
    assert len(page) < 1_000_000
    assert "Finished" in page
    assert page.count("data:image/webp;base64,") > 20
    assert set(re.findall(r"\b(?:src|href|url|action)\s*[=(]\s*[\"']?([^\"'\s>)]{5})", page)) <= {"data:", "#main"} | {
        match[:5] for match in re.findall(r"#[a-z][\w-]+", page)
    }
    (out / "report.json").unlink()
    (out / "parts" / "part-00001.parquet").unlink()
    warm("report", out, "--out", tmp_path / "page.html", "--examples", 0)
    part = (tmp_path / "page.html").read_text()
    assert "Not finished: 118 of 150 images" in part
    assert "data:image" not in part.replace("img-src data:", "")
    assert "no examples were asked for" in part
    warm("verify", run)


def test_runs_that_cannot_be_reported_are_refused_and_nothing_is_written(warm: Cli, run: Path, tmp_path: Path) -> None:
    assert "is not a run directory" in warm("report", tmp_path, code=3).stderr
    out = tmp_path / "out"
    shutil.copytree(run, out)
    assert "is a folder" in warm("report", out, "--out", tmp_path, code=3).stderr
    assert "cannot write" in warm("report", out, "--out", tmp_path / "no" / "page.html", code=3).stderr
    warm("report", out, "--examples", -1, code=2)
    part = out / "parts" / "part-00002.parquet"
    part.write_bytes(part.read_bytes()[:2000])
    error = warm("report", out, code=3).stderr
    assert "part-00002.parquet is damaged" in error
    assert "--repair" in error
    shutil.rmtree(out / "parts")
    assert "has no finished part yet" in warm("report", out, code=3).stderr
    assert not list(out.glob("*report.html*"))


def test_the_page_stays_under_five_megabytes_whatever_the_run_holds(warm: Cli, tmp_path: Path) -> None:
    """Every status, names and errors of thousands of letters that swell when they are escaped, pictures of noise."""
    noise = np.random.default_rng(0).integers(84, 172, (160, 160, 3), np.uint8)  # a thumbnail of the largest size
    Image.fromarray(noise).save(tmp_path / "noise.png")
    long, count = f"{tmp_path}/{'./' * 1900}noise.png", 8_000
    (tmp_path / "list.txt").write_text(f"{long}\n" * count)
    labels = ",".join(f"{number}{'<' * 300}" for number in range(60))
    (tmp_path / "labels.txt").write_text(labels.replace(",", "\n"))
    made = ("--labels", tmp_path / "labels.txt", "--model", "clipbatch-demo")
    sizes = ("--shard-size", count, "--batch-size", 10, "--top-k", 1)
    warm("plan", tmp_path / "list.txt", *made, *sizes, "--out", tmp_path / "out")
    names, statuses = labels.split(","), ["ok", "missing", "empty", "corrupt", "truncated", "timeout", "crashed"]
    status = [statuses[row % 7] for row in range(count)]
    ok = np.array([entry == "ok" for entry in status])
    scores = np.random.default_rng(0).random(count).astype(np.float32)
    table = pa.table(
        {
            "row_id": np.arange(count),
            "uri": [long] * count,
            "status": pa.array(status, WORDS),
            "error": [None if good else f"{row}{chr(0xE0001) * 2000}" for row, good in enumerate(ok)],
            "label": pa.array([names[row % 60] if good else None for row, good in enumerate(ok)], WORDS),
            "score": pa.array(scores, mask=~ok),
            "top": [[{"label": "", "score": 1.0}] if good else None for good in ok],
        }
    )
    pq.write_table(table, tmp_path / "out" / "parts" / "part-00000.parquet")
    warm("report", tmp_path / "out", "--examples", 50)
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert 3_000_000 < len(page) <= 5_000_000
    assert page.count(b"<tr data-item") < 1000
    assert b"left out, to keep this file small" in page


def test_a_run_in_a_store_gets_its_page_there(warm: Cli, run: Path, s3: pafs.S3FileSystem, bucket: str) -> None:
    pafs.copy_files(str(run), f"{bucket}/reported".removeprefix("s3://"), destination_filesystem=s3)
    assert warm("report", f"{bucket}/reported").stdout == f"{bucket}/reported/report.html\n"
    with s3.open_input_file(f"{bucket}/reported/report.html".removeprefix("s3://")) as file:
        page = file.read().decode()
    assert "<bdi>reported</bdi></h1>" in page
    assert page.count("data:image/webp;base64,") > 20
