"""Written prompts of chats beside what transformers' ``apply_chat_template`` and ``generate`` give."""

from typing import Any, ClassVar

import pytest
import torch
from helpers.chat_models import CHAT_FAMILIES, WITHOUT_SYSTEM, chat_base, chat_model, chat_tokenizer

import softprompt as sp
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.chats.chat_template import find_chat_template
from softprompt.data.examples import Example
from softprompt.data.task import Task
from softprompt.errors import ConfigError
from softprompt.inference.chat_answers import make_bare_state
from softprompt.inference.evaluation import add_baseline, evaluate
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.inference.written_baseline import write_baseline
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import front_ids
from softprompt.prompts.written_prompt import (
    check_instruction,
    choose_instruction,
    count_turns,
    count_written,
    write_prompt,
)

SYSTEM = "Say what the number is."
FAMILIES = ("qwen2_5", "llama3_1", "gemma3", "mistral_v3", "phi3_5", "gptoss")
WITH_SYSTEM = tuple(one for one in CHAT_FAMILIES if one not in WITHOUT_SYSTEM)


def chats(system: str | None = None, count: int = 12) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [
        {
            "messages": [
                *first,
                {"role": "user", "content": f"Number {index}?"},
                {"role": "assistant", "content": f"It is {index}."},
            ]
        }
        for index in range(count)
    ]


def reviews(count: int = 12) -> list[dict[str, str]]:
    return [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(count)]


def decided(base: FrozenLM, rows: Any, **options: Any) -> Task:
    return resolve_chat(base, Task.of(rows, **options))


def read_ids(base: FrozenLM, predictor: Predictor, example: Example) -> list[int]:
    """All that the model reads before it answers."""
    state = make_bare_state(base, predictor.spec)
    assert state is not None
    (text,) = predictor.encoder.encode_texts([example])
    return [*front_ids(base, state.placement), *state.placement.behind, *text]


def rendered(family: str, messages: list[dict[str, str]], task: Task) -> list[int]:
    assert task.spec.chat is not None
    tokenizer = chat_tokenizer(family)
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **task.spec.chat.arguments
    )
    # DeepSeek's asks with the beginning of thoughts, which no answer of its own template has
    left_out = find_chat_template(tokenizer, task.spec.chat).left_out
    return list(tokenizer.encode(text.removesuffix(left_out), add_special_tokens=False))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("family", WITH_SYSTEM)
@pytest.mark.parametrize("shots", [0, 2])
def test_instruction_and_examples_are_system_message_and_turns(family: str, shots: int) -> None:
    base = chat_base(family)
    task = decided(base, chats())
    solved = task.train[:shots]
    spec, state = write_prompt(base, task.spec, SYSTEM, solved)
    assert state is None
    example = task.test[0] if task.test else task.train[-1]
    turns = [part for one in solved for part in (turn("user", one.text), turn("assistant", one.references[0]))]
    messages = [turn("system", SYSTEM), *turns, turn("user", example.text)]
    assert read_ids(base, Predictor(base, spec), example) == rendered(family, messages, task)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_without_any_words_it_is_the_bare_conversation(family: str) -> None:
    base = chat_base(family)
    task = decided(base, chats())
    example = task.train[0]
    ids = read_ids(base, Predictor(base, task.spec), example)
    assert ids == rendered(family, [turn("user", example.text)], task)
    spec, state = write_prompt(base, task.spec)
    assert (spec, state) == (task.spec.without_prompt, None)
    # the words of the template itself where nobody gives others
    assert (count_written(base, spec) > 0) == (family == "qwen2_5")


@pytest.mark.parametrize("family", FAMILIES)
def test_completions_are_those_of_transformers(family: str) -> None:
    base, tokenizer = chat_base(family), chat_tokenizer(family)
    task = decided(base, chats(SYSTEM))
    spec, _ = write_prompt(base, task.spec, shots=task.train[:2])
    example = task.train[3]
    answer = Predictor(base, spec, None, GenerationConfig(max_new_tokens=12)).predict([example])[0].completion
    turns = [part for one in task.train[:2] for part in (turn("user", one.text), turn("assistant", one.references[0]))]
    ids = torch.tensor([rendered(family, [turn("system", SYSTEM), *turns, turn("user", example.text)], task)])
    model: Any = chat_model(family)
    given = {"attention_mask": torch.ones_like(ids), "pad_token_id": tokenizer.eos_token_id}
    found = model.generate(ids, **given, max_new_tokens=12, do_sample=False)
    said = found[0, ids.shape[1] :].tolist()
    # tiny random models say marks too, which softprompt leaves out of a completion's text as decode does
    assert answer == tokenizer.decode(said, skip_special_tokens=True) or answer in tokenizer.decode(said)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_solved_as_turns(family: str) -> None:
    base, tokenizer = chat_base(family), chat_tokenizer(family)
    task = decided(base, reviews())
    shots = task.train[:2]
    spec, _ = write_prompt(base, task.spec, "Was it liked?", shots)
    example = task.train[4]
    scores = Predictor(base, spec).label_log_probabilities([example])[0]
    turns = [part for one in shots for part in (turn("user", one.text), turn("assistant", str(one.label)))]
    asked = [turn("system", "Was it liked?"), *turns, turn("user", example.text)]
    assert task.spec.chat is not None
    render = tokenizer.apply_chat_template
    wholes = [
        render([*asked, turn("assistant", label)], tokenize=False, **task.spec.chat.arguments)
        for label in task.spec.labels
    ]
    ids = [tokenizer.encode(whole, add_special_tokens=False) for whole in wholes]
    parting = next(place for place, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    model: Any = chat_model(family)
    with torch.no_grad():
        logits = model(torch.tensor([ids[0]])).logits[0, parting - 1].float()
    expected = logits[[one[parting] for one in ids]].log_softmax(0)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-3)


def test_an_instruction_replaces_a_kept_one_but_not_that_of_a_row() -> None:
    base = chat_base("qwen2_5")
    kept = decided(base, reviews(), system="Kept.")
    spec, _ = write_prompt(base, kept.spec, "Another.")
    assert spec.chat is not None
    assert spec.chat.system == "Another."
    own = decided(base, chats("Their own."))
    assert own.spec.chat is not None
    assert own.spec.chat.system == "Their own."
    check_instruction("Their own.", own.train)
    with pytest.raises(ConfigError, match="these conversations have a system message of their own"):
        check_instruction("Another.", own.train)


def test_conversations_of_different_beginnings_have_the_turns_in_each() -> None:
    base = chat_base("qwen2_5")
    rows = [*chats("One.", 6), *chats("Two.", 6)]
    task = decided(base, rows)
    assert task.spec.chat is not None
    assert not task.spec.chat.shared
    spec, _ = write_prompt(base, task.spec, shots=task.train[:3])
    example = task.train[5]
    assert example.conversation is not None
    turns = [part for one in task.train[:3] for part in (turn("user", one.text), turn("assistant", one.references[0]))]
    messages = [turn("system", str(example.conversation.system)), *turns, turn("user", example.text)]
    assert read_ids(base, Predictor(base, spec), example) == rendered("qwen2_5", messages, task)
    assert spec.max_length > task.spec.max_length


def test_tokens_of_turns_are_counted() -> None:
    base = chat_base("qwen2_5")
    task = decided(base, chats())
    shots = task.train[:3]
    bare, _ = write_prompt(base, task.spec, SYSTEM)
    spec, _ = write_prompt(base, task.spec, SYSTEM, shots)
    assert count_written(base, spec) - count_written(base, bare) == sum(count_turns(base, task.spec, shots))


class TestGain:
    RUN: ClassVar[dict[str, Any]] = {"length": 60, "steps": 2, "batch_size": 4, "compile": "never", "progress": False}

    def test_is_over_the_kept_system_message_and_turns(self) -> None:
        base = chat_base("qwen2_5")
        task = decided(base, chats(SYSTEM, 20))
        written = write_baseline(base, task.spec, {"init": "examples"}, 200, 0, task.train)
        assert written.instruction == SYSTEM
        assert written.shots > 0
        assert written.spec.chat is not None
        assert len(written.spec.chat.turns) == 2 * written.shots
        assert str(written).startswith(f"'{SYSTEM}' and {written.shots} solved example")

    def test_of_labels_is_over_the_plain_instruction(self) -> None:
        base = chat_base("llama3_1")
        task = decided(base, reviews(20))
        written = write_baseline(base, task.spec, {"init": "text"}, 60, 0, task.train)
        assert (written.instruction, written.shots) == ("Classify the text as no or yes.", 0)
        words = write_baseline(base, task.spec, {"init": "text:Was it liked?"}, 60, 0, task.train)
        assert words.instruction == "Was it liked?"

    def test_of_conversations_without_system_message_is_over_none(self) -> None:
        base = chat_base("gemma3")
        task = decided(base, chats(None, 20))
        assert choose_instruction(task.spec, task.train) == ""
        written = write_baseline(base, task.spec, {"init": "text"}, 60, 0, task.train)
        assert str(written) == "no instruction"

    @pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
    def test_is_what_evaluating_the_written_spec_gives(self, method: str) -> None:
        base = chat_base("qwen2_5")
        rows = reviews(40)
        prompt = sp.fit(base, rows, method=method, init="text", system="Was it liked?", **self.RUN)
        found = prompt.metrics["test"]["baseline"]
        task = Task.of(rows, system="Was it liked?")
        spec, _ = write_prompt(base, resolve_chat(base, task).spec, "Was it liked?")
        assert found["value"] == evaluate(base, task.test, spec=spec).metric.value
        assert found["instruction"] == "Was it liked?"
        learned = evaluate(base, task.test, prompt)
        assert add_baseline(base, prompt, task.train, task.test, learned).baseline is not None
