"""Virtual tokens as words of a vocabulary: what they are called, and a chat template that uses them.

<|sp:NAME:0|> ... <|sp:NAME:P-1|>     the ``P`` virtual tokens of the task NAME
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, PromptFileError, TemplateError
from softprompt.export.export_readme import MARKER
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class BakedVocabulary:
    """Prompts as words of a vocabulary.

    Attributes:
        prompts: by the task's name.
        first: token id of each task's first virtual token; the others follow it.
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
            tokens += prompt.state.length
        return cls(prompts, first, tokens)

    @property
    def words(self) -> list[str]:
        """All of the new tokens, in the order of their ids."""
        return [
            word for name, prompt in self.prompts.items() for word in name_virtual_tokens(name, prompt.state.length)
        ]

    def ids(self, name: str) -> list[int]:
        return list(range(self.first[name], self.first[name] + self.prompts[name].state.length))

    @property
    def all_ids(self) -> list[int]:
        return [one for name in self.prompts for one in self.ids(name)]


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
        if len(prompt.states) > 1:
            raise PromptFileError(
                f"'{name}' is an ensemble of {len(prompt.states)} prompts that answer by vote, and a model reads one: "
                "export one of its members"
            )
        if prompt.state.kind != "embeddings":
            raise PromptFileError(
                f"'{name}' is keys and values of every layer, and this format holds what stands at the model's input "
                "only, as words do: use --format peft, serve it with softprompt, or learn it with prompt-tuning"
            )


def name_virtual_tokens(name: str, length: int) -> list[str]:
    return [f"{MARKER}{name}:{index}|>" for index in range(length)]


def split_template(spec: TaskSpec) -> list[str] | None:
    """What the template writes before, between and behind its texts; ``None`` if it does more than put them there."""
    # two texts of other letters and another length: a template that looks at them shows in the difference
    first, second = "\u2402text\u2403", "\u2404" * 40
    try:
        pieces = spec.compiled.render(Example(first)).split(first)
        same = spec.compiled.render(Example(second)) == second.join(pieces)
    except TemplateError:
        return None
    return pieces if same and len(pieces) > 1 else None


# what is refused has no say in the answer: a learned prompt takes the place of a system message, and was learned from
# single texts
_CHAT = """
{%- set tasks = @TASKS@ -%}
{%- set first = messages[0] -%}
{%- set said = first.content if first.role in ['system', 'developer'] else none -%}
{%- set chosen = task if task is defined and task is not none else @ONLY@ or said -%}
{%- if chosen is not string or chosen not in tasks -%}{{ raise_exception(@EXPECTED@) }}{%- endif -%}
{%- if said is not none and said != chosen -%}{{ raise_exception(@SYSTEM@) }}{%- endif -%}
{%- set turns = messages if said is none else messages[1:] -%}
{%- if turns | length != 1 or turns[0].role != 'user' -%}{{ raise_exception(@TURNS@) }}{%- endif -%}
{%- if (tools is defined and tools) or (documents is defined and documents) -%}
{{ raise_exception(@TOOLS@) }}{%- endif -%}
{%- set found = namespace(text='') -%}
{%- if turns[0].content is string -%}{%- set found.text = turns[0].content -%}{%- else -%}
{%- for part in turns[0].content -%}
{%- if part.type != 'text' -%}{{ raise_exception(@PARTS@) }}{%- endif -%}
{%- set found.text = found.text + ('' if loop.first else '\\n') + part.text -%}
{%- endfor -%}
{%- endif -%}
{%- set body = tasks[chosen][1] | join(found.text) | replace(@MARKER@, @APART@) -%}
{{- tasks[chosen][0] -}}
{%- if body[:1] != ' ' -%}{{- tasks[chosen][2] -}}{%- endif -%}
{{- body -}}
"""


def make_chat_template(
    base: FrozenLM, prompts: Mapping[str, Prompt], gaps: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Jinja2 that writes BOS, a task's virtual tokens and its template around the message of the user.

    Args:
        gaps: what stands between virtual tokens and a text that begins without a blank, for tokenizers that put one in
            front of texts, and there see none to begin.

    Where the template needs more than a text, the message must be the whole of it. ``MARKER`` is taken apart wherever a
    message has it, alone or with what the template has beside it, so that no message can spell a virtual token.
    """
    bos = "".join(base.tokenizer.convert_ids_to_tokens(list(base.bos_ids)))
    tasks: dict[str, Any] = {}
    for name, prompt in prompts.items():
        start = (bos if prompt.state.behind_bos else "") + "".join(name_virtual_tokens(name, prompt.state.length))
        tasks[name] = [start, split_template(prompt.spec) or ["", ""], gaps.get(name, "")]
    names = ", ".join(prompts)
    values = {
        "TASKS": tasks,
        "ONLY": next(iter(tasks)) if len(tasks) == 1 else "",
        "EXPECTED": f"expected a task, one of {names}: as chat_template_kwargs, or as the system message",
        "SYSTEM": f"expected no system message but the name of the task, one of {names}: the learned prompt takes "
        "its place, leave it out",
        "TURNS": "expected one message of the user and no earlier turns: the prompt was learned from single texts, "
        "send the one to be answered",
        "TOOLS": "expected neither tools nor documents: the prompt was learned without",
        "PARTS": "expected a message of text",
        "MARKER": MARKER,
        "APART": MARKER.replace("|", "| "),
    }
    # by which a client knows what texts must not spell, as by the template that this one takes the place of
    own = {str(token) for token in base.tokenizer.added_tokens_decoder.values() if not token.special}
    spelled = " ".join(sorted(own & safe_tokenizer(base.tokenizer).marks.keys())).replace("#}", "")
    template = (f"{{#- no text spells: {spelled} -#}}" if spelled else "") + _CHAT.replace("\n", "")
    for key, value in values.items():
        # escapes of JSON and of Jinja2's strings agree on what these hold
        template = template.replace(f"@{key}@", json.dumps(value, ensure_ascii=False))
    return template
