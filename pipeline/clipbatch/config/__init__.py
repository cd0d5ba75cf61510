"""All settings of a run: one frozen dataclass per stage. Each checks its values when it is created.

A field name is also the option's name on the command line and the key in a `--config` file (with dashes or
underscores). No two settings have the same name. A value that cannot be used raises `SettingError`, an `InputError` and
`ValueError`, whose message names the value and what to use instead.
"""

from clipbatch.config.image_settings import MOVED, PIXELS, DecodeSettings, ReadSettings, SourceSettings
from clipbatch.config.launch_settings import LaunchSettings
from clipbatch.config.model_settings import (
    Compression,
    LabelSettings,
    Layout,
    ModelSettings,
    OutputSettings,
    ScoresDtype,
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
