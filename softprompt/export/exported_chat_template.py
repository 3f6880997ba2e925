"""The chat template of an export: the model's own around messages in which the virtual tokens stand, or a plain one.

What is refused would have no say in the answer, or another one than in softprompt. A prompt that was learned from
single texts takes one message of the user. One that was learned from conversations takes them as they are: the template
that it was learned with writes them, with the virtual tokens in their place and with what was kept beside them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.chats.conversation import Conversation, Message
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.errors import TemplateError
from softprompt.export.export_readme import MARKER, list_front
from softprompt.export.virtual_tokens import name_virtual_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt

_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_KEY = re.compile("@([A-Z]+)@")

# the first one's log-probabilities are noted; with all of them the tokens are compared
PROBES = (
    "a text of some words",
    "  two  blanks, and more ",
    "\na line\n\n",
    "\u00dcn\u00ef, 123 <b>\u2014</b>",
    ".",
    "<",
)


@dataclass(frozen=True)
class TemplateWords:
    """How a chat template spells virtual tokens.

    Attributes:
        marker: what their words begin with, which no message may spell.
        apart: what stands for it in a message.
        write: the words of a task, by its name and length.
    """

    marker: str
    apart: str
    write: Callable[[str, int], str]


# one word for each, of a vocabulary that has them
OF_VOCABULARY = TemplateWords(
    MARKER, MARKER.replace("|", "| "), lambda name, length: "".join(name_virtual_tokens(name, length))
)

_CHOICE = """
{%- set sp_tasks = @TASKS@ -%}
{%- set sp_said = messages[0].content if messages[0].role in ['system', 'developer'] else none -%}
{%- set sp_name = task if task is defined and task is not none else @ONLY@ or sp_said -%}
{%- if sp_name is not string or sp_name not in sp_tasks -%}{{ raise_exception(@EXPECTED@) }}{%- endif -%}
{%- set sp_task = sp_tasks[sp_name] -%}
{%- if documents is defined and documents -%}{{ raise_exception(@DOCUMENTS@) }}{%- endif -%}
"""

_NAMED = """
{%- set sp_first = messages[0].content if messages and messages[0].role in ['system', 'developer'] else none -%}
{%- if task is defined and task is not none or sp_first is string and sp_first in @NAMES@ -%}
"""
OTHERWISE, END = "{%- else -%}", "{%- endif -%}"
# a base model reads what is said
_CONTENTS = (
    "{%- for message in messages -%}{{ message.content }}{%- if not loop.last %}{{ '\\n' }}{% endif -%}{%- endfor -%}"
)

_TEXT = """
{%- if sp_said is not none and sp_said != sp_name -%}{{ raise_exception(@SYSTEM@) }}{%- endif -%}
{%- set sp_turns = messages if sp_said is none else messages[1:] -%}
{%- if sp_turns | length != 1 or sp_turns[0].role != 'user' -%}{{ raise_exception(@TURNS@) }}{%- endif -%}
{%- if tools is defined and tools -%}{{ raise_exception(@TOOLS@) }}{%- endif -%}
{%- set sp_found = namespace(text='') -%}
{%- if sp_turns[0].content is string -%}{%- set sp_found.text = sp_turns[0].content -%}{%- else -%}
{%- for part in sp_turns[0].content -%}
{%- if part.type != 'text' -%}{{ raise_exception(@PARTS@) }}{%- endif -%}
{%- set sp_found.text = sp_found.text + ('' if loop.first else '\\n') + part.text -%}
{%- endfor -%}
{%- endif -%}
{%- set sp_body = sp_task.around | join(sp_found.text) | replace(@MARKER@, @APART@) -%}
{{- sp_task.front -}}
{%- if sp_body[:1] != ' ' -%}{{- sp_task.gap -}}{%- endif -%}
{{- sp_body -}}
"""

_TURNS = """
{%- set sp_turns = namespace(all=[]) -%}
{%- for message in messages -%}
{%- set sp_found = namespace(text='') -%}
{%- if message.content is string -%}{%- set sp_found.text = message.content -%}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- if part.type != 'text' -%}{{ raise_exception(@PARTS@) }}{%- endif -%}
{%- set sp_found.text = sp_found.text + part.text -%}
{%- endfor -%}
{%- endif -%}
{%- set sp_text = sp_found.text | replace(@MARKER@, @APART@) -%}
{%- if message | length == 2 and 'content' in message -%}
{%- set sp_turn = {'role': message.role, 'content': sp_text} -%}
{%- else -%}{%- set sp_turn = dict(message, content=sp_text) -%}{%- endif -%}
{%- if @MARKER@ in (sp_turn | string) -%}{{ raise_exception(@MARKED@) }}{%- endif -%}
{%- set sp_turns.all = sp_turns.all + [sp_turn] -%}
{%- endfor -%}
{%- set sp_own = none if sp_said is none else sp_turns.all[0].content -%}
{%- if sp_own == sp_name -%}{%- set sp_own = none -%}{%- endif -%}
{%- if sp_own and sp_own != sp_task.system and not sp_task.takes_system -%}
{{ raise_exception(@OTHERSYSTEM@) }}{%- endif -%}
{%- set sp_system = (sp_task.system if sp_own is none else sp_own) or '' -%}
{%- set sp_tools = tools if tools is defined and tools else none -%}
{%- if sp_tools and not sp_task.takes_tools -%}
{{ raise_exception(@OTHERTOOLS@) }}{%- endif -%}
{%- if sp_tools and @MARKER@ in (sp_tools | string) -%}{{ raise_exception(@MARKED@) }}{%- endif -%}
{%- set tools = sp_tools or sp_task.tools or none -%}
{%- set sp_rest = sp_task.turns + (sp_turns.all if sp_said is none else sp_turns.all[1:]) -%}
"""
_INSIDE = """
{%- set messages = [{'role': 'system', 'content': sp_task.before + sp_system + sp_task.behind}] + sp_rest -%}
"""
_FIRST = """
{%- set messages = ([{'role': 'system', 'content': sp_system}] if sp_system else []) + sp_rest -%}
"""
# a template that begins or ends with a line's end keeps it so
_WRITTEN = ("{%- set sp_written %}{{ '' }}", "{{ '' }}{%- endset -%}")
_ASKED = """
{%- if add_generation_prompt is defined and add_generation_prompt -%}
{%- if @LEFTOUT@ and sp_written.endswith(@LEFTOUT@) -%}
{%- set sp_written = sp_written[:-(@LEFTOUT@ | length)] -%}
{%- endif -%}
{%- set sp_written = sp_written + sp_task.opening -%}
{%- endif -%}
"""
_ALL, _BEHIND_FRONT = (
    "{{- sp_written -}}",
    "{{- @FRONT@ + sp_task.before + sp_task.behind + sp_written[(@FRONT@ | length):] -}}",
)


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


def make_chat_template(
    base: FrozenLM,
    prompts: Mapping[str, Prompt],
    gaps: Mapping[str, str] = MappingProxyType({}),
    words: TemplateWords = OF_VOCABULARY,
) -> str:
    """Jinja2 that writes what a task's prompt was learned with around the messages of whoever asks.

    Args:
        gaps: what stands between virtual tokens and a text that begins without a blank, for tokenizers that put one in
            front of texts, and there see none to begin.
        words: what stands for virtual tokens.

    Of single texts: where the task's template needs more than a text, the message must be the whole of it. The words'
    marker is taken apart wherever a message has it, alone or with what stands beside it, so that no message can spell a
    virtual token.
    """
    names = ", ".join(prompts)
    of_text = _fill(
        _TEXT,
        words,
        SYSTEM=f"expected no system message but the name of the task, one of {names}: the learned prompt takes its "
        "place, leave it out",
    )
    groups: dict[str, list[str]] = {}
    for name, prompt in prompts.items():
        chat = prompt.spec.chat
        groups.setdefault(of_text if chat is None else _write_conversation(base, chat, words), []).append(name)
    # by which a client knows what texts must not spell, as by the template that this one takes the place of
    own = {str(token) for token in base.tokenizer.added_tokens_decoder.values() if not token.special}
    spelled = " ".join(sorted(own & safe_tokenizer(base.tokenizer).marks.keys())).replace("#}", "")
    tasks = {name: _describe_task(base, name, prompt, gaps.get(name, ""), words) for name, prompt in prompts.items()}
    choice = _fill(
        _CHOICE,
        words,
        TASKS=tasks,
        ONLY=names if len(prompts) == 1 else "",
        EXPECTED=f"expected a task, one of {names}: as chat_template_kwargs, or as the system message",
    )
    start = (f"{{#- no text spells: {spelled} -#}}" if spelled else "") + choice
    if len(groups) == 1:
        return start + next(iter(groups))
    chosen = (f"if sp_name in {_write_literal(some)} -%}}{code}" for code, some in groups.items())
    return f"{start}{{%- {'{%- el'.join(chosen)}{{%- endif -%}}"


def make_open_template(base: FrozenLM, prompts: Mapping[str, Prompt]) -> str:
    """``make_chat_template`` for messages that name a task, and the model's own template for all others.

    For llama.cpp, whose server tries a chat template on messages of its own and starts with none that refuses them.
    """
    named = fill_code(_NAMED, {"NAMES": list(prompts)})
    return named + make_chat_template(base, prompts) + OTHERWISE + (write_own_template(base) or _CONTENTS) + END


def write_own_template(base: FrozenLM) -> str | None:
    """The model's own chat template, to stand between others' code; ``None`` where it has none."""
    try:
        own = base.tokenizer.get_chat_template()
    except ValueError:  # or several, and no default
        return None
    return f"{{{{ '' }}}}{without_marks(own)}{{{{ '' }}}}"


def list_first_messages(base: FrozenLM, name: str, prompt: Prompt) -> list[dict[str, Any]] | None:
    """The messages in front of a user's in which the virtual tokens of a task stand, for the model's own template.

    ``None``: they stand in no message, or the prompt was learned from single texts.
    """
    chat = prompt.spec.chat
    if chat is None or not find_chat_template(base.tokenizer, chat).inside_system:
        return None
    before, behind = _place_words(name, prompt, OF_VOCABULARY)
    turns = [one.to_dict() for one in chat.turns]
    return [{"role": "system", "content": f"{before}{chat.system or ''}{behind}"}, *turns]


def _place_words(name: str, prompt: Prompt, words: TemplateWords) -> tuple[str, str]:
    """The virtual tokens, where they stand before a system message's text, and where behind."""
    written = words.write(name, prompt.state.length)
    at_end = prompt.spec.chat is not None and prompt.spec.chat.placement == "system-end"
    return ("", written) if at_end else (written, "")


def _describe_task(base: FrozenLM, name: str, prompt: Prompt, gap: str, words: TemplateWords) -> dict[str, Any]:
    before, behind = _place_words(name, prompt, words)
    chat = prompt.spec.chat
    if chat is None:
        bos = "".join(base.tokenizer.convert_ids_to_tokens(list(base.bos_ids))) if prompt.state.behind_bos else ""
        return {"front": bos + before, "around": split_template(prompt.spec) or ["", ""], "gap": gap}
    template = find_chat_template(base.tokenizer, chat)
    return {
        "before": before,
        "behind": behind,
        "system": chat.system,
        "takes_system": template.takes_system and (chat.system is not None or not chat.shared),
        "tools": [dict(one) for one in chat.tools],
        "takes_tools": template.takes_tools,
        "turns": [one.to_dict() for one in chat.turns],
        "opening": template.opening if prompt.spec.kind == "classification" or chat.asking == "answer" else "",
    }


def _write_conversation(base: FrozenLM, chat: ChatFormat, words: TemplateWords) -> str:
    """What writes the messages of all tasks with this template and these arguments of it."""
    template = find_chat_template(base.tokenizer, chat)
    inside = template.inside_system
    arguments = "".join(f"{{%- set {name} = {_write_literal(one)} -%}}" for name, one in chat.arguments.items())
    ended = _fill(
        _ASKED + (_ALL if inside else _BEHIND_FRONT),
        words,
        LEFTOUT="" if chat.asking == "thoughts" else template.left_out,
        FRONT="" if inside else template.front,
    )
    front = _fill(_TURNS + (_INSIDE if inside else _FIRST), words)
    return arguments + front + without_marks(chat.template).join(_WRITTEN) + ended


def without_marks(template: str) -> str:
    """A chat template as engines take it, which know no ``{% generation %}``.

    At the end of a template's file a line's end is none of its text.
    """
    return _GENERATION.sub(
        lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template.removesuffix("\n")
    )


_TOLD = {
    "DOCUMENTS": "expected neither tools nor documents: the prompt was learned without",
    "TURNS": "expected one message of the user and no earlier turns: the prompt was learned from single texts, send "
    "the one to be answered",
    "TOOLS": "expected neither tools nor documents: the prompt was learned without",
    "OTHERSYSTEM": "expected no system message: the prompt was learned without one, leave it out",
    "OTHERTOOLS": "expected no tools: this model's chat template has no place for them, leave them out",
    "PARTS": "expected a message of text",
}


def _fill(code: str, words: TemplateWords, **values: Any) -> str:
    told = {
        **_TOLD,
        "MARKED": f"expected no '{words.marker}' in calls and tools: it stands for virtual tokens",
        "MARKER": words.marker,
        "APART": words.apart,
        **values,
    }
    return fill_code(code, told)


def fill_code(code: str, values: Mapping[str, Any]) -> str:
    """Jinja2 on one line, with values in the place of their names between ``@``."""
    return _KEY.sub(lambda key: _write_literal(values[key[1]]), code.replace("\n", ""))


def _write_literal(value: Any) -> str:
    """A value of JSON's types as Jinja2 has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_write_literal(str(key))}: {_write_literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_write_literal, value)) + "]"
    # escapes of JSON and of Jinja2's strings agree
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def choose_gaps(prompts: Iterable[str], is_exact: Callable[[str, str], bool]) -> dict[str, str]:
    """What makes each task's texts what they were learned as: nothing, or a blank where the tokenizer swallows one.

    Args:
        is_exact: whether a task's texts are, with a gap.
    """
    fitting = {name: [gap for gap in ("", " ") if is_exact(name, gap)] for name in prompts}
    return {name: gaps[0] for name, gaps in fitting.items() if gaps}


def find_other_tokens(
    base: FrozenLM, prompt: Prompt, words: Sequence[int], render: Callable[[list[dict[str, Any]]], Sequence[int]]
) -> list[str]:
    """Probes that a chat template gives other tokens than the prompt was learned with.

    Args:
        words: token ids that stand for the virtual tokens.
        render: the token ids of messages.
    """
    front = list_front(base.bos_ids, prompt.state.placement, words)
    return [
        probe
        for probe in PROBES
        if list(render([{"role": "user", "content": probe}])) != [*front, *encode_learned(base, prompt, probe)]
    ]


def encode_learned(base: FrozenLM, prompt: Prompt, text: str) -> list[int]:
    """Of a text in the prompt's template, or of one that is the whole where the template needs more than a text."""
    spec = prompt.spec
    if spec.chat is None and split_template(spec) is None:
        return safe_tokenizer(base.tokenizer).encode_plain(text)
    said = None if spec.chat is None else Conversation((Message("user", text),))
    return list(ExampleEncoder(base, spec, prompt.state.length).encode_texts([Example(text, conversation=said)])[0])
