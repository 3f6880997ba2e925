"""The page of an inspection: every part, hostile text as text; in a browser light, dark and on a phone."""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring, tostring

import pytest
from analysis.test_inspection_findings import about, answers, calibration, comparison, inspection, losses, token, twins
from helpers.html_page import HOSTILE, Page
from helpers.told import told_lines

from softprompt.analysis.inspection.inspection_findings import judge_inspection
from softprompt.analysis.inspection.inspection_records import (
    Attention,
    ChangedAnswer,
    Continuation,
    DuplicateGroup,
    DuplicateRow,
    Inspection,
    LabelError,
    LabelErrors,
    Memorization,
    Neighbor,
    NextToken,
    ReliabilityBin,
    Slice,
    StartCandidate,
    StoreNeighbors,
)
from softprompt.cli.printing import print_result
from softprompt.report.pages.inspection_page import make_inspection_document
from softprompt.report.render.html import render_page
from softprompt.report.render.markdown import render_markdown
from softprompt.report.report_files import write_page

PARTS = ("recommendation", "answers", "slices", "tokens", "attention", "alone", "rows", "privacy", "others", "measured")


def full(word: str = "word", layers: int = 18, tokens: int = 20) -> Inspection:
    """One with everything in it; ``word`` stands wherever somebody else's text does."""
    change = ChangedAnswer(index=3, text=word, gold=word, now=word, before="b", gain=1.2)
    bins = tuple(
        ReliabilityBin(
            low=0.5 + i / 10,
            high=0.6 + i / 10,
            n=9,
            confidence=0.55 + i / 10,
            right=0.6 + i / 12,
            right_low=0.4,
            right_high=0.9,
        )
        for i in range(5)
    )
    parts = answers(
        comparison=comparison(0.1).model_copy(
            update={"reference": word, "fixed_examples": (change,), "broken_examples": (change,)}
        ),
        confusion=((word, word, 90), (word, "b", 10), ("b", "b", 100)),
        calibration=calibration(0.1).model_copy(update={"bins": bins}),
        slices=tuple(
            Slice(by=word, name=word, n=30, value=0.8, low=0.7, high=0.9, rest=0.9, p_value=0.01, adjusted=0.04)
            for _ in range(14)
        ),
        truncated=9,
    )
    near = (Neighbor(token=word, token_id=1, value=0.5), Neighbor(token=word, token_id=2, value=0.4))
    shares = tuple(0.3 for _ in range(layers))
    says = (NextToken(token=word, probability=0.2),)
    row = DuplicateRow(split="train", index=1, answer=word, text=word)
    suspect = LabelError(index=2, text=word, gold=word, instead="b", score=0.9, reason=word)
    fields: dict[str, Any] = {
        "place": word,
        "data": word,
        "tokens": tuple(
            token(i, by_cosine=near, by_distance=near, start_token=word, start_cosine=0.4, attention=shares)
            for i in range(tokens)
        ),
        "attention": Attention(examples=9, bos=shares, prompt=shares, text=shares, even=0.3),
        "continuation": Continuation(text=word, next=says, without=word, without_next=says),
        "answers": parts,
        "history": losses((0.7, 0.6), (0.5, 0.4), (0.8, 0.9)),
        "label_errors": LabelErrors(looked_at=100, found=60, listed=(suspect,)),
        "duplicates": twins(leaked=9, groups=1, conflicting=1).model_copy(
            update={"listed": (DuplicateGroup(rows=(row, row), size=2, conflicting=True),)}
        ),
        "memorization": Memorization(
            what="texts", trained=about(0.2), held_out=about(0.1), difference=about(0.1), auc=0.7, same_data=True
        ),
        "neighbors": StoreNeighbors(
            names=(word, "b"),
            matrix=((1.0, -0.2), (-0.2, 1.0)),
            starts=(
                StartCandidate(
                    place=word, average_tokens=0.5, same_start=None, loss=about(0.4), options=("--init", word)
                ),
            ),
            own_loss=about(0.2),
        ),
        "training": {"template": word, "init": word, "learning_rate": 0.1},
        "notes": (word,),
        "created": "2026-11-25T16:00:00Z",
    }  # fmt: skip
    made = inspection(**fields)
    return made.model_copy(update={"findings": tuple(judge_inspection(made))})


def test_every_part_is_there() -> None:
    read = Page(render_page(make_inspection_document(full())))
    assert [one["id"] for one in read.all("section")] == list(PARTS)
    assert len(read.all("figure")) == 8
    for finding in full().findings:
        assert finding.title in read.text
        assert all(advice in read.text for advice in finding.advice)


def test_what_is_not_there_leaves_no_hole() -> None:
    bare = inspection(tokens=(), answers=None, fit=None, vocabulary=None)
    assert [section.name for section in make_inspection_document(bare).sections] == ["recommendation", "measured"]
    assert "Nothing that was looked at seems wrong." in Page(render_page(make_inspection_document(bare))).text
    assert "Nothing that was looked at seems wrong." in told_lines(make_inspection_document(bare))


def test_drawings_are_sound_at_both_widths() -> None:
    figures = [
        block
        for section in make_inspection_document(full()).sections
        for block in section.blocks
        if block.kind == "figure"
    ]
    assert len(figures) == 8
    for figure in figures:
        for width in (700, 330):
            drawn = fromstring(tostring(figure.draw(width)))
            assert "nan" not in tostring(drawn, encoding="unicode")


def test_hostile_text_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    read = Page(render_page(make_inspection_document(full(HOSTILE))))
    assert len(read.all("script")) == 1
    assert read.all("img") == []
    assert "javascript:d" in read.text
    print_result({}, make_inspection_document(full(HOSTILE)), as_json=False)
    assert not {"\x1b", "\u202e"} & set(capsys.readouterr().out)
    assert "<script>" not in render_markdown(make_inspection_document(full(HOSTILE)))


def test_many_tokens_and_classes() -> None:
    many = full(tokens=120)
    classes = tuple((f"c{i}", f"c{j}", 1 + i) for i in range(14) for j in range(2))
    assert many.answers is not None
    many = many.model_copy(update={"answers": many.answers.model_copy(update={"confusion": classes})})
    text = Page(render_page(make_inspection_document(many))).text
    assert "Shown are the 40 of 120 with the largest effect." in text
    assert "Most frequent confusions" in text
    assert "and 96 more" in told_lines(make_inspection_document(many))


def test_is_written_whole(tmp_path: Path) -> None:
    write_page(make_inspection_document(full()), tmp_path / "a" / "b.html", "--html")
    assert (tmp_path / "a" / "b.html").read_text() == render_page(make_inspection_document(full()))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375), ("light", 320)])
def test_in_a_browser(tmp_path: Path, scheme: str, width: int) -> None:
    from helpers.browser import quiet_page  # skips where there is no Playwright

    write_page(make_inspection_document(full("unbroken" * 30)), tmp_path / "page.html", "--html")
    with quiet_page(tmp_path / "page.html", scheme, width) as opened:
        assert opened.page.locator("figure svg:visible").count() == 8
