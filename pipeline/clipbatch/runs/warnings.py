"""Warnings about a run: scores at chance level, no caption that could be compared, or another device than planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config import Settings, auto, hardware, models
from clipbatch.config.scoring import chance_remark
from clipbatch.rundir.captions import COMPARED
from clipbatch.rundir.frozen_plan import Plan
from clipbatch.rundir.layout import RunDir
from clipbatch.rundir.schema import group_columns
from clipbatch.storage.paths import parquet_source

# Parts that are read, spread over all: enough for a median.
_MAX_PARTS = 8


def score_warnings(run: RunDir, plan: Plan, shards: Sequence[int]) -> list[str]:
    """A sentence for each label group whose scores are at chance level in some of the parts of `shards`.

    A part that cannot be read is left out; `verify` says what is wrong with it.
    """
    kind = (run.model_facts() or {}).get("score", "")
    groups = list(zip(plan.labels.groups, group_columns(plan.labels, plan.run_settings().output), strict=True))
    if kind != "softmax" or not shards or not groups:
        return []
    chosen = [shards[at] for at in np.unique(np.linspace(0, len(shards) - 1, _MAX_PARTS).astype(int))]
    tables = []
    for shard in chosen:
        try:
            path = run.part(shard, plan.shards)
            tables.append(pq.read_table(parquet_source(path), columns=[columns.score for _, columns in groups]))
        except (OSError, pa.ArrowException, KeyError):
            continue
    if not tables:
        return []
    table = pa.concat_tables(tables)
    remarks = []
    for group, columns in groups:
        scores = table[columns.score].drop_null().to_numpy()
        remarks.append(chance_remark(group, kind, float(np.median(scores)) if len(scores) else None))
    return [remark for remark in remarks if remark]


def caption_warnings(plan: Plan, counts: Mapping[str, int] | None) -> list[str]:
    """A sentence if there are captions, and none could be compared. counts: as by `counts.count_all`."""
    if not counts or counts.get(COMPARED):
        return []
    column = plan.run_settings().source.caption_column
    return [f"no image could be compared with its caption: --caption-column {column} may name the wrong column"]


def device_remark(plan: Plan, settings: Settings, cores: int | None = None) -> str | None:
    """What to expect where a run is on another kind of device than it was planned for; None if it is not.

    settings: of this invocation. cores: of the machine that runs it; None: this machine's.
    """
    device = "cuda" if settings.launch.gpus is not None else auto.device_of(settings).partition(":")[0]
    if plan.rescored is not None or plan.device in (None, device):
        return None
    if device == "cpu" and plan.identity["precision"] == "fp8":  # which is refused there
        return None
    cores, chosen, gflop = cores or hardware.cores(), plan.identity, models.gflop(plan.settings["model"])
    how = f"({chosen['precision']}, batches of {chosen['batch_size']}, decoder {chosen['decoder']})"
    if device == "cpu":
        rates = [auto.cpu_rate(gflop, precision, cores) for precision in (chosen["precision"], auto.cpu_precision())]
        what = (
            f"this run was planned for a GPU {how} and runs on a CPU: expect about {rates[0]:.2g} photographs/s on "
            f"{cores} cores, where a plan for a CPU gives {rates[1]:.2g}"
        )
    else:
        what = (
            f"this run was planned for a CPU {how} and runs on a GPU: the CPU decodes all images, {cores} cores at "
            f"most about {cores * auto.CORE_DECODES} photographs/s; what a GPU does by its own plan was not measured"
        )
    return f"{what}. To plan for it: clipbatch plan INPUT --device {device}, with another --out, or with --overwrite"
