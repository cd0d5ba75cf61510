"""Tables that hold the images themselves: the same answers as the same images as files, whatever the layout."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing
from tests.conftest import DEMO, Cli, rows, start
from tests.support.corpus import make_folder
from tests.support.listing import STRUCT, image_table, write_stream


def _listed(*inputs: object, **settings: Any) -> list[dict[str, Any]]:
    listers = listing.listers(SourceSettings(inputs=tuple(map(str, inputs)), **settings))
    return pa.Table.from_batches(listing.Listing(listers, None, ("label", "row_id")).batches()).to_pylist()


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_rows_are_named_by_their_file_and_number_and_carry_the_other_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    write = pq.write_table if suffix == ".parquet" else feather.write_feather
    (tmp_path / "in").mkdir()
    for name in "ba":
        image = pa.array([{"bytes": name.encode(), "path": f"{name}.jpg"}, None], STRUCT)
        write(pa.table({"image": image, "label": [1, 2]}), tmp_path / "in" / f"{name}{suffix}")
    (tmp_path / "in" / "_SUCCESS").touch()
    monkeypatch.chdir(tmp_path)
    found = _listed("in")
    names = [f"in/{name}{suffix}" for name in "ab"]
    assert [row["uri"] for row in found] == [f"{name}#{row}" for name in names for row in range(2)]
    assert [row["input_label"] for row in found] == [1, 2, 1, 2]
    assert [row["image_path"] for row in found] == ["a.jpg", None, "b.jpg", None]
    assert [(row["root"], row["span"]["container"], row["span"]["start"]) for row in found] == [
        (str(tmp_path), name, row) for name in names for row in range(2)
    ]
    assert {row["span"]["method"] for row in found} == {"column:image"}
    assert [row["span"]["length"] for row in found[:2]] == [(tmp_path / names[0]).stat().st_size] * 2
    assert "input_label" not in _listed("in", columns=("image_path",))[0]


def test_the_uri_may_come_from_a_column(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"jpg": [b"x", b"y"], "url": ["https://h/1.jpg", None], "n": [1, 2]}), tmp_path / "t.parquet"
    )
    found = _listed(tmp_path / "t.parquet", image_column="jpg", uri_column="url")
    assert [(row["uri"], row["span"]["start"], row["n"]) for row in found] == [
        ("https://h/1.jpg", 0, 1),
        (f"{tmp_path}/t.parquet#1", 1, 2),
    ]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"jpg": [b"x"], "png": [b"y"]}, {}, "which column of .* holds the images.* jpg .binary., png .binary."),
        ({"photo": [b"x"], "n": [1]}, {}, "--image-column if one holds the images"),
        (
            {"photo": [b"x"]},
            {"image_column": "foto"},
            "no column 'foto', which --image-column names.*Did you mean photo",
        ),
        ({"photo": ["x"]}, {"image_column": "photo"}, "'photo' of .* is string, not bytes"),
        ({"image": pa.array([], pa.binary())}, {}, "holds no images: it has columns, but no rows"),
    ],
)
def test_a_table_without_exactly_one_column_of_images_is_refused(
    tmp_path: Path, columns: dict[str, Any], settings: dict[str, str], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        _listed(tmp_path / "t.parquet", **settings)


def test_the_identity_covers_path_size_and_footer(tmp_path: Path) -> None:
    def identity() -> str:
        return listing.listers(SourceSettings(inputs=(str(tmp_path / "t.parquet"),)))[0].identity()

    found = set()
    for data in ([b"abc"], [b"abd"], [b"abc", None]):
        pq.write_table(image_table(data), tmp_path / "t.parquet")
        found |= {identity(), identity()}
    assert len(found) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as files, good and bad, and as the rows of tables, in the order in which they are listed."""
    folder = tmp_path_factory.mktemp("tables")
    listed = make_folder(folder / "files", 160, seed=8, bad_fraction=0.2)
    data = [(folder / "files" / one.name).read_bytes() for one in listed]
    struct = pa.array([{"bytes": d, "path": one.name} for d, one in zip(data, listed, strict=True)], STRUCT)
    (folder / "tables").mkdir()
    pq.write_table(image_table(data), folder / "tables" / "small.parquet", row_group_size=11)
    pq.write_table(image_table(data).set_column(1, "image", struct), folder / "tables" / "struct.parquet")
    feather.write_feather(image_table(data), folder / "tables" / "t.feather")
    write_stream(image_table(data, pa.large_binary()), folder / "tables" / "stream.arrow")
    return folder


@pytest.fixture(scope="module")
def whole(warm: Cli, folder: Path) -> Path:
    """A run over the tables that was not interrupted."""
    warm("run", *sorted((folder / "tables").iterdir()), *DEMO, "--shard-size", 64, "--out", folder / "whole")
    return folder / "whole"


def test_images_in_tables_get_the_answers_of_the_same_images_as_files(warm: Cli, folder: Path, whole: Path) -> None:
    warm("run", folder / "files", *DEMO, "--shard-size", 64, "--out", folder / "files-out")
    expected, found = rows(folder / "files-out"), rows(whole)
    assert found.num_rows == 4 * expected.num_rows
    for number in range(4):
        table = found.slice(number * expected.num_rows, expected.num_rows)
        assert table["id"].to_pylist() == list(range(160))
        for name in ("status", "width", "height", "label"):
            assert table[name].to_pylist() == expected[name].to_pylist()
        scores = [np.array([row for row in t["scores"].to_pylist() if row]) for t in (table, expected)]
        np.testing.assert_allclose(scores[0], scores[1], atol=2e-2)  # another batch moves a score in its last digits
    warm("verify", whole)


def test_a_killed_run_over_tables_resumes_to_the_same_bytes(folder: Path, whole: Path, warm: Cli) -> None:
    out = folder / "killed"
    command = ("run", *sorted((folder / "tables").iterdir()), *DEMO, "--shard-size", 64, "--out", out)
    process = start(*command)
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    for part in sorted((out / "parts").glob("*.parquet"))[1::2]:
        part.unlink()
    warm(*command)
    found, expected = ({p.name: p.read_bytes() for p in (run / "parts").glob("*.parquet")} for run in (out, whole))
    assert found == expected


def test_tables_that_were_truncated_changed_or_removed_after_planning_give_rows_with_that_error(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    names = ["cut.parquet", "fine.parquet", "gone.parquet", "grown.parquet"]
    good = pq.read_table(folder / "tables" / "small.parquet").slice(0, 20)
    for name in names:
        pq.write_table(good, tmp_path / name)
    command = ("plan", *(tmp_path / name for name in names), *DEMO, "--shard-size", 32, "--out", tmp_path / "out")
    warm(*command)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-1000])
    (tmp_path / "gone.parquet").unlink()
    pq.write_table(pa.concat_tables([good, good]), tmp_path / "grown.parquet")
    warm("run", "--out", tmp_path / "out")
    found = rows(tmp_path / "out")["status"].to_pylist()
    assert [set(found[at : at + 20]) for at in (0, 40, 60)] == [{"truncated"}, {"missing"}, {"unreadable"}]
    assert "ok" in found[20:40]
    assert "the table has changed since it was listed" in rows(tmp_path / "out")["error"][79].as_py()
