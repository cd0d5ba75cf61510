"""Refuse JSON and TOML that is nested too deeply, before a parser sees it.

Parsers call themselves once per level and run out of stack. Arrow's JSON reader then kills the process without a
message. So this module counts the levels first, with numpy.
"""

from __future__ import annotations

import json
import re
from typing import Any

# An object from a JSON or TOML file whose values have not been checked yet.
JsonObject = dict[str, Any]
# Levels of objects and lists.
MAX_DEPTH = 100
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"\n')
# By how much each byte changes the depth, as int8.
_STEP = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
# A string or a comment. One that is not closed extends to the end of the line or, with triple quotes, of the file.
_TOML_TEXT = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:""")?'
    r"|'''(?:[^']|'(?!''))*(?:''')?"
    r'|"(?:[^"\\\n]|\\.)*"?'
    r"|'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)
_TOML_NO_KEY = re.compile(r"[^\w\-. \t]")


class NestingError(ValueError):
    """A value is nested deeper than `MAX_DEPTH`, or than the caller allows."""

    def __init__(self, line: int | None = None, most: int = MAX_DEPTH) -> None:
        """line: number of the line, from 1. most: how many levels are allowed."""
        where = f"line {line}" if line else "it"
        super().__init__(f"{where} is nested more than {most} levels deep; flatten it")
        self.line = line


def check_json(data: bytes, most: int = MAX_DEPTH) -> None:
    """data: one JSON value, or one per line, in UTF-8. most: levels allowed. Raises: NestingError with the line."""
    if b"\\" in data:  # remove escaped quotes, so that each remaining quote starts or ends a string
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    _check(data.translate(None, _NOT_STRUCTURE), most)


def parse_json(data: bytes | str, most: int = MAX_DEPTH) -> Any:
    """Parse one JSON value. most: levels allowed. Raises: ValueError if `data` is not JSON or is nested too deeply."""
    text = data.decode(json.detect_encoding(data)) if isinstance(data, bytes) else data
    check_json(text.encode(errors="surrogatepass"), most)
    return json.loads(text)


def check_toml(text: str) -> None:
    """Check the text of a TOML file before it is parsed. Raises: NestingError with the line.

    Tables on different lines may still nest too deeply together. `check_depth` checks the parsed value for that.
    """
    bare = _TOML_TEXT.sub(lambda match: "\n" * match[0].count("\n"), text)
    _check(bare.encode(errors="replace"))
    for number, line in enumerate(bare.split("\n"), 1):
        if line.count(".") > MAX_DEPTH and any(key.count(".") > MAX_DEPTH for key in _TOML_NO_KEY.split(line)):
            raise NestingError(number)


def check_depth(value: Any) -> None:
    """value: nested dicts and lists. Raises: NestingError."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):  # one more, for `value` itself
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if any(isinstance(value, (dict, list)) for value in level):
        raise NestingError


def _check(data: bytes, most: int = MAX_DEPTH) -> None:
    """data: brackets, quotes around strings, newlines. Other bytes do not matter."""
    import numpy as np

    codes = np.frombuffer(data, np.uint8)
    steps = np.frombuffer(data.translate(_STEP), np.int8).astype(np.int32)
    steps[np.cumsum(codes == ord('"'), dtype=np.int32) % 2 == 1] = 0
    deep = np.flatnonzero(np.cumsum(steps) > most)
    if len(deep):
        raise NestingError(1 + int(np.count_nonzero(codes[: deep[0]] == ord("\n"))), most)
