"""Names that need care: a data URI, which holds the image itself; base64 text of an image; blanks at a name's ends."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from clipbatch.storage.uris import path_of
from clipbatch.types import Encoded, Reject

# Invisible characters that `str.isspace` does not know.
_BLANK = "\ufeff\u200b"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}[=\s]*")
# How the base64 text of an image begins.
_STARTS = {
    "/9j/": "image/jpeg",
    "iVBORw0KGgo": "image/png",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
    "Qk": "image/bmp",
    "SUkq": "image/tiff",
    "TU0AKg": "image/tiff",
}


def read_data_uri(uri: str, max_bytes: int) -> Encoded | Reject:
    """The bytes of a data URI (RFC 2397): percent-encoded, or base64 in either alphabet, padded or not."""
    head, _, body = uri.partition(",")
    if len(body) > 12 * max_bytes:  # percent-encoded base64 is the longest form
        return Reject(status="too_large", error=f"a data URI of {len(body)} characters, over the limit of {max_bytes}")
    data = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            data = _from_base64(data)
        except binascii.Error as error:
            return Reject(status="corrupt", error=f"the data URI is not base64: {error}")
    if len(data) > max_bytes:
        return Reject(status="too_large", error=f"{len(data)} bytes, over the limit of {max_bytes}")
    return Encoded(data=bytearray(data)) if data else Reject(status="empty", error="0 bytes")


def _from_base64(text: bytes) -> bytes:
    text = b"".join(text.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def base64_kind(text: str) -> str | None:
    """The media type of the image whose base64 text is `text`; None if it is none."""
    kind = next((kind for start, kind in _STARTS.items() if text.startswith(start)), None)
    return kind if kind and _BASE64.fullmatch(text) else None


def without_blanks(uri: str, path: str) -> tuple[str, str] | None:
    """The name `uri` without the blanks at its ends, and the path to open for it; None if there are no blanks.

    path: the path to open for `uri` itself (`path_of`).
    """
    start, end = 0, len(uri)
    while start < end and _is_blank(uri[start]):
        start += 1
    while start < end and _is_blank(uri[end - 1]):
        end -= 1
    trimmed = uri[start:end]
    if trimmed in ("", uri) or not path.endswith(uri):
        return None
    return trimmed, path_of(trimmed, path[: -len(uri)])


def _is_blank(char: str) -> bool:
    return char.isspace() or char in _BLANK
