"""What a finished run's scores say about its labels, for the summary: a look at some of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipbatch.config.scoring import chance_remark
from clipbatch.rundir.layout import Plan, RunDir
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
