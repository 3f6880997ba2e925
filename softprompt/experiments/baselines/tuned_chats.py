"""What lies beside tuned weights that learned chats: the chat template, and how to ask with it."""

import json
from pathlib import Path
from typing import Any

from softprompt.data.task import TaskSpec
from softprompt.models.frozen_lm import FrozenLM
from softprompt.utils.files import write_durably

TEMPLATE_FILE = "chat_template.jinja"

_README = """# {title}

It learned conversations as this chat template writes them (`{file}`); `task.json` tells the task. Ask it so:

```python
from pathlib import Path

{imports}

folder = Path("FOLDER")
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
{model}
tokenizer.chat_template = (folder / "{file}").read_text()
messages = {messages}
asked = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{arguments}
)
answer = model.generate(**asked, max_new_tokens=64)[0, asked["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```
{labels}"""


def write_chat_files(folder: Path, base: FrozenLM, spec: TaskSpec, *, adapter: bool) -> None:
    """Write the chat template and a README into ``folder``; nothing for a task without chats."""
    if spec.chat is None:
        return
    write_durably(folder / TEMPLATE_FILE, spec.chat.template.encode())
    write_durably(folder / "README.md", _describe_use(base, spec, adapter=adapter).encode())


def _describe_use(base: FrozenLM, spec: TaskSpec, *, adapter: bool) -> str:
    assert spec.chat is not None
    name = json.dumps(base.name)
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    model = 'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")'
    if adapter:
        imports = f"from peft import PeftModel\n{imports}"
        model = f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({name}, dtype="auto"), folder)'
    system = [] if spec.chat.system is None else [{"role": "system", "content": spec.chat.system}]
    said = [*system, *(turn.to_dict() for turn in spec.chat.turns), {"role": "user", "content": "…"}]
    named: dict[str, Any] = {**spec.chat.arguments, **({"tools": list(spec.chat.tools)} if spec.chat.tools else {})}
    labels = "" if not spec.labels else f"\nThe assistant answers with one of: {', '.join(spec.verbalizers)}.\n"
    if spec.template != "{{ text }}" and not spec.chat.turns:
        labels += f"\nWhat the user says is made of a row by this template:\n\n```jinja\n{spec.template}\n```\n"
    return _README.format(
        title="A LoRA adapter for chats" if adapter else "A fine-tuned model for chats",
        file=TEMPLATE_FILE,
        imports=imports,
        tokenizer=name if adapter else "folder",
        model=model,
        messages=repr(said),
        arguments="".join(f", {key}={value!r}" for key, value in named.items()),
        labels=labels,
    )
