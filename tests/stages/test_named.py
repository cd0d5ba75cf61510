"""Names that are no names: data URIs, base64 text, and blanks at the ends of a line."""

import base64
import io
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipbatch.config import ReadSettings
from clipbatch.stages.read import Fetch
from clipbatch.storage.uris import is_data_uri, is_outside, path_of
from clipbatch.types import Encoded, Item, Reject
from tests.conftest import DEMO, Cli, rows
from tests.support.listing import write
from tests.support.servers import buckets

MANIFESTS = ("txt", "csv", "tsv", "jsonl", "parquet")


def _png(side: int = 40) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").resize((side, side)).save(out, "PNG")
    return out.getvalue()


def _fetch(uri: str, root: str = "/nowhere", **settings: Any) -> Encoded | Reject:
    fence = settings.pop("fence", None)
    return Fetch(ReadSettings(**settings))(Item(row_id=0, uri=uri, path=path_of(uri, root), fence=fence))


def _manifest(folder: Path, kind: str, names: list[str]) -> Path:
    path = folder / f"m.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"path": names}), path)
    elif kind == "jsonl":
        pa.table({"path": names}).to_pandas().to_json(path, orient="records", lines=True)
    elif kind == "txt":
        write(path, "".join(f"{name}\n" for name in names))
    else:
        pa.table({"path": names}).to_pandas().to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    return path


FORMS = {
    "base64": lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
    "upper case": lambda data: "DATA:IMAGE/PNG;BASE64," + base64.b64encode(data).decode(),
    "no padding": lambda data: "data:image/png;base64," + base64.b64encode(data).decode().rstrip("="),
    "url-safe": lambda data: "data:image/png;base64," + base64.urlsafe_b64encode(data).decode(),
    "base64, percent-encoded": lambda data: "data:image/png;base64," + quote(base64.b64encode(data), safe=""),
    "parameters": lambda data: "data:image/png;name=a b.png;base64," + base64.b64encode(data).decode(),
    "no media type": lambda data: "data:;base64," + base64.b64encode(data).decode(),
    "percent-encoded": lambda data: "data:image/png," + quote(data),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [38, 39, 40])  # one for each length of padding, and more
def test_a_data_uri_is_the_image_that_it_holds(form: str, size: int) -> None:
    data = _png(size)
    found = _fetch(FORMS[form](data))
    assert isinstance(found, Encoded)
    assert bytes(found.data) == data


def test_a_data_uri_that_is_damaged_empty_or_large_says_so_and_other_names_stay_names(tmp_path: Path) -> None:
    found = [_fetch("data:image/png;base64,iVBO*w0K"), _fetch("data:image/png;base64,"), _fetch("data:image/png,")]
    found += [_fetch(FORMS[form](bytes(101)), max_bytes=100) for form in ("base64", "percent-encoded")]
    found.append(_fetch("data:image/png," + "x" * 2000, max_bytes=100))
    assert [one.status for one in found if isinstance(one, Reject)] == ["corrupt", "empty", "empty", *["too_large"] * 3]
    assert "the data URI is not base64" in found[0].error  # type: ignore[union-attr]
    for name in ("data:1.jpg", "data:,x.jpg", "data:image/png;base64", "data: image/png,x", "mydata:image/png,x"):
        assert not is_data_uri(name)
    write(tmp_path / "data:1.jpg", b"file")
    assert _fetch("data:1.jpg", str(tmp_path)) == Encoded(data=bytearray(b"file"))
    assert not is_outside(FORMS["base64"](b"x"), "/data")


def test_a_data_uri_in_every_kind_of_manifest_is_labelled_beside_names(warm: Cli, tmp_path: Path) -> None:
    write(tmp_path / "a.png", _png())
    names = [FORMS["base64"](_png()), "a.png", FORMS["percent-encoded"](_png())]
    manifests = [_manifest(tmp_path, kind, names) for kind in MANIFESTS]
    warm("run", *manifests, "--root", tmp_path, *DEMO, "--out", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert found["uri"].to_pylist() == names * len(MANIFESTS)
    assert set(found["status"].to_pylist()) == {"ok"}
    assert len({tuple(scores) for scores in found["scores"].to_pylist()}) == 1


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "webp", "bmp", "tiff"])
def test_a_name_that_is_base64_text_is_said_to_be_that(kind: str) -> None:
    out = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(out, kind)
    for text in (base64.b64encode(out.getvalue()).decode(), base64.b64encode(out.getvalue()).decode()[:200]):
        found = _fetch(text)
        assert isinstance(found, Reject)
        assert found.status == "missing"
        assert f"the name is the base64 text of an image: write data:image/{kind};base64, before it" in found.error
    plain = _fetch("9j/" * 30 + "a.jpg")
    assert isinstance(plain, Reject)
    assert plain.error == "No such file or directory"


BLANKS = ["{}\t", " {}", "{} ", "\t {}\t", "{}\u00a0", "\ufeff{}", "{}\u200b", "{}\r"]


@pytest.mark.parametrize("form", BLANKS)
def test_a_name_with_blanks_at_its_ends_says_so_where_there_is_one_without(tmp_path: Path, form: str) -> None:
    write(tmp_path / "a b.jpg", "x")
    for place in ("a b.jpg", f"{tmp_path}/a b.jpg"):
        found = _fetch(form.format(place), str(tmp_path))
        assert isinstance(found, Reject)
        assert found.status == "missing"
        assert found.error.endswith(f"; the name has blanks at its ends, and without them it is there: {place!r}")
    for other in ("b.jpg", " "):
        assert _fetch(form.format(other), str(tmp_path)) == Reject(status="missing", error="No such file or directory")
    write(tmp_path / form.format("c.jpg"), "with blanks")
    assert isinstance(_fetch(form.format("c.jpg"), str(tmp_path)), Encoded)


def test_nothing_is_said_of_what_lies_outside_of_the_root(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", "x")
    found = _fetch(f" {tmp_path}/a.jpg", "/data", fence="/data")
    assert found == Reject(status="missing", error="No such file or directory")


def test_blanks_in_every_kind_of_manifest_are_said_and_the_rows_stay(warm: Cli, tmp_path: Path) -> None:
    write(tmp_path / "a.png", _png())
    names = ["a.png", " a.png", "a.png\t", "b.png "]
    manifests = [_manifest(tmp_path, kind, names) for kind in MANIFESTS]
    warm("run", *manifests, *DEMO, "--out", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert found["uri"].to_pylist() == names * len(MANIFESTS)
    assert found["status"].to_pylist() == ["ok", "missing", "missing", "missing"] * len(MANIFESTS)
    said = ["without them it is there" in (error or "") for error in found["error"].to_pylist()]
    assert said == [False, True, True, False] * len(MANIFESTS)


def test_blanks_in_a_stores_names_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with buckets() as store:
        for name, value in store.env.items():
            monkeypatch.setenv(name, value)
        store.put("photos")
        store.put("photos/a.jpg", b"x")
        for uri in ("a.jpg ", "\ta.jpg", "s3://photos/a.jpg "):
            found = _fetch(uri, "s3://photos", read_retries=0)
            assert isinstance(found, Reject)
            assert (found.status, "without them it is there" in found.error) == ("missing", True), found
