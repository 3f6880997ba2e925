"""Commands, Python lines and file names in README, CONTRIBUTING and docs are those of the code."""

import ast
import re
import shlex
from importlib import import_module
from pathlib import Path

import click
import pytest

import softprompt as sp
from softprompt.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def blocks(page: Path, *kinds: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```(?:{'|'.join(kinds)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@every_page
def test_commands_have_their_options(page: Path) -> None:
    for block in blocks(page, "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            if not line.startswith("softprompt ") or line.startswith("softprompt VERB"):
                continue
            words = shlex.split(line, comments=True)
            command: click.Command = cli
            while isinstance(command, click.Group):
                words = words[1:]
                assert words, line
                if words[0] == "COMMAND":
                    break
                assert words[0] in command.commands, f"{line}: there is no verb '{words[0]}'"
                command = command.commands[words[0]]
            known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help"}
            for word in words[1:]:
                if word in ("|", ">", "<", "&", ">>"):
                    break
                option = word.partition("=")[0]
                assert not option.startswith("--") or option in known, f"{line}: there is no option '{option}'"


@every_page
def test_python_names_are_there(page: Path) -> None:
    if page.parent.name == "reference":
        return  # signatures, compared with the code elsewhere
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "softprompt":
                module = import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sp":
                assert hasattr(sp, node.attr), f"softprompt has no {node.attr}"


@every_page
def test_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:softprompt|tests|bench|docs|tests_engines|tests_soak)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"there is no {path}"
