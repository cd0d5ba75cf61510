"""Label files -> label groups. The suffix says which format a file has, in upper or lower case.

    .toml         labels, or tags with two sides each; templates, thresholds, groups
    .csv .tsv     a header with `label` and, if wanted, `prompt`, `threshold` and `group`; a label's prompts are on
                  rows of their own
    .json         a list of labels, or an object {id: label}, whose labels are in the order of the ids if all ids are
                  numbers
    any other     one label a line; blank lines and lines that start with # are skipped

A TOML file:

    templates = ["a photo of {}."]
    multiple = true                  # an image may have any number of labels
    threshold = 0.3                  # of every label ...
    thresholds = {bee = 0.5}         # ... but these
    [labels]                         # or a list; or [tags] with a yes and a no for each
    bee = ["a bee", "a honeybee on a flower"]

or several groups of these, each scored for itself, under [groups.NAME]. A label's prompts are all its phrases in all
templates.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipbatch.config import parse_toml
from clipbatch.config.label_set import LabelGroup
from clipbatch.config.nesting import JsonObject, check_json
from clipbatch.errors import InputError, nearest, reading_failed

DEFAULT_TEMPLATE = "a photo of a {}."
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_KEYS = ("labels", "tags", "templates", "threshold", "thresholds", "multiple")
_HEADER = ("label", "prompt", "threshold", "group")


def read_file(path: Path, templates: list[str]) -> list[LabelGroup]:
    """The groups in the file `path`; one without a name if the file has no groups.

    templates: replace the file's, if there are any. Raises: InputError naming the file, the place in it and the remedy.
    """
    suffix = path.suffix.lower()
    if suffix == ".toml":
        return _read_toml(path, templates)
    if suffix in (".csv", ".tsv"):
        return _read_table(path, templates, "\t" if suffix == ".tsv" else ",")
    if suffix == ".json":
        names = distinct(_json_names(path), str(path), "write a list of texts, or {id: text}")
    else:
        lines = [line.strip() for line in _read(path).splitlines()]
        names = distinct(["" if line.startswith("#") else line for line in lines], str(path))
    group = LabelGroup(name="", phrases={name: [name] for name in names}, templates=templates or [DEFAULT_TEMPLATE])
    return [check_group(group, str(path))]


def check_group(group: LabelGroup, place: str) -> LabelGroup:
    """`group`, if its labels are text and its thresholds are of labels that it has. place: how messages name it."""
    for name in group.names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"label {name!r} is not valid text: write labels in UTF-8")
    for name in group.thresholds:
        if name not in group.phrases:
            raise InputError(
                f"{place}: thresholds has {name!r}, and there is no such label: fix the name, or leave it out."
                f"{nearest(name, group.names)}"
            )
    return group


def check_templates(templates: list[str], near: str = "") -> list[str]:
    """`templates`, if each has a `{}`. near: what else may have been meant. Raises: InputError."""
    for template in templates:
        if "{}" not in template:
            raise InputError(f"template {template!r} has no {{}} for the label: write it as 'a photo of a {{}}.'{near}")
    return templates


def distinct(names: Sequence[str], place: str, remedy: str = "write one a line") -> list[str]:
    """`names` without the empty ones. Raises: InputError with both places (from 1) for a name that appears twice."""
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            continue
        if name in first:
            raise InputError(f"{place}: label {name!r} appears twice, at {first[name]} and {number}: remove one")
        first[name] = number
    if not first:
        raise InputError(f"{place} has no labels: {remedy}")
    return list(first)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise reading_failed(f"the labels {path}", error) from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{path} is not a text file in UTF-8: --labels wants one label a line, or TOML")
    return text


def _json_names(path: Path) -> list[str]:
    def unique(pairs: list[tuple[str, Any]]) -> JsonObject:
        distinct([key for key, _ in pairs], f"{path}: ids")
        return dict(pairs)

    text = _read(path)
    try:
        check_json(text.encode())
        value = json.loads(text, object_pairs_hook=unique)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}; write a list of labels, or {{id: label}}") from error
    if isinstance(value, dict):
        numbered = all(re.fullmatch("[0-9]{1,18}", key) for key in value)
        value = [value[key] for key in (sorted(value, key=int) if numbered else value)]
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise InputError(f"{path}: write a list of labels that are texts, or {{id: label}}")
    return [name.strip() for name in value]


def _read_table(path: Path, templates: list[str], delimiter: str) -> list[LabelGroup]:
    """The groups of a CSV or TSV file."""
    try:
        lines = list(csv.reader(_read(path).splitlines(keepends=True), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise InputError(f"{path} is not a table that can be read: {error}; check its quotes") from error
    header = [name.strip().lower() for name in lines[0]] if lines else []
    for name in header:
        if name not in _HEADER or header.count(name) > 1 or "label" not in header:
            raise InputError(
                f"{path}: its header has {name!r}: the first line names the columns label and, if wanted, prompt, "
                f"threshold and group, each once.{nearest(name, _HEADER)}"
            )
    groups: dict[str, _Table] = {}
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise InputError(f"{path}: row {number} has {len(cells)} cells, and the header has {len(header)}: fix it")
        row = dict.fromkeys(_HEADER, "") | {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        groups.setdefault(row["group"], _Table()).add(row, f"{path}: row {number}")
    if not groups:
        raise InputError(f"{path} has no labels: write one a row below the header")
    if "" in groups and len(groups) > 1:
        raise InputError(f"{path}: some rows have no group and others have one: give all rows a group, or none")
    if "" not in groups:
        _check_group_names(list(groups), str(path))
    return [
        table.group(name, templates, f"{path}: group {name!r}" if name else str(path)) for name, table in groups.items()
    ]


class _Table:
    """The rows of one group of a table."""

    def __init__(self) -> None:
        self._prompts: dict[str, list[str]] = {}
        self._thresholds: dict[str, float] = {}

    def add(self, row: dict[str, str], place: str) -> None:
        """A row with the cells of `_HEADER`."""
        label, prompt = row["label"], row["prompt"]
        if not label:
            raise InputError(f"{place} has no label: name it, or remove the row")
        prompts = self._prompts.setdefault(label, [])
        if prompt in prompts:
            what = f"with prompt {prompt!r} " if prompt else ""
            raise InputError(f"{place}: label {label!r} appears twice {what}in its group: remove one")
        prompts.append(prompt)
        if row["threshold"]:
            try:
                threshold = _threshold(float(row["threshold"]), place)
            except ValueError:
                raise InputError(f"{place}: threshold {row['threshold']!r} is not a number from -1 to 1") from None
            if self._thresholds.setdefault(label, threshold) != threshold:
                raise InputError(f"{place}: label {label!r} has another threshold on an earlier row: keep one")

    def group(self, name: str, templates: list[str], place: str) -> LabelGroup:
        """A label without a prompt gets its name in the default template, if there are no `templates`."""
        default = "{}" if templates else DEFAULT_TEMPLATE
        phrases = {
            label: [prompt or default.replace("{}", label) for prompt in prompts]
            for label, prompts in self._prompts.items()
        }
        group = LabelGroup(name=name, phrases=phrases, templates=templates or ["{}"], thresholds=self._thresholds)
        return check_group(group, place)


def _read_toml(path: Path, templates: list[str]) -> list[LabelGroup]:
    """The groups of a TOML file."""
    try:
        content = parse_toml(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    if "groups" not in content:
        return [_toml_group("", content, str(path), templates)]
    groups = content["groups"]
    beside = [name for name in content if name != "groups"]
    if beside:
        raise InputError(f"{path}: {beside[0]!r} stands beside [groups]: put it into each [groups.NAME]")
    if not isinstance(groups, dict) or not groups or not all(isinstance(table, dict) for table in groups.values()):
        raise InputError(f"{path}: groups wants tables [groups.NAME], each with labels")
    _check_group_names(list(groups), str(path))
    return [_toml_group(name, table, f"{path}: group {name!r}", templates) for name, table in groups.items()]


def _check_group_names(names: list[str], place: str) -> None:
    for name in names:
        if not _GROUP.fullmatch(name):
            raise InputError(
                f"{place}: group {name!r} cannot begin a column's name: use a to z first, then also 0 to 9 and _"
            )


def _toml_group(name: str, table: JsonObject, place: str, given: list[str]) -> LabelGroup:
    """A group from its table. place: how messages name it. given: templates that replace the table's."""
    header = f"[groups.{name}.labels]" if name else "[labels]"
    kind = "tags" if "tags" in table else "labels"
    labels = table.get(kind)
    if "labels" in table and "tags" in table:
        raise InputError(f"{place} has labels and tags: put each into a [groups.NAME] of its own")
    if not isinstance(labels, (dict, list)) or not labels or (kind == "tags" and isinstance(labels, list)):
        raise InputError(
            f'{place} has no {kind}: write a table {header} with lines such as bee = ["a bee"]'
            if kind == "labels"
            else f'{place}: tags wants a table with lines such as bee = ["a photo of a bee", "a photo without a bee"]'
        )
    for key in table:
        if key not in _KEYS:
            raise InputError(
                f"{place}: {key!r} is not known here: use templates, threshold and {header}, or tags, thresholds and "
                f"multiple.{nearest(key, _KEYS)}"
            )
    opposites: dict[str, list[str]] | None = None
    if isinstance(labels, list):
        if not all(isinstance(label, str) and label.strip() for label in labels):
            raise InputError(f"{place}: labels wants a list of texts, not {labels!r}")
        phrases = {label: [label] for label in distinct([label.strip() for label in labels], place)}
    elif kind == "tags":
        sides = {tag: _sides(tag, value, place) for tag, value in labels.items()}
        phrases, opposites = ({tag: pair[side] for tag, pair in sides.items()} for side in (0, 1))
    else:
        phrases = {label: _phrases(f"label {label!r}", value, place) for label, value in labels.items()}
    templates = table.get("templates", [DEFAULT_TEMPLATE] if isinstance(labels, list) else ["{}"])
    if not isinstance(templates, list) or not templates or not all(isinstance(text, str) for text in templates):
        raise InputError(f"{place}: templates wants a list of texts, not {templates!r}")
    multiple = table.get("multiple", kind == "tags")
    if not isinstance(multiple, bool) or (kind == "tags" and not multiple):
        raise InputError(f"{place}: multiple wants true or false, and of tags an image always may have several")
    thresholds = table.get("thresholds", {})
    if not isinstance(thresholds, dict):
        raise InputError(f"{place}: thresholds wants a table such as {{bee = 0.5}}, not {thresholds!r}")
    threshold = table.get("threshold")
    group = LabelGroup(
        name=name,
        phrases=phrases,
        templates=given or check_templates(templates),
        threshold=None if threshold is None else _threshold(threshold, place),
        thresholds={label: _threshold(value, f"{place}: {label!r}") for label, value in thresholds.items()},
        multiple=multiple,
        opposites=opposites,
    )
    return check_group(group, place)


def _phrases(what: str, value: Any, place: str) -> list[str]:
    phrases = [value] if isinstance(value, str) else value
    if not isinstance(phrases, list) or not phrases or not all(isinstance(p, str) and p.strip() for p in phrases):
        raise InputError(f"{place}: {what} wants a text or a list of texts, not {value!r}")
    return phrases


def _sides(tag: str, value: Any, place: str) -> tuple[list[str], list[str]]:
    """The phrases of a tag's two sides, yes and no."""
    if not isinstance(value, list) or len(value) != 2:
        raise InputError(
            f"{place}: tag {tag!r} wants two prompts, one for yes and one for no, as in "
            f'["a photo of a person", "a photo without people"], not {value!r}'
        )
    yes, no = (_phrases(f"tag {tag!r}", side, place) for side in value)
    return yes, no


def _threshold(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
        raise InputError(f"{place}: threshold wants a score from -1 to 1, not {value!r}")
    return float(value)
