"""Baselines of a comparison on chats: the same ids, losses and answers as plain transformers has."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import chat_base, chat_model, chat_tokenizer, save_chat_model

from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.encoding.batching import collate
from softprompt.data.task import Task, TaskSpec
from softprompt.experiments.baselines.few_shot_prompting import fit_few_shot
from softprompt.experiments.baselines.finetuning import FinetuningConfig, WeightsLearner
from softprompt.experiments.baselines.full_finetuning import fit_full
from softprompt.experiments.baselines.label_calibration import calibrate
from softprompt.experiments.baselines.linear_probe import fit_linear_probe
from softprompt.experiments.baselines.lora import fit_lora
from softprompt.experiments.baselines.model_copies import copy_weights
from softprompt.experiments.baselines.nearest_turns import NearestTurns
from softprompt.experiments.baselines.tfidf import fit_tfidf
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.inline_prefix import make_learning_prefix
from softprompt.prompts.written_prompt import write_prompt
from softprompt.training.callbacks.callback import Callback
from softprompt.training.validation import mean_loss
from softprompt.utils.seals import unseal

FAMILIES = ("qwen2_5", "llama3_1", "gemma3", "mistral_v3", "gptoss")
SYSTEM = "Be exact."
SHORT = GenerationConfig(max_new_tokens=6)


def chats(system: str | None = SYSTEM, count: int = 30) -> list[dict[str, Any]]:
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
        for index in range(count)
    ]


def reviews(count: int = 40) -> list[dict[str, str]]:
    words = ("dull", "fine")
    return [{"text": f"a {words[index % 2]} film {index}", "label": ("no", "yes")[index % 2]} for index in range(count)]


def decided(base: FrozenLM, rows: Any, **options: Any) -> Task:
    return resolve_chat(base, Task.of(rows, **options))


def plain_loss(model: Any, family: str, messages: list[dict[str, str]], arguments: dict[str, Any]) -> float:
    """Mean loss of the assistant's turns and the marks that end them, by transformers alone.

    What is learned of each turn is what the text has behind the turns before it, asked for an answer.
    """
    tokenizer = chat_tokenizer(family)
    render = tokenizer.apply_chat_template
    whole = render(messages, tokenize=False, **arguments)
    ids = tokenizer.encode(whole, add_special_tokens=False)
    learned: set[int] = set()
    for index, one in enumerate(messages):
        if one["role"] != "assistant":
            continue
        asked = render(messages[:index], tokenize=False, add_generation_prompt=True, **arguments)
        answered = render(messages[: index + 1], tokenize=False, **arguments).rstrip()
        start, end = (len(tokenizer.encode(text, add_special_tokens=False)) for text in (asked, answered))
        if whole.startswith(answered):  # Mistral's moves the system message into the user's last turn
            learned |= set(range(start, end))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    values = [-float(logits[place - 1, ids[place]]) for place in sorted(learned)]
    return sum(values) / len(values)


class TestLora:
    @pytest.mark.parametrize("family", ["qwen2_5", "llama3_1", "gemma3", "mistral_v3"])
    @pytest.mark.parametrize("learner", ["lora", "full"])
    def test_the_loss_is_that_of_transformers(self, family: str, learner: str) -> None:
        base = chat_base(family)
        task = decided(base, chats())
        config = FinetuningConfig(steps=1, batch_size=4, eval_every=1, learning_rate=1e-3)
        fitted = (fit_lora if learner == "lora" else fit_full)(base, task, config, Callback(), generation=SHORT)
        answers: Any = fitted.answers
        assert isinstance(answers, Predictor)
        assert task.spec.chat is not None
        items = answers.encoder.training_items(task.test)
        found = mean_loss(AnswerScorer(answers.base, None), answers.prefix, items[:1])
        row = task.test[0].conversation
        assert row is not None
        messages = [one.to_dict() for one in row.messages]
        assert found == pytest.approx(
            plain_loss(answers.base.model, family, messages, dict(task.spec.chat.arguments)), rel=2e-4
        )
        untuned = mean_loss(AnswerScorer(base, None), Predictor(base, task.spec).prefix, items[:1])
        assert untuned == pytest.approx(
            plain_loss(chat_model(family), family, messages, dict(task.spec.chat.arguments)), rel=2e-4
        )
        assert found != pytest.approx(untuned, rel=1e-6)

    def test_a_step_has_the_gradient_of_transformers(self) -> None:
        family = "qwen2_5"
        base = chat_base(family)
        task = decided(base, chats())
        own = FrozenLM(copy_weights(base), base.tokenizer, base.name, lasting=False)
        config = FinetuningConfig(steps=1, batch_size=1, eval_every=1).for_prompts(learning_rate=1e-3)
        learner = WeightsLearner(own, task, config, list(own.model.parameters()), seconds=None, began=0.0)
        (item,) = learner.encoder.training_items(task.train[:1])
        state = learner.state()
        assert state is not None
        learner.objective.losses(make_learning_prefix(own, state), collate([item], own.device)).mean().backward()
        model: Any = chat_model(family).requires_grad_(True)
        row = task.train[0].conversation
        assert row is not None
        tokenizer = chat_tokenizer(family)
        messages = [one.to_dict() for one in row.messages]
        ids = tokenizer.apply_chat_template(messages, return_dict=False)
        front = len(ids) - len(item.ids) - 2  # the last mark and the line behind it are not read
        learned = {front + place + 1 for place in item.positions}
        labels = torch.tensor([[token if place in learned else -100 for place, token in enumerate(ids)]])
        model(torch.tensor([ids]), labels=labels).loss.backward()
        for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            found, right = (dict(one.named_parameters())[name].grad for one in (own.model, model))
            torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("learner", ["lora", "full"])
    def test_what_is_saved_answers_by_apply_chat_template(self, learner: str, tmp_path: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        save_chat_model("qwen2_5", tmp_path / "base")
        base = chat_base("qwen2_5")
        task = decided(base, chats())
        config = FinetuningConfig(steps=2, batch_size=4, eval_every=1, learning_rate=1e-2)
        fitted = (fit_lora if learner == "lora" else fit_full)(base, task, config, Callback(), generation=SHORT)
        fitted.save(tmp_path / "saved")
        facts = unseal(json.loads((tmp_path / "saved" / "task.json").read_text()))
        spec = TaskSpec.from_dict(facts["task"])
        assert spec.chat is not None
        assert spec.chat.system == SYSTEM
        words = (tmp_path / "saved" / "README.md").read_text()
        assert "apply_chat_template" in words
        assert repr({"role": "system", "content": SYSTEM}) in words
        model: Any
        if learner == "lora":
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers 5 by names of transformers 4
                model = PeftModel.from_pretrained(model, tmp_path / "saved")
        else:
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        tokenizer.chat_template = (tmp_path / "saved" / "chat_template.jinja").read_text()
        example = task.test[0]
        assert example.conversation is not None
        asked = [one.to_dict() for one in example.conversation.without_answer().messages]
        given = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = model(**given).logits[0, -1].float()
        answers: Any = fitted.answers
        (item,) = answers.encoder.question_items([example])
        hidden = answers.prefix.scored(collate([item], base.device))
        torch.testing.assert_close(answers.base.logits(hidden)[0].float(), logits, atol=2e-4, rtol=1e-3)


class TestFewShot:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_same_examples_are_turns(self, family: str) -> None:
        base = chat_base(family)
        task = decided(base, reviews(), system="Was it liked?")
        fitted = fit_few_shot(base, task, 2, seed=1)
        answers: Any = fitted.answers
        assert answers.spec.chat.system == "Was it liked?"
        assert len(answers.spec.chat.turns) == 4
        assert fitted.added_tokens > 0
        assert fitted.best_loss == pytest.approx(fitted.best_loss)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_nearest_are_turns_the_most_similar_last(self, family: str) -> None:
        base = chat_base(family)
        task = decided(base, reviews(), system="Was it liked?")
        near = NearestTurns(base, task, 2)
        scores = near.label_log_probabilities(task.test)
        for example, indices, row in zip(task.test, near.nearest(task.test), scores, strict=True):
            spec, _ = write_prompt(base, task.spec, shots=[task.train[index] for index in reversed(indices)])
            expected = Predictor(base, spec).label_log_probabilities([example])[0]
            torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-3)

    def test_completions_and_losses_of_conversations_too(self) -> None:
        base = chat_base("qwen2_5")
        task = decided(base, chats())
        near = NearestTurns(base, task, 2, "", SHORT)
        found = {one.index: one.completion for one in near.iterate_predictions(task.test)}
        items = near.items(task.test)
        for index, (example, indices) in enumerate(zip(task.test, near.nearest(task.test), strict=True)):
            spec, _ = write_prompt(base, task.spec, shots=[task.train[place] for place in reversed(indices)])
            same = Predictor(base, spec, None, SHORT)
            assert found[index] == same.predict([example])[0].completion
            scorer = AnswerScorer(base, None)
            assert mean_loss(scorer, near.prefix, [items[index]]) == pytest.approx(
                mean_loss(scorer, same.prefix, same.encoder.training_items([example])), rel=1e-4
            )
        fitted = fit_few_shot(base, task, 2, nearest=True, generation=SHORT)
        assert fitted.added_tokens > 0

    def test_as_many_as_the_context_holds(self) -> None:
        base = chat_base("qwen2_5", 512)
        task = decided(base, chats())
        near = NearestTurns(base, task, 12, "", SHORT)
        near.behind_shots(task.test)
        assert near.left_out > 0
        assert near.truncated == 0
        assert all(one.completion is not None for one in near.iterate_predictions(task.test))

    @pytest.mark.parametrize("nearest", [False, True])
    def test_it_is_saved_with_its_turns(self, nearest: bool, tmp_path: Path) -> None:
        base = chat_base("qwen2_5")
        fitted = fit_few_shot(base, decided(base, chats()), 2, nearest=nearest, generation=SHORT)
        fitted.save(tmp_path / "saved")
        facts = unseal(json.loads((tmp_path / "saved" / "few_shot.json").read_text()))
        spec = TaskSpec.from_dict(facts["task"])
        assert spec.chat is not None
        assert len(spec.chat.turns) == (0 if nearest else 8)
        assert facts["examples"][0]["messages"][-1]["role"] == "assistant"


@pytest.mark.parametrize("labelled", ["texts", "conversations"])
def test_what_answers_before_it_reads_is_taken_out(labelled: str) -> None:
    base = chat_base("qwen2_5")
    rows: list[dict[str, Any]] = list(reviews())
    if labelled == "conversations":
        rows = [{"messages": [{"role": "user", "content": row["text"]}], "label": row["label"]} for row in rows]
    task = decided(base, rows)
    bare = Predictor(base, task.spec)
    found = calibrate(bare, like=task.train[0])
    empty = bare.predict(["N/A", "[MASK]"])
    bias = torch.tensor([list((one.probabilities or {}).values()) for one in empty]).mean(0)
    torch.testing.assert_close(found.bias.exp(), bias, atol=1e-5, rtol=1e-4)


def test_a_probe_reads_what_apply_chat_template_gives() -> None:
    base = chat_base("llama3_1")
    task = decided(base, reviews(), system="Was it liked?")
    fitted = fit_linear_probe(base, task)
    answers: Any = fitted.answers
    features = answers.extract(task.test[:1])
    messages = [{"role": "system", "content": "Was it liked?"}, {"role": "user", "content": task.test[0].text}]
    ids = chat_tokenizer("llama3_1").apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    model: Any = chat_model("llama3_1")
    with torch.no_grad():
        right = model.model(torch.tensor([ids])).last_hidden_state[0, -1]
    torch.testing.assert_close(torch.from_numpy(features)[0], right, atol=1e-4, rtol=1e-3)


def test_words_of_conversations_are_what_their_users_say() -> None:
    base = chat_base("qwen2_5")
    first = {"role": "system", "content": SYSTEM}
    rows = [{"messages": [first, {"role": "user", "content": one["text"]}], "label": one["label"]} for one in reviews()]
    task = decided(base, rows)
    fitted = fit_tfidf(task)
    answered = [one.label for one in fitted.answers.iterate_predictions(task.test)]
    assert answered == [one.label for one in task.test]
