"""The review queue: what is drawn and with which weight, every format, and the accuracy that its answers give."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipbatch.config.sampling import keys
from clipbatch.tools.evaluate.statistics import Stratum, stratified
from clipbatch.tools.review.queue import Draws, Kept, choose
from tests.conftest import Cli, rows
from tests.support.corpus import make_folder

FILES = 200
CLASSES = ("airplane", "bird", "cat", "dog", "ship")


@pytest.fixture(scope="module")
def run(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    make_folder(folder / "in", FILES, seed=8, bad_fraction=0.1)
    command = ("--labels", ",".join(CLASSES), "--model", "clipbatch-demo", "--shard-size", 64)
    warm("run", folder / "in", *command, "--out", folder / "run")
    return folder / "run"


def _queue(path: Path) -> list[dict[str, Any]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_each_stratum_is_drawn_as_asked_and_the_weights_add_up(warm: Cli, run: Path, tmp_path: Path) -> None:
    draws = ("--per-label", 5, "--doubtful", 12, "--random", 20, "--seed", 3)
    warm("review", run, "--out", tmp_path / "q.csv", *draws)
    queue = _queue(tmp_path / "q.csv")
    good = {row["row_id"]: row for row in rows(run).to_pylist() if row["status"] == "ok"}
    for entry in queue:
        row = good[int(entry["row_id"])]
        assert (entry["uri"], entry["label"], entry["truth"]) == (row["uri"], row["label"], "")
        best = sorted(zip(row["scores"], CLASSES, strict=True), key=lambda pair: -pair[0])
        assert (entry["second"], float(entry["second_score"])) == (best[1][1], pytest.approx(best[1][0]))
        assert float(entry["margin"]) == pytest.approx(row["margin"])
    assert len({entry["row_id"] for entry in queue}) == len(queue)
    doubtful = [int(entry["row_id"]) for entry in queue if entry["stratum"] == "(doubtful)"]
    assert set(doubtful) == set(sorted(good, key=lambda row: (good[row]["margin"], row))[:12])
    counts = Counter(row["label"] for row_id, row in good.items() if row_id not in doubtful)
    drawn = Counter(entry["stratum"] for entry in queue if entry["stratum"] != "(doubtful)")
    assert sum(drawn.values()) == sum(min(5, counts[name]) for name in counts) + 20 or min(counts.values()) < 5 + 20
    for entry in queue:
        name = entry["stratum"]
        expected = 1.0 if name == "(doubtful)" else counts[name] / drawn[name]
        assert float(entry["weight"]) == pytest.approx(expected)
    assert sum(float(entry["weight"]) for entry in queue) == pytest.approx(len(good))
    warm("review", run, "--out", tmp_path / "again.parquet", *draws)
    again = pq.read_table(tmp_path / "again.parquet")
    assert again["row_id"].to_pylist() == [int(entry["row_id"]) for entry in queue]
    warm("review", run, "--out", tmp_path / "other.csv", *draws[:-1], 4)
    assert [e["row_id"] for e in _queue(tmp_path / "other.csv")] != [e["row_id"] for e in queue]


def test_answers_give_the_accuracy_of_the_whole_run(warm: Cli, run: Path, tmp_path: Path) -> None:
    good = {row["row_id"]: row for row in rows(run).to_pylist() if row["status"] == "ok"}
    rng = np.random.default_rng(0)
    truth = {row: str(rng.choice(CLASSES)) if rng.random() < 0.4 else good[row]["label"] for row in good}
    true = np.mean([truth[row] == good[row]["label"] for row in good])
    warm("review", run, "--out", tmp_path / "q.csv", "--per-label", 10, "--doubtful", 20)
    queue = _queue(tmp_path / "q.csv")
    for entry in queue:
        entry["truth"] = truth[int(entry["row_id"])]
    _write(tmp_path / "a.csv", queue)
    found = json.loads(warm("evaluate", run, "--truth", tmp_path / "a.csv", "--no-page", "--json").stdout)
    by_hand = sum(float(e["weight"]) * (e["truth"] == good[int(e["row_id"])]["label"]) for e in queue) / len(good)
    assert found["estimate"]["value"] == pytest.approx(by_hand)
    assert found["estimate"]["low"] <= true <= found["estimate"]["high"]
    assert found["estimate"]["of"] == "the whole run"
    assert "coverage" in found["left_out"]
    queue[0]["truth"], queue[1]["truth"] = "", "zebra"
    _write(tmp_path / "b.csv", queue)
    found = json.loads(warm("evaluate", run, "--truth", tmp_path / "b.csv", "--no-page", "--json").stdout)
    assert found["estimate"]["unanswered"] == 1
    assert found["truth"]["not_a_label"] == {"zebra": 1}
    warm("review", run, "--out", tmp_path / "d.csv", "--doubtful", 20)
    doubtful = [entry | {"truth": "cat"} for entry in _queue(tmp_path / "d.csv")]
    _write(tmp_path / "d.csv", doubtful)
    said = warm("evaluate", run, "--truth", tmp_path / "d.csv", "--no-page").stdout
    assert f"accuracy of 20 of {len(good)} scored images" in said


def _write(path: Path, queue: list[dict[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, queue[0])
        writer.writeheader()
        writer.writerows(queue)


def test_label_studio_gets_tasks_and_its_export_is_a_truth(warm: Cli, run: Path, tmp_path: Path) -> None:
    assert "give --url-prefix" in warm("review", run, "--out", tmp_path / "t.json", "--random", 9, code=3).stderr
    prefix = ("--url-prefix", "https://host/in/")
    made = warm("review", run, "--out", tmp_path / "t.json", "--random", 30, *prefix)
    assert made.stdout.split() == [str(tmp_path / "t.json"), str(tmp_path / "t.xml")]
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert len(tasks) == 30
    for task in tasks:
        (result,) = task["predictions"][0]["result"]
        assert result["value"]["choices"] == [task["data"]["label"]]
        assert task["data"]["image"].startswith("https://host/in/")
    assert '<Choice value="airplane"/>' in (tmp_path / "t.xml").read_text()
    for task in tasks:  # as Label Studio exports it
        answer = {**task["predictions"][0]["result"][0], "value": {"choices": ["cat"]}}
        task["annotations"] = [{"result": [answer], "was_cancelled": False}]
    tasks[0]["annotations"][0]["was_cancelled"] = True
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = json.loads(warm("evaluate", run, "--truth", tmp_path / "export.json", "--no-page", "--json").stdout)
    cats = [task["data"]["label"] == "cat" for task in tasks[1:]]
    assert found["estimate"]["value"] == pytest.approx(np.mean(cats))
    assert found["estimate"]["unanswered"] == 1


def test_the_page_has_each_image_with_its_labels_and_loads_nothing(warm: Cli, run: Path, tmp_path: Path) -> None:
    warm("review", run, "--out", tmp_path / "q.html", "--per-label", 2)
    page = (tmp_path / "q.html").read_text()
    drawn = sum(min(2, count) for name, count in Counter(rows(run)["label"].to_pylist()).items() if name)
    assert page.count("data-row=") == page.count("data:image/webp;base64,") == drawn
    assert page.count('<option value="ship">') == drawn
    assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "say how many images to review"),
        (("--random", 1, "--out", "q.txt"), "name a file that ends in .csv, .parquet, .html, .json"),
        (("--random", 1, "--out", "no/where.csv"), "there is no folder"),
        (("--random", 1, "--group", "x"), "there is no label group 'x'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    warm: Cli, run: Path, tmp_path: Path, args: tuple[object, ...], message: str
) -> None:
    out = () if "--out" in args else ("--out", "q.csv")
    assert message in warm("review", run, *out, *args, code=3, cwd=tmp_path).stderr
    assert not list(tmp_path.iterdir())


def test_the_stated_interval_holds_the_accuracy_of_a_run_as_often_as_it_says() -> None:
    """The draws of 300 seeds from 10,000 images, answered by the truth: as in benchmarks/queue_coverage.py."""
    rng = np.random.default_rng(7)
    label = rng.integers(0, 10, 10_000)
    right = rng.random(10_000) < np.linspace(0.6, 0.98, 10)[label]
    row_ids, nothing = np.arange(10_000), np.zeros(10_000, np.int64)
    counts, held = np.bincount(label, minlength=11), 0
    for seed in range(300):
        draws = Draws(per_label=20, random=200, seed=seed)
        key = keys(row_ids, seed)
        by_label, uniform = Kept(most=220), Kept(most=200)
        by_label.add(label, key, row_ids, label)
        uniform.add(nothing, key, row_ids, label)
        chosen = choose(draws, counts, Kept(most=0), uniform, by_label)
        assert len(chosen) == 400
        assert sum(weight for _, weight in chosen.values()) == pytest.approx(10_000)
        _, low, high = stratified(_strata(chosen, right))
        held += low <= right.mean() <= high
    assert 0.91 <= held / 300 <= 0.985


def _strata(chosen: dict[int, tuple[int, float]], right: Any) -> list[Any]:
    names = {name for name, _ in chosen.values()}
    made = []
    for name in names:
        mine = [(row, weight) for row, (stratum, weight) in chosen.items() if stratum == name]
        made.append(
            Stratum(
                size=sum(weight for _, weight in mine),
                drawn=len(mine),
                right=sum(bool(right[row]) for row, _ in mine),
            )
        )
    return made
