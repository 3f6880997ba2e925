"""Labels that are learned with a prompt, as rows of the output layer: against plain ``transformers``."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.learned_prompts import learned
from helpers.small_tasks import TEMPLATE, reviews, reviews_task
from helpers.tiny_models import tiny_base
from torch import Tensor

from softprompt.analysis.inspection.score_records import score_states
from softprompt.config import TrainConfig, make_population
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import ConfigError, PromptFileError
from softprompt.experiments.comparison.comparison_run import ComparisonSettings
from softprompt.export.prompt_exchange import export_prompt
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.distillation.distill import distill
from softprompt.training.fit import fit
from softprompt.training.run_checks import resolve_steps

SOFT: dict[str, Any] = {"steps": 4, "length": 3, "batch_size": 8, "soft_verbalizer": "always", "init": "random"}
COLORS = ("red", "blue", "green", "grey", "black", "white", "brown", "pink", "gold", "dark red", "dark blue")


def color_task(labels: int, rows: int = 3) -> Task:
    """As many labels as are wanted, of one word and of several; a text says its label."""
    names = [f"{COLORS[number % len(COLORS)]} {number}" for number in range(labels)]
    some = tuple(Example(f"the film is {name}", name) for name in names for _ in range(rows))
    return Task.classification(Splits(some, some[::rows], some[::rows], "made here", ()), template=TEMPLATE)


@torch.no_grad()
def plain_probabilities(base: FrozenLM, state: PromptState, ids: list[int]) -> Tensor:
    """Of the labels ``[C]``: softmax of the last hidden state by their rows, all by ``transformers``."""
    embed = base.model.get_input_embeddings()
    bos = base.tokenizer("", add_special_tokens=True).input_ids
    parts = [embed(torch.tensor(bos, dtype=torch.long)), state.tensor, embed(torch.tensor(ids))]
    told = base.model(inputs_embeds=torch.cat(parts)[None], output_hidden_states=True, use_cache=False)
    assert state.label_rows is not None
    logits = told.hidden_states[-1][0, -1] @ state.label_rows.T
    if cap := getattr(base.model.config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    if scale := getattr(base.model.config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(base.model.config, "logits_scaling", None):
        logits = logits / divisor
    return logits.softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2", "qwen3", "gpt2", "cohere", "granite", "mamba"])
def test_probabilities_are_those_of_the_learned_rows(family: str) -> None:
    base = tiny_base(family)
    prompt = fit(base, color_task(5), learning_rate=0.5, **SOFT)
    assert prompt.state.label_rows is not None
    assert prompt.state.label_rows.shape == (5, base.embedding_size)
    predictor = Predictor(base, prompt.spec, prompt.states)
    for text in ("the film is red 0", "a good film and a bad story", "what?"):
        ids = base.tokenizer(f"{text}:", add_special_tokens=False).input_ids
        found = predictor.predict(text).probabilities
        assert found is not None
        expected = plain_probabilities(base, prompt.state, ids)
        torch.testing.assert_close(torch.tensor([*found.values()]), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "t5"])
def test_labels_of_one_token_are_at_first_their_words(family: str) -> None:
    base, task = (
        tiny_base(family),
        Task.classification(reviews(), template=TEMPLATE, verbalizers={"good": "a", "bad": "the"}),
    )
    still = {**SOFT, "learning_rate": 1e-30, "steps": 1}
    words = fit(base, task, **{**still, "soft_verbalizer": "never"})
    soft = fit(base, task, **still)
    assert soft.state.label_rows is not None
    assert words.state.label_rows is None
    found, expected = (
        Predictor(base, one.spec, one.states).label_log_probabilities(task.test) for one in (soft, words)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_start_of_several_tokens_is_the_mean_of_their_rows() -> None:
    base, task = tiny_base("gemma3"), color_task(5)
    prompt = fit(base, task, **{**SOFT, "learning_rate": 1e-30, "steps": 1})
    weight = base.model.get_output_embeddings().weight
    assert prompt.state.label_rows is not None
    for label, row in zip(task.spec.labels, prompt.state.label_rows, strict=True):
        ids = base.tokenizer(f": {label}", add_special_tokens=False).input_ids
        ids = ids[len(base.tokenizer(":", add_special_tokens=False).input_ids) :]
        torch.testing.assert_close(row, weight[ids].mean(dim=0))


def test_gradient_is_that_of_transformers() -> None:
    """The first step of Adam, unclipped, is the sign of the gradient."""
    base = tiny_base("llama")
    task = color_task(4, rows=2)
    one = {
        **SOFT,
        "batch_size": 8,
        "steps": 1,
        "warmup": 0.0,
        "schedule": "constant",
        "learning_rate": 1e-3,
        "clip": 1e9,
    }
    after = fit(base, task, **one).state
    before = fit(base, task, **{**one, "learning_rate": 1e-30}).state
    assert before.label_rows is not None
    assert after.label_rows is not None
    tokens, rows = before.tensor.clone().requires_grad_(), before.label_rows.clone().requires_grad_()
    losses = []
    for example in task.train:
        ids = base.tokenizer(f"{example.text}:", add_special_tokens=False).input_ids
        embed, bos = base.model.get_input_embeddings(), base.tokenizer("").input_ids
        whole = torch.cat([embed(torch.tensor(bos)), tokens, embed(torch.tensor(ids))])[None]
        hidden = base.model(inputs_embeds=whole, output_hidden_states=True, use_cache=False).hidden_states[-1]
        losses.append(-(hidden[0, -1] @ rows.T).log_softmax(-1)[task.spec.label_index[str(example.label)]])
    torch.stack(losses).mean().backward()
    for old, new, leaf in ((before.label_rows, after.label_rows, rows), (before.tensor, after.tensor, tokens)):
        assert leaf.grad is not None
        clear = leaf.grad.abs() > 1e-5
        assert clear.float().mean() > 0.9
        assert torch.equal((old - new)[clear].sign(), leaf.grad[clear].sign())


def test_many_labels_are_learned_without_being_asked() -> None:
    base, some = tiny_base("llama"), {**SOFT, "soft_verbalizer": "auto", "steps": 1}
    assert fit(base, color_task(19), **some).state.label_rows is None
    assert fit(base, color_task(20), **some).state.label_rows is not None
    assert fit(base, color_task(20), **{**some, "soft_verbalizer": "never"}).state.label_rows is None


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning", "residual", "prefix-tuning"])
def test_every_method_learns_them_and_keeps_them(method: str, tmp_path: Path) -> None:
    base, task = tiny_base("llama"), color_task(4)
    prompt = fit(base, task, out=tmp_path / "prompt", method=method, **{**SOFT, "steps": 30, "learning_rate": 0.3})
    start = fit(base, task, method=method, **{**SOFT, "steps": 1, "learning_rate": 1e-30}).state
    assert prompt.state.label_rows is not None
    assert start.label_rows is not None
    assert not torch.equal(prompt.state.label_rows, start.label_rows)
    saved = load_prompt(tmp_path / "prompt")
    assert saved.digest == prompt.digest
    assert (
        saved.digest != replace(prompt, states=(replace(prompt.state, label_rows=prompt.state.label_rows + 1),)).digest
    )
    found, expected = (
        Predictor(base, one.spec, one.states).label_log_probabilities(task.test) for one in (saved, prompt)
    )
    assert torch.equal(found, expected)
    assert prompt.metrics["validation"]["value"] == 1.0


def test_members_of_an_ensemble_answer_by_their_own() -> None:
    base, task = tiny_base("llama"), color_task(4)
    population = make_population(TrainConfig.build(**SOFT), seeds=3)
    prompt = fit(base, task, config=population, ensemble=True)
    assert len(prompt.states) == 3
    together = Predictor(base, prompt.spec, prompt.states).member_log_probabilities(task.test)
    for state, found in zip(prompt.states, together, strict=True):
        expected = Predictor(base, prompt.spec, state).label_log_probabilities(task.test)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_learning_goes_on_from_the_labels_of_a_prompt(tmp_path: Path) -> None:
    base, task = tiny_base("llama"), color_task(4)
    first = fit(base, task, out=tmp_path / "first", **SOFT)
    on = fit(base, task, **{**SOFT, "init": f"prompt:{tmp_path / 'first'}", "learning_rate": 1e-30, "steps": 1})
    assert first.state.label_rows is not None
    assert on.state.label_rows is not None
    torch.testing.assert_close(on.state.label_rows, first.state.label_rows)


def test_any_of_several_that_goes_on_from_learned_labels_has_all_learn_them(tmp_path: Path) -> None:
    base, task = tiny_base("llama"), color_task(4)
    fit(base, task, out=tmp_path / "first", **SOFT)
    anew = TrainConfig.build(**{**SOFT, "soft_verbalizer": "auto"})
    on = TrainConfig.build(**{**SOFT, "soft_verbalizer": "auto", "init": f"prompt:{tmp_path / 'first'}"})
    prompt = fit(base, task, config={"anew": anew, "on": on}, ensemble=True)
    assert all(state.label_rows is not None for state in prompt.states)


def test_start_of_other_labels_gives_no_rows(tmp_path: Path) -> None:
    base, task = tiny_base("llama"), color_task(4)
    fit(base, task, out=tmp_path / "first", **SOFT)
    still = {**SOFT, "init": f"prompt:{tmp_path / 'first'}", "learning_rate": 1e-30, "steps": 1}
    other = Task.of(task, spec=replace(task.spec, labels=task.spec.labels[::-1], verbalizers=task.spec.labels[::-1]))
    rows = fit(base, other, **still).state.label_rows
    words = fit(base, other, **{**still, "init": "random"}).state.label_rows
    assert rows is not None
    assert words is not None
    assert torch.equal(rows, words)
    assert fit(base, other, **{**still, "soft_verbalizer": "auto"}).state.label_rows is None
    assert fit(base, task, **{**still, "soft_verbalizer": "auto"}).state.label_rows is not None


def test_scores_beside_a_prompt_whose_labels_are_words() -> None:
    base, task = tiny_base("llama"), color_task(4)
    soft = fit(base, task, **SOFT)
    words = fit(base, task, **{**SOFT, "soft_verbalizer": "never"})
    states = [soft.state, None, words.state]
    together = score_states(base, soft.spec, states, task.test)
    for place, state in enumerate(states):
        alone = score_states(base, soft.spec, [state], task.test)
        assert alone.log_probabilities is not None
        assert together.log_probabilities is not None
        assert abs(together.log_probabilities[place] - alone.log_probabilities[0]).max() < 1e-4


class TestSteps:
    def resolved(self, labels: int, **settings: Any) -> int:
        return resolve_steps({"": TrainConfig.build(**settings)}, color_task(labels, rows=1))[""].steps

    def test_of_many_labels_are_as_many_as_learn_from_each_a_hundred_times(self) -> None:
        assert self.resolved(48) == 300
        assert self.resolved(150) == 938
        assert self.resolved(150, batch_size=50) == 300
        assert self.resolved(150, batch_size=8) == 1875

    def test_that_are_named_stay(self) -> None:
        assert self.resolved(150, steps=300) == 300
        assert self.resolved(150, epochs=2) == 2 * (150 // 16)

    def test_of_a_comparison_are_those_of_train(self) -> None:
        assert ComparisonSettings().with_steps_for(color_task(150, rows=1)).to_dict()["steps"] == 938
        assert ComparisonSettings(steps=7).with_steps_for(color_task(150, rows=1)).to_dict()["steps"] == 7
        assert ComparisonSettings().with_steps_for(color_task(3)).to_dict()["steps"] == 300

    def test_stand_in_the_saved_prompt(self) -> None:
        prompt = fit(tiny_base("llama"), color_task(32, rows=1), batch_size=8, length=2, init="random", patience=1)
        assert prompt.training["steps"] == 400


class TestRefusals:
    def soft(self) -> Prompt:
        return fit(tiny_base("llama"), reviews_task(), **SOFT)

    @pytest.mark.parametrize("format", ["peft", "npy", "vllm-embeds"])
    def test_formats_without_room_for_them(self, format: str, tmp_path: Path) -> None:
        what = "for which this format has no room: use --format vocab, serve it with softprompt, or learn it with"
        with pytest.raises(PromptFileError, match=re.escape(what)):
            export_prompt(tiny_base("llama"), self.soft(), tmp_path / "out", format=format)
        assert not (tmp_path / "out").exists()

    def test_rows_of_another_number_of_labels(self, tmp_path: Path) -> None:
        prompt = self.soft()
        assert prompt.state.label_rows is not None
        state = replace(prompt.state, label_rows=prompt.state.label_rows[:1])
        replace(prompt, states=(state,)).save(tmp_path / "prompt")
        with pytest.raises(PromptFileError, match="rows of 1 labels for a task of 2"):
            load_prompt(tmp_path / "prompt")

    def test_a_teacher_tells_words(self) -> None:
        with pytest.raises(ConfigError, match="a soft verbalizer learns from labels, and a teacher tells words"):
            distill(tiny_base("llama"), reviews_task(), teacher=learned("llama"), **SOFT)

    def test_several_tasks(self) -> None:
        two = {"a": reviews_task(), "b": color_task(3)}
        settings = {name: value for name, value in SOFT.items() if name != "method"}
        with pytest.raises(ConfigError, match="a soft verbalizer is not available for multitask prompt tuning"):
            fit(tiny_base("llama"), two, **settings)

    def test_prompts_of_both_kinds_in_one_run(self) -> None:
        population = make_population(
            TrainConfig.build(**{**SOFT, "soft_verbalizer": "never"}), grid="soft_verbalizer=never,always"
        )
        with pytest.raises(ConfigError, match="prompts that learn together share 'soft_verbalizer'"):
            fit(tiny_base("llama"), reviews_task(), config=population)
