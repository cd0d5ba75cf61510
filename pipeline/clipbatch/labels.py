"""Labels and templates -> the prompts that the text encoder will see. Knows nothing of models.

A text file has one label a line (blank lines and lines that start with # skipped). A TOML file has several prompts
for a label, and templates if it wants:

    templates = ["a photo of {}."]
    [labels]
    bee = ["a bee", "a honeybee on a flower"]

A label's prompts are all its phrases in all templates; `encode` averages their features.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
from dataclasses import dataclass
from pathlib import Path

from clipbatch.config import LabelSettings, parse_toml
from clipbatch.errors import InputError, nearest

DEFAULT_TEMPLATE = "a photo of a {}."
SETS = Path(__file__).parent / "label_sets"
TEMPLATE_SETS = {"simple": "SIMPLE_IMAGENET_TEMPLATES", "openai": "OPENAI_IMAGENET_TEMPLATES"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSet:
    """Labels in the order of the score columns, with their prompts."""

    phrases: dict[str, list[str]]
    """For each label, what is put into the templates."""
    templates: list[str]
    """Each with `{}` for the phrase."""

    @property
    def names(self) -> list[str]:
        return list(self.phrases)

    @property
    def prompts(self) -> list[list[str]]:
        """For each label, the texts whose unit-length features are averaged."""
        return [
            [t.replace("{}", phrase) for phrase in phrases for t in self.templates] for phrases in self.phrases.values()
        ]


def shipped() -> list[str]:
    """Names of the label sets that come with clipbatch, to be used in place of a file."""
    return sorted(path.stem for path in SETS.iterdir() if path.suffix in (".txt", ".toml"))


def load(settings: LabelSettings) -> LabelSet:
    """Labels and prompts for `settings`.

    Raises: InputError naming the file, the line and the remedy for an empty or unreadable file, a label that stands
    twice, or a template without `{}`.
    """
    spec = settings.labels
    if not spec:
        raise InputError("no labels: give --labels FILE, --labels cat,dog,bird, or --labels " + "|".join(shipped()))
    path = _file_of(spec)
    if path is None:
        phrases = {name: [name] for name in _distinct([name.strip() for name in spec.split(",")], "--labels")}
        templates: list[str] | None = None
    elif path.suffix == ".toml":
        phrases, templates = _read_toml(path)
    else:
        phrases, templates = _read_text(path), None
    for name in phrases:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise InputError(f"label {name!r} is not valid text: write labels in UTF-8")
    if len(phrases) < 2:
        raise InputError(f"{spec} has {len(phrases)} label(s): give two or more, since a score compares labels")
    chosen = _templates(settings.template) or templates or [DEFAULT_TEMPLATE]
    return LabelSet(phrases=phrases, templates=chosen)


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
        raise InputError(f"cannot read the labels {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{path} is not a text file in UTF-8: --labels wants one label a line, or TOML")
    return text


def _read_text(path: Path) -> dict[str, list[str]]:
    lines = [line.strip() for line in _read(path).splitlines()]
    return {name: [name] for name in _distinct(["" if n.startswith("#") else n for n in lines], str(path))}


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


def _read_toml(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    try:
        found = parse_toml(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    labels = found.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise InputError(f'{path} has no labels: write a table [labels] with lines such as bee = ["a bee"]')
    for name in found:
        if name not in ("labels", "templates"):
            raise InputError(f"{path}: {name!r} is not known here: use templates and [labels]")
    phrases = {name: [value] if isinstance(value, str) else value for name, value in labels.items()}
    for name, value in phrases.items():
        if not isinstance(value, list) or not value or not all(isinstance(p, str) and p.strip() for p in value):
            raise InputError(f"{path}: label {name!r} wants a text or a list of texts, not {value!r}")
    templates = found.get("templates", ["{}"])
    if not isinstance(templates, list) or not all(isinstance(template, str) for template in templates):
        raise InputError(f"{path}: templates wants a list of texts, not {templates!r}")
    return phrases, _checked(templates)


def _templates(given: tuple[str, ...]) -> list[str]:
    if len(given) == 1 and given[0] in TEMPLATE_SETS:
        return _openclip_templates(TEMPLATE_SETS[given[0]])
    return _checked(list(given))


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
