"""How a name is written as a uri and read back: paths, file:// uris of names that are not text, urls, and data
URIs, which hold an image themselves.
"""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes, urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# With a media type or a parameter: a file may be called `data:,x`.
_DATA = re.compile(r"data:(?:[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:;[^;,]*)*|(?:;[^;,]*)+),", re.IGNORECASE | re.ASCII)


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


def is_url(text: str) -> bool:
    """Whether `text` begins with a scheme, as in s3://bucket/key."""
    return _SCHEME.match(text) is not None


def is_data_uri(text: str) -> bool:
    """Whether `text` begins as a data URI does (RFC 2397)."""
    return text[:5].lower() == "data:" and _DATA.match(text) is not None


def absolute(place: str) -> str:
    """`place`, a path or a url, as it is named from any working folder."""
    return place if is_url(place) else os.path.abspath(place)


def name_of(place: str) -> str:
    """The last part of a path or a url: of a web server's without its query, which may be a signature."""
    if place.lower().startswith(("http://", "https://")):
        place = urlsplit(place).path
    return posixpath.basename(place) if is_url(place) else os.path.basename(place)


def folder_of(place: str) -> str:
    """The folder or url that the names in the file at `place` start from."""
    if not is_url(place):
        return os.path.dirname(os.path.abspath(place))
    if place.lower().startswith(("http://", "https://")):
        place = urlsplit(place)._replace(query="", fragment="").geturl()
    return posixpath.dirname(place)


def path_of(uri: str, root: str) -> str:
    """The path or url to open for a row's uri and root."""
    if uri.startswith("file:///"):
        return os.fsdecode(unquote_to_bytes(uri[len("file://") :]))
    if is_url(uri) or is_data_uri(uri):
        return uri
    return posixpath.join(root, uri) if is_url(root) else os.path.join(root, uri)


def is_outside(path: str, fence: str) -> bool:
    """Whether `path`, as `path_of` gives it, leads out of the folder or url `fence`. Links inside of the fence count
    as inside: whoever made them could also have put files there. A data URI leads nowhere."""
    if is_data_uri(path):
        return False
    if is_url(path) or is_url(fence):
        inside = path == fence or path.startswith(fence.rstrip("/") + "/")
        return not inside or ".." in re.split(r"[/\\?#]|%2[fF]", unquote(path))
    if ".." in path.split("/"):  # where it leads depends on the links that it passes
        path, fence = os.path.realpath(path), os.path.realpath(fence)
    path, fence = os.path.normpath(path), os.path.normpath(fence)
    return os.path.commonpath((path, fence)) != fence
