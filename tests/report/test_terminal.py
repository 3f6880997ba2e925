from dataclasses import replace
from unicodedata import bidirectional, category

import pytest
from helpers.told import told_lines
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from softprompt.report.render.document import (
    Answer,
    Block,
    Cell,
    Code,
    Column,
    Document,
    Example,
    Examples,
    Fact,
    Fold,
    Points,
    Section,
    Statement,
    Table,
    Text,
)
from softprompt.report.render.html import render_html
from softprompt.report.render.markdown import render_markdown
from softprompt.report.render.terminal import render_terminal


def document(*blocks: Block, page_only: bool = False) -> Document:
    section = Section("part", "The part", blocks, page_only)
    return Document("Kind", "Title", ("one fact",), (section,), closing=("saved in p",))


def table(*rows: tuple[object, ...]) -> Table:
    return Table.of("Scores", ("Method", "Accuracy", "Seeds"), rows, "The note.")


TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
ROWS = (("lora", Cell("0.912", "[0.900, 0.924]"), "3"), ("zero-shot", Cell("\N{MINUS SIGN}0.4"), "\N{EN DASH}"))


def test_a_row_of_a_log_is_a_line() -> None:
    one = document(table(*ROWS))
    lines = told_lines(replace(one, sections=(*one.sections, Section("other", "Another", (Text("x"),)))))
    assert [lines[:5], lines[9:]] == [
        ["Title", "one fact", "", "== The part", "Scores"],
        ["The note.", "", "== Another", "x", "", "saved in p"],
    ]
    assert [line.split() for line in (lines[5], *lines[7:9])] == [
        ["Method", "Accuracy", "Seeds"],
        ["lora", "0.912", "[0.900,", "0.924]", "3"],
        ["zero-shot", "-0.4", "-"],
    ]
    assert len({len(line) for line in (lines[5], *lines[7:9])}) == 1  # numbers end below each other


def test_a_single_part_needs_no_heading() -> None:
    assert "The part" not in render_terminal(document(Text("x")))
    assert "The part" not in render_markdown(document(Text("x")))
    assert '<h2 id="part-title" class="unseen">' in render_html(document(Text("x")))


def test_a_ranked_table_shows_its_largest_values_first() -> None:
    rows = [(f"token {n}", Cell(f"{n}", value=float(-n if n % 2 else n))) for n in range(100)]
    ranked = Table.of("", ("Token", "Effect"), rows, ranked_by=1)
    assert [line.split()[1] for line in told_lines(document(ranked))[5:8]] == ["99", "98", "97"]
    assert render_html(document(ranked)).index("token 0") < render_html(document(ranked)).index("token 99")


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_nothing_is_lost_however_narrow(width: int) -> None:
    wide = Table.of("", [f"column {n}" for n in range(8)], [[f"cell{n}"[:12] for n in range(8)]])
    text = render_terminal(document(wide, Text("word " * 40), table(*ROWS)), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    for told in (*(f"cell{n}" for n in range(8)), "0.912", "[0.900,", "0.924]", "zero-shot", "note."):
        assert told in text


def test_blocks() -> None:
    answers = (Answer("yes", True, ("a", "b")), Answer("", False, ("c",)))
    lines = told_lines(
        document(
            Statement("Use it.", (Fact("Accuracy", "0.9", "[0.8, 1.0]"),), ("a reason",)),
            Points(("a point",)),
            Code("softprompt train\nsoftprompt eval"),
            Fold("Opened", (Text("inside"),)),
            Fold("Not opened", (Text("left out"),), page_only=True),
            Examples((Example(0, "long " * 100, "yes", answers),)),
        )
    )
    for line in (
        "Use it.",
        "Accuracy: 0.9 [0.8, 1.0]",
        "- a reason",
        "- a point",
        "  softprompt eval",
        "Opened",
        "inside",
    ):
        assert line in lines
    assert "Not opened" not in lines
    (example,) = [line for line in lines if line.startswith("long long")]
    assert example.endswith("right: yes (a, b); wrong: (empty) (c)")
    assert len(example) < 200


def test_of_long_tables_the_first_rows() -> None:
    lines = told_lines(document(Table.of("", ("n", "n"), ((n, n) for n in range(100)))))
    assert "and 76 more" in lines
    assert lines[-4].split() == ["23", "23"]


def test_what_is_for_pages_only_is_left_out() -> None:
    assert "The part" not in render_terminal(document(Text("x"), page_only=True))


def test_style_is_asked_for() -> None:
    assert "\x1b[1m" in render_terminal(document(Text("x")), 80, styled=True)
    assert "\x1b" not in render_terminal(document(Text("x")), 80)


@given(st.text(max_size=60))
def test_no_text_is_obeyed(text: str) -> None:
    columns = (Column(text), Column("Data", False, data=True))
    blocks = (Text(text), Table.of(text, columns, [(text, text)], text), Points((text, "[bold]x[/bold] :smile:")))
    for width in (None, 30):
        told = render_terminal(document(*blocks), width)
        assert not any(category(letter) == "Cc" or bidirectional(letter) in TURNS for letter in told.replace("\n", ""))
        assert ":smile:" in told
