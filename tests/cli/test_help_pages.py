"""Help: verbs in the order of use, the options that matter first in front, every option of a long help in a group."""

from collections.abc import Iterator

import click
import pytest
from helpers.small_tasks import command

from softprompt.cli.main import cli
from softprompt.cli.verbs.help_pages import FEW, GROUPS, VERBS, GroupedCommand, group_options
from softprompt.cli.verbs.option_hints import FOREIGN, FOREIGN_VERBS, RENAMED

LONG = ("train", "distill", "compare", "sweep", "serve", "eval", "multitask", "scale")
COMING = {"track"}
BASIC = ["--data", "d", "--out", "p", "--model", "m"]


def commands() -> Iterator[GroupedCommand]:
    for one in cli.commands.values():
        for inner in one.commands.values() if isinstance(one, click.Group) else [one]:
            assert isinstance(inner, GroupedCommand)
            yield inner


def test_no_verb_is_answered_with_three_commands() -> None:
    done = command()
    assert (done.code, done.out) == (2, "")
    assert [line.split()[1] for line in done.err.splitlines() if line.startswith("  softprompt")] == [
        "demo",
        "train",
        "predict",
    ]
    assert "error" not in done.err


def test_verbs_are_all_listed_in_one_line_each() -> None:
    assert sorted(name for names in VERBS.values() for name in names) == sorted(cli.commands)
    lines = command("--help").out.splitlines()
    for name in cli.commands:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1, name
    listed = lines[lines.index(f"{next(iter(VERBS))}:") :]
    assert not any(line.startswith("     ") or line.endswith("...") for line in listed)
    assert [line for line in lines if line.endswith(":")][1:] == [f"{heading}:" for heading in VERBS]


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_option_has_a_group(verb: str) -> None:
    assert {one.name for one in group_options(cli.commands[verb]).get("Output", ())} <= {"as_json"}


@pytest.mark.parametrize("name", LONG)
def test_long_help_has_some_options_in_front_and_the_others_in_groups(name: str) -> None:
    verb = cli.commands[name]
    groups = group_options(verb)
    assert next(iter(groups)) == "Most used"
    assert 8 <= len(groups["Most used"]) <= 10
    assert set(groups) <= {"Most used", *GROUPS, "Output"}
    assert {one.name for one in groups.get("Output", ())} <= {"as_json"}
    assert sorted(str(one.name) for group in groups.values() for one in group) == sorted(
        str(one.name) for one in verb.params if isinstance(one, click.Option)
    )


def test_short_help_has_no_groups() -> None:
    assert set(group_options(cli.commands["list"])) == {"Options"}
    assert any(len(verb.params) > FEW for verb in commands())


def test_tables_name_options_that_there_are() -> None:
    known = {str(one.name) for verb in commands() for one in verb.params}
    flags = {flag for verb in commands() for one in verb.params for flag in one.opts}
    assert {name for names in GROUPS.values() for name in names} <= known | COMING
    assert {name for verb in commands() for name in verb.first} <= known | COMING
    assert {one.split()[0].rstrip(",") for one in [*FOREIGN.values(), *RENAMED.values()]} <= flags
    assert set(FOREIGN_VERBS.values()) <= set(cli.commands)
    assert not set(FOREIGN_VERBS) & set(cli.commands)
    for verb, old in RENAMED:
        assert old not in {flag for one in cli.commands[verb].params for flag in one.opts}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--num-epochs", "--epochs"),
        ("--num_train_epochs", "--epochs"),
        ("--model_name_or_path", "--model"),
        ("--per_device_train_batch_size", "--batch-size"),
        ("--output_dir", "--out"),
        ("--train_file", "--data, a file or a folder with train, validation and test files"),
        ("--num_virtual_tokens", "--length"),
        ("--max_seq_length", "--max-length"),
        ("--batch_size", "--batch-size"),
        ("--fp16", "--dtype float16"),
        ("--peft_type", "--method"),
        ("--prompt_tuning_init_text", "--init 'text:WORDS'"),
        ("--gradient_accumulation_steps", "--micro-batch-size, examples per forward pass: --batch-size stays as it is"),
    ],
)
def test_options_of_other_programs_are_told_by_their_name_here(given: str, meant: str) -> None:
    done = command("train", *BASIC, given, "3")
    assert done.code == 2
    assert done.error == f"No such option '{given}': here it is {meant} (softprompt train --help explains)"


def test_the_unit_of_a_learning_rate_is_told() -> None:
    told = command("train", *BASIC, "--learning_rate", "3e-4").error
    assert "here it is --learning-rate" in told
    assert "standard deviations" in told


def test_options_of_other_verbs_are_told() -> None:
    done = command("train", *BASIC, "--shots", "3")
    assert done.error.startswith("No such option '--shots' of train: it is one of eval, distill")
    done = command("train", *BASIC, "--lenght", "3")
    assert "Did you mean '--length'" in done.error or "Did you mean one of" in done.error


@pytest.mark.parametrize(("given", "meant"), [("evaluate", "eval"), ("fit", "train"), ("ls", "list")])
def test_verbs_of_other_programs_are_told_by_their_name_here(given: str, meant: str) -> None:
    done = command(given, "x")
    assert done.code == 2
    assert done.error.startswith(f"No such verb '{given}': here it is softprompt {meant}")


@pytest.mark.parametrize(("verb", "old", "new"), [(*key, new) for key, new in RENAMED.items()])
def test_former_names_are_refused_with_the_new_one(verb: str, old: str, new: str) -> None:
    done = command(verb, old, "x")
    assert done.code == 2
    assert f"No such option '{old}': here it is {new}" in done.error
