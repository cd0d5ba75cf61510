"""The Jinja environment of our pages: escaping, filters and the Content-Security-Policy.

Jinja escapes every text. The policy allows only the page's own style and script, by their digests, and fetches nothing.
Texts that others wrote go through `shown`: it makes invisible characters visible, also those that reorder text, and
shortens long texts.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Iterable
from importlib import resources

import jinja2

from clipbatch.workers.words import number, seconds, share

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufff9-\uffff"  # controls, line ends, halves of letters
    "\xad\u200b\u2060\ufeff\U000e0000-\U000e0fff"  # of no width
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # of direction
)


def shown(text: object, limit: int = 200) -> str:
    """`text` with escapes for characters that cannot be seen, and without its middle if it is too long."""
    whole = str(text)
    if len(whole) > limit:
        whole = f"{whole[: limit // 2]} … {whole[-(limit // 2) :]}"
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), whole)


def common_folder(uris: Iterable[str]) -> str:
    """The folders with which all `uris` begin, including the last slash; empty if there are none."""
    common: list[str] | None = None
    for uri in uris:
        folders = uri.split("/")[:-1]
        if common is None:
            common = folders
        else:
            same = (ours == theirs for ours, theirs in zip(common, folders, strict=False))
            common = common[: next((number for number, is_same in enumerate(same) if not is_same), len(folders))]
    return "/".join([*common, ""]) if common and any(common) else ""


def score(value: float) -> str:
    """A score with three decimals, or with two digits if it is smaller than that. Scores below 0.00001 are 0.000."""
    return f"{value:.2g}" if 1e-5 <= abs(value) < 1e-3 else f"{value:.3f}"


def environment() -> jinja2.Environment:
    """A Jinja environment for the templates in this folder."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbatch.tools.htmlreport", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "shown": shown,
        "number": number,
        "score": score,
        "seconds": seconds,
        "time": _time,
    }
    env.globals |= {"share": share}
    return env


def asset(name: str) -> str:
    """The text of a style sheet or script in this folder."""
    return (resources.files("clipbatch.tools.htmlreport") / name).read_text(encoding="utf-8")


def policy(style: str, script: str | None = None) -> str:
    """The page's Content-Security-Policy."""
    scripts = "" if script is None else f" script-src {_digest(script)};"
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)};{scripts} base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """A digest as a source in a Content-Security-Policy (CSP level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _time(unix_s: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError):  # the time of the file is after the year 9999
        return f"{unix_s:.0f} s after 1970"
