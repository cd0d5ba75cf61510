"""What was gathered -> one HTML file that needs nothing else, smaller than `MAX_BYTES` whatever the run.

Every text goes through Jinja's autoescape (`template`), and what others wrote through `shown` first.

Which examples a report shows: of the most frequent labels, as many as there is room for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from clipbatch import __version__
from clipbatch.config.scoring import chance_remark
from clipbatch.rundir.layout import Plan, RunDir
from clipbatch.rundir.shapes import NOTHING, NUMBER, TEXT, Every, fits
from clipbatch.storage.paths import AnyPath, StorePath
from clipbatch.tools.htmlreport import figures, series, template
from clipbatch.tools.htmlreport.gather import MAX_BAD, BadImage, Gathered, LabelFacts, SetFacts
from clipbatch.tools.htmlreport.rankings import Example
from clipbatch.tools.htmlreport.thumbnails import Thumbnail

MAX_EXAMPLES = 300
"""In a report: a thumbnail takes some 3 to 12 kB in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetLabel:
    """The examples of one label."""

    facts: LabelFacts
    anchor: str
    """Where in the page it is."""

    @property
    def examples(self) -> list[tuple[str, Example]]:
        """Each with why it is shown."""
        return [
            *(("confident", example) for example in self.facts.confident),
            *(("doubtful", example) for example in self.facts.doubtful),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The examples of one set of labels."""

    name: str
    labels: list[SheetLabel]
    left_out: int
    """Labels that have images, but no room."""


def sheets(sets: list[SetFacts]) -> list[Sheet]:
    """A sheet for each set, with the same room for all."""
    made = []
    for number, found in enumerate(sets):
        room, labels = MAX_EXAMPLES // len(sets), list[SheetLabel]()
        used = [facts for facts in found.labels if facts.images]
        for place, facts in enumerate(used):
            room -= len(facts.confident) + len(facts.doubtful)
            if room < 0:
                break
            labels.append(SheetLabel(facts=facts, anchor=f"label-{number}-{place}"))
        made.append(Sheet(name=found.name, labels=labels, left_out=len(used) - len(labels)))
    return made


MAX_BYTES = 5_000_000
_LABELS_AT_ONCE = 20
"""Rows of the labels' table that show without opening it."""
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MESSAGES = 3
_STAGE = {"load": NUMBER, "starved_s": NUMBER, "blocked_s": NUMBER}
_THIS_RUN = {
    **dict.fromkeys(("rows", "seconds", "images_per_s", "load_s", "peak_memory_mib", "restarts"), NUMBER),
    "bottleneck": TEXT,
    "stages": Every(dict, _STAGE),
    "workers": Every(list, {"device": TEXT}),
}
_HARDWARE = {"host": TEXT, "cpu": TEXT, "cores": NUMBER, "memory_gib": NUMBER}
_OPTIONAL = (NUMBER, NOTHING)
_SHARE = {"value": _OPTIONAL, "low": _OPTIONAL, "high": _OPTIONAL}
_EVALUATION = {
    "images": NUMBER,
    "truth": {"source": TEXT, "bad_images": Every(dict, NUMBER), "not_a_label": Every(dict, NUMBER)},
    "per_label": Every(
        list,
        {
            "label": TEXT,
            "support": NUMBER,
            **dict.fromkeys(("precision", "recall", "f1", "average_precision"), _OPTIONAL),
        },
    ),
    "warnings": Every(list, TEXT),
    "left_out": Every(dict, TEXT),
}
_PICTURE_BYTES = 3_200_000
"""For all thumbnails together, in base64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that a page is made of."""

    run: RunDir
    plan: Plan
    report: Mapping[str, Any]
    """`report.json`; empty where there is none."""
    found: Gathered
    sheets: list[Sheet]
    thumbnails: Mapping[int, Thumbnail]
    """By row_id."""
    now: float
    """Unix time, seconds."""
    zoom: bool = False
    """Whether the axes of scores and margins end where their values do, in place of 0 and 1."""
    evaluation: Mapping[str, Any]
    """What `evaluate` wrote of this run; empty if there is nothing."""


def render(facts: Facts) -> bytes:
    """The page in UTF-8. Lists are cut to a third as often as it takes to keep within `MAX_BYTES`."""
    report, fixed = template.environment().get_template("report.html.j2"), _fixed(facts)
    most = MAX_BAD
    while True:
        page = report.render(fixed | _cut(fixed, most)).encode()
        if len(page) <= MAX_BYTES or most <= 1:
            return page
        most //= 3


def _fixed(facts: Facts) -> dict[str, Any]:
    """What the template reads, but for the lists that `_cut` cuts."""
    found, plan = facts.found, facts.plan
    style, script = (template.asset(name) for name in ("report.css", "report.js"))
    rows = [example.row_id for sheet in facts.sheets for label in sheet.labels for _, example in label.examples]
    rows += [example["row_id"] for entry in facts.evaluation.get("confusions", ()) for example in entry["examples"]]
    steps = series.steps(found.published)
    return {
        "style": Markup(style),
        "script": Markup(script),
        "policy": template.policy(style, script),
        "title": _title(facts.run.path),
        "version": __version__,
        "now": facts.now,
        "plan": plan,
        "settings": plan.settings,
        "found": found,
        "ok": found.statuses["ok"],
        "bad_rows": found.rows - found.statuses["ok"],
        "this_run": _complete(facts.report.get("this_run"), _THIS_RUN),
        "hardware": _complete(facts.report.get("hardware"), _HARDWARE),
        "model": facts.run.model_facts() or {},
        "fingerprint": facts.run.fingerprint() or "",
        "statuses": _statuses(found),
        "all_sets": [_set(number, facts) for number in range(len(found.sets))],
        "sheets": facts.sheets,
        "thumbnails": _within(facts.thumbnails, rows),
        "examples": sum(len(label.examples) for sheet in facts.sheets for label in sheet.labels),
        "evaluation": facts.evaluation,
        "reliability": _reliability(facts.evaluation),
        "coverage": _coverage(facts.evaluation),
        "steps": steps,
        "timeline": figures.timeline(steps, name="timeline") if steps else "",
        "parts": len(found.published),
        "value": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }


def _title(path: AnyPath) -> str:
    return path.name if isinstance(path, StorePath) else path.resolve().name


def _complete(entry: Any, shape: Mapping[str, Any]) -> dict[str, Any] | None:
    """`entry`, or None where another version of clipbatch left out what the page shows, or it is damaged."""
    return entry if fits(entry, shape) else None


def _cut(fixed: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The lists of labels and of bad images, `most` entries each at most, and the folder of all that is named."""
    bad = _bad(fixed["found"], most)
    examples = [example for sheet in fixed["sheets"] for label in sheet.labels for _, example in label.examples]
    rows = max(most, _LABELS_AT_ONCE)
    sets = [
        entry
        | {
            "labels": entry["used"][:_LABELS_AT_ONCE],
            "more_labels": entry["used"][_LABELS_AT_ONCE:rows],
            "left_out": max(0, len(entry["used"]) - rows),
            "some_unused": entry["unused"][:most],
        }
        for entry in fixed["all_sets"]
    ]
    return {
        "bad": bad,
        "sets": sets,
        "folder": template.common_folder([*(image.uri for image in bad), *(example.uri for example in examples)]),
    }


def _within(thumbnails: Mapping[int, Thumbnail], rows: list[int]) -> dict[int, Thumbnail]:
    """The thumbnails of `rows`, in their order, as far as `_PICTURE_BYTES` go."""
    made, left = {}, _PICTURE_BYTES
    for row in rows:
        left -= len(thumbnails[row].base64)
        made[row] = thumbnails[row] if left >= 0 else Thumbnail(why="left out, to keep this file small")
    return made


def shows(evaluation: Any) -> bool:
    """Whether the page can show an `evaluation.json`, which anybody may have edited."""
    return fits(evaluation, _EVALUATION)


def _reliability(evaluation: Mapping[str, Any]) -> Markup | None:
    entries = (evaluation.get("reliability") or {}).get("bins", ())
    if not entries:
        return None
    points = [(entry["mean_score"], entry["accuracy"]) for entry in entries]
    return figures.curve(points, xlabel="mean score", ylabel="accuracy", name="reliability", diagonal=True)


def _coverage(evaluation: Mapping[str, Any]) -> Markup | None:
    entries = evaluation.get("coverage") or ()
    if len(entries) < 2:
        return None
    points = [(entry["coverage"], entry["precision"]) for entry in entries]
    return figures.curve(points, xlabel="share of images that keep their label", ylabel="precision", name="coverage")


def _set(number: int, facts: Facts) -> dict[str, Any]:
    """One set of labels: its numbers and figures."""
    found: SetFacts = list(facts.found.sets.values())[number]
    used = [label for label in found.labels if label.images]
    kind = facts.found.score_kind
    distributions = [
        _distribution(
            f"scores-{number}", "Scores", f"{kind} score of the best label".strip(), found.scores, facts.zoom
        ),
        _distribution(f"margins-{number}", "Margins", "best score minus second best", found.margins, facts.zoom),
    ]
    group = facts.plan.labels.groups[number]
    scored = found.scores.total + found.scores.not_a_number
    middle = found.scores.quantile(0.5) if found.scores.total else None
    return {
        "name": found.name,
        "multiple": group.multiple,
        "chance": chance_remark(group, kind, middle),
        "unlabelled": found.unlabelled,
        "used": used,
        "unused": [label.name for label in found.labels if not label.images],
        "most_images": max((label.images for label in used), default=0),
        "images": scored,
        "distributions": [entry for entry in distributions if entry],
        "linked": {label.facts.name: label.anchor for label in facts.sheets[number].labels},
    }


def _distribution(name: str, title: str, what: str, values: Any, zoom: bool) -> dict[str, Any] | None:
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


def _statuses(found: Gathered) -> list[dict[str, Any]]:
    """The statuses that there are, ok first, then the most frequent."""
    made = []
    for status, count in sorted(found.statuses.items(), key=lambda entry: (entry[0] != "ok", -entry[1])):
        messages = sorted(found.messages.get(status, {}).items(), key=lambda entry: -entry[1].count)
        made.append({"name": status, "count": count, "messages": messages[:_MESSAGES], "kinds": len(messages)})
    return made


def _bad(found: Gathered, most: int) -> list[BadImage]:
    """`most` bad images at most: of each status as many, and all of the rare ones."""
    left, made = most, list[BadImage]()
    lists = sorted(found.bad.values(), key=len)
    for number, images in enumerate(lists):
        taken = images[: left // (len(lists) - number)]
        left -= len(taken)
        made += taken
    return sorted(made, key=lambda image: image.row_id)
