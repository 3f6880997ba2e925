"""What options say, as the package takes it: those that were given, by the names that functions have for them."""

import csv
import json
import re
from contextlib import suppress
from typing import Any

from softprompt.config import ChatOptions, DataOptions
from softprompt.data.chats.chat_format import NO_TEMPLATE
from softprompt.errors import ConfigError
from softprompt.utils.files import expand_user
from softprompt.utils.safe_io import read_text

_FILE_NAME = re.compile(r"\S*\.(?:md|txt|text|markdown|prompt)|(?:\.{0,2}|~|[\w.-]+)/\S+")


def parse_pairs(flag: str, options: tuple[str, ...], form: str, example: str) -> dict[str, str]:
    """``NAME=VALUE`` options by name; raises ConfigError for one that is not of this ``form``, or given twice."""
    found: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        complete = name.strip() and value.strip()
        if not complete or name in found:
            what = "another name" if complete else form
            raise ConfigError(f"{flag} '{option}': expected {what}, as in {example}")
        found[name] = value
    return found


def parse_task_settings(
    template: str | None, labels: str | None, verbalizer: tuple[str, ...], metric: str | None = None
) -> dict[str, Any]:
    """What ``Task.of`` and ``TaskSpec.of`` take of them: those that were given."""
    return drop_unset(
        template=template,
        metric=metric,
        labels=None if labels is None else _label_names(labels),
        verbalizers=_verbalizers(verbalizer) or None,
    )


def _label_names(labels: str) -> list[str]:
    """Names with commas between them; one that holds a comma stands in quotes, or all of them in a list of JSON."""
    told = _json_of(labels, list)
    # numbers and booleans are named as the reader names them
    names = [one if isinstance(one, str) else json.dumps(one) for one in told or ()]
    if told is None:
        with suppress(csv.Error):  # a line break outside of quotes
            names = [name.strip() for name in next(csv.reader([labels], skipinitialspace=True), [])]
    if not names or not all(name.strip() for name in names):
        raise ConfigError(
            f"--labels '{labels}': expected names with commas between them, as in negative,positive (one with a comma "
            'in it in double quotes), or a list of JSON, as in ["yes, please", "no"]'
        )
    return names


def _verbalizers(options: tuple[str, ...]) -> dict[str, str]:
    """``LABEL=WORDS``, or an object of JSON for labels with an equals sign."""
    found: dict[str, str] = {}
    for option in options:
        told = _json_of(option, dict)
        if told is None:
            told = parse_pairs(
                "--verbalizer", (option,), "LABEL=WORDS", '1=good, or {"a=b": "good"} for a label with ='
            )
        for name, words in told.items():
            if not isinstance(words, str) or name in found:
                what = "another label" if name in found else "words"
                raise ConfigError(f"--verbalizer '{option}': expected {what}, as in 1=good")
            found[name] = words
    return found


def _json_of(option: str, kind: type) -> Any:
    """The value of JSON that an option is, if it is one of this kind."""
    try:
        value = json.loads(option)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, kind) else None


def drop_unset(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def pop_model_options(options: dict[str, Any]) -> dict[str, Any]:
    """What ``model_options`` gave, and ``device_map_option`` where a verb has it, taken out of ``options``."""
    model = {name: options.pop(name) for name in ("device", "dtype", "quantize", "trust_remote_code")}
    return {**model, "device_map": options.pop("device_map", None)}


def pop_column_options(options: dict[str, Any]) -> dict[str, Any]:
    """What ``column_options`` gave and, where a verb has them, the options of chats, taken out of ``options``."""
    columns = drop_unset(**{name: options.pop(name) for name in DataOptions.model_fields})
    return {**columns, **_pop_chat_options(options)}


def _pop_chat_options(options: dict[str, Any]) -> dict[str, Any]:
    chat = drop_unset(**{name: options.pop(name, None) for name in ChatOptions.model_fields})
    if (system := chat.get("system")) is not None:
        chat["system"] = read_words("--system", system)
    if (template := chat.get("chat_template")) not in (None, NO_TEMPLATE):
        chat["chat_template"] = read_text(expand_user(template))
    if given := options.pop("chat_template_arg", None):
        pairs = parse_pairs("--chat-template-arg", given, "NAME=VALUE", "enable_thinking=false")
        chat["chat_template_args"] = {name: _value_of(words) for name, words in pairs.items()}
    return chat


def read_words(flag: str, words: str) -> str:
    """Words as they are given, or those of the file that they name, white space at their ends removed.

    Raises:
        ConfigError: there is no such file, and nobody would say its name; or it cannot be read, or nothing is given.
    """
    if not words.strip():
        raise ConfigError(f"{flag}: expected a system prompt, got an empty one: is a shell variable not set?")
    if _is_file(words):
        return read_text(expand_user(words)).strip()
    if _FILE_NAME.fullmatch(words):
        raise ConfigError(f"{flag} '{words}': there is no such file; give one, or the words of the system prompt")
    return words


def _is_file(words: str) -> bool:
    """Whether these are the name of a file, and not what one would say."""
    with suppress(OSError, ValueError):
        return len(words) < 4096 and "\n" not in words and expand_user(words).is_file()
    return False


def _value_of(words: str) -> Any:
    """A value of JSON, or the words themselves."""
    try:
        return json.loads(words)
    except ValueError:
        return words
