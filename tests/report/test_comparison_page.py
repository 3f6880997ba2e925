"""What a report says: every measured number, an honest dash for the others, hostile text as text, in three forms."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from helpers.html_page import HOSTILE, Page
from helpers.planted_study import LABELS, METHODS, bare_study, planted_study
from markdown_it import MarkdownIt

from softprompt.errors import OutputError
from softprompt.experiments.comparison.study_records import Forgetting, Recommendation, Result, Row, Study
from softprompt.report.pages import comparison_answers, comparison_figures, comparison_tables
from softprompt.report.pages.comparison_page import make_comparison_document
from softprompt.report.render.html import render_html
from softprompt.report.render.markdown import escape_markdown, render_markdown
from softprompt.report.report_files import write_report


@pytest.fixture(scope="module")
def study() -> Study:
    return planted_study(n=120)


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return render_html(make_comparison_document(study))


@pytest.fixture(scope="module")
def read(html: str) -> Page:
    return Page(html)


def rendered(text: str) -> Page:
    return Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


class TestFiles:
    def test_are_the_page_its_markdown_and_all_the_numbers(self, study: Study, tmp_path: Path) -> None:
        written = write_report(study, tmp_path / "new" / "report")
        assert sorted(path.name for path in written) == ["report.html", "report.json", "report.md"]
        assert sorted((tmp_path / "new" / "report").iterdir()) == sorted(written)
        assert Study.model_validate_json((tmp_path / "new/report/report.json").read_bytes()) == study

    def test_take_the_place_of_older_ones(self, study: Study, tmp_path: Path) -> None:
        write_report(bare_study(), tmp_path)
        write_report(study, tmp_path)
        assert json.loads((tmp_path / "report.json").read_text())["title"] == study.title
        assert study.title in (tmp_path / "report.md").read_text()

    def test_figures_are_svg_that_the_markdown_shows(self, study: Study, tmp_path: Path) -> None:
        written = write_report(study, tmp_path, figures=True)
        drawn = [path for path in written if path.suffix == ".svg"]
        assert len(drawn) == 6
        shown = {image["src"] for image in rendered((tmp_path / "report.md").read_text()).all("img")}
        assert shown == {str(path.relative_to(tmp_path)) for path in drawn}
        for path in drawn:
            svg = fromstring(path.read_text())
            assert svg.tag == "{http://www.w3.org/2000/svg}svg"
            assert "prefers-color-scheme: dark" in path.read_text()
            assert svg.find("{*}title") is not None

    def test_a_place_that_cannot_be_written_is_said(self, study: Study, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write '.*report.json'"):
            write_report(study, tmp_path / "file")

    def test_need_no_torch(self) -> None:
        code = "import sys, softprompt.report.report_files; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


class TestPage:
    def test_recommendation_comes_first_with_its_numbers(self, study: Study, read: Page) -> None:
        text = read.text.partition("How it was measured")[2]  # behind the links to the sections
        assert text.index("Recommendation") < text.index(study.recommendation.sentence) < text.index("The methods")
        for reason in study.recommendation.reasons:
            assert reason in text
        assert study.recommendation.rule in text

    def test_holds_what_was_measured(self, read: Page) -> None:
        for number in ("12,800", "52.7 kB", "370 kB", "6 min 42 s", "59.1", "0.021", "24.1 → 38.8", "536 GB", "1.85"):
            assert number in read.text

    def test_needs_nothing_from_elsewhere(self, html: str, read: Page) -> None:
        addresses = [value for _, given in read.elements for name, value in given.items() if name in ("src", "href")]
        assert addresses
        assert all(address is not None and address.startswith(("#", "data:")) for address in addresses)
        assert "@import" not in html
        assert "url(" not in html

    def test_headings_go_down_one_level_at_a_time(self, read: Page) -> None:
        levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))

    def test_has_landmarks_scopes_and_told_figures(self, read: Page) -> None:
        for landmark in ("header", "nav", "main", "footer"):
            assert len(read.all(landmark)) == 1
        assert read.all("th")
        assert all(head.get("scope") in ("row", "col") for head in read.all("th"))
        identities = [given["id"] for _, given in read.elements if "id" in given]
        assert len(identities) == len(set(identities))
        for svg in read.all("svg"):
            assert svg["role"] == "img"
            assert set((svg["aria-labelledby"] or "").split()) <= set(identities)
        for link in read.all("a"):
            assert (link["href"] or "")[1:] in identities

    def test_every_figure_has_its_numbers_as_a_table(self, html: str) -> None:
        found = re.findall(r"<figure.*?</figure>", html, re.DOTALL)
        assert len(found) == 6
        assert all(re.search(r"<details>.*<table.*</table>.*</details>", figure, re.DOTALL) for figure in found)

    def test_only_its_own_script_may_run(self, read: Page) -> None:
        policy = next(meta["content"] for meta in read.all("meta") if meta.get("http-equiv"))
        assert policy is not None
        assert policy.startswith("default-src 'none'")
        assert re.search(r"script-src 'sha256-[\w+/]+='", policy)


class TestWithoutNumbers:
    def test_nothing_measured_still_makes_a_report(self) -> None:
        text = Page(render_html(make_comparison_document(bare_study()))).text
        assert "Not enough data to tell." in text
        assert "the loss is not a number" in text
        assert "zero-shot" in text
        assert "None" not in text
        assert "nan" not in text.lower().split()

    def test_each_absence_alone_is_a_dash_or_a_column_less(self, study: Study) -> None:
        absent = ("deviation", "low", "against_best", "against_current", "cost", "speed", "forgetting", "shift")
        for name in (*absent, "calibration_error"):
            one = study.rows[5].model_copy(update={name: None})
            for rows in ((one,), (*study.rows[:5], one)):
                changed = study.model_copy(update={"rows": rows})
                assert "None" not in Page(render_html(make_comparison_document(changed))).text
                assert "None" not in render_markdown(make_comparison_document(changed))

    def test_what_was_not_measured_for_any_method_is_left_out_and_named(self, study: Study) -> None:
        rows = tuple(row.model_copy(update={"shift": None}) for row in study.rows)
        table = comparison_tables.tabulate_quality(study.model_copy(update={"rows": rows}))
        assert "Other domain" not in [column.name for column in table.columns]
        assert table.note.endswith("Not measured or not asked for: Other domain.")

    def test_one_method_one_seed_one_example(self) -> None:
        alone = planted_study(n=1, seeds=1, methods=METHODS[5:6], current=None, price_per_hour=None)
        assert alone.title in render_html(make_comparison_document(alone))

    def test_numbers_that_are_none_are_said(self, study: Study) -> None:
        wild = study.rows[0].model_copy(
            update={"mean": float("nan"), "forgetting": Forgetting(before=0, after=float("inf"), tokens=1)}
        )
        text = Page(
            render_html(make_comparison_document(study.model_copy(update={"rows": (wild, *study.rows[1:])})))
        ).text
        assert "not a number" in text
        assert "0 → ∞" in text

    def test_failed_runs_are_named_with_their_reason(self, study: Study, read: Page) -> None:
        assert "out of memory: 9.1 GB asked for, 7.9 GB free" in read.text
        assert "1 failed" in read.text

    def test_a_method_that_failed_on_every_seed_is_last(self, study: Study) -> None:
        nothing = {"mean": None, "deviation": None, "low": None, "high": None}
        failed = Row(method="broken", family="adapter", seeds=(), failed=3, error="why", **nothing)
        table = comparison_tables.tabulate_quality(study.model_copy(update={"rows": (failed, *study.rows)}))
        assert [cell.text for cell in table.rows[-1][:2]] == ["broken", "failed"]

    def test_study_without_an_answer_says_so(self) -> None:
        open_study = planted_study(n=60, deploy=None)
        text = Page(render_html(make_comparison_document(open_study))).text
        assert "Not enough data to tell" in text
        assert "Level with the best, best first: lora, prompt-tuning" in text


@pytest.fixture(scope="module")
def hostile() -> Study:
    labels = ("good", HOSTILE)
    study = planted_study(n=40, labels=labels, methods=METHODS[:3])
    result = Result(method=HOSTILE, family="written", seed=0, status="ok", predictions=(HOSTILE,) * 40,
                    settings={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE})  # fmt: skip
    failed = result.model_copy(update={"status": "failed", "error": HOSTILE})
    return study.model_copy(
        update={
            **dict.fromkeys(("title", "base", "data", "machine", "created"), HOSTILE),
            "texts": (HOSTILE,) * 40,
            "notes": (HOSTILE,),
            "settings": {HOSTILE: HOSTILE, "command": HOSTILE},
            "current": HOSTILE,
            "rows": (study.rows[0].model_copy(update={"method": HOSTILE}), *study.rows[1:]),
            "results": (*study.results, result, failed),
            "recommendation": Recommendation(
                deploy=HOSTILE, rule=HOSTILE, sentence=HOSTILE, reasons=(HOSTILE,), candidates=(HOSTILE, HOSTILE)
            ),
        }
    )


class TestHostileText:
    def test_stays_text_on_the_page(self, hostile: Study) -> None:
        read = Page(render_html(make_comparison_document(hostile)))
        assert len(read.all("script")) == len(read.all("style")) == 1
        assert read.all("img") == []
        assert not any(name.startswith("on") for _, given in read.elements for name in given)
        assert read.text.count("<script>alert(1)</script>") > 20
        assert not {"\x1b", "\u202e"} & set(read.text)

    def test_stays_text_in_markdown(self, hostile: Study, tmp_path: Path) -> None:
        text = render_markdown(make_comparison_document(hostile), figures=True)
        read = rendered(text)
        assert {tag for tag, _ in read.elements} <= {
            *("h1", "h2", "h3", "p", "ul", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "br", "img"),
            *("pre", "code", "details", "summary"),
        }
        assert all((image["src"] or "").startswith("figures/") for image in read.all("img"))
        assert len(read.all("code")) == 1
        assert read.text.count("<script>alert(1)</script>") > 20

    def test_stays_text_in_figures(self, hostile: Study, tmp_path: Path) -> None:
        drawn = [path for path in write_report(hostile, tmp_path, figures=True) if path.suffix == ".svg"]
        assert drawn
        for path in drawn:
            assert {element.tag.partition("}")[2] for element in fromstring(path.read_text()).iter()} <= {
                *("svg", "title", "desc", "style", "rect", "g", "text", "line", "path", "circle", "polygon", "polyline")
            }

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "a|b",
                "_a_ *b*",
                "# a",
                "- a",
                "+ a",
                "1. a",
                "<b>",
                "a\n\n    b",
                "[a](b)",
                "~~a~~",
                "$x$",
                "\\",
                "&lt;",
            ),
            *("![a](b)", "`a`", "snake_case", "> a", "| a |", "***", "---", "===", "\\|", "a\\|b"),
        ],
    )
    def test_markdown_means_itself(self, text: str) -> None:
        assert rendered(escape_markdown(text)).text.strip() == " ".join(text.split())
        cell = rendered(f"| x |\n| --- |\n| {escape_markdown(text)} |")
        assert len(cell.all("td")) == 1
        assert cell.text.split("x", 1)[1].strip().endswith(" ".join(text.split()))


class TestFront:
    @pytest.mark.parametrize(
        ("points", "front"),
        [
            ([], set()),
            ([(1, 1)], {0}),
            ([(1, 0.5), (2, 0.9), (3, 0.8)], {0, 1}),
            ([(1, 0.5), (1, 0.6)], {1}),
            ([(1, 0.5), (2, 0.5)], {0}),
            ([(1, 0.5), (1, 0.5)], {0, 1}),
            ([(0, 0.1), (10, 0.9), (5, 0.9), (7, 0.95)], {0, 2, 3}),
        ],
    )
    def test_is_what_nothing_beats(self, points: list[tuple[float, float]], front: set[int]) -> None:
        assert comparison_figures.find_pareto_front(points) == front

    def test_of_the_study_is_on_the_figure(self, study: Study) -> None:
        figure = comparison_figures.plot_stored(study)
        assert figure is not None
        on_front = {row[0].text for row in figure.table.rows if row[-1].text == "yes"}
        assert {"zero-shot", "few-shot:8", "linear-probe", "prompt-tuning"} <= on_front
        assert not {"few-shot-nearest:8", "tfidf", "prefix-tuning"} & on_front
        assert all(name in figure.description for name in on_front)


def answered(gold: str, **predictions: str) -> Study:
    """One letter for each example; a method's seeds are ``name_0``, ``name_1``."""
    results = tuple(
        Result(method=name.partition("_")[0], family="written", seed=int(name.partition("_")[2] or 0), status="ok",
               predictions=tuple(given))
        for name, given in predictions.items()
    )  # fmt: skip
    rows = tuple(
        Row(
            method=name, family="written", seeds=(0,), failed=0, error=None, mean=0.5, deviation=None, low=0.4, high=0.6
        )
        for name in dict.fromkeys(result.method for result in results)
    )
    changes = {"kind": "classification", "metric": "accuracy", "labels": tuple(sorted(set(gold))), "gold": tuple(gold),
               "texts": tuple(f"text {i}" for i in range(len(gold))), "rows": rows, "results": results}  # fmt: skip
    return bare_study(**changes)


class TestAnswers:
    def test_a_method_answers_as_most_of_its_seeds(self) -> None:
        study = answered("aab", m_0="aba", m_1="abb", m_2="bba", other="aab")
        assert comparison_answers.vote_by_method(study) == {"m": ("a", "b", "a"), "other": ("a", "a", "b")}

    def test_the_most_even_split_comes_first(self) -> None:
        study = answered("aaaa", p="abba", q="aaba", r="aaba", s="aaaa")
        found, count = comparison_answers.find_disagreements(study, comparison_answers.vote_by_method(study), 10)
        assert [example.number for example in found] == [1, 2]
        assert count == 2
        study = answered("aaaa", p="abba", q="aaba", r="aaaa", s="aaaa")
        found, _ = comparison_answers.find_disagreements(study, comparison_answers.vote_by_method(study), 10)
        assert [example.number for example in found] == [2, 1]
        assert [(one.text, one.right, one.methods) for one in found[0].answers] == [
            ("a", True, ("r", "s")),
            ("b", False, ("p", "q")),
        ]

    def test_among_equal_splits_the_method_to_deploy_against_the_one_in_use_comes_first(self) -> None:
        study = answered("aa", p="ba", q="ba", r="ab", s="ab").model_copy(
            update={"current": "s", "recommendation": Recommendation(deploy="r", rule="", sentence="", reasons=())}
        )
        assert (
            comparison_answers.find_disagreements(study, comparison_answers.vote_by_method(study), 1)[0][0].number == 0
        )
        swapped = study.model_copy(update={"current": "p"})
        assert [
            one.number
            for one in comparison_answers.find_disagreements(swapped, comparison_answers.vote_by_method(swapped), 2)[0]
        ] == [0, 1]

    def test_agreement_against_the_gold_label_is_found(self) -> None:
        study = answered("abc", p="aba", q="aca")
        found, count = comparison_answers.find_shared_errors(study, comparison_answers.vote_by_method(study), 5)
        assert (count, found[0].number) == (1, 2)

    def test_fixed_and_broken_are_counted(self) -> None:
        study = answered("aaab", new="aabb", old="abaa")
        assert comparison_answers.count_changes(study, comparison_answers.vote_by_method(study), "new", "old") == (2, 1)

    def test_confusion_counts_over_seeds_and_keeps_unknown_answers(self) -> None:
        study = answered("ab", m_0="ax", m_1="ab")
        assert comparison_answers.count_confusion(study, "m") == (
            ("a", "b", "x"),
            {("a", "a"): 2, ("b", "x"): 1, ("b", "b"): 1},
        )

    def test_texts_that_are_not_right_or_wrong_are_not_marked(self) -> None:
        study = answered("ab", p="aa", q="bb").model_copy(update={"kind": "generation", "metric": "bleu"})
        text = Page(render_html(make_comparison_document(study))).text
        assert "✗" not in text
        assert "most different answers" in text


class TestManyClasses:
    def test_confusions_of_many_classes_are_a_list(self) -> None:
        study = planted_study(n=200, labels=[f"class {i}" for i in range(30)], methods=METHODS[:3])
        table = comparison_tables.tabulate_matrix(study, "zero-shot")
        assert [column.name for column in table.columns] == ["Gold label", "Answer", "Times", "Of the class"]
        counts = [int(row[2].text) for row in table.rows]
        assert counts == sorted(counts, reverse=True)

    def test_matrix_of_few_classes_has_every_pair(self, study: Study) -> None:
        table = comparison_tables.tabulate_matrix(study, "prompt-tuning")
        assert [column.name for column in table.columns[1:]] == list(LABELS)
        assert [row[0].text for row in table.rows] == list(LABELS)


def test_the_command_that_was_typed_is_shown(study: Study) -> None:
    typed = study.model_copy(update={"settings": {"command": "softprompt compare --data 'my file'"}})
    assert "softprompt compare --data 'my file'" in Page(render_html(make_comparison_document(typed))).text
    assert "--methods zero-shot,few-shot:8" in Page(render_html(make_comparison_document(study))).text
