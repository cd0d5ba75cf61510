"""What a run will take, from a sample that is labelled here: time, bytes, bad images, money.

The listing is counted in full, as a run would list it, and a uniform sample of it is labelled in a temporary folder by
the same workers, in random order, for some seconds. So whatever part of it is done, that part is a uniform sample.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config import LaunchSettings, Settings, auto, models
from clipbatch.config.heads import HeadFile
from clipbatch.config.label_set import LabelSet
from clipbatch.config.labels import for_run
from clipbatch.config.nesting import JsonObject
from clipbatch.config.sampling import wilson
from clipbatch.config.validation import at_least
from clipbatch.errors import InputError, InterruptedRunError
from clipbatch.inputs import listing as listings
from clipbatch.inputs.sample import Sample
from clipbatch.rundir import head_weights
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.manifest import Manifest
from clipbatch.rundir.part_file import PartFile
from clipbatch.runs import heads as run_heads
from clipbatch.runs import plan as planner
from clipbatch.runs import resolving
from clipbatch.runs import run as runner
from clipbatch.runs.report import Report
from clipbatch.storage.paths import parquet_source
from clipbatch.workers.progress import Progress
from clipbatch.workers.ranks import Rank

# More than any machine labels in the seconds that one waits for an estimate.
_SAMPLE_ROWS = 200_000
# Rows that are enough to know their size.
_SIZED_ROWS = 20_000
# Parts that are written meanwhile, so that their size is known.
_SHARDS_A_MINUTE = 10
# Share of the seconds that are not counted: the first images wait for one another in empty queues.
_WARM_UP = 0.2
# How often the count of rows has to rise before the time is up, and by how much the time is extended for that.
_MOMENTS, _PATIENCE = 6, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What an estimate is asked for."""

    # Of labelling, without the start.
    seconds: float = 30.0
    gpus: int = 1
    usd_per_gpu_hour: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("seconds", self.seconds, 1, 3600)
        at_least("gpus", self.gpus, 1, 10**6)
        at_least("usd_per_gpu_hour", self.usd_per_gpu_hour, 0)


class _TimeUpError(InterruptedRunError):
    """The seconds of labelling are over."""


class _Watch(Progress):
    """Measures the rate from the first rows on, and ends the run when the time is up.

    Workers finish batches, on a CPU several at nearly the same moment, so the rate is the slope of a line through the
    moments at which the count of rows rose.
    """

    def __init__(self, *, seconds: float, rates: dict[str, float], **kinds: Any) -> None:
        """rates: takes `done` and `bad`, `rows` a number of `seconds`, and `start_s` until the first rows."""
        super().__init__(**kinds)
        self._seconds, self._rates, self._begun = seconds, rates, time.monotonic()
        self._moments: list[tuple[float, int]] = []

    def show(self, done: int, bad: int, bottleneck: str) -> None:
        super().show(done, bad, bottleneck)
        if not done:
            return
        now = time.monotonic()
        if not self._moments or done > self._moments[-1][1]:
            self._moments.append((now, done))
        ready = self._moments[0][0]
        self._rates |= {"done": done, "bad": bad, "start_s": ready - self._begun}
        counted = [moment for moment in self._moments if moment[0] - ready >= _WARM_UP * self._seconds]
        if len(counted) < _MOMENTS:
            counted = self._moments
        if len(counted) > 2:
            times, rows = np.array(counted).T
            self._rates |= {"rows": float(np.polyfit(times - times[0], rows, 1)[0]), "seconds": 1.0}
        enough = now - ready >= self._seconds and len(self._moments) >= _MOMENTS
        if enough or now - ready >= _PATIENCE * self._seconds:
            raise _TimeUpError("the time for the sample is up")


def estimate(settings: Settings, offer: Offer, *, plan: str | None = None, quiet: bool = True) -> JsonObject:
    """Label a sample of the input of `settings`, or of what is left of the run directory `plan`, and say what all of it
    will take.

    Raises: InputError as `plan` and `run` do; InterruptedRunError when a signal ends it. Leaves nothing behind.
    """
    begun = time.perf_counter()
    sample = Sample(_SAMPLE_ROWS, offer.seed)
    if plan is not None:
        frozen = RunDir(plan).plan()
        if frozen.rescored is not None:
            raise InputError(f"{plan} is a rescoring, which reads no image: it takes seconds for a million rows")
        resolved, labels = frozen.run_settings().replace(device=settings.model.device), frozen.labels
        heads = head_weights.load(RunDir(plan), frozen)
        identities = frozen.identity["inputs"]
        batches = _left_over(RunDir(plan), frozen)
    else:
        labels = for_run(settings)
        resolved = resolving.resolve(settings)
        resolving.check_labels(resolved, labels)
        heads = run_heads.load(resolved, labels)
        inputs = listings.listers(resolved.source)
        identities = listings.identities(inputs)
        batches = planner.listing_of(resolved, labels, inputs, heads).batches()
    for batch in batches:
        sample.add(batch)
    list_s = time.perf_counter() - begun
    if not sample.rows:
        raise InputError("there is nothing to label: the run is finished")
    rates, sizes = _label(resolved, labels, heads, identities, sample, offer, settings, quiet)
    return _figures(resolved, sample.rows, list_s, rates, sizes, offer)


def _left_over(run: RunDir, plan: Plan) -> Iterator[pa.RecordBatch]:
    """The manifest rows of the shards that are not done."""
    manifest, done = Manifest(run, plan), run.done(plan)
    for shard in range(plan.shards):
        if shard not in done:
            yield from manifest.rows(shard).drop_columns(["row_id"]).combine_chunks().to_batches()


def _label(
    settings: Settings,
    labels: LabelSet,
    heads: Sequence[HeadFile],
    identities: list[str],
    sample: Sample,
    offer: Offer,
    given: Settings,
    quiet: bool,
) -> tuple[dict[str, float], dict[str, float]]:
    """What the workers did, as `_Watch` measures it, and the sizes of the parts that they wrote."""
    shard_size, batch = settings.output.shard_size, settings.model.batch_size
    assert shard_size
    assert batch
    if settings.model.compile == "auto":  # as the whole run would decide
        gains = auto.worth_compiling(settings, sample.rows, models.gflop(settings.model.model))
        settings = settings.replace(compile="on" if gains else "off")
    shard_size = max(batch, shard_size // _SHARDS_A_MINUTE // batch * batch)
    small = settings.replace(shard_size=shard_size, limit=None, sample=None, seed=None)
    small = dataclasses.replace(small, launch=LaunchSettings())
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="clipbatch-estimate-") as folder:
        run = RunDir(Path(folder) / "run")
        drawn = sample.batches(shuffled=True)
        frozen = planner.freeze(run, small, labels, identities, drawn, Counter[str], heads=heads)
        launched = given.replace(gpus="0" if auto.device_of(given) == "cuda" else None, shards=None)
        with contextlib.closing(runner.engine(launched, Rank())) as workers:
            run.make_parts()
            watch = functools.partial(_Watch, seconds=offer.seconds, rates=rates, quiet=quiet)
            shards = list(range(frozen.shards))
            with contextlib.suppress(_TimeUpError):
                begun = time.perf_counter()
                made = runner.label(
                    launched, run, frozen, workers, Rank(), shards, begun, watch, again={}, retry_bad=False
                )
                _count_all(rates, made)
        return rates, _sizes(run, frozen)


def _count_all(rates: dict[str, float], made: Report) -> None:
    """Of an input that was done before the time was up, all of it counts. made: the report."""
    here, counts = made["this_run"], made["status"]
    rows = sum(counts.values())
    rates |= {"done": rows, "bad": rows - counts.get("ok", 0), "start_s": here["load_s"]}
    rates |= {"rows": rows, "seconds": rows / here["images_per_s"] if here["images_per_s"] else 0.0}


def _sizes(run: RunDir, plan: Plan) -> dict[str, float]:
    """Rows of the finished parts, and the bytes of their columns and of the rest of a file, if they were one part.

    Small parts take more bytes a row than the run's own will, so their rows are written once more, together.
    """
    tables, rows = [], 0
    for shard in sorted(run.done(plan)):
        if rows < _SIZED_ROWS:
            tables.append(pq.read_table(parquet_source(run.part(shard, plan.shards))))
            rows += tables[-1].num_rows
    if not tables:
        return {"rows": 0, "columns": 0, "rest_a_part": 0.0}
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    path = Path(str(run.path)) / "sizes.parquet"
    with PartFile(path, tables[0].schema, plan.run_settings().output.compression) as file:
        file.write(table)
        file.close({})
    metadata = pq.read_metadata(path)
    own = sum(
        metadata.row_group(group).column(column).total_compressed_size
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    return {"rows": rows, "columns": own, "rest_a_part": float(path.stat().st_size - own)}


def _figures(
    settings: Settings, rows: int, list_s: float, rates: dict[str, float], sizes: dict[str, float], offer: Offer
) -> JsonObject:
    if not rates.get("rows") or not rates.get("seconds"):
        raise InputError(
            f"no image was done in {offer.seconds:g} s after the start: give more --seconds, or a smaller --batch-size"
        )
    assert settings.output.shard_size
    device = auto.device_of(settings)
    rate = rates["rows"] / rates["seconds"]
    devices = offer.gpus if device.startswith("cuda") else 1
    work_s = rows / (rate * devices)
    seconds = list_s + rates["start_s"] + work_s
    a_row = sizes["columns"] / sizes["rows"] if sizes["rows"] else None
    parts = -(-rows // settings.output.shard_size)
    low, high = wilson(rates["bad"], rates["done"])
    notes = []
    found: JsonObject = {
        "rows": rows,
        "sample_rows": int(rates["done"]),
        "device": device,
        "images_per_s": rate,
        "list_s": list_s,
        "start_s": rates["start_s"],
        "hours": seconds / 3600,
        "bytes_per_row": a_row,
        "bytes": None if a_row is None else round(a_row * rows + sizes["rest_a_part"] * parts),
        "bad": {"value": rates["bad"] / rates["done"], "low": low, "high": high},
    }
    if device.startswith("cuda"):
        found |= {"gpus": offer.gpus, "gpu_hours": offer.gpus * seconds / 3600}
        if offer.usd_per_gpu_hour is not None:
            found["usd"] = found["gpu_hours"] * offer.usd_per_gpu_hour
        if offer.gpus > 1:
            notes.append("measured on one GPU: several are as fast as their number if storage and CPU cores keep up")
    else:
        found |= {"gpu_hours": None, "usd": None}
        notes.append(
            "measured on this machine's CPU, which says nothing of how fast a GPU would be, nor of what it would cost: "
            "run the same command on a machine with one. Rows, bytes and bad images are the same there"
        )
    if a_row is None:
        notes.append("no part was finished in this time, so the bytes are not known: give more --seconds")
    return found | {"notes": notes}


def text(found: JsonObject) -> str:
    """The estimate in a few lines, for a terminal."""
    bad = found["bad"]
    lines = [
        f"rows          {found['rows']:,}",
        f"sample        {found['sample_rows']:,} rows, drawn at random, labelled here on {found['device']}",
        f"rate          {found['images_per_s']:.4g} images/s",
        f"time          {_hours(found['hours'])}, {found['list_s'] + found['start_s']:.1f} s of it to list and start",
    ]
    if found["gpu_hours"] is not None:
        lines.append(f"GPU hours     {found['gpu_hours']:.3g} at {found['gpus']} GPUs")
    if found.get("usd") is not None:
        lines.append(f"cost          {found['usd']:.2f} USD")
    if found["bytes"] is not None:
        lines.append(f"output        {found['bytes_per_row']:.4g} bytes a row, {found['bytes'] / 1e6:,.4g} MB in all")
    lines.append(
        f"bad images    {100 * bad['value']:.2f}% (95% interval {100 * bad['low']:.2f} to {100 * bad['high']:.2f}%)"
    )
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def _hours(hours: float) -> str:
    if hours < 1 / 30:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.1f} min" if hours < 2 else f"{hours:,.1f} h"
