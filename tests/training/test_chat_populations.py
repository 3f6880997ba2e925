"""Several prompts that learn chats together: tasks with chats of their own forms, ensembles, checkpointed layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import chat_base

import softprompt as sp
from softprompt.data.encoding.conversation_encoder import find_placement
from softprompt.errors import ConfigError
from softprompt.inference.predictor import Predictor

FAMILIES = ("qwen2_5", "llama3_1", "gemma3")
RUN: dict[str, Any] = {"length": 4, "steps": 2, "batch_size": 4, "eval_every": 2, "compile": "never", "progress": False}


def reviews() -> list[dict[str, str]]:
    return [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(30)]


def chats(system: str) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": f"Number {index}?"},
                {"role": "assistant", "content": f"It is {index}."},
            ]
        }
        for index in range(30)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_several_tasks_has_the_place_of_its_own_chats(family: str, tmp_path: Path) -> None:
    base = chat_base(family)
    tasks = {
        "labels": sp.Task.of(reviews(), system="Was it liked?"),
        "answers": sp.Task.of(chats("Be exact.")),
        "plain": sp.Task.of(reviews(), chat_template="none"),
    }
    found = sp.fit(base, tasks, out=tmp_path / "all", **RUN)
    for name, prompt in found.items():
        assert prompt.state.placement == find_placement(base, prompt.spec)
        again = Predictor.of_prompt(base, tmp_path / "all" / name)
        examples = tasks[name].splits["test"] or tasks[name].splits["validation"]
        assert len(again.predict(list(examples))) == len(examples)
    # Gemma writes the system message into what the user says, behind all that is shared
    places = 2 if family == "gemma3" else 3
    assert len({prompt.state.placement for prompt in found.values()}) == places
    assert found["plain"].spec.chat is None


def test_a_teacher_stands_where_its_task_says() -> None:
    base = chat_base("qwen2_5")
    teacher = sp.fit(base, reviews(), system="Was it liked?", **RUN)
    tasks = {"a": sp.Task.of(reviews(), system="Was it liked?"), "b": sp.Task.of(chats("Be exact."))}
    assert set(sp.fit(base, tasks, teachers={"a": teacher}, **RUN)) == {"a", "b"}
    others = {"a": sp.Task.of(reviews(), system="Another."), "b": tasks["b"]}
    with pytest.raises(ConfigError, match="this prompt stands elsewhere than its task's conversations say"):
        sp.fit(base, others, teachers={"a": teacher}, **RUN)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_an_ensemble_answers_as_its_members_do(family: str, method: str) -> None:
    base = chat_base(family)
    configs = {
        f"seed {seed}": sp.TrainConfig(method=method, seed=seed, init="vocab", length=4, steps=2, batch_size=4)
        for seed in (0, 1)
    }
    prompt = sp.fit(base, reviews(), config=configs, ensemble=True, system="Was it liked?", progress=False)
    assert len(prompt.states) == 2
    texts = sp.Task.matching(prompt.spec, reviews()).test
    together = Predictor(base, prompt.spec, prompt.states).member_log_probabilities(texts)
    alone = torch.stack([Predictor(base, prompt.spec, one).label_log_probabilities(texts) for one in prompt.states])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_layers_that_are_run_again_learn_the_same(family: str, method: str) -> None:
    base = chat_base(family)
    plain, again = (
        sp.fit(base, chats("Be exact."), method=method, gradient_checkpointing=one, **RUN) for one in (False, True)
    )
    for a, b in zip(plain.state.tensors, again.state.tensors, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
