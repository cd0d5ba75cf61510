"""Runs with heads: columns against numpy on the saved embeddings, after the files of the heads have gone."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, softmax

import clipbatch
from clipbatch import Classifier
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import rescore
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder
from tests.support.heads import DEMO_WIDTH, Numbers, random_layers, save_head

FILES, SHARD = 90, 32
ANIMALS = ["cat", "dog", "other", "unicorn"]


@pytest.fixture(scope="module")
def heads() -> dict[str, Numbers]:
    rng = np.random.default_rng(0)
    sizes = {"aesthetic": [DEMO_WIDTH, 64, 1], "animal": [DEMO_WIDTH, len(ANIMALS)], "flags": [DEMO_WIDTH, 2]}
    heads = {name: random_layers(rng, some) for name, some in sizes.items()}
    heads["animal"][0][1][-1] = -1000  # the bias of the unicorn, which no image gets
    return heads


def _options(folder: Path, heads: dict[str, Numbers]) -> list[object]:
    """Write the heads into `folder`; returns the options that name them."""
    folder.mkdir(exist_ok=True)
    more: dict[str, dict[str, Any]] = {
        "aesthetic": {"activation": "relu"},
        "animal": {"outputs": ANIMALS, "result": "classes"},
        "flags": {"outputs": ["Nude!", "blood"], "result": "probabilities"},
    }
    return [
        option
        for name, numbers in heads.items()
        for option in ("--head", f"{name}={save_head(folder / f'{name}.safetensors', numbers, **more[name])}")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    make_folder(folder / "in", FILES, seed=31, bad_fraction=0.2)
    return folder


@pytest.fixture(scope="module")
def run(warm: Cli, folder: Path, heads: dict[str, Numbers]) -> Path:
    """A run whose heads have gone since it was planned, and one of whose parts was made again after that."""
    command = ("run", folder / "in", *DEMO, *_options(folder / "h", heads), "--shard-size", SHARD, "--embeddings")
    warm("plan", *command[1:], "--out", folder / "run")
    shutil.rmtree(folder / "h")
    mistyped = [str(word).replace("flags.safetensors", "flag.safetensors") for word in command]
    said = warm(*mistyped, "--out", folder / "run", code=3).stderr
    assert "flag.safetensors: there is no such file, and this run was planned with flags=" in said
    warm(*command, "--out", folder / "run")  # the command that resumes it names files that have gone
    part = folder / "run" / "parts" / "part-00001.parquet"
    before = part.read_bytes()
    part.unlink()
    warm("run", "--out", folder / "run")
    assert part.read_bytes() == before
    return folder / "run"


def test_columns_are_what_numpy_computes_of_the_saved_embeddings(
    warm: Cli, run: Path, heads: dict[str, Numbers], tmp_path: Path
) -> None:
    table = rows(run)
    names = ["aesthetic", "animal_label", "animal_score", "animal_scores", "flags_nude_", "flags_blood"]
    start = table.column_names.index("scores") + 1
    assert table.column_names[start:] == [*names, "embedding"]
    ok = np.array([status == "ok" for status in table["status"].to_pylist()])
    assert 0 < ok.sum() < FILES
    for name in names:
        assert [value is not None for value in table[name].to_pylist()] == ok.tolist(), name
    good = table.filter(pa.array(ok))
    image_BD = np.array(good["embedding"].to_pylist(), np.float64)
    (first, bias), (second, offset) = heads["aesthetic"]
    expected = np.maximum(image_BD @ first.T + bias, 0) @ second.T + offset
    np.testing.assert_allclose(good["aesthetic"].to_numpy(), expected[:, 0], atol=1e-4)
    ((weight, bias),) = heads["animal"]
    scores = softmax(image_BD @ weight.T + bias, axis=1)
    np.testing.assert_allclose(np.array(good["animal_scores"].to_pylist()), scores, atol=1e-5)
    assert good["animal_label"].to_pylist() == [ANIMALS[at] for at in scores.argmax(axis=1)]
    np.testing.assert_allclose(good["animal_score"].to_numpy(), scores.max(axis=1), atol=1e-5)
    ((weight, bias),) = heads["flags"]
    flags = np.stack([good["flags_nude_"].to_numpy(), good["flags_blood"].to_numpy()], axis=1)
    np.testing.assert_allclose(flags, expit(image_BD @ weight.T + bias), atol=1e-5)
    footer = json.loads(table.schema.metadata[b"clipbatch.heads"])
    assert footer == {"aesthetic": ["score"], "animal": ANIMALS, "flags": ["Nude!", "blood"]}
    assert "every one there once, in order and whole" in warm("verify", run).stdout
    warm("compact", run, "--out", tmp_path / "few")  # a run like any other, with the heads
    assert "every one there once, in order and whole" in warm("verify", tmp_path / "few").stdout
    assert (tmp_path / "few" / "heads.safetensors").read_bytes() == (run / "heads.safetensors").read_bytes()
    assert rows(tmp_path / "few").equals(table)


def test_the_report_page_sums_up_each_head(warm: Cli, run: Path, tmp_path: Path) -> None:
    warm("report", run, "--examples", 0, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    section = page.partition('<section aria-labelledby="heads">')[2].partition("</section>")[0]
    found = [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    ]
    good = rows(run).to_pandas().query("status == 'ok'")
    by_class = good.groupby("animal_label", observed=True)["animal_score"].agg(["size", "mean"])
    for name, count, mean in by_class.itertuples():
        assert [name, "", str(count), f"{100 * count / len(good):.1f}%", f"{mean:.3f}"] in found
    assert "No image got 1 of the classes: <bdi>unicorn</bdi>." in section
    columns = {"score": "aesthetic", "Nude!": "flags_nude_", "blood": "flags_blood"}
    for output, column in columns.items():
        shown = next(row for row in found if row[0] == output)
        values = good[column].astype(float)
        assert shown[1] == str(len(good))
        assert [float(text) for text in shown[2:]] == pytest.approx(
            [values.mean(), values.min(), values.max()], abs=6e-4
        )
    assert re.findall(r"<h3><bdi>(.*?)</bdi></h3>", section) == ["aesthetic", "animal", "flags"]
    assert '<a href="#heads">Heads</a>' in page
    assert '<th scope="row">Heads</th><td><bdi>aesthetic</bdi>, <bdi>animal</bdi>, <bdi>flags</bdi></td>' in page


def test_a_rescoring_keeps_the_heads_to_the_bit_or_takes_others(
    warm: Cli, run: Path, heads: dict[str, Numbers], bucket: str, tmp_path: Path
) -> None:
    warm("rescore", run, "--labels", "cat,dog", "--embeddings", "--out", f"{bucket}/kept")
    warm("verify", f"{bucket}/kept")
    other = save_head(tmp_path / "o.safetensors", heads["aesthetic"], activation="relu")
    warm("rescore", f"{bucket}/kept", "--head", f"fine={other}", "--out", tmp_path / "fine")
    whole, fine = rows(run), rows(tmp_path / "fine")
    assert fine["fine"].to_pylist() == whole["aesthetic"].to_pylist()
    assert not {"animal_label", "flags_blood", "aesthetic"} & set(fine.column_names)
    other.unlink()
    warm("rescore", f"{bucket}/kept", "--head", f"fine={other}", "--out", tmp_path / "fine")
    mistyped = ("rescore", f"{bucket}/kept", "--head", f"fine={tmp_path / '0.safetensors'}", "--out", tmp_path / "fine")
    assert f"this run was planned with fine={other}" in warm(*mistyped, code=3).stderr
    warm("rescore", f"{bucket}/kept", "--out", tmp_path / "kept")
    kept = rows(tmp_path / "kept")
    for name in ("aesthetic", "animal_label", "animal_scores", "flags_nude_", "flags_blood"):
        assert kept[name].to_pylist() == whole[name].to_pylist(), name


def test_the_answers_of_a_classifier_have_the_columns_of_a_run(
    run: Path, folder: Path, heads: dict[str, Numbers], tmp_path: Path
) -> None:
    _options(tmp_path / "h", heads)
    files = {name: tmp_path / "h" / f"{name}.safetensors" for name in heads}
    whole = rows(run)
    paths = [folder / "in" / uri for uri in whole["uri"].to_pylist()]
    with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", head=files, embeddings=True) as classifier:
        table = classifier.classify(paths).table
    assert table.column_names == whole.column_names
    for name in ("aesthetic", "animal_score", "flags_blood"):
        ours, theirs = (np.array(some[name].to_pylist(), np.float64) for some in (table, whole))
        np.testing.assert_allclose(ours, theirs, atol=0.02)  # batches of another size, in bf16 where there is hardware
    with pytest.raises(InputError, match="there is one of that name already"):
        Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", head={"score": files["aesthetic"]})


@pytest.mark.parametrize(
    ("toml", "name", "said"),
    [
        ({}, "Score", "makes a column 'Score', and there is one of that name already"),
        ({}, "embedding", "makes a column 'embedding'"),
        ({}, "span", "makes a column 'span'"),
        ({"model": "ViT-B-32"}, "a", "it was trained for ViT-B-32, not for clipbatch-demo (embedded)"),
        ({"unit_length": False}, "a", "scales embeddings to unit length: make the head for these, or"),
        ({"layers": [8, 1]}, "a", "it takes embeddings of 8 numbers, and those of clipbatch-demo have 96"),
        ({"weights_sha256": "ab" * 32}, "a", "clipbatch-demo with other weights (sha256 abababababab..., here"),
        ({"quick_gelu": True}, "a", "clipbatch-demo with QuickGELU, and clipbatch-demo runs without it here"),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_the_remedy(
    warm: Cli, folder: Path, tmp_path: Path, toml: dict[str, Any], name: str, said: str
) -> None:
    numbers = random_layers(np.random.default_rng(1), toml.get("layers", [DEMO_WIDTH, 1]))
    head = f"{name}={save_head(tmp_path / 'a.safetensors', numbers, **toml)}"
    command = ("run", folder / "in", *DEMO, "--limit", 4, "--head", head, "--out", tmp_path / "out")
    error = warm(*command, code=3).stderr
    assert said in error
    assert not list((tmp_path / "out").glob("parts/*"))
    if "model" in toml or "unit_length" in toml or "quick_gelu" in toml or "weights_sha256" in toml:
        assert "--head-anyway" in error
        warm(*command, "--head-anyway")
        assert rows(tmp_path / "out")["a"].null_count < 4


def test_a_run_with_another_head_is_another_run_and_columns_of_the_input_step_aside(warm: Cli, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    first, second = (
        save_head(tmp_path / f"{name}.safetensors", random_layers(rng, [DEMO_WIDTH, 1])) for name in ("a", "b")
    )
    picture = Path(clipbatch.__file__).parent / "data" / "demo" / "images" / "cat-1.jpg"
    (tmp_path / "in.csv").write_text(f"uri,good\n{picture},7\n")
    command = ("run", tmp_path / "in.csv", *DEMO, "--out", tmp_path / "out", "--head")
    warm(*command, f"good={first}")
    assert rows(tmp_path / "out")["input_good"].to_pylist() == [7]
    assert "heads is " in warm(*command, f"good={second}", code=3).stderr
    warm("run", tmp_path / "in.csv", *DEMO, "--embeddings", "--head", f"good={first}", "--out", tmp_path / "e")
    other = {"head": (f"input_good={first}",)}
    with pytest.raises(InputError, match="carries a column 'input_good' of its input, and the new scores need"):
        rescore.plan(RunDir(tmp_path / "e"), RunDir(tmp_path / "r"), other, overwrite=False)


def test_a_run_with_heads_needs_neither_labels_nor_embeddings(
    warm: Cli, folder: Path, run: Path, heads: dict[str, Numbers], tmp_path: Path
) -> None:
    command = ("run", folder / "in", "--model", "clipbatch-demo", "--shard-size", SHARD)
    warm(*command, *_options(tmp_path / "h", heads), "--out", tmp_path / "out")
    table, whole = rows(tmp_path / "out"), rows(run)
    first = whole.column_names.index("aesthetic")
    assert table.column_names == [*whole.column_names[:7], *whole.column_names[first:-1]]
    for name in ("aesthetic", "animal_score", "flags_blood"):
        ours, theirs = (np.array(some[name].to_pylist(), np.float64) for some in (table, whole))
        np.testing.assert_allclose(ours, theirs, atol=0.05)  # of embeddings that were not rounded to float16
    assert "every one there once, in order and whole" in warm("verify", tmp_path / "out").stdout
    files = {name: tmp_path / "h" / f"{name}.safetensors" for name in heads}
    with Classifier(model="clipbatch-demo", device="cpu", head=files) as classifier:
        assert classifier.classify(sorted((folder / "in").rglob("*.jpg"))[0]).table.column_names == table.column_names
