"""The labels that a user gives -> a `LabelSet`: a file, a shipped set's name, or a list.

Knows nothing of models. `label_files` describes the files.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from clipbatch.config import LabelSettings, Settings
from clipbatch.config.label_files import DEFAULT_TEMPLATE, check_group, check_templates, distinct, read_file
from clipbatch.config.label_set import SCORING, LabelGroup, LabelSet
from clipbatch.errors import InputError, nearest

SETS = Path(__file__).parents[1] / "data" / "label_sets"
TEMPLATE_SETS = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "openai": "OPENAI_IMAGENET_TEMPLATES"}
# Labels that a remark names.
_MAX_NAMED = 5


def shipped() -> list[str]:
    """Names of the label sets that come with clipbatch, which can be given in place of a file."""
    return sorted(path.stem for path in SETS.iterdir() if path.suffix in (".txt", ".toml"))


def load(settings: LabelSettings) -> LabelSet:
    """Labels and prompts for `settings`, under today's rules for scores.

    Raises: InputError naming the file, the line or the group, and the remedy: for an empty or unreadable file, a label
    that appears twice, a threshold for a label that does not exist, or a template without `{}`.
    """
    spec = settings.labels
    if not spec:
        raise InputError(
            f"no labels: give --labels FILE, --labels cat,dog,bird, or --labels {'|'.join(shipped())}; a run with "
            "--caption-column, --head or --embeddings needs none"
        )
    path, templates = _file_of(spec), _templates(settings.template)
    if path is not None:
        return LabelSet(groups=tuple(read_file(path, templates)), scoring=SCORING)
    return _of_one_group(distinct([name.strip() for name in spec.split(",")], "--labels"), templates, spec)


def for_run(settings: Settings) -> LabelSet:
    """The labels of a run; none if `settings` name none and ask for captions, heads or embeddings.

    Raises: as `load`.
    """
    if settings.labels.labels or not wants_no_labels(settings):
        return load(settings.labels)
    if settings.labels.template:
        raise InputError("--template is for labels: give --labels with it, or leave it out")
    return LabelSet(groups=(), scoring=SCORING)


def wants_no_labels(settings: Settings) -> bool:
    """Whether `settings` ask for something that a run without labels can give."""
    return settings.source.caption_column is not None or settings.output.embeddings or bool(settings.labels.head)


def of_names(names: Sequence[str], template: tuple[str, ...]) -> LabelSet:
    """Labels that are given as a list. Raises: InputError as `load` does."""
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"labels: {name!r} is no text: give a list of names")
    return _of_one_group(distinct([name.strip() for name in names], "labels"), _templates(template), "labels")


def remarks(labels: LabelSet) -> list[str]:
    """What a user should know about labels that are accepted, in sentences."""
    said = []
    for group in labels.groups:
        alike: dict[str, list[str]] = defaultdict(list)
        for name in group.names:
            alike["".join(name.casefold().split())].append(name)
        pairs = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
        if pairs:
            where = f"group {group.name!r}: " if group.name else ""
            more = f" and {len(pairs) - _MAX_NAMED} more" if len(pairs) > _MAX_NAMED else ""
            said.append(
                f"{where}labels {', '.join(pairs[:_MAX_NAMED])}{more} differ only in case or spaces: they share the "
                "images of what is probably one label"
            )
    return said


def _of_one_group(names: list[str], templates: list[str], place: str) -> LabelSet:
    group = LabelGroup(name="", phrases={name: [name] for name in names}, templates=templates or [DEFAULT_TEMPLATE])
    return LabelSet(groups=(check_group(group, place),), scoring=SCORING)


def _file_of(spec: str) -> Path | None:
    """The file that `spec` names, a shipped set's file, or None for a comma-separated list."""
    if os.path.isfile(spec):
        return Path(spec)
    if spec in shipped():
        return next(path for path in SETS.iterdir() if path.stem == spec)
    if os.path.isdir(spec):
        raise InputError(f"--labels {spec} is a folder: give a text or TOML file with the labels")
    if "," in spec:
        return None
    raise InputError(
        f"--labels {spec!r}: there is no such file, no shipped set of that name ({', '.join(shipped())}), and it is "
        f"not a comma-separated list.{nearest(spec, shipped())}"
    )


def _templates(given: tuple[str, ...]) -> list[str]:
    """The templates given, with the names of template sets replaced by their templates."""
    templates: list[str] = []
    for template in given:
        if template in TEMPLATE_SETS:
            templates += _openclip_templates(TEMPLATE_SETS[template])
        elif "{}" in template:
            templates.append(template)
        else:
            check_templates([template], nearest(template, list(TEMPLATE_SETS)))
    return templates


def _openclip_templates(name: str) -> list[str]:
    """A template list of open_clip's. Its module is loaded alone, since open_clip itself imports torch."""
    package = importlib.util.find_spec("open_clip")
    assert package
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    return [template("{}") for template in runpy.run_path(str(path))[name]]


__all__ = ["SETS", "LabelGroup", "LabelSet", "for_run", "load", "of_names", "remarks", "shipped", "wants_no_labels"]
