"""All settings of a run: frozen dataclasses, one a stage, checked when they are made.

Field names are the command line's flags and the keys of a `--config` file (dashes or underscores); no name occurs
twice. Every refusal is a ValueError of the kind `InputError` that names the value and the remedy.
"""

from clipbatch.config.sections import (
    MOVED,
    PIXELS,
    Compression,
    DecodeSettings,
    LabelSettings,
    LaunchSettings,
    Layout,
    ModelSettings,
    OutputSettings,
    ReadSettings,
    ScoresDtype,
    SourceSettings,
)
from clipbatch.config.settings import Settings, SettingValues, declared, from_flat, names_of, parse_toml, read_toml

__all__ = [
    "MOVED",
    "PIXELS",
    "Compression",
    "DecodeSettings",
    "LabelSettings",
    "LaunchSettings",
    "Layout",
    "ModelSettings",
    "OutputSettings",
    "ReadSettings",
    "ScoresDtype",
    "SettingValues",
    "Settings",
    "SourceSettings",
    "declared",
    "from_flat",
    "names_of",
    "parse_toml",
    "read_toml",
]
