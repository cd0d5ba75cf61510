"""Whole runs over archives: the same rows as of a folder, also after kills and damage, and no wrong scores."""

import json
import random
import re
import signal
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.errors import InputError
from tests.conftest import DEMO, Cli, error_in, rows, start
from tests.support.corpus import GOOD, make_folder, photo
from tests.support.packing import item, listed, names, read, tar, zipped

FILES = 300
MUTATIONS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad images, and the same ones in archives beside it, in the same order."""
    folder = tmp_path_factory.mktemp("archives")
    listing = make_folder(folder / "in", FILES, seed=31, bad_fraction=0.2)
    members = [(f"in/{one.name}", (folder / "in" / one.name).read_bytes()) for one in listing]
    tar(folder / "in.tar", members)
    zipped(folder / "stored.zip", members)
    zipped(folder / "deflated.zip", members, zipfile.ZIP_DEFLATED)
    (folder / "shards").mkdir()
    for number in range(3):
        tar(folder / "shards" / f"{number:04}.tar", members[number * 100 : number * 100 + 100])
    return folder


@pytest.fixture(scope="module")
def expected(warm: Cli, folder: Path) -> pa.Table:
    """The rows of the folder."""
    warm("run", folder / "in", *DEMO, "--shard-size", 64, "--out", folder / "expected")
    return rows(folder / "expected")


@pytest.mark.parametrize("name", ["in.tar", "stored.zip", "deflated.zip", "shards/{0000..0002}.tar"])
def test_the_images_of_an_archive_have_the_scores_that_they_have_as_files(
    warm: Cli, folder: Path, expected: pa.Table, tmp_path: Path, name: str
) -> None:
    warm("run", name, *DEMO, "--shard-size", 64, "--out", tmp_path / "out", cwd=folder)
    found = rows(tmp_path / "out")
    assert found.drop_columns("uri").equals(expected.drop_columns("uri"))
    assert names(found.to_pylist()) == [Path(uri).relative_to(folder).as_posix() for uri in expected["uri"].to_pylist()]
    containers = {uri.partition("#")[0] for uri in found["uri"].to_pylist()}
    assert containers == ({name} if "shards" not in name else {f"shards/{number:04}.tar" for number in range(3)})
    assert "300 rows" in warm("verify", tmp_path / "out").stdout


def test_killed_runs_leave_the_same_parts_as_an_undisturbed_run(warm: Cli, folder: Path, tmp_path: Path) -> None:
    command = ("run", folder / "shards", *DEMO, "--shard-size", 32)
    warm(*command, "--out", tmp_path / "whole")
    dice = random.Random(3)
    for _ in range(3):
        process = start(*command, "--out", tmp_path / "killed")
        try:
            process.wait(dice.uniform(1, 7))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        for part in list((tmp_path / "killed").glob("parts/part-*.parquet"))[::2]:
            part.unlink()
    warm(*command, "--out", tmp_path / "killed")
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "parts").iterdir()} for name in ("whole", "killed")
    )
    assert killed == whole


def test_a_cut_off_tar_keeps_its_rows_and_plan_and_report_mention_it(
    warm: Cli, folder: Path, expected: pa.Table, tmp_path: Path
) -> None:
    whole = (folder / "in.tar").read_bytes()
    all_rows, _ = listed(folder / "in.tar")
    cut = next(row["span"]["start"] for row in all_rows[200:] if row["span"]["length"] > 2000) + 1000
    (tmp_path / "cut.tar").write_bytes(whole[:cut])
    command = (tmp_path / "cut.tar", *DEMO, "--shard-size", 64, "--out", tmp_path / "out")
    note = {f"({tmp_path}/cut.tar ends early)": 1}
    assert json.loads(warm("plan", *command, "--json").stdout)["passed_over"] == note
    said = warm("run", *command).stdout
    assert "passed over, or noted: 1 (" in said
    assert "cut.tar ends early)" in said
    assert json.loads((tmp_path / "out" / "report.json").read_text())["passed_over"] == note
    found = rows(tmp_path / "out")
    before = found.num_rows - 1
    assert before >= 200
    assert found.slice(0, before).drop_columns("uri").equals(expected.slice(0, before).drop_columns("uri"))
    last = found.slice(before).to_pylist()[0]
    assert last["status"] == "truncated"
    assert last["error"].startswith("the archive ends here, after 1000 of ")


def test_sidecars_and_archives_of_several_kinds_are_one_table(warm: Cli, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    photo(np.random.default_rng(1), 80, 60).save(picture)
    image = picture.read_bytes()
    tar(tmp_path / "a.tar", [("k/1.png", image), ("k/1.json", b'{"caption": "one"}'), ("k/1.score", b"0.5")])
    zipped(tmp_path / "b.zip", [("2.score", b"0.25"), ("2.png", image), ("3.png", image)])
    inputs = (tmp_path / "a.tar", tmp_path / "b.zip", picture)
    warm("run", *inputs, *DEMO, "--columns", "json,score", "--out", tmp_path / "out")
    found = rows(tmp_path / "out").to_pylist()
    assert [(row["json"], row["input_score"]) for row in found] == [
        ('{"caption": "one"}', "0.5"),
        (None, "0.25"),
        (None, None),
        (None, None),
    ]
    assert {row["status"] for row in found} == {"ok"}
    assert len({row["score"] for row in found}) == 1


def test_an_archive_that_is_replaced_between_plan_and_run_gives_no_scores(
    warm: Cli, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes((folder / "shards" / "0000.tar").read_bytes())
    command = (path, *DEMO, "--shard-size", 64, "--out", tmp_path / "out")
    warm("plan", *command)
    path.write_bytes((folder / "shards" / "0001.tar").read_bytes())
    warm("run", "--out", tmp_path / "out", code=4)  # as it was planned; with an input, it would be planned anew
    found = rows(tmp_path / "out").to_pylist()
    assert {row["status"] for row in found} <= {"corrupt", "truncated", "empty"}
    assert all("changed after it was listed" in row["error"] for row in found if row["status"] == "corrupt")
    assert {row["score"] for row in found} == {None}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.tar", b"<html>not found</html>", "is not a tar archive"),
        ("x.zip", b"<html>not found</html>", "is not a zip archive"),
        ("x.tar.gz", b"", "is compressed as a whole"),
        ("x-{0..1}.tar", b"", "'x-0.tar' of 'x-{0..1}.tar' does not exist"),
        ("*.gif", b"", "nothing matches the pattern '*.gif'"),
    ],
)
def test_refused_archives_end_with_exit_code_3_and_leave_nothing(
    warm: Cli, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    if "." in name and not set(name) & set("{*"):
        (tmp_path / name).write_bytes(content)
    refused = warm("run", name, *DEMO, "--out", "out", code=3, cwd=tmp_path)
    assert refused.stdout == ""
    assert said in error_in(refused.stderr)
    assert not (tmp_path / "out").exists()


def _mutated(dice: random.Random, data: bytes, headers: list[int]) -> bytes:
    """`data` with some bits flipped, most of them in `headers`, or cut off, or both."""
    changed = bytearray(data)
    for _ in range(dice.choice((0, 1, 1, 2, 10, 200))):
        at = dice.choice(headers) + dice.randrange(300) if dice.random() < 0.7 else dice.randrange(len(data))
        changed[min(at, len(data) - 1)] ^= 1 << dice.randrange(8)
    return bytes(changed[: dice.randrange(len(data))] if dice.random() < 0.3 else changed)


def _mutations(folder: Path, kind: str, count: int) -> tuple[list[Path], set[bytes]]:
    """Damaged archives of one kind, and the contents that their members have when whole."""
    rng = np.random.default_rng(8)
    contents = [good(rng)[1][:3000] for good in list(GOOD.values())[::2]]
    members = [(f"{'long/' * (30 * (n % 5 == 0))}{n}.jpg", content) for n, content in enumerate(contents)]
    if kind.endswith("tar"):
        pack = tar(folder / kind, members, tarfile.GNU_FORMAT if kind == "gnu.tar" else tarfile.PAX_FORMAT)
    else:
        pack = zipped(folder / kind, members, zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED)
    data, dice, made = pack.read_bytes(), random.Random(kind), []
    headers = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", data)]
    headers += [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    pack.unlink()
    for number in range(count):
        made.append(folder / f"{kind[:-4]}-{number:04}{kind[-4:]}")
        made[-1].write_bytes(_mutated(dice, data, headers))
    return made, set(contents)


def _listing(path: Path) -> list[dict[str, Any]] | None:
    """The rows of the archive at `path`; None where it is refused."""
    try:
        return listed(path)[0]
    except InputError as error:
        if str(path) not in str(error):
            raise
        return None


@pytest.mark.parametrize("kind", ["gnu.tar", "pax.tar", "stored.zip", "deflated.zip"])
def test_a_damaged_archive_is_refused_or_each_of_its_rows_gets_a_status(tmp_path: Path, kind: str) -> None:
    paths, contents = _mutations(tmp_path, kind, MUTATIONS)
    taken = [found for path in paths if (found := _listing(path)) is not None]
    assert MUTATIONS * 0.3 < len(taken) < MUTATIONS
    statuses = set()
    for found in taken:
        got = read(found)
        assert len(got) == len(found)
        statuses |= {one.partition(":")[0] for one in got if isinstance(one, str)}
        if kind.endswith("zip"):  # whose checksums cover the data
            assert {one for one in got if isinstance(one, bytes)} <= contents
    assert "corrupt" in statuses or kind.endswith("tar")
    assert "truncated" in statuses or kind.endswith("zip")


def test_a_run_over_damaged_archives_writes_every_row(warm: Cli, tmp_path: Path) -> None:
    paths = [path for kind in ("gnu.tar", "deflated.zip") for path in _mutations(tmp_path, kind, 24)[0]]
    found = [(path, _listing(path)) for path in paths]
    for path, listing in found:
        if listing is None:
            path.unlink()
    warm("run", tmp_path, *DEMO, "--shard-size", 64, "--out", tmp_path.with_name("out"))
    expected = [row["uri"] for _, listing in sorted(found, key=lambda one: one[0].name) for row in listing or ()]
    assert rows(tmp_path.with_name("out"))["uri"].to_pylist() == expected
    warm("verify", tmp_path.with_name("out"))


def test_the_manifest_of_a_run_points_to_every_member(warm: Cli, folder: Path, tmp_path: Path) -> None:
    warm("plan", folder / "in.tar", *DEMO, "--out", tmp_path / "out")
    (part,) = (tmp_path / "out" / "manifest").iterdir()
    for row in pq.read_table(part).to_pylist()[::50]:
        where = item(row)
        assert where.span
        with open(where.path, "rb") as archive:
            archive.seek(where.span.start)
            assert archive.read(where.span.length) == (folder / row["uri"].partition("#")[2]).read_bytes()
