"""Losses and label probabilities equal what separate forward passes of the transformers model give."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers.tiny_models import FAMILIES as EVERY_FAMILY
from helpers.tiny_models import (
    NOT_SHARING,
    as_state,
    plain_logits,
    random_prompt,
    tiny_base,
    tiny_model,
    tiny_tokenizer,
)
from torch import Tensor

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference import scoring as objective_module
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import reads_branches
from softprompt.prompts.prefix import Prefix, make_cached_prefix, make_concatenated_prefix, make_prefix
from softprompt.prompts.state import PromptState

FAMILIES = [family for family in EVERY_FAMILY if family != "falcon_h1"]  # slow, and no other than Mamba here
LABELS = {
    "one token": ("good", "bad", "film"),
    "several tokens": ("positive", "negative", "neutral", "dull"),
    "common beginnings": ("good film", "good story", "bad film", "bad"),
    "a tree": ("good film story", "good film cat", "good mat sat", "good mat great", "bad film", "bad story", "so"),
    "one begins another": ("good", "good film", "good film story", "negative"),
}
TEXTS = ("a dull story", "what is the film about? the cat", "so", "the mat sat on the great cat " * 3)
PROMPT = 3


def spec_of(labels: Sequence[str]) -> TaskSpec:
    return TaskSpec("classification", "{{ text }}\nLabel:", tuple(labels), tuple(labels))


def brute_force(base: FrozenLM, prompt: Tensor, text: str, labels: Sequence[str]) -> Tensor:
    """Probabilities ``[C]`` of decoding held to the label set, each step by a forward pass of its own."""
    plain = {"add_special_tokens": False}
    ids = base.tokenizer(f"{text}\nLabel:", **plain).input_ids
    words = [tuple(base.tokenizer(f" {label}", **plain).input_ids) for label in labels]
    end = base.tokenizer.eos_token_id
    closed = [(*word, end) if any(o != word and o[: len(word)] == word for o in words) else word for word in words]
    probabilities = []
    for word in closed:
        probability = torch.ones(())
        for step, token in enumerate(word):
            allowed = sorted({other[step] for other in closed if other[:step] == word[:step]})
            logits = plain_logits(base, prompt, [*ids, *word[:step]])[-1]
            probability = probability * logits[allowed].softmax(0)[allowed.index(token)]
        probabilities.append(probability)
    return torch.stack(probabilities)


def encoded(base: FrozenLM, spec: TaskSpec) -> tuple[ExampleEncoder, AnswerScorer]:
    encoder = ExampleEncoder(base, spec, PROMPT)
    return encoder, AnswerScorer(base, encoder.verbalizer)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_label_probabilities_equal_decoding_held_to_the_labels(family: str, labels: Sequence[str]) -> None:
    base = tiny_base(family)
    encoder, objective = encoded(base, spec_of(labels))
    with torch.no_grad():
        prompt = random_prompt(base, PROMPT)
        items = encoder.scoring_items([Example(text) for text in TEXTS])
        found = objective.label_log_probabilities(make_prefix(base, as_state(prompt)), items).exp()
        expected = torch.stack([brute_force(base, prompt, text, labels) for text in TEXTS])
    assert found.shape == (len(TEXTS), len(labels))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(len(TEXTS)))
    assert (found.max(1).values - found.min(1).values).min() > 0.02


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("make", [make_cached_prefix, make_concatenated_prefix], ids=["shared", "concatenated"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_SHARING])
def test_the_training_loss_is_that_of_the_label(
    family: str, make: Callable[[FrozenLM, PromptState | None], Prefix], labels: Sequence[str]
) -> None:
    base = tiny_base(family)
    encoder, objective = encoded(base, spec_of(labels))
    examples = [Example(text, label) for text, label in zip(TEXTS, labels[::-1], strict=False)]
    prompt = random_prompt(base, PROMPT)
    loss = objective.losses(make(base, as_state(prompt)), collate(encoder.training_items(examples), base.device)).sum()
    expected = torch.stack(
        [-brute_force(base, prompt, one.text, labels)[labels.index(str(one.label))].log() for one in examples]
    ).sum()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    right, found = (torch.autograd.grad(value, prompt)[0] for value in (expected, loss))
    assert (found - right).norm() < 1e-4 * right.norm()


def test_scores_do_not_depend_on_how_the_items_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("gemma3")
    encoder, objective = encoded(base, spec_of(LABELS["common beginnings"]))
    items = encoder.scoring_items([Example(text) for text in TEXTS])
    with torch.no_grad():
        prefix = make_prefix(base, as_state(random_prompt(base, PROMPT)))
        together = objective.label_log_probabilities(prefix, items)
        monkeypatch.setattr(objective_module, "EVALUATION_TOKENS", 1)
        assert len(list(batch_by_token_budget(items, 1))) == len(items)
        alone = objective.label_log_probabilities(prefix, items)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_wild_prompt_has_a_finite_loss_and_gradient() -> None:
    base = tiny_base("llama")
    encoder, objective = encoded(base, spec_of(LABELS["one begins another"]))
    prompt = (1e4 * random_prompt(base, PROMPT).detach()).requires_grad_()
    batch = collate(encoder.training_items([Example("so", "good")]), base.device)
    loss = objective.losses(make_prefix(base, as_state(prompt)), batch).sum()
    loss.backward()
    assert prompt.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(prompt.grad).all()


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_generation_loss_equals_that_of_transformers(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective_module, "LOGITS_CHUNK", chunk)
    base = tiny_base(family)
    encoder, objective = encoded(base, TaskSpec("generation", "{{ text }}\nOutput:"))
    examples = [Example(text, None, (output,)) for text, output in zip(TEXTS, ("the mat", "so", "a", "x"), strict=True)]
    prompt = random_prompt(base, PROMPT)
    loss = objective.losses(
        make_prefix(base, as_state(prompt)), collate(encoder.training_items(examples), base.device)
    ).sum()

    expected = torch.zeros(())
    embed = base.model.get_input_embeddings()
    for one in examples:
        text = base.tokenizer(f"{one.text}\nOutput:").input_ids
        answer = base.tokenizer(f" {one.references[0]}", add_special_tokens=False).input_ids
        ids = torch.tensor([*text, *answer, base.tokenizer.eos_token_id])
        bos = len(base.bos_ids)
        embeddings = torch.cat([embed(ids[:bos]), prompt, embed(ids[bos:])])[None]
        labels = torch.full((len(ids) + PROMPT,), -100)
        labels[-len(answer) - 1 :] = ids[-len(answer) - 1 :]
        mean = base.model(inputs_embeds=embeddings, labels=labels[None], use_cache=False).loss
        expected = expected + mean * (len(answer) + 1)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    right, found = (torch.autograd.grad(value, prompt)[0] for value in (expected, 2 * loss))
    assert (found - 2 * right).norm() < 1e-4 * right.norm()


def test_the_generation_loss_is_the_same_without_gradient() -> None:
    base = tiny_base("gemma2")
    encoder, objective = encoded(base, TaskSpec("generation", "{{ text }}\nOutput:"))
    batch = collate(encoder.training_items([Example("a cat", None, ("the mat",))]), base.device)
    prompt = random_prompt(base, PROMPT)
    with_gradient = objective.losses(make_prefix(base, as_state(prompt)), batch).sum()
    with torch.no_grad():
        without = objective.losses(make_prefix(base, as_state(prompt)), batch).sum()
    assert with_gradient.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_gradient.detach(), without)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_an_output_layer_that_learns_gets_its_gradient(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_module, "LEARNED_CHUNK", 2)
    base = FrozenLM(tiny_model(family), tiny_tokenizer(family), "tiny")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, base.embedding_size, generator=generator).requires_grad_()
    targets = torch.tensor([3, 1, 4, 1, 5])
    frozen = AnswerScorer(base, None).losses_of(hidden, targets, targets)
    weight = base.model.get_output_embeddings().weight.requires_grad_()
    learning = AnswerScorer(base, None).losses_of(hidden, targets, targets)
    plain = torch.nn.functional.cross_entropy(base.logits(hidden), targets, reduction="none")
    torch.testing.assert_close(learning, plain)
    torch.testing.assert_close(learning, frozen)
    found, expected = (torch.autograd.grad(one.square().sum(), (hidden, weight)) for one in (learning, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", ["gpt2", "opt", "phi", "cohere", "bloom"])
def test_branches_are_read_once_by_layers_that_can(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of ours says who looks at whom; where that does not count (distances, ALiBi), each branch is read."""
    base, passes = tiny_base(family), list[int]()
    encoder, objective = encoded(base, spec_of(("good film", "good story", "bad film", "bad story")))
    items = encoder.scoring_items([Example("a cat sat"), Example("the mat")])
    prefix = make_prefix(base, as_state(random_prompt(base, PROMPT).detach()))
    assert reads_branches(base) == (family != "bloom")
    run = base.run_backbone

    def count(**given: Any) -> Any:
        passes.append(len(given["inputs_embeds"]))
        return run(**given)

    monkeypatch.setattr(base, "run_backbone", count)
    objective.label_log_probabilities(prefix, items)
    assert passes == [2 if family != "bloom" else 4]
