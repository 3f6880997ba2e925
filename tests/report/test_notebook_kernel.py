"""A notebook that a kernel runs, warnings being errors and no widgets there: what its cells show, and in a browser."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CELLS = (
    'import warnings\nwarnings.simplefilter("error")\n'
    "import softprompt as sp\nfrom helpers.small_tasks import FAST, reviews_task\n"
    'from helpers.tiny_models import tiny_base\nbase, task = tiny_base("llama"), reviews_task()',
    "task",
    "prompt = sp.fit(base, task, **FAST)",
    "prompt",
    "prompt.history",
    "evaluation = sp.evaluate(base, task.test, prompt)\nevaluation",
    "evaluation.to_pandas()",
    'answers = sp.Predictor.of_prompt(base, prompt).predict(["the film is fine", "the film is dull"])\nanswers',
    "answers.to_pandas()",
    "quiet = sp.fit(base, task, progress=False, **FAST)",
)


@pytest.fixture(scope="module")
def notebook() -> Any:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    nbclient.NotebookClient(made, timeout=300, kernel_name="python3").execute(env={**os.environ, "PYTHONPATH": path})
    return made


def shown_by(notebook: Any, cell: str) -> list[dict[str, str]]:
    """What a cell shows, by kind; what packages that are imported say on standard error left out."""
    (found,) = [one for one in notebook.cells if one.source == cell]
    return [dict(one.data) for one in found.outputs if "data" in one]


def test_cells_show_documents(notebook: Any) -> None:
    for cell, words in {
        "task": "The first example, as the model reads it",
        "prompt": "4 virtual tokens",
        "prompt.history": "Validation loss at each evaluation",
        CELLS[5]: "95% interval",
        CELLS[7]: "Probability",
    }.items():
        (shown,) = shown_by(notebook, cell)
        assert words in shown["text/html"], cell
        assert 1 <= len(shown["text/plain"].splitlines()) <= 3, cell
    for cell in ("evaluation.to_pandas()", "answers.to_pandas()"):
        (shown,) = shown_by(notebook, cell)
        assert 'class="dataframe"' in shown["text/html"]


def test_a_run_is_one_output(notebook: Any) -> None:
    (shown,) = shown_by(notebook, "prompt = sp.fit(base, task, **FAST)")
    assert "step 12/12" in shown["text/plain"]
    assert '<progress value="12" max="12">' in shown["text/html"]
    assert "application/vnd.jupyter.widget-view+json" not in shown
    assert notebook.cells[-1].outputs == []


def test_nothing_is_said_beside_it(notebook: Any) -> None:
    said = [one for cell in notebook.cells[1:] for one in cell.outputs if one.output_type in ("stream", "error")]
    assert said == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_its_page_keeps_to_its_width(notebook: Any, theme: str, tmp_path: Path) -> None:
    exporters = pytest.importorskip("nbconvert").exporters
    browser = pytest.importorskip("helpers.browser")
    if browser.CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    page, _ = exporters.HTMLExporter(theme=theme, require_js_url="", mathjax_url="").from_notebook_node(notebook)
    (tmp_path / "notebook.html").write_text(page, encoding="utf-8")
    with browser.chromium() as started:
        opened = browser.Opened(started, (tmp_path / "notebook.html").as_uri(), viewport={"width": 900, "height": 700})
        assert opened.width() == 900
        assert opened.page.locator(".softprompt").count() == 5
        ink = opened.colour(".softprompt pre", "color")
        assert ink == opened.colour(".softprompt", "color")
        assert (int(re.findall(r"\d+", ink)[0]) > 200) == (theme == "dark")
