"""What was compared -> one HTML file that needs nothing else, with the report's escaping and policy."""

from __future__ import annotations

import time
from typing import Any

from markupsafe import Markup

from clipbatch import __version__
from clipbatch.htmlreport import template
from clipbatch.parity import verdict


def render(found: dict[str, Any], pictures: list[dict[str, Any]]) -> bytes:
    """found: as `verdict.summary` makes it. pictures: as `measure` says them."""
    style = template.asset("report.css")
    by_row = {picture["picture"]: picture for picture in pictures}
    parts = [("All images", found["all"])]
    if found["alike"] and found["alike"]["images"] < found["compared"]:
        parts.append(("Without those treated otherwise on purpose", found["alike"]))
    page = template.environment().get_template("parity.html.j2")
    return page.render(
        style=Markup(style),
        policy=template.policy(style),
        version=__version__,
        now=time.time(),
        found=found,
        compared=verdict.compared(found),
        parts=[(title, part["images"], verdict.shown(part)) for title, part in parts if part],
        worst=[(row, by_row[row["row_id"]]) for row in found["worst"] if row["row_id"] in by_row],
    ).encode()
