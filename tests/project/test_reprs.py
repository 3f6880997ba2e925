"""What Python shows of everything that users come to hold: a few lines, whatever is in it."""

from typing import Any

import pytest
from helpers.html_page import HOSTILE
from helpers.large_results import large_results

import softprompt as sp

LINES, WIDTH = 3, 100
NOT_HELD = {"SoftpromptError", "Callback"}  # what goes wrong, and what is derived from


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return large_results(tmp_path_factory.mktemp("plain") / "store")


@pytest.fixture(scope="module")
def hostile_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return large_results(tmp_path_factory.mktemp("hostile") / "store", HOSTILE)


def test_every_public_class_is_among_them(results: dict[str, Any]) -> None:
    held = {type(one).__name__ for one in results.values()}
    public = {name for name in sp.__all__ if isinstance(getattr(sp, name), type)}
    assert public - held == NOT_HELD


def test_none_is_longer_than_three_lines(results: dict[str, Any]) -> None:
    for name, one in results.items():
        lines = repr(one).splitlines()
        assert 1 <= len(lines) <= LINES, name
        assert max(map(len, lines)) <= WIDTH, name
        assert lines[0].startswith(type(one).__name__ + "("), name
        assert "tensor(" not in repr(one), name
        assert len(str(one)) <= LINES * WIDTH, name


def test_nothing_that_a_terminal_acts_on_comes_through(hostile_results: dict[str, Any]) -> None:
    for name, one in hostile_results.items():
        assert not any(letter in repr(one) for letter in "\x1b\u202e\r\t"), name
        assert len(repr(one).splitlines()) <= LINES, name


def test_the_main_facts_are_told(results: dict[str, Any]) -> None:
    for name, words in {
        "task": ("'word'", "classification", "train=2000", "validation=1000", "test=500", "… 34 more"),
        "prompt": ("prompt-tuning", "4096 virtual tokens of 640", "test accuracy 0.875 [0.850, 0.950] n=1000"),
        "ensemble": ("5 times 4096 virtual tokens",),
        "keys and values": ("4096 virtual tokens as keys and values of 18 layers",),
        "evaluation": ("accuracy 1.000", "n=2000", "macro_f1"),
        "prediction": ("'word 0'", "probability=0.5", "index=0"),
        "base": ("frozen parameters", "float32 on cpu", "decoder-only"),
        "comparison": ("prompt-tuning 0.9", "methods=9", "runs=27", "n=500"),
        "sweep summary": ("test accuracy 0.970 [0.950, 0.990]", "trials=200", "winner=198"),
        "distillation": ("20 virtual tokens", "test accuracy 0.970"),
        "store": (str(results["store"].url),),
        "version": ("reviews@3", "2026-11-25 16:00"),
        "settings": ("length=20", "init='text:word"),
        "generation": ("temperature=0.5",),
        "grammar": ("json_schema",),
    }.items():
        told = " ".join(repr(results[name]).split())
        assert [one for one in words if one not in told] == [], told
    assert repr(results["defaults"]) == "TrainConfig()"


def test_defaults_are_left_out() -> None:
    assert repr(sp.Example("a text")) == "Example('a text')"
    assert repr(sp.GenerationConfig()) == "GenerationConfig()"
