"""Where the learning of a prompt starts: from words, examples, the vocabulary, or a saved prompt."""

from collections.abc import Sequence
from dataclasses import replace

from softprompt.config import TrainConfig
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import PromptFileError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import INITIALIZERS, InitializerContext, embed_text
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt

MANY_LABELS = 20  # from which on ``auto`` learns their rows (docs/results/findings.md)


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
        PromptFileError: the prompt of ``prompt:FOLDER`` cannot be read, or has another length.
    """
    start = _find_start(how, InitializerContext(base, spec, length, seed, examples), given)
    return start if spec.chat is None else replace(start, placement=find_placement(base, spec))


def uses_soft_verbalizer(base: FrozenLM, config: TrainConfig, spec: TaskSpec) -> bool:
    """Whether labels are learned with a prompt: as asked for, or where there are many, or the start has learned them.

    Raises:
        PromptFileError: the prompt to start from cannot be read.
    """
    if spec.kind != "classification" or config.soft_verbalizer == "never":
        return False
    if config.soft_verbalizer == "always":
        return True
    name, _, place = config.init.partition(":")
    learned = name == "prompt" and _read_start(place, config.length, spec).label_rows is not None
    return learned or (len(spec.labels) >= MANY_LABELS and base.has_plain_output_rows)


def _find_start(how: str, context: InitializerContext, given: PromptState | None) -> PromptState:
    if how == "teacher" and given is not None:
        return given
    if how in INITIALIZERS:
        return PromptState.of_embeddings(INITIALIZERS[how](context))
    name, _, argument = how.partition(":")
    if name == "prompt":
        return _read_start(argument, context.length, context.spec)
    return PromptState.of_embeddings(embed_text(argument, context.base, context.length))


def _read_start(folder: str, length: int, spec: TaskSpec) -> PromptState:
    """A saved prompt; of other labels than those of ``spec`` without the rows that it has for its own."""
    prompt = load_prompt(folder)
    if prompt.state.length != length:
        raise PromptFileError(
            f"init 'prompt:{folder}' has {prompt.state.length} virtual tokens, expected {length}: "
            f"use --length {prompt.state.length}"
        )
    return prompt.state if prompt.spec.labels == spec.labels else replace(prompt.state, label_rows=None)
