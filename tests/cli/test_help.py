"""Defaults that help texts repeat, so that ``--help`` need not import what has them, are the ones that count."""

import re
from dataclasses import fields

import click
import pytest

from softprompt.cli.verbs.lazy_verbs import cli
from softprompt.config import DataOptions, TrainConfig
from softprompt.data.examples import Columns
from softprompt.experiments.demo import STEPS
from softprompt.inference.generation import GenerationConfig
from softprompt.prompts.methods.method_registry import METHODS

SETTINGS = {name: field.default for name, field in TrainConfig.model_fields.items() if field.default is not None}
READER = {f"{name}_column": getattr(Columns(), name) for name in ("text", "label", "target")}
READER |= {"bad_rows": DataOptions.model_fields["bad_rows"].default}
SAMPLING = {field.name: field.default for field in fields(GenerationConfig)}


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


# what a server or a chat template sets, and no option does
UNASKED = {"ends", "answer_mark", "grammar", "shown_marks"}


@pytest.mark.parametrize(("verb", "names"), [("predict", set(SAMPLING) - {"stop", "max_new_tokens"} - UNASKED)])
def test_sampling_has_the_defaults_of_the_library(verb: str, names: set[str]) -> None:
    found = {name: option.default for name, option in options(verb).items() if name in names}
    assert found == {name: SAMPLING[name] for name in names}


def with_words() -> list[tuple[str, click.Option]]:
    """Every option of every verb that takes words for the model, as its name, metavar or help says."""
    named = {"template", "labels", "verbalizer", "instruction", "stop", "init", "grid", "space"}
    return [
        (f"{verb} --{name}", option)
        for verb in sorted(cli.commands)
        for name, option in options(verb).items()
        if name in named or "WORDS" in f"{option.metavar} {option.help}"
    ]


@pytest.mark.parametrize("option", [option for _, option in with_words()], ids=[name for name, _ in with_words()])
def test_words_are_read_alike_by_every_option(option: click.Option) -> None:
    start = "text:" if option.name == "init" else ""
    for typed, meant in (
        (r"{{ text }}\nSentiment:", "{{ text }}\nSentiment:"),
        (r"a\tb\\theta", "a\tb\\theta"),
        (r"\alpha\\n", "\\alpha\\n"),
        ("a\nb", "a\nb"),
    ):
        if not (typed.startswith("{") and option.name in ("labels", "verbalizer")):
            assert option.type.convert(start + typed, option, None) == start + meant


def test_json_and_folders_are_not_words() -> None:
    verbs = options("train")
    assert verbs["verbalizer"].type.convert(r'{"a": "x\ny"}', None, None) == r'{"a": "x\ny"}'
    assert verbs["labels"].type.convert(r'["x\ny", "z"]', None, None) == r'["x\ny", "z"]'
    assert verbs["init"].type.convert(r"prompt:a\new", None, None) == r"prompt:a\new"
