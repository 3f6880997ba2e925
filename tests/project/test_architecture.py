"""The rules of DESIGN.md that a program can check: who imports whom, how long files are, what is never called."""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "softprompt"
SOURCES = sorted(PACKAGE.rglob("*.py"))

ROOMS = (
    *("errors", "utils", "config", "metrics", "data", "models", "prompts", "store", "inference", "training"),
    *("export", "engines", "experiments", "serving", "analysis", "report", "cli"),
)
"""In the order data flows: each room imports from those before it. ``__init__`` and ``__main__`` stand above all."""
ENTRANCES = ("__init__", "__main__")
MOST_MODULES = 15  # in one folder
MOST_LINES = 80  # of a function

HEAVY = {"torch", "transformers", "pandas", "pyarrow", "datasets", "sacrebleu", "rouge_score", "sklearn", "peft"}
HEAVY |= {"fastapi", "uvicorn", "prometheus_client", "optuna", "ray"}
TOLD = {"echo", "secho", "echo_via_pager", "confirm", "prompt", "progressbar"}
# the Console of render/terminal.py writes into a string, which printing.py shows
WRITERS = {
    "printing": ["click.echo"] * 3,
    "console": ["click.echo"],
    "progress": ["print", "Console"],
    "terminal": ["Console"],
}
RUNS_CODE_ON_LOADING = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def room_of(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(code: str) -> Iterator[str]:
    """The rooms that ``code`` imports from, at its top or inside a function; ``.`` for a relative import."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from softprompt import data` names a room, `from softprompt import fit` a public name of __init__
            inner = [f"softprompt.{alias.name}" for alias in node.names]
            names = ["."] if node.level else inner if node.module == "softprompt" else [node.module or ""]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if name == ".":
                yield name
            elif first == "softprompt":
                room = rest.split(".")[0]
                yield room if room in ROOMS else "__init__"


def upward_imports(room: str, code: str) -> list[str]:
    if room in ENTRANCES:
        return [other for other in imported_rooms(code) if other == "."]
    allowed = (*ROOMS[: ROOMS.index(room) + 1], *(["__init__"] if room == "cli" else []))
    return [other for other in imported_rooms(code) if other not in allowed]


def functions_of(code: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def written_past(code: str) -> list[str]:
    """What ``code`` writes to a terminal by itself, and not through ``shown``."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("print", "Console", "input") or (name.split(".")[0] == "click" and name.split(".")[-1] in TOLD):
                found.append(name)
            if name in ("sys.stdout.write", "sys.stderr.write", "warnings.warn"):
                found.append(name)
    return found


def forbidden(code: str) -> list[str]:
    """What ``code`` does that can run code out of a file it loads."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            if isinstance(node.value, ast.Constant) and node.value.value is True:
                found.append("trust_remote_code=True")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in RUNS_CODE_ON_LOADING]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in RUNS_CODE_ON_LOADING:
            found.append(node.module or "")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            found.append("torch.load")
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
class TestSources:
    def test_has_a_place_in_the_order(self, source: Path) -> None:
        assert room_of(source) in (*ROOMS, *ENTRANCES), "a module belongs into one of the rooms"

    def test_imports_only_from_rooms_before_it(self, source: Path) -> None:
        assert upward_imports(room_of(source), source.read_text(encoding="utf-8")) == []

    def test_never_runs_code_out_of_a_file(self, source: Path) -> None:
        assert forbidden(source.read_text(encoding="utf-8")) == []

    def test_writes_to_the_terminal_in_one_place_only(self, source: Path) -> None:
        written = written_past(source.read_text(encoding="utf-8"))
        # rich draws the progress bar, the lines above it are shown as all others
        assert written == WRITERS.get(source.stem, [])

    def test_is_short_enough_to_read(self, source: Path) -> None:
        code = source.read_text(encoding="utf-8")
        assert len(code.splitlines()) <= 400
        assert [function.name for function in functions_of(code) if lines_of(function) > MOST_LINES] == []

    def test_verbs_import_at_the_top(self, source: Path) -> None:
        if room_of(source) == "cli":
            inside = [
                ast.unparse(node)
                for function in functions_of(source.read_text(encoding="utf-8"))
                for node in ast.walk(function)
                if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            assert inside == []


def test_no_room_is_too_full() -> None:
    modules = Counter(source.parent for source in SOURCES if source.stem not in ENTRANCES)
    assert {str(room): count for room, count in modules.items() if count > MOST_MODULES} == {}


def test_no_name_of_a_module_stands_twice() -> None:
    names = Counter(source.stem for source in SOURCES if source.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("test", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_test_file_is_short_enough_to_read(test: Path) -> None:
    assert len(test.read_text(encoding="utf-8").splitlines()) <= 500


class TestTheChecks:
    @pytest.mark.parametrize(
        "code",
        [
            "import softprompt.training.loop",
            "from softprompt.training.loop import Loop",
            "from softprompt import training",
            "from softprompt import errors, training",
            "def later():\n    from softprompt.training.loop import Loop",
            "from softprompt import fit_all",
            "from . import errors",
        ],
    )
    def test_upward_import_is_found(self, code: str) -> None:
        assert len(upward_imports("data", code)) == 1

    @pytest.mark.parametrize(
        "code",
        [
            "from softprompt.data.splits import Splits",
            "from softprompt import errors",
            "import json, softprompt.data.task",
        ],
    )
    def test_downward_import_is_allowed(self, code: str) -> None:
        assert upward_imports("data", code) == []

    @pytest.mark.parametrize(
        "code",
        [
            "load(name, trust_remote_code=True)",
            "import os, pickle",
            "from joblib import load",
            "state = torch.load(path)",
            "reader = torch.load",
        ],
    )
    def test_forbidden_call_is_found(self, code: str) -> None:
        assert len(forbidden(code)) == 1

    @pytest.mark.parametrize("code", ["load(name, trust_remote_code=asked)", "json.load(file)", "'never pickle'"])
    def test_other_calls_are_allowed(self, code: str) -> None:
        assert forbidden(code) == []


class TestImports:
    def loaded(self, code: str) -> set[str]:
        """The names in ``sys.modules`` of a fresh process after ``code``."""
        script = f"import json, sys\n{code}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=TESTS.parent)
        assert done.returncode == 0, done.stderr
        return set(json.loads(done.stdout.splitlines()[-1]))

    def test_package_is_light(self) -> None:
        assert self.loaded("import softprompt") & HEAVY == set()

    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
    def test_help_is_light(self, arguments: list[str]) -> None:
        code = (
            "from softprompt.cli.main import main\n"
            f"sys.argv = ['softprompt', *{arguments}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None), end.code"
        )
        loaded = self.loaded(code)
        assert "softprompt.cli.main" in loaded
        assert loaded & HEAVY == set()

    def test_public_names_are_sorted_and_there(self) -> None:
        import softprompt

        assert list(softprompt.__all__) == sorted(softprompt.__all__)
        for name in softprompt.__all__:
            assert getattr(softprompt, name) is not None
            assert name in dir(softprompt)
