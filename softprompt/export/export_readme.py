"""What stands beside an export for whoever uses it: how texts must be fed."""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.encoding.placement import Placement
from softprompt.errors import PromptFileError, printable
from softprompt.models.builtin_models import MODEL_NAME as EMBEDDED_NAME
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import expand_user
from softprompt.utils.messages import map_read_errors
from softprompt.utils.safe_io import TEXT_LIMIT, parse_json, read_file

USAGE_FILE = "softprompt.json"
MARKER = "<|sp:"  # what virtual tokens begin with
SCHEMA_VERSION = 1
PROBED = 8  # tokens whose log-probabilities are noted

_FEEDING = {
    "whole": "BOS is its first virtual token. Tokenise texts **without** BOS, or the model sees it twice:",
    "as it is": "The prompt is the first thing that the model sees. Tokenise texts **without** BOS:",
    "no bos": "This model's tokenizer has no BOS, so nothing can go wrong with it:",
}

_OF_TEXTS = (
    "A prompt that was learned from single texts answers one message of the user; earlier turns and other system "
    "messages are refused."
)
_OF_CHATS = (
    "One that was learned from conversations takes `messages` in `/v1/chat/completions` as any chat model does: the "
    "chat template it was learned with writes them, with the virtual tokens and what was kept beside them in place."
)
_OF_MARKS = (
    "There, as with any chat template, a message can spell the model's other special tokens; in token ids it cannot."
)


def tokenizer_files(base: FrozenLM, *, always: bool = False) -> dict[str, bytes]:
    """The tokenizer, by the names of its files, where only this machine knows the model by its name, or ``always``."""
    if _is_public(base) and not always:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        base.tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def _is_public(base: FrozenLM) -> bool:
    """Whether the model is called by a name of the hub."""
    return base.name != EMBEDDED_NAME and not expand_user(base.name).exists()


def _describe_base(base: FrozenLM) -> tuple[str, str]:
    """Python that finds the model, and what ``from_pretrained`` is then given."""
    if base.name == EMBEDDED_NAME:
        source = "from softprompt.models.builtin_models import embedded_model_folder  # pip install 'softprompt[demo]'"
        return f"{source}\n\nbase = str(embedded_model_folder())", "base"
    path = expand_user(base.name)
    if path.is_file():
        found = f"base = {str(path.parent)!r}  # a folder with {path.name}, wherever yours is"
        return found, f"base, gguf_file={path.name!r}"
    return f"base = {base.name!r}{'' if _is_public(base) else '  # or wherever yours is'}", "base"


def peft_readme(base: FrozenLM, prompt: Prompt, name: str) -> str:
    """How to load an adapter folder called ``name`` and what to feed it."""
    feeding = "no bos" if not base.special_tokens.bos else "whole" if prompt.state.behind_bos else "as it is"
    apart = base.architecture == "encoder-decoder"
    family = "AutoModelForSeq2SeqLM" if apart else "AutoModelForCausalLM"
    found, given = _describe_base(base)
    skipped, tokenizer = len(base.special_tokens.bos), "base" if _is_public(base) else repr(name)
    ids = "tokenizer(text, return_tensors='pt').input_ids" + (f"[:, {skipped}:]  # without BOS" if skipped else "")
    task, imported, clients, loaded = "\n".join(list_task_lines(prompt)), "", "", ""
    told, what = _FEEDING[feeding], "the template below, filled in"
    if prompt.spec.chat is not None:
        told = "All that conversations begin with (BOS, the opening of a system turn, what was kept beside the virtual "
        told += "tokens) is among its virtual tokens. Feed what follows it:"
        imported, clients = "import torch\n", "from softprompt.export.engine_client import Tasks\n"
        what = "messages, as [{'role': 'user', 'content': '...'}]"
        loaded = f"tasks = Tasks.load({name!r})\n"
        ids = f"torch.tensor([tasks.text_ids({name!r}, text)])"
    return f"""\
# {name}

A prompt learned with softprompt ({prompt.method}) for `{base.name}`, as a PEFT adapter. {told}

```python
{imported}from peft import PeftModel
{clients}from transformers import {family}, AutoTokenizer

{found}
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
model = PeftModel.from_pretrained({family}.from_pretrained({given}, dtype='float32'), {name!r})
{loaded}text = ...  # {what}
ids = {ids}
logits = model({"input_ids=ids, decoder_input_ids=..." if apart else "input_ids=ids"}).logits
```

In float32 these are softprompt's logits to 1e-4; other precisions round them as they do any. Pad batches on the \
right, or not at all. `softprompt import` reads this folder back to the bit.

{task}"""


def list_task_lines(prompt: Prompt) -> list[str]:
    """Template and labels, as Markdown."""
    spec = prompt.spec
    if spec.chat is not None:
        return [*_list_chat_lines(spec.chat, spec.template), *_list_answers(prompt)]
    names = " or ".join(f"`{{{{ {name} }}}}`" for name in dict.fromkeys(("text", spec.columns.text)))
    lines = [f"The template (as in Jinja2; {names} is your text):", "", f"```jinja\n{spec.template}\n```", ""]
    return [*lines, *_list_answers(prompt)]


def _list_answers(prompt: Prompt) -> list[str]:
    spec = prompt.spec
    if prompt.state.label_rows is not None:
        names = ", ".join(f"`{printable(label)}`" for label in spec.labels)
        return [f"Its labels are tokens of their own (`label_ids` in `{USAGE_FILE}`), in this order: {names}.", ""]
    answers = [
        f"`{printable(spec.answer_separator + words)}` for {printable(label)}"
        for label, words in zip(spec.labels, spec.verbalizers, strict=True)
    ]
    return [f"The answer that follows it: {', '.join(answers)}.", ""] if answers else []


def _list_chat_lines(chat: ChatFormat, template: str) -> list[str]:
    lines = ["It was learned from conversations: send `messages` as to any chat model, and the assistant answers."]
    if chat.system is not None:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", chat.system)), default=0))
        lines += [
            "The system message stands beside the virtual tokens already; one that you send takes its place:",
            "",
            f"{fence}text\n{chat.system}\n{fence}",
        ]
    elif chat.shared:
        lines += ["It was learned without a system message: leave it out."]
    else:
        lines += ["Each conversation brings its own system message, or none."]
    if chat.tools:
        names = ", ".join(f"`{printable(str(one.get('function', {}).get('name')))}`" for one in chat.tools)
        lines += [f"Tools that are offered where you offer none: {names}."]
    if chat.turns:
        lines += [f"{len(chat.turns)} turns stand in front of those that you send, as solved examples."]
    if template != "{{ text }}":
        lines += ["What the user says was learned in this template:", "", f"```jinja\n{template}\n```"]
    return [*lines, ""]


def vocabulary_readme(name: str, prompts: Mapping[str, Prompt], limits: Sequence[str], inexact: Sequence[str]) -> str:
    """What a checkpoint with baked prompts is, and how clients feed it.

    ``inexact``: tasks for which the chat template is none that they were learned with.
    """
    first = next(iter(prompts))
    # where a chat template cannot write what was learned
    said = f"""\
**Not exact as text: {", ".join(inexact)}.** This tokenizer reads the template behind a task's tokens as other tokens \
than the prompt was learned with, so answers through the chat template are others: feed token ids.

"""
    forbidden = "\n".join(f"- {line}" for line in limits)
    answered = _describe_messages(prompts)
    if _OF_CHATS in answered:
        answered += f" {_OF_MARKS}"
    return f"""\
# {name}

`{prompts[first].base_name}` with learned prompts of softprompt as tokens of its vocabulary. A request for a task is \
BOS, the tokens of the task, and the text. The task's own string of tokens, template and labels are in `{USAGE_FILE}`.

Users' text must never be read as these tokens. Feed token ids:

```python
from softprompt.export.engine_client import Tasks

tasks = Tasks.load({name!r})
ids = tasks.ids({first!r}, "the user's text")  # the `prompt` of a completions request
```

The chat template chooses a task by `chat_template_kwargs={{"task": ...}}` or by a system message that is the task's \
name, and takes `{MARKER}` apart wherever a message contains it. {answered}

{said if inexact else ""}The tokens must never be generated:

{forbidden}

{_describe_tasks(prompts)}"""


def prefixes_readme(base: FrozenLM, prompts: Mapping[str, Prompt], name: str) -> str:
    """How to start a vLLM server on the model with the connector, and how to ask it."""
    return f"""\
# {name}

Learned prompts of softprompt for `{base.name}` as keys and values, for a stock vLLM that runs the model itself. \
Install softprompt where vLLM is (`pip install softprompt`), and start the server with the connector and this folder:

```console
$ vllm serve {_find_source(base)} --served-model-name base --kv-transfer-config '{{
    "kv_connector": "SoftpromptConnector", "kv_role": "kv_consumer",
    "kv_connector_module_path": "softprompt.engines.vllm_connector",
    "kv_connector_extra_config": {{"prompts": "{name}"}}}}'
```

```python
from softprompt.export.engine_client import Tasks

tasks, url = Tasks.load({name!r}), 'http://localhost:8000/v1'
answer = tasks.ask(url, {next(iter(prompts))!r}, "the user's text", model='base')
```

A request (`tasks.request`) is token ids, of which the first hold the prompt's place, and names the prompt in \
`kv_transfer_params` and as `cache_salt`. `softprompt serve --engine vllm --engine-prompts {name}` in front of the \
server makes such requests of OpenAI's, by the names and versions of a store, and brings new prompts here.

{_describe_tasks(prompts)}"""


def _find_source(base: FrozenLM) -> str:
    """The model, as a shell is told of it; the folder of the embedded one is another on every machine."""
    if base.name != EMBEDDED_NAME:
        return base.name
    return "$(python -c 'from softprompt.models.builtin_models import embedded_model_folder as f; print(f())')"


def embeds_readme(base: FrozenLM, prompts: Mapping[str, Prompt], name: str) -> str:
    """How to ask a vLLM server by embeddings."""
    tokenizer = ""
    if base.name != EMBEDDED_NAME and expand_user(base.name).is_file():
        tokenizer = f" --tokenizer {name}"
    first = next(iter(prompts))
    return f"""\
# {name}

Learned prompts of softprompt for `{base.name}` as parts of messages. Start vLLM on the model itself, with the chat \
template of this folder, and only where you trust who can reach it, as vLLM's documentation advises:

```console
$ vllm serve {_find_source(base)} --served-model-name base{tokenizer} --enable-prompt-embeds \\
    --chat-template {name}/chat_template.jinja
```

A prompt's message in front of the others chooses the task; requests without one are answered as by the model alone:

```python
from openai import OpenAI
from softprompt.export.vllm_embeddings import EmbeddedTasks

tasks, client = EmbeddedTasks.load({name!r}), OpenAI(base_url='http://localhost:8000/v1', api_key='none')
said = [{{'role': 'user', 'content': "the user's text"}}]
answer = client.chat.completions.create(model='base', messages=[tasks.message({first!r}), *said])
```

`tasks.ask(url, {first!r}, text, model='base')` holds the answer to the task's labels too, and refuses what vLLM would \
read as other tokens than softprompt does: texts that spell a special token of the model, or are longer than was \
learned. {_describe_messages(prompts)}

{_describe_tasks(prompts)}"""


def _describe_messages(prompts: Mapping[str, Prompt]) -> str:
    return " ".join(dict.fromkeys(_OF_TEXTS if one.spec.chat is None else _OF_CHATS for one in prompts.values()))


def _describe_tasks(prompts: Mapping[str, Prompt]) -> str:
    return "\n".join(line for name, one in prompts.items() for line in (f"## {name}", "", *list_task_lines(one)))


def encode_json(values: Mapping[str, Any]) -> bytes:
    """A JSON file for people to read."""
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def describe_usage(base: FrozenLM, tasks: Mapping[str, Any], never_generate: Sequence[int] = ()) -> dict[str, Any]:
    """What clients of an engine must know of a model and its tasks, as ``softprompt.json`` has it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "bos_ids": list(base.bos_ids),
        "context_length": base.context_length,
        "embedding_size": base.embedding_size,
        "never_generate": list(never_generate),
        # the model's own, in whose place an exported one may stand
        "chat_template": base.tokenizer.chat_template,
        "tasks": dict(tasks),
    }


def note_probe(ids: Sequence[int], logits: Tensor) -> dict[str, Any]:
    """The likeliest tokens of logits ``[V]`` behind token ids, for an engine to be compared with."""
    likeliest = logits.log_softmax(-1).topk(min(PROBED, len(logits)))
    return {
        "ids": list(ids),
        "tokens": likeliest.indices.tolist(),
        "log_probabilities": [round(one, 5) for one in likeliest.values.tolist()],
    }


def describe_task(prompt: Prompt) -> dict[str, Any]:
    """What a client must know of a task: how its texts are written, and what answers mean."""
    return {
        "task": prompt.spec.to_dict(),
        "length": prompt.state.length,
        # whether the tokenizer's BOS stands in front of the prompt
        "add_special_tokens": prompt.state.behind_bos,
        # token ids between BOS and the virtual tokens, and between these and each text
        "before": list(prompt.state.placement.before),
        "behind": list(prompt.state.placement.behind),
    }


def read_placement(task: Mapping[str, Any]) -> Placement:
    """What ``describe_task`` says of the place; raises ValueError for what is none."""
    return Placement.from_dict({**task, "behind_bos": task["add_special_tokens"]})


def list_front(bos: Sequence[int], placement: Placement, virtual: Sequence[int]) -> tuple[int, ...]:
    """Token ids in front of every text: BOS, the ``virtual`` tokens, and what stands around these."""
    return (*(bos if placement.behind_bos else ()), *placement.before, *virtual, *placement.behind)


def read_usage(folder: Path) -> dict[str, Any]:
    """What stands beside an export.

    Raises:
        PromptFileError: it is not there, or damaged.
        DataError: it cannot be read.
    """
    if not (folder / USAGE_FILE).is_file():
        raise PromptFileError(f"'{folder}' is no export of softprompt: it holds no {USAGE_FILE}")
    return read_object(folder / USAGE_FILE)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object out of a file; raises as ``read_usage``."""
    with map_read_errors(path):
        try:
            values = parse_json(read_file(path, TEXT_LIMIT))
        except ValueError as error:
            raise PromptFileError(f"'{path}' is damaged: {error}") from error
    if not isinstance(values, dict):
        raise PromptFileError(f"'{path}' is damaged: expected a JSON object")
    return values
