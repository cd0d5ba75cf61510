"""Settings from a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from clipbatch.checks import SettingError
from clipbatch.config.settings import from_flat
from clipbatch.errors import InputError, reading_failed

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def parse_toml(text: str) -> dict[str, Any]:
    """Raises: ValueError with the line where `text` is not TOML."""
    found: dict[str, Any] = tomllib.loads(text)
    return found


def read_toml(path: Path) -> dict[str, Any]:
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
