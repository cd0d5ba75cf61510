"""Runs over images of every unusual kind, as files, in tars and in tables; and runs planned with older pixel rules."""

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tests.conftest import DEMO, Cli, rows
from tests.support.decoding import DECODERS, embedded, open_clips
from tests.support.packing import tar
from tests.support.pictures import (
    adobe_xmp,
    app1,
    base,
    chunk,
    deep,
    exif,
    raw_tiff,
    saved,
    stored,
    veiled,
    with_chunks,
    with_segments,
    xmp,
)

TURNED = saved(stored(base(), 6), "JPEG", quality=95, subsampling=0)
GRAY = base().convert("L").convert("RGB")
SOLID = Image.new("RGB", (128, 128), (220, 20, 20))
KINDS: dict[str, tuple[bytes, Image.Image]] = {
    "tiff.tif": (saved(stored(base(), 6), "TIFF", compression="tiff_lzw", tiffinfo={274: 6}), base()),
    "fill.jpg": (with_segments(TURNED, app1(exif(6), fill=2)), base()),
    "empty-first.jpg": (with_segments(TURNED, app1(b"Exif\0\0"), app1(exif(6))), base()),
    "xmp.jpg": (with_segments(TURNED, adobe_xmp(xmp(6))), base()),
    "xmp.png": (
        with_chunks(saved(stored(base(), 8), "PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(8))),
        base(),
    ),
    "alpha.png": (saved(veiled(base()), "PNG"), veiled(base())),
    "alpha.webp": (saved(veiled(base()), "WEBP", lossless=True, exact=True), veiled(base())),
    "deep.png": (saved(Image.fromarray(deep(base(), 65535).astype(np.uint16)), "PNG"), GRAY),
    "float.tif": (raw_tiff((deep(base(), 255) / 255).astype(np.float32)[..., None], 32, form=3), GRAY),
    "animated.png": (
        saved(SOLID, "PNG", save_all=True, append_images=[ImageOps.invert(SOLID)] * 2, default_image=True),
        SOLID,
    ),
    "broken-exif.png": (with_chunks(saved(base(), "PNG"), chunk(b"eXIf", b"\0\x08\0\x02junk")), base()),
    "text.png": (with_chunks(saved(base(), "PNG"), chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(2**21)))), base()),
    "http.jpg": (b"HTTP/1.1 200 OK\r\n\r\n" + saved(base(), "JPEG", quality=95, subsampling=0), base()),
}
UNKNOWN = {"photoshop.jpg": b"8BPS\0\1" + bytes(60), "xl.jpg": b"\xff\x0a" + bytes(60)}
FILES = {name: data for name, (data, _) in KINDS.items()} | UNKNOWN


@pytest.mark.parametrize("way", ["files", "tar", "table"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_unusual_kind_of_image_is_right_in_files_tars_and_tables(
    warm: Cli,
    tmp_path: Path,
    decoder: str,
    way: str,
) -> None:
    source = tmp_path / "in"
    if way == "files":
        source.mkdir()
        for name, data in FILES.items():
            (source / name).write_bytes(data)
    elif way == "tar":
        source = tar(tmp_path / "in.tar", FILES.items())
    else:
        source = tmp_path / "in.parquet"
        pq.write_table(pa.table({"name": list(FILES), "image": list(FILES.values())}), source)
    settings = ("--decoder", decoder, "--device", "cpu", "--precision", "fp32", "--embeddings")
    warm("run", source, *DEMO, *settings, "--out", tmp_path / "out")
    found = rows(tmp_path / "out").to_pylist()
    names = list(FILES) if way == "table" else [Path(row["uri"].rpartition("#")[2]).name for row in found]
    assert sorted(names) == sorted(FILES)
    for name, row in zip(names, found, strict=True):
        if name in UNKNOWN:
            assert row["status"] == "unsupported", row
            continue
        _, picture = KINDS[name]
        assert (row["status"], row["width"], row["height"]) == ("ok", *picture.size), row
        theirs_D = embedded(open_clips(picture)[None])[0]
        assert float(np.dot(theirs_D, np.array(row["embedding"], np.float32))) >= 0.995, name


def _as_before(run: Path) -> None:
    """Make of a plan one of a version whose rules for pixels had no number."""
    plan = json.loads((run / "run.json").read_text())
    assert plan["identity"].pop("pixels") == plan["settings"].pop("pixels") == 2
    assert "background" not in plan["identity"].keys() | plan["settings"].keys()
    del plan["sha256"]
    (run / "run.json").write_text(json.dumps(plan))
    (run / "copies" / "run.json").unlink()


def test_a_run_of_an_older_version_is_finished_with_its_rules_and_one_remark(
    warm: Cli,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    shows = {
        "alpha.png": (saved(veiled(base()), "PNG"), veiled(base()).convert("RGB")),
        "int32.tif": (
            saved(Image.fromarray(deep(base(), 65535).astype(np.int32)), "TIFF"),
            Image.new("RGB", (150, 100), "white"),
        ),
    }
    for name, (data, _) in shows.items():
        (tmp_path / "in" / name).write_bytes(data)
    command = (
        tmp_path / "in",
        *DEMO,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--embeddings",
        "--out",
        tmp_path / "out",
    )
    warm("plan", *command)
    _as_before(tmp_path / "out")
    said = warm("run", *command).stderr
    assert said.count("was planned by an older version and is finished with its rules for pixels") == 1
    assert "transparent pictures, gray of more than 8 bits" in said
    for row in rows(tmp_path / "out").to_pylist():
        _, picture = shows[Path(row["uri"]).name]
        theirs_D = embedded(open_clips(picture)[None])[0]
        assert float(np.dot(theirs_D, np.array(row["embedding"], np.float32))) >= 0.995, row["uri"]
    assert "older version" not in warm("run", *command).stderr  # nothing is left to be done
    assert 'background is "white" now' in warm("run", *command, "--background", "white", code=3).stderr


def test_a_new_run_has_no_remark_and_background_belongs_to_its_identity(warm: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "alpha.png").write_bytes(saved(veiled(base()), "PNG"))
    made = {}
    for name, background in {"none": (), "white": ("--background", "white")}.items():
        said = warm("run", tmp_path / "in", *DEMO, *background, "--embeddings", "--out", tmp_path / name)
        assert "rules" not in said.stderr
        identity = json.loads((tmp_path / name / "run.json").read_text())["identity"]
        assert (identity["pixels"], identity.get("background")) == (2, "white" if background else None)
        made[name] = np.array(rows(tmp_path / name)["embedding"][0].as_py(), np.float32)
    assert float(np.dot(made["none"], made["white"])) < 0.99


def test_an_increment_uses_the_current_rules_and_remarks_on_the_change(warm: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(TURNED)
    command = ("run", tmp_path / "in", *DEMO, "--incremental", "--out", tmp_path / "out")
    warm(*command)
    first, second, third = (tmp_path / "out" / f"increment-{number:05d}" for number in (1, 2, 3))
    _as_before(first)
    (tmp_path / "in" / "b.png").write_bytes(saved(veiled(base()), "PNG"))
    assert f"the rules for pixels have changed since {first}" in warm(*command).stderr
    assert json.loads((second / "run.json").read_text())["identity"]["pixels"] == 2
    (tmp_path / "in" / "c.png").write_bytes(saved(base(), "PNG"))
    assert "have changed" not in warm(*command).stderr
    assert rows(third)["status"].to_pylist() == ["ok"]
