"""Results within somebody else's page in a browser: readable on light and dark grounds, and nothing around moves."""

from pathlib import Path

import pytest
from helpers.browser import Opened, chromium, needs_chromium
from helpers.html_page import HOSTILE
from helpers.large_results import large_prompt, large_task
from helpers.planted_study import planted_study

pytestmark = needs_chromium

AROUND = """<!doctype html><meta charset="utf-8"><style>body {{ {ground} }}
.jp td {{ text-align: right; background: rgb(1, 2, 3) }} .jp dt {{ float: left; width: 20% }}</style>
<body data-jp-theme-light="{light}"><h1 class="title">a page</h1><p class="note" id="note">a note</p>
<table id="own"><tr><th>a</th><td class="n">1</td></tr></table>
<div class="jp">{shown}</div></body>"""
GROUNDS = {"light": "background: #ffffff; color: #111111", "dark": "background: #111111; color: #eeeeee"}
LOOK = """selector => [...document.querySelectorAll(selector)].map(one => {
  const style = getComputedStyle(one);
  return [style.color, style.fontSize, style.fontWeight, style.padding, style.textAlign, style.borderBottomWidth];
})"""
OUTSIDE = "h1, #note, #own, #own th, #own td"
# the least contrast of text that stands on the page's ground, as WCAG 2.2 defines it
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const ground = getComputedStyle(document.body).backgroundColor;
  const luminance = color => {
    canvas.fillStyle = ground; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
      .map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = luminance(ground);
  const LEFT_OUT = "style, .heat, .unseen, details:not([open]) > :not(summary), .narrow, title, desc";
  let least = 21;
  for (const one of document.querySelectorAll(".softprompt *")) {
    const text = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!text || one.closest(LEFT_OUT)) continue;
    const style = getComputedStyle(one);
    const over = luminance(one.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [high, low] = [over, under].sort((a, b) => b - a);
    least = Math.min(least, (high + 0.05) / (low + 0.05));
  }
  return least;
}"""


def shown_in(path: Path, scheme: str, *results: object) -> Path:
    shown = "".join(one._repr_html_() for one in results)  # type: ignore[attr-defined]
    light = "true" if scheme == "light" else "false"
    path.write_text(AROUND.format(ground=GROUNDS[scheme], light=light, shown=shown), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_is_readable_and_changes_nothing_around_it(scheme: str, tmp_path: Path) -> None:
    results = large_task(rows=40), large_prompt(), planted_study()
    with chromium() as browser:
        looks = []
        for number, some in enumerate([(), results]):
            page = Opened(browser, shown_in(tmp_path / f"{number}.html", scheme, *some).as_uri(), color_scheme="light")
            looks.append(page.page.evaluate(LOOK, OUTSIDE))
        assert looks[0] == looks[1]
        assert page.page.evaluate(CONTRAST) >= 4.5
        assert page.page.locator(".softprompt td").first.evaluate("one => getComputedStyle(one).backgroundColor") == (
            "rgba(0, 0, 0, 0)"
        )
        assert page.complaints == []
        assert len(page.requests) == 1


def test_keeps_to_its_width(tmp_path: Path) -> None:
    results = large_task("unbroken" * 40, rows=40), large_prompt("unbroken" * 40), planted_study()
    path = shown_in(tmp_path / "page.html", "light", *results)
    with chromium() as browser:
        for width in (360, 1200):
            opened = Opened(browser, path.as_uri(), viewport={"width": width, "height": 800})
            assert opened.width() == width
            narrow = opened.page.locator(".softprompt .narrow").last
            assert narrow.evaluate("one => getComputedStyle(one).display") == ("block" if width == 360 else "none")


def test_hostile_texts_run_nothing(tmp_path: Path) -> None:
    path = shown_in(tmp_path / "page.html", "light", large_task(HOSTILE, rows=40), large_prompt(HOSTILE))
    with chromium() as browser:
        opened = Opened(browser, path.as_uri())
        opened.page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
        opened.page.reload()
        assert opened.complaints == []
        assert set(opened.requests) == {path.as_uri()}
