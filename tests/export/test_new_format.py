"""A new export target takes what CONTRIBUTING says, a module and a line, and is then offered, written and read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.learned_prompts import learned
from helpers.tiny_models import save_tiny

ROOT = Path(__file__).parents[2]

MODULE = '''"""Virtual tokens as raw float32, with what they are in a JSON file and a README beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softprompt.export.export_formats import ExportRequest, ImportedState
from softprompt.export.export_readme import USAGE_FILE, describe_task, list_task_lines, read_usage
from softprompt.prompts.state import PromptState
from softprompt.utils.files import write_folder


def write(request: ExportRequest) -> dict[str, Any]:
    rows = request.prompt.state.tensor.float().cpu().numpy()
    usage = {"shape": rows.shape, "task": describe_task(request.prompt)}
    readme = [f"# {request.out.name}", "", "Raw float32, a row a virtual token.", "", *list_task_lines(request.prompt)]
    files = {"prompt.bin": rows.astype("<f4").tobytes(), USAGE_FILE: json.dumps(usage).encode()}
    write_folder(request.out, {**files, "README.md": "\\n".join(readme).encode()})
    return {"bytes": rows.nbytes}


def read(place: Path) -> ImportedState:
    rows = np.fromfile(place / "prompt.bin", "<f4").reshape(read_usage(place)["shape"])
    return ImportedState(place / "prompt.bin", lambda base: PromptState.of_embeddings(torch.from_numpy(rows)))
'''
LINE = '    "raw": ExportFormat("raw float32 and a JSON file", "raw_binary", imported=True, needs_base=False),\n'
FORMATS = "FORMATS: dict[str, ExportFormat] = {\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the two changes."""
    place = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "softprompt", place / "softprompt", ignore=shutil.ignore_patterns("__pycache__"))
    export = place / "softprompt" / "export"
    (export / "raw_binary.py").write_text(MODULE)
    registry = (export / "export_formats.py").read_text()
    assert FORMATS in registry
    (export / "export_formats.py").write_text(registry.replace(FORMATS, FORMATS + LINE))
    return place


def run(package: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "softprompt", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package), "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_offered(package: Path) -> None:
    told = run(package, "export", "--help")
    assert "raw          raw float32 and a JSON file" in told
    assert "raw|peft" in told
    assert "raw|peft" in run(package, "import", "--help")


def test_it_is_written_with_its_notes_and_read(package: Path, tmp_path: Path) -> None:
    prompt = learned("llama")
    prompt.save(tmp_path / "prompt")
    save_tiny(tmp_path / "model", "llama")
    told: dict[str, Any] = json.loads(
        run(package, "export", tmp_path / "prompt", "--format", "raw", "--out", tmp_path / "raw", "--json")
    )
    rows = prompt.state.tensor.numpy()
    assert (told["format"], told["length"], told["bytes"]) == ("raw", len(rows), rows.nbytes)
    assert (tmp_path / "raw" / "prompt.bin").read_bytes() == rows.tobytes()
    assert json.loads((tmp_path / "raw" / "softprompt.json").read_text())["shape"] == list(rows.shape)
    readme = (tmp_path / "raw" / "README.md").read_text()
    assert prompt.spec.template in readme
    assert "a row a virtual token" in readme
    there = ["--model", tmp_path / "model", "--device", "cpu", "--dtype", "float32"]
    run(package, "import", tmp_path / "raw", "--format", "raw", "--out", tmp_path / "back", *there)
    code = f"import softprompt, numpy\nprint(softprompt.load_prompt({str(tmp_path / 'back')!r}).state.tensor.tolist())"
    back = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=package)
    assert np.array_equal(np.asarray(json.loads(back.stdout), dtype=np.float32), rows)
