"""One name, one meaning: an option that several verbs have is of the same type and means the same in all of them."""

import re
from collections import defaultdict
from collections.abc import Iterator

import click
import pytest

from softprompt.cli.main import cli

# where they differ, and why
DIFFERENT = {
    ("--format", "type"): "import reads fewer formats than export writes",
    ("--teacher", "multiple"): "multitask has one for each of its tasks, by its name",
    ("--requests-per-minute", "type"): "a key may also have no limit, or the server's",
    ("--tokens-per-minute", "type"): "a key may also have no limit, or the server's",
    ("--sample-file", "type"): "serve takes the path as text, from settings that a file or the environment may give",
}


def declared() -> Iterator[tuple[str, click.Option]]:
    for verb, one in cli.commands.items():
        inner = one.commands.values() if isinstance(one, click.Group) else [one]
        yield from ((verb, param) for each in inner for param in each.params if isinstance(param, click.Option))


SHARED = defaultdict(list)
for verb, option in declared():
    for flag in (*option.opts, *option.secondary_opts):
        SHARED[flag].append((verb, option))


def meaning(option: click.Option) -> str:
    """The help without what is said of one verb alone, in brackets, and without the default."""
    return re.sub(r"  \(.*?\)(?=  \[|$)|  \[default: .*\]$", "", " ".join((option.help or "").split("\n"))).rstrip(".")


def kind(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return f"choice of {', '.join(map(str, option.type.choices))}"
    return option.type.name.removesuffix(" range") + (" (flag)" if option.is_flag else "")


@pytest.mark.parametrize("flag", sorted(flag for flag, uses in SHARED.items() if len(uses) > 1))
def test_an_option_means_the_same_in_every_verb(flag: str) -> None:
    uses = SHARED[flag]
    for what, of in (("help", meaning), ("type", kind), ("multiple", lambda option: option.multiple)):
        found = {of(option): verb for verb, option in uses}
        assert (len(found) == 1) != ((flag, what) in DIFFERENT), (flag, what, found)


def test_what_is_said_of_every_option_is_said() -> None:
    assert not [flag for flag, uses in SHARED.items() for _, option in uses if not option.help and flag != "--help"]


def test_exceptions_are_of_options_that_there_are() -> None:
    assert {flag for flag, _ in DIFFERENT} <= set(SHARED)
