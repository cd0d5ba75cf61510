"""An image against its own caption: open_clip's own pairwise cosine, the same bytes whoever does it, and null ones."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.config import models
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from tests.conftest import Cli, rewrite, rows
from tests.support.captions import mixed, pairwise, reason
from tests.support.corpus import make_folder, photo
from tests.support.families import write_model
from tests.support.serving import answer, serving

ROWS, IMAGES, SHARD = 300, 20, 64
EXACT = ("--reference", "--batch-size", 16, "--shard-size", SHARD)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(6)
    paths = [folder / f"{number:02}.jpg" for number in range(IMAGES)]
    for path in paths:
        photo(rng, 300, 260).save(path, quality=90)
    return paths


@pytest.fixture(scope="module")
def pairs(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pairs: captions as they are in the world, in bytes and in a struct, and three images that are bad."""
    names = [str(images[number % IMAGES]) for number in range(ROWS)]
    for number in (1, 100, 250):
        names[number] = f"{names[number]}.gone"
    captions = mixed(ROWS)
    texts = [None if text is None or reason(text) == "not UTF-8" else text.decode() for text in captions]
    table = {
        "image": pa.array(names),
        "text": pa.array(captions, pa.binary()),
        "meta": pa.array([None if text is None else {"caption": text} for text in texts]),
        "score": pa.array([f"score {text}" for text in texts]),  # the output needs this name where there are labels
        "input_score": pa.array(["4"] * ROWS),
    }
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture(scope="module")
def run(warm: Cli, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without labels, of the embedded model."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = ("--model", "clipbatch-demo", *EXACT, "--caption-column", "text", "--embeddings")
    warm("run", pairs, *options, "--out", out)
    return out


def _compared(table: pa.Table) -> np.ndarray:
    return np.flatnonzero(table["caption_similarity"].is_valid().to_numpy())


@pytest.mark.parametrize("family", ["clipbatch-demo", "ViT-B-32-quickgelu", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"])
def test_the_similarity_is_open_clips_pairwise_cosine(warm: Cli, pairs: Path, tmp_path: Path, family: str) -> None:
    name, loading = family, {}
    if family == "clipbatch-demo":
        open_clip.add_model_config(models.config_file(family))
        loading = {"pretrained": models.weights_file("embedded")}
    else:
        write_model(tmp_path, family, text_scale=4)
        name = f"local-dir:{tmp_path}"
    limit = 48 if "SigLIP" in family else ROWS
    warm("run", pairs, "--model", name, *EXACT, "--limit", limit, "--caption-column", "text", "--out", tmp_path / "out")
    table = rows(tmp_path / "out")
    captions, ok = mixed(ROWS)[:limit], [status == "ok" for status in table["status"].to_pylist()]
    at = _compared(table)
    assert at.tolist() == [row for row in range(limit) if ok[row] and reason(captions[row]) is None]
    paths = [Path(uri) for uri in table["uri"].to_pylist()]
    expected = pairwise(name, [paths[row] for row in at], [captions[row] or b"" for row in at], **loading)
    similarity = table["caption_similarity"].to_numpy()[at]
    assert np.abs(similarity - expected).max() <= 1e-5
    if family != "clipbatch-demo":  # to which all sentences look alike
        assert np.abs(np.roll(expected, 1) - expected).mean() > 1e-3


def test_a_caption_that_cannot_be_compared_is_null_and_counted_with_its_reason(warm: Cli, run: Path) -> None:
    table, captions = rows(run), mixed(ROWS)
    ok = np.array(table["status"].to_pylist()) == "ok"
    assert np.count_nonzero(~ok) == 3
    for name in ("caption_similarity", "caption_tokens", "caption_embedding"):
        assert _null(table[name]) == [
            not good or reason(text) is not None for good, text in zip(ok, captions, strict=True)
        ]
    counted = Counter(reason(text) or "compared" for text, good in zip(captions, ok, strict=True) if good)
    assert json.loads((run / "report.json").read_text())["captions"] == counted
    assert len(counted) == 4
    said = warm("run", "--out", run).stdout
    assert f"captions: {counted['compared']} compared, {sum(counted.values()) - counted['compared']} not: " in said
    assert max(table["caption_tokens"].drop_null().to_pylist()) > 400  # as they were before they were cut


def _null(column: pa.ChunkedArray) -> list[bool]:
    return column.is_null().to_pylist()


def test_saved_embeddings_have_the_similarity_between_them(run: Path) -> None:
    table = rows(run)
    at = _compared(table)
    image_BD, caption_BD = (
        np.array(table[name].take(at).to_pylist(), np.float64) for name in ("embedding", "caption_embedding")
    )
    cosines = (
        (image_BD * caption_BD).sum(axis=1) / np.linalg.norm(image_BD, axis=1) / np.linalg.norm(caption_BD, axis=1)
    )
    np.testing.assert_allclose(table["caption_similarity"].to_numpy()[at], cosines, atol=1e-4)


def test_two_workers_leave_the_bytes_of_one(cli: Cli, pairs: Path, run: Path, tmp_path: Path) -> None:
    options = ("--model", "clipbatch-demo", *EXACT, "--caption-column", "text", "--embeddings", "--workers", 2)
    cli("run", pairs, *options, "--out", tmp_path / "run")
    for part in (run / "parts").iterdir():
        assert (tmp_path / "run" / "parts" / part.name).read_bytes() == part.read_bytes(), part.name


def test_rows_that_are_done_again_get_the_bytes_that_a_whole_run_gives(
    warm: Cli, pairs: Path, images: list[Path], run: Path, tmp_path: Path
) -> None:
    table, again = pq.read_table(pairs), tmp_path / "again"
    shutil.copytree(run, again)
    for row in (1, 100, 250):
        gone = Path(table["image"][row].as_py())
        gone.write_bytes(images[row % IMAGES].read_bytes())
    try:
        options = ("--model", "clipbatch-demo", *EXACT, "--caption-column", "text", "--embeddings")
        warm("run", pairs, *options, "--out", tmp_path / "whole")
        warm("run", "--out", again, "--retry-bad")
        warm("verify", again)
        assert rows(again).equals(rows(tmp_path / "whole"))
        counts = json.loads((again / "report.json").read_text())["captions"]
        assert counts == json.loads((tmp_path / "whole" / "report.json").read_text())["captions"]
        assert sum(counts.values()) == ROWS
    finally:
        for row in (1, 100, 250):
            Path(table["image"][row].as_py()).unlink()


def test_a_rescoring_compares_the_saved_images_with_any_carried_column(warm: Cli, run: Path, tmp_path: Path) -> None:
    said = warm("rescore", run, "--caption-column", "meta:caption", "--out", tmp_path / "struct").stdout
    assert "captions: " in said
    again, table = rows(tmp_path / "struct"), rows(run)
    not_null = [reason(text) != "not UTF-8" for text in mixed(ROWS)]
    for name in ("caption_similarity", "caption_tokens"):
        assert again[name].filter(pa.array(not_null)).equals(table[name].filter(pa.array(not_null))), name
    warm("verify", tmp_path / "struct")
    assert _stages(warm, tmp_path / "struct", tmp_path) == ["recall", "captions", "score", "write"]
    said = warm("rescore", run, "--caption-column", "txet", "--out", tmp_path / "no", code=3).stderr
    assert "the run has carried no column 'txet', which --caption-column names: the columns are text, " in said
    assert not (tmp_path / "no").exists()
    warm("rescore", run, "--labels", "cat,dog", "--out", tmp_path / "labels")
    assert not {"caption_similarity", "embedding"} & set(rows(tmp_path / "labels").column_names)
    warm("rescore", run, "--labels", "cat,dog", "--caption-column", "score", "--out", tmp_path / "both")
    both = rows(tmp_path / "both")
    assert both["caption_similarity"].is_valid().equals(both["label"].is_valid())  # every row has such a text


def _stages(warm: Cli, run: Path, folder: Path) -> list[str]:
    """The stages whose times the page of `run` shows."""
    warm("report", run, "--examples", 0, "--out", folder / "stages.html")
    table = (folder / "stages.html").read_text().partition("How busy each stage was")[2].partition("</table>")[0]
    return re.findall(r'<th scope="row">(\w+)</th>', table)


def test_a_column_whose_name_the_output_needs_is_found_under_its_new_one(
    warm: Cli, pairs: Path, tmp_path: Path
) -> None:
    options = ("--model", "clipbatch-demo", *EXACT, "--limit", 32, "--labels", "cat,dog")
    warm(
        "run", pairs, *options, "--caption-column", "score", "--columns", "meta,input_score", "--out", tmp_path / "run"
    )
    table = rows(tmp_path / "run")
    assert {"label", "score", "input_input_score", "caption_similarity", "meta"} <= set(table.column_names)
    assert "text" not in table.column_names
    at = np.array(table["status"].to_pylist()) == "ok"
    assert _null(table["caption_similarity"]) == (~at).tolist()
    assert table["input_input_score"].to_pylist() == pq.read_table(pairs)["score"].to_pylist()[:32]
    assert max(table["caption_tokens"].drop_null().to_pylist()) > 3  # those of the column input_score have 3
    warm("verify", tmp_path / "run")
    said = warm("evaluate", tmp_path / "run", "--truth", "caption_similarity", code=3).stderr
    assert "--truth caption_similarity is a column that the run itself has made" in said
    said = warm("evaluate", tmp_path / "run", "--truth", "score", code=3).stderr
    assert "no scored image has a truth that is a label: the truth has 'score a photo of" in said


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            "txet",
            "no column 'txet', which --caption-column names: the columns are meta, input_input_score, input_score",
        ),
        ("image", "no column 'image', which --caption-column names"),  # it names the images
        ("meta", "holds no text: name another one, or COLUMN:FIELD"),
        ("meta:captoin", "column 'meta' has no field 'captoin': it has caption"),
        (":caption", "names no column"),
    ],
)
def test_a_column_without_captions_is_refused_before_anything_is_planned(
    warm: Cli, pairs: Path, tmp_path: Path, column: str, said: str
) -> None:
    command = ("run", pairs, "--model", "clipbatch-demo", "--caption-column", column, "--out", tmp_path / "out")
    assert said in warm(*command, code=3).stderr
    assert not (tmp_path / "out").exists()


def test_large_captions_wait_for_no_whole_row_group_of_the_manifest(warm: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    captions = ["a " * 2**19, "b " * 2**19]
    for text in captions:
        (tmp_path / text[0]).write_text(text)
    for number in range(150):
        (tmp_path / "in" / f"{number:03}.jpg").touch()
        os.link(tmp_path / captions[number % 2][0], tmp_path / "in" / f"{number:03}.txt")
    options = ("--model", "clipbatch-demo", "--caption-column", "txt", "--batch-size", 10, "--shard-size", 50)
    warm("plan", tmp_path / "in", *options, "--out", tmp_path / "run")
    (path,) = (tmp_path / "run" / "manifest").iterdir()
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [128, 22]
    run = RunDir(tmp_path / "run")
    manifest = Manifest(run, run.plan())
    for shard in range(3):
        table = manifest.rows(shard)
        assert table["row_id"].to_pylist() == list(range(50 * shard, 50 * shard + 50))
        assert table["txt"].to_pylist() == captions * 25


def test_json_of_all_kinds(warm: Cli, images: list[Path], tmp_path: Path) -> None:
    texts = [
        '{"caption": "a cat"}',
        '{"caption": "\\ud800"}',
        '{"caption": 3}',
        "[1]",
        '"a cat"',  # no field of that name either
        "null",
        '{"caption": null}',
        "{",
        "",
        "{}",
    ]
    lines = [json.dumps({"image": str(images[0]), "json": text}) for text in texts]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    options = ("--model", "clipbatch-demo", "--caption-column", "json:caption", "--batch-size", 4, "--shard-size", 8)
    warm("run", tmp_path / "list.jsonl", *options, "--out", tmp_path / "out")
    counts = json.loads((tmp_path / "out" / "report.json").read_text())["captions"]
    assert counts == {"compared": 1, "not UTF-8": 1, "not text": 3, "null": 3, "not JSON": 1, "empty": 1}
    assert _compared(rows(tmp_path / "out")).tolist() == [0]
    wrong = (*options, "--caption-column", "json:title", "--out", tmp_path / "wrong")
    said = warm("run", tmp_path / "list.jsonl", *wrong).stdout
    warning = "no image could be compared with its caption: --caption-column json:title may name the wrong column"
    assert f"warning: {warning}\n" in said


def test_verify_notices_a_caption_whose_similarity_is_gone(warm: Cli, run: Path, tmp_path: Path) -> None:
    from clipbatch.rundir import captions

    column = captions.CaptionColumn(name="text", field=None)
    table = rows(run)
    ok = pa.chunked_array([pa.array([status == "ok" for status in table["status"].to_pylist()])])
    assert captions.problem(table, ok, column) is None
    index = table.column_names.index("caption_similarity")
    for change in (lambda values: [None, *values[1:]], lambda values: [1.5, *values[1:]]):
        values = change(table["caption_similarity"].to_pylist())
        changed = table.set_column(index, "caption_similarity", pa.array(values, pa.float32()))
        assert "caption_similarity" in (captions.problem(changed, ok, column) or "")
    assert captions.problem(table.drop_columns(["caption_tokens"]), ok, column) == "it has no column caption_tokens"


def test_the_other_commands_know_captions(warm: Cli, run: Path, tmp_path: Path) -> None:
    warm("compact", run, "--out", tmp_path / "compact")
    warm("verify", tmp_path / "compact")
    warm("compact", run, "--flat", "--out", tmp_path / "files")
    (file,) = (tmp_path / "files").iterdir()
    assert pq.read_table(file).equals(rows(run))
    counts = json.loads((run / "report.json").read_text())["captions"]
    assert json.loads(pq.read_metadata(file).metadata[b"clipbatch.captions"]) == counts
    warm("report", run, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"{ROWS} images compared with their captions by" in page
    assert f"{counts['compared']} compared" in page
    assert page.count('data-label="captions"') == 12
    assert "Most similar" in page
    assert 'href="#labels"' not in page
    assert json.loads(warm("estimate", "--plan", run, "--json", code=None).stdout or "{}") == {}  # it is finished


def test_a_job_of_the_spool_is_compared_too(images: list[Path], tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with serving(spool, "--caption-column", "text", "--root", images[0].parent):
        lines = ["image,text", *(f"{path.name},a photo of thing {at % 4}" for at, path in enumerate(images))]
        (spool / ".pairs.csv").write_text("\n".join(lines))
        (spool / ".pairs.csv").rename(spool / "in" / "pairs.csv")
        assert answer(spool, "pairs.csv")["rows"] == IMAGES
    table = rows(spool / "runs" / "pairs.csv")
    assert table["caption_similarity"].null_count == 0
    assert table["caption_tokens"].to_pylist() == [7] * IMAGES
    assert table["label"].null_count == 0


def test_a_run_that_names_other_captions_is_another_run(warm: Cli, pairs: Path, run: Path, tmp_path: Path) -> None:
    options = ("--model", "clipbatch-demo", *EXACT, "--embeddings", "--out", run)
    assert "caption_column is" in warm("run", pairs, *options, "--caption-column", "meta:caption", code=3).stderr
    make_folder(tmp_path / "in", 8, seed=1, bad_fraction=0)
    warm("plan", tmp_path / "in", "--labels", "cat,dog", "--model", "clipbatch-demo", "--out", tmp_path / "plain")
    plan = json.loads((tmp_path / "plain" / "run.json").read_text())
    assert "caption_column" not in plan["identity"] | plan["settings"]
    rewrite(
        tmp_path / "plain" / "run.json", lambda plan: plan["identity"].update(labels=[], templates=[], threshold=[])
    )
    assert "it has no groups of labels" in warm("status", tmp_path / "plain", code=3).stderr
