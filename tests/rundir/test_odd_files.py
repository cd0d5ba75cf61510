"""Files of a run directory with content that no version has written: one line and exit code 3 from every command.

The run is one of an old version, whose files carry no digest: what shows there is what they hold, and nothing else.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipbatch.errors import InputError
from clipbatch.rundir import records
from clipbatch.rundir.layout import RunDir
from tests.conftest import Cli
from tests.support.old_run import FIXTURE, every_command, refused, tree


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run of a version that wrote no digests."""
    folder = shutil.copytree(FIXTURE, tmp_path / "old")
    shutil.copytree(folder / "finished", folder / "run" / "parts", dirs_exist_ok=True)
    return folder


NESTED = b"[" * 10_000 + b"]" * 10_000
ODD = {
    **{"empty": b"", "a list": b"[]", "a number": b"3", "a text": b'"x"', "null": b"null", "nothing in it": b"{}"},
    **{"no UTF-8": b'{"rows": "\xff"}', "cut": b'{"rows": 4,', "deep": NESTED, "not a number": b'{"rows": NaN}'},
}
"""Contents of a JSON file that no version writes."""


@pytest.mark.parametrize("name", ["run.json", "model.json", "text.npy"])
def test_an_odd_file_is_refused_in_one_line_by_every_command(warm: Cli, old: Path, name: str) -> None:
    readers = [line for line in every_command("images") if name != "text.npy" or line[0] in ("verify", "run")]
    if name == "model.json":  # planning and submitting know what the model is to be, and need not know what it was
        readers = [line for line in readers if line[0] not in ("plan", "submit")]
    odd = ODD if name != "text.npy" else ODD | _odd_arrays()
    for what, content in odd.items():
        (old / "run" / name).write_bytes(content)
        for command in readers if what in ("empty", "a list") else readers[:2]:
            assert f"run/{name} is damaged: " in refused(warm, old, *command), what
    (old / "run" / name).unlink()
    (old / "run" / name).mkdir()
    for command in readers[:2]:
        assert f"run/{name} is damaged: Is a directory" in refused(warm, old, *command)


def _odd_arrays() -> dict[str, bytes]:
    good = np.load(FIXTURE / "run" / "text.npy")
    arrays = {
        "no rows": good[:0],
        "too few": good[1:],
        "one row": good[0],
        "doubles": good.astype(np.float64),
        "numbers": np.arange(12),
        "texts": np.array(["a"] * 12),
        "not unit": good * 2,
        "no number": good * np.nan,
        "zeros": good * 0,
    }
    made = {}
    for what, array in arrays.items():
        np.save(path := Path(os.environ.get("TMPDIR", "/tmp")) / f"odd-{os.getpid()}.npy", array, allow_pickle=False)
        made[what] = path.read_bytes()
        path.unlink()
    header = (FIXTURE / "run" / "text.npy").read_bytes()
    return made | {"huge": header.replace(b"(12, ", b"(1000000000000, ", 1), "half": header[:2000]}


VALUES: list[Any] = ["x", "12", "", 0, -1, 10**15, 10**400, 1.5, True, None, [], [[]], {}, {"a": []}, [None], "\ud800"]
GONE = object()


def _spoiled(value: dict[str, Any], where: tuple[str, ...], new: object) -> bytes:
    made = json.loads(json.dumps(value))
    into = made
    for key in where[:-1]:
        into = into[key]
    if new is GONE:
        del into[where[-1]]
    else:
        into[where[-1]] = new
    return json.dumps(made).encode()


@pytest.mark.parametrize("name", ["run.json", "model.json"])
def test_every_odd_value_of_every_key_gives_a_one_line_error(warm: Cli, old: Path, name: str) -> None:
    """`check` refuses a value or accepts it; every later reader accepts what `check` accepts."""
    path = old / "run" / name
    value = json.loads(path.read_bytes())
    inner = [key for key in ("identity", "settings", "manifest_sha256", "passed_over", "versions") if key in value]
    keys = [(key,) for key in value] + [(key, each) for key in inner for each in value[key]]
    let_through = set()
    for where in keys:
        for new in [*VALUES, GONE]:
            if _spoiled(value, where, new) == json.dumps(value).encode():
                continue
            path.write_bytes(_spoiled(value, where, new))
            run = RunDir(old / "run")
            refusal = ""
            try:
                plan, facts = run.plan(), run.model_facts()
            except InputError as error:
                refusal = str(error)
            if refusal:
                assert "\n" not in refusal
                assert f"{path} " in refusal
                continue
            let_through.add(where)
            assert facts
            assert len(plan.labels.names) == 12
            assert plan.shards == 12
    if name == "run.json":
        assert {where for where in let_through if where[0] == "identity"} == {("identity", "inputs")}
        freely = {"passed_over", "versions", "duplicates", "manifest_sha256", "settings", "identity"}
        assert {where[0] for where in let_through} <= freely
        ours = {where[1] for where in let_through if where[0] == "settings"}
        assert not ours & (records.IDENTITY_3 - {"inputs", "labels"})
    else:
        assert let_through <= {("name",), ("interpolation",), ("logit_scale",), ("logit_bias",), ("height",), ("fill",)}
    path.write_bytes(json.dumps(value).encode())


@pytest.mark.parametrize("rows_said", [16, 1, 47, 49, 10**15])
def test_a_wrong_number_of_rows_is_refused_in_runs_without_digests(warm: Cli, old: Path, rows_said: int) -> None:
    plan = json.loads((old / "run" / "run.json").read_text())
    (old / "run" / "run.json").write_text(json.dumps({**plan, "rows": rows_said}))
    for command in ("verify", "compact", "run", "rescore", "status", "report"):
        (line,) = [one for one in every_command("images") if one[0] == command]
        assert "run/run.json is damaged: " in refused(warm, old, *line)
    assert not (old / "files").exists()


def test_a_damaged_plan_of_an_old_run_is_not_reported_as_damaged_parts(warm: Cli, old: Path) -> None:
    text = (old / "run" / "run.json").read_text()
    (old / "run" / "run.json").write_text(text.replace('"a horse"', '"a house"'))
    kept = tree(old / "run" / "parts")
    for command in (["verify", "run"], ["run", "--out", "run", "--repair"]):
        error = refused(warm, old, *command)
        assert "run/run.json or run/model.json is damaged: all 12 parts have another fingerprint" in error
        assert "--repair" not in error
    assert tree(old / "run" / "parts") == kept


def test_an_odd_report_is_left_out_of_the_page(warm: Cli, old: Path) -> None:
    path = old / "run" / "report.json"
    (old / "run" / "parts" / "part-00002.parquet").unlink()
    warm("run", "--out", "run", cwd=old)
    report = json.loads(path.read_text())
    warm("report", "run", cwd=old)
    assert "of it starting and loading the model" in (old / "run" / "report.html").read_text()
    odd = _spoiled(report, ("this_run", "seconds"), "x"), _spoiled(report, ("this_run", "stages"), {"read": 3})
    for content in (*odd, ODD["deep"]):
        path.write_bytes(content)
        warm("report", "run", "--examples", 0, "--out", "page.html", cwd=old)
        assert "48 images" in (old / "page.html").read_text()
