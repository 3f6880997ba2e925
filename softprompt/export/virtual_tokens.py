"""Virtual tokens as words of a vocabulary, and labels that were learned with them: what they are called.

<|sp:NAME:0|> ... <|sp:NAME:P-1|>                 the ``P`` virtual tokens of the task NAME
<|sp:NAME:label:0|> ... <|sp:NAME:label:C-1|>     its ``C`` labels, where they have rows of their own
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from softprompt.errors import ConfigError, PromptFileError
from softprompt.export.export_readme import MARKER
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class BakedVocabulary:
    """Prompts as words of a vocabulary.

    Attributes:
        prompts: by the task's name.
        first: token id of each task's first virtual token; the others follow it, and its labels these.
        size: tokens of the vocabulary with them.
        inexact: tasks whose texts the chat template gives other tokens than they were learned with.
    """

    prompts: Mapping[str, Prompt]
    first: Mapping[str, int]
    size: int
    inexact: tuple[str, ...] = ()

    @classmethod
    def behind(cls, prompts: Mapping[str, Prompt], tokens: int) -> "BakedVocabulary":
        """Behind a vocabulary of so many tokens, one task after the other."""
        first: dict[str, int] = {}
        for name, prompt in prompts.items():
            first[name] = tokens
            tokens += prompt.state.length + count_labels(prompt)
        return cls(prompts, first, tokens)

    @property
    def words(self) -> list[str]:
        """All of the new tokens, in the order of their ids."""
        return [
            word
            for name, prompt in self.prompts.items()
            for word in (*name_virtual_tokens(name, prompt.state.length), *name_labels(name, count_labels(prompt)))
        ]

    def ids(self, name: str) -> list[int]:
        return list(range(self.first[name], self.first[name] + self.prompts[name].state.length))

    def label_ids(self, name: str) -> list[int]:
        """Of its labels, where they have rows of their own."""
        first = self.first[name] + self.prompts[name].state.length
        return list(range(first, first + count_labels(self.prompts[name])))

    @property
    def virtual_ids(self) -> list[int]:
        return [one for name in self.prompts for one in self.ids(name)]

    @property
    def all_ids(self) -> list[int]:
        return [one for name in self.prompts for one in (*self.ids(name), *self.label_ids(name))]


def check_expressible(base: FrozenLM, prompts: Mapping[str, Prompt]) -> None:
    """``check_kinds``, and that the prompts are of ``base``; raises PromptFileError if not."""
    check_kinds(prompts)
    for prompt in prompts.values():
        prompt.check_base(base)


def check_kinds(prompts: Mapping[str, Prompt]) -> None:
    """Raise unless every prompt is what stands at a model's input, under a name that can be part of a token.

    Raises:
        ConfigError: a name that cannot.
        PromptFileError: an ensemble, or keys and values.
    """
    for name, prompt in prompts.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"'{name}' cannot be part of a token: expected letters, digits, '.', '_' and '-'; name the prompt as "
                "in sentiment=FOLDER"
            )
        check_single({name: prompt})
        if prompt.state.kind != "embeddings":
            raise PromptFileError(
                f"'{name}' is keys and values of every layer, and this format holds what stands at the model's input "
                "only, as words do: use --format peft or vllm-kv, serve it with softprompt, or learn it with "
                "prompt-tuning"
            )


def check_single(prompts: Mapping[str, Prompt]) -> None:
    """Raise PromptFileError for an ensemble."""
    for name, prompt in prompts.items():
        if len(prompt.states) > 1:
            raise PromptFileError(
                f"'{name}' is an ensemble of {len(prompt.states)} prompts that answer by vote, and a model reads one: "
                "export one of its members"
            )


def check_labels(prompts: Mapping[str, Prompt]) -> None:
    """Raise PromptFileError unless the labels are words of the model: engines answer in these."""
    for name, prompt in prompts.items():
        if any(state.label_rows is not None for state in prompt.states):
            raise PromptFileError(
                f"'{name}' has learned rows of the output layer for its labels (a soft verbalizer), for which this "
                "format has no room: use --format vocab, serve it with softprompt, or learn it with --soft-verbalizer "
                "never"
            )


def count_labels(prompt: Prompt) -> int:
    """Labels with rows of their own."""
    return 0 if prompt.state.label_rows is None else len(prompt.state.label_rows)


def name_labels(name: str, count: int) -> list[str]:
    return [f"{MARKER}{name}:label:{index}|>" for index in range(count)]


def name_virtual_tokens(name: str, length: int) -> list[str]:
    return [f"{MARKER}{name}:{index}|>" for index in range(length)]
