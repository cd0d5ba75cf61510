"""Compares this machine's fast path with open_clip's own transform and model in fp32, using the user's images.

This module chooses the images and starts a process that compares them (`compare_main`). `verdict` judges the result.
`render` puts it into a single HTML file, with the escaping and the Content-Security-Policy of the report page.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from clipbatch import __version__
from clipbatch.config import Settings
from clipbatch.config.auto import device_of
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError
from clipbatch.inputs.listing import Listing
from clipbatch.runs import plan
from clipbatch.storage.atomic import publish
from clipbatch.storage.paths import AnyPath, as_path
from clipbatch.tools.htmlreport import template
from clipbatch.tools.parity import verdict
from clipbatch.tools.parity.verdict import Facts, Row, Summary, summary
from clipbatch.workers import child


class Picture(TypedDict):
    """The pixels of an image on both paths and their difference, as WebP in base64."""

    picture: int  # its row_id
    ours: str
    theirs: str
    difference: str


def render(result: Summary, pictures: list[Picture]) -> bytes:
    """The HTML page."""
    style = template.asset("report.css")
    by_row = {picture["picture"]: picture for picture in pictures}
    parts = [("All images", result["all"])]
    if result["alike"] and result["alike"]["images"] < result["compared"]:
        parts.append(("Without those treated differently on purpose", result["alike"]))
    page = template.environment().get_template("parity.html.j2")
    return page.render(
        style=Markup(style),
        policy=template.policy(style),
        version=__version__,
        now=time.time(),
        found=result,
        compared=verdict.compared(result),
        parts=[(title, part["images"], verdict.shown(part)) for title, part in parts if part],
        apart=verdict.apart,
        small=verdict.small,
        worst=[(row, by_row[row["row_id"]]) for row in result["worst"] if row["row_id"] in by_row],
    ).encode()


# How many of the images that differ most are shown side by side.
PICTURES = 12


def compare(settings: Settings, *, limit: int, out: str | None = None) -> tuple[Summary, AnyPath | None]:
    """Compare at most `limit` of the images of `settings`. Returns the result, and the path of the page.

    settings: as for a run; without labels, no labels are compared. out: an HTML file to write, or a URL in a store.
    Raises: InputError if the input, the settings or the model are refused, or `out` cannot be written.
    """
    if not settings.source.inputs:
        raise InputError("no INPUT: name a folder, image files, a manifest or an archive to take images from")
    target = as_path(out, any_name=True) if out else None
    if isinstance(target, Path) and target.is_dir():
        raise InputError(f"--out {target} is a folder: name a file in it, such as {target / 'parity.html'}")
    labelled = bool(settings.labels.labels)
    listed = [0]
    with tempfile.TemporaryDirectory(prefix="clipbatch-parity-") as scratch:
        whole = settings.replace(columns=(), **({} if labelled else {"labels": "a,b"}))  # a plan needs labels
        plan.plan(whole, scratch, select=evenly(limit, listed))
        arguments = [scratch, device_of(settings), str(int(labelled)), str(PICTURES if target else 0)]
        facts, rows, pictures = _sorted(child.messages_of("clipbatch.tools.parity.compare_main", *arguments))
    result = summary(facts, rows, listed[0])
    if target:
        with publish(target) as file:
            file.write(render(result, pictures))
    return result, target


def _sorted(lines: Iterator[JsonObject]) -> tuple[Facts, list[Row], list[Picture]]:
    """The messages of `compare_main`, by kind."""
    from tqdm import tqdm

    facts = cast(Facts, next(lines))
    rows, pictures = list[Row](), list[Picture]()
    for line in tqdm(lines, unit=" images", disable=None, leave=False):  # None: no bar unless on a terminal
        if "picture" in line:
            pictures.append(cast(Picture, line))
        else:
            rows.append(cast(Row, line))
    return facts, rows, pictures


def evenly(limit: int, listed: list[int]) -> Callable[[Listing], Iterator[pa.RecordBatch]]:
    """A function that selects at most `limit` rows of a listing, evenly spaced, and adds the number of all rows to
    `listed[0]`.

    It keeps every `stride`-th row while the listing goes on. When it has twice as many rows as it needs, it drops every
    other one and doubles the stride.
    """

    def select(listing: Listing) -> Iterator[pa.RecordBatch]:
        stride, sample = 1, listing.schema.empty_table()
        for batch in listing.batches():
            slots = np.arange(-listed[0] % stride, batch.num_rows, stride)
            listed[0] += batch.num_rows
            sample = pa.concat_tables([sample, pa.Table.from_batches([batch.take(slots)], listing.schema)])
            while sample.num_rows >= 2 * limit:
                sample, stride = sample.take(np.arange(0, sample.num_rows, 2)), 2 * stride
        count = min(limit, sample.num_rows)
        chosen = sample.take(np.arange(count) * sample.num_rows // count)
        yield from chosen.unify_dictionaries().combine_chunks().to_batches()

    return select


__all__ = ["compare"]
