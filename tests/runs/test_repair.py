"""Repairs never cost a row that was ok, and files deleted during a run are named at its end."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import photo

FILES, SHARD = 96, 32
COMMAND = (*DEMO, "--batch-size", SHARD, "--shard-size", SHARD)
SECOND = "part-00001.parquet"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, and one empty file in every shard."""
    folder, rng = tmp_path_factory.mktemp("repair") / "in", np.random.default_rng(3)
    folder.mkdir()
    for number in range(FILES):
        path = folder / f"{number:03}.jpg"
        if number % SHARD == 5:
            path.touch()
        else:
            photo(rng, 60, 50).save(path, quality=85)
    return folder


@pytest.fixture(scope="module")
def whole(warm: Cli, images: Path) -> Path:
    """A run over `images` that nothing disturbed."""
    warm("run", images, *COMMAND, "--out", images.with_name("whole"))
    return images.with_name("whole")


@pytest.fixture(scope="module")
def other(warm: Cli, images: Path) -> Path:
    """A run over `images` with other scores."""
    warm("run", images, *COMMAND, "--score", "cosine", "--out", images.with_name("other"))
    return images.with_name("other")


@pytest.fixture
def moved(images: Path, tmp_path: Path) -> Path:
    """A copy of `images` at the place that a run of `out` knows; to be moved away and back."""
    shutil.copytree(images, tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def out(warm: Cli, moved: Path, tmp_path: Path) -> Path:
    """A finished run over `moved`."""
    warm("run", moved, *COMMAND, "--out", tmp_path / "out")
    return tmp_path / "out"


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").iterdir()}


def flip(path: Path, at: float) -> bytes:
    """Flip a bit of the file, `at` of the way through it; returns what it holds then."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(data)
    return bytes(data)


def test_a_damaged_part_stays_as_long_as_its_images_are_gone(warm: Cli, moved: Path, out: Path) -> None:
    before = parts(out)
    damaged = flip(out / "parts" / SECOND, 0.3)
    moved.rename(moved.with_name("elsewhere"))
    error = warm("run", "--out", out, "--repair", code=5).stderr
    assert f"{out / 'parts' / SECOND}: its footer counts 31 ok, 1 empty, and the new rows are 0 ok, 32 missing" in error
    assert f"put the images back, then clipbatch run --out {out} --repair; or take the new rows with --force" in error
    assert parts(out) == before | {SECOND: damaged}
    report = json.loads((out / "report.json").read_text())
    assert (report["rows_done"], report["parts"]["done"]) == (FILES - SHARD, 2)
    assert SECOND in report["this_run"]["kept"][0]
    assert SECOND in warm("verify", out, code=5).stderr
    moved.with_name("elsewhere").rename(moved)
    assert (
        "repaired: 1 parts that were damaged or missing, now with 31 ok, 1 empty"
        in warm("run", "--out", out, "--repair").stdout
    )
    assert parts(out) == before


def test_force_takes_the_new_rows_and_reports_their_statuses(warm: Cli, moved: Path, out: Path) -> None:
    before = parts(out)
    flip(out / "parts" / SECOND, 0.3)
    moved.rename(moved.with_name("elsewhere"))
    said = warm("run", "--out", out, "--repair", "--force").stdout
    assert "repaired: 1 parts that were damaged or missing, now with 0 ok, 32 missing" in said
    assert "62 ok, 32 missing, 2 empty" in said
    assert {name for name, data in parts(out).items() if data == before[name]} == before.keys() - {SECOND}
    warm("verify", out)
    moved.with_name("elsewhere").rename(moved)
    warm("run", "--out", out, "--retry-bad")
    assert parts(out) == before


@pytest.mark.parametrize(("hidden", "code"), [(31, 5), (30, 0)])
def test_a_part_that_cannot_be_read_at_all_is_replaced_as_soon_as_one_row_is_ok(
    warm: Cli, moved: Path, out: Path, hidden: int, code: int
) -> None:
    (out / "parts" / SECOND).write_bytes(b"")
    good = [number for number in range(SHARD, 2 * SHARD) if number != SHARD + 5]
    for number in good[:hidden]:
        (moved / f"{number:03}.jpg").unlink()
    made = warm("run", "--out", out, "--repair", code=code)
    if code:
        assert "its rows cannot be counted, and the new rows are 0 ok, 31 missing, 1 empty" in made.stderr
        assert (out / "parts" / SECOND).read_bytes() == b""
    else:
        assert "repaired: 1 parts that were damaged or missing, now with 1 ok, 30 missing, 1 empty" in made.stdout
        warm("verify", out)


def test_a_whole_part_of_another_run_is_replaced_by_one_that_is_as_good(
    warm: Cli, moved: Path, out: Path, other: Path
) -> None:
    before, foreign = parts(out), parts(other)[SECOND]
    (out / "parts" / SECOND).write_bytes(foreign)
    (moved / "040.jpg").rename(moved / "040.away")
    assert "31 ok, 1 empty, and the new rows are 30 ok" in warm("run", "--out", out, "--repair", code=5).stderr
    assert parts(out)[SECOND] == foreign
    (moved / "040.away").rename(moved / "040.jpg")
    warm("run", "--out", out, "--repair")
    assert parts(out) == before


def _rewritten(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: _rewritten(data, b'"ok": 31', b'"ok": 39'),
        lambda data: _rewritten(data, b'"empty": 1', b'"eepty": 1'),
        lambda data: _rewritten(data, b'{"empty": 1, "ok": 31}', b'["empty"]             '),
        lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
        lambda data: data[::-1],
    ],
    ids=["counts", "status", "list", "footer", "all"],
)
def test_a_damaged_footer_does_not_prevent_a_repair(
    warm: Cli, images: Path, whole: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    part = tmp_path / "out" / "parts" / SECOND
    part.write_bytes(spoil(part.read_bytes()))
    warm("run", "--out", tmp_path / "out", "--repair")
    assert parts(tmp_path / "out") == parts(whole)


def test_a_folder_in_the_place_of_a_part_makes_room_for_it(warm: Cli, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "parts" / SECOND).unlink()
    (tmp_path / "out" / "parts" / SECOND).mkdir()
    warm("run", "--out", tmp_path / "out", "--repair")
    assert parts(tmp_path / "out") == parts(whole)


@pytest.mark.parametrize("harm", ["scores", "status", "other run"])
def test_retry_bad_refuses_a_damaged_part(warm: Cli, moved: Path, out: Path, other: Path, harm: str) -> None:
    part = out / "parts" / SECOND
    if harm == "other run":
        part.write_bytes(parts(other)[SECOND])
    else:
        chunks = pq.ParquetFile(part).metadata.row_group(0)
        columns = [chunks.column(number) for number in range(chunks.num_columns)]
        (chunk,) = [column for column in columns if column.path_in_schema.startswith(harm)]
        flip(part, (chunk.data_page_offset + chunk.total_compressed_size - 3) / part.stat().st_size)
    photo(np.random.default_rng(1), 50, 50).save(moved / f"{SHARD + 5:03}.jpg")
    before = part.read_bytes()
    error = warm("run", "--out", out, "--retry-bad", code=5).stderr
    assert str(part) in error
    assert f"clipbatch run --out {out} --repair" in error
    assert part.read_bytes() == before
    warm("run", "--out", out, "--retry-bad", "--repair")
    assert rows(out)["status"].to_pylist().count("empty") == 2
    warm("verify", out)


def test_bad_rows_are_tried_again_without_the_images_of_the_others(warm: Cli, moved: Path, out: Path) -> None:
    before = rows(out)
    moved.rename(moved.with_name("elsewhere"))
    moved.mkdir()
    photo(np.random.default_rng(1), 50, 50).save(moved / "005.jpg")
    warm("run", "--out", out, "--retry-bad")
    after = rows(out)
    assert [n for n, status in enumerate(after["status"].to_pylist()) if status == "missing"] == [37, 69]
    same = pa.array([number % SHARD != 5 for number in range(FILES)])
    assert after.filter(same).equals(before.filter(same))
    assert after["status"][5].as_py() == "ok"


def test_in_a_store_too_a_part_stays_as_long_as_its_images_are_gone(
    warm: Cli, moved: Path, s3: pafs.S3FileSystem, bucket: str
) -> None:
    out = f"{bucket}/repair"
    name = f"{out.removeprefix('s3://')}/parts/{SECOND}"

    def read() -> bytes:
        return bytes(s3.open_input_file(name).read())

    warm("run", moved, *COMMAND, "--out", out)
    whole = read()
    damaged = whole[:200] + b"?" + whole[201:]
    with s3.open_output_stream(name) as stream:
        stream.write(damaged)
    moved.rename(moved.with_name("elsewhere"))
    error = warm("run", "--out", out, "--repair", code=5).stderr
    assert f"{out}/parts/{SECOND}: its footer counts 31 ok, 1 empty, and the new rows are 0 ok, 32 missing" in error
    assert read() == damaged
    moved.with_name("elsewhere").rename(moved)
    warm("run", "--out", out, "--repair")
    assert read() == whole


@pytest.mark.parametrize(
    ("also", "said"), [((), "--force is for --repair"), (("--incremental",), "--incremental adds")]
)
def test_force_is_refused_without_repair(
    warm: Cli, images: Path, tmp_path: Path, also: tuple[str, ...], said: str
) -> None:
    assert said in warm("run", images, *COMMAND, "--force", *also, "--out", tmp_path / "out", code=3).stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def many(images: Path) -> Path:
    """A manifest of the images, many times over."""
    listed = images.with_name("many.txt")
    listed.write_text("\n".join(str(path) for path in sorted(images.iterdir())) * 20)
    return listed


@pytest.mark.parametrize("what", ["parts/part-00000.parquet", "manifest/part-00000.parquet", "model.json"])
def test_files_deleted_during_a_run_are_named_and_the_same_command_completes_the_run(
    warm: Cli, many: Path, tmp_path: Path, what: str
) -> None:
    command = ("run", many, *COMMAND, "--out", tmp_path / "out")
    victim, last = tmp_path / "out" / what, tmp_path / "out" / "parts" / "part-00059.parquet"
    kept: list[bytes] = []

    def take_away() -> None:
        while not (victim.exists() and (tmp_path / "out" / "parts" / "part-00000.parquet").exists()):
            time.sleep(0.001)
        if not last.exists():
            kept.append(victim.read_bytes())
            victim.unlink()

    thief = threading.Thread(target=take_away)
    thief.start()
    made = warm(*command, code=5)
    thief.join()
    assert made.stdout == ""
    assert f"somebody has deleted 1 files of this run:\n{victim}\nremedy: " in made.stderr
    if victim.parent.name == "parts":
        assert "the same command makes the parts again" in made.stderr
        assert json.loads((tmp_path / "out" / "report.json").read_text())["parts"]["done"] == 59
    else:
        assert "put back the files that are not parts" in made.stderr
        victim.write_bytes(kept[0])
    warm(*command)
    assert victim.read_bytes() == kept[0]
    warm("verify", tmp_path / "out")


@pytest.mark.parametrize("what", ["manifest/part-00000.parquet", "model.json"])
def test_files_deleted_before_a_run_are_named_even_if_nothing_is_left_to_do(
    warm: Cli, whole: Path, tmp_path: Path, what: str
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / what).unlink()
    code = 3 if what == "model.json" else 5  # its copy can be put back, which the message says
    assert str(tmp_path / "out" / what) in warm("run", "--out", tmp_path / "out", code=code).stderr
