"""Virtual tokens as a part of a message, for a vLLM server that runs with ``--enable-prompt-embeds``: the model stays.

A content part ``{"type": "prompt_embeds"}`` carries a prompt's rows, in the scale in which the model's first layer sees
them, and vLLM puts them where the chat template writes the part. The exported folder holds each prompt's rows, and a
chat template for the server: it writes what a prompt was learned with around the messages that a prompt's message
begins, and leaves all others to the model's own.

Shapes: ``P`` virtual tokens, ``H`` embedding size.
"""

import base64
import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.data.chats.message_parsing import parse_conversation
from softprompt.data.examples import Example
from softprompt.errors import BaseModelError, ConfigError, PromptFileError
from softprompt.export.engine_client import Asked, Tasks
from softprompt.export.export_formats import ExportRequest
from softprompt.export.export_readme import (
    USAGE_FILE,
    describe_task,
    describe_usage,
    embeds_readme,
    encode_json,
    read_usage,
)
from softprompt.export.exported_chat_template import (
    END,
    OTHERWISE,
    TemplateWords,
    choose_gaps,
    fill_code,
    find_other_tokens,
    make_chat_template,
    split_template,
    write_own_template,
)
from softprompt.export.virtual_tokens import check_expressible, check_labels
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import atomic_path, check_free

TENSOR_FILE = "prompts.safetensors"
TEMPLATE_FILE = "chat_template.jinja"  # the name that tokenizers give it
PLACE = "<prompt_embeds>"  # what vLLM writes for such a part, a token that it adds to the vocabulary; refused in texts
_WORDS = TemplateWords(PLACE, PLACE, lambda name, length: PLACE)

# a prompt's message: its part, the name of its task, and what else the system says. The loops tell vLLM to leave the
# parts of messages apart, between which it would write line ends
_CHOICE = """
{%- set sp_given = namespace(parts=[]) -%}
{%- for message in messages -%}
{%- if loop.first and message.role in ['system', 'developer'] -%}
{%- if message.content is string -%}{%- set sp_given.parts = [message.content] -%}{%- else -%}
{%- for part in message.content -%}{%- set sp_given.parts = sp_given.parts + [part.text] -%}{%- endfor -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if sp_given.parts and sp_given.parts[0] is string and sp_given.parts[0].startswith(@PLACE@) -%}
{%- set task = sp_given.parts[1] -%}
{%- if sp_given.parts[0] != @PLACE@ or task not in @NAMES@ -%}{{ raise_exception(@BROKEN@) }}{%- endif -%}
{%- set messages = [{'role': 'system', 'content': sp_given.parts[2:] | join or task}] + messages[1:] -%}
"""
_AS_STRINGS = """
{%- set sp_all = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content and message.content is not string -%}
{%- set sp_text = message.content | map(attribute='text') | join('\\n') -%}
{%- set sp_all.messages = sp_all.messages + [dict(message, content=sp_text)] -%}
{%- else -%}{%- set sp_all.messages = sp_all.messages + [message] -%}{%- endif -%}
{%- endfor -%}
{%- set messages = sp_all.messages -%}
"""


def write_embeds(base: FrozenLM, prompts: Mapping[str, Prompt], folder: Path) -> None:
    """Write all that a server and its clients need for ``prompts``, by their names.

    Raises:
        PromptFileError: keys and values, an ensemble, learned labels, a prompt of another base model, or one around
            which vLLM would read other tokens than it was learned with.
        BaseModelError: an encoder-decoder model.
        OutputError: the folder exists, or cannot be written.
    """
    from safetensors.torch import save_file

    check_free(folder)
    check_labels(prompts)
    check_expressible(base, prompts)
    if base.architecture != "decoder-only":
        raise BaseModelError(f"'{base.name}' is an encoder-decoder model, for which vLLM takes no embeddings")
    tokenizer = copy.deepcopy(base.tokenizer)
    holder = add_place(tokenizer)
    tokenizer.chat_template = _write_template(base, tokenizer, prompts)
    tasks = {}
    for name, prompt in prompts.items():
        if found := _find_other_tokens(base, tokenizer, name, prompt):
            raise PromptFileError(
                f"behind virtual tokens in a message vLLM would read the text {found[0]!r} as other tokens than "
                f"'{name}' was learned with: use --format vllm-kv or vocab"
            )
        tasks[name] = {**describe_task(prompt), "ids": [holder] * prompt.state.length}
    rows = {name: prompt.state.tensor.to("cpu", base.dtype).contiguous() for name, prompt in prompts.items()}
    saved = copy.deepcopy(base.tokenizer)
    saved.chat_template = tokenizer.chat_template
    with atomic_path(folder) as place:
        place.mkdir()
        save_file(rows, place / TENSOR_FILE)
        saved.save_pretrained(place)
        (place / USAGE_FILE).write_bytes(encode_json({**describe_usage(base, tasks), "input": EmbeddedTasks._INPUT}))
        (place / "README.md").write_text(embeds_readme(base, prompts, folder.name), encoding="utf-8")


def write(request: ExportRequest) -> dict[str, Any]:
    """``write_embeds`` as an export format."""
    write_embeds(request.model, request.prompts, request.out)
    return {}


class EmbeddedTasks(Tasks):
    """The tasks of such a folder, for vLLM's ``/v1/chat/completions``."""

    _ENDPOINT = "chat/completions"
    _INPUT = "parts"

    def __init__(self, tokenizer: Any, usage: Mapping[str, Any], rows: Mapping[str, Tensor]) -> None:
        super().__init__(tokenizer, usage)
        if missing := sorted(set(self.names) - set(rows)):
            raise PromptFileError(f"{TENSOR_FILE} lacks '{missing[0]}': export the prompts again")
        self._server = copy.deepcopy(tokenizer)
        add_place(self._server)
        self._parts = {name: {"type": "prompt_embeds", "data": encode_embeddings(rows[name])} for name in self.names}

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddedTasks":
        """The tasks of an exported folder; raises PromptFileError if it is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        usage = read_usage(Path(folder))
        try:
            rows = load_file(Path(folder) / TENSOR_FILE)
        except (OSError, SafetensorError) as error:
            raise PromptFileError(f"'{Path(folder) / TENSOR_FILE}' is missing or damaged: {error}") from error
        return cls(AutoTokenizer.from_pretrained(folder), usage, rows)

    def message(self, task: str, system: str | None = None) -> dict[str, Any]:
        """The message in front of a conversation's others that answers them with a task's prompt.

        Args:
            system: what the system says in place of what was kept beside the virtual tokens, where there was something.
        """
        said = [] if system is None else [_text_part(system)]
        return {"role": "system", "content": [self._parts[self._check_known(task)], _text_part(task), *said]}

    def _make_input(self, task: str, text: Asked, columns: Mapping[str, Any]) -> dict[str, Any]:
        expected = self.ids(task, text, **columns)  # refuses what is none
        messages = self._list_messages(task, text, columns)
        said = messages.pop(0)["content"] if messages[0]["role"] == "system" else None
        tools = columns.get("tools")
        given = {"messages": [self.message(task, said), *messages], **({"tools": list(tools)} if tools else {})}
        if self.read_as_server(given) != expected:
            raise ConfigError(
                f"vLLM would read this text as other tokens than softprompt does for '{task}': it spells a special "
                "token of the model, or is longer than was learned; the formats vocab and vllm-kv send token ids"
            )
        return given

    def _list_messages(self, task: str, text: Asked, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        """In OpenAI's form."""
        if isinstance(text, str):
            spec = self._encoders[task].spec
            whole = spec.chat is not None or split_template(spec) is None
            return [
                {"role": "user", "content": spec.compiled.render(Example(text, columns=columns)) if whole else text}
            ]
        messages = [one.to_dict() for one in parse_conversation(text).without_answer().messages]
        for call in (call for one in messages for call in one.get("tool_calls", ())):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        return messages

    def read_as_server(self, request: Mapping[str, Any]) -> list[int]:
        """The token ids that vLLM makes of a request's messages and tools, with one for each virtual token.

        Raises:
            ConfigError: the chat template refuses them.
        """
        lengths = {part["data"]: self._states[name].length for name, part in self._parts.items()}
        return read_as_server(self._server, request, lengths)

    def _read_completion(self, asked: Mapping[str, Any], answered: Any) -> str:
        read, sent = int(answered["usage"]["prompt_tokens"]), len(self.read_as_server(asked))
        if read != sent:
            raise ConfigError(
                f"the engine read {read} tokens where {sent} were sent, so its answer is none of the prompt's: start "
                f"it with --chat-template FOLDER/{TEMPLATE_FILE}, of the folder that these tasks are from"
            )
        return str(answered["choices"][0]["message"]["content"])


def read_as_server(tokenizer: Any, request: Mapping[str, Any], lengths: Mapping[str, int]) -> list[int]:
    """What vLLM makes of a request by the chat template of ``tokenizer``, which has ``PLACE``.

    Args:
        lengths: the rows of each part, by its data.
    """
    messages, counts = [], []
    for message in map(dict, request["messages"]):
        content = message.get("content") or ""
        parts = [_text_part(content)] if isinstance(content, str) else content
        counts += [lengths[one["data"]] for one in parts if one["type"] == "prompt_embeds"]
        message["content"] = [_text_part(PLACE) if one["type"] == "prompt_embeds" else one for one in parts]
        if "tool_calls" in message:
            message["tool_calls"] = [_with_parsed_arguments(call) for call in message["tool_calls"]]
        messages.append(message)
    try:
        ids = tokenizer.apply_chat_template(
            messages, tools=request.get("tools"), tokenize=True, return_dict=True, add_generation_prompt=True
        )["input_ids"]
    except Exception as error:  # the template's own, of whatever class
        raise ConfigError(f"the chat template refuses these messages: {error}") from error
    places, holder = iter(counts), tokenizer.convert_tokens_to_ids(PLACE)
    return [one for each in ids for one in [each] * (next(places, 1) if each == holder else 1)]


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def add_place(tokenizer: Any) -> int:
    """Add the token that holds the place of embeddings, as vLLM does, and give its id."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(PLACE, special=True, normalized=False)], special_tokens=True)
    return int(tokenizer.convert_tokens_to_ids(PLACE))


def _write_template(base: FrozenLM, tokenizer: Any, prompts: Mapping[str, Prompt]) -> str:
    """The chat template of a server: ``make_chat_template`` where a prompt's message begins, and else the model's."""

    def is_exact(name: str, gap: str) -> bool:
        tokenizer.chat_template = _join_templates(base, {name: prompts[name]}, {name: gap})
        return not _find_other_tokens(base, tokenizer, name, prompts[name])

    return _join_templates(base, prompts, choose_gaps(prompts, is_exact))


def _join_templates(base: FrozenLM, prompts: Mapping[str, Prompt], gaps: Mapping[str, str]) -> str:
    choice = fill_code(
        _CHOICE,
        {
            "PLACE": PLACE,
            "NAMES": list(prompts),
            "BROKEN": "expected the parts of a prompt's message apart, and the name of its task behind the first, one "
            f"of {', '.join(prompts)}: start vLLM with --chat-template-content-format openai",
        },
    )
    learned = make_chat_template(base, prompts, gaps, _WORDS)
    return choice + learned + OTHERWISE + _write_own(base) + END


def _write_own(base: FrozenLM) -> str:
    """The model's own chat template, for messages in parts."""
    own = write_own_template(base)
    if own is None:
        told = "this model has no chat template: begin with the message of a task (EmbeddedTasks.message)"
        return fill_code("{{ raise_exception(@TOLD@) }}", {"TOLD": told})

    def written(content: Any) -> str | None:
        try:
            said = [{"role": "user", "content": content}]
            return str(base.tokenizer.apply_chat_template(said, tokenize=False))
        except Exception:  # the template's own, of whatever class
            return None

    takes_parts = written([_text_part("a text")]) == written("a text")
    return ("" if takes_parts else fill_code(_AS_STRINGS, {})) + own


def _find_other_tokens(base: FrozenLM, tokenizer: Any, name: str, prompt: Prompt) -> list[str]:
    part = {"type": "prompt_embeds", "data": ""}
    holders = [tokenizer.convert_tokens_to_ids(PLACE)] * prompt.state.length

    def render(said: list[dict[str, Any]]) -> list[int]:
        front = {"role": "system", "content": [part, _text_part(name)]}
        return read_as_server(tokenizer, {"messages": [front, *said]}, {"": prompt.state.length})

    return find_other_tokens(base, prompt, holders, render)


def encode_embeddings(embeddings: Tensor) -> str:
    """A tensor as vLLM's API takes it: the bytes of ``torch.save`` in base64 (which are made here, never read)."""
    content = io.BytesIO()
    torch.save(embeddings.contiguous().clone(), content)
    return base64.b64encode(content.getvalue()).decode()
