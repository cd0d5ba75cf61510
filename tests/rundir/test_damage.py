"""Damage to the files of a run directory: it is noticed, nothing is done with it, and the remedy mends it."""

import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipbatch.errors import InputError
from clipbatch.rundir import copies, creation, damage, records
from clipbatch.rundir.layout import RunDir
from tests.conftest import DEMO, Cli, rows
from tests.runs.test_old_runs import FIXTURE
from tests.support.flips import KINDS, Flips

FLIPS = 60
COMMANDS = ("status", "verify", "report", "compact", "rescore", "run", "plan", "submit")


@pytest.fixture(scope="module")
def whole(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in `run`, with the inputs of its images beside it; not to be changed."""
    folder = shutil.copytree(FIXTURE, tmp_path_factory.mktemp("whole") / "in", ignore=shutil.ignore_patterns("run"))
    warm(*_run(), "--shard-size", 4, "--batch-size", 4, "--embeddings", "--out", "run", cwd=folder)
    return folder


@pytest.fixture
def here(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole`, which is to be the working folder."""
    return shutil.copytree(whole, tmp_path / "here")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run of a version that wrote no digests."""
    folder = shutil.copytree(FIXTURE, tmp_path / "old")
    shutil.copytree(folder / "finished", folder / "run" / "parts", dirs_exist_ok=True)
    return folder


def _run(inputs: str = "/proc/self/cwd/images") -> tuple[str, ...]:
    return ("run", inputs, "--labels", "groups.toml", "--model", "clipbatch-demo", "--device", "cpu")


def _tree(folder: Path) -> dict[str, bytes]:
    """All files but those that say when something was done."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".counts.json", "report.json", "report.html")
    }


def _every_command(folder: Path, inputs: str) -> list[list[str]]:
    """Each command that reads a run directory, on the run in `folder`."""
    given = {
        "status": ["run"],
        "verify": ["run"],
        "report": ["run", "--out", "page.html"],
        "compact": ["run", "--out", "files"],
        "rescore": ["run", "--labels", "cat,dog", "--out", "again"],
        "run": ["--out", "run"],
        "plan": [inputs, *_run()[2:], "--out", "run"],
        "submit": ["slurm", "--out", "run", "--array", "2", "--dry-run"],
    }
    assert tuple(given) == COMMANDS
    return [[name, *arguments] for name, arguments in given.items()]


def _refused(warm: Cli, folder: Path, *args: str) -> str:
    error = str(warm(*args, code=3, cwd=folder).stderr)
    assert error.startswith("clipbatch: "), args
    assert error.count("\n") == 1, (args, error)
    return error


def test_bits_that_flip_are_noticed_and_the_remedy_makes_the_run_what_it_was(warm: Cli, tmp_path: Path) -> None:
    flips, rng, found = Flips(warm, tmp_path / "flips"), random.Random(12), Counter[str]()
    for number in range(FLIPS):
        made = flips.try_one(list(KINDS)[number % len(KINDS)], rng)
        assert made.said
        assert not made.faults, made
        found[made.kind] += 1
    assert set(found) == set(KINDS)


NESTED = b"[" * 10_000 + b"]" * 10_000
ODD = {
    **{"empty": b"", "a list": b"[]", "a number": b"3", "a text": b'"x"', "null": b"null", "nothing in it": b"{}"},
    **{"no UTF-8": b'{"rows": "\xff"}', "cut": b'{"rows": 4,', "deep": NESTED, "not a number": b'{"rows": NaN}'},
}
"""Contents of a JSON file that no version has written."""


@pytest.mark.parametrize("name", ["run.json", "model.json", "text.npy"])
def test_an_odd_file_is_refused_in_one_line_by_every_command(warm: Cli, old: Path, name: str) -> None:
    readers = [line for line in _every_command(old, "images") if name != "text.npy" or line[0] in ("verify", "run")]
    if name == "model.json":  # planning and submitting know what the model is to be, and need not know what it was
        readers = [line for line in readers if line[0] not in ("plan", "submit")]
    odd = ODD if name != "text.npy" else ODD | _odd_arrays()
    for what, content in odd.items():
        (old / "run" / name).write_bytes(content)
        for command in readers if what in ("empty", "a list") else readers[:2]:
            assert f"run/{name} is damaged: " in _refused(warm, old, *command), what
    (old / "run" / name).unlink()
    (old / "run" / name).mkdir()
    for command in readers[:2]:
        assert f"run/{name} is damaged: Is a directory" in _refused(warm, old, *command)


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
def test_no_odd_value_of_any_key_ends_in_anything_but_one_line(warm: Cli, old: Path, name: str) -> None:
    """What is refused is refused by `check`; what is let through is let through by every later reader as well."""
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
def test_rows_that_the_manifest_does_not_have_are_refused_where_nothing_else_tells(
    warm: Cli, old: Path, rows_said: int
) -> None:
    plan = json.loads((old / "run" / "run.json").read_text())
    (old / "run" / "run.json").write_text(json.dumps({**plan, "rows": rows_said}))
    for command in ("verify", "compact", "run", "rescore", "status", "report"):
        (line,) = [one for one in _every_command(old, "images") if one[0] == command]
        assert "run/run.json is damaged: " in _refused(warm, old, *line)
    assert not (old / "files").exists()


def test_parts_are_not_blamed_for_an_old_run_whose_plan_is_not_theirs_any_more(warm: Cli, old: Path) -> None:
    text = (old / "run" / "run.json").read_text()
    (old / "run" / "run.json").write_text(text.replace('"a horse"', '"a house"'))
    kept = _tree(old / "run" / "parts")
    for command in (["verify", "run"], ["run", "--out", "run", "--repair"]):
        error = _refused(warm, old, *command)
        assert "run/run.json or run/model.json is damaged: all 12 parts were made with others" in error
        assert "--repair" not in error
    assert _tree(old / "run" / "parts") == kept


@pytest.mark.parametrize("name", copies.NAMES)
def test_a_file_that_is_gone_comes_back_from_its_copy_and_a_copy_from_its_file(
    warm: Cli, here: Path, name: str
) -> None:
    before = _tree(here / "run")
    (here / "run" / name).unlink()
    commands = ("verify", "run") if name == "text.npy" else COMMANDS
    for line in _every_command(here, "/proc/self/cwd/images"):
        if line[0] in commands and not (line[0] == "submit" and name != "run.json"):
            error = _refused(warm, here, *line)
            assert f"run/{name} is damaged: it is gone; clipbatch verify " in error
            assert "run --restore puts back its copy" in error
    shown = warm("verify", "run", "--restore", cwd=here)
    assert shown.stderr == f"put back run/{name} from copies/{name}\n"
    assert "every one there once, in order and whole" in shown.stdout
    assert _tree(here / "run") == before
    (here / "run" / "copies" / name).unlink()
    error = warm("verify", "run", cwd=here, code=5).stderr
    assert f"run/copies/{name}: not there" in error
    assert "--repair" not in error
    warm("status", "run", cwd=here)
    warm("verify", "run", "--restore", cwd=here)
    assert _tree(here / "run") == before
    shutil.rmtree(here / "run" / "copies")  # as of one that was killed before it made them
    warm("run", "--out", "run", cwd=here)
    assert _tree(here / "run") == before


def test_where_file_and_copy_are_damaged_nothing_is_put_back_and_a_backup_is_asked_for(warm: Cli, here: Path) -> None:
    for path in (here / "run" / "model.json", here / "run" / "copies" / "model.json"):
        path.write_bytes(path.read_bytes().replace(b"bicubic", b"bicubie"))
    before = _tree(here / "run")
    assert "are both damaged: put one of them back from a backup" in _refused(warm, here, "verify", "run", "--restore")
    assert _tree(here / "run") == before


def test_verify_without_restore_writes_nothing(warm: Cli, here: Path, old: Path) -> None:
    for folder in (here, old):
        (folder / "run" / "parts" / "part-00001.parquet").unlink()
        before = {str(path): path.stat().st_mtime_ns for path in (folder / "run").rglob("*")}
        assert "part-00001.parquet: not there" in warm("verify", "run", cwd=folder, code=5).stderr
        assert {str(path): path.stat().st_mtime_ns for path in (folder / "run").rglob("*")} == before


def test_damaged_files_and_damaged_parts_are_told_apart_with_a_remedy_for_each(warm: Cli, here: Path) -> None:
    (here / "run" / "copies" / "run.json").write_bytes(b"")
    (here / "run" / "parts" / "part-00001.parquet").write_bytes(b"PAR1")
    first, second = warm("verify", "run", cwd=here, code=5).stderr.split("\n\nremedy: clipbatch verify run --restore")
    assert "1 files beside the parts are not as they should be:" in first
    assert "1 of 5 parts are not as they should be:" in second
    assert second.endswith("remedy: clipbatch run --out run --repair\n")
    assert len(json.loads(warm("verify", "run", "--json", cwd=here, code=5).stdout)["problems"]) == 2


def test_a_planner_does_not_clear_away_a_run_that_has_lost_its_plan_unless_it_is_told_to(warm: Cli, here: Path) -> None:
    before = _tree(here / "run")
    (here / "run" / "run.json").unlink()
    error = _refused(warm, here, *_run(), "--out", "run")
    assert "--restore puts back its copy" in error
    assert "--overwrite throws the run away" in error
    assert _tree(here / "run") == {name: data for name, data in before.items() if name != "run.json"}
    warm(*_run(), "--limit", 4, "--out", "run", "--overwrite", cwd=here)
    assert rows(here / "run").num_rows == 4
    warm("verify", "run", cwd=here)
    assert (here / "run" / "copies" / "run.json").read_bytes() == (here / "run" / "run.json").read_bytes()


def test_whoever_is_killed_while_throwing_a_run_away_leaves_no_copy_without_its_plan(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(os, "rename", kill)  # by which run.json goes
    with pytest.raises(KilledError):
        creation.clear(RunDir(here / "run"))
    assert RunDir(here / "run").plan().rows == 18
    assert not (here / "run" / "copies").exists()


def test_a_copy_of_another_plan_gives_way_to_the_plan_that_stands(warm: Cli, here: Path) -> None:
    """As of a planner that was so slow to copy its plan that another one had come in its place meanwhile."""
    before = _tree(here / "run")
    warm(*_run(), "--limit", 8, "--out", "other", cwd=here)
    shutil.copy(here / "other" / "run.json", here / "run" / "copies" / "run.json")
    assert "run/copies/run.json: damaged" in warm("verify", "run", cwd=here, code=5).stderr
    warm("verify", "run", "--restore", cwd=here)
    assert _tree(here / "run") == before


def test_a_run_in_a_store_is_mended_as_one_on_a_disk(warm: Cli, whole: Path, s3: Any, bucket: str) -> None:
    out = f"{bucket}/damaged"
    warm(*_run(), "--shard-size", 4, "--batch-size", 4, "--out", out, cwd=whole)
    for name in copies.NAMES:
        path = RunDir(out).path / name
        content = path.read_bytes()
        for spoil in (lambda p=path: p.unlink(), lambda p=path, c=content: p.write_bytes(c[:-1] + b"?")):
            spoil()
            assert f"{path} is damaged: " in _refused(warm, whole, "verify", out)
            warm("verify", out, "--restore", cwd=whole)
            assert path.read_bytes() == content
        copied = RunDir(out).path / copies.FOLDER / name
        copied.write_bytes(b"")
        assert f"{copied}: damaged" in warm("verify", out, cwd=whole, code=5).stderr
        warm("run", "--out", out, cwd=whole)
        assert copied.read_bytes() == content
    warm("run", "images", *_run()[2:], "--limit", 4, "--out", out, "--overwrite", cwd=whole)
    warm("verify", out, cwd=whole)


def test_label_features_that_are_gone_with_their_copy_come_back_to_the_bit_or_not_at_all(warm: Cli, here: Path) -> None:
    before = _tree(here / "run")
    for path in (here / "run" / "text.npy", here / "run" / "copies" / "text.npy"):
        path.unlink()
    part = here / "run" / "parts" / "part-00001.parquet"
    part.unlink()
    warm("run", "--out", "run", cwd=here)
    assert _tree(here / "run") == before
    facts = json.loads((here / "run" / "model.json").read_text())
    del facts["sha256"]
    for folder in (here / "run", here / "run" / "copies"):
        (folder / "model.json").write_bytes(records.seal(json.dumps({**facts, "text_sha256": "0" * 64}).encode()))
        (folder / "text.npy").unlink()
    part.unlink()
    assert "this machine computes other features to the last bit" in _refused(warm, here, "run", "--out", "run")
    assert not part.exists()
    assert not (here / "run" / "text.npy").exists()


def test_a_rescoring_has_label_features_of_its_own(warm: Cli, here: Path) -> None:
    warm("rescore", "run", "--labels", "cat,dog", "--out", "again", cwd=here)
    ours, theirs = (RunDir(here / name).model_facts() for name in ("again", "run"))
    assert ours
    assert theirs
    assert ours["text_sha256"] != theirs["text_sha256"]
    text = here / "again" / "text.npy"
    text.write_bytes(text.read_bytes()[:-1] + b"?")
    (here / "again" / "parts" / "part-00000.parquet").unlink()
    error = _refused(warm, here, "rescore", "run", "--labels", "cat,dog", "--out", "again")
    assert "again/text.npy is damaged: its bytes are not those that were written" in error
    warm("verify", "again", "--restore", cwd=here, code=5)
    warm("rescore", "run", "--labels", "cat,dog", "--out", "again", cwd=here)
    warm("verify", "again", cwd=here)


def test_an_odd_report_is_left_out_of_the_page(warm: Cli, here: Path) -> None:
    path = here / "run" / "report.json"
    report = json.loads(path.read_text())
    warm("report", "run", cwd=here)
    assert "Bound by" in (here / "run" / "report.html").read_text()
    odd = [_spoiled(report, ("this_run", key), "x") for key in ("rows", "stages", "workers")]
    odd += [_spoiled(report, ("this_run", "stages"), {"read": 3}), _spoiled(report, ("hardware", "cpu"), 10**400)]
    for content in (*odd, ODD["a list"], ODD["deep"]):
        path.write_bytes(content)
        warm("report", "run", "--examples", 0, "--out", "page.html", cwd=here)
        assert "18 images" in (here / "page.html").read_text()


def test_a_damaged_cache_of_label_features_is_said_once_and_made_anew(warm: Cli, here: Path, tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    warm(*_run(), "--out", "first", cwd=here, env=env)
    (cached,) = (tmp_path / "cache" / "clipbatch" / "text").iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    said = [warm(*_run(), "--out", out, cwd=here, env=env) for out in ("second", "third")]
    counts = [(one.stdout + one.stderr).count("were damaged: they are computed anew") for one in said]
    assert counts == [1, 0]
    assert cached.read_bytes() == content
    assert (here / "second" / "text.npy").read_bytes() == (here / "first" / "text.npy").read_bytes()


def test_protecting_a_run_reads_its_files_and_writes_only_what_is_missing(here: Path) -> None:
    run = RunDir(here / "run")
    times = {path.name: path.stat().st_mtime_ns for path in (here / "run" / "copies").iterdir()}
    damage.protect(run, run.plan())
    assert {path.name: path.stat().st_mtime_ns for path in (here / "run" / "copies").iterdir()} == times
    assert sorted(times) == sorted(copies.NAMES)


def test_demo_runs_carry_digests(warm: Cli, here: Path) -> None:
    warm("run", "images", *DEMO, "--out", "plain", cwd=here)
    for name in ("run.json", "model.json", ".counts.json"):
        assert records.unseal((here / "plain" / name).read_bytes())[1] is not None
