"""What the benchmarks work on: photographs, small pictures that are drawn, lists of names, runs with drawn scores.

Everything that is drawn has a fixed seed. Imports no torch.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from PIL import Image

from clipbatch.config import from_flat, models
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.schema import LISTING
from clipbatch.runs import plan as planner
from clipbatch.runs import report as reports
from clipbatch.stages.write import Write
from clipbatch.types import Decoded, ItemBatch, PartDone, Reject, ScoredBatch
from clipbatch.workers.ranks import Rank
from clipbatch.workers.supervisor import WorkDone

POOL = 1000
"""Different small pictures; what needs more takes them again."""
BAD_EVERY = 50
CHUNK = 1_000_000
REPORT_SHARD, REPORT_BATCH = 2**14, 2**11
BUSY = {"read": 0.11, "decode": 0.94, "encode": 0.41, "score": 0.02, "write": 0.05}
REJECTS = (
    Reject(status="missing", error="No such file or directory"),
    Reject(status="empty", error="0 bytes"),
    Reject(status="unsupported", error="not an image of a known kind: starts with b'<!DOCTYPE html>'"),
    Reject(status="truncated", error="image file is truncated (15 bytes not processed)"),
    Reject(status="too_large", error="60000 x 60000 pixels, over the limit of 178956970", width=60000, height=60000),
)
# What a worker records of a model, for runs that no worker has begun.
MADE_UP_FACTS = {
    **{"name": "RN50", "weights_sha256": "ab" * 32, "height": 64, "width": 64, "mean": [0.5], "std": [0.5], "fill": 0},
    **{"interpolation": "bicubic", "resize_mode": "shortest", "logit_scale": 100.0, "logit_bias": None},
    "score": "softmax",
}


def photographs(folder: Path) -> list[Path]:
    """The files under `folder` that Pillow can decode whole; the others would only stop the peers."""
    paths = []
    for path in sorted(folder.resolve().rglob("*")):
        with contextlib.suppress(OSError, SyntaxError), Image.open(path) as image:
            image.load()
            paths.append(path)
    if not paths:
        raise SystemExit(f"{folder} holds no photographs that can be decoded")
    return paths


def about(paths: list[Path], rounds: int) -> str:
    """The photographs of a benchmark and its rounds, in words."""
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    return f"{len(paths)} photographs of {kilobytes:.0f} kB on average, {rounds} rounds; median (min-max)."


def list_names(names: Iterable[object], rows: int, target: Path) -> Path:
    """Write a text manifest of `rows` lines that name `names` in turn. Returns `target`."""
    with target.open("w") as file:
        file.writelines(f"{name}\n" for name in islice(cycle(names), rows))
    return target


def write_manifest(count: str, target: str) -> None:
    """In a process of its own: a manifest of `count` rows in the format that the suffix of `target` says."""
    path, rows = Path(target), int(count)
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, next(manifest_tables(1)).schema) as writer:
            for table in manifest_tables(rows):
                writer.write_table(table, row_group_size=CHUNK)
        return
    with path.open("wb") as file:
        for number, table in enumerate(manifest_tables(rows)):
            _write_text(file, path.suffix, table, header=number == 0)


def manifest_tables(rows: int) -> Iterator[pa.Table]:
    """The manifest, a million rows at a time."""
    for first in range(0, rows, CHUNK):
        number = np.arange(first, min(first + CHUNK, rows))
        folder = pc.utf8_lpad(pa.array(number // 1000).cast(pa.string()), 6, "0")
        digits = pa.array(number * 2_654_435_761 % 2**40).cast(pa.string())
        words = pa.DictionaryArray.from_arrays(pa.array(number % 1000, pa.int32()), [f"place {n}" for n in range(1000)])
        name = pc.binary_join_element_wise("image-", digits, ".jpg", "")
        path = pc.binary_join_element_wise("photos", folder, name, "/")
        yield pa.table({"path": path, "id": number, "place": words.cast(pa.string())})


def _write_text(file: BinaryIO, suffix: str, table: pa.Table, *, header: bool) -> None:
    if suffix == ".csv":
        pacsv.write_csv(table, file, pacsv.WriteOptions(include_header=header, quoting_style="needed"))
        return
    lines = table["path"].combine_chunks()
    if suffix == ".jsonl":
        cells = ['{"path": "', lines, '", "id": ', table["id"].combine_chunks().cast(pa.string())]
        lines = pc.binary_join_element_wise(*cells, ', "place": "', table["place"].combine_chunks(), '"}', "")
    lines = pc.binary_join_element_wise(lines, "\n", "")
    file.write(memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()])


def draw_pool(folder: Path, sides_px: tuple[int, int] = (96, 256), bad_every: int = BAD_EVERY) -> list[Path]:
    """POOL small JPEGs in the new folder `folder`, each `bad_every`-th of them bad, of six kinds in turn: empty, an
    HTML page, cut off, noise, a link to nothing, a PNG with damaged pixels."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(POOL):
        path = folder / f"{number:04}.jpg"
        width, height = (int(side) for side in rng.integers(*sides_px, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=85)
        if number % bad_every == bad_every - 1:
            _spoil(path, number // bad_every % 6)
    return sorted(folder.iterdir())


def _spoil(path: Path, kind: int) -> None:
    data = path.read_bytes()
    if kind == 4:
        path.unlink()
        path.symlink_to("nowhere.jpg")
    elif kind == 5:  # its header is fine, so that it reaches the fast decoder
        with Image.open(path) as image:
            image.save(path, "PNG")
        whole = path.read_bytes()
        path.write_bytes(whole[:200] + bytes(byte ^ 0x55 for byte in whole[200:300]) + whole[300:])
    else:
        noise = np.random.default_rng(kind).bytes(4096)
        path.write_bytes([b"", b"<!DOCTYPE html><title>404</title>", data[: len(data) // 3], noise][kind])


def small_jpegs(count: int) -> list[bytes]:
    """JPEGs of 64 by 64 pixels, about 2 kB each."""
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        out = io.BytesIO()
        rough.resize((64, 64), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        images.append(out.getvalue())
    return images


def pack(folder: Path, name: str, contents: Iterable[bytes]) -> dict[str, Path]:
    """The same images as a folder, a tar and a zip."""
    paths = {"folder": folder / name, "tar": folder / f"{name}.tar", "zip": folder / f"{name}.zip"}
    paths["folder"].mkdir()
    with tarfile.open(paths["tar"], "w") as tar, zipfile.ZipFile(paths["zip"], "w") as stored:
        for number, data in enumerate(contents):
            member = tarfile.TarInfo(f"{number:08}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            stored.writestr(member.name, data)
            (paths["folder"] / member.name).write_bytes(data)
    return paths


def big_folder(files: int, folder: Path) -> None:
    """A folder of `files` names."""
    folder.mkdir()
    for number in range(files):
        if number % 60_000 == 0:  # a file system allows just so many links to one file
            (folder / f"{number}.jpg").touch()
        else:
            os.link(folder / f"{number - number % 60_000}.jpg", folder / f"{number}.jpg")


def drawn_batches(
    run: RunDir, plan: Plan, shard: int, rng: np.random.Generator, *, bad_every: int = BAD_EVERY, embedding: int = 0
) -> Iterator[ScoredBatch]:
    """The batches of a shard as the scoring stage hands them over, with drawn scores: the softmax of logits as a model
    has them that knows some labels better than others. embedding: the length of random unit vectors; 0 for none."""
    manifest, labels = Manifest(run, plan), len(plan.labels.names)
    shard_rows = manifest.rows(shard)
    for at in range(0, shard_rows.num_rows, plan.batch_size):
        rows = shard_rows.slice(at, plan.batch_size)
        count, start = rows.num_rows, rows["row_id"][0].as_py()
        logits_BL = rng.normal(0, 1.5, (count, labels)).astype(np.float32)
        best_B = np.minimum(rng.geometric(min(0.5, 3 / labels), count) - 1, labels - 1)
        logits_BL[np.arange(count), best_B] += rng.normal(7, 3, count) + np.log(labels / 10)
        scores_BL = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
        image_BD = rng.normal(size=(count, embedding)).astype(np.float32)
        image_BD /= np.linalg.norm(image_BD, axis=1, keepdims=True) if embedding else 1
        outcomes = [
            REJECTS[row // bad_every % len(REJECTS)]
            if row % bad_every == bad_every - 1
            else Decoded(width=640, height=480, decoder="torchvision")
            for row in range(start, start + count)
        ]
        last = at + count == shard_rows.num_rows
        items = tuple(manifest.items(rows))
        source = ItemBatch(shard=shard, start=start, items=items, rows=rows.drop_columns(LISTING), last=last)
        yield ScoredBatch(
            source=source,
            outcomes=tuple(outcomes),
            scores_BL=scores_BL / scores_BL.sum(axis=1, keepdims=True),
            image_BD=image_BD.astype(np.float16) if embedding else None,
        )


def drawn_run(settings: dict[str, Any], out: Path, facts: dict[str, Any], *, embedding: int = 0) -> list[PartDone]:
    """A run in `out` whose parts clipbatch's own writer made of drawn scores. facts: on the model."""
    plan, run, rng = planner.plan(from_flat(settings), out), RunDir(out), np.random.default_rng(0)
    write = Write(run, plan, fingerprint=run.freeze_model(facts), score=facts["score"], embedding=embedding)
    parts = []
    for shard in range(plan.shards):
        for batch in drawn_batches(run, plan, shard, rng, embedding=embedding):
            if part := write(batch).part:
                parts.append(part)
    return parts


def reported_run(listed: Path, labels: str, out: Path) -> None:
    """A finished run directory as `clipbatch run` leaves it."""
    settings = {"inputs": [str(listed)], "labels": labels, "model": models.DEMO, "device": "cpu"}
    settings |= {"shard_size": REPORT_SHARD, "batch_size": REPORT_BATCH}
    facts = {"name": models.DEMO, "score": "softmax", "width": 64, "height": 64}
    done, parts = WorkDone(load_s=4.1), drawn_run(settings, out, facts)
    run, plan, rng = RunDir(out), RunDir(out).plan(), np.random.default_rng(0)
    for part in parts:
        done.counts[part.shard] = part.counts
        age_s = 60 * (plan.shards - part.shard) - rng.uniform(0, 6) + 32_400 * (part.shard < plan.shards // 3)
        os.utime(Path(str(run.part(part.shard, plan.shards))), (time.time() - age_s,) * 2)
    elapsed_s = 60.0 * plan.shards
    times = {
        name: {"busy_s": load * elapsed_s, "starved_s": 0.4 * elapsed_s, "blocked_s": 0.0, "load": load, "threads": 1}
        for name, load in BUSY.items()
    }
    done.stages = [{"times": times, "peak_mib": 4096, "device": "cpu"}]
    reports.make(run, plan, done, elapsed_s, Rank(), list(range(plan.shards)))


def embedded_run(like: Path, listed: Path, out: Path) -> None:
    """A finished run over `listed`, of the model of the run `like`, with random embeddings."""
    like_run = RunDir(like)
    facts, width = like_run.model_facts(), np.load(like / "text.npy").shape[1]
    assert facts
    settings = like_run.plan().run_settings().flat() | {"inputs": [str(listed)]}
    drawn_run(settings | {"batch_size": 1024, "shard_size": 2**16}, out, facts, embedding=width)
    RunDir(out).freeze("text.npy", (like / "text.npy").read_bytes())
