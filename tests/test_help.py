"""Defaults that help texts repeat, so that ``--help`` need not import what has them, are the ones that count."""

import inspect
import re
from dataclasses import fields

import click
import pytest

from softprompt.cli import cli
from softprompt.config import TrainConfig
from softprompt.data import read_splits
from softprompt.demo import STEPS
from softprompt.examples import Columns
from softprompt.generate import Sampling
from softprompt.methods import METHODS

SETTINGS = {name: field.default for name, field in TrainConfig.model_fields.items() if field.default is not None}
READER = {f"{name}_column": getattr(Columns(), name) for name in ("text", "label", "target")}
READER |= {"bad_rows": inspect.signature(read_splits).parameters["bad_rows"].default}
SAMPLING = {field.name: field.default for field in fields(Sampling)}


def options(verb: str) -> dict[str, click.Option]:
    found = {option.name: option for option in cli.commands[verb].params if isinstance(option, click.Option)}
    return {name: option for name, option in found.items() if name is not None}


def said(verb: str) -> dict[str, str]:
    """The default that the help of each option states in words, by the option's name."""
    texts = {name: re.search(r"\[default: (.*)\]", option.help or "") for name, option in options(verb).items()}
    return {name: text[1] for name, text in texts.items() if text}


def test_train_states_the_default_of_every_setting_it_has() -> None:
    expected = {
        name: str(SETTINGS[name])
        for name, option in options("train").items()
        if name in SETTINGS and not option.is_flag
    }
    assert len(expected) >= 10
    assert {name: text for name, text in said("train").items() if name in SETTINGS} == expected


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_no_verb_states_another_default(verb: str) -> None:
    expected = {**SETTINGS, **READER, **({"steps": STEPS} if verb == "demo" else {})}
    for name, text in said(verb).items():
        if name in expected:
            assert text == str(expected[name]), f"{verb} --{name}"


def test_train_names_every_method() -> None:
    text = options("train")["method"].help or ""
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", text.partition(".")[0])) - {"or"} == set(METHODS)


@pytest.mark.parametrize(("verb", "names"), [("eval", {"max_new_tokens"}), ("predict", set(SAMPLING) - {"stop"})])
def test_sampling_has_the_defaults_of_the_library(verb: str, names: set[str]) -> None:
    found = {name: option.default for name, option in options(verb).items() if name in names}
    assert found == {name: SAMPLING[name] for name in names}
