"""This machine's fast path against open_clip's own transform and model in fp32, on the user's images.

The images are compared in a process of their own (`measure`); here they are chosen, and the answer is put into words.
Knows nothing of how fast either path is.

What was compared -> one HTML file that needs nothing else, with the report's escaping and policy.
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
    """The pixels of an image and their difference, WebP in base64."""

    picture: int  # its row_id
    ours: str
    theirs: str
    difference: str


def render(found: Summary, pictures: list[Picture]) -> bytes:
    """found: as `verdict.summary` makes it. pictures: as `measure` says them."""
    style = template.asset("report.css")
    by_row = {picture["picture"]: picture for picture in pictures}
    parts = [("All images", found["all"])]
    if found["alike"] and found["alike"]["images"] < found["compared"]:
        parts.append(("Without those treated otherwise on purpose", found["alike"]))
    page = template.environment().get_template("parity.html.j2")
    return page.render(
        style=Markup(style),
        policy=template.policy(style),
        version=__version__,
        now=time.time(),
        found=found,
        compared=verdict.compared(found),
        parts=[(title, part["images"], verdict.shown(part)) for title, part in parts if part],
        worst=[(row, by_row[row["row_id"]]) for row in found["worst"] if row["row_id"] in by_row],
    ).encode()


# Images that are shown side by side, those that agree the least.
PICTURES = 12


def compare(settings: Settings, *, limit: int, out: str | None = None) -> tuple[Summary, AnyPath | None]:
    """Compare `limit` of the images of `settings` at most; returns what was found, and where the page is.

    settings: as of a run; without labels, no labels are compared. out: an HTML file to write, or a url in a store.
    Raises: InputError where the input, the settings or the model are refused, or `out` cannot be written.
    """
    if not settings.source.inputs:
        raise InputError("no INPUT: name a folder, image files, a manifest or an archive to take images from")
    target = as_path(out, any_name=True) if out else None
    if isinstance(target, Path) and target.is_dir():
        raise InputError(f"--out {target} is a folder: name a file in it, such as {target / 'parity.html'}")
    labelled = bool(settings.labels.labels)
    listed = [0]
    with tempfile.TemporaryDirectory(prefix="clipbatch-parity-") as scratch:
        whole = settings.replace(columns=(), **({} if labelled else {"labels": "a,b"}))  # a plan has labels
        plan.plan(whole, scratch, select=_evenly(limit, listed))
        arguments = [scratch, device_of(settings), str(int(labelled)), str(PICTURES if target else 0)]
        facts, rows, pictures = _sorted(child.messages_of("clipbatch.tools.parity.compare_main", *arguments))
    found = summary(facts, rows, listed[0])
    if target:
        with publish(target) as file:
            file.write(render(found, pictures))
    return found, target


def _sorted(lines: Iterator[JsonObject]) -> tuple[Facts, list[Row], list[Picture]]:
    """What `compare_main` says, by kind."""
    from tqdm import tqdm

    facts = cast(Facts, next(lines))
    rows, pictures = list[Row](), list[Picture]()
    for line in tqdm(lines, unit=" images", disable=None, leave=False):  # None: where nobody watches
        if "picture" in line:
            pictures.append(cast(Picture, line))
        else:
            rows.append(cast(Row, line))
    return facts, rows, pictures


def _evenly(limit: int, listed: list[int]) -> Callable[[Listing], Iterator[pa.RecordBatch]]:
    """Takes `limit` rows of a listing at most, evenly spaced, and counts into `listed` how many there were.

    Until the listing has ended, every `stride`-th row is kept, and fewer than twice as many as are wanted.
    """

    def select(listing: Listing) -> Iterator[pa.RecordBatch]:
        stride, kept = 1, listing.schema.empty_table()
        for batch in listing.batches():
            here = np.arange(-listed[0] % stride, batch.num_rows, stride)
            listed[0] += batch.num_rows
            kept = pa.concat_tables([kept, pa.Table.from_batches([batch.take(here)], listing.schema)])
            while kept.num_rows >= 2 * limit:
                kept, stride = kept.take(np.arange(0, kept.num_rows, 2)), 2 * stride
        count = min(limit, kept.num_rows)
        chosen = kept.take(np.arange(count) * kept.num_rows // count)
        yield from chosen.unify_dictionaries().combine_chunks().to_batches()

    return select


__all__ = ["compare"]
