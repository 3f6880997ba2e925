"""Each link of README, CONTRIBUTING and docs leads to a file and a heading, and each page is reached from the index."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"[a-z]+:|/")  # another site, or a path of a server


def without_code(text: str) -> str:
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def links_of(page: Path) -> list[str]:
    text = without_code(page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)(?:set)?="([^"]+)"', text)
    return [link for link in found if not OUTSIDE.match(link)]


def anchors_of(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes addresses of them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (name := f"{anchor}-{number}" if number else anchor) in anchors:
            number += 1
        anchors.add(name)
    return anchors | set(re.findall(r'<a id="([^"]+)"', text))


PAGES = [page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists()]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {link}: there is no such file"
        if anchor:
            assert anchor in anchors_of(target), f"{page.relative_to(ROOT)} links to {link}: there is no such heading"


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[Path] = set()
    ahead = [ROOT / "docs" / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links_of(page) if link[0] != "#")
        ahead += [target for target in targets if target.suffix == ".md" and (ROOT / "docs") in target.parents]
    lost = sorted(set((ROOT / "docs").rglob("*.md")) - reached)
    assert not lost, f"no link leads from docs/README.md to {[page.relative_to(ROOT).as_posix() for page in lost]}"
