"""The page of an inspection: every part, hostile text as text; in a browser light, dark and on a phone."""

from pathlib import Path
from xml.etree.ElementTree import fromstring, tostring

import pytest
from helpers.html_page import HOSTILE, Page
from helpers.planted_inspections import full_inspection, inspection
from helpers.told import told_lines

from softprompt.cli.printing import print_result
from softprompt.report.pages.inspection_page import make_inspection_document
from softprompt.report.render.html import render_html
from softprompt.report.render.markdown import render_markdown
from softprompt.report.report_files import write_page

PARTS = ("recommendation", "answers", "slices", "tokens", "attention", "alone", "rows", "privacy", "others", "measured")


def test_every_part_is_there() -> None:
    read = Page(render_html(make_inspection_document(full_inspection())))
    assert [one["id"] for one in read.all("section")] == list(PARTS)
    assert len(read.all("figure")) == 8
    for finding in full_inspection().findings:
        assert finding.title in read.text
        assert all(advice in read.text for advice in finding.advice)


def test_what_is_not_there_leaves_no_hole() -> None:
    bare = inspection(tokens=(), answers=None, fit=None, vocabulary=None)
    assert [section.name for section in make_inspection_document(bare).sections] == ["recommendation", "measured"]
    assert "Nothing that was looked at seems wrong." in Page(render_html(make_inspection_document(bare))).text
    assert "Nothing that was looked at seems wrong." in told_lines(make_inspection_document(bare))


def test_drawings_are_sound_at_both_widths() -> None:
    figures = [
        block
        for section in make_inspection_document(full_inspection()).sections
        for block in section.blocks
        if block.kind == "figure"
    ]
    assert len(figures) == 8
    for figure in figures:
        for width in (700, 330):
            drawn = fromstring(tostring(figure.draw(width)))
            assert "nan" not in tostring(drawn, encoding="unicode")


def test_hostile_text_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    read = Page(render_html(make_inspection_document(full_inspection(HOSTILE))))
    assert len(read.all("script")) == 1
    assert read.all("img") == []
    assert "javascript:d" in read.text
    print_result({}, make_inspection_document(full_inspection(HOSTILE)), as_json=False)
    assert not {"\x1b", "\u202e"} & set(capsys.readouterr().out)
    assert "<script>" not in render_markdown(make_inspection_document(full_inspection(HOSTILE)))


def test_many_tokens_and_classes() -> None:
    many = full_inspection(tokens=120)
    classes = tuple((f"c{i}", f"c{j}", 1 + i) for i in range(14) for j in range(2))
    assert many.answers is not None
    many = many.model_copy(update={"answers": many.answers.model_copy(update={"confusion": classes})})
    text = Page(render_html(make_inspection_document(many))).text
    assert "Shown are the 40 of 120 with the largest effect." in text
    assert "Most frequent confusions" in text
    assert "and 96 more" in told_lines(make_inspection_document(many))


def test_is_written_whole(tmp_path: Path) -> None:
    write_page(make_inspection_document(full_inspection()), tmp_path / "a" / "b.html", "--html")
    assert (tmp_path / "a" / "b.html").read_text() == render_html(make_inspection_document(full_inspection()))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375), ("light", 320)])
def test_in_a_browser(tmp_path: Path, scheme: str, width: int) -> None:
    from helpers.browser import quiet_page  # skips where there is no Playwright

    write_page(make_inspection_document(full_inspection("unbroken" * 30)), tmp_path / "page.html", "--html")
    with quiet_page(tmp_path / "page.html", scheme, width) as opened:
        assert opened.page.locator("figure svg:visible").count() == 8
