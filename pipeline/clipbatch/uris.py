"""How a file name is written as a uri and read back."""

from __future__ import annotations

import os
from urllib.parse import quote_from_bytes, unquote_to_bytes


def uri_of(name: str, root: str) -> str:
    """`name` itself where it and `root` are valid text, else the file:// uri of its bytes (RFC 8089), since Parquet
    holds UTF-8."""
    if is_text(name) and is_text(root):
        return name
    return "file://" + quote_from_bytes(os.fsencode(os.path.join(root, name)))


def is_text(name: str) -> bool:
    """Whether `name` holds no surrogates, which stand for bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def path_of(uri: str, root: str) -> str:
    """The path to open for a row's uri and root."""
    if uri.startswith("file:///"):
        return os.fsdecode(unquote_to_bytes(uri[len("file://") :]))
    return os.path.join(root, uri)
