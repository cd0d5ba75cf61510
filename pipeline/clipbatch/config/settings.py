"""All settings of a run: as one object with a section per stage, as a flat mapping by name, and from a TOML file."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipbatch.config.image_settings import DecodeSettings, ReadSettings, SourceSettings
from clipbatch.config.launch_settings import LaunchSettings
from clipbatch.config.model_settings import LabelSettings, ModelSettings, OutputSettings
from clipbatch.config.nesting import JsonObject, NestingError, check_depth, check_toml
from clipbatch.config.validation import Checked, Scope, SettingError, hints_of
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

    def __post_init__(self) -> None:
        Checked.__post_init__(self)
        batch, shard = self.model.batch_size, self.output.shard_size
        if batch and shard and shard % batch:
            multiple = math.ceil(shard / batch) * batch
            raise SettingError(f"shard_size {shard} is not a multiple of batch_size {batch}: use {multiple}")

    def flat(self) -> SettingValues:
        """All settings by name, without the sections."""
        values: SettingValues = {}
        for f in dataclasses.fields(self):
            section = getattr(self, f.name)
            values |= {g.name: getattr(section, g.name) for g in dataclasses.fields(section)}
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
    for kind in hints_of(Settings).values():
        settings |= {f.name: (f, hints_of(kind)[f.name]) for f in dataclasses.fields(kind) if "scope" in f.metadata}
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
    sections = hints_of(Settings)
    known = [*(f.name for kind in sections.values() for f in dataclasses.fields(kind)), "reference"]
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
    return Settings(
        **{
            section: kind(**{f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values})
            for section, kind in sections.items()
        }
    )


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
        if name in ("template", "inputs", "head") and isinstance(value, str):
            values[name] = [value]
        if name == "max_bad" and isinstance(value, int):
            values[name] = str(value)
    try:
        from_flat(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    return values
