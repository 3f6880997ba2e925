"""Where the learning of a prompt starts: from words, examples, the vocabulary, or a saved prompt."""

from collections.abc import Iterable, Sequence

from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, PromptFileError
from softprompt.models.fingerprint import UnloadedModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import INITIALIZERS, InitializerContext, embed_text
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt, read_manifest


def initialize(
    how: str,
    base: FrozenLM,
    spec: TaskSpec,
    length: int,
    seed: int,
    examples: Sequence[Example] = (),
    given: PromptState | None = None,
) -> PromptState:
    """The start of a prompt: virtual tokens, or the keys and values of a saved prompt of that kind.

    Args:
        how: ``text`` (an instruction made of the task's labels), ``examples`` (the same, with solved training examples
            behind it), ``text:WORDS``, ``labels``, ``vocab``, ``random``, ``prompt:FOLDER`` (a saved prompt for the
            same base), or ``teacher``, which is ``given``.
        length: virtual tokens ``P``.
        seed: of ``examples``, ``vocab`` and ``random``.
        examples: of the training data; where too few fit into ``length``, ``examples`` is ``text``.
        given: of ``length`` virtual tokens; distillation makes it of its teacher.

    Raises:
        ConfigError: an unknown initialiser, or one without the argument it needs.
        PromptFileError: the prompt of ``prompt:FOLDER`` cannot be used.
    """
    check_init(how, taught=given is not None)
    check_init_fits(how, spec)
    if how == "teacher" and given is not None:
        return given
    if how in INITIALIZERS:
        return PromptState.of_embeddings(INITIALIZERS[how](InitializerContext(base, spec, length, seed, examples)))
    name, _, argument = how.partition(":")
    if name == "prompt":
        return _from_prompt(argument, base, length)
    return PromptState.of_embeddings(embed_text(argument, base, length))


def check_init_fits(how: str, spec: TaskSpec) -> None:
    """Raise ConfigError for an initialiser that needs another kind of task."""
    if how == "labels" and spec.kind == "generation":
        raise ConfigError("init 'labels' needs a classification task: use text, vocab or random")


def check_init(how: str, *, taught: bool = False) -> None:
    """What can be said of an initialiser without a base model; raises as ``initialize`` does.

    ``taught``: there is a teacher to start from.
    """
    if how in INITIALIZERS or (taught and how == "teacher"):
        return
    name, colon, argument = how.partition(":")
    if name not in _WITH_ARGUMENT:
        raise ConfigError(
            f"unknown init '{how}': expected text, examples, text:WORDS, labels, vocab, random or prompt:FOLDER"
        )
    if not argument.strip():
        behind = "something behind the colon" if colon else "a colon and more"
        raise ConfigError(f"init '{how}': expected {behind}, as in {_WITH_ARGUMENT[name]}")
    if name == "prompt":
        read_manifest(argument)


def check_init_base(hows: Iterable[str], base: UnloadedModel) -> None:
    """Raise PromptFileError if one starts from a saved prompt that was learned on another model than ``base``."""
    for how in hows:
        name, _, argument = how.partition(":")
        if name == "prompt":
            load_prompt(argument).check_base(base)


def _from_prompt(folder: str, base: FrozenLM, length: int) -> PromptState:
    prompt = load_prompt(folder)
    prompt.check_base(base)
    if prompt.state.length != length:
        raise PromptFileError(
            f"init 'prompt:{folder}' has {prompt.state.length} virtual tokens, expected {length}: "
            f"use --length {prompt.state.length}"
        )
    return prompt.state


_WITH_ARGUMENT = {"text": "text:Classify the review.", "prompt": "prompt:prompts/sentiment"}
