"""Options of chats: files and words, and what is wrong with them."""

from pathlib import Path
from typing import Any

import pytest

from softprompt.cli.option_values import pop_column_options
from softprompt.config import ChatOptions, DataOptions
from softprompt.errors import ConfigError

UNSET = dict.fromkeys([*DataOptions.model_fields, *ChatOptions.model_fields])


def popped(**options: Any) -> dict[str, Any]:
    return pop_column_options({**UNSET, **options})


def test_a_system_prompt_is_words_or_a_file(tmp_path: Path) -> None:
    place = tmp_path / "system.md"
    place.write_text("Be brief.\n\n")
    assert popped(system=str(place)) == {"system": "Be brief."}
    assert popped(system="Be brief. See notes.md") == {"system": "Be brief. See notes.md"}
    assert popped() == {}


@pytest.mark.parametrize("name", ["nope.md", "prompts/system", "./system", "~/system.txt"])
def test_the_name_of_a_file_that_is_not_there_is_no_system_prompt(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        popped(system=name)


def test_a_chat_template_is_a_file_or_none(tmp_path: Path) -> None:
    place = tmp_path / "chat.jinja"
    place.write_text("{{ messages }}")
    assert popped(chat_template=str(place)) == {"chat_template": "{{ messages }}"}
    assert popped(chat_template="none") == {"chat_template": "none"}
    with pytest.raises(ConfigError, match="does not exist"):
        popped(chat_template=str(tmp_path / "nope.jinja"))


def test_arguments_of_the_template_have_json_types() -> None:
    given = ("enable_thinking=false", "effort=high", "count=3")
    assert popped(chat_template_arg=given) == {
        "chat_template_args": {"enable_thinking": False, "effort": "high", "count": 3}
    }
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        popped(chat_template_arg=("enable_thinking",))
