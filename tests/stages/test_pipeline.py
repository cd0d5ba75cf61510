"""The invariant: every manifest row becomes one output row, in order, with the right status, whatever is wrong."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from tests.conftest import DEMO, Cli, rows
from tests.support.corpus import BROKEN, Expected, make_folder

FILES = 2_000


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Expected]]:
    folder = tmp_path_factory.mktemp("dirty")
    return folder, make_folder(folder, FILES, seed=7)


@pytest.mark.parametrize("decoder", ["auto", "dali"])
@pytest.mark.parametrize("batch_size", [1, 64, 256])
def test_every_file_becomes_one_row_in_order_with_its_status(
    cli: Cli, warm: Cli, dirty: tuple[Path, list[Expected]], tmp_path: Path, decoder: str, batch_size: int
) -> None:
    folder, expected = dirty
    clipbatch = cli if decoder == "dali" else warm  # DALI may end its process
    settings = ("--decoder", decoder, "--batch-size", batch_size, "--shard-size", 512, "--device", "cpu")
    made = json.loads(clipbatch("run", folder, *DEMO, *settings, "--out", tmp_path / "out", "--json").stdout)
    table = rows(tmp_path / "out")
    assert made["this_run"]["restarts"] == 0
    assert table["row_id"].to_pylist() == list(range(FILES))
    assert table["uri"].to_pylist() == [f"{folder}/{one.name}" for one in expected]
    wrong = [
        (one.kind, status, error)
        for one, status, error in zip(expected, table["status"].to_pylist(), table["error"].to_pylist(), strict=True)
        if status not in one.statuses
    ]
    assert wrong == []
    assert len({one.kind for one in expected} & BROKEN.keys()) >= 15
    scored = pc.is_valid(table["scores"])
    assert scored.equals(pc.equal(table["status"].cast("string"), "ok"))
    assert scored.equals(pc.is_valid(table["label"]))
    assert warm("verify", tmp_path / "out").stdout.startswith(f"{tmp_path}/out: {FILES} rows")


def test_a_rows_scores_do_not_depend_on_its_neighbours(
    warm: Cli, dirty: tuple[Path, list[Expected]], tmp_path: Path
) -> None:
    folder, expected = dirty
    good = [one for one in expected if one.statuses == {"ok"}][:96]
    bad = [one for one in expected if "ok" not in one.statuses][:96]
    for name, names in (
        ("alone", [one.name for one in good]),
        ("mixed", [one.name for pair in zip(good, bad, strict=True) for one in pair]),
    ):
        (tmp_path / f"{name}.txt").write_text("\n".join(names))
        warm("run", tmp_path / f"{name}.txt", "--root", folder, *DEMO, "--out", tmp_path / name)
    alone = {row["uri"]: row["scores"] for row in rows(tmp_path / "alone").to_pylist()}
    mixed = {row["uri"]: row["scores"] for row in rows(tmp_path / "mixed").to_pylist() if row["status"] == "ok"}
    assert mixed.keys() == alone.keys()
    for uri, scores in alone.items():
        assert mixed[uri] == pytest.approx(scores, abs=2e-2), uri  # bf16, and another place in the batch


def test_entries_that_are_not_files_get_a_row_and_neighbours_their_scores(warm: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    picture = next(one for one in make_folder(tmp_path / "one", 1, seed=1, bad_fraction=0))
    data = (tmp_path / "one" / picture.name).read_bytes()
    names = ["plain.jpg", "a b.jpg", "line\nbreak.jpg", "🐝.jpg", "quote\"'.jpg", os.fsdecode(b"bytes-\xff\xfe.jpg")]
    for name in names:
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("nowhere", folder / "dangling.jpg")
    os.symlink("loop.jpg", folder / "loop.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.jpg"))
        warm("run", folder, *DEMO, "--out", tmp_path / "out")
    statuses = {os.path.basename(row["uri"]): row["status"] for row in rows(tmp_path / "out").to_pylist()}
    bad = {"folder.jpg", "pipe.jpg", "socket.jpg"}
    missing = {"dangling.jpg", "loop.jpg"}
    assert len(statuses) == len(names) + len(bad) + len(missing)
    assert {name for name, status in statuses.items() if status == "unreadable"} == bad
    assert {name for name, status in statuses.items() if status == "missing"} == missing
    assert statuses["line\nbreak.jpg"] == statuses["bytes-%FF%FE.jpg"] == "ok"


def test_a_file_without_read_permission_is_unreadable(tmp_path: Path) -> None:
    first, _ = make_folder(tmp_path / "in", 2, seed=1, bad_fraction=0)
    os.chmod(tmp_path / "in" / first.name, 0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    command = [sys.executable, "-m", "clipbatch", "run", tmp_path / "in", *DEMO, "--out", tmp_path / "out", "-q"]
    subprocess.run([*(drop if os.getuid() == 0 else []), *command], check=True)
    found = rows(tmp_path / "out")
    is_first = [uri.endswith(first.name) for uri in found["uri"].to_pylist()]
    assert sorted(zip(is_first, found["status"].to_pylist(), strict=True)) == [(False, "ok"), (True, "unreadable")]
