"""Old runs go on: a run that e041681 left half done is finished, verified, reported, scored again and compacted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.config import Settings
from clipbatch.rundir import records
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.runs.plan import versions
from tests.conftest import Cli, error_in, rows
from tests.support.old_run import FIXTURE

SHARDS = 12
# What scores and embeddings may differ by where another CPU, or another version of torch, computes them.
NEAR = 1e-5
NUMBERS = ("thing_score", "thing_scores", "moves_score", "moves_scores", "embedding")
IDENTITY = """
all_files batch_size columns compile compression cpu_share decoder embeddings hw_decoder_load image_column inputs
jpeg_scale labels layout limit max_bytes max_pixels model orientation precision pretrained score scores_dtype shard_size
templates threshold top_k uri_column
"""
SETTINGS = """
all_files batch_size columns compile compression cpu_share cpus_per_worker decode_threads decode_timeout decoder device
embeddings engine gpus hw_decoder_load image_column inputs jpeg_scale labels layout limit max_bad max_bytes max_pixels
model orientation precision pretrained profile rank read_retries read_threads read_timeout root score scores_dtype
shard_size shards template top_k uri_column worker_timeout workers world_size
"""
PLAN = "duplicates format identity manifest_rows manifest_sha256 passed_over rescored rows settings versions"
FACTS = "fill height interpolation logit_bias logit_scale mean name resize_mode score std weights_sha256 width"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the fixture, which is to be the working folder of what goes on with it."""
    return shutil.copytree(FIXTURE, tmp_path / "old")


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def numbers(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """All numbers of a column, whether it holds numbers or lists of them; its nulls count for nothing."""
    values = column.combine_chunks()
    return np.asarray((values.flatten() if pa.types.is_nested(values.type) else values.drop_null()).cast(pa.float64()))


def check_same(found: Path, expected: Path = FIXTURE / "finished") -> None:
    """Compare parts: to the byte where this machine and its packages give the same bits, else but for the last bits."""
    ours, theirs = parts(found), parts(expected)
    assert ours.keys() == theirs.keys()
    exact = True
    for name in theirs:
        one, other = pq.read_table(found / name), pq.read_table(expected / name)
        assert one.schema.equals(other.schema, check_metadata=True), name
        footers = [pq.read_metadata(folder / name).metadata for folder in (found, expected)]
        assert {k: v for k, v in footers[0].items() if k != b"ARROW:schema"} == {
            k: v for k, v in footers[1].items() if k != b"ARROW:schema"
        }
        for column in one.column_names:
            if column not in NUMBERS:
                assert one[column].to_pylist() == other[column].to_pylist(), (name, column)
                continue
            assert one[column].is_valid().equals(other[column].is_valid())
            atol = 1e-3 if column == "embedding" else NEAR  # float16
            np.testing.assert_allclose(numbers(one[column]), numbers(other[column]), rtol=0, atol=atol)
            exact = exact and one[column].equals(other[column])
    made_by = json.loads((FIXTURE / "run" / "run.json").read_text())["versions"]
    if exact and versions()["pyarrow"] == made_by["pyarrow"]:
        assert ours == theirs


@pytest.mark.parametrize("done", [0, 4, 6, 8])
def test_an_old_run_is_finished_with_the_parts_of_the_old_version(warm: Cli, old: Path, done: int) -> None:
    for number, part in enumerate(sorted((FIXTURE / "finished").iterdir())):
        target = old / "run" / "parts" / part.name
        target.unlink(missing_ok=True)
        if number < done:
            shutil.copy(part, target)
    kept = parts(old / "run" / "parts")
    before = {name: (old / "run" / name).read_bytes() for name in ("run.json", "model.json", "text.npy")}
    assert json.loads(warm("status", "run", "--json", cwd=old).stdout)["parts_done"] == done
    warm("run", "--out", "run", cwd=old)
    assert "48 rows in 12 parts" in warm("verify", "run", cwd=old).stdout
    check_same(old / "run" / "parts")
    assert kept.items() <= parts(old / "run" / "parts").items()
    assert {name: (old / "run" / name).read_bytes() for name in before} == before
    assert not (old / "run" / "copies").exists()


def test_the_same_command_resumes_an_old_run_and_another_is_refused(warm: Cli, old: Path) -> None:
    inputs = [f"/proc/self/cwd/{name}" for name in ("images", "archive.tar", "table/list.csv")]
    command = ["run", *inputs, "--labels", "groups.toml", "--model", "clipbatch-demo", "--embeddings", "--out", "run"]
    assert "top_k is 3 now and null there" in warm(*command, "--top-k", 3, cwd=old, code=3).stderr
    warm(*command, cwd=old)
    check_same(old / "run" / "parts")


def test_worker_processes_finish_an_old_run_too(cli: Cli, old: Path) -> None:
    cli("run", "--out", "run", cwd=old)
    cli("verify", "run", cwd=old)
    check_same(old / "run" / "parts")


def test_an_old_run_is_reported_rescored_and_compacted(warm: Cli, old: Path) -> None:
    warm("run", "--out", "run", cwd=old)
    warm("report", "run", cwd=old)
    page = (old / "run" / "report.html").read_text()
    assert "48 images" in page
    assert "airplane" in page
    assert json.loads((old / "run" / "report.json").read_text())["status"]["ok"] == 42  # but 5 bad files and 1 missing
    warm("compact", "run", "--out", "files", cwd=old)
    (file,) = (old / "files" / "parts").iterdir()
    assert pq.read_table(file).to_pylist() == rows(old / "run").to_pylist()
    warm("verify", "files", cwd=old)
    warm("run", "--out", "files", "--retry-bad", cwd=old)
    warm("compact", "run", "--out", "flat", "--flat", cwd=old)
    assert pq.read_table(old / "flat").to_pylist() == rows(old / "run").to_pylist()
    warm("rescore", "run", "--out", "again", cwd=old)
    warm("verify", "again", cwd=old)
    for name in NUMBERS[:4]:
        np.testing.assert_allclose(numbers(rows(old / "again")[name]), numbers(rows(old / "run")[name]), atol=2e-3)
    warm("rescore", "run", "--labels", "cat,dog", "--out", "other", cwd=old)
    assert set(rows(old / "other")["label"].to_pylist()) == {"cat", "dog", None}
    warm("run", "--out", "run", "--retry-bad", cwd=old)
    warm("run", "--out", "run", "--repair", cwd=old)
    check_same(old / "run" / "parts")


def test_the_names_that_format_3_has_always_written_are_frozen() -> None:
    """A name that is added to one of these lists changes the fingerprint of every run that is half done."""
    assert sorted(records.IDENTITY_3) == IDENTITY.split()
    assert sorted(records.SETTINGS_3) == SETTINGS.split()
    assert sorted(records.PLAN_3) == PLAN.split()
    assert sorted(records.FACTS_3) == FACTS.split()
    run = json.loads((FIXTURE / "run" / "run.json").read_text())
    assert sorted(run) == PLAN.split()
    assert sorted(run["identity"]) == IDENTITY.split()
    assert sorted(run["settings"]) == SETTINGS.split()
    assert sorted(json.loads((FIXTURE / "run" / "model.json").read_text())) == FACTS.split()


def test_absent_later_fields_mean_as_before() -> None:
    later = Settings().flat().keys() - SETTINGS.split() - {"pixels"}  # new runs have its newest value
    assert {name: Settings().flat()[name] for name in later} == dict.fromkeys(later)
    optional = {name: None for name in Plan.__dataclass_fields__ if name not in PLAN.split()}
    assert {name: Plan.__dataclass_fields__[name].default for name in optional} == optional


def test_a_run_without_a_number_of_pixel_rules_keeps_the_first_rules(old: Path) -> None:
    assert "pixels" not in RunDir(old / "run").plan().settings
    assert RunDir(old / "run").plan().run_settings().decode.pixels is None
    assert Settings().decode.pixels is not None


def test_later_fields_that_are_none_are_not_written_and_not_in_the_fingerprint(old: Path) -> None:
    plan = RunDir(old / "run").plan()
    with_later = Plan(
        **{name: getattr(plan, name) for name in PLAN.split() if name not in ("identity", "settings")},
        identity={**plan.identity, "grain": None},
        settings={**plan.settings, "grain": None},
    )
    assert with_later.fingerprint == plan.fingerprint
    assert b"grain" not in with_later.content()
    assert Plan.of(with_later.content()) == plan
    RunDir(old / "run").check_same(plan, {**plan.identity, "grain": None})
    with_later.identity["grain"] = 2
    assert with_later.fingerprint != plan.fingerprint
    facts = json.loads((FIXTURE / "run" / "model.json").read_text())
    assert RunDir(old / "run").freeze_model({**facts, "text_sha256": None}) == RunDir(old / "run").fingerprint()


def _places() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    yield "run.json", "grain", ()
    yield "run.json", "identity.grain", ("identity",)
    yield "run.json", "settings.grain", ("settings",)
    yield "model.json", "grain", ()


@pytest.mark.parametrize(("name", "said", "where"), list(_places()))
@pytest.mark.parametrize("sealed", [False, True])
def test_an_unknown_key_is_refused_as_one_of_a_newer_version(
    warm: Cli, old: Path, name: str, said: str, where: tuple[str, ...], sealed: bool
) -> None:
    path = old / "run" / name
    value = json.loads(path.read_text())
    into = value
    for key in where:
        into = into[key]
    into["grain"] = 2
    content = json.dumps(value).encode()
    path.write_bytes(records.seal(content) if sealed else content)
    for command in ("status run", "verify run", "run --out run", "report run", "verify run --restore"):
        error = error_in(warm(*command.split(), cwd=old, code=3).stderr)
        assert f"{name} was written by a newer clipbatch: it has {said}, which this version does not know" in error
