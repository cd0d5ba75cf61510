"""The report page in a real browser: no message on the console, no request, and accessible."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Cli, needs
from tests.support.hostile import LABELS, PWN

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        needs("chromium")
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium's refuses to work for root
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Opens a file in a window of its own; at the end nothing may have been fetched, logged or raised."""
    contexts, noise = [], list[str]()

    def opened(path: Path, **settings: Any) -> Page:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: noise.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: noise.append(dialog.message))
        page.on("request", lambda request: noise.append(request.url) if _is_fetched(request.url, path) else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert noise == []


def _is_fetched(url: str, page: Path) -> bool:
    return not url.startswith("data:") and url.split("#")[0] != page.as_uri()


@pytest.fixture(scope="module")
def demo(warm: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "scores"
    warm("demo", "--out", out, "--quiet")
    return Path(warm("report", out).stdout.strip())


def test_pictures_figures_and_numbers_are_there(demo: Path, open_page: Open) -> None:
    page = open_page(demo)
    assert page.locator("h1").inner_text() == "scores"
    assert page.locator(".tiles dd").first.inner_text() == "34"
    assert page.locator(".card").count() == 34
    sizes = page.locator(".card img").evaluate_all("all => all.map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) == 34
    assert all(complete and 64 <= max(width, height) <= 160 for complete, width, height in sizes)
    for figure in page.locator("figure > svg").all():
        box = figure.bounding_box()
        assert box
        assert box["width"] > 300
        assert figure.locator("path").count() > 10
        assert figure.locator("..").locator("table").count() >= 1
    colour = page.locator("figure path.fill-series").first.evaluate("element => getComputedStyle(element).fill")
    assert colour != "rgb(0, 0, 0)"


def test_no_name_label_or_error_becomes_markup(hostile_run: Path, open_page: Open) -> None:
    page = open_page(hostile_run / "report.html")
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 1
    assert page.locator("figure > svg").count() == 3  # with its many parts, also the one of throughput
    assert page.locator("img:not([src^='data:image/webp;base64,'])").count() == 0
    assert page.locator("[onerror], [onmouseover], a:not([href^='#'])").count() == 0
    assert page.locator("h1").inner_text() == f"<img src=x onerror={PWN}>"
    text = page.locator("body").inner_text()
    for label in LABELS[:6]:
        assert label in text
    assert "\\u202egnp.elohw" in text
    assert not set(text) & set("\u202e\x07\x1b")
    assert f"<img src=x onerror={PWN}>.jpg" in text
    assert "starts with b'<script>window.p'" in text
    page.get_by_role("searchbox", name="Search", exact=True).last.fill("starts with b'<script>")
    assert page.locator("#badlist [data-item]:visible").count() == 1


def test_the_filters_show_what_was_asked_for(demo: Path, open_page: Open) -> None:
    page = open_page(demo)
    cards, said = page.locator("#sheet .card:visible"), page.locator("[data-filters=sheet] output")
    expect(said).to_have_text("34 of 34 shown")
    page.get_by_role("combobox", name="Label", exact=True).select_option(label="ship")
    expect(said).to_have_text("5 of 34 shown")
    assert cards.count() == 5
    assert page.locator("#sheet section:visible").count() == 1
    page.get_by_role("combobox", name="Show", exact=True).select_option("doubtful")
    assert [card.split()[-1] for card in cards.all_inner_texts()] == ["cat-2.jpg", "ship-3.jpg"]
    page.get_by_role("combobox", name="Label", exact=True).select_option("")
    page.get_by_role("combobox", name="Show", exact=True).select_option("")
    search = page.get_by_role("searchbox", name="Search", exact=True).first
    search.fill("TRUCK-4")
    assert [card.split()[-1] for card in cards.all_inner_texts()] == ["truck-4.webp"]
    search.fill("nothing has this name")
    expect(said).to_have_text("0 of 34 shown")
    assert page.locator("#sheet h3:visible").count() == 0

    bad = page.locator("#badlist [data-item]:visible")
    page.get_by_role("combobox", name="Status", exact=True).select_option("truncated")
    assert bad.count() == 1
    assert "cut-off.jpg" in bad.inner_text()
    page.get_by_role("searchbox", name="Search", exact=True).last.fill("doctype")
    assert bad.count() == 0


def test_everything_is_shown_without_javascript(demo: Path, open_page: Open) -> None:
    page = open_page(demo, java_script_enabled=False)
    assert page.locator(".card:visible").count() == 34
    assert page.locator("#badlist [data-item]:visible").count() == 2
    assert page.locator("form:visible").count() == 0


def test_the_keyboard_reaches_everything_and_shows_where_it_is(demo: Path, open_page: Open) -> None:
    page = open_page(demo, viewport={"width": 1000, "height": 700})
    focused = "document.activeElement.outerHTML"
    page.keyboard.press("Tab")
    assert "Skip to the report" in page.evaluate(focused)
    assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(focused)
        if stop.startswith("<body"):
            break
        assert page.evaluate(outline) != "none", stop
        stops.append(stop)
    wanted = page.locator("a[href]:visible, summary:visible, select:visible, input:visible").count()
    assert len(stops) == wanted - 1
    page.get_by_role("combobox", name="Label", exact=True).focus()
    page.keyboard.type("s")
    expect(page.locator("[data-filters=sheet] output")).to_have_text("5 of 34 shown")
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details[open]").count() >= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 375])
def test_the_page_is_accessible_in_both_colour_schemes(
    demo: Path, hostile_run: Path, open_page: Open, scheme: str, width: int
) -> None:
    for path in (demo, hostile_run / "report.html"):
        page = open_page(path, color_scheme=scheme, viewport={"width": width, "height": 800})
        dark = sum(map(int, page.evaluate("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")))
        assert (dark < 150) == (scheme == "dark")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [320, 375, 768])
def test_a_narrow_screen_needs_no_sideways_scrolling(
    demo: Path, hostile_run: Path, open_page: Open, width: int
) -> None:
    for path in (demo, hostile_run / "report.html"):
        page = open_page(path, viewport={"width": width, "height": 700}, is_mobile=True, device_scale_factor=2)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("innerWidth") == width
