"""New labels from saved embeddings: the same scores as of a run with these labels, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipbatch
from clipbatch.errors import InputError, OtherRunError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import rescore
from clipbatch.storage.atomic import file_sha256
from tests.conftest import DEMO, Cli, rewrite, rows
from tests.support.corpus import make_folder

FILES, SHARD = 150, 32
# Embeddings are saved as float16, so scores move a little: by less than this where softmax has a scale of 100.
NEAR = 2e-3
# Where `run.json` has a setting that decides what rows are.
IN_BOTH = ("settings", "identity")
GROUPS = """
[groups.thing]
labels = ["airplane", "cat", "ship"]
threshold = 0.8
[groups.alive]
labels = {yes = ["a photo of a bird.", "a photo of a dog."], no = "a photo of a ship."}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_folder(folder, FILES, seed=21, bad_fraction=0.2)
    return folder


@pytest.fixture(scope="module")
def source(warm: Cli, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with embeddings whose images are gone."""
    out = tmp_path_factory.mktemp("source") / "run"
    warm("run", folder, *DEMO, "--shard-size", SHARD, "--embeddings", "--out", out)
    return out


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "groups.toml"
    path.write_text(GROUPS)
    return path


@pytest.fixture(scope="module")
def grouped(warm: Cli, source: Path, labels: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run scored again in two groups, while its images are out of reach."""
    out = tmp_path_factory.mktemp("grouped") / "run"
    folder.rename(folder.with_name("away"))
    try:
        warm("rescore", source, "--labels", labels, "--embeddings", "--out", out)
    finally:
        folder.with_name("away").rename(folder)
    return out


def _parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").iterdir()}


def test_the_scores_are_those_of_a_run_with_the_new_labels(
    warm: Cli, folder: Path, labels: Path, grouped: Path, tmp_path: Path
) -> None:
    fresh = ("run", folder, "--labels", labels, "--model", "clipbatch-demo", "--shard-size", SHARD, "--embeddings")
    warm(*fresh, "--out", tmp_path / "fresh")
    expected, found = rows(tmp_path / "fresh"), rows(grouped)
    assert found.schema.equals(expected.schema, check_metadata=False)
    for name in ("row_id", "uri", "status", "error", "width", "height", "decoder", "embedding"):
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    for name in ("thing_scores", "alive_scores"):
        for ours, theirs in zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True):
            assert (ours or []) == pytest.approx(theirs or [], abs=NEAR)
    sure = np.abs(np.nan_to_num(expected["thing_score"].to_numpy()) - 0.8) > NEAR
    assert found["thing_label"].filter(pa.array(sure)).to_pylist() == (
        expected["thing_label"].filter(pa.array(sure)).to_pylist()
    )
    assert None in found["thing_label"].to_pylist()


def test_a_rescoring_is_a_run_directory_like_any_other(warm: Cli, source: Path, grouped: Path) -> None:
    assert f"{FILES} rows in {-(-FILES // SHARD)} parts" in warm("verify", grouped).stdout
    assert json.loads(warm("status", grouped, "--json").stdout)["complete"] is True
    report = json.loads((grouped / "report.json").read_text())
    assert report["status"] == json.loads((source / "report.json").read_text())["status"]
    assert set(report["this_run"]["stages"]) == {"recall", "score", "write"}
    assert _parts(grouped).keys() == _parts(source).keys()
    plan = RunDir(grouped).plan()
    assert plan.identity["rescored"] == RunDir(source).fingerprint() != RunDir(grouped).fingerprint()
    assert plan.manifest_sha256 == RunDir(source).plan().manifest_sha256


def test_missing_parts_are_made_again_with_the_same_bytes(
    warm: Cli, source: Path, labels: Path, grouped: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", _parts(grouped)
    shutil.copytree(grouped, out)
    (out / "parts" / "part-00001.parquet").unlink()
    warm("rescore", source, "--labels", labels, "--embeddings", "--out", out)
    assert _parts(out) == whole
    (out / "parts" / "part-00003.parquet").write_bytes(b"PAR1")
    warm("run", "--out", out, "--repair")
    assert _parts(out) == whole


def test_both_runs_may_be_in_a_store(
    warm: Cli, source: Path, labels: Path, grouped: Path, bucket: str, tmp_path: Path
) -> None:
    warm("rescore", source, "--labels", "cat,dog", "--embeddings", "--out", f"{bucket}/there")
    warm("verify", f"{bucket}/there")
    warm("rescore", f"{bucket}/there", "--labels", labels, "--embeddings", "--out", tmp_path / "back")
    warm("verify", tmp_path / "back")
    assert rows(tmp_path / "back").equals(rows(grouped))  # embeddings were copied to the bit


def test_the_same_labels_give_the_same_scores_in_another_layout(warm: Cli, source: Path, tmp_path: Path) -> None:
    warm("rescore", source, "--layout", "wide", "--scores-dtype", "float16", "--out", tmp_path / "wide")
    warm("rescore", tmp_path / "wide", "--out", tmp_path / "again", code=3)  # it has no embeddings itself
    warm("rescore", source, "--top-k", 2, "--score", "cosine", "--out", tmp_path / "top")
    names = json.loads(rows(source).schema.metadata[b"clipbatch.labels"])
    runs = [rows(run).to_pylist() for run in (source, tmp_path / "wide", tmp_path / "top")]
    for row, wide, top in zip(*runs, strict=True):
        scores = row["scores"] or []
        assert [wide[f"score_{name}"] for name in names if scores] == pytest.approx(scores, abs=NEAR)
        assert "embedding" not in wide
        assert [entry["label"] for entry in top["top"] or ()][:1] == [row["label"]][: len(scores)]
        assert all(-1 <= entry["score"] <= 1 for entry in top["top"] or ())


def test_rows_that_the_source_has_repaired_are_rescored_on_request(
    warm: Cli, folder: Path, labels: Path, tmp_path: Path
) -> None:
    some = sorted(path for path in folder.rglob("*.jpg"))[:20]
    for number, path in enumerate(some):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "in" / f"{number}.jpg")
    good = tmp_path / "in" / "3.jpg"
    shutil.copy(Path(clipbatch.__file__).parent / "data" / "demo" / "images" / "cat-1.jpg", good)
    good.rename(tmp_path / "aside")
    good.touch()
    warm("run", tmp_path / "in", *DEMO, "--embeddings", "--out", tmp_path / "run")
    warm("rescore", tmp_path / "run", "--labels", labels, "--out", tmp_path / "new")
    (tmp_path / "aside").replace(good)
    warm("run", "--out", tmp_path / "run", "--retry-bad")
    warm("run", "--out", tmp_path / "new", "--retry-bad")
    status = {Path(row["uri"]).name: row["status"] for row in rows(tmp_path / "new").to_pylist()}
    assert status["3.jpg"] == "ok"
    assert rows(tmp_path / "new")["status"].to_pylist() == rows(tmp_path / "run")["status"].to_pylist()
    warm("verify", tmp_path / "new")


def _plan(source: Path, out: Path, **given: object) -> None:
    rescore.plan(RunDir(source), RunDir(out), given, overwrite=False)


@pytest.mark.parametrize(
    ("spoil", "given", "said"),
    [
        ("", {"labels": "a"}, "--labels 'a': there is no such file"),
        ("", {"labels": ",".join(f"l{n}" for n in range(2001)), "layout": "wide"}, "use --layout list"),
        ("", {"template": ["a {}"]}, "--template is for labels"),
        ("no embeddings", {"labels": "a,b"}, "has no embeddings to score: label the images again with --embeddings"),
        ("unfinished", {"labels": "a,b"}, r"is not finished \(4 of 5 parts\): clipbatch run --out .* first"),
        ("manifest", {"labels": "a,b"}, "the manifest .* has changed since its run was planned"),
        ("no manifest", {"labels": "a,b"}, "cannot read the manifest .*restore it"),
    ],
)
def test_runs_that_cannot_be_rescored_are_refused_and_nothing_is_written(
    source: Path, tmp_path: Path, spoil: str, given: dict[str, object], said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(source, run)
    (manifest,) = (run / "manifest").iterdir()
    if spoil == "no embeddings":
        rewrite(run / "run.json", lambda plan: [plan[where].update(embeddings=False) for where in IN_BOTH])
    elif spoil == "unfinished":
        (run / "parts" / "part-00002.parquet").unlink()
    elif spoil == "manifest":
        manifest.write_bytes(manifest.read_bytes()[:-1] + b"?")
    elif spoil == "no manifest":
        manifest.unlink()
    with pytest.raises(InputError, match=said):
        _plan(run, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_or_of_the_source_is_refused(source: Path, grouped: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is the run whose embeddings are scored"):
        _plan(source, source.parent / "." / "run", labels="a,b")
    with pytest.raises(OtherRunError, match="belongs to a run with other settings"):
        _plan(source, grouped, labels="a,b")
    shutil.copytree(source, tmp_path / "moved")
    _plan(tmp_path / "moved", tmp_path / "out", labels="cat,dog")
    _plan(source, tmp_path / "out", labels="cat, dog")  # the same run, wherever it lies
    with pytest.raises(OtherRunError, match="labels is"):
        _plan(source, tmp_path / "out", labels="dog,cat")


def test_a_carried_column_that_the_new_scores_would_hide_is_refused(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(source, run)
    (manifest,) = (run / "manifest").iterdir()
    table = pq.read_table(manifest)
    manifest.unlink()
    pq.write_table(table.append_column("Kind_Label", pa.nulls(len(table), pa.string())), manifest)
    rewrite(run / "run.json", lambda plan: plan.update(manifest_sha256={manifest.name: file_sha256(manifest)}))
    (tmp_path / "g.toml").write_text('[groups.kind]\nlabels = ["a", "b"]')
    with pytest.raises(InputError, match=r"a column 'Kind_Label' of its input.* rename the label group"):
        _plan(run, tmp_path / "out", labels=str(tmp_path / "g.toml"))


@pytest.mark.parametrize("damage", ["flipped", "gone", "another model"])
def test_a_damaged_source_is_refused_with_the_remedy(warm: Cli, source: Path, tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(source, run)
    if damage == "another model":
        rewrite(run / "model.json", lambda facts: facts.update(weights_sha256="0" * 64))
        said = "are not those that made the embeddings"
    else:
        said = f"{run / 'parts' / 'part-00002.parquet'} is damaged: "
    command = ("rescore", run, "--labels", "cat,ship", "--out", tmp_path / "out")
    if damage == "flipped":
        data = bytearray((run / "parts" / "part-00002.parquet").read_bytes())
        data[len(data) // 3] ^= 1
        (run / "parts" / "part-00002.parquet").write_bytes(data)
    elif damage == "gone":
        _plan(run, tmp_path / "out", labels="cat,ship")
        (run / "parts" / "part-00002.parquet").unlink()
        command = ("run", "--out", tmp_path / "out")
    error = warm(*command, code=3).stderr
    assert said in error
    assert damage == "another model" or f"clipbatch run --out {run} --repair" in error
    assert not (tmp_path / "out" / "parts" / "part-00002.parquet").exists()
