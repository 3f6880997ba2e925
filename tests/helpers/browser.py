"""Pages in headless Chromium; a test module that imports this is skipped where there is no Playwright."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install 'softprompt[dev]'")
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

TEXT = "a fine film, isn't it?"
SMALL = {"viewport": {"width": 375, "height": 700}}


@contextmanager
def chromium() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM)
        yield started
        started.close()


class Opened:
    """A page with what it complained of and asked for."""

    def __init__(self, browser: "playwright.Browser", address: str, **options: object) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def width(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def texts(self, selector: str) -> list[str]:
        return list(self.page.locator(selector).all_inner_texts())

    def colour(self, selector: str, which: str) -> str:
        return str(self.page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{which}"))


class Visit(Opened):
    """Somebody at the page."""

    def __init__(self, browser: "playwright.Browser", address: str, **options: Any) -> None:
        super().__init__(browser, address, **options)
        self.page.set_default_timeout(60_000)

    def pick(self, *ids: str) -> None:
        """Exactly these prompts."""
        self.page.wait_for_selector("#prompts li")
        for summary in self.page.locator("#prompts details:not([open]) > summary").all():
            summary.click()
        for box in self.page.locator("#prompts input").all():
            box.set_checked(box.get_attribute("value") in ids)

    def ask(self, text: str = TEXT) -> None:
        self.page.get_by_label("Text", exact=True).fill(text)
        self.page.get_by_role("button", name="Ask").click()
        self.answered()

    def answered(self) -> None:
        self.page.wait_for_selector("#results[aria-busy=false]")

    def card(self, title: str, number: int = 0) -> "playwright.Locator":
        return self.page.get_by_role("article", name=title, exact=True).nth(number)

    def curl(self, title: str) -> list[str]:
        """The words of the curl command, as a shell reads them."""
        card = self.card(title)
        card.get_by_text("The request as curl").click()
        return shlex.split(card.locator("pre").inner_text().replace("\\\n", ""))

    def close(self, *, quiet: bool = True) -> None:
        """``quiet``: nothing was to be complained of; a browser does of each answer that is an error."""
        self.page.close()
        others = [one for one in self.complaints if quiet or "Failed to load resource" not in one]
        assert others == []


@contextmanager
def quiet_page(path: Path, scheme: str, width: int) -> Iterator[Opened]:
    """A page of ours with all its details open: it keeps to its width, complains of nothing, and asks for nothing."""
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with chromium() as browser:
        opened = Opened(browser, path.as_uri(), color_scheme=scheme, viewport={"width": width, "height": 800})
        opened.page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        assert opened.width() == width
        yield opened
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]
