"""Renders the report page: a single HTML file, smaller than `MAX_BYTES` for every run.

Jinja escapes every text (`template`). Texts that others wrote also go through its filter `shown`. The page shows
examples of the most frequent labels (`sheets`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from markupsafe import Markup

from clipbatch import __version__
from clipbatch.config.nesting import JsonObject
from clipbatch.config.scoring import chance_remark
from clipbatch.rundir.shapes import NUMBER, TEXT, Every, Shape, fits
from clipbatch.runs import report_text
from clipbatch.runs.report import has_pace
from clipbatch.storage.paths import AnyPath, StorePath
from clipbatch.tools.htmlreport import evaluation, figures, series, template
from clipbatch.tools.htmlreport.gather import MAX_BAD, BadImage, Gathered, LabelFacts, Message, SetFacts
from clipbatch.tools.htmlreport.sheets import Sheet
from clipbatch.tools.htmlreport.sources import Source, row_name
from clipbatch.tools.htmlreport.thumbnails import Thumbnail
from clipbatch.workers import words
from clipbatch.workers.words import bad_share

MAX_BYTES = 5_000_000
# How many rows of the table of labels are visible at first.
_LABELS_AT_ONCE = 20
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MESSAGES = 3
_STAGE: dict[str, Shape] = {"load": NUMBER, "starved_s": NUMBER, "blocked_s": NUMBER}
_THIS_RUN: dict[str, Shape] = {
    **dict.fromkeys(("rows", "seconds", "images_per_s", "load_s", "peak_memory_mib", "restarts"), NUMBER),
    "bottleneck": TEXT,
    "stages": Every(dict, _STAGE),
    "workers": Every(list, {"device": TEXT}),
}
_WAITS: dict[str, Shape] = {"waits": Every(dict, {"tries_again": NUMBER, "waited_s": NUMBER})}
_HARDWARE: dict[str, Shape] = {"host": TEXT, "cpu": TEXT, "cores": NUMBER, "memory_gib": NUMBER}
# The limit for all thumbnails together, in base64.
_PICTURE_BYTES = 3_200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that the page shows."""

    # The run or dataset.
    place: AnyPath
    sources: list[Source]
    # `report.json` of the last source; empty if there is none.
    report: Mapping[str, Any]
    gathered: Gathered
    sheets: list[Sheet]
    # By row_id.
    thumbnails: Mapping[int, Thumbnail]
    # Unix time, seconds.
    now: float
    # What `evaluate` wrote of this run; empty if there is nothing.
    evaluation: JsonObject
    # Whether scores and margins are drawn over their own range, not from 0 to 1.
    zoom: bool = False
    # Why no image is ok, as a guess; empty if some are, or nobody knows.
    cause: str = ""


def render(facts: Facts) -> bytes:
    """The page in UTF-8. If it is too large, long lists are cut to a third until it is not."""
    report, fixed = template.environment().get_template("report.html.j2"), _fixed(facts)
    limit = MAX_BAD
    while True:
        page = report.render(fixed | _cut(fixed, limit)).encode()
        if len(page) <= MAX_BYTES or limit <= 1:
            return page
        limit //= 3


class Distribution(TypedDict):
    """A histogram of the scores or margins of a set of labels, and its numbers."""

    title: str
    what: str
    figure: Markup
    quantiles: list[tuple[float, float | None]]
    bars: list[tuple[float, float, int]]
    not_a_number: int


class LabelTable(TypedDict):
    """The numbers of a set of labels."""

    name: str
    multiple: bool
    # A warning if the scores say nothing.
    chance: str | None
    unlabelled: int
    used: list[LabelFacts]
    unused: list[str]
    most_images: int
    images: int
    distributions: list[Distribution]
    linked: dict[str, str]


class StatusCount(TypedDict):
    """How many images have a status, and its most frequent messages."""

    name: str
    count: int
    messages: list[tuple[str, Message]]
    kinds: int


def _fixed(facts: Facts) -> dict[str, Any]:
    """The variables of the template, except the lists that `_cut` shortens."""
    gathered, run, plan = facts.gathered, facts.sources[-1].run, facts.sources[-1].plan
    style, script = (template.asset(name) for name in ("report.css", "report.js"))
    rows = [example.row_id for sheet in facts.sheets for label in sheet.labels for _, example in label.examples]
    rows += [example["row_id"] for entry in facts.evaluation.get("confusions", ()) for example in entry["examples"]]
    steps, this_run = series.steps(gathered.published), _complete(facts.report.get("this_run"), _THIS_RUN)
    captions = gathered.captions
    rows += [pair.row_id for pair in (*captions.lowest, *captions.highest)] if captions else []
    return {
        "style": Markup(style),
        "script": Markup(script),
        "policy": template.policy(style, script),
        "title": _title(facts.place),
        "version": __version__,
        "now": facts.now,
        "plan": plan,
        "rows": sum(source.rows for source in facts.sources),
        "increments": len(facts.sources) if len(facts.sources) > 1 else 0,
        "row_name": lambda row: row_name(facts.sources, row),
        "settings": plan.settings,
        "found": gathered,
        "ok": gathered.statuses["ok"],
        "bad_rows": gathered.rows - gathered.statuses["ok"],
        "many_bad": bad_share(gathered.statuses),
        "cause": facts.cause,
        "this_run": this_run,
        "ceiling": (_complete(this_run, {"ceiling": TEXT}) or {}).get("ceiling", ""),
        "has_pace": this_run is not None and has_pace(this_run),
        "waits": (_complete(facts.report.get("this_run"), _WAITS) or {}).get("waits", {}),
        "hardware": _complete(facts.report.get("hardware"), _HARDWARE),
        "model": run.model_facts() or {},
        "fingerprint": run.fingerprint() or "",
        "statuses": _statuses(gathered),
        "all_sets": [_set(number, facts) for number in range(len(gathered.sets))],
        "all_heads": [facts.table for facts in gathered.heads],
        "compared_with": _compared_with(len(plan.labels.names), captions is not None),
        "captions_text": report_text.captions_text(captions.counts) if captions else "",
        "similarities": _distribution(
            "similarities", "Similarities", "cosine of image and caption", captions.similarities, True
        )
        if captions
        else None,
        "sheets": facts.sheets,
        "thumbnails": _within(facts.thumbnails, rows),
        "examples": sum(len(label.examples) for sheet in facts.sheets for label in sheet.labels),
        "evaluation": facts.evaluation,
        "reliability": evaluation.reliability(facts.evaluation),
        "coverage": evaluation.coverage(facts.evaluation),
        "steps": steps,
        "timeline": figures.timeline(steps, name="timeline") if steps else "",
        "parts": len(gathered.published),
        "value": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }


def _compared_with(labels: int, captions: bool) -> str:
    """What the images were compared with, in words."""
    others = [f"{words.number(labels)} labels"] if labels else []
    others += ["their captions"] if captions else []
    return f"compared with {' and '.join(others)}" if others else "embedded"


def _title(path: AnyPath) -> str:
    return path.name if isinstance(path, StorePath) else path.resolve().name


def _complete(entry: Any, shape: Mapping[str, Shape]) -> JsonObject | None:
    """`entry`, or None if it lacks something that the page shows, because it is damaged or of another version."""
    return entry if fits(entry, shape) else None


def _cut(fixed: Mapping[str, Any], limit: int) -> dict[str, object]:
    """The lists of labels and of bad images, with at most `limit` entries each, and the common folder of all names."""
    bad = _bad(fixed["found"], limit)
    examples = [example for sheet in fixed["sheets"] for label in sheet.labels for _, example in label.examples]
    if captions := fixed["found"].captions:
        examples += [*captions.lowest, *captions.highest]
    return {
        "bad": bad,
        "sets": [_shortened(entry, limit) for entry in fixed["all_sets"]],
        "heads": [_shortened(entry, limit) for entry in fixed["all_heads"]],
        "folder": template.common_folder([*(image.uri for image in bad), *(example.uri for example in examples)]),
    }


def _shortened(entry: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The numbers of a set of labels or of a head, with at most `limit` labels, or as many as are visible at first."""
    rows = max(limit, _LABELS_AT_ONCE)
    return {
        **entry,
        "labels": entry["used"][:_LABELS_AT_ONCE],
        "more_labels": entry["used"][_LABELS_AT_ONCE:rows],
        "left_out": max(0, len(entry["used"]) - rows),
        "some_unused": entry["unused"][:limit],
    }


def _within(thumbnails: Mapping[int, Thumbnail], rows: list[int]) -> dict[int, Thumbnail]:
    """The thumbnails of `rows`, in their order. Those that exceed `_PICTURE_BYTES` are left out."""
    result, left = {}, _PICTURE_BYTES
    for row in rows:
        left -= len(thumbnails[row].base64)
        result[row] = thumbnails[row] if left >= 0 else Thumbnail(why="left out, to keep this file small")
    return result


def _set(number: int, facts: Facts) -> LabelTable:
    """The numbers and figures of a set of labels."""
    label_set: SetFacts = list(facts.gathered.sets.values())[number]
    used = [label for label in label_set.labels if label.images]
    kind = facts.gathered.score_kind
    best, zoom = f"{kind} score of the best label".strip(), facts.zoom
    distributions = [
        _distribution(f"scores-{number}", "Scores", best, label_set.scores, zoom),
        _distribution(f"margins-{number}", "Margins", "best score minus second best", label_set.margins, zoom),
    ]
    group = facts.sources[-1].plan.labels.groups[number]
    scored = label_set.scores.total + label_set.scores.not_a_number
    middle = label_set.scores.quantile(0.5) if label_set.scores.total else None
    return {
        "name": label_set.name,
        "multiple": group.multiple,
        "chance": chance_remark(group, kind, middle),
        "unlabelled": label_set.unlabelled,
        "used": used,
        "unused": [label.name for label in label_set.labels if not label.images],
        "most_images": max((label.images for label in used), default=0),
        "images": scored,
        "distributions": [entry for entry in distributions if entry],
        "linked": {label.facts.name: label.anchor for label in facts.sheets[number].labels},
    }


def _distribution(name: str, title: str, what: str, values: Any, zoom: bool) -> Distribution | None:
    if not values.total:
        return None
    bars, middle = values.bars(zoom=zoom), values.quantile(0.5)
    return {
        "title": title,
        "what": what,
        "figure": figures.histogram(bars, xlabel=what, name=name, middle=middle),
        "quantiles": [(share, values.quantile(share)) for share in _SHARES],
        "bars": bars,
        "not_a_number": values.not_a_number,
    }


def _statuses(gathered: Gathered) -> list[StatusCount]:
    """All statuses that occur: ok first, then the most frequent."""
    result = list[StatusCount]()
    for status, count in sorted(gathered.statuses.items(), key=lambda entry: (entry[0] != "ok", -entry[1])):
        messages = sorted(gathered.messages.get(status, {}).items(), key=lambda entry: -entry[1].count)
        result.append({"name": status, "count": count, "messages": messages[:_MESSAGES], "kinds": len(messages)})
    return result


def _bad(gathered: Gathered, limit: int) -> list[BadImage]:
    """At most `limit` bad images: the same number of each status, or all images of a rare status."""
    left, result = limit, list[BadImage]()
    lists = sorted(gathered.bad.values(), key=len)
    for number, images in enumerate(lists):
        chosen = images[: left // (len(lists) - number)]
        left -= len(chosen)
        result += chosen
    return sorted(result, key=lambda image: image.row_id)
