"""All settings of a run: as one object with a section per stage, as a flat mapping by name, and from a TOML file."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
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

# Settings by name, as in a `--config` file, in `run.json` and on the command line. Lists stand for tuples, and the
# values are unchecked until they go through `from_flat`.
SettingValues = dict[str, Any]
# The settings that `reference = true` stands for: open_clip's own transform and fp32, however slow.
REFERENCE = {"decoder": "open_clip", "precision": "fp32", "orientation": "stored"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Checked):
    """All settings of a run. Where a setting is None, the planner chooses the value when it freezes the plan."""

    source: SourceSettings = field(default_factory=SourceSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    read: ReadSettings = field(default_factory=ReadSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    launch: LaunchSettings = field(default_factory=LaunchSettings)
    # Part of the identity, since the batch size may change the last digit of scores.
    batch_size: int | None = setting(None, "Model", "identity", "Images in a batch.")
    # A multiple of batch_size.
    shard_size: int | None = setting(
        None, "Output", "identity", "Rows in a part file; default: about a minute of work."
    )
    # A number of images (`500`) or a share of all rows (`1%`).
    max_bad: str | None = setting(None, "Images", "invocation", "Stop when more are bad: a count, or a share as in 1%.")

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        at_least("batch_size", self.batch_size, 1)
        at_least("shard_size", self.shard_size, 1)
        self.bad_allowed(0)
        if self.batch_size and self.shard_size and self.shard_size % self.batch_size:
            multiple = math.ceil(self.shard_size / self.batch_size) * self.batch_size
            raise SettingError(
                f"shard_size {self.shard_size} is not a multiple of batch_size {self.batch_size}: use {multiple}"
            )

    def bad_allowed(self, rows: int) -> int | None:
        """How many of `rows` images `max_bad` allows to be bad; None: any number."""
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
        """All settings by name, without the sections."""
        values: SettingValues = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if dataclasses.is_dataclass(value):
                values |= {g.name: getattr(value, g.name) for g in dataclasses.fields(value)}
            else:
                values[f.name] = value
        return values

    def within(self, *scopes: Scope) -> SettingValues:
        """The settings with one of these scopes, by name."""
        names = names_of(*scopes)
        return {name: value for name, value in self.flat().items() if name in names}

    def runtime(self) -> SettingValues:
        """The settings that workers get anew at each invocation, by name."""
        return self.within("worker")

    def replace(self, **changes: Any) -> Settings:
        """A copy with the named settings changed, in whichever section they are."""
        return from_flat(self.flat() | changes)


def declared() -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Field and type of each setting with a scope, by name, in the order of declaration."""
    settings: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    for section in dataclasses.fields(Settings):
        kind = hints_of(Settings)[section.name]
        owner = kind if dataclasses.is_dataclass(kind) else Settings
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else (section,)
        settings |= {f.name: (f, hints_of(owner)[f.name]) for f in fields if "scope" in f.metadata}  # type: ignore[arg-type]
    return settings


@functools.cache
def names_of(*scopes: Scope) -> tuple[str, ...]:
    """Names of the settings with one of these scopes."""
    return tuple(name for name, (f, _) in declared().items() if f.metadata["scope"] in scopes)


def from_flat(values: Mapping[str, Any]) -> Settings:
    """Settings from their names and values. Lists become tuples; `columns` may be one string with commas.

    `reference` stands for the settings in `REFERENCE`. Of these, only the orientation may have another value.
    Raises: SettingError for an unknown name, with the most similar ones, and for a value that cannot be used.
    """
    hints = hints_of(Settings)
    sections: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    own_names = [name for name in hints if name not in sections]
    known = [*(f.name for kind in sections.values() for f in dataclasses.fields(kind)), *own_names, "reference"]
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
    created: dict[str, Any] = {
        section: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
        for section, kind in sections.items()
    }
    own: SettingValues = {name: values[name] for name in own_names if name in values}
    return Settings(**created, **own)


def parse_toml(text: str) -> JsonObject:
    """Parse a TOML file. Raises: ValueError with the line if `text` is not TOML or is nested too deeply."""
    check_toml(text)
    try:
        values: JsonObject = tomllib.loads(text)
    except RecursionError:
        raise NestingError from None
    check_depth(values)
    return values


def read_toml(path: Path) -> SettingValues:
    """Settings from a `--config` file, by name.

    Raises: InputError if the file cannot be read, is not TOML, holds a table, or holds a setting that cannot be used.
    """
    try:
        toml = parse_toml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise reading_failed(f"the settings file {path}", error) from error
    except ValueError as error:
        raise InputError(f"{path} is not a TOML file of settings: {error}") from error
    values = {name.replace("-", "_"): value for name, value in toml.items()}
    for name, value in values.items():
        if isinstance(value, dict):
            raise InputError(f"{path}: [{name}] is a table; write settings at the top level, one per line")
        if name in ("template", "inputs") and isinstance(value, str):
            values[name] = [value]
        if name == "max_bad" and isinstance(value, int):
            values[name] = str(value)
    try:
        from_flat(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return values
