"""The Python API: the answers of a run, for images wherever they are and for many callers at once."""

import asyncio
import io
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

import clipbatch
from clipbatch import Classifier
from clipbatch.errors import InputError
from clipbatch.serving.batching import Batcher
from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import make_folder, photo

SAME = ["uri", "status", "error", "width", "height", "decoder", "label"]
CLOSE = 1e-3
"""Between scores of batches of other sizes, in bf16 (docs/explanation/accuracy.md)."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """160 files of all kinds, every fifth of them bad."""
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder, 160, seed=5, bad_fraction=0.2)
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Classifier]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with Classifier(model="clipbatch-demo", labels="cifar10", device="cpu", batch_size=32) as made:
            yield made


@pytest.fixture(scope="module")
def of_a_run(warm: Cli, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What `clipbatch run` says about `files`."""
    folder = tmp_path_factory.mktemp("run")
    listing = "\n".join(map(str, files))
    warm("run", "-", *DEMO, "--device", "cpu", "--batch-size", 32, "--out", folder / "out", stdin=listing)
    return rows(folder / "out")


def plain(table: pa.Table) -> pa.Table:
    """Words as plain strings, so that tables of differing dictionaries compare."""
    words = {f.name: pa.string() for f in table.schema if pa.types.is_dictionary(f.type)}
    return table.cast(pa.schema([pa.field(f.name, words.get(f.name, f.type)) for f in table.schema]))


def scores(table: pa.Table) -> np.ndarray:
    """NaN where a row has none."""
    empty = [np.nan] * 10
    return np.array([row or empty for row in table["scores"].to_pylist()])


def settled(count: Callable[[], int]) -> int:
    """What `count` says when it has not changed for a second."""
    seen = -1
    for _ in range(60):
        if seen == (seen := count()):
            break
        time.sleep(1)
    return seen


def assert_close(ours: pa.Table, theirs: pa.Table) -> None:
    assert plain(ours).select(SAME).equals(plain(theirs).select(SAME))
    np.testing.assert_allclose(scores(ours), scores(theirs), atol=CLOSE)


def test_rows_are_those_of_a_run_and_to_the_bit_in_full_batches(
    classifier: Classifier, files: list[Path], of_a_run: pa.Table
) -> None:
    assert classifier.classify([str(path) for path in files]).table.num_rows == len(files) == 160
    ours = plain(classifier.classify(files).table)
    assert ours.equals(plain(of_a_run).cast(ours.schema))
    streamed = pa.concat_tables([results.table for results in classifier.stream(iter(files))])
    assert plain(streamed).equals(ours)
    assert set(pc.unique(plain(streamed)["status"]).to_pylist()) > {"ok", "truncated", "corrupt"}
    assert_close(classifier.classify(files[:45]).table, of_a_run.slice(0, 45))
    assert_close(classifier.classify_batch(files[7:20]).table, of_a_run.slice(7, 13))
    for path in (files[0], str(files[0]), np.array([str(files[0])])):
        assert_close(classifier.classify(path).table, of_a_run.slice(0, 1))


def test_images_in_memory_are_labelled_as_their_files_are(tmp_path: Path) -> None:
    image = photo(np.random.default_rng(2), 200, 150)
    image.save(tmp_path / "a.png")
    gray = image.convert("L")
    data = (tmp_path / "a.png").read_bytes()
    array_HWC = np.asarray(image)
    tensor_CHW = torch.from_numpy(array_HWC.copy()).permute(2, 0, 1)
    lazy = Image.open(tmp_path / "a.png")
    with Classifier(model="clipbatch-demo", labels=["cat, sitting", "dog"], device="cpu", decoder="pil") as classifier:
        given = [str(tmp_path / "a.png"), data, bytearray(data), memoryview(data), image, lazy, array_HWC, tensor_CHW]
        results = classifier.classify(given).table
        assert results["row_id"].to_pylist() == list(range(8))
        assert results["uri"].to_pylist() == [str(tmp_path / "a.png")] + [None] * 7
        assert set(results["label"].to_pylist()) <= {"cat, sitting", "dog"}
        assert plain(results)["decoder"].to_pylist() == ["pil"] * 8
        assert (results["width"].to_pylist(), results["height"].to_pylist()) == ([200] * 8, [150] * 8)
        assert len(set(map(tuple, results["scores"].to_pylist()))) == 1
        flat = np.asarray(gray)
        grays = classifier.classify([gray, flat, flat[:, :, None], torch.from_numpy(flat.copy())]).table
        assert plain(grays)["status"].to_pylist() == ["ok"] * 4
        assert len(set(map(tuple, grays["scores"].to_pylist()))) == 1
        many = classifier.classify(np.stack([array_HWC] * 3))  # a batch of images as one array
        assert len(many) == 3
        turned = Image.Exif()
        turned[0x112] = 6
        image.save(tmp_path / "turned.jpg", exif=turned)
        assert classifier.classify([Image.open(tmp_path / "turned.jpg")]).table["width"].to_pylist() == [150]


def test_a_bad_image_is_a_row_and_what_is_no_image_a_type_error(classifier: Classifier, tmp_path: Path) -> None:
    whole = io.BytesIO()
    photo(np.random.default_rng(3), 200, 150).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:9000])
    lazy = Image.open(tmp_path / "cut.png")
    bad = [b"", b"<html>", "nowhere.jpg", "", tmp_path, lazy, np.zeros((0, 9, 3), np.uint8)]
    with lazy:
        found = classifier.classify(bad).table
    expected = ["empty", "unsupported", "missing", "missing", "unreadable", "truncated", "empty"]
    assert plain(found)["status"].to_pylist() == expected
    assert found["error"].null_count == 0
    for wrong, said in (
        ([whole.getvalue(), 7], "image 1 is 7 (int)"),
        ([None], "image 0 is None (NoneType)"),
        ([np.zeros((4, 4, 3))], "a ndarray of float64 and shape (4, 4, 3)"),
        ([np.zeros((3, 4, 5), np.uint8)], "in the order HWC"),
        ([torch.zeros(3, 4, 4)], "in the order CHW"),
        (7, "7 (int) is neither an image nor an iterable"),
    ):
        with pytest.raises(TypeError) as refused:
            classifier.classify(wrong)  # type: ignore[arg-type]
        assert said in str(refused.value)
    with pytest.raises(ValueError, match="more images than batch_size"):
        classifier.classify_batch([b""] * 33)


def test_a_stream_is_read_only_a_bounded_way_ahead_and_can_be_left(classifier: Classifier, files: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield files[taken % len(files)]

    stream = classifier.stream(endless())
    first, second = next(stream), next(stream)
    assert (first.table["row_id"][0].as_py(), second.table["row_id"][0].as_py(), len(second)) == (0, 32, 32)
    stream.close()  # type: ignore[attr-defined]
    assert taken <= 32 * 40
    stopped = settled(lambda: taken)
    assert stopped == taken <= 32 * 80
    assert len(classifier.classify(files[:3])) == 3

    def broken() -> Iterator[Path]:
        yield from files[:40]
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        list(classifier.stream(broken()))


def test_many_callers_share_batches_and_each_gets_its_own_rows(
    classifier: Classifier, files: list[Path], of_a_run: pa.Table
) -> None:
    async def all_at_once() -> list[pa.Table]:
        cuts = [slice(start, start + 1 + start % 7) for start in range(150)]
        found = await asyncio.gather(*(classifier.aclassify(files[cut]) for cut in cuts))
        for cut, results in zip(cuts, found, strict=True):
            part = of_a_run.slice(cut.start, cut.stop - cut.start)
            assert results.table["row_id"].to_pylist() == list(range(len(part)))
            assert_close(results.table, part)
        assert len(await classifier.aclassify([])) == 0
        long = await classifier.aclassify(files)  # more than a batch
        assert_close(long.table, of_a_run)
        with pytest.raises(TypeError, match="image 0 is 7"):
            await classifier.aclassify([7])  # type: ignore[list-item]

        async def camera() -> AsyncIterator[Path]:
            for path in files[:70]:
                yield path

        for source in (camera(), iter(files[:70])):
            tables = [results.table async for results in classifier.astream(source)]
            assert [table.num_rows for table in tables] == [32, 32, 6]
            whole = pa.concat_tables(tables)
            assert whole["row_id"].to_pylist() == list(range(70))
            assert_close(whole, of_a_run.slice(0, 70))
        return []

    asyncio.run(all_at_once())


def test_results_go_to_pandas_polars_and_notebooks(classifier: Classifier, files: list[Path]) -> None:
    results = classifier.classify([*files[:3], "<b>no & such</b>.jpg"])
    assert list(results.to_pandas()["uri"]) == results.table["uri"].to_pylist()
    assert polars.DataFrame(results).shape == (4, results.table.num_columns)
    assert pa.table(results).equals(results.table)
    assert results.to_pylist()[3]["status"] == "missing"
    shown = results._repr_html_()
    assert "&lt;b&gt;no &amp; such&lt;/b&gt;.jpg" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 5


def test_settings_are_those_of_a_run(classifier: Classifier, files: list[Path], tmp_path: Path) -> None:
    photo(np.random.default_rng(4), 64, 64).save(tmp_path / "a.jpg")
    with Classifier(
        model="clipbatch-demo",
        labels="cat,dog,ship",
        template="a {}.",
        device="cpu",
        top_k=2,
        embeddings=True,
        root=tmp_path,
        max_pixels=10,
    ) as other:
        table = other.classify(["a.jpg", "../a.jpg", str(files[0])]).table
        assert plain(table)["status"].to_pylist() == ["too_large", "unreadable", "unreadable"]
        assert {"top", "embedding"} <= set(table.column_names)
        assert other.labels.names == ["cat", "dog", "ship"]
    with pytest.raises(RuntimeError, match="is closed"):
        other.classify(["a.jpg"])
    for wrong, said in (
        ({"labels": ["cat"]}, "has 1 label"),
        ({"labels": ["cat", "dog"], "model": "ViT-B32"}, "Did you mean ViT-B-32"),
        ({"labels": ["cat", "dog"], "precision": "fp61"}, "fp16"),
        ({"labels": ["cat", "dog"], "model": "clipbatch-demo", "batch_size": 0}, "batch_size 0"),
    ):
        with pytest.raises(InputError) as refused:
            Classifier(**wrong)  # type: ignore[arg-type]
        assert said in str(refused.value)


def test_run_with_keywords_is_the_command(files: list[Path], of_a_run: pa.Table, tmp_path: Path) -> None:
    report = clipbatch.run(
        files[0].parent, labels=("cat", "dog"), model="clipbatch-demo", out=tmp_path / "out", limit=5, device="cpu"
    )
    assert report["rows"] == rows(tmp_path / "out").num_rows == 5
    assert clipbatch.run(out=tmp_path / "out")["this_run"]["rows"] == 0
    with pytest.raises(InputError, match="batch_size"):
        clipbatch.run(files[0], labels="cat,dog", out=tmp_path / "no", batchsize=3)
    with pytest.raises(InputError, match="'a, b' contains a comma"):
        clipbatch.run(files[0], labels=["a, b", "c"], out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_importing_the_package_loads_nothing_heavy() -> None:
    check = (
        "import sys, clipbatch; assert 'Classifier' in dir(clipbatch); from clipbatch import run; "
        "print(sorted({'torch', 'nvidia', 'open_clip', 'PIL'} & {name.split('.')[0] for name in sys.modules}))"
    )
    made = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"


def test_a_batch_that_fails_fails_its_callers_alone() -> None:
    def work(entries: list[int]) -> pa.Table:
        if 13 in entries:
            raise OSError("no luck")
        return pa.table({"entry": entries})

    batcher = Batcher(work, size=4, threads=2)
    unlucky = batcher.submit([13, 14])
    with pytest.raises(OSError, match="no luck"):
        unlucky.result(timeout=60)
    waiting = [batcher.submit(list(range(start, start + 1 + start % 9))) for start in range(20, 120)]
    batcher.close()  # when all of them are answered
    for start, future in zip(range(20, 120), waiting, strict=True):
        assert future.result(timeout=0)["entry"].to_pylist() == list(range(start, start + 1 + start % 9))
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit([1])
