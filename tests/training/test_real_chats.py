"""Conversations with the real instruct model, against transformers on the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import softprompt as sp
from softprompt.data.chats.chat_format import ChatFormat
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.task import TaskSpec
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.training.validation import mean_loss

pytestmark = pytest.mark.chat

SYSTEM = "You are a helpful assistant."
CHATS = Path(__file__).resolve().parents[2] / "tests_clients" / "assistant.jsonl"
TOOL = {
    "type": "function",
    "function": {
        "name": "find_weather",
        "description": "Find the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "id": "call_1", "function": {"name": "find_weather", "arguments": '{"city": "Paris"}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the weather in Paris? Say naïve, 天气 and  two blanks."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


@pytest.fixture(scope="module")
def prompt(qwen_base: FrozenLM) -> Prompt:
    """Virtual tokens inside the system turn, in front of the system prompt."""
    return sp.fit(qwen_base, str(CHATS), system=SYSTEM, length=16, steps=4, batch_size=4, progress=False)


@pytest.fixture(scope="module")
def plain(qwen_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(qwen_folder, dtype=torch.bfloat16)


def embeddings(base: FrozenLM, plain: Any, prompt: Prompt, text: str) -> tuple[Tensor, list[int]]:
    """A chat's text with the virtual tokens in front of the system prompt's words: ``[1, P+T, H]``, and its ids."""
    front, _, behind = text.partition(SYSTEM)
    first, second = (base.tokenizer.encode(part, add_special_tokens=False) for part in (front, SYSTEM + behind))
    embed = plain.get_input_embeddings()
    virtual = prompt.state.tensor.to(torch.bfloat16)
    return torch.cat([embed(torch.tensor(first)), virtual, embed(torch.tensor(second))])[None], second


def test_a_conversation_with_tools_has_the_ids_of_apply_chat_template(qwen_base: FrozenLM) -> None:
    tokenizer = qwen_base.tokenizer
    chat = ChatFormat(tokenizer.chat_template, tools=(TOOL,), placement="first", learn="last")
    spec = TaskSpec("generation", "{{ text }}", chat=chat, max_length=2000)
    task = sp.Task.of([{"messages": TURNS, "tools": [TOOL]}], spec=spec)
    encoder = ExampleEncoder(qwen_base, spec, 4)
    (item,) = encoder.training_items(task.splits["all"])
    place = encoder.placement
    # the template writes a mapping as JSON, and text as a string of JSON
    turns = json.loads(json.dumps(TURNS))
    turns[1]["content"] = ""
    turns[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Paris"}
    right = tokenizer.apply_chat_template(turns, tools=[TOOL])["input_ids"]
    ids = [*place.before, *place.behind, *item.ids, item.targets[-1]]
    assert right[: len(ids)] == ids
    assert tokenizer.decode(right[len(ids) :]) == "\n"
    assert tokenizer.decode(list(item.targets)) == "It is sunny.<|im_end|>"


def test_the_loss_of_an_answer_is_that_of_transformers(qwen_base: FrozenLM, plain: Any, prompt: Prompt) -> None:
    turns = [{"role": "user", "content": "What is 7 + 8?"}, {"role": "assistant", "content": "7 + 8 is 15."}]
    answer = "7 + 8 is 15.<|im_end|>"
    whole = qwen_base.tokenizer.apply_chat_template([{"role": "system", "content": SYSTEM}, *turns], tokenize=False)
    rows, ids = embeddings(qwen_base, plain, prompt, whole.removesuffix("\n"))
    count = len(qwen_base.tokenizer.encode(answer, add_special_tokens=False))
    with torch.no_grad():
        logits = plain(inputs_embeds=rows).logits[0, -count - 1 : -1].float()
    right = float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-count:])))
    predictor = Predictor(qwen_base, prompt.spec, prompt.states)
    items = predictor.encoder.training_items(sp.Task.of([{"messages": turns}], spec=prompt.spec).splits["all"])
    assert mean_loss(AnswerScorer(qwen_base, None), predictor.prefix, items) == pytest.approx(right, abs=0.05)


def test_answers_are_those_of_transformers(qwen_base: FrozenLM, plain: Any, prompt: Prompt) -> None:
    asked = [
        [{"role": "user", "content": "What is the capital of Spain?"}],
        [
            {"role": "user", "content": "My name is Ada and I live in Rome."},
            {"role": "assistant", "content": "Nice to meet you, Ada!"},
            {"role": "user", "content": "Where do I live?"},
        ],
    ]
    found = Predictor.of_prompt(qwen_base, prompt).predict([{"messages": turns} for turns in asked])
    for turns, one in zip(asked, found, strict=True):
        text = qwen_base.tokenizer.apply_chat_template(
            [{"role": "system", "content": SYSTEM}, *turns], tokenize=False, add_generation_prompt=True
        )
        rows, _ = embeddings(qwen_base, plain, prompt, text)
        said = plain.generate(inputs_embeds=rows, do_sample=False, max_new_tokens=24)[0]
        assert one.completion == qwen_base.tokenizer.decode(said, skip_special_tokens=True)
    assert "Madrid" in str(found[0].completion)
    assert "Rome" in str(found[1].completion)
