"""Text that others wrote -> text that can be shown: nothing invisible, nothing that reorders its neighbours, not too
long. Escaping for HTML is the template's, which does it to every text.

How pages are made: Jinja with every text escaped, and a Content-Security-Policy that lets the page's own style and
script through, by their digests, and fetches nothing.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Iterable
from importlib import resources

import jinja2

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufff9-\uffff"  # controls, line ends, halves of letters
    "\xad\u200b\u2060\ufeff\U000e0000-\U000e0fff"  # of no width
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # of direction
)


def shown(text: object, most: int = 200) -> str:
    """`text` with what cannot be seen written as an escape, and its middle left out where it is too long."""
    whole = str(text)
    if len(whole) > most:
        whole = f"{whole[: most // 2]} … {whole[-(most // 2) :]}"
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), whole)


def common_folder(uris: Iterable[str]) -> str:
    """The folders that all `uris` start with, up to and with the last slash; empty where there are none."""
    found: list[str] | None = None
    for uri in uris:
        folders = uri.split("/")[:-1]
        if found is None:
            found = folders
        else:
            same = (ours == theirs for ours, theirs in zip(found, folders, strict=False))
            found = found[: next((number for number, is_same in enumerate(same) if not is_same), len(folders))]
    return "/".join([*found, ""]) if found and any(found) else ""


def number(value: float) -> str:
    """A count with thousands apart, or a measure of three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(part: float, whole: float) -> str:
    """A percentage that says neither 0% for some nor 100% for not all."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1%"
    if 99.9 < percent < 100:
        return "over 99.9%"
    return f"{percent:.1f}%".replace(".0%", "%")


def score(value: float) -> str:
    """Three decimals; two digits where it is smaller than those, as sigmoid scores may be, but nearly 0 is 0."""
    return f"{value:.2g}" if 1e-5 <= abs(value) < 1e-3 else f"{value:.3f}"


def seconds(value: float) -> str:
    """A length of time in the two units that matter."""
    if value < 90:
        return f"{value:.3g} s"
    whole = round(value)
    long, size, short, part = next(units[1:] for units in _UNITS if whole < units[0])
    rest = whole % size // part
    return f"{whole // size} {long}" + (f" {rest} {short}" if rest else "")


# Seconds below which they are used; the larger unit and the smaller one, each with its seconds.
_UNITS: tuple[tuple[float, str, int, str, int], ...] = (
    (5400, "min", 60, "s", 1),
    (48 * 3600, "h", 3600, "min", 60),
    (float("inf"), "d", 86400, "h", 3600),
)


def environment() -> jinja2.Environment:
    """Finds the templates that lie in this folder."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbatch.tools.htmlreport", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": shown,
        "number": number,
        "score": score,
        "seconds": seconds,
        "time": _time,
    }
    made.globals |= {"share": share}
    return made


def asset(name: str) -> str:
    """A style or a script of this folder."""
    return (resources.files("clipbatch.tools.htmlreport") / name).read_text(encoding="utf-8")


def policy(style: str, script: str | None = None) -> str:
    """The page's Content-Security-Policy."""
    scripts = "" if script is None else f" script-src {_digest(script)};"
    return (
        f"default-src 'none'; img-src data:; style-src {_digest(style)};{scripts} base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """As a source in a Content-Security-Policy (CSP level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _time(unix_s: float) -> str:
    try:
        return f"{datetime.datetime.fromtimestamp(unix_s, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError):  # of a part whose file has a time after the year 9999
        return f"{unix_s:.0f} s after 1970"
