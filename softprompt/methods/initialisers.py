"""Where a prompt starts: initialisers, in the scale in which the model sees embedded text.

Lester et al. 2021 (section 3.2) compare random, sampled vocabulary and class labels; text is PEFT's term for words.
Solved examples are ours: what a few-shot prompt says is where learning begins.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.base import FrozenLM
from softprompt.batch import Encoder
from softprompt.data import Example
from softprompt.errors import ConfigError, PromptFileError
from softprompt.fingerprint import Outline
from softprompt.prefix import PromptState
from softprompt.shots import GAP, solved_within
from softprompt.store import load_prompt, read_manifest
from softprompt.task import TaskSpec
from softprompt.verbalizer import plain_ids


@dataclass(frozen=True)
class _Wanted:
    base: FrozenLM
    spec: TaskSpec
    length: int
    seed: int
    examples: Sequence[Example]


def initialise(
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
    if how in _PLAIN:
        return PromptState.of_embeddings(_PLAIN[how](_Wanted(base, spec, length, seed, examples)))
    name, _, argument = how.partition(":")
    if name == "prompt":
        return _from_prompt(argument, base, length)
    return PromptState.of_embeddings(_from_text(argument, base, length))


def check_init_fits(how: str, spec: TaskSpec) -> None:
    """Raise ConfigError for an initialiser that needs another kind of task."""
    if how == "labels" and spec.kind == "generation":
        raise ConfigError("init 'labels' needs a classification task: use text, vocab or random")


def check_init(how: str, *, taught: bool = False) -> None:
    """What can be said of an initialiser without a base model; raises as ``initialise`` does.

    ``taught``: there is a teacher to start from.
    """
    if how in _PLAIN or (taught and how == "teacher"):
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


def check_init_base(hows: Iterable[str], base: Outline) -> None:
    """Raise PromptFileError if one starts from a saved prompt that was learned on another model than ``base``."""
    for how in hows:
        name, _, argument = how.partition(":")
        if name == "prompt":
            load_prompt(argument).check_base(base)


def default_instruction(spec: TaskSpec) -> str:
    """A plain instruction for the task, made of what is known of it: the start of ``init='text'``."""
    if spec.kind == "generation":
        return "Read the input and write the output that belongs to it."
    return f"Classify the text as {', '.join(spec.verbalizers[:-1])} or {spec.verbalizers[-1]}."


def _from_text(text: str, base: FrozenLM, length: int) -> Tensor:
    return _tiled(plain_ids(base.tokenizer, text), base, length)


def _from_prompt(folder: str, base: FrozenLM, length: int) -> PromptState:
    prompt = load_prompt(folder)
    prompt.check_base(base)
    if prompt.state.length != length:
        raise PromptFileError(
            f"init 'prompt:{folder}' has {prompt.state.length} virtual tokens, expected {length}: "
            f"use --length {prompt.state.length}"
        )
    return prompt.state


def _instruction(wanted: _Wanted) -> Tensor:
    return _from_text(default_instruction(wanted.spec), wanted.base, wanted.length)


def _examples(wanted: _Wanted) -> Tensor:
    base, spec, length = wanted.base, wanted.spec, wanted.length
    shots = solved_within(Encoder(base, spec, 0), wanted.examples, length, wanted.seed)
    if not shots:
        return _instruction(wanted)
    words = plain_ids(base.tokenizer, default_instruction(spec) + GAP)
    room = length - len(shots)
    # whole where it meets the examples: what does not fit is cut off in front
    front = (words * (room // len(words) + 1))[-room:] if room else []
    return _tiled(front + shots, base, length)


def _labels(wanted: _Wanted) -> Tensor:
    tokenizer = wanted.base.tokenizer
    ids = [token for words in wanted.spec.verbalizers for token in plain_ids(tokenizer, f" {words}")]
    return _tiled(ids, wanted.base, wanted.length)


def _vocabulary(wanted: _Wanted) -> Tensor:
    base, length = wanted.base, wanted.length
    # the 5,000 most common tokens as in the paper; vocabularies list common tokens first, behind the special ones
    special = set(base.tokenizer.all_special_ids)
    common = [token for token in range(min(base.vocabulary_size, 5000)) if token not in special]
    chosen = torch.randperm(len(common), generator=torch.Generator().manual_seed(wanted.seed))[:length].tolist()
    return _tiled([common[index] for index in chosen], base, length)


def _random(wanted: _Wanted) -> Tensor:
    # uniform as in the paper, with mean and spread of the model's own embeddings in place of 0 and 0.5: embeddings have
    # a large part in common (of Gemma 3 270M a fifth of their squared norm), and around 0 the start is far from all
    generator = torch.Generator().manual_seed(wanted.seed)
    uniform = torch.rand(wanted.length, wanted.base.embedding_size, generator=generator) * 2 - 1
    deviation, mean = torch.std_mean(wanted.base.sampled_embeddings().cpu(), dim=0)
    return mean + uniform * deviation * 3**0.5


def _tiled(ids: list[int], base: FrozenLM, length: int) -> Tensor:
    """Embeddings of ``ids``, repeated or cut to ``length``."""
    if not ids:
        raise ConfigError("init: expected words that the base model's tokenizer knows, got none: use other words")
    repeated = (ids * (length // len(ids) + 1))[:length]
    return base.embed(torch.tensor(repeated, device=base.device)).float().cpu()


_PLAIN: dict[str, Callable[[_Wanted], Tensor]] = {
    "text": _instruction,
    "examples": _examples,
    "labels": _labels,
    "vocab": _vocabulary,
    "random": _random,
}
_WITH_ARGUMENT = {"text": "text:Classify the review.", "prompt": "prompt:prompts/sentiment"}
