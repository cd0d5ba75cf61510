"""Names that are too long are refused with their place; data URIs have a separate limit."""

import base64
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs import listing as listings
from tests.support.listing import list_inputs, refused

KINDS = ("txt", "csv", "tsv", "jsonl", "parquet", "images")
PLACES = {
    "txt": "line 4 of the manifest ",
    "csv": "line 4 of ",
    "tsv": "line 4 of ",
    "jsonl": "line 3 of ",
    "parquet": "row 2 (from 0) of ",
    "images": "row 2 (from 0) of ",
}


def _written(folder: Path, kind: str, name: str) -> tuple[Path, dict[str, str]]:
    """A table of four names of which `name` is the third, and the settings that it is listed with."""
    names = ["0.jpg", "1.jpg", name, "3.jpg"]
    path = folder / f"m.{kind if kind != 'images' else 'parquet'}"
    if kind == "txt":
        path.write_text("\n".join(["# comment " + "x" * 100_000, *names]))
    elif kind in ("csv", "tsv"):
        quoted = [f'"{each}"' if kind == "csv" and "," in each else each for each in names]
        path.write_text("\n".join(["path", *quoted]))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"path": each}) for each in names))
    elif kind == "parquet":
        pq.write_table(pa.table({"path": names}), path)
    else:
        pq.write_table(pa.table({"path": names, "image": [b"\xff\xd8\xff"] * 4}), path)
    return path, {"uri_column": "path", "image_column": "image"} if kind == "images" else {}


def _data_uri(size: int) -> str:
    head = "data:image/png;base64,"
    return head + base64.b64encode(b"\1" * size).decode()[: size - len(head)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_more_than_64_kib_is_refused_with_its_place(tmp_path: Path, kind: str) -> None:
    path, settings = _written(tmp_path, kind, "x" * (2**16 - 3) + ".jpg")
    message = refused(path, **settings)
    assert message.startswith(f"{PLACES[kind]}{path} has a name of 65537 bytes, and the limit is 65536: correct it")
    path, settings = _written(tmp_path, kind, longest := "x" * (2**16 - 4) + ".jpg")
    assert list_inputs(path, **settings)["uri"].to_pylist() == ["0.jpg", "1.jpg", longest, "3.jpg"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_uri_may_have_1_mib_and_is_refused_above_with_its_place(tmp_path: Path, kind: str) -> None:
    path, settings = _written(tmp_path, kind, longest := _data_uri(2**20))
    table = list_inputs(path, **settings)
    assert table["uri"].to_pylist() == ["0.jpg", "1.jpg", longest, "3.jpg"]
    path, settings = _written(tmp_path, kind, _data_uri(2**20 + 1))
    message = refused(path, **settings)
    assert message.startswith(f"{PLACES[kind]}{path} has a data URI of 1048577 bytes, and the limit is 1048576: keep ")


def test_the_line_of_a_long_name_in_a_file_without_a_header_is_right(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("\n".join(f"{name}.jpg,{number}" for number, name in enumerate(["a", "b", "c" * 70_000, "d"])))
    (lister,) = listings.listers(SourceSettings(inputs=(str(path),)))
    with pytest.raises(InputError, match=f"^line 3 of {path} has a name of 70004 bytes"):
        list(lister.batches())
