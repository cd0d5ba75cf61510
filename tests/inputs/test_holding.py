"""Which column of a table holds the images, by type, name and content; what is refused, and what is noted."""

import base64
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipbatch.config import SourceSettings
from clipbatch.inputs import listing
from tests.conftest import DEMO, Cli, rows
from tests.support.listing import carried, list_inputs, refused, write, write_stream
from tests.support.packing import listed, read
from tests.support.servers import Buckets, buckets


def _picture(number: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").rotate(7 * number).convert("RGB").resize((48, 40)).save(out, kind)
    return out.getvalue()


PICTURES = [_picture(number) for number in range(3)]
CAPTIONS = ["a cat", "a dog", "a ship"]
WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": pq.write_table,
    ".arrow": write_stream,
    ".feather": feather.write_feather,
}


def _structs(kind: pa.DataType) -> pa.Array:
    return pa.array(
        [{field.name: data if field.name == "bytes" else None for field in kind} for data in PICTURES], kind
    )


KINDS = {
    "null path": _structs(pa.struct([("bytes", pa.binary()), ("path", pa.null())])),
    "no path": _structs(pa.struct([("bytes", pa.binary())])),
    "large": _structs(pa.struct([("path", pa.large_string()), ("bytes", pa.large_binary())])),
    "further fields": pa.array(
        [
            {"bytes": data, "path": f"{n}.jpg", "width": 48, "thumb": b"t", "size": {"h": 40}}
            for n, data in enumerate(PICTURES)
        ]
    ),
    "path of another type": pa.array([{"bytes": data, "path": 7} for data in PICTURES]),
    "odd name": pa.array(PICTURES),
    "odd name, large": pa.array(PICTURES, pa.large_binary()),
    "odd name, nulls first": pa.array([None] * 40 + PICTURES),
    "odd name, PNG": pa.array([_picture(number, "PNG") for number in range(3)]),
    "odd name, WebP": pa.array([_picture(number, "WEBP") for number in range(3)]),
    "odd name, TIFF": pa.array([_picture(number, "TIFF") for number in range(3)]),
}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_found_by_content_for_every_column_name_and_struct(tmp_path: Path, kind: str, suffix: str) -> None:
    images = KINDS[kind]
    path = tmp_path / f"t{suffix}"
    number = len(images)
    WRITERS[suffix](pa.table({"text": (CAPTIONS * 20)[:number], "img_b": images, "n": range(number)}), path)
    expected = [value["bytes"] if isinstance(value, dict) else value for value in images.to_pylist()]
    for settings in ({}, {"uri_column": "n"}, {"uri_column": "text"}, {"image_column": "img_b"}):
        found, passed_over = listed(path, **settings)
        assert [one for one in read(found) if isinstance(one, bytes)] == [one for one in expected if one is not None]
        assert not [name for name, value in found[-1].items() if isinstance(value, bytes)]
        assert passed_over == {}
    assert [row["uri"] for row in found] == [f"{path}#{row}" for row in range(number)]
    assert [row["uri"] for row in listed(path, uri_column="n")[0]] == list(map(str, range(number)))
    if kind == "further fields":
        last = {name: value for name, value in found[-1].items() if name.startswith("img_b")}
        assert last == {"img_b_path": "2.jpg", "img_b_width": 48, "img_b_size": {"h": 40}}


def test_tables_that_pandas_and_datasets_write_can_be_run(warm: Cli, tmp_path: Path) -> None:
    frame = pd.DataFrame({"picture": [{"bytes": data, "path": None} for data in PICTURES], "caption": CAPTIONS})
    frame.to_parquet(tmp_path / "pandas.parquet")
    made = datasets.Dataset.from_dict({"photo": [{"bytes": data, "path": None} for data in PICTURES]})
    made.cast_column("photo", datasets.Image()).to_parquet(tmp_path / "datasets.parquet")
    warm("run", tmp_path / "pandas.parquet", tmp_path / "datasets.parquet", *DEMO, "--out", tmp_path / "out")
    assert rows(tmp_path / "out")["status"].to_pylist() == ["ok"] * 6
    assert rows(tmp_path / "out")["caption"].to_pylist() == [*CAPTIONS, None, None, None]


def test_a_row_without_a_name_still_has_its_image(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"product_id": ["p1", None, ""], "photo": PICTURES}), path)
    found, _ = listed(path, uri_column="product_id")
    assert [row["uri"] for row in found] == ["p1", f"{path}#1", f"{path}#2"]
    assert read(found) == PICTURES


LISTS = {
    "of structs": [[{"bytes": data, "path": None}] * 2 for data in PICTURES],
    "of bytes": [[data, data] for data in PICTURES],
    "of lists": [[[data]] for data in PICTURES],
}


@pytest.mark.parametrize("settings", [{}, {"uri_column": "id"}, {"image_column": "views"}], ids=str)
@pytest.mark.parametrize("kind", LISTS)
def test_several_images_in_a_cell_are_refused_with_their_column(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"id": ["a", "b", "c"], "views": LISTS[kind]}), path)
    assert f"column 'views' of {path} holds several images in a cell" in refused(path, **settings)
    assert list_inputs(path, uri_column="id", image_column="")["uri"].to_pylist() == ["a", "b", "c"]
    assert carried(list_inputs(path, uri_column="id", image_column="")).column_names == []


def test_an_ambiguous_table_is_refused_and_options_choose_one_reading(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for name in ("a.jpg", "b.jpg"):
        write(tmp_path / name, b"file")
    pq.write_table(pa.table({"path": ["a.jpg", "b.jpg"], "small": PICTURES[:2]}), path)
    for settings in ({}, {"uri_column": "path"}, {"root": str(tmp_path)}):
        found = refused(path, **settings)
        assert f"column 'small' of {path} holds images, and 'path' names files that exist" in found
        assert "--image-column small to label the images in the table, or --image-column '' to label the files" in found
    by_name, _ = listed(path, image_column="")
    assert [(row["uri"], row["span"]) for row in by_name] == [("a.jpg", None), ("b.jpg", None)]
    assert read(listed(path, image_column="small", uri_column="path")[0]) == PICTURES[:2]
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    found, _ = listed(path, uri_column="path")  # names that lead nowhere name rows
    assert [row["uri"] for row in found] == ["a.jpg", "b.jpg"]
    assert read(found) == PICTURES[:2]
    pq.write_table(pa.table({"left": PICTURES, "right": PICTURES}), path)
    assert f"which column of {path} holds the images? It has left (binary), right (binary)" in refused(path)
    assert f"column 'left' of {path} holds images: name it with --image-column" in refused(
        _table(tmp_path, {"left": PICTURES}), uri_column="left"
    )


def _table(folder: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return folder / "t.parquet"


def test_of_several_columns_with_image_names_the_one_with_images_counts(tmp_path: Path) -> None:
    path = _table(tmp_path, {"data": [b"{}", b"[]", b"1"], "photo": PICTURES})
    assert read(listed(path)[0]) == PICTURES
    path = _table(tmp_path, {"image": PICTURES, "thumbnail": PICTURES[::-1]})
    found, passed_over = listed(path)
    assert read(found) == PICTURES
    assert passed_over == {f"(column 'thumbnail' of {path} holds bytes, which only --columns carries)": 1}


@pytest.mark.parametrize("suffix", WRITERS)
def test_columns_of_bytes_are_copied_only_if_named_and_their_size_is_noted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    nested = [{"hash": b"x"}, None, {"hash": b"y"}]
    table = pa.table({"file": ["a", "b", "c"], "hash": [b"1", b"22", b"333"], "deep": nested, "n": [1, 2, 3]})
    WRITERS[suffix](table, path)
    found, passed_over = listed(path)
    assert list(found[0])[3:] == ["n"]
    left = {f"(column {name!r} of {path} holds bytes, which only --columns carries)": 1 for name in ("hash", "deep")}
    assert passed_over == left
    found, passed_over = listed(path, columns=("hash", "n"))
    assert [row["hash"] for row in found] == [b"1", b"22", b"333"]
    said = f"(bytes of column 'hash' of {path} that go into manifest and parts)"
    assert passed_over.keys() == {said, f"(column 'deep' of {path} holds bytes, which only --columns carries)"}
    assert passed_over[said] >= 6
    WRITERS[suffix](pa.table({"photo": PICTURES}), path)
    found, passed_over = listed(path, columns=("photo",))
    assert [row["photo"] for row in found] == PICTURES
    assert passed_over[f"(bytes of column 'photo' of {path} that go into manifest and parts)"] >= sum(
        map(len, PICTURES)
    )


def test_a_run_reports_what_was_left_out(warm: Cli, tmp_path: Path) -> None:
    path = _table(tmp_path, {"photo": PICTURES, "embedding": [b"e", b"e", b"e"]})
    said = warm("run", path, *DEMO, "--out", tmp_path / "out").stdout
    assert f"passed over, or noted: 1 (column 'embedding' of {path} holds bytes, which only --columns carries)" in said
    assert "embedding" not in rows(tmp_path / "out").column_names


def test_base64_text_in_a_table_is_reported_as_such(tmp_path: Path) -> None:
    texts = [base64.b64encode(data) for data in PICTURES]
    path = _table(tmp_path, {"image": texts})
    assert read(listed(path)[0]) == ["unsupported: base64 text of an image (image/jpeg), not its bytes: decode it"] * 3
    path = _table(tmp_path, {"image": [text.decode() for text in texts]})
    assert "is string, not bytes" in refused(path, image_column="image")
    assert "decode it first if it is base64" in refused(path, image_column="image")


def _dataset(count: int = 5) -> "datasets.Dataset":
    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": _picture(n), "path": None} for n in range(count)],
            "caption": [f"c{n}" for n in range(count)],
        }
    )
    return made.cast_column("image", datasets.Image())


def test_a_saved_dataset_is_a_table_of_its_files_in_their_order(warm: Cli, tmp_path: Path) -> None:
    made = _dataset()
    made.save_to_disk(tmp_path / "one", num_shards=3)
    write(tmp_path / "one" / "cache-0123.arrow", b"of a map()")
    splits = datasets.DatasetDict({"train": made, "a test": made.select([3, 1])})
    splits.save_to_disk(tmp_path / "splits")
    found, passed_over = listed(tmp_path / "one")
    assert [row["caption"] for row in found] == made["caption"]
    assert read(found) == [_picture(n) for n in range(5)]
    assert passed_over == {}
    found, _ = listed(tmp_path / "splits")
    assert [row["caption"] for row in found] == [*made["caption"], "c3", "c1"]
    assert read(found) == [_picture(n) for n in (0, 1, 2, 3, 4, 3, 1)]
    warm("run", tmp_path / "one", tmp_path / "splits", *DEMO, "--out", tmp_path / "out")
    assert rows(tmp_path / "out")["status"].to_pylist() == ["ok"] * 12


def test_a_saved_dataset_of_names_is_a_manifest_and_an_incomplete_one_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"path": ["b.jpg", "a.jpg"], "n": [1, 2]}).save_to_disk(tmp_path / "names")
    found = list_inputs(tmp_path / "names", root="/data")
    assert found.select(["uri", "n"]).to_pylist() == [{"uri": "b.jpg", "n": 1}, {"uri": "a.jpg", "n": 2}]
    _dataset().save_to_disk(tmp_path / "cut", num_shards=2)
    (tmp_path / "cut" / "data-00001-of-00002.arrow").unlink()
    assert "is incomplete: its state.json names files that do not exist" in refused(tmp_path / "cut")
    write(tmp_path / "cut" / "state.json", "{")
    assert f"cannot read {tmp_path}/cut/state.json" in refused(tmp_path / "cut")
    write(tmp_path / "cut" / "state.json", json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "x"}]}))
    assert "save it again after flatten_indices()" in refused(tmp_path / "cut")
    (tmp_path / "half").mkdir()
    write(tmp_path / "half" / "dataset_dict.json", '{"splits": ["train", "../cut"]}')
    assert "names splits that are incomplete" in refused(tmp_path / "half")


@pytest.fixture(scope="module")
def store() -> Any:
    with buckets() as store:
        yield store


def test_a_saved_dataset_in_a_store_is_the_same_table(here: Buckets, tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": _dataset(), "test": _dataset(2)})
    splits.save_to_disk(tmp_path / "in")
    here.put("saved")
    for file in sorted((tmp_path / "in").rglob("*.*")):
        here.put(f"saved/in/{file.relative_to(tmp_path / 'in')}", file.read_bytes())
    found, _ = listed("s3://saved/in")
    local, _ = listed(tmp_path / "in")
    assert [row["caption"] for row in found] == [row["caption"] for row in local]
    assert read(found) == read(local)
    names = datasets.Dataset.from_dict({"path": ["a.jpg"]})
    datasets.DatasetDict({"train": names, "test": names}).save_to_disk(tmp_path / "names")
    for file in sorted((tmp_path / "names").rglob("*.*")):
        here.put(f"saved/names/{file.relative_to(tmp_path / 'names')}", file.read_bytes())
    assert list_inputs("s3://saved/names", root="/data")["uri"].to_pylist() == ["a.jpg", "a.jpg"]


def test_an_old_run_that_took_an_image_table_for_a_manifest_goes_on(tmp_path: Path) -> None:
    path = _table(tmp_path, {"product_id": ["p1", "p2", "p3"], "photo": PICTURES})
    listers = listing.listers(SourceSettings(inputs=(str(path),), uri_column="product_id"))
    file_digest = hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256(f"t.parquet {file_digest}".encode()).hexdigest()
    before = f"{path} sha256:{digest} root:{tmp_path}"  # as the first versions wrote it, which took p1 for a file
    assert listing.identities(listers, [before]) == [before]
    now = listing.identities(listers)
    assert now != [before]
    assert listing.identities(listers, [before.replace(digest, digest[::-1])]) == now
