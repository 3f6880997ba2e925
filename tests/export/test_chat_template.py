"""The baked checkpoint's chat template gives the tokens that a prompt was learned with, in every style."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.learned_prompts import learned
from helpers.tiny_models import random_prompt
from helpers.tokenizer_bases import NAMES, base_of
from helpers.tokenizer_styles import STYLES, style
from transformers import AutoTokenizer

from softprompt.data.task import TaskSpec
from softprompt.export.engine_client import Tasks
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

TEXTS = ("the film is good", "  two  blanks ", "\nline\n", "Caf\u00e9, 123", "a <b> c", "|sp:one:0|>")
TEMPLATES = ("Film: {{ text }}\nLabel:", "{{ text }}\nLabel:", "<{{ text }}")


def parse_prompt(name: str, template: str) -> Prompt:
    base = base_of(name)
    states = (PromptState.of_embeddings(random_prompt(base, 3).detach()),)
    return replace(
        learned("llama"), spec=TaskSpec("generation", template), states=states, base_fingerprint=base.fingerprint
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_chat_template_gives_the_tokens_of_the_whole_text(tmp_path: Path, name: str) -> None:
    templates = (*TEMPLATES, STYLES[name][1].partition("<s>")[2] if name.startswith("llama2") else STYLES[name][1])
    prompts = {f"t{index}": parse_prompt(name, template) for index, template in enumerate(templates)}
    baked = bake_vocabulary(base_of(name), prompts, tmp_path / "out")
    plain, tokenizer = style(name), AutoTokenizer.from_pretrained(tmp_path / "out")
    usage = json.loads((tmp_path / "out" / "softprompt.json").read_text())
    assert usage["inexact_as_text"] == list(baked.inexact) == []

    def chat(task: str, text: str) -> list[int]:
        said = [{"role": "user", "content": text}]
        found: Any = tokenizer.apply_chat_template(said, task=task, tokenize=True, return_dict=True)
        return list(found["input_ids"])

    tasks = Tasks.load(tmp_path / "out")
    bos = plain("").input_ids
    for task, template in zip(prompts, templates, strict=True):
        for text in TEXTS:
            whole = plain(template.replace("{{ text }}", text), add_special_tokens=False).input_ids
            # as text it would spell a virtual token, and is taken apart
            if not (text.startswith("|") and template.startswith("<{")):
                assert chat(task, text) == [*bos, *baked.ids(task), *whole]
            assert tasks.ids(task, text) == [*bos, *baked.ids(task), *whole]


def test_where_it_cannot_the_export_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, prompt = "llama2", parse_prompt("llama2", "{{ text }}\nLabel:")
    monkeypatch.setattr("softprompt.export.vocabulary._choose_gaps", lambda *given: {})
    baked = bake_vocabulary(base_of(name), {"one": prompt}, tmp_path / "out")
    assert baked.inexact == ("one",)
    assert "**Not exact as text: one.**" in (tmp_path / "out" / "README.md").read_text()


def test_thoughts_that_the_chat_template_spelled_come_from_no_text_of_a_client_either(tmp_path: Path) -> None:
    bake_vocabulary(base_of("qwen"), {"one": parse_prompt("qwen", "{{ text }}")}, tmp_path / "out")
    tasks, tokenizer = Tasks.load(tmp_path / "out"), style("qwen")
    assert tokenizer.convert_tokens_to_ids("<think>") not in tasks.ids("one", "a <think> b <tool>")
    assert tokenizer.convert_tokens_to_ids("<tool>") in tasks.ids("one", "a <think> b <tool>")
