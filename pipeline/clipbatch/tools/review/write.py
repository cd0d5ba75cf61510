"""A review queue as a file: CSV, Parquet, a page with thumbnails, or tasks for Label Studio.

Label Studio takes 250,000 tasks and 200 MB at a time; a file has fewer, and where there are more, they are numbered:
queue.json, queue-2.json. Beside them is queue.xml, the labeling interface to paste into the project's settings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq
from markupsafe import Markup

from clipbatch import __version__
from clipbatch.config.label_set import LabelGroup
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.rundir.layout import RunDir
from clipbatch.storage.atomic import publish
from clipbatch.storage.uris import is_url
from clipbatch.tools.evaluate.ranking import group_number
from clipbatch.tools.htmlreport import template, thumbnails
from clipbatch.tools.review.queue import Draws, QueueRow, draw

# Of a file for Label Studio.
MAX_TASKS, MAX_BYTES = 100_000, 100 * 10**6
# On a page.
MAX_PICTURES = 2_000
_SUFFIXES = (".csv", ".parquet", ".html", ".json")


def make(path: str, out: str, draws: Draws, *, group: str | None = None, url_prefix: str | None = None) -> list[Path]:
    """Draw a queue from the run in `path` and write it to `out`; returns the files.

    group: which label group. url_prefix: put before each uri, for Label Studio.
    Raises: InputError for an `out` of another kind, or that cannot be written; nothing is left half-written.
    """
    target = Path(out)
    kind = target.suffix.lower()
    if kind not in _SUFFIXES:
        raise InputError(f"--out {out}: name a file that ends in {', '.join(_SUFFIXES)}; .json is for Label Studio")
    if not target.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {target.absolute().parent}")
    run = RunDir(path)
    plan = run.plan()
    number = group_number(plan.labels, group, str(run.path))
    rows = draw(run, plan, number, draws)
    labels = plan.labels.groups[number]
    if kind == ".json":
        return _write_tasks(target, rows, labels, url_prefix, run.fingerprint() or "")
    with publish(target) as file:
        if kind == ".csv":
            pc_csv.write_csv(_table(rows), file)
        elif kind == ".parquet":
            pq.write_table(_table(rows), file)
        else:
            file.write(_page(run, rows, labels))
    return [target]


def _table(rows: Sequence[QueueRow]) -> pa.Table:
    schema = pa.schema(
        [
            *(("row_id", pa.int64()), ("uri", pa.string()), ("label", pa.string()), ("score", pa.float64())),
            *(("second", pa.string()), ("second_score", pa.float64()), ("margin", pa.float64())),
            *(("stratum", pa.string()), ("weight", pa.float64()), ("truth", pa.string())),
        ]
    )
    return pa.Table.from_pylist([dataclasses.asdict(row) | {"truth": ""} for row in rows], schema=schema)


def _write_tasks(
    target: Path, rows: Sequence[QueueRow], labels: LabelGroup, url_prefix: str | None, fingerprint: str
) -> list[Path]:
    if url_prefix is None and not all(is_url(row.uri) for row in rows):
        raise InputError(
            "Label Studio opens images by their url: give --url-prefix, such as https://host/photos/ or "
            "/data/local-files/?d=photos/, which is put before each uri"
        )
    files = [target]
    with publish(target.with_suffix(".xml")) as file:
        file.write(_interface(labels).encode())
    tasks, size = list[bytes](), 0
    for row in rows:
        task = json.dumps(_task(row, url_prefix or "", fingerprint), ensure_ascii=False).encode()
        if tasks and (len(tasks) >= MAX_TASKS or size + len(task) > MAX_BYTES):
            _write_list(files[-1], tasks)
            files.append(target.with_name(f"{target.stem}-{len(files) + 1}{target.suffix}"))
            tasks, size = [], 0
        tasks.append(task)
        size += len(task) + 2
    _write_list(files[-1], tasks)
    return [*files, target.with_suffix(".xml")]


def _write_list(path: Path, tasks: list[bytes]) -> None:
    with publish(path) as file:
        file.write(b"[" + b",\n".join(tasks) + b"]\n")


def _task(row: QueueRow, url_prefix: str, fingerprint: str) -> JsonObject:
    image = row.uri if is_url(row.uri) else url_prefix + quote(row.uri)
    task: JsonObject = {"data": {"image": image, **dataclasses.asdict(row)}}
    if row.label is not None:
        result = {"from_name": "truth", "to_name": "image", "type": "choices", "value": {"choices": [row.label]}}
        task["predictions"] = [
            {"model_version": f"clipbatch {fingerprint[:12]}", "score": row.score, "result": [result]}
        ]
    return task


def _interface(labels: LabelGroup) -> str:
    kind = "multiple" if labels.multiple else "single"
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in labels.names)
    return (
        f'<View>\n  <Image name="image" value="$image"/>\n  <Choices name="truth" toName="image" choice="{kind}">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )


def _page(run: RunDir, rows: Sequence[QueueRow], labels: LabelGroup) -> bytes:
    if len(rows) > MAX_PICTURES:
        raise InputError(f"a page takes {MAX_PICTURES} images, and these are {len(rows)}: draw fewer, or use .csv")
    style, script = (template.asset(name) for name in ("report.css", "review.js"))
    page = template.environment().get_template("review.html.j2")
    return page.render(
        style=Markup(style),
        script=Markup(script),
        policy=template.policy(style, script),
        version=__version__,
        rows=rows,
        labels=labels,
        thumbnails=thumbnails.make(run, [row.row_id for row in rows]),
    ).encode()
