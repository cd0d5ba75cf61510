"""Captions in files beside the images of folders, in stores and in archives: whose they are, and what is no caption."""

import io
import os
import resource
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
from clipbatch.rundir.captions import CaptionColumn
from tests.support.servers import parts_of, status, web

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
    (folder / "a.png").touch()  # which shares the caption of a.jpg
    texts, notes = _captions(folder)
    assert texts == ["a cat", *TEXTS]
    assert notes[".txt"] == 3
    (folder / "a.png").unlink()
    (folder / "orphan.txt").unlink()
    (folder / "notes.md").unlink()
    assert len(_captions(folder, all_files=True)[0]) == len(FILES)  # captions are no images, even here


def test_no_caption_beyond_the_limit_is_read(folder: Path) -> None:
    assert _captions(folder, limit=2) == (TEXTS[:2], {})  # one that is read leaves a note, or counts as passed over
    assert _captions(folder / "*.jpg", limit=2) == (["a cat", None], {"(images without .txt)": 1})
    assert _captions(folder / "{sub,.}", limit=2) == (["\U0001f600", "a cat"], {})
    assert _captions(folder / "a.jpg", folder / "sub", folder, limit=4) == (["a cat", TEXTS[-1], *TEXTS[:2]], {})
    with pytest.raises(InputError, match=r"none of the first 1 images of .* has a file \.txt .*: raise --limit, name"):
        _captions(folder / "[df].jpg", limit=1)


def test_a_pipe_or_a_folder_in_place_of_a_caption_stops_nothing(folder: Path) -> None:
    (folder / "a.txt").unlink()
    os.mkfifo(folder / "a.txt")
    (folder / "d.txt").mkdir()
    texts, notes = _captions(folder)
    assert texts == [None, *TEXTS[1:]]
    assert notes["(.txt unreadable)"] == 2
    (folder / f"{'x' * 251}.jpg").touch()  # no file system has a longer name, as that with .json would be
    (folder / "a.json").touch()
    texts, notes = _captions(folder / "x*.jpg", folder / "a.jpg", caption_column="json")
    assert texts == [None, ""]
    assert notes["(images without .json)"] == 1


def test_a_fault_of_the_machine_is_no_missing_caption(folder: Path) -> None:
    assert _captions(folder / "a.jpg")[0] == ["a cat"]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot read the caption .*/a\.txt: Too many open files; check"):
            _captions(folder / "a.jpg")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_all_inputs_together_need_one_caption(folder: Path) -> None:
    assert _captions(folder / "d.jpg", folder / "a.jpg", folder / "f.*")[0] == [None, "a cat", None]
    texts, notes = _captions(folder / "[ab]*")  # which matches their captions too
    assert texts == TEXTS[:2]
    assert notes == {}
    assert _captions(folder / "[ab]*", all_files=True)[0] == texts
    source = SourceSettings(inputs=(str(folder),), caption_column=".txt")
    assert CaptionColumn.find(".txt", Listing(listers(source), None, ()).schema).name == "txt"
    assert _captions(folder, caption_column=".txt")[0] == TEXTS


def test_large_captions_come_in_batches_of_64_mib(tmp_path: Path) -> None:
    caption = "ten bytes " * (MAX_BYTES // 10)
    (tmp_path / "caption").write_text(caption)
    for number in range(70):
        (tmp_path / f"{number:02}.jpg").touch()
        os.link(tmp_path / "caption", tmp_path / f"{number:02}.txt")
    source = SourceSettings(inputs=(str(tmp_path),), caption_column="txt")
    batches = list(Listing(listers(source), None, ()).batches())
    assert [batch.num_rows for batch in batches] == [64, 6]
    table = pa.Table.from_batches(batches)
    assert table["txt"].unique().to_pylist() == [caption]
    assert table["uri"].to_pylist() == [str(tmp_path / f"{number:02}.jpg") for number in range(70)]


def test_a_suffix_that_no_image_has_is_refused(folder: Path) -> None:
    for inputs in ([folder], [folder / "*.jpg"], [folder / "a.jpg"], [folder / "a.jpg", folder / "sub", folder / "b*"]):
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
    assert _captions(f"{bucket}/in", limit=2) == (TEXTS[:2], {})
    assert _captions(f"{bucket}/in/a.jpg")[0] == ["a cat"]


def test_the_query_of_a_url_stays() -> None:
    with web() as server:
        server.answers["/in/a.v2.txt"] = parts_of(b"a cat")
        image = f"{server.root}/in/a.v2.jpg?token=1.5/x.y"
        assert _captions(image)[0] == ["a cat"]
        assert {path for path, *_ in server.seen} == {"/in/a.v2.txt?token=1.5/x.y"}
        server.answers["/in/a.v2.txt"] = status(403)  # as if the query were a signature of the image alone
        with pytest.raises(InputError, match=r"a\.v2\.txt"):
            _captions(image)


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
