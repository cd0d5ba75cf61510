"""A run directory from planning to deletion: rows, shards, fingerprint, and everything that is refused."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipbatch.config import Settings, auto, from_flat, labels
from clipbatch.errors import InputError, OtherRunError
from clipbatch.inputs import listing as listings
from clipbatch.rundir import copies, creation
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.runs import plan
from clipbatch.runs import plan as planner
from tests.conftest import FACTS

BASE: dict[str, Any] = {"labels": "zebra,ant", "batch_size": 2, "shard_size": 4, "device": "cpu", "precision": "fp32"}
BASE["compile"] = "off"
# Settings that are part of a run's identity, each with another value than `BASE` has.
IDENTITY: dict[str, Any] = {
    **{
        "all_files": True,
        "limit": 5,
        "sample": 3,
        "seed": 1,
        "model": "RN50",
        "pretrained": "openai",
        "precision": "bf16",
        "decoder": "pil",
    },
    **{"orientation": "stored", "max_pixels": 99, "max_bytes": 99, "score": "cosine", "top_k": 1, "embeddings": True},
    **{"batch_size": 4, "shard_size": 8, "uri_column": "a", "image_column": "b", "columns": ["c"], "layout": "top-k"},
    "caption_column": "txt",
    **{
        "scores_dtype": "float16",
        "compression": "none",
        "hw_decoder_load": 0.5,
        "cpu_share": 0.5,
        "compile": "on",
        "jpeg_scale": "reduced",
        "background": "white",
        "pixels": None,
        "no_header": True,
    },
}
# Settings that may differ between two commands of one run; labels and template as spelled, not as meant.
RUNTIME: dict[str, Any] = {
    **{"device": "cuda:3", "read_threads": 3, "read_timeout": 3, "read_retries": 1, "max_bad": "3%", "root": "/data"},
    "max_refused": 7,
    **{"template": ["a photo of a {}."], "labels": "zebra , ant", "decode_timeout": 9, "worker_timeout": 9},
    **{"decode_threads": 3, "profile": "trace.json", "head": [], "head_anyway": True},
    **{"gpus": "0,1", "workers": 3, "rank": 1, "world_size": 2, "shards": "0-1"},
    **{"engine": "ray", "cpus_per_worker": 2, "workers_per_gpu": 2, "decoder_asked": True, "compile_asked": True},
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of nine names; planning reads no image."""
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / "in" / f"{number}.jpg").touch()
    return tmp_path / "in"


def _settings(images: Path, **changes: Any) -> Settings:
    return from_flat({**BASE, "inputs": [str(images)], **changes})


def _identity(settings: Settings) -> dict[str, Any]:
    identities = [lister.identity() for lister in listings.listers(settings.source)]
    return planner.identity(settings, labels.load(settings.labels), identities)


def _freeze(out: Path, images: Path, **changes: Any) -> Plan:
    """Plan a run in `out` as `api` does it, with nothing left to be resolved."""
    settings = _settings(images, **changes)
    listers = listings.listers(settings.source)
    listing = listings.Listing(listers, settings.source.limit, ())
    return planner.freeze(
        RunDir(out),
        settings,
        labels.load(settings.labels),
        [lister.identity() for lister in listers],
        listing.batches(),
        listing.passed_over,
    )


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 9])
def test_rows_are_numbered_and_cut_into_shards(tmp_path: Path, images: Path, rows: int) -> None:
    made = _freeze(tmp_path / "out", images, limit=rows)
    assert (made.rows, made.shards) == (rows, (rows + 3) // 4)
    manifest = Manifest(RunDir(tmp_path / "out"), made)
    shards = [manifest.items(manifest.rows(shard)) for shard in range(made.shards)]
    assert [len(items) for items in shards] == [4] * (rows // 4) + [rows % 4] * (rows % 4 > 0)
    found = [(item.row_id, item.uri) for items in shards for item in items]
    assert found == [(n, f"{images}/{n}.jpg") for n in range(rows)]
    assert [row for shard in range(made.shards) for row in made.shard_rows(shard)] == list(range(rows))


@pytest.mark.parametrize(("shard_size", "files"), [(1_000, 2), (600_000, 3)])
def test_a_manifest_of_several_files_is_read_back_as_listed(tmp_path: Path, shard_size: int, files: int) -> None:
    names = [f"{number % 1000}/{number}.jpg" for number in range(1_200_001)]
    (tmp_path / "m.txt").write_text("\n".join(names))
    made = _freeze(tmp_path / "out", tmp_path / "m.txt", batch_size=1, shard_size=shard_size)
    assert len(made.manifest_sha256) == len(os.listdir(tmp_path / "out" / "manifest")) == files
    manifest = Manifest(RunDir(tmp_path / "out"), made)
    shards = [manifest.rows(shard) for shard in range(made.shards)]
    assert {table.num_rows for table in shards[:-1]} == {shard_size}
    table = pa.concat_tables(shards)
    assert np.array_equal(table["row_id"].to_numpy(), np.arange(len(names)))
    assert table["uri"].combine_chunks().equals(pa.array(names))


def test_the_plan_is_read_back_as_it_was_frozen_with_the_labels_in_their_order(tmp_path: Path, images: Path) -> None:
    (images / "a.TXT").touch()
    made, read = _freeze(tmp_path / "out", images), RunDir(tmp_path / "out").plan()
    assert (read.identity, read.fingerprint) == (made.identity, made.fingerprint)
    assert read.labels.names == ["zebra", "ant"]
    assert (read.rows, read.passed_over, read.run_settings()) == (9, {".txt": 1}, _settings(images))


def test_label_groups_are_read_back_from_the_plan(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "groups.toml"
    path.write_text("[groups.z]\nlabels = ['b', 'a']\nthreshold = 0.5\n[groups.a]\nlabels = {y = ['1', '2'], x = '3'}")
    made = _freeze(tmp_path / "out", images, labels=str(path))
    assert (
        RunDir(tmp_path / "out").plan().labels == made.labels == labels.load(_settings(images, labels=str(path)).labels)
    )


def test_every_setting_either_belongs_to_the_identity_or_not() -> None:
    assert sorted([*IDENTITY, *RUNTIME, "inputs"]) == sorted(Settings().flat())


@pytest.mark.parametrize("name", [*IDENTITY, "labels", "templates", "threshold", "inputs"])
def test_another_identity_has_another_fingerprint_and_is_refused(tmp_path: Path, images: Path, name: str) -> None:
    (images / "0.txt").write_text("a caption")
    run, made = RunDir(tmp_path / "out"), _freeze(tmp_path / "out", images)
    (tmp_path / "sure.toml").write_text('labels = ["zebra", "ant"]\nthreshold = 0.5')
    named: dict[str, dict[str, Any]] = {
        "labels": {"labels": "ant,zebra"},  # the same, in another order
        "threshold": {"labels": str(tmp_path / "sure.toml")},
        "templates": {"template": ["a drawing of a {}."]},
        "inputs": {"inputs": [str(images), str(images / "0.jpg")]},
    }
    changes = named.get(name, {name: IDENTITY.get(name)})
    assert _freeze(tmp_path / "changed", images, **changes).fingerprint != made.fingerprint
    with pytest.raises(OtherRunError, match=rf"belongs to a run with other settings: {name} is .*--overwrite"):
        run.check_same(run.plan(), _identity(_settings(images, **changes)))


@pytest.mark.parametrize("name", ["nothing", *RUNTIME])
def test_settings_of_an_invocation_do_not_change_the_fingerprint(tmp_path: Path, images: Path, name: str) -> None:
    run, made = RunDir(tmp_path / "out"), _freeze(tmp_path / "out", images)
    changes = {name: RUNTIME[name]} if name in RUNTIME else {}
    assert _freeze(tmp_path / "changed", images, **changes).fingerprint == made.fingerprint
    run.check_same(run.plan(), _identity(_settings(images, **changes)))
    (images / "more.jpg").touch()
    assert _freeze(tmp_path / "more", images, **changes).fingerprint != made.fingerprint


@pytest.mark.parametrize("damage", ["one bit", "gone"])
def test_a_manifest_that_was_changed_is_refused_by_name(tmp_path: Path, images: Path, damage: str) -> None:
    run, made = RunDir(tmp_path / "out"), _freeze(tmp_path / "out", images)
    path = run.manifest / "part-00000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage == "one bit":
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"part-00000\.parquet.*restore it"):
        Manifest(run, made).rows(0)


def test_the_model_of_a_run_is_frozen_by_the_first_worker_and_another_is_refused(tmp_path: Path, images: Path) -> None:
    run, facts = RunDir(tmp_path / "out"), {**FACTS, "mean": (0.5, 0.25, 0.5)}
    _freeze(run.path, images)
    assert run.fingerprint() is None
    first = run.freeze_model(facts)
    assert run.freeze_model(dict(reversed(facts.items()))) == first == run.fingerprint()
    for name, value in (("weights_sha256", "cd" * 32), ("mean", (0.5, 0.5, 0.5)), ("logit_bias", 1.0)):
        with pytest.raises(OtherRunError, match=f"begun with another model: {name} is .* use the same weights"):
            run.freeze_model({**facts, name: value})
    assert run.fingerprint() == first
    _freeze(tmp_path / "two", images)
    assert RunDir(tmp_path / "two").freeze_model({**facts, "name": "RN101"}) != first


def test_of_many_workers_that_freeze_files_at_once_all_get_the_content_of_one(tmp_path: Path) -> None:
    code = f"""import sys; from clipbatch.rundir.layout import RunDir; print("ready", flush=True); sys.stdin.read(1)
for n in range(20): print(RunDir({str(tmp_path)!r}).freeze(f"f{{n}}", sys.argv[1].encode() * 9999)[-9:].decode())"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers: list[Any] = [subprocess.Popen([sys.executable, "-c", code, str(n)], **pipes) for n in range(4)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4
    for worker in workers:
        worker.stdin.write("x")
        worker.stdin.flush()
    found = {worker.communicate(timeout=300)[0] for worker in workers}
    assert found == {"".join((tmp_path / f"f{n}").read_text()[-9:] + "\n" for n in range(20))}
    assert len(_tree(tmp_path)) == 20


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "cannot write .*file"),
        pytest.param("file", "a file is in the way"),
        ("file/below", "cannot write .*a file is in the way: choose another --out"),
        ("other", "holds other files .*choose a new or empty folder"),
        pytest.param("dataset", "holds other files"),
    ],
)
def test_an_unusable_place_is_refused_and_left_alone(tmp_path: Path, images: Path, out: str, message: str) -> None:
    for name in ("file", "other/mine.txt", "dataset/mine.txt", "dataset/manifest/mine.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = _tree(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        _freeze(tmp_path / out, images)
    assert caught.value.exit_code == 3
    assert (_tree(tmp_path), (tmp_path / "file").read_text()) == (before, "mine")


def test_overwrite_touches_no_folder_that_is_not_a_run(tmp_path: Path, images: Path) -> None:
    (tmp_path / "robot" / "parts" / "arm").mkdir(parents=True)
    with pytest.raises(InputError, match="holds other files"):
        plan.plan(_settings(images), tmp_path / "robot", overwrite=True)
    assert _tree(tmp_path / "robot") == ["parts", "parts/arm"]


@pytest.mark.parametrize(
    "mine",
    ["notes.txt", ".hidden", "sub/notes.txt", pytest.param("parts/notes.txt")],
)
def test_clearing_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path, images: Path, mine: str) -> None:
    run, made = RunDir(tmp_path / "out"), _freeze(tmp_path / "out", images)
    run.freeze_model(FACTS)
    for path in (run.part(0, made.shards), run.path / "report.json", run.path / "text.npy", run.path / mine):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert run.done(made) == {0}
    creation.clear(run)
    assert set(_tree(run.path)) == {mine, *([mine.split("/")[0]] if "/" in mine else [])}


@pytest.mark.parametrize(
    "left",
    [
        "manifest/part-00000.parquet",
        pytest.param("parts/part-00000.parquet"),
        pytest.param(".manifest.PID/part"),
    ],
)
def test_leftovers_of_killed_planners_do_not_get_into_the_next_run(tmp_path: Path, images: Path, left: str) -> None:
    run = RunDir(tmp_path / "out")
    _freeze(run.path, images)
    left = left.replace("PID", str(os.getpid()))
    (run.path / left).parent.mkdir(exist_ok=True)
    (run.path / left).touch()
    copies.remove(run.path)
    run.plan_file.unlink()  # made by the last step of planning but for its copy, and removed by the first of clearing
    made = _freeze(run.path, images, labels="bee,fly", limit=5)
    assert run.done(made) == set()
    assert Manifest(run, made).rows(1)["row_id"].to_pylist() == [4]


@pytest.mark.parametrize("name", [b"notes.caf\xe9", b"d\xff/1.jpg"])
def test_names_that_are_not_utf8_can_be_planned(tmp_path: Path, images: Path, name: bytes) -> None:
    path = images / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    _freeze(tmp_path / "out", path.parent)
    assert RunDir(tmp_path / "out").plan().run_settings().source.inputs == (str(path.parent),)


@pytest.mark.parametrize(
    ("given", "rows", "gflop", "expected"),
    [
        ({"device": "cuda:0"}, 100_000, 162, False),
        ({"device": "cuda:0"}, 10_000_000, 162, True),
        ({"device": "cuda:0"}, 1_000_000, 8.8, False),
        ({"device": "cuda:0", "precision": "fp8"}, 10, 8.8, True),
        ({"device": "cpu"}, 10**9, 335, False),
    ],
)
def test_the_encoder_is_compiled_for_long_runs_on_a_gpu(
    given: dict[str, Any], rows: int, gflop: float, expected: bool
) -> None:
    assert auto.worth_compiling(from_flat(given), rows, gflop) is expected


def test_whether_the_encoder_is_compiled_is_frozen_with_the_run(tmp_path: Path, images: Path) -> None:
    made = _freeze(tmp_path / "out", images, compile="auto")
    assert made.settings["compile"] == made.identity["compile"] == "off"
    settings = _settings(images, compile="auto")
    assert auto.resolve(settings, 8.8, {**made.identity, "compile": "on"}).model.compile == "on"
    assert auto.resolve(settings, 8.8).model.compile == "auto"


@pytest.mark.parametrize(("given", "said"), [({"precision": "fp8"}, "use bf16"), ({"compile": "on"}, "leave it out")])
def test_settings_that_need_a_gpu_are_refused_on_a_cpu(images: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"GPU.*{said}"):
        auto.resolve(_settings(images, **given), 8.8)


def test_thresholds_need_not_be_in_the_order_of_the_alphabet(tmp_path: Path, images: Path) -> None:
    file = tmp_path / "l.toml"
    file.write_text('labels = ["zebra", "ant"]\n[thresholds]\nzebra = 0.5\nant = 0.4\n')
    made = _freeze(tmp_path / "out", images, labels=str(file))
    RunDir(tmp_path / "out").check_same(made, _identity(_settings(images, labels=str(file))))
