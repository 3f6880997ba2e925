"""What ``import softprompt`` offers: each name, written once in ``__init__.pyi``."""

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

import softprompt
from softprompt.cli.main import cli

STUB = Path(softprompt.__file__).with_suffix(".pyi")
FUNCTIONS = [
    *(
        "compare",
        "distill",
        "evaluate",
        "export_prompt",
        "fit",
        "import_prompt",
        "inspect",
        "load_model",
        "load_prompt",
    ),
    *("prune", "read_splits", "serve", "sweep"),
]
CLASSES = [
    *(
        "Callback",
        "Example",
        "FrozenLM",
        "GenerationConfig",
        "Grammar",
        "Prediction",
        "Predictions",
        "Predictor",
        "Prompt",
        "SoftPrompt",
        "SoftpromptError",
        "Store",
    ),
    *("Task", "TrainConfig"),
]


def test_members_are_these() -> None:
    assert sorted(softprompt.__all__) == sorted([*FUNCTIONS, *CLASSES])
    assert sorted(name for name in dir(softprompt) if not name.startswith("_")) == sorted([*FUNCTIONS, *CLASSES])


def test_functions_and_classes() -> None:
    assert [name for name in FUNCTIONS if isinstance(getattr(softprompt, name), type)] == []
    assert [name for name in CLASSES if not isinstance(getattr(softprompt, name), type)] == []


def test_each_has_its_name_and_words_of_its_own() -> None:
    for name in softprompt.__all__:
        member = getattr(softprompt, name)
        assert member.__name__ == name
        assert (member.__dict__ if isinstance(member, type) else {"__doc__": member.__doc__}).get("__doc__"), name


def test_unknown_name_is_no_attribute() -> None:
    assert not hasattr(softprompt, "no_such_name")


def test_each_is_written_once() -> None:
    imported = [
        (alias.name, alias.asname)
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert all(name == shown for name, shown in imported)
    assert sorted(name for name, _ in imported) == sorted(softprompt.__all__)
    code = Path(softprompt.__file__).read_text(encoding="utf-8").split('"""')[-1]
    assert [name for name, _ in imported if name in code] == []


def verbs(group: click.Group = cli) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from verbs(command)
        else:
            yield command


@pytest.mark.parametrize("command", list(verbs()), ids=lambda command: command.callback.__name__)
def test_every_verb_names_a_function_that_it_calls(command: click.Command) -> None:
    path = (command.epilog or "").removeprefix("In Python: softprompt.")
    *module, owner, name = ["", *path.split(".")]
    if owner in ("", "Store"):
        found = getattr(softprompt.Store if owner else softprompt, name)
    else:
        found = getattr(import_module(".".join(["softprompt", *module, owner]).replace("..", ".")), name)
    assert inspect.isroutine(found) or path == "Predictor"
    declared = inspect.getclosurevars(inspect.unwrap(command.callback, stop=lambda _: True)).nonlocals
    code = inspect.getsource(import_module(f"softprompt.cli.{declared['module']}"))
    used = {getattr(node, key, "") for node in ast.walk(ast.parse(code)) for key in ("attr", "id", "name")}
    assert name in used
