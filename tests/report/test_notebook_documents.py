"""What a notebook shows: HTML of every result, in which users' texts are texts and styles stay where they belong."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.html_page import HOSTILE, Page
from helpers.large_results import (
    LABELS,
    ROWS,
    large_answers,
    large_evaluation,
    large_predictions,
    large_prompt,
    large_results,
    large_summary,
    large_task,
    large_trials,
)
from helpers.planted_study import planted_study
from helpers.small_tasks import answers, reviews_task

import softprompt as sp
from softprompt.analysis.inspection.pruning import PrunedPrompt
from softprompt.experiments.sweep.sweep_folder import SweepResult
from softprompt.utils.notebook_display import Displayed

WITHOUT = {"Row", "Result", "SweepTrial", "PromptListing", "Version", "AliasChange", "PromptDifference"}
WITHOUT |= {"TrainConfig", "GenerationConfig", "Grammar", "SoftPrompt"}


def all_results(folder: Path, word: str) -> dict[str, Any]:
    found = large_results(folder / "store", word)
    found["sweep"] = SweepResult(large_summary(word), large_trials(word))
    found["history"] = found["prompt"].history
    found["small evaluation"] = large_evaluation(word, 200, 4)
    found["pruned"] = PrunedPrompt(found["prompt"], found["pruning"])
    return found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The HTML of each, with a hostile text wherever a user's stands."""
    found = all_results(tmp_path_factory.mktemp("hostile"), HOSTILE)
    return {name: one._repr_html_() for name, one in found.items() if type(one).__name__ not in WITHOUT}


def test_everything_has_one(pages: dict[str, str]) -> None:
    assert {name for name, page in pages.items() if not isinstance(page, str) or len(page) > 100_000} == set()
    found = all_kinds()
    assert {kind.__name__ for kind in found if issubclass(kind, Displayed)} | WITHOUT >= PUBLIC


def all_kinds() -> set[type]:
    """The public classes."""
    return {one for one in (getattr(sp, name) for name in sp.__all__) if isinstance(one, type)}


PUBLIC = {kind.__name__ for kind in all_kinds()} - {"SoftpromptError", "Callback"}


class TestUsersTexts:
    def test_bring_no_elements(self, pages: dict[str, str]) -> None:
        for name, page in pages.items():
            found = Page(page)
            assert found.all("script") == found.all("img") == found.all("link") == found.all("iframe") == [], name
            assert len(found.all("style")) == 1, name
            assert [key for _, attributes in found.elements for key in attributes if key.startswith("on")] == [], name

    def test_are_there_as_texts(self, pages: dict[str, str]) -> None:
        for name in ("task", "splits", "example", "prompt", "small evaluation", "comparison", "sweep", "distillation"):
            assert "<script>alert(1)</script>" in Page(pages[name]).text, name

    def test_elements_are_closed(self, pages: dict[str, str]) -> None:
        for name, page in pages.items():
            assert _unclosed(page) == [], name


class _Nesting(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("br", "hr", "meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def _unclosed(page: str) -> list[str]:
    parser = _Nesting()
    parser.feed(page)
    return parser.open + parser.wrong


class TestStyles:
    def test_all_stand_within_the_output(self, pages: dict[str, str]) -> None:
        for name, page in pages.items():
            place = Page(page).elements[0][1]["id"]
            (css,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
            head, _, rest = css.partition("{")
            assert head.strip() == f"#{place}", name
            depth = 1
            for index, letter in enumerate(rest):
                depth += {"{": 1, "}": -1}.get(letter, 0)
                if depth == 0:
                    assert rest[index + 1 :].strip() == "", name
            assert ":root" not in css
            assert "html {" not in css
            assert "body {" not in css.replace("tbody {", "")

    def test_no_id_stands_twice_on_a_page_of_two(self) -> None:
        study = planted_study()
        whole = Page(study._repr_html_() + study._repr_html_())
        ids = [one["id"] for _, one in whole.elements if "id" in one]
        assert len(ids) == len(set(ids)) > 8
        named = [name for _, one in whole.elements for name in (one.get("aria-labelledby") or "").split()]
        assert set(named) <= set(ids)

    def test_headings_are_not_those_of_the_notebook(self, pages: dict[str, str]) -> None:
        for page in pages.values():
            assert [tag for tag, _ in Page(page).elements if re.fullmatch("h[1-6]", tag)] == []


def rows_of(page: str) -> list[list[str]]:
    """The cells of all tables, by row."""
    found: list[list[str]] = []

    class Rows(HTMLParser):
        inside = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "tr":
                found.append([])
            if tag in ("td", "th"):
                found[-1].append("")
                self.inside = True

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.inside:
                found[-1][-1] += data

    Rows().feed(page)
    return [[" ".join(cell.split()) for cell in row] for row in found]


class TestTask:
    def test_counts_by_split_and_label(self) -> None:
        task = reviews_task(train=30, validation=9, test=5)
        rows = rows_of(task._repr_html_())
        assert rows[0] == ["Label", "Train", "Validation", "Test"]
        for row in rows[1:-1]:
            splits = (task.train, task.validation, task.test)
            assert row[1:] == [str(sum(one.label == row[0] for one in some)) for some in splits]
        assert rows[-1] == ["all", "30", "9", "5"]

    def test_of_many_labels_the_most_frequent_are_shown(self) -> None:
        rows = rows_of(large_task()._repr_html_())
        assert len(rows) == 1 + 12 + 2
        assert rows[-2][0] == f"{LABELS - 12} other labels"
        assert sum(int(row[1].replace(",", "")) for row in rows[1:-1]) == ROWS

    def test_an_example_stands_there_as_the_model_reads_it(self) -> None:
        task = sp.Task.classification(
            reviews_task().splits, template="Review: {{ text }}\nIs it good?", verbalizers={"good": "yes", "bad": "no"}
        )
        text = Page(task._repr_html_()).text
        assert f"Review: {task.train[0].text}\nIs it good?" in text
        assert {"good": "yes", "bad": "no"}[str(task.train[0].label)] in text

    def test_generation_shows_its_first_reference(self) -> None:
        task = sp.Task.generation(answers(), template="{{ text }} is")
        page = Page(task._repr_html_()).text
        assert f"{task.train[0].text} is" in page
        assert task.train[0].references[0] in page

    def test_is_shown_without_pytorch(self) -> None:
        code = (
            "import softprompt as sp, sys\n"
            "from softprompt.data.splits import Splits\n"
            "rows = tuple(sp.Example(f'text {n}', 'ab'[n % 2]) for n in range(9))\n"
            "assert 'text 0' in sp.Task.classification(Splits(rows, rows, rows, 'here', ()))._repr_html_()\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


class TestResults:
    def test_evaluation_has_every_metric_with_its_interval(self) -> None:
        found = large_evaluation(rows=200, labels=4)
        rows = rows_of(found._repr_html_())
        assert rows[1] == ["Accuracy", "1.000 [1.000, 1.000]", "200"]
        assert rows[2][0] == "Macro-F1"
        assert [row[0].split()[0:2] for row in rows[4:]] == [["word", str(n)] for n in range(4)]
        assert rows[4][1] == "100% 50"

    def test_prediction_ranks_labels(self) -> None:
        rows = rows_of(large_predictions(labels=3)[0]._repr_html_())
        assert rows == [["Label", "Probability"], ["word 0", "0.500"], ["word 1", "0.250"], ["word 2", "0.250"]]

    def test_predictions_stand_beside_their_texts(self) -> None:
        asked = large_answers()
        rows = rows_of(asked._repr_html_())
        assert rows[0] == ["Text", "Answer", "Probability", "Gold"]
        assert [row[1:] for row in rows[1:4]] == [
            ["word 0", "0.500", "word 0"],
            ["word 1", "0.013", "word 1"],
            rows[3][1:],
        ]
        assert len(rows) == 1 + 10 + 1 + 12
        assert rows[12:] == [[f"word {n}", "50"] for n in range(12)]

    def test_comparison_has_its_sentence_and_its_figure(self) -> None:
        study = planted_study()
        page = Page(study._repr_html_())
        assert study.recommendation.sentence in page.text
        assert len(page.all("svg")) == 2  # a wide and a narrow one
        assert all(row.method in page.text for row in study.rows)

    def test_prompt_has_its_scores_and_how_it_learned(self) -> None:
        page = Page(large_prompt()._repr_html_())
        assert "accuracy 0.875 [0.850, 0.950] n=1,000" in page.text
        assert "4096 virtual tokens of 640" in page.text
        assert len(page.all("svg")) == 2

    def test_history_marks_the_best_step(self) -> None:
        rows = rows_of(large_prompt()._repr_html_())
        assert ["700", "0.003", "0.004"] in rows
        shown = rows_of(large_prompt().history._repr_html_())
        assert ["1,000", "0.0020", "0.0030", "0.9990"] in shown

    def test_store_that_cannot_be_read_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "softprompt-store.json").write_text("{")
        assert "softprompt-store.json" in Page(sp.Store(tmp_path)._repr_html_()).text
