"""Copies the parts of a finished run into a few large files in a folder that holds nothing else.

A file holds whole parts. It is called `part-00000-of-00012.parquet`, so `ls` shows whether all files exist. Each file
is written under another name, read back and compared with the parts row by row, and only then gets its name. So a file
with its name is correct, and the same command continues where it was interrupted. Files end with a checksum, like
parts.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from clipbatch.errors import InputError
from clipbatch.rundir import captions
from clipbatch.rundir.counts import count_statuses
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import copying
from clipbatch.runs.copying import Compacted
from clipbatch.storage.atomic import remove_leftovers, writing_failed
from clipbatch.storage.paths import AnyPath, list_names

_OURS = re.compile(r"part-\d{5,}-of-\d{5,}\.parquet|\..+\.tmp")


def compact(run: RunDir, out: AnyPath, rows_per_file: int | None, *, row_group_rows: int | None = None) -> Compacted:
    """See `runs.run.compact`. row_group_rows: rows of a row group; None: as `copying.write` says."""
    plan = run.plan()
    copying.check_rows_per_file(rows_per_file)
    fingerprint = copying.check_finished(run, plan)
    each = copying.shards_per_file(run, plan, rows_per_file)
    files = [range(plan.shards)[at : at + each] for at in range(0, plan.shards, each)]
    targets = targets_in(out, len(files))
    counted = count_statuses(run, plan, range(plan.shards))
    for number, (target, shards) in enumerate(zip(targets, files, strict=True)):
        footer = {"clipbatch.shards": f"{shards[0]}-{shards[-1]}", "clipbatch.file": f"{number} of {len(files)}"}
        counts = sum((Counter(counted[shard]) for shard in shards), Counter())
        if copying.is_written(target, fingerprint, {**footer, "clipbatch.counts": copying.counts_json(counts)}):
            continue
        copying.check_parts(run, plan, shards)
        schema = copying.schema_of(run, plan, shards[0])
        copying.write(
            target,
            copying.with_footer(schema, footer),
            lambda shards=shards: copying.tables_of(run, plan, shards),  # type: ignore[misc]
            plan.run_settings().output.compression,
            row_group_rows=row_group_rows,
            column=captions.column_of(run, plan),
        )
    return Compacted(rows=plan.rows, parts=plan.shards, files=len(files), out=str(out), source_may_be_deleted=False)


def targets_in(out: AnyPath, count: int) -> list[AnyPath]:
    """The names of `count` files in the folder `out`, which is created. Raises: InputError if it holds other files."""
    targets = [out / f"part-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    try:
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        expected = {target.name for target in targets}
        strangers = sorted(name for name in list_names(out) - expected if not name.endswith(".tmp"))
    except OSError as error:
        raise writing_failed(out, error) from error
    if strangers:
        cut = "; it was begun with another --rows-per-file" if _OURS.fullmatch(strangers[0]) else ""
        raise InputError(
            f"the output folder {out} holds other files ({strangers[0]!r} ...{cut}): choose a new or empty folder"
        )
    return targets
