"""What `clipbatch demo` does: a run over the sample images, and a table of what came of it."""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path

from clipbatch import api, catalog, summary
from clipbatch.config import from_flat
from clipbatch.errors import InputError
from clipbatch.rundir import RunDir


def label(out: str | os.PathLike[str], *, quiet: bool = False) -> str:
    """Label the sample images with the embedded model; returns what there is to see, as text."""
    images = importlib.resources.files("clipbatch") / "demo" / "images"
    settings = from_flat({"inputs": [str(images)], "labels": "cifar10", "model": catalog.DEMO})
    try:
        made = api.run(settings, out, quiet=quiet)
    except InputError as error:
        raise InputError(f"{error} (the demo writes to {out}: choose another folder with --out)") from error
    return _table(RunDir(out)) + "\n\n" + summary.text(os.fspath(out), made)


def _table(run_dir: RunDir) -> str:
    """All rows of a small run: file, label, score, status."""
    import pyarrow.parquet as pq

    rows = pq.read_table(run_dir.parts, columns=["uri", "label", "score", "status", "error"]).to_pylist()
    lines = [f"{'image':28} {'label':12} {'score':>5}  status"]
    for row in rows:
        label, score = (row["label"], f"{row['score']:.2f}") if row["status"] == "ok" else ("-", "-")
        what = row["status"] if row["status"] == "ok" else f"{row['status']}: {row['error']}"
        lines.append(f"{Path(row['uri']).name:28} {label:12} {score:>5}  {what}"[:118])
    return "\n".join(lines)
