"""Scored batches -> parts: the cells of every layout, row groups, repeated rows, and what a failure leaves."""

import dataclasses
import errno
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipbatch.config import from_flat
from clipbatch.config.heads import Head, identity
from clipbatch.config.labels import LabelGroup, LabelSet
from clipbatch.rundir.checksum import verify_file, verify_path
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.part_file import PartFile
from clipbatch.stages.write import Write
from clipbatch.types import Decoded, ItemBatch, PartDone, Reject, ScoredBatch

ROWS, BATCH = 24, 8
BAD = {
    3: Reject(status="corrupt", error="no image"),
    9: Reject(status="too_large", error="huge", width=2**40, height=7),
}


def label_set(*sizes: int, threshold: float | None = None) -> LabelSet:
    """Groups g0, g1, ... with these numbers of labels. With one size: one group without a name."""
    names = [""] if len(sizes) == 1 else [f"g{number}" for number in range(len(sizes))]
    return LabelSet(
        groups=tuple(
            LabelGroup(name=name, phrases={f"L {n}": ["x"] for n in range(size)}, templates=["{}"], threshold=threshold)
            for name, size in zip(names, sizes, strict=True)
        )
    )


def frozen(labels: LabelSet, rows: int = ROWS, shard: int = ROWS, batch: int = BATCH, **settings: Any) -> Plan:
    made = from_flat({"inputs": ["in"], "labels": "a,b", "batch_size": batch, "shard_size": shard, **settings})
    identity = {"shard_size": shard, "batch_size": batch, **labels.identity()}
    return Plan(
        rows=rows,
        identity=identity,
        settings=made.flat(),
        manifest_rows=rows,
        manifest_sha256={},
        passed_over={},
        versions={},
    )


def batches(
    scores_RL: np.ndarray[Any, Any], only: set[int] | None = None, bad: dict[int, Reject] = BAD, embedding: int = 0
) -> list[ScoredBatch]:
    """Batches for the rows of a shard. only: the rows to repeat."""
    rows = pa.table(
        {
            "row_id": np.arange(len(scores_RL)),
            "uri": [f"{n}.jpg" for n in range(len(scores_RL))],
            "price": pa.array([n / 2 if n % 2 else None for n in range(len(scores_RL))]),
            "kind": pa.array(["x", "y", None, "x"] * (len(scores_RL) // 4)).dictionary_encode(),
        }
    )
    good = [Decoded(width=100 + n, height=50, decoder="pil") for n in range(len(scores_RL))]
    outcomes = [None if only and n not in only else bad.get(n, good[n]) for n in range(len(scores_RL))]
    starts = [at for at in range(0, len(rows), BATCH) if any(outcomes[at : at + BATCH])]
    return [
        ScoredBatch(
            source=ItemBatch(
                shard=0, start=at, items=(), rows=rows.slice(at, BATCH), last=at == starts[-1], whole=only is None
            ),
            outcomes=tuple(outcomes[at : at + BATCH]),
            scores_BL=scores_RL[at : at + BATCH],
            image_BD=np.full((BATCH, embedding), at / 64, np.float16) if embedding else None,
        )
        for at in starts
    ]


def written(
    folder: Path, plan: Plan, given: list[ScoredBatch], embedding: int = 0, row_group_rows: int | None = None
) -> PartDone:
    run = RunDir(folder)
    folder.mkdir(exist_ok=True)
    run.make_parts()
    fingerprint = "f" * 64
    write = Write(
        run, plan, fingerprint=fingerprint, score="softmax", embedding=embedding, row_group_rows=row_group_rows
    )
    results = [write(batch) for batch in given]
    assert [result.part is not None for result in results] == [False] * (len(given) - 1) + [True]
    assert os.listdir(run.parts) == ["part-00000.parquet"]
    assert verify_file(run.part(0, 1).read_bytes())
    assert results[-1].part
    return results[-1].part


def read(folder: Path) -> pa.Table:
    return pq.read_table(folder / "parts" / "part-00000.parquet")


def random_scores(labels: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random((ROWS, labels), np.float32)


def test_every_row_gets_its_cells_in_order(tmp_path: Path) -> None:
    scores = random_scores(5)
    done = written(tmp_path, frozen(label_set(5)), batches(scores))
    table = read(tmp_path).to_pylist()
    assert [row["row_id"] for row in table] == list(range(ROWS))
    for number, row in enumerate(table):
        assert (row["uri"], row["price"]) == (f"{number}.jpg", number / 2 if number % 2 else None)
        assert row["kind"] == ["x", "y", None, "x"][number % 4]
        if number in BAD:
            assert (row["status"], row["error"]) == (BAD[number].status, BAD[number].error)
            assert [row[name] for name in ("decoder", "label", "score", "scores")] == [None] * 4
        else:
            assert (row["status"], row["error"], row["decoder"]) == ("ok", None, "pil")
            assert (row["width"], row["height"]) == (100 + number, 50)
            assert row["scores"] == scores[number].tolist()
            assert row["label"] == f"L {scores[number].argmax()}"
            assert row["score"] == scores[number].max()
    assert (table[9]["width"], table[9]["height"]) == (None, 7)
    assert done.counts == {"ok": ROWS - 2, "corrupt": 1, "too_large": 1}
    assert done.rows == ROWS


def test_a_file_of_several_mebibytes_is_whole_only_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"n": np.random.default_rng(0).integers(2**62, size=400_000)})
    with PartFile(path, table.schema, "zstd") as file:
        file.write(table)
        file.close({})
    whole = path.read_bytes()
    assert len(whole) > 3 * 2**20
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    assert (verify_file(whole), verify_path(path)) == (True, True)
    flips = (0, 2**20, 2**21 + 5, footer - 40, footer - 1, footer, *range(len(whole) - 9, len(whole)))
    damaged = [whole[:at] + bytes([whole[at] ^ 128]) + whole[at + 1 :] for at in flips]
    for data in (*damaged, whole[:-1], whole + b"1", whole[: 2**20], whole[:7], b""):
        path.write_bytes(data)
        assert (verify_file(data), verify_path(path)) == (False, False)


def test_groups_and_layouts_hold_the_same_scores(tmp_path: Path) -> None:
    scores, labels = random_scores(7), label_set(3, 4)
    for layout in ("list", "wide", "top-k"):
        settings = {"layout": layout, "top_k": 3} if layout == "top-k" else {"layout": layout}
        written(tmp_path / layout, frozen(labels, **settings), batches(scores))
    listed, wide, top = (read(tmp_path / layout).to_pylist() for layout in ("list", "wide", "top-k"))
    footer = pq.read_metadata(tmp_path / "wide" / "parts" / "part-00000.parquet").metadata
    columns = json.loads(footer[b"clipbatch.columns"])
    assert columns["g1"] == {f"L {n}": f"g1_score_l_{n}" for n in range(4)}
    assert json.loads(footer[b"clipbatch.labels"])["g0"] == ["L 0", "L 1", "L 2"]
    for number in range(ROWS):
        for group, part in (("g0", scores[number, :3]), ("g1", scores[number, 3:])):
            rows = (listed[number], wide[number], top[number])
            if number in BAD:
                assert [row[f"{group}_{name}"] for row in rows for name in ("label", "score")] == [None] * 6
                assert {wide[number][column] for column in columns[group].values()} == {None}
                assert listed[number][f"{group}_scores"] is top[number][f"{group}_top"] is None
                continue
            assert {row[f"{group}_label"] for row in rows} == {f"L {part.argmax()}"}
            assert {row[f"{group}_score"] for row in rows} == {part.max()}
            assert listed[number][f"{group}_scores"] == part.tolist()
            assert [wide[number][column] for column in columns[group].values()] == part.tolist()
            best = [{"label": f"L {n}", "score": part[n]} for n in np.argsort(-part)[:3]]
            assert top[number][f"{group}_top"] == best


@pytest.mark.parametrize("k", [1, 3, 33, 50])
def test_ties_among_the_best_go_in_label_order(tmp_path: Path, k: int) -> None:
    scores = np.random.default_rng(1).integers(0, 3, (ROWS, 40)).astype(np.float32)
    written(tmp_path, frozen(label_set(40), top_k=k), batches(scores, bad={}))
    for row, found in zip(scores, read(tmp_path)["top"].to_pylist(), strict=True):
        best = sorted(range(40), key=lambda n: (-row[n], n))[:k]
        assert [entry["label"] for entry in found] == [f"L {n}" for n in best]


def test_a_score_below_the_threshold_has_no_label(tmp_path: Path) -> None:
    scores = random_scores(2)
    scores[5] = (0.75, 0.1)
    scores[6] = (np.nextafter(np.float32(0.75), 0), 0)
    written(tmp_path, frozen(label_set(2, threshold=0.75)), batches(scores))
    table = read(tmp_path).to_pylist()
    for number, row in enumerate(table):
        sure = number not in BAD and scores[number].max() >= 0.75
        assert (row["label"] is not None) == sure
        assert (row["score"] is not None) == (number not in BAD)
    assert (table[5]["label"], table[6]["label"]) == ("L 0", None)
    assert (
        json.loads(pq.read_schema(tmp_path / "parts" / "part-00000.parquet").metadata[b"clipbatch.threshold"]) == 0.75
    )


@pytest.mark.parametrize("layout", ["list", "wide", "top-k"])
def test_float16_scores_are_rounded_and_the_best_is_not(tmp_path: Path, layout: str) -> None:
    scores = random_scores(3)
    scores[0] = (0.10000001, 0.10000002, 0.1)  # all the same in float16
    written(tmp_path, frozen(label_set(3), layout=layout, scores_dtype="float16"), batches(scores))
    row = read(tmp_path).to_pylist()[0]
    assert (row["label"], row["score"]) == ("L 1", scores[0, 1])
    half = float(np.float16(0.1))
    assert {
        "list": lambda: row["scores"] == [half] * 3,
        "wide": lambda: [row[f"score_l_{n}"] for n in range(3)] == [half] * 3,
        "top-k": lambda: row["top"] == [{"label": f"L {n}", "score": half} for n in (1, 0, 2)],
    }[layout]()


@pytest.mark.parametrize(
    ("given", "found"),
    [("zstd", "ZSTD"), ("lz4", "LZ4"), ("snappy", "SNAPPY"), ("gzip", "GZIP"), ("none", "UNCOMPRESSED")],
)
def test_all_columns_have_the_chosen_compression(tmp_path: Path, given: str, found: str) -> None:
    written(tmp_path, frozen(label_set(3), compression=given), batches(random_scores(3)))
    metadata = pq.read_metadata(tmp_path / "parts" / "part-00000.parquet")
    used = {metadata.row_group(0).column(n).compression for n in range(metadata.num_columns)}
    assert used == {found}
    assert read(tmp_path).num_rows == ROWS


def test_the_outputs_of_heads_count_for_the_size_of_a_row_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = [f"class{number}" for number in range(8)]
    head = Head(
        name="kind",
        layers=(4, 8),
        activation="none",
        result="classes",
        outputs=tuple(outputs),
        unit_length=True,
        model="clipbatch-demo",
        sha256="0" * 64,
    )
    plan = frozen(label_set(2))
    plan = dataclasses.replace(plan, identity=plan.identity | identity([head]))
    monkeypatch.setattr("clipbatch.rundir.part_file._MIN_ROWS", 1)
    monkeypatch.setattr("clipbatch.rundir.part_file._ROW_GROUP_BYTES", BATCH * (2 + 8) * np.float32().nbytes)
    heads_BO = np.full((BATCH, 8), 0.125, np.float32)
    given = [dataclasses.replace(batch, heads_BO=heads_BO) for batch in batches(random_scores(2))]
    written(tmp_path, plan, given)
    assert pq.read_metadata(tmp_path / "parts" / "part-00000.parquet").num_row_groups == ROWS // BATCH


@pytest.mark.parametrize("layout", ["list", "wide", "top-k"])
@pytest.mark.parametrize("capacity", [BATCH, 2 * BATCH, ROWS])
def test_a_part_with_repeated_rows_has_the_bytes_of_a_part_written_once(
    tmp_path: Path, layout: str, capacity: int
) -> None:
    scores, plan = random_scores(6), frozen(label_set(2, 4), layout=layout, embeddings=True)
    write = functools.partial(written, plan=plan, embedding=4, row_group_rows=capacity)
    write(tmp_path / "once", given=batches(scores, embedding=4))
    broken = {n: Reject(status="missing", error="gone") for n in (0, 1, 3, 7, 9, 12, 23)}
    worse = scores.copy()
    worse[list(broken)] = 0
    write(tmp_path / "twice", given=batches(worse, bad=broken, embedding=4))
    done = write(tmp_path / "twice", given=batches(scores, only=set(broken), embedding=4))
    once, twice = (tmp_path / name / "parts" / "part-00000.parquet" for name in ("once", "twice"))
    assert pq.read_metadata(once).num_row_groups == -(-ROWS // capacity)
    assert once.read_bytes() == twice.read_bytes()
    assert done.counts == {"ok": ROWS - 2, "corrupt": 1, "too_large": 1}


def test_a_row_that_another_process_has_repaired_in_between_stays(tmp_path: Path) -> None:
    scores, plan = random_scores(3), frozen(label_set(3))
    written(tmp_path, plan, batches(scores))
    before = read(tmp_path).to_pylist()
    gone = Reject(status="missing", error="gone")
    done = written(tmp_path, plan, batches(scores, only={3, 4, 9}, bad={3: gone, 4: gone}))
    assert (done.kept, done.counts) == (None, {"ok": ROWS - 1, "missing": 1})
    after = read(tmp_path).to_pylist()
    assert (after[3]["status"], after[9]["status"]) == ("missing", "ok")
    assert [row for n, row in enumerate(after) if n not in (3, 9)] == [
        row for n, row in enumerate(before) if n not in (3, 9)
    ]


@pytest.mark.parametrize(("bad", "force", "replaced"), [(2, False, True), (3, False, False), (3, True, True)])
def test_a_part_is_replaced_by_one_with_as_many_ok_rows_or_by_force(
    tmp_path: Path, bad: int, force: bool, replaced: bool
) -> None:
    plan, path = frozen(label_set(3)), tmp_path / "parts" / "part-00000.parquet"
    written(tmp_path, plan, batches(random_scores(3)))
    before = path.read_bytes()
    gone = {n: Reject(status="missing", error="gone") for n in range(bad)}
    given = batches(random_scores(3, seed=1), bad=gone)
    forced = [dataclasses.replace(batch, source=dataclasses.replace(batch.source, force=force)) for batch in given]
    done = written(tmp_path, plan, forced)
    assert (path.read_bytes() != before, done.kept is None) == (replaced, replaced)
    assert done.counts == {"ok": ROWS - bad, "missing": bad}


def test_a_failure_in_the_middle_of_a_part_leaves_nothing(tmp_path: Path) -> None:
    run, plan = RunDir(tmp_path), frozen(label_set(3))
    run.make_parts()
    write = Write(run, plan, fingerprint="f", score="softmax", embedding=0, row_group_rows=BATCH)
    first, second, _ = batches(random_scores(3))
    write(first)
    assert len(os.listdir(run.parts)) == 1  # a file without a name yet
    with pytest.raises(ValueError, match="empty"):
        write(ScoredBatch(source=second.source, outcomes=second.outcomes, scores_BL=np.empty((8, 0)), image_BD=None))
    assert os.listdir(run.parts) == []


def test_a_full_disk_is_refused_with_the_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    code = f"""import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.rundir.test_write import *
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    written(Path({str(tmp_path)!r}), frozen(label_set(40)), batches(random_scores(40)))
except Exception as error:
    print(type(error).__name__, error)"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("InputError cannot write"), made.stdout + made.stderr
    assert os.strerror(errno.EFBIG) in made.stdout
    assert made.stderr == ""
    assert os.listdir(tmp_path / "parts") == []


def test_a_shard_is_never_completely_in_memory(tmp_path: Path) -> None:
    """For 400 MB of scores: one row group of 64 MiB, the copies that compression makes, and libraries."""
    rows, labels, batch = 100_352, 1_000, 1024
    code = f"""import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import pyarrow as pa
from tests.rundir.test_write import *
plan = frozen(label_set({labels}), {rows}, {rows}, {batch}, compression="none")
run = RunDir({str(tmp_path)!r})
run.make_parts()
write = Write(run, plan, fingerprint="f", score="softmax", embedding=0)
scores, outcomes = np.zeros(({batch}, {labels}), np.float32), (Decoded(width=1, height=1, decoder="pil"),) * {batch}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for at in range(0, {rows}, {batch}):
    table = pa.table({{"row_id": np.arange(at, at + {batch}), "uri": ["x"] * {batch}}})
    source = ItemBatch(shard=0, start=at, items=(), rows=table, last=at + {batch} == {rows})
    write(ScoredBatch(source=source, outcomes=outcomes, scores_BL=scores, image_BD=None))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(made.stdout) < 250, made.stdout
    assert pq.read_metadata(tmp_path / "parts" / "part-00000.parquet").num_rows == rows
