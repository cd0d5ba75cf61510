"""Labels and templates -> the prompts that the text encoder will see. Knows nothing of models.

A text file has one label a line (blank lines and lines that start with # skipped). A TOML file has labels as a list,
or as a table with prompts for each; and, if it wants, templates and a score below which the best label does not count:

    templates = ["a photo of {}."]
    threshold = 0.5
    [labels]
    bee = ["a bee", "a honeybee on a flower"]

or several groups of these three, each compared for itself, under [groups.NAME]. A label's prompts are all its phrases
in all templates; `encode` averages their features.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipbatch.config import LabelSettings, parse_toml
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import InputError, nearest, reading_failed

DEFAULT_TEMPLATE = "a photo of a {}."
SETS = Path(__file__).parents[1] / "data" / "label_sets"
TEMPLATE_SETS = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "openai": "OPENAI_IMAGENET_TEMPLATES"}


_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_KEYS = ("labels", "templates", "threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelGroup:
    """Labels that are compared with one another, in the order of the score columns, with their prompts."""

    name: str
    """Begins the names of its columns; empty where a label set has no groups."""
    phrases: dict[str, list[str]]
    """For each label, what is put into the templates."""
    templates: list[str]
    """Each with `{}` for the phrase."""
    threshold: float | None = None
    """An image whose best score is below it gets no label."""

    @property
    def names(self) -> list[str]:
        return list(self.phrases)

    @property
    def prompts(self) -> list[list[str]]:
        """For each label, the texts whose unit-length features are averaged."""
        return [
            [t.replace("{}", phrase) for phrase in phrases for t in self.templates] for phrases in self.phrases.values()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """All labels of a run: one group without a name, or several with one."""

    groups: tuple[LabelGroup, ...]

    @property
    def names(self) -> list[str]:
        """Of all groups in turn; a name may stand in several."""
        return [name for group in self.groups for name in group.names]

    @property
    def prompts(self) -> list[list[str]]:
        """Of all groups in turn."""
        return [texts for group in self.groups for texts in group.prompts]

    @property
    def sizes(self) -> list[int]:
        """Labels in each group."""
        return [len(group.phrases) for group in self.groups]

    def by_group(self, values: Sequence[Any]) -> Any:
        """One value for each group -> a dict by group name, or the value itself where there are no groups."""
        named = {group.name: value for group, value in zip(self.groups, values, strict=True)}
        return named.get("", named)

    def identity(self) -> JsonObject:
        """What makes it the same label set again, as JSON: lists, since the order is the columns'."""
        labels = [{"group": g.name, "names": g.names, "phrases": list(g.phrases.values())} for g in self.groups]
        return {
            "labels": labels,
            "templates": [g.templates for g in self.groups],
            "threshold": [g.threshold for g in self.groups],
        }

    @staticmethod
    def from_identity(found: Mapping[str, Any]) -> LabelSet:
        """The label set whose `identity` is in `found`."""
        return LabelSet(
            groups=tuple(
                LabelGroup(
                    name=labels["group"],
                    phrases=dict(zip(labels["names"], labels["phrases"], strict=True)),
                    templates=templates,
                    threshold=threshold,
                )
                for labels, templates, threshold in zip(
                    found["labels"], found["templates"], found["threshold"], strict=True
                )
            )
        )


def shipped() -> list[str]:
    """Names of the label sets that come with clipbatch, to be used in place of a file."""
    return sorted(path.stem for path in SETS.iterdir() if path.suffix in (".txt", ".toml"))


def load(settings: LabelSettings) -> LabelSet:
    """Labels and prompts for `settings`.

    Raises: InputError naming the file, the line or the group, and the remedy for an empty or unreadable file, a label
    that stands twice, or a template without `{}`.
    """
    spec = settings.labels
    if not spec:
        raise InputError("no labels: give --labels FILE, --labels cat,dog,bird, or --labels " + "|".join(shipped()))
    path = _file_of(spec)
    given = _templates(settings.template)
    if path is not None and path.suffix == ".toml":
        return LabelSet(groups=tuple(_read_toml(path, given)))
    names = _read_text(path) if path else _distinct([name.strip() for name in spec.split(",")], "--labels")
    group = LabelGroup(name="", phrases={name: [name] for name in names}, templates=given or [DEFAULT_TEMPLATE])
    return LabelSet(groups=(_sound(group, spec),))


def of_names(names: Sequence[str], template: tuple[str, ...]) -> LabelSet:
    """Labels that are given as a list. Raises: InputError as `load` does."""
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"labels: {name!r} is no text: give a list of names")
    distinct = _distinct([name.strip() for name in names], "labels")
    phrases = {name: [name] for name in distinct}
    group = LabelGroup(name="", phrases=phrases, templates=_templates(template) or [DEFAULT_TEMPLATE])
    return LabelSet(groups=(_sound(group, "labels"),))


def _sound(group: LabelGroup, place: str) -> LabelGroup:
    for name in group.names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"label {name!r} is not valid text: write labels in UTF-8")
    if len(group.names) < 2:
        raise InputError(f"{place} has {len(group.names)} label(s): give two or more, since a score compares labels")
    return group


def _file_of(spec: str) -> Path | None:
    """The file that `spec` names, a shipped set's file, or None for a comma-separated list."""
    if os.path.isfile(spec):
        return Path(spec)
    if spec in shipped():
        return next(found for found in SETS.iterdir() if found.stem == spec)
    if os.path.isdir(spec):
        raise InputError(f"--labels {spec} is a folder: give a text or TOML file with the labels")
    if "," in spec:
        return None
    raise InputError(
        f"--labels {spec!r}: there is no such file, no shipped set of that name ({', '.join(shipped())}), and it is "
        f"not a comma-separated list.{nearest(spec, shipped())}"
    )


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


def _read_text(path: Path) -> list[str]:
    lines = [line.strip() for line in _read(path).splitlines()]
    return _distinct(["" if n.startswith("#") else n for n in lines], str(path))


def _distinct(names: list[str], place: str) -> list[str]:
    """`names` without the empty ones; a name that stands twice is refused with both places (1-based)."""
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            continue
        if name in first:
            raise InputError(f"{place}: label {name!r} stands twice, at {first[name]} and {number}: remove one")
        first[name] = number
    if not first:
        raise InputError(f"{place} has no labels: write one a line")
    return list(first)


def _read_toml(path: Path, given: list[str]) -> list[LabelGroup]:
    """The groups of a TOML file. given: templates that replace the file's."""
    try:
        found = parse_toml(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    if "groups" not in found:
        return [_group("", found, str(path), given)]
    groups = found["groups"]
    beside = [name for name in found if name != "groups"]
    if beside:
        raise InputError(f"{path}: {beside[0]!r} stands beside [groups]: put it into each [groups.NAME]")
    if not isinstance(groups, dict) or not groups or not all(isinstance(table, dict) for table in groups.values()):
        raise InputError(f"{path}: groups wants tables [groups.NAME], each with labels")
    for name in groups:
        if not _GROUP.fullmatch(name):
            raise InputError(
                f"{path}: group {name!r} cannot begin a column's name: use a to z first, then also 0 to 9 and _"
            )
    return [_group(name, table, f"{path}: group {name!r}", given) for name, table in groups.items()]


def _group(name: str, found: JsonObject, place: str, given: list[str]) -> LabelGroup:
    """A group from its table. place: how messages name it."""
    table = f"[groups.{name}.labels]" if name else "[labels]"
    labels = found.get("labels")
    if not isinstance(labels, (dict, list)) or not labels:
        raise InputError(f'{place} has no labels: write a table {table} with lines such as bee = ["a bee"]')
    for key in found:
        if key not in _KEYS:
            raise InputError(f"{place}: {key!r} is not known here: use templates, threshold and {table}")
    if isinstance(labels, list):
        if not all(isinstance(label, str) and label.strip() for label in labels):
            raise InputError(f"{place}: labels wants a list of texts, not {labels!r}")
        phrases = {label: [label] for label in _distinct([label.strip() for label in labels], place)}
    else:
        phrases = {label: [value] if isinstance(value, str) else value for label, value in labels.items()}
    for label, value in phrases.items():
        if not isinstance(value, list) or not value or not all(isinstance(p, str) and p.strip() for p in value):
            raise InputError(f"{place}: label {label!r} wants a text or a list of texts, not {value!r}")
    templates = found.get("templates", [DEFAULT_TEMPLATE] if isinstance(labels, list) else ["{}"])
    if not isinstance(templates, list) or not templates or not all(isinstance(text, str) for text in templates):
        raise InputError(f"{place}: templates wants a list of texts, not {templates!r}")
    threshold = found.get("threshold")
    if threshold is not None:
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not -1 <= threshold <= 1:
            raise InputError(f"{place}: threshold wants a score from -1 to 1, not {threshold!r}")
        threshold = float(threshold)
    group = LabelGroup(name=name, phrases=phrases, templates=given or _checked(templates), threshold=threshold)
    return _sound(group, place)


def _templates(given: tuple[str, ...]) -> list[str]:
    """The templates given, sets of them by their names."""
    found: list[str] = []
    for template in given:
        found += _openclip_templates(TEMPLATE_SETS[template]) if template in TEMPLATE_SETS else _checked([template])
    return found


def _checked(templates: list[str]) -> list[str]:
    for template in templates:
        if "{}" not in template:
            near = nearest(template, list(TEMPLATE_SETS))
            raise InputError(f"template {template!r} has no {{}} for the label: write it as 'a photo of a {{}}.'{near}")
    return templates


def _openclip_templates(name: str) -> list[str]:
    """A template list of open_clip's. Its module is loaded alone, since open_clip itself imports torch."""
    package = importlib.util.find_spec("open_clip")
    assert package
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    return [template("{}") for template in runpy.run_path(str(path))[name]]
