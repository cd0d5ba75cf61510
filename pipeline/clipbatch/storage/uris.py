"""Convert between names and uris: paths, urls, file:// uris for names that are not UTF-8, and data URIs."""

from __future__ import annotations

import os
import posixpath
import re
from urllib.parse import quote_from_bytes, unquote, unquote_to_bytes, urlsplit

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# With a media type or a parameter: a file may be called `data:,x`.
_DATA = re.compile(r"data:(?:[\w!#$&^.+-]+/[\w!#$&^.+-]+(?:;[^;,]*)*|(?:;[^;,]*)+),", re.IGNORECASE | re.ASCII)


def uri_of(name: str, root: str) -> str:
    """`name` itself if it and `root` are valid text; else the file:// uri of its bytes (RFC 8089), since Parquet stores
    UTF-8."""
    if is_text(name) and is_text(root):
        return name
    return "file://" + quote_from_bytes(os.fsencode(os.path.join(root, name)))


def is_text(name: str) -> bool:
    """Whether `name` is free of surrogates, which stand for bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_url(text: str) -> bool:
    """Whether `text` begins with a scheme, as in s3://bucket/key."""
    return "://" in text and _SCHEME.match(text) is not None  # the first part is the faster one


def is_data_uri(text: str) -> bool:
    """Whether `text` begins as a data URI does (RFC 2397)."""
    return text[:5].lower() == "data:" and _DATA.match(text) is not None


def absolute(place: str) -> str:
    """`place`, a path or url, in a form that does not depend on the working folder."""
    return place if is_url(place) else os.path.abspath(place)


def name_of(place: str) -> str:
    """The last part of a path or url. Of a web server's url, without the query, which may be a signature."""
    if place.lower().startswith(("http://", "https://")):
        place = urlsplit(place).path
    return posixpath.basename(place) if is_url(place) else os.path.basename(place)


def folder_of(place: str) -> str:
    """The folder or url that names in the file at `place` are relative to."""
    if not is_url(place):
        return os.path.dirname(os.path.abspath(place))
    if place.lower().startswith(("http://", "https://")):
        place = urlsplit(place)._replace(query="", fragment="").geturl()
    return posixpath.dirname(place)


def path_of(uri: str, root: str) -> str:
    """The path or url to open for a row's uri and root."""
    if ":" not in uri and root.startswith("/"):  # neither a url nor a data URI: most rows
        return uri if uri.startswith("/") else os.path.join(root, uri)
    if uri.startswith("file:///"):
        return os.fsdecode(unquote_to_bytes(uri[len("file://") :]))
    if is_url(uri) or is_data_uri(uri):
        return uri
    return posixpath.join(root, uri) if is_url(root) else os.path.join(root, uri)


def is_outside(path: str, fence: str) -> bool:
    """Whether `path`, a result of `path_of`, leads out of the folder or url `fence`. Links inside of the fence count as
    inside, since their author could also have put files there. A data URI is never outside."""
    if is_data_uri(path):
        return False
    if is_url(path) or is_url(fence):
        inside = path == fence or path.startswith(fence.rstrip("/") + "/")
        return not inside or ".." in re.split(r"[/\\?#]|%2[fF]", unquote(path))
    if ".." in path.split("/"):  # where it leads depends on the links that it passes
        path, fence = os.path.realpath(path), os.path.realpath(fence)
    path, fence = os.path.normpath(path), os.path.normpath(fence)
    return os.path.commonpath((path, fence)) != fence
