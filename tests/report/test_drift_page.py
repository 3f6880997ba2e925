"""The page of monitoring: every part, hostile text as text; in a browser light, dark and on a phone."""

import html
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import fromstring, tostring

import pytest
from helpers.html_page import HOSTILE, Page
from helpers.planted_inspections import full_inspection
from helpers.planted_traffic import World, profile, sample, samples
from helpers.told import told_lines

from softprompt.analysis.drift.drift_records import DriftReport
from softprompt.analysis.drift.monitor import UnadjustedDrift, adjust_and_judge
from softprompt.analysis.drift.signals import LEAST, LEAST_TRAINED, SIGNIFICANCE, compare_signals
from softprompt.cli.printing import print_result
from softprompt.report.pages.drift_page import make_drift_document
from softprompt.report.pages.inspection_page import make_inspection_document
from softprompt.report.render.document import Code, Document, Figure, Section
from softprompt.report.render.html import render_html
from softprompt.report.render.markdown import render_markdown
from softprompt.report.report_files import write_page
from softprompt.store.input_profile import InputProfile


def full(word: str = "word", labels: int = 2) -> DriftReport:
    """Three prompts: one that drifts in everything, one that does not, one with too few samples."""
    world = World(0)
    known = profile(world)
    assert known.hidden is not None
    names = {f"{word} {index}": 10 + index for index in range(labels)}
    odd = samples(world.draw(300, longer=2.0, odd=0.5, unsure=0.9))
    answers = list(names)[:1] * 300
    odd = [
        one.model_copy(update={"text": f"{word} {i}", "answer": answer, "error": word if i < 3 else ""})
        for i, (one, answer) in enumerate(zip(odd, answers, strict=True))
    ]
    far = dict(enumerate(known.hidden.distances_of(world.states(300, 3.0)).tolist()))
    same, few = samples(world.draw(300)), [sample(number=9, text=None)]
    measured = [
        UnadjustedDrift(
            f"{word}@1", "classification", word, odd, compare_signals(_relabelled(known, names), odd, far), (word,)
        ),
        UnadjustedDrift("same@1", "classification", "saved with it", same, compare_signals(known, same, {}), ()),
        UnadjustedDrift("few@2", "classification", "saved with it", few, compare_signals(known, few, {}), ()),
    ]
    return DriftReport(
        samples=f"/somewhere/{word[:40].replace('/', '')}.db",
        since="2026-11-20 10:00:00",
        read=601,
        damaged=4,
        left_out=7,
        least=LEAST,
        least_trained=LEAST_TRAINED,
        significance=SIGNIFICANCE,
        prompts=tuple(adjust_and_judge(measured)),
        notes=(word,),
        created="2026-11-25T16:00:00Z",
    )


def _relabelled(known: InputProfile, names: dict[str, int]) -> InputProfile:
    return known.model_copy(update={"labels": {name: 10 * count for name, count in names.items()}})


def figures(found: DriftReport) -> list[Figure]:
    blocks = [block for section in make_drift_document(found).sections for block in section.blocks]
    return [block for block in blocks if isinstance(block, Figure)]


def test_every_part_is_there() -> None:
    found = full()
    read = Page(render_html(make_drift_document(found)))
    parts = ["recommendation", "prompt-1", "prompt-2", "prompt-3", "measured"]
    assert [one["id"] for one in read.all("section")] == parts
    assert [one.verdict for one in found.prompts] == ["drift", "none", "too few"]
    assert len(found.prompts[0].findings) == 5
    for finding in found.prompts[0].findings:
        assert finding.title in read.text
        assert all(advice in read.text for advice in finding.advice)
    assert "word@1: live texts are not as those that the prompt was measured on." in read.text
    assert len(read.all("figure")) == len(figures(found)) == 9


def test_the_terminal_says_the_same() -> None:
    found = full()
    lines = told_lines(make_drift_document(found))
    assert lines[1].startswith("601 samples in /somewhere/word.db since 2026-11-20 10:00:00")
    assert "- 4 rows of the file are no samples" in lines
    assert "- 7 older samples were not read" in lines
    assert "- Ended in an error: word 3." in lines
    assert lines[lines.index("== few@2") + 1].startswith("Too few samples to tell: 1 samples")
    for finding in found.prompts[0].findings:
        assert f"Seen: {finding.evidence}." in lines
        assert f"Means: {finding.meaning}" in lines
        assert {f"- {advice}" for advice in finding.advice} <= set(lines)


def test_nothing_to_compare() -> None:
    none = full().model_copy(update={"prompts": ()})
    assert "There is nothing to compare." in Page(render_html(make_drift_document(none))).text
    quiet = full().model_copy(update={"prompts": full().prompts[1:2]})
    assert "No drift was seen." in Page(render_html(make_drift_document(quiet))).text
    few = full().model_copy(update={"prompts": full().prompts[2:]})
    assert "Too few samples to tell: each prompt needs 100." in Page(render_html(make_drift_document(few))).text


def test_drawings_are_sound_at_both_widths() -> None:
    for figure in figures(full(labels=30)):
        for width in (700, 330):
            drawn = tostring(fromstring(tostring(figure.draw(width))), encoding="unicode")
            assert "nan" not in drawn
            assert "soft prompt" not in drawn


def test_of_many_labels_those_that_moved_most() -> None:
    text = Page(render_html(make_drift_document(full(labels=30)))).text
    assert "Shown are the 20 of 30 that moved most." in text


def test_hostile_text_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    read = Page(render_html(make_drift_document(full(HOSTILE))))
    assert len(read.all("script")) == 1
    assert read.all("img") == []
    assert "javascript:d" in read.text
    print_result({}, make_drift_document(full(HOSTILE)), as_json=False)
    assert not {"\x1b", "\u202e"} & set(capsys.readouterr().out)
    assert "<script>" not in render_markdown(make_drift_document(full(HOSTILE)))


def test_is_written_whole(tmp_path: Path) -> None:
    found = full()
    write_page(make_drift_document(found), tmp_path / "a" / "b.html")
    assert (tmp_path / "a" / "b.html").read_text() == render_html(make_drift_document(found))


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 375), ("light", 320)])
def test_in_a_browser(tmp_path: Path, scheme: str, width: int) -> None:
    from helpers.browser import quiet_page  # skips where there is no Playwright

    write_page(make_drift_document(full("unbroken" * 20, labels=30)), tmp_path / "page.html")
    with quiet_page(tmp_path / "page.html", scheme, width) as opened:
        assert opened.page.locator("figure svg:visible").count() == 9
        assert opened.page.locator("figure table:visible").count() == 9


@pytest.mark.parametrize("form", [render_html, render_markdown])
def test_long_texts_are_cut_and_their_length_told(form: Callable[[Document], str]) -> None:
    long = "wörd " * 12_000
    for made, usual in (
        (make_drift_document(full(long)), make_drift_document(full())),
        (make_inspection_document(full_inspection(long)), make_inspection_document(full_inspection())),
    ):
        written = form(made)
        # in every place that shows any of it
        runs = [len(run) for run in re.findall("(?:wörd ?)+", written)]
        assert max(runs) <= 2000
        assert len(written) < 20 * len(form(usual))
        # 60,000 characters of the text, and two of the number behind it
        assert re.search(r"… ?\(60,00\d characters\)", written)
    code = "softprompt compare " + "--template x " * 1000
    assert code in html.unescape(form(Document("c", "t", (), (Section("s", "t", (Code(code),)),))))
