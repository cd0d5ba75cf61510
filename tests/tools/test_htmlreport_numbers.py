"""The numbers of the report page, for values with known results."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipbatch.rundir.captions import CaptionColumn
from clipbatch.rundir.schema import SIMILARITY
from clipbatch.runs.increments import runs_in
from clipbatch.tools.htmlreport import captions, gather, rankings, series, template
from clipbatch.tools.htmlreport.rankings import Example, Ranking
from clipbatch.tools.htmlreport.sources import sources
from clipbatch.workers import words
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder, photo

WORDS = pa.dictionary(pa.int32(), pa.string())


def batch(**more: Any) -> pa.RecordBatch:
    """Three rows with labels a, b, a out of a, b, c; `more` columns beside."""
    label, score = pa.array(["a", "b", "a"], WORDS), pa.array([0.7, 0.5, 0.4], pa.float32())
    return pa.RecordBatch.from_pydict({"label": label, "score": score, **more})


SCORES = np.float32([[0.7, 0.2, 0.1], [0.3, 0.5, 0.2], [0.4, 0.25, 0.35]])


@pytest.mark.parametrize("layout", ["list", "half", "top", "wide"])
def test_every_layout_of_scores_gives_the_second_best(layout: str) -> None:
    lists: dict[str, Any] = {
        "list": {"scores": pa.FixedSizeListArray.from_arrays(pa.array(SCORES.ravel()), 3)},
        "half": {"scores": pa.array(list(SCORES.astype(np.float16)), pa.list_(pa.float16(), 3))},
        "wide": {f"score_{label}": pa.array(SCORES[:, number]) for number, label in enumerate("abc")},
        "top": {
            "top": pa.array(
                [
                    [{"label": "abc"[n], "score": scores[n]} for n in np.argsort(-scores)[:2]]
                    for scores in SCORES.astype(float)
                ]
            )
        },
    }
    made = batch(**lists[layout])
    found = rankings.ScoreColumns(
        name="", label="label", score="score", others=tuple(lists[layout]), labels=("a", "b", "c")
    )
    second = rankings.runners_up(found, made)
    assert second
    assert [second.names[index] for index in second.index_B] == ["b", "a", "c"]
    np.testing.assert_allclose(second.margin_B, [0.5, 0.2, 0.05], atol=1e-3)


def test_a_histogram_counts_every_value_and_has_quantiles_to_a_step() -> None:
    values = np.random.default_rng(0).beta(5, 2, 30_000).astype(np.float32)
    values[:3] = [0.0, 1.0, np.nan]
    made = series.Histogram()
    for piece in np.array_split(values, 7):
        made.add(piece)
    assert (made.total, made.not_a_number) == (29_999, 1)
    for share in (0.05, 0.5, 0.95):
        assert made.quantile(share) == pytest.approx(np.nanquantile(values, share), abs=2 * series.STEP)
    for edge in range(0, 10_001, 5):  # a page shows a value as it shows its quantile: 0.11952 is 0.120
        few = series.Histogram()
        few.add(np.float32([edge / 10_000 + 2e-5]))
        assert template.score(few.quantile(0.5)) == template.score(edge / 10_000 + (edge >= 10) * 2e-5)
    bars = made.bars()
    assert sum(bar.count for bar in bars) == 29_999
    assert (bars[0].low, bars[-1].high) == (0.0, 1.0)
    valid = values[~np.isnan(values)].astype(float) + 1e-7  # what a float32 may lie below its decimals
    for bar in bars[:-1]:
        assert bar.count == ((valid >= bar.low) & (valid < bar.high)).sum()


def test_a_histogram_goes_from_0_to_1_unless_its_values_do_not_or_it_is_asked_to_zoom() -> None:
    made = series.Histogram()
    made.add(np.float32([0.1, 0.11, 0.12]))
    assert (made.bars()[0].low, made.bars()[-1].high) == (0.0, 1.0)
    assert made.bars(zoom=True)[-1].high < 0.2
    made.add(np.float32([-0.5]))
    assert made.bars()[0].low <= -0.5


@pytest.mark.parametrize("values", [[0.25], [-0.125, 0.31], [1e-6, 2e-6], [1.0, 1.0], [0.0], [-1.0, 1.0], [2.0, 0.1]])
def test_a_histogram_of_few_or_odd_values_loses_none(values: list[float]) -> None:
    made = series.Histogram()
    made.add(np.float32(values))
    bars = made.bars()
    assert sum(bar.count for bar in bars) == len(values)
    assert all(a.high == b.low for a, b in itertools.pairwise(bars))
    assert len(bars) <= 45


def test_a_ranking_equals_a_stable_full_sort() -> None:
    rng = np.random.default_rng(1)
    label, key = rng.integers(0, 7, 5000), rng.integers(0, 50, 5000).astype(np.float32)
    ranking, made = Ranking(4), list[int]()

    def example(row: int) -> Example:
        made.append(row)
        return Example(row_id=row, uri="", score=0.0, margin=None, runner_up=None)

    for piece in np.array_split(np.arange(5000), 13):
        ranking.offer(label[piece], key[piece], lambda slot, piece=piece: example(int(piece[slot])))
    for number in range(7):
        own = np.flatnonzero(label == number)
        assert [kept.row_id for kept in ranking.of(number)] == own[np.argsort(-key[own], kind="stable")][:4].tolist()
    assert len(made) < 1000
    assert ranking.of(7) == []


def test_throughput_is_rows_between_publications_and_a_pause_is_no_slow_work() -> None:
    steady = [(1000.0 + 60 * number, 600) for number in range(20)]
    later = [(at + 40_000, rows) for at, rows in steady]
    made = series.steps([*later, *steady])
    assert [step.images_per_s for step in made] == pytest.approx([10.0] * len(made))
    assert sum(step.seconds for step in made) == pytest.approx(2 * 19 * 60)
    assert [round(step.pause_s) for step in made if step.pause_s] == [40_000 - 19 * 60]
    assert made[-1].worked_s + made[-1].seconds == pytest.approx(2 * 19 * 60)
    assert series.steps(steady[:2]) == []
    assert series.steps([(5.0, 10)] * 9) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\x00\x1b[2J\x7f\x85", r"a\nb\x00\x1b[2J\x7f\x85"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("a\u2028b\u200b\ufeff", r"a\u2028b\u200b\ufeff"),
        ("صورة 写真 👩‍👧 é", "صورة 写真 👩‍👧 é"),
        ("<b>&amp;", "<b>&amp;"),
    ],
)
def test_invisible_characters_are_escaped_and_others_are_not(text: str, said: str) -> None:
    assert template.shown(text) == said
    assert template.shown(text).encode()


def test_long_names_and_durations_are_shortened() -> None:
    assert [template.score(s) for s in (0.98765, 1, 0.00034, 6e-8, 0, -0.25)] == [
        "0.988",
        "1.000",
        "0.00034",
        "0.000",
        "0.000",
        "-0.250",
    ]
    assert template.shown("a" * 150 + "b" * 150, 20) == "a" * 10 + " … " + "b" * 10
    assert [words.seconds(s) for s in (0.25, 240, 3599, 7260, 200_000)] == [
        "0.25 s",
        "4 min",
        "59 min 59 s",
        "2 h 1 min",
        "2 d 7 h",
    ]
    assert [words.share(*of) for of in ((1, 100_000), (99_999, 100_000), (1, 1), (0, 0))] == [
        "under 0.1%",
        "over 99.9%",
        "100%",
        "0%",
    ]
    assert template.common_folder(["/a/b/c.jpg", "/a/b/d/e.jpg", "/a/bc.jpg"]) == "/a/"
    assert (
        template.common_folder(["/a.jpg", "/b/c.jpg"])
        == template.common_folder(["x.jpg"])
        == template.common_folder([])
        == ""
    )


def test_the_page_of_a_dataset_is_about_the_latest_row_of_each_image(warm: Cli, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "dataset"
    make_folder(folder, 30, seed=8, bad_fraction=0.2)
    night = ("run", folder, *DEMO, "--incremental", "--out", out)
    warm(*night)
    files, rng = sorted(path for path in folder.rglob("*") if path.is_file()), np.random.default_rng(3)
    for path in files[::4]:
        photo(rng, 80, 60).save(path, "JPEG")
    (folder / "new.jpg").write_bytes(b"no image")
    warm(*night)
    latest: dict[str, dict[str, Any]] = {}
    for increment in sorted(path for path in out.iterdir() if path.is_dir()):
        latest |= {row["uri"]: row | {"increment": increment.name} for row in rows(increment).to_pylist()}
    found = gather.gather(sources(runs_in(str(out))), examples=3)
    assert found.rows == len(latest) == len(files) + 1
    assert found.statuses == Counter(row["status"] for row in latest.values())
    (labels,) = found.sets.values()
    counts = Counter(row["label"] for row in latest.values() if row["status"] == "ok")
    assert {facts.name: facts.images for facts in labels.labels if facts.images} == counts
    warm("report", out)
    page = (out / "report.html").read_text()
    assert "The latest row of each image in 2 increments." in page
    assert "No picture" not in page
    bad = [row for row in latest.values() if row["status"] != "ok"]
    assert len({row["increment"] for row in bad}) == 2
    for row in bad:
        assert f'<td class="num">{row["increment"]}: {row["row_id"]}</td>' in page
    assert "nothing is new or changed" in warm(*night).stdout  # the page is no stranger in the dataset


def test_a_page_shows_a_caption_as_the_model_reads_it_and_says_where_it_is_cut() -> None:
    texts = ["a photo\n", " two\r\n\tlines ", "word " * 300, "x" * 200, "y" * 201]
    column = CaptionColumn(name="txt", field=None)
    facts = captions.CaptionFacts(column, 10)
    similarity = pa.array(np.linspace(0.9, 0.1, len(texts)), pa.float32())
    columns = {"row_id": range(5), "uri": [f"{at}.jpg" for at in range(5)], "txt": texts, "status": ["ok"] * 5}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    facts.add(pa.record_batch(arrays | {SIMILARITY: similarity}))
    shown = {pair.row_id: pair.caption for pair in (*facts.highest, *facts.lowest) if isinstance(pair, captions.Pair)}
    assert [shown[0], shown[1], shown[3]] == ["a photo", "two lines", "x" * 200]
    assert shown[2] == " ".join([*["word"] * 39, "wor", "…"])
    assert shown[4] == "y" * 198 + " …"
    assert all(len(text) <= 200 for text in shown.values())
