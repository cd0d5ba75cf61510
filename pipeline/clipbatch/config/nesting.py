"""JSON and TOML that is nested deeper than anybody means is refused before it is parsed: parsers call themselves for
each level, and run out of stack. Arrow's then ends the process, without a word.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 100
"""Objects and lists inside of one another."""
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"\n')
_STEP = bytes(1 if byte in b"[{" else 255 if byte in b"]}" else 0 for byte in range(256))
"""What a byte does to the depth, as int8."""
_TOML_TEXT = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:""")?'
    r"|'''(?:[^']|'(?!''))*(?:''')?"
    r'|"(?:[^"\\\n]|\\.)*"?'
    r"|'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)
"""A string or a comment; one that is not closed reaches as far as it may."""
_TOML_NO_KEY = re.compile(r"[^\w\-. \t]")


class NestingError(ValueError):
    """Something is nested deeper than `MAX_DEPTH`, or than the caller allows."""

    def __init__(self, line: int | None = None, most: int = MAX_DEPTH) -> None:
        """line: where, from 1. most: levels that are allowed."""
        where = f"line {line}" if line else "it"
        super().__init__(f"{where} is nested more than {most} levels deep; flatten it")
        self.line = line


def check_json(data: bytes, most: int = MAX_DEPTH) -> None:
    """data: one JSON value, or one a line, in UTF-8. most: levels. Raises: NestingError with the line."""
    if b"\\" in data:  # so that every quote that is left begins or ends a text
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    _check(data.translate(None, _NOT_STRUCTURE), most)


def parse_json(data: bytes | str, most: int = MAX_DEPTH) -> Any:
    """The value of one JSON text. most: levels. Raises: ValueError where it is not JSON, or is nested deeper."""
    text = data.decode(json.detect_encoding(data)) if isinstance(data, bytes) else data
    check_json(text.encode(errors="surrogatepass"), most)
    return json.loads(text)


def check_toml(text: str) -> None:
    """Raises: NestingError with the line. What several tables come to together is `check_depth`'s matter."""
    bare = _TOML_TEXT.sub(lambda found: "\n" * found[0].count("\n"), text)
    _check(bare.encode(errors="replace"))
    for number, line in enumerate(bare.split("\n"), 1):
        if line.count(".") > MAX_DEPTH and any(key.count(".") > MAX_DEPTH for key in _TOML_NO_KEY.split(line)):
            raise NestingError(number)


def check_depth(value: Any) -> None:
    """value: dicts and lists inside of one another. Raises: NestingError."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):  # one for the value itself
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if any(isinstance(value, (dict, list)) for value in level):
        raise NestingError


def _check(data: bytes, most: int = MAX_DEPTH) -> None:
    """data: brackets, quotes around texts, newlines; other bytes count for nothing."""
    import numpy as np

    codes = np.frombuffer(data, np.uint8)
    steps = np.frombuffer(data.translate(_STEP), np.int8).astype(np.int32)
    steps[np.cumsum(codes == ord('"'), dtype=np.int32) % 2 == 1] = 0
    deep = np.flatnonzero(np.cumsum(steps) > most)
    if len(deep):
        raise NestingError(1 + int(np.count_nonzero(codes[: deep[0]] == ord("\n"))), most)
