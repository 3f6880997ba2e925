"""What ``import softprompt`` offers: each name, written once in ``__init__.pyi``."""

import ast
from pathlib import Path

import softprompt

STUB = Path(softprompt.__file__).with_suffix(".pyi")
FUNCTIONS = ["distill", "evaluate", "fit", "load_model", "load_prompt", "read_splits"]
CLASSES = [
    *("Example", "FrozenLM", "GenerationConfig", "Prediction", "Predictor", "Prompt", "SoftpromptError", "Store"),
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
