"""What students learn: divergences that equal those of whole distributions, at any temperature, with gradient."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.small_tasks import TEMPLATE, answers, reviews
from helpers.tiny_models import as_state, plain_logits, random_prompt, tiny_base
from torch import Tensor

from softprompt.config import DistillConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence, ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.task import TaskSpec
from softprompt.inference import scoring as objective_module
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer, kl_divergence
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.distillation.distillation_loss import FidelityValidation, LabelTargets, TokenTargets
from softprompt.training.distillation.teacher import Teacher, ask_teacher
from softprompt.training.distillation.teacher_answers import Completions, LabelAnswers

LABELS = {
    "one choice": ("good", "bad", "film"),
    "several choices": ("good film", "good film story", "bad film", "bad"),
}
FAMILIES = ("llama", "gemma3", "mamba", "t5")
EXAMPLES = reviews().validation[:5]
GENERATION = TaskSpec("generation", TEMPLATE)


def spec_of(labels: Sequence[str]) -> TaskSpec:
    return TaskSpec("classification", TEMPLATE, tuple(labels), tuple(labels))


def state(base: FrozenLM, length: int, seed: int) -> PromptState:
    found = as_state(random_prompt(base, length, seed))
    assert found is not None
    return found


def tempered(labels: Tensor, objective: AnswerScorer, temperature: float) -> Tensor:
    """The distribution that decoding gives whose every choice is made at ``temperature``, label by label."""
    verbalizer = objective.verbalizer
    assert verbalizer is not None
    found = torch.zeros_like(labels)
    for decision in verbalizer.decisions:
        of_label = torch.tensor([decision.choice_of_label.get(label, -1) for label in range(labels.shape[1])])
        choices = torch.stack(
            [labels.exp()[:, of_label == choice].sum(dim=1) for choice in range(len(decision.choices))], dim=1
        )
        shares = choices ** (1 / temperature)
        shares = (shares / shares.sum(dim=1, keepdim=True)).log()
        for label, choice in decision.choice_of_label.items():
            found[:, label] += shares[:, choice]
    return found


def taught(base: FrozenLM, spec: TaskSpec, teacher: PromptState, **settings: Any) -> Any:
    how = DistillConfig(max_new_tokens=6, **settings)
    return ask_teacher(base, spec, Teacher((teacher.detached(),)), how, {"train": EXAMPLES}, print)["train"]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("family", FAMILIES)
class TestLabels:
    def test_is_the_divergence_of_the_whole_distributions(
        self, family: str, labels: Sequence[str], temperature: float
    ) -> None:
        base, spec = tiny_base(family), spec_of(labels)
        teacher, student = state(base, 5, 1), state(base, 3, 2)
        encoder = ExampleEncoder(base, spec, 3)
        objective = AnswerScorer(base, encoder.verbalizer)
        targets = LabelTargets(objective, taught(base, spec, teacher), temperature)
        portions = targets.items(encoder, EXAMPLES)
        items = [item for portion in portions for item in portion]
        assert targets.count(items) == len(EXAMPLES)

        own = Predictor(base, spec, student.detached()).label_log_probabilities(EXAMPLES)
        whole = [tempered(one, objective, temperature) for one in (targets.plain, own)]
        expected = temperature**2 * (whole[0].exp() * (whole[0] - whole[1])).sum(dim=1)
        batch = collate(items, base.device)
        losses = targets.losses(make_prefix(base, student), batch)
        owner = torch.tensor([item.example for item in items])[batch.row]
        found = torch.zeros(len(EXAMPLES)).index_add(0, owner, losses)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        found.sum().backward()
        gradient = student.tensor.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0

        divergences, alike, places = FidelityValidation(base, targets, portions).of(make_prefix(base, student))
        plain = (targets.plain.exp() * (targets.plain - own)).sum(dim=1)
        torch.testing.assert_close(divergences, plain, rtol=1e-3, atol=1e-5)
        assert alike.tolist() == (own.argmax(1) == targets.plain.argmax(1)).float().tolist()
        assert places.tolist() == [1.0] * len(EXAMPLES)

    def test_the_teacher_itself_has_none(self, family: str, labels: Sequence[str], temperature: float) -> None:
        base, spec = tiny_base(family), spec_of(labels)
        teacher = state(base, 4, 1)
        encoder = ExampleEncoder(base, spec, 4)
        targets = LabelTargets(AnswerScorer(base, encoder.verbalizer), taught(base, spec, teacher), temperature)
        items = [item for portion in targets.items(encoder, EXAMPLES) for item in portion]
        losses = targets.losses(make_prefix(base, teacher), collate(items, base.device))
        assert float(losses.detach().abs().max()) < 1e-4


def test_labels_next_to_impossible_still_have_their_ratios() -> None:
    base, spec = tiny_base("llama"), spec_of(LABELS["several choices"])
    objective = AnswerScorer(base, ExampleEncoder(base, spec, 0).verbalizer)
    labels = torch.tensor([[0.0, -400.0, -500.0, -500.0 - math.log(3)]])
    last = len(objective.verbalizer.decisions) - 1 if objective.verbalizer else 0
    for decision in range(last + 1):
        choices, reached = objective.condition_on_decisions(labels, torch.tensor([decision]))
        assert float(choices.exp().sum()) == pytest.approx(1, abs=1e-4)
        assert reached.isfinite().all()
    assert objective.apply_temperature(labels, 2.0).isfinite().all()


def test_the_bar_is_what_the_best_constant_answer_reaches() -> None:
    base, spec = tiny_base("llama"), spec_of(LABELS["one choice"])
    answer = LabelAnswers(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]).log())
    reference = LabelTargets(AnswerScorer(base, ExampleEncoder(base, spec, 0).verbalizer), answer, 1.0).reference
    probabilities = answer.log_probabilities.exp()

    def reached(constant: Tensor) -> float:
        return float((probabilities * (probabilities / constant).log()).sum(dim=1).mean())

    assert reference.loss == pytest.approx(reached(probabilities.mean(dim=0)), abs=1e-6)
    for seed in range(20):
        other = torch.rand(3, generator=torch.Generator().manual_seed(seed))
        assert reference.loss is not None
        assert reference.loss <= reached(other / other.sum()) + 1e-6


def all_logits(base: FrozenLM, prompt: PromptState, text: Sequence[int], told: Sequence[int]) -> Tensor:
    """Log-probabilities ``[places, V]`` along an answer, by a forward pass of its own."""
    logits = plain_logits(base, prompt.tensor.detach(), [*text, *told[:-1]])
    return logits[len(text) - 1 :].log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("top_k", [1000, 40, 1])
class TestTokens:
    def test_is_at_most_the_divergence_over_the_vocabulary_and_equal_to_it_with_all_tokens(
        self, top_k: int, temperature: float
    ) -> None:
        base = tiny_base("llama")
        teacher, student = state(base, 5, 1), state(base, 3, 2)
        told = taught(base, GENERATION, teacher, teacher_top_k=top_k, distillation_temperature=temperature)
        assert isinstance(told, Completions)
        targets = TokenTargets(base, told, temperature)
        encoder = ExampleEncoder(base, GENERATION, 3)
        items = [item for portion in targets.items(encoder, EXAMPLES) for item in portion]
        assert targets.count(items) == len(told.tokens)
        losses = targets.losses(make_prefix(base, student), collate(items, base.device))
        texts = encoder.encode_inputs(EXAMPLES)
        whole, coarse = [], []
        for text, answer in zip(texts, told.answers, strict=True):
            own, its = (all_logits(base, one, text, answer) for one in (student, teacher))
            soft = [(one / temperature).log_softmax(-1) for one in (its, own)]
            whole.append(temperature**2 * kl_divergence(*soft))
            ids = its.topk(min(top_k, its.shape[1])).indices
            parts = [one.exp().gather(1, ids) for one in soft]
            kept = [torch.cat([one, (1 - one.sum(1, keepdim=True)).clamp(min=1e-12)], dim=1).log() for one in parts]
            coarse.append(temperature**2 * kl_divergence(*kept))
        torch.testing.assert_close(losses, torch.cat(coarse), rtol=1e-3, atol=1e-4)
        assert (losses <= torch.cat(whole) + 1e-4).all()
        if top_k == 1000:
            torch.testing.assert_close(losses, torch.cat(whole), rtol=1e-3, atol=1e-4)
        losses.sum().backward()
        gradient = student.tensor.grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0

    def test_the_teacher_itself_has_none_and_agrees_with_itself(self, top_k: int, temperature: float) -> None:
        base = tiny_base("gemma3")
        teacher = state(base, 4, 1)
        targets = TokenTargets(base, taught(base, GENERATION, teacher, teacher_top_k=top_k), temperature=1.0)
        portions = targets.items(ExampleEncoder(base, GENERATION, 4), EXAMPLES)
        near = FidelityValidation(base, targets, portions)
        assert near.score(teacher) == pytest.approx((1.0, 0.0), abs=1e-4)
        assert near.metric == "token agreement"
        agreement, loss = near.score(state(base, 4, 9))
        assert agreement < 1
        assert loss > 0.001
        assert near.standard_error(agreement) == math.inf


def test_chunks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    told = taught(base, GENERATION, state(base, 5, 1), teacher_top_k=10)
    targets, found = TokenTargets(base, told, 2.0), []
    for chunk in (64, 3):
        monkeypatch.setattr(objective_module, "LOGITS_CHUNK", chunk)
        student = state(base, 3, 2)
        items: list[EncodedSequence] = [
            item for one in targets.items(ExampleEncoder(base, GENERATION, 3), EXAMPLES) for item in one
        ]
        losses = targets.losses(make_prefix(base, student), collate(items, base.device))
        losses.sum().backward()
        found.append((losses.detach(), student.tensor.grad))
    torch.testing.assert_close(found[0], found[1])


def test_a_portion_is_one_completion_and_many_learn_from_one_input() -> None:
    base = tiny_base("llama")
    examples: Sequence[Example] = answers().train[:3]
    how = DistillConfig(max_new_tokens=5, samples=2)
    told = ask_teacher(base, GENERATION, Teacher((state(base, 4, 1).detached(),)), how, {"train": examples}, print)[
        "train"
    ]
    assert isinstance(told, Completions)
    targets = TokenTargets(base, told, 1.0)
    portions = targets.items(ExampleEncoder(base, GENERATION, 2), examples)
    assert told.example.tolist() == [0, 1, 2] * 3
    assert [len(portion) for portion in portions] == [1] * 9
    rows = [row for (item,) in portions for row in item.targets]
    assert rows == list(range(len(told.tokens)))
