"""Inspection of prompts that learned chats, beside what transformers computes on the whole conversation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.chat_models import chat_base, chat_model, chat_tokenizer

import softprompt as sp
from softprompt.analysis.inspection.attention_weights import measure_attention
from softprompt.analysis.inspection.inspect_prompt import InspectionLimits, inspect
from softprompt.analysis.inspection.pruning import prune
from softprompt.analysis.inspection.score_records import score_states
from softprompt.analysis.inspection.template_mismatch import check_served_template
from softprompt.analysis.inspection.token_meaning import continue_prompt
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.predictor import Predictor
from softprompt.prompts.saved_prompt import Prompt
from softprompt.report.pages.inspection_page import make_inspection_document
from softprompt.report.render.html import render_html

FAMILY = "qwen2_5"
SYSTEM = "Was it liked?"
RUN: dict[str, Any] = {"length": 4, "steps": 3, "batch_size": 8, "eval_every": 3, "compile": "never"}
LIMITS = InspectionLimits.of(12)


def labelled(count: int = 60) -> list[dict[str, Any]]:
    words = ("dull", "fine")
    return [
        {
            "messages": [
                {"role": "user", "content": f"I saw film {index}, a story of {index * 7} days."},
                {"role": "assistant", "content": "How was it?"},
                {"role": "user", "content": f"It was {words[index % 2]}."},
            ],
            "label": ("no", "yes")[index % 2],
        }
        for index in range(count)
    ]


def chats(count: int = 40) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Number {index}?"},
                {"role": "assistant", "content": f"It is {index}."},
            ]
        }
        for index in range(count)
    ]


def learned(rows: Any, method: str = "prompt-tuning", **options: Any) -> Prompt:
    return sp.fit(chat_base(FAMILY), rows, method=method, progress=False, system=SYSTEM, **RUN, **options)


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return learned(labelled())


def whole_embeddings(prompt: Prompt, example: Example) -> tuple[torch.Tensor, int]:
    """What the model reads of a conversation, ``[1, T, H]``, and where the virtual tokens begin, by transformers."""
    tokenizer, model = chat_tokenizer(FAMILY), chat_model(FAMILY)
    assert example.conversation is not None
    sign = "\ue000"
    messages = [{"role": "system", "content": sign + SYSTEM}, *(one.to_dict() for one in example.conversation.messages)]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    front, _, behind = text.partition(sign)
    ids = [tokenizer.encode(part, add_special_tokens=False) for part in (front, behind)]
    embed = model.get_input_embeddings()
    rows = [embed(torch.tensor(ids[0])), prompt.state.tensor, embed(torch.tensor(ids[1]))]
    return torch.cat(rows)[None].detach(), len(ids[0])


def test_attention_is_that_of_the_whole_conversation(prompt: Prompt) -> None:
    base = chat_base(FAMILY)
    task = Task.matching(prompt.spec, labelled())
    example = task.test[0]
    found, shares = measure_attention(base, prompt.spec, prompt.state, [example])
    rows, front = whole_embeddings(prompt, example)
    model: Any = chat_model(FAMILY)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        layers = model(inputs_embeds=rows, output_attentions=True).attentions
    for index, layer in enumerate(layers):
        last = layer[0, :, -1].mean(0)
        assert found.bos[index] == pytest.approx(float(last[:front].sum()), abs=1e-5)
        of_prompt = last[front : front + prompt.length]
        assert found.prompt[index] == pytest.approx(float(of_prompt.sum()), abs=1e-5)
        np.testing.assert_allclose(shares[:, index], of_prompt.numpy(), atol=1e-5)
    assert found.even == pytest.approx(prompt.length / rows.shape[1])


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning"])
def test_no_virtual_tokens_leave_their_place_empty(kind: str) -> None:
    base, own = chat_base(FAMILY), learned(labelled(), kind)
    task = Task.matching(own.spec, labelled())
    scored = score_states(base, own.spec, [own.state, None], task.test)
    direct = Predictor(base, own.spec, own.states).label_log_probabilities(task.test)
    assert scored.log_probabilities is not None
    np.testing.assert_allclose(scored.log_probabilities[0], direct.double().numpy(), atol=1e-5)
    # the kept system message alone is what stays
    bare = Predictor(base, own.spec).label_log_probabilities(task.test)
    np.testing.assert_allclose(scored.log_probabilities[1], bare.double().numpy(), atol=1e-4)


def test_what_it_says_alone_follows_the_virtual_tokens_in_the_system_turn(prompt: Prompt) -> None:
    found, remark = continue_prompt(chat_base(FAMILY), prompt.state)
    assert remark is None
    tokenizer, model = chat_tokenizer(FAMILY), chat_model(FAMILY)
    embed = model.get_input_embeddings()
    front = embed(torch.tensor(tokenizer.encode("<|im_start|>system\n", add_special_tokens=False)))
    for likeliest, rows in ((found.next, [front, prompt.state.tensor]), (found.without_next, [front])):
        with torch.no_grad():
            logits = model(inputs_embeds=torch.cat(rows)[None]).logits[0, -1].float()
        values = logits.softmax(-1).topk(len(likeliest)).values
        assert [one.probability for one in likeliest] == pytest.approx(values.tolist(), rel=1e-3)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("rows", [labelled(), chats()], ids=["labels", "answers"])
def test_every_question_is_answered_and_told(method: str, rows: list[dict[str, Any]]) -> None:
    base, own = chat_base(FAMILY), learned(rows, method)
    found = inspect(base, own, rows, limits=LIMITS, progress=False)
    assert found.answers.comparison is not None
    assert found.answers.comparison.reference == f"written prompt '{SYSTEM}'"
    assert found.training["conversations"] == str(own.spec.chat)
    assert all(one.ablation is not None for one in found.tokens)
    assert not any("movement" in note for note in found.notes)
    page = render_html(make_inspection_document(found))
    assert SYSTEM in page


def test_an_instruction_in_place_of_their_own_system_message_is_refused() -> None:
    rows = [{**row, "messages": [{"role": "system", "content": SYSTEM}, *row["messages"]]} for row in labelled()]
    own = sp.fit(chat_base(FAMILY), rows, progress=False, **RUN)
    with pytest.raises(ConfigError, match="these conversations have a system message of their own"):
        inspect(chat_base(FAMILY), own, rows, instruction="Another.", limits=LIMITS, progress=False)


def test_texts_that_a_template_has_been_over_are_told(prompt: Prompt) -> None:
    base = chat_base(FAMILY)
    rows = [
        {"text": f"<|im_start|>user\nfilm {index}<|im_end|>", "label": ("no", "yes")[index % 2]} for index in range(9)
    ]
    examples = Task.matching(prompt.spec, rows).splits["all"]
    scored = score_states(base, prompt.spec, prompt.states, examples)
    found = check_served_template(base, prompt.spec, prompt.states, examples, scored)
    assert any("spell the chat template's own marks, '<|im_end|>'" in one for one in found.texts)


def test_a_shorter_prompt_stands_in_the_same_place(prompt: Prompt, tmp_path: Path) -> None:
    base = chat_base(FAMILY)
    short = prune(base, prompt, labelled(), tolerance=1.0, progress=False).prompt
    assert short.length == 1
    assert short.state.placement == prompt.state.placement
    short.save(tmp_path / "short")
    assert Predictor.of_prompt(base, tmp_path / "short").predict("a film").label in ("no", "yes")


def test_the_reference_of_conversations_that_go_on_is_none() -> None:
    base = chat_base(FAMILY)
    own = sp.fit(base, chats(), progress=False, **RUN)
    found = inspect(base, own, chats(), limits=LIMITS, progress=False)
    assert found.answers.comparison is not None
    assert found.answers.comparison.reference == "no system message"
