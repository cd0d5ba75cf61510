"""Evaluation against the truth: every figure against scikit-learn's, or its plain definition; and what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from clipbatch.config import LabelSettings
from clipbatch.config.labels import load
from clipbatch.config.sampling import wilson
from clipbatch.tools.evaluate.statistics import BINS, Stratum, average_precision, bins, edge, stratified
from clipbatch.tools.evaluate.tally import halves
from tests.conftest import Cli, rows
from tests.support.corpus import make_folder

FILES, SHARD = 240, 64
CLASSES = ("airplane", "bird", "cat", "dog", "ship", "frog")
TAGS = """
[groups.thing]
labels = ["airplane", "bird", "cat", "dog", "ship", "frog"]
[groups.tag]
tags = {flies = ["a photo of a bird.", "a photo of a truck."], pet = ["a photo of a dog.", "a photo of a ship."]}
thresholds = {pet = 0.3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a manifest with a truth that is near what the model says, and one run with two groups."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_folder(folder / "in", FILES, seed=5, bad_fraction=0.1)
    (folder / "l.toml").write_text(TAGS)
    return folder


@pytest.fixture(scope="module")
def run(warm: Cli, folder: Path) -> Path:
    """A run whose input carries `kind`, a truth, and `tags`, one for tags; both partly wrong, partly missing."""
    names = sorted(str(path) for path in (folder / "in").rglob("*") if path.is_file())
    command = ("--labels", folder / "l.toml", "--model", "clipbatch-demo", "--shard-size", SHARD)
    (folder / "plain.txt").write_text("\n".join(names))
    warm("run", folder / "plain.txt", *command, "--out", folder / "first")
    rng = np.random.default_rng(0)
    lines = []
    for row in rows(folder / "first").to_pylist():
        truth = row["thing_label"] or "cat"
        truth = str(rng.choice([*CLASSES, "zebra"])) if rng.random() < 0.4 else truth
        tags = sorted({*(row["tag_labels"] or []), *(["pet"] if rng.random() < 0.3 else [])})
        lines.append({"uri": row["uri"], "kind": "" if rng.random() < 0.05 else truth, "tags": tags})
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    warm("run", folder / "m.jsonl", *command, "--embeddings", "--out", folder / "run")
    return folder / "run"


def _evaluation(warm: Cli, run: Path, *args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(warm("evaluate", run, "--no-page", "--json", *args).stdout)
    assert json.loads((run / "evaluation.json").read_text()) == found
    return found


def test_figures_of_one_label_an_image_are_their_definitions(warm: Cli, run: Path) -> None:
    found = _evaluation(warm, run, "--truth", "kind", "--group", "thing")
    table = [row for row in rows(run).to_pylist() if row["kind"]]
    good = [row for row in table if row["status"] == "ok" and row["kind"] in CLASSES]
    truth = np.array([row["kind"] for row in good])
    label = np.array([row["thing_label"] for row in good])
    scores = np.array([row["thing_scores"] for row in good])
    assert found["images"] == len(good)
    assert sum(found["truth"]["bad_images"].values()) == sum(row["status"] != "ok" for row in table) > 0
    zebras = sum(row["status"] == "ok" and row["kind"] == "zebra" for row in table)
    assert found["truth"]["not_a_label"] == {"zebra": zebras}
    assert found["truth"]["with_truth"] == len(table)
    assert found["accuracy"]["value"] == pytest.approx((truth == label).mean())
    numbers = np.array([CLASSES.index(name) for name in truth])
    assert found["top_5"]["value"] == pytest.approx(top_k_accuracy_score(numbers, scores, k=5, labels=range(6)))
    precisions, recalls, f1s, supports = precision_recall_fscore_support(
        truth, label, labels=CLASSES, zero_division=np.nan
    )
    for entry in found["per_label"]:
        at = CLASSES.index(entry["label"])
        predicted = (label == entry["label"]).sum()
        assert (entry["support"], entry["predicted"]) == (supports[at], predicted)
        assert entry["recall"] == pytest.approx(recalls[at])
        assert entry["precision"] == (pytest.approx(precisions[at]) if predicted else None)
        assert entry["f1"] == pytest.approx(f1s[at])
        average = average_precision_score(truth == entry["label"], scores[:, at])
        assert entry["average_precision"] == pytest.approx(average, abs=1e-3)
    assert found["mean_recall"] == pytest.approx(recalls.mean())
    best = scores.max(axis=1)
    place = np.minimum((best * 15).astype(int), 14)
    errors = [
        (place == at).mean() * abs((truth == label)[place == at].mean() - best[place == at].mean())
        for at in np.unique(place)
    ]
    assert found["reliability"]["expected_calibration_error"] == pytest.approx(sum(errors), abs=1e-6)
    for point in found["coverage"]:
        kept = best >= np.float32(point["threshold"]) * (1 - 1e-6)
        assert point["coverage"] == pytest.approx(kept.mean(), abs=1 / len(good) + 1e-9)
        assert point["precision"] == pytest.approx((truth == label)[kept].mean(), abs=0.02)
    confusion = pq.read_table(run / "confusion.parquet").to_pylist()
    counted = confusion_matrix(truth, label, labels=CLASSES)
    for entry in confusion:
        counted[CLASSES.index(entry["truth"]), CLASSES.index(entry["label"])] -= entry["images"]
    assert not counted.any()
    worst = found["confusions"][0]
    assert worst["images"] == max(e["images"] for e in confusion if e["truth"] != e["label"])
    for example in worst["examples"]:
        (row,) = (row for row in good if row["row_id"] == example["row_id"])
        assert (row["kind"], row["thing_label"]) == (worst["truth"], worst["label"])


def test_figures_of_several_labels_an_image_are_their_definitions(warm: Cli, run: Path) -> None:
    found = _evaluation(warm, run, "--truth", "tags", "--group", "tag")
    good = [row for row in rows(run).to_pylist() if row["status"] == "ok"]
    truth = np.array([[name in row["tags"] for name in ("flies", "pet")] for row in good])
    label = np.array([[name in row["tag_labels"] for name in ("flies", "pet")] for row in good])
    scores = np.array([row["tag_scores"] for row in good])
    assert found["exact_match"]["value"] == pytest.approx((truth == label).all(axis=1).mean())
    assert found["micro"]["precision"] == pytest.approx((truth & label).sum() / label.sum())
    for number, entry in enumerate(found["per_label"]):
        right = (truth & label)[:, number].sum()
        assert entry["recall"] == pytest.approx(right / truth[:, number].sum())
        assert entry["precision"] == pytest.approx(right / label[:, number].sum())
        ours = entry["average_precision"]
        assert ours == pytest.approx(average_precision_score(truth[:, number], scores[:, number]), abs=1e-3)
    counted = {(e["truth"], e["label"]): e["images"] for e in pq.read_table(run / "confusion.parquet").to_pylist()}
    assert counted["pet", "not pet"] == (truth & ~label)[:, 1].sum()
    assert sum(counted.values()) == 2 * len(good)


def test_what_only_top_k_does_not_tell_is_computed_from_embeddings_or_left_out(
    warm: Cli, run: Path, tmp_path: Path
) -> None:
    whole = _evaluation(warm, run, "--truth", "kind", "--group", "thing")
    warm("rescore", run, "--top-k", 2, "--embeddings", "--out", tmp_path / "with")
    warm("rescore", run, "--top-k", 2, "--out", tmp_path / "without")
    by_embeddings = _evaluation(warm, tmp_path / "with", "--truth", "kind", "--group", "thing")
    assert by_embeddings["scores_from"] == "embeddings"
    assert by_embeddings["top_5"] == whole["top_5"]
    assert by_embeddings["mean_average_precision"] == pytest.approx(whole["mean_average_precision"], abs=1e-3)
    bare = _evaluation(warm, tmp_path / "without", "--truth", "kind", "--group", "thing")
    why = "the run has kept the 2 best labels alone, and no embeddings"
    assert bare["left_out"] == {"average_precision": why, "top_5": why}
    assert "top_5" not in bare
    assert bare["accuracy"] == whole["accuracy"]


@pytest.mark.parametrize("key", ["uri", "row_id"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_with_either_key_tells_the_same_as_the_column(
    warm: Cli, run: Path, tmp_path: Path, key: str, kind: str
) -> None:
    expected = _evaluation(warm, run, "--truth", "kind", "--group", "thing")
    mapping = dict(zip(CLASSES, map(str, range(len(CLASSES))), strict=True))
    table = rows(run).select([key, "kind"]).rename_columns([key, "truth"])
    coded = [mapping.get(value, value) for value in table["truth"].to_pylist()]
    table = table.set_column(1, "truth", pa.array(coded)).take(np.random.default_rng(1).permutation(len(table)))
    path = tmp_path / f"truth.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([table.column_names, *(row.values() for row in table.to_pylist())])
            csv.writer(file).writerow([10**6 if key == "row_id" else "nowhere.jpg", "0"])
    (tmp_path / "map.json").write_text(json.dumps({number: name for name, number in mapping.items()}))
    found = _evaluation(warm, run, "--truth", path, "--group", "thing", "--mapping", tmp_path / "map.json")
    assert found["truth"]["not_in_run"] == (kind == "csv")
    for name in ("images", "accuracy", "per_label", "confusions", "top_5"):
        assert found[name] == expected[name]


def test_label_files_are_ranked_as_runs_of_their_own_would_be(warm: Cli, run: Path, tmp_path: Path) -> None:
    files = {
        "good": "\n".join(CLASSES),
        "wrong": "\n".join([*CLASSES[1:], CLASSES[0]]),
        "few": "\n".join(CLASSES[:3]),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_text(content)
    (tmp_path / "wrong.toml").write_text(
        "[labels]\n" + "\n".join(f'{a} = "a photo of a {b}."' for a, b in zip(CLASSES, CLASSES[::-1], strict=True))
    )
    given = [tmp_path / "few.txt", tmp_path / "wrong.toml", tmp_path / "good.txt"]
    args = ("--truth", "kind", "--group", "thing", "--labels", *given)
    with pytest.raises(AssertionError, match="there is no label group 'thing'"):
        _evaluation(warm, run, *args)
    warm("rescore", run, "--labels", given[2], "--embeddings", "--out", tmp_path / "plain")
    found = _evaluation(warm, tmp_path / "plain", "--truth", "kind", "--labels", *given)
    expected = {}
    for file in given:
        warm("rescore", run, "--labels", file, "--out", tmp_path / file.name.replace(".", "-"))
        alone = _evaluation(warm, tmp_path / file.name.replace(".", "-"), "--truth", "kind")
        expected[str(file)] = alone["accuracy"]
    assert {entry["labels"]: entry["accuracy"] for entry in found["ranking"]} == expected
    values = [entry["accuracy"]["value"] for entry in found["ranking"]]
    assert values == sorted(values, reverse=True)


def test_thresholds_are_chosen_on_one_half_and_tried_on_the_other(warm: Cli, run: Path, tmp_path: Path) -> None:
    args = ("--truth", "kind", "--group", "thing", "--thresholds", tmp_path / "t.toml", "--precision", 0.8)
    found = _evaluation(warm, run, *args)["thresholds"]
    good = [r for r in rows(run).to_pylist() if r["status"] == "ok" and r["kind"] in CLASSES]
    half = halves(np.array([row["row_id"] for row in good]))
    assert 0.35 < half.mean() < 0.65
    for entry in found["labels"]:
        for number, name in enumerate(("chosen_on", "tried_on")):
            mine = [row for row, own in zip(good, half, strict=True) if own == number]
            best = [row for row in mine if row["thing_label"] == entry["label"]]
            if entry["threshold"] is None:
                assert entry["label"] in found["without"]
                continue
            taken = [row for row in best if row["thing_score"] >= np.float32(entry["threshold"])]
            right = sum(row["kind"] == entry["label"] for row in taken)
            assert (entry[name]["images"], entry[name]["right"]) == (len(taken), right)
            if number == 0:
                assert right / len(taken) >= 0.8
    assert any(entry["threshold"] for entry in found["labels"])
    labels = load(LabelSettings(labels=str(tmp_path / "t.toml")))
    assert [group.name for group in labels.groups] == ["thing", "tag"]
    chosen = {e["label"]: e["threshold"] for e in found["labels"] if e["threshold"] is not None}
    assert labels.groups[0].thresholds == chosen
    before = load(LabelSettings(labels=str(run.parent / "l.toml")))
    assert labels.prompts == before.prompts
    assert labels.groups[1] == before.groups[1]
    by_f1 = _evaluation(warm, run, "--truth", "tags", "--group", "tag", "--thresholds", tmp_path / "f.toml")
    assert {entry["label"] for entry in by_f1["thresholds"]["labels"]} == {"flies", "pet"}


def test_a_shuffled_and_a_constant_truth_are_said(warm: Cli, run: Path, tmp_path: Path) -> None:
    table = rows(run)
    truth = np.array([value or "cat" for value in table["thing_label"].to_pylist()])
    for name, values in {"shuffled": np.random.default_rng(0).permutation(truth), "constant": ["cat"] * FILES}.items():
        pq.write_table(pa.table({"row_id": table["row_id"], "truth": pa.array(values)}), tmp_path / f"{name}.parquet")
    said = warm("evaluate", run, "--no-page", "--group", "thing", "--truth", tmp_path / "shuffled.parquet").stdout
    assert "the truth looks shuffled" in said
    said = warm("evaluate", run, "--no-page", "--group", "thing", "--truth", tmp_path / "constant.parquet").stdout
    assert "the truth is 'cat' for every image" in said
    assert "looks shuffled" not in warm("evaluate", run, "--no-page", "--group", "thing", "--truth", "kind").stdout


def test_the_page_has_a_section(warm: Cli, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    warm("evaluate", tmp_path / "run", "--truth", "kind", "--group", "thing")
    page = (tmp_path / "run" / "report.html").read_text()
    for part in ("expected calibration error", "taken for", "Coverage", 'href="#evaluation"'):
        assert part in page
    (tmp_path / "run" / "evaluation.json").write_text('{"fingerprint": 1}')
    warm("report", tmp_path / "run", "--examples", 0)
    assert 'id="evaluation"' not in (tmp_path / "run" / "report.html").read_text()
    warm("verify", tmp_path / "run")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,truth\na,cat\n", "no column row_id or uri"),
        ("uri,a,b\nx,1,2\n", "name the column with the truth `truth`"),
        ("row_id,truth\n1,cat\n1,dog\n", "1 appears more than once"),
        ("row_id,truth\nx,cat\n", "row_id has to be whole numbers"),
        ("row_id,truth\n1,\n", "no row of the run .* has a truth"),
        ("row_id,truth\n1,gnu\n", "no scored image has a truth that is a label: the truth has 'gnu'"),
        ("row_id,truth,truth\n1,cat,cat\n", "column 'truth' appears twice"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused_and_nothing_is_written(
    warm: Cli, run: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
    (run / "evaluation.json").unlink(missing_ok=True)
    error = warm("evaluate", run, "--truth", tmp_path / "t.csv", "--group", "thing", code=3).stderr
    assert re.search(message, error), error
    assert not (run / "evaluation.json").exists()


def test_columns_of_the_run_are_no_truth(warm: Cli, run: Path) -> None:
    for column in ("thing_label", "tag_labels", "status", "uri", "thing_score"):
        error = warm("evaluate", run, "--truth", column, "--group", "thing", code=3).stderr
        assert f"{column} is a column that the run itself has made, which would give 100%" in error
    assert "Did you mean" in warm("evaluate", run, "--truth", "kimd", "--group", "thing", code=3).stderr
    assert "choose one with --group (thing, tag)" in warm("evaluate", run, "--truth", "kind", code=3).stderr


def test_a_column_is_named_as_in_the_input_also_where_the_run_has_one_of_that_name(
    warm: Cli, run: Path, tmp_path: Path
) -> None:
    lines = [{"uri": row["uri"], "label": row["kind"]} for row in rows(run).to_pylist()[:40]]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    command = ("run", tmp_path / "m.jsonl", "--labels", ",".join(CLASSES), "--model", "clipbatch-demo")
    warm(*command, "--out", tmp_path / "out")
    good = [
        row for row in rows(tmp_path / "out").to_pylist() if row["status"] == "ok" and row["input_label"] in CLASSES
    ]
    found = _evaluation(warm, tmp_path / "out", "--truth", "label")
    assert found["accuracy"]["value"] == pytest.approx(np.mean([row["label"] == row["input_label"] for row in good]))
    assert 0 < found["accuracy"]["value"] < 1


@pytest.mark.parametrize("kind", ["softmax", "cosine"])
def test_average_precision_of_bins_is_that_of_the_scores(kind: str) -> None:
    rng = np.random.default_rng(2)
    for spread in (0.5, 4.0, 12.0):
        truth = rng.random(3000) < 0.1
        odds = rng.normal(truth * 2.0, spread)
        scores = (np.tanh(odds / 30) if kind == "cosine" else 1 / (1 + np.exp(-odds))).astype(np.float32)
        at = bins(scores, kind)
        counts = [np.bincount(some, minlength=BINS).astype(np.int64) for some in (at[truth], at)]
        assert average_precision(*counts) == pytest.approx(average_precision_score(truth, scores), abs=1e-3)
        assert all(
            edge(int(number), kind) <= score + abs(score) * 1e-5 + 1e-7
            for number, score in zip(at, scores, strict=True)
        )


def test_an_interval_of_strata_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    sizes, chances = np.array([4000, 3000, 2000, 1000]), np.array([0.99, 0.8, 0.6, 1.0])
    population = [rng.random(size) < chance for size, chance in zip(sizes, chances, strict=True)]
    true = sum(int(part.sum()) for part in population) / sizes.sum()
    held = 0
    for _ in range(400):
        drawn = [rng.choice(part, 50, replace=False) for part in population]
        strata = [
            Stratum(size=float(size), drawn=50, right=int(some.sum())) for size, some in zip(sizes, drawn, strict=True)
        ]
        _, low, high = stratified(strata)
        held += low <= true <= high
    assert 0.91 <= held / 400 <= 0.985


def test_wilsons_interval_is_the_known_one() -> None:
    low, high = wilson(5, 10)  # Brown, Cai and DasGupta 2001
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0
