"""Where a prompt starts: initialisers, in the scale in which the model sees embedded text.

Lester et al. 2021 (section 3.2) compare random, sampled vocabulary and class labels; text is PEFT's term for words.
Solved examples are ours: what a few-shot prompt says is where learning begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.verbalizer import encode_plain
from softprompt.data.examples import Example
from softprompt.data.few_shot import GAP, encode_solved_within
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError
from softprompt.models.frozen_lm import FrozenLM


@dataclass(frozen=True)
class InitializerContext:
    """What an initializer may look at; ``length`` counts virtual tokens, ``seed`` is for those that draw."""

    base: FrozenLM
    spec: TaskSpec
    length: int
    seed: int
    examples: Sequence[Example]


def default_instruction(spec: TaskSpec) -> str:
    """A plain instruction for the task, made of what is known of it: the start of ``init='text'``."""
    if spec.chat is not None and spec.chat.system:
        return spec.chat.system
    if spec.kind == "generation":
        return "Read the input and write the output that belongs to it."
    return f"Classify the text as {', '.join(spec.verbalizers[:-1])} or {spec.verbalizers[-1]}."


def embed_text(text: str, base: FrozenLM, length: int) -> Tensor:
    """Embeddings ``[length, H]`` of a text's tokens, repeated or cut; raises ConfigError if it has none."""
    return _tile(encode_plain(base.tokenizer, text), base, length)


def _instruction(context: InitializerContext) -> Tensor:
    return embed_text(default_instruction(context.spec), context.base, context.length)


def _examples(context: InitializerContext) -> Tensor:
    base, spec, length = context.base, context.spec, context.length
    shots = encode_solved_within(ExampleEncoder(base, spec.as_plain, 0), context.examples, length, context.seed)
    if not shots:
        return _instruction(context)
    words = encode_plain(base.tokenizer, default_instruction(spec) + GAP)
    room = length - len(shots)
    # whole where it meets the examples: what does not fit is cut off in front
    front = (words * (room // len(words) + 1))[-room:] if room else []
    return _tile(front + shots, base, length)


def _labels(context: InitializerContext) -> Tensor:
    tokenizer = context.base.tokenizer
    ids = [token for words in context.spec.verbalizers for token in encode_plain(tokenizer, f" {words}")]
    return _tile(ids, context.base, context.length)


def _vocabulary(context: InitializerContext) -> Tensor:
    base, length = context.base, context.length
    # the 5,000 most common tokens as in the paper; vocabularies list common tokens first, behind the special ones
    special = set(base.tokenizer.all_special_ids)
    common = [token for token in range(min(base.vocabulary_size, 5000)) if token not in special]
    chosen = torch.randperm(len(common), generator=torch.Generator().manual_seed(context.seed))[:length].tolist()
    return _tile([common[index] for index in chosen], base, length)


def _random(context: InitializerContext) -> Tensor:
    # uniform as in the paper, with mean and spread of the model's own embeddings in place of 0 and 0.5: embeddings have
    # a large part in common (of Gemma 3 270M a fifth of their squared norm), and around 0 the start is far from all
    generator = torch.Generator().manual_seed(context.seed)
    uniform = torch.rand(context.length, context.base.embedding_size, generator=generator) * 2 - 1
    deviation, mean = torch.std_mean(context.base.sampled_embeddings().cpu(), dim=0)
    return mean + uniform * deviation * 3**0.5


def _tile(ids: list[int], base: FrozenLM, length: int) -> Tensor:
    """Embeddings of ``ids``, repeated or cut to ``length``."""
    if not ids:
        raise ConfigError("init: expected words that the base model's tokenizer knows, got none: use other words")
    repeated = (ids * (length // len(ids) + 1))[:length]
    return base.embed(torch.tensor(repeated, device=base.device)).float().cpu()


# by the name that ``init`` gives them: a new one stands here and nowhere else
INITIALIZERS: dict[str, Callable[[InitializerContext], Tensor]] = {
    "text": _instruction,
    "examples": _examples,
    "labels": _labels,
    "vocab": _vocabulary,
    "random": _random,
}
