"""The page in a browser: light, dark, on a phone, in print, without JavaScript; quiet, alone and within its width."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.browser import SMALL, Opened, chromium, needs_chromium, playwright
from helpers.planted_study import METHODS, planted_study

from softprompt.experiments.comparison.study_records import Study
from softprompt.report.report_files import write_report

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def study() -> Study:
    study = planted_study(n=150)
    long = "unbroken" * 60
    return study.model_copy(update={"texts": (long, *study.texts[1:]), "machine": long, "notes": (long, "<b>bold</b>")})


@pytest.fixture(scope="module")
def address(study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    write_report(study, folder, figures=True)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with chromium() as started:
        yield started


@pytest.mark.parametrize(
    ("scheme", "width", "javascript"),
    [("light", 1280, True), ("dark", 1280, True), ("light", 375, True), ("dark", 375, False)],
)
def test_renders(
    browser: "playwright.Browser", study: Study, address: str, scheme: str, width: int, javascript: bool
) -> None:
    opened = Opened(
        browser, address, color_scheme=scheme, viewport={"width": width, "height": 800}, java_script_enabled=javascript
    )
    shown = opened.page.locator("body").inner_text()
    assert study.recommendation.sentence in shown
    assert "<b>bold</b>" in shown
    for row in study.rows:
        assert row.method in shown
    assert len(opened.texts("figure svg:visible")) == 6
    opened.page.close()
    assert opened.complaints == []
    assert opened.requests == [address]


@pytest.mark.parametrize("width", [320, 375, 800, 1280])
def test_nothing_reaches_beyond_the_width(browser: "playwright.Browser", address: str, width: int) -> None:
    opened = Opened(browser, address, viewport={"width": width, "height": 700})
    assert opened.width() == width
    opened.page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert opened.width() == width
    opened.page.close()


def test_wide_tables_scroll_in_their_own_box(browser: "playwright.Browser", address: str) -> None:
    opened = Opened(browser, address, **SMALL)
    scrolled = opened.page.locator("#methods > .scroll").first
    assert scrolled.evaluate("box => box.scrollWidth > box.clientWidth")
    first = scrolled.locator("tbody th").first
    before = first.bounding_box()
    scrolled.evaluate("box => { box.scrollLeft = 200 }")
    assert first.bounding_box() == before
    opened.page.close()


def test_dark_is_dark_and_light_is_light(browser: "playwright.Browser", address: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        opened = Opened(browser, address, color_scheme=scheme)
        grounds.append(opened.colour("body", "backgroundColor"))
        assert opened.colour(".chart text.name", "fill") == opened.colour("body", "color")
        opened.page.close()
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_print_is_light_and_has_the_numbers(browser: "playwright.Browser", address: str, tmp_path: Path) -> None:
    opened = Opened(browser, address, color_scheme="dark")
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.colour("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.locator("nav").is_visible()
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("figure details table").first.is_visible()
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("details[open]").count() == 0
    opened.page.close()


def test_tables_sort_by_mouse_and_keyboard(browser: "playwright.Browser", address: str) -> None:
    opened = Opened(browser, address)
    table = opened.page.locator("#methods > .scroll table").nth(1)
    names = table.locator("tbody th .v")
    button = table.get_by_role("button", name="Trained parameters")
    button.click()
    assert names.first.inner_text() == "full"
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("Trained parameters")
    button.press("Enter")
    assert names.last.inner_text() == "full"
    search = table.get_by_role("button", name="Search")
    for end in ("full", "prefix-tuning"):
        search.click()
        assert names.first.inner_text() == end
        assert names.last.inner_text() not in {method.name for method in METHODS if method.curve}
    opened.page.close()
    assert opened.complaints == []


def test_standalone_figures_show_in_both_schemes(browser: "playwright.Browser", address: str) -> None:
    folder = address.rsplit("/", 1)[0]
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)")):
        opened = Opened(browser, f"{folder}/figures/stored.svg", color_scheme=scheme)
        assert opened.colour("rect", "fill") == ground
        assert "prompt-tuning" in opened.page.locator("svg").inner_html()
        opened.page.close()
        assert opened.complaints == []
