"""How pages are made: Jinja with every text escaped, and a Content-Security-Policy that lets the page's own style and
script through, by their digests, and fetches nothing."""

from __future__ import annotations

import base64
import datetime
import hashlib
from importlib import resources

import jinja2

from clipbatch.htmlreport import shown


def environment() -> jinja2.Environment:
    """Finds the templates that lie in this folder."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("clipbatch.htmlreport", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": shown.shown,
        "number": shown.number,
        "score": shown.score,
        "seconds": shown.seconds,
        "time": _time,
    }
    made.globals |= {"share": shown.share}
    return made


def asset(name: str) -> str:
    """A style or a script of this folder."""
    return (resources.files("clipbatch.htmlreport") / name).read_text(encoding="utf-8")


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
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
