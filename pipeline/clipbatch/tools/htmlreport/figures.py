"""Draws figures as SVG with matplotlib, and adapts them to the report page.

matplotlib writes colours and fonts into every element. This module replaces them by classes, for which the page's style
sheet has colours in light and dark mode. Text stays text, in the page's font. So a figure needs no inline style, which
the page's Content-Security-Policy forbids. Figures contain only numbers and our own words, never a user's text.
"""

from __future__ import annotations

import io
import logging
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from clipbatch.tools.htmlreport.series import Bar, Step

# The size of a figure in its own units. A phone shows a unit as about three quarters of a pixel, and text larger.
_WIDTH, _HEIGHT = 420, 220
# matplotlib draws with these colours; afterwards, classes replace them.
_COLOURS = {"#010101": "ink", "#020202": "rule", "#030303": "series", "#040404": "mark"}
_INK, _RULE, _SERIES, _MARK = _COLOURS
_COPIED = ("stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-linecap", "text-anchor", "opacity")
_SVG = "{http://www.w3.org/2000/svg}"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clipbatch",
    "font.size": 12,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "axes.labelpad": 7,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 7,
    "ytick.major.pad": 6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _RULE,
    "grid.linewidth": 1,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "text.color": _INK,
}


def histogram(bars: Sequence[Bar], *, xlabel: str, name: str, middle: float) -> Markup:
    """How many images each bar has. name: of the figure, unique in its page. middle: the median, which is marked."""

    def draw(axes: Any) -> None:
        low, high, width = bars[0].low, bars[-1].high, bars[0].high - bars[0].low
        axes.bar([bar.low for bar in bars], [bar.count for bar in bars], width * 0.88, align="edge", color=_SERIES)
        axes.axvline(middle, color=_MARK, linewidth=1.5, dashes=(3, 2))
        right = middle > (low + high) / 2
        axes.annotate(
            f"median {middle:.3g}",
            (middle, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-5 if right else 5, 4),
            textcoords="offset points",
            ha="right" if right else "left",
        )
        axes.set(xlim=(low, high), xlabel=xlabel)
        axes.locator_params(axis="y", nbins=4, integer=True)

    return _svg(draw, name)


def timeline(steps: Sequence[Step], *, name: str) -> Markup:
    """Images a second over the time at work. Pauses are cut out and marked."""

    def draw(axes: Any) -> None:
        end = steps[-1].worked_s + steps[-1].seconds
        unit, per = next((u, p) for most, u, p in _UNITS if end < most)
        edges = [step.worked_s / per for step in steps] + [end / per]
        axes.stairs([step.images_per_s for step in steps], edges, fill=True, color=_SERIES)
        for step in steps:
            if step.pause_s:
                axes.axvline(step.worked_s / per, color=_MARK, linewidth=1.5, dashes=(3, 2))
        axes.set(xlim=(edges[0], edges[-1]), xlabel=f"{unit} at work", ylabel="images a second")
        axes.locator_params(axis="y", nbins=4)

    return _svg(draw, name)


def curve(
    points: Sequence[tuple[float, float]], *, xlabel: str, ylabel: str, name: str, diagonal: bool = False
) -> Markup:
    """Points joined by lines, both axes from 0 to 1. diagonal: also mark where x and y are equal."""

    def draw(axes: Any) -> None:
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_MARK, linewidth=1.5, dashes=(3, 2))
        ordered = sorted(points)
        axes.plot(
            [x for x, _ in ordered], [y for _, y in ordered], color=_SERIES, linewidth=2, marker="o", markersize=4
        )
        axes.set(xlim=(0, 1.01), xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(top=1.01)

    return _svg(draw, name)


_UNITS = ((180, "seconds", 1), (3 * 3600, "minutes", 60), (float("inf"), "hours", 3600))


def short(value: float) -> str:
    """A number on an axis: 950, 12k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{value:.4g}"


def _svg(draw: Callable[[Any], None], name: str) -> Markup:
    """The figure that `draw` draws on its axes, as an element for the page."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no warning if it cannot write its cache
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_adapt(out.getvalue(), name))


def _adapt(svg: bytes, name: str) -> str:
    """Adapt matplotlib's file to the page. name: a prefix for all ids, which must be unique in the page."""
    root = ET.fromstring(svg)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        style = dict(re.findall(r"([\w-]+):\s*([^;]+)", element.attrib.pop("style", "")))
        classes = [f"{kind}-{_COLOURS[style[kind]]}" for kind in ("fill", "stroke") if style.get(kind) in _COLOURS]
        attributes = {k: value.replace("url(#", f"url(#{name}-") for k, value in element.attrib.items() if k != "id"}
        attributes |= {k: value for k, value in style.items() if k in _COPIED or (k, value) == ("fill", "none")}
        if element.tag == "clipPath":
            attributes["id"] = f"{name}-{element.attrib['id']}"
        element.attrib = attributes | ({"class": " ".join(classes)} if classes else {})
        element.text, element.tail = (text and text.strip() for text in (element.text, element.tail))
    root.attrib = {"viewBox": root.attrib["viewBox"], "aria-hidden": "true", "focusable": "false"}
    return ET.tostring(root, encoding="unicode")
