"""Captions in files beside the images of folders, in stores and in archives: whose they are, and what is no caption."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from clipbatch.config import SourceSettings
from clipbatch.errors import InputError
from clipbatch.inputs.listing import Listing, listers
from clipbatch.inputs.sidecars import MAX_BYTES

FILES: dict[str, bytes | None] = {
    "a.jpg": b"a cat",
    "b.c.png": b"a dog. Its name has a dot",
    "d.jpg": None,
    "e.jpg": b"",
    "f.jpg": b"caf\xe9",
    "g.jpg": b"x" * (MAX_BYTES + 1),
    "sub/h.jpg": "\U0001f600".encode(),
}
TEXTS = ["a cat", "a dog. Its name has a dot", None, "", None, None, "\U0001f600"]
NOTES = {"(images without .txt)": 1, "(.txt not UTF-8)": 1, "(.txt too_large)": 1}


def _captions(*inputs: object, **settings: Any) -> tuple[list[str | None], dict[str, int]]:
    """The captions in the order of the rows, and what was noted."""
    source = SourceSettings(inputs=tuple(map(str, inputs)), **({"caption_column": "txt"} | settings))
    listing = Listing(listers(source), source.limit, ())
    table = pa.Table.from_batches(listing.batches())
    return table[source.caption_file].to_pylist(), dict(listing.passed_over())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, caption in FILES.items():
        path = tmp_path / "in" / name
        path.touch()
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption)
    return tmp_path / "in"


def test_an_image_has_the_file_with_its_name(folder: Path) -> None:
    (folder / "orphan.txt").write_text("of no image")
    (folder / "notes.md").touch()
    texts, notes = _captions(folder)
    assert texts == TEXTS
    assert notes == NOTES | {".txt": 3, ".md": 1}  # that of no image, and the two that are no captions
    assert _captions(folder / "*.jpg")[0] == ["a cat", None, "", None, None]
    assert _captions(folder / "a.jpg", folder / "sub")[0] == ["a cat", "\U0001f600"]
    assert _captions(folder, limit=1)[0] == ["a cat"]
    (folder / "orphan.txt").unlink()
    (folder / "notes.md").unlink()
    assert len(_captions(folder, all_files=True)[0]) == len(FILES)  # captions are no images, even here


def test_a_pipe_or_a_folder_in_place_of_a_caption_stops_nothing(folder: Path) -> None:
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    (folder / "d.txt").mkdir()
    texts, notes = _captions(folder)
    assert texts == [None, *TEXTS[1:]]
    assert notes["(.txt unreadable)"] == 2


def test_a_suffix_that_no_image_has_is_refused(folder: Path) -> None:
    for inputs in ([folder], [folder / "*.jpg"], [folder / "a.jpg"]):
        with pytest.raises(InputError, match=r"has a file \.text beside it, which --caption-column names"):
            _captions(*inputs, caption_column="text")


def test_json_beside_images_is_carried_whole(folder: Path) -> None:
    (folder / "a.json").write_text('{"caption": "a cat"}')
    texts, notes = _captions(folder, caption_column="json:caption")
    assert texts == ['{"caption": "a cat"}', *[None] * 6]
    assert notes["(images without .json)"] == 6


def test_captions_in_a_store(folder: Path, s3: pafs.S3FileSystem, bucket: str) -> None:
    place = bucket.removeprefix("s3://")
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size < MAX_BYTES:
            with s3.open_output_stream(f"{place}/in/{path.relative_to(folder)}") as stream:
                stream.write(path.read_bytes())
    texts, notes = _captions(f"{bucket}/in")
    assert texts == [*TEXTS[:5], None, TEXTS[6]]
    assert notes["(images without .txt)"] == 2
    assert _captions(f"{bucket}/in/a.jpg")[0] == ["a cat"]


def test_captions_in_an_archive_need_no_columns(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.txt", "d.jpg", "e.jpg", "e.txt", "f.jpg", "f.txt"):
            content = (folder / name).read_bytes() or (b"JPEG" if name.endswith("jpg") else b"")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    texts, notes = _captions(tmp_path / "x.tar")
    assert texts == ["a cat", None, "", None]
    assert notes == {"(images without .txt)": 1, "(.txt not UTF-8)": 1}
    assert _captions(tmp_path / "x.tar", columns=("cls",))[0] == texts


def test_tables_carry_the_caption_column_whatever_columns_says(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,price,text\na.jpg,1,a cat\nb.jpg,2,caf\xe9\n")
    source = SourceSettings(inputs=(str(tmp_path / "t.csv"),), columns=("price",), caption_column="text")
    table = pa.Table.from_batches(Listing(listers(source), None, ()).batches())
    assert table.column_names[3:] == ["price", "text"]
    assert table["text"].to_pylist() == [b"a cat", b"caf\xe9"]
