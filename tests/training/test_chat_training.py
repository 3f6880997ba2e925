"""Conversations from rows to a saved prompt, on tiny models with real templates."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import chat_base, chat_model, chat_tokenizer

import softprompt as sp
from softprompt.data.examples import Example
from softprompt.inference.predictor import Predictor
from softprompt.prompts.saved_prompt import Prompt

FAMILIES = ("qwen2_5", "qwen3", "llama3_1", "gemma3", "mistral_v3", "phi3_5", "gptoss")
SETTINGS: dict[str, Any] = {"steps": 2, "batch_size": 4, "length": 5, "init": "text:Say it.", "progress": False}


def chats(system: str | None = None) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system else []
    return [
        {
            "messages": [
                *first,
                {"role": "user", "content": f"Number {index}?"},
                {"role": "assistant", "content": f"It is {index}."},
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": f"Yes, {index}."},
            ]
        }
        for index in range(40)
    ]


def reviews() -> list[dict[str, str]]:
    return [{"text": f"a film {index}", "label": ("no", "yes")[index % 2]} for index in range(40)]


def plain_loss(family: str, prompt: Prompt, messages: list[dict[str, str]], learned: str) -> float:
    """Mean loss of the tokens of ``learned`` at the end of a conversation, by transformers alone.

    The virtual tokens stand in front of the system message's text.
    """
    model, tokenizer = chat_model(family).requires_grad_(False), chat_tokenizer(family)
    sign = "\ue000"
    first = messages[0]["content"] if messages[0]["role"] == "system" else ""
    others = messages[1:] if messages[0]["role"] == "system" else messages
    text = tokenizer.apply_chat_template([{"role": "system", "content": sign + first}, *others], tokenize=False)
    front, _, behind = text.partition(sign)
    behind = behind[: behind.rindex(learned) + len(learned)]
    ids = [tokenizer.encode(part, add_special_tokens=False) for part in (front, behind)]
    embed = model.get_input_embeddings()
    rows = torch.cat([embed(torch.tensor(ids[0])), prompt.state.tensor, embed(torch.tensor(ids[1]))])[None]
    logits = model(inputs_embeds=rows).logits[0].float()
    count = len(tokenizer.encode(learned, add_special_tokens=False))
    targets = torch.tensor(ids[1][-count:])
    return float(torch.nn.functional.cross_entropy(logits[-count - 1 : -1], targets))


def our_loss(base: Any, prompt: Prompt, row: dict[str, Any]) -> float:
    from softprompt.inference.scoring import AnswerScorer
    from softprompt.training.validation import mean_loss

    task = sp.Task.of([row], spec=prompt.spec)
    predictor = Predictor(base, prompt.spec, prompt.states)
    items = predictor.encoder.training_items(task.splits["all"])
    return mean_loss(AnswerScorer(base, None), predictor.prefix, items)


@pytest.mark.parametrize("system", [None, "Answer shortly."])
def test_the_loss_of_an_answer_is_that_of_transformers(system: str | None) -> None:
    base = chat_base("qwen2_5")
    prompt = sp.fit(base, chats(system), learn="last", **SETTINGS)
    assert prompt.spec.chat is not None
    assert prompt.spec.chat.system == system
    row = chats(system)[7]
    # what ends the turn is learned too
    right = plain_loss("qwen2_5", prompt, row["messages"], "Yes, 7.<|im_end|>")
    assert our_loss(base, prompt, row) == pytest.approx(right, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_chats_are_learned_saved_and_answered(family: str, method: str, tmp_path: Path) -> None:
    base = chat_base(family)
    prompt = sp.fit(base, chats("Be exact."), out=tmp_path / "p", method=method, max_new_tokens=None, **SETTINGS)
    again = sp.Predictor.of_prompt(base, tmp_path / "p")
    rows = [{"messages": row["messages"][:-1]} for row in chats("Be exact.")[:3]]
    answers = again.predict(rows)
    one = Predictor.of_prompt(base, prompt).predict(rows[1])
    assert answers[1].completion == one.completion
    saved = json.loads((tmp_path / "p" / "prompt.json").read_text())
    assert saved["task"]["chat"]["system"] == "Be exact."


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_text_are_what_a_user_says(family: str) -> None:
    base = chat_base(family)
    prompt = sp.fit(base, reviews(), system="Was it liked? Say no or yes.", **SETTINGS)
    assert prompt.spec.template == "{{ text }}"
    predictor = Predictor.of_prompt(base, prompt)
    (text,) = predictor.encoder.texts([Example("a film 3")])
    assert "a film 3" in text[0]
    assert "Label" not in text[0]
    probabilities = predictor.predict("a film 3").probabilities
    assert probabilities is not None
    assert sum(probabilities.values()) == pytest.approx(1)


def test_a_chat_template_is_left_out_where_that_is_said() -> None:
    prompt = sp.fit(chat_base("qwen2_5"), reviews(), chat_template="none", **SETTINGS)
    assert prompt.spec.chat is None
    assert "Label:" in prompt.spec.template


def test_a_run_goes_on_another_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This template writes the day, and a killed run ends in the bytes of one that was not."""
    base = chat_base("gptoss")

    class Day(date):
        now = date(2024, 1, 31)

        @classmethod
        def today(cls) -> date:
            return cls.now

    class Killed(sp.Callback):
        def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
            if step == 2:
                raise KeyboardInterrupt

    for module in ("training.training_run", "training.checkpoint", "data.chats.chat_format"):
        monkeypatch.setattr(f"softprompt.{module}.date", Day)
    settings = {**SETTINGS, "steps": 3, "checkpoint_every": 1}
    sp.fit(base, chats(), out=tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        sp.fit(base, chats(), out=tmp_path / "killed", callbacks=Killed(), **settings)
    Day.now = date(2024, 2, 1)
    sp.fit(base, chats(), out=tmp_path / "killed", resume=True, **settings)
    files = [tmp_path / name / "prompt.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "2024-01-31" in (tmp_path / "killed" / "prompt.json").read_text()
