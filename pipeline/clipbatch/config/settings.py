"""All settings of a run, stage by stage, and the same by name.

Settings from a file.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from clipbatch.config.nesting import JsonObject, NestingError, check_depth, check_toml
from clipbatch.config.sections import (
    DecodeSettings,
    LabelSettings,
    LaunchSettings,
    ModelSettings,
    OutputSettings,
    ReadSettings,
    Scope,
    SourceSettings,
    setting,
)
from clipbatch.config.validation import Checked, SettingError, at_least, hints_of
from clipbatch.errors import InputError, nearest, reading_failed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


SettingValues = dict[str, Any]
"""Settings by name, as a `--config` file, `run.json` and the command line have them: lists in place of tuples, and
checked only by `from_flat`."""
REFERENCE = {"decoder": "open_clip", "precision": "fp32", "orientation": "stored"}
"""What `reference = true` stands for: open_clip's own transform and fp32, whatever that takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Checked):
    """All settings of a run. None stands for 'chosen by the planner' until `plan` has frozen them."""

    source: SourceSettings = field(default_factory=SourceSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    batch_size: int | None = setting(None, "Model", "identity", "Images in a batch.")
    """Images in a batch; part of the run's identity, since it may move scores in the last digit."""
    shard_size: int | None = setting(
        None, "Output", "identity", "Rows in a part file; default: about a minute of work."
    )
    """Rows in a part file, a multiple of batch_size; default: about a minute of work."""
    max_bad: str | None = setting(None, "Images", "invocation", "Stop when more are bad: a count, or a share as in 1%.")
    """Stop as broken when more images than this are bad: a count (`500`) or a share of all rows (`1%`)."""

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("batch_size", self.batch_size, 1)
        at_least("shard_size", self.shard_size, 1)
        self.bad_allowed(0)
        if self.batch_size and self.shard_size and self.shard_size % self.batch_size:
            near = math.ceil(self.shard_size / self.batch_size) * self.batch_size
            raise SettingError(
                f"shard_size {self.shard_size} is not a multiple of batch_size {self.batch_size}: use {near}"
            )

    def bad_allowed(self, rows: int) -> int | None:
        """How many of `rows` images may be bad; None: any number."""
        if self.max_bad is None:
            return None
        number, percent = self.max_bad.removesuffix("%"), self.max_bad.endswith("%")
        try:
            value = Fraction(number) if percent else Fraction(int(number))
        except (ValueError, ZeroDivisionError):
            value = Fraction(-1)
        if value < 0 or (percent and value > 100):
            raise SettingError(f"max_bad {self.max_bad!r} is neither a count nor a percentage: use 500 or 1%")
        return math.floor(rows * value / 100) if percent else int(value)

    def flat(self) -> SettingValues:
        """All fields by name, stages flattened."""
        values: SettingValues = {}
        for f in dataclasses.fields(self):
            stage = getattr(self, f.name)
            own = dataclasses.is_dataclass(stage)
            values |= {g.name: getattr(stage, g.name) for g in dataclasses.fields(stage)} if own else {f.name: stage}
        return values

    def within(self, *scopes: Scope) -> SettingValues:
        """The settings of these scopes, by name."""
        names = names_of(*scopes)
        return {name: value for name, value in self.flat().items() if name in names}

    def runtime(self) -> SettingValues:
        """What each worker of this invocation gets, by name."""
        return self.within("worker")

    def replace(self, **changes: Any) -> Settings:
        """A copy with the named fields changed, whichever stage they belong to."""
        return from_flat(self.flat() | changes)


def declared() -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Each setting with a scope, and its type, by name, in the order in which they are declared."""
    found: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    for section in dataclasses.fields(Settings):
        kind = hints_of(Settings)[section.name]
        owner = kind if dataclasses.is_dataclass(kind) else Settings
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else (section,)
        found |= {f.name: (f, hints_of(owner)[f.name]) for f in fields if "scope" in f.metadata}  # type: ignore[arg-type]
    return found


@functools.cache
def names_of(*scopes: Scope) -> tuple[str, ...]:
    """The settings of these scopes."""
    return tuple(name for name, (f, _) in declared().items() if f.metadata["scope"] in scopes)


def from_flat(values: Mapping[str, Any]) -> Settings:
    """Settings from field names and values; lists become tuples, and `columns` in one string are parted at its commas.
    Unknown names are refused with the nearest known.

    `reference` stands for `REFERENCE`; only its orientation may be given otherwise.
    """
    hints = hints_of(Settings)
    stages: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    own_names = [name for name in hints if name not in stages]
    known = [*(f.name for kind in stages.values() for f in dataclasses.fields(kind)), *own_names, "reference"]
    for name in values:
        if name not in known:
            raise SettingError(f"there is no setting {name!r}.{nearest(name, known)}")
    if values.get("reference", False) not in (True, False):
        raise SettingError(f"reference {values['reference']!r} is neither true nor false")
    if values.get("reference"):
        for name in ("decoder", "precision"):
            if values.get(name, "auto") not in ("auto", REFERENCE[name]):
                raise SettingError(f"reference means {name} {REFERENCE[name]}: leave out {name} {values[name]!r}")
        values = {**REFERENCE, **{name: value for name, value in values.items() if value != "auto"}}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if isinstance(columns := values.get("columns"), str):
        values["columns"] = tuple(name for name in columns.split(",") if name)
    made: dict[str, Any] = {
        stage: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        for stage, kind in stages.items()
    }
    own: SettingValues = {name: values[name] for name in own_names if name in values}
    return Settings(**made, **own)


def parse_toml(text: str) -> JsonObject:
    """Raises: ValueError with the line where `text` is not TOML, or is nested too deep."""
    check_toml(text)
    try:
        found: JsonObject = tomllib.loads(text)
    except RecursionError:
        raise NestingError from None
    check_depth(found)
    return found


def read_toml(path: Path) -> SettingValues:
    """Settings from a `--config` file, by field name.

    Raises: InputError where the file cannot be read, is not TOML, or holds a table.
    """
    try:
        found = parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise reading_failed(f"the settings file {path}", error) from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file of settings: {error}") from error
    values = {name.replace("-", "_"): value for name, value in found.items()}
    for name, value in values.items():
        if isinstance(value, dict):
            raise InputError(f"{path}: [{name}] is a table; settings stand at the top level, one a line")
        if name in ("template", "inputs") and isinstance(value, str):
            values[name] = [value]
        if name == "max_bad" and isinstance(value, int):
            values[name] = str(value)
    try:
        from_flat(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return values
