"""A Modelfile of Ollama for each prompt of a GGUF file: the chat template in Go, and what a request need not say.

Ollama reads no Jinja2. What a prompt was learned with is written around messages of whom conversations are made, once:
in front of the first user's, behind a user's (the last, or an earlier one), and behind an assistant's. That is found by
rendering; where a chat template does more, there is no Modelfile.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.data.encoding.verbalizer import Verbalizer, end_of_turn
from softprompt.errors import TemplateError
from softprompt.export.exported_chat_template import make_chat_template, split_template
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt

_SAID = ("\u2402one\u2403", "\u2404two\u2405", "\u2406three\u2407", "\u2408four\u2409", "\u240afive\u240b")
_SYSTEM = "\u240csix\u240d"


@dataclass(frozen=True)
class _Pieces:
    """What stands around what is said.

    Attributes:
        front: before the first user's message; with a system message of others, before and behind this.
        asked: behind the last user's, answered ones and assistants'.
    """

    front: str
    of_system: tuple[str, str] | None
    asked: str
    answered: str
    ended: str


def make_modelfile(base: FrozenLM, name: str, prompt: Prompt, file: str) -> str | None:
    """The Modelfile of a prompt in the GGUF file ``file``, beside which it stands; ``None`` where there can be none."""
    # Ollama puts BOS in front of all, where the file says so
    if base.bos_ids and not prompt.state.behind_bos:
        return None
    if prompt.spec.chat is None and split_template(prompt.spec) is None:
        return None
    try:
        pieces = _find_pieces(base, name, prompt)
    except (TemplateError, ValueError):
        return None
    chat = prompt.spec.chat
    system = (chat.system if chat is not None else None) or ""
    if '"""' in system or system.endswith('"'):  # it would end before its end
        return None
    lines = [
        f"# ollama create {name} -f THIS_FILE",
        f"FROM ./{file}",
        f'TEMPLATE """{_write_template(pieces, chat is not None)}"""',
        *([f'SYSTEM """{system}"""'] if system else []),
        *_list_parameters(base, prompt),
    ]
    return "\n".join(lines) + "\n"


def _list_parameters(base: FrozenLM, prompt: Prompt) -> list[str]:
    lines = ["PARAMETER temperature 0"]
    if (end := end_of_turn(base.tokenizer, prompt.spec)) is not None:
        lines.append(f"PARAMETER stop {json.dumps(base.tokenizer.convert_ids_to_tokens(end), ensure_ascii=False)}")
    if prompt.spec.kind == "classification":
        longest = max(len(one) for one in Verbalizer.of_task(prompt.spec, base.tokenizer).sequences)
        lines.append(f"PARAMETER num_predict {longest}")
    return lines


def _find_pieces(base: FrozenLM, name: str, prompt: Prompt) -> _Pieces:
    """Raise ValueError or TemplateError where messages are written in another way than one after the other."""
    template = make_chat_template(base, {name: prompt})
    bos = "".join(base.tokenizer.convert_ids_to_tokens(list(base.bos_ids)))

    def render(said: Sequence[str], system: str | None = None) -> str:
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages += [{"role": ("user", "assistant")[at % 2], "content": one} for at, one in enumerate(said)]
        try:
            text = base.tokenizer.apply_chat_template(
                messages, chat_template=template, task=name, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # the template's own, of whatever class
            raise TemplateError(str(error)) from error
        return str(text).removeprefix(bos)

    front, asked = _split(render(_SAID[:1]), _SAID[:1])
    if prompt.spec.chat is None:
        return _Pieces(front, None, asked, "", "")
    _, answered, ended, _ = _split(render(_SAID[:3]), _SAID[:3])
    turns = (_SAID[0], answered, _SAID[1], ended, _SAID[2], answered, _SAID[3], ended, _SAID[4], asked)
    if render(_SAID) != "".join((front, *turns)):
        raise ValueError("turns are not written one after the other")
    try:
        before, behind, _ = _split(render(_SAID[:1], _SYSTEM), (_SYSTEM, _SAID[0]))
        of_system = (before, behind) if render(_SAID, _SYSTEM) == "".join((before, _SYSTEM, behind, *turns)) else None
    except TemplateError:  # it refuses a system message
        of_system = None
    if of_system is None and prompt.spec.chat.system:
        raise ValueError("a system message is not written in front")
    return _Pieces(front, of_system, asked, answered, ended)


def _split(text: str, said: Sequence[str]) -> list[str]:
    """What stands before, between and behind; raises ValueError unless each is there once, in their order."""
    pieces = []
    for one in said:
        piece, found, text = text.partition(one)
        if not found or one in text:
            raise ValueError("what is said is not written once")
        pieces.append(piece)
    return [*pieces, text]


def _write_template(pieces: _Pieces, of_chats: bool) -> str:
    """In Go's text/template, as Ollama fills it in: ``.System`` and ``.Messages``, system ones among them."""
    if not of_chats:
        alone = _refuse("expected one message of the user: the prompt was learned from single texts")
        body = f"{_literal(pieces.front)}{{{{ .Content }}}}{_literal(pieces.asked)}"
        one = "{{ if or .System (ne (len .Messages) 1) }}" + alone + "{{ end }}"
        return f"{one}{{{{ range .Messages }}}}{body}{{{{ end }}}}"
    if pieces.of_system is None:
        own = _refuse("expected no system message: the prompt was learned without one, or it has no place in front")
    else:
        own = "{{ .System }}".join(map(_literal, pieces.of_system))
    front = f"{{{{ if .System }}}}{own}{{{{ else }}}}{_literal(pieces.front)}{{{{ end }}}}"
    user = (
        "{{ .Content }}{{ if eq (len (slice $.Messages $at)) 1 }}"
        f"{_literal(pieces.asked)}{{{{ else }}}}{_literal(pieces.answered)}{{{{ end }}}}"
    )
    other = _refuse("expected messages of the user and the assistant")
    return (
        f"{front}{{{{ range $at, $_ := .Messages }}}}"
        f'{{{{ if eq .Role "user" }}}}{user}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_literal(pieces.ended)}'
        f'{{{{ else if ne .Role "system" }}}}{other}{{{{ end }}}}{{{{ end }}}}'
    )


def _refuse(message: str) -> str:
    """A template of this name is nowhere, and Ollama's error names it."""
    return f"{{{{ template {json.dumps(message)} . }}}}"


def _literal(text: str) -> str:
    """A text that says nothing to Go, nor to who reads a Modelfile."""
    plain = "{{" not in text and '"' not in text
    return text if plain else f"{{{{ {_quote(text)} }}}}"


def _quote(text: str) -> str:
    # three quotation marks would end the template
    return json.dumps(text, ensure_ascii=False).replace('\\"', "\\x22")
