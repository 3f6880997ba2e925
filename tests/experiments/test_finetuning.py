"""LoRA and full fine-tuning: they learn, the caller's model stays as it is, what they save is what they are."""

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import TEMPLATE, Recorder, answers, noise, reviews, reviews_task
from helpers.tiny_models import tiny_base, tiny_model, tiny_tokenizer

from softprompt.config import TrainConfig
from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.splits import Splits
from softprompt.data.task import Task
from softprompt.errors import BaseModelError, ConfigError, DataError, MissingExtraError, OutputError, TrainingError
from softprompt.experiments.baselines import finetuning
from softprompt.experiments.baselines.finetuning import FinetuningConfig
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline
from softprompt.experiments.baselines.full_finetuning import fit_full
from softprompt.experiments.baselines.lora import fit_lora
from softprompt.experiments.comparison.compare import compare
from softprompt.inference.evaluation import score
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.prefix import make_prefix
from softprompt.training.data_loader import BatchSampler
from softprompt.training.validation import score_labels
from softprompt.utils.seals import unseal

FAST: dict[str, Any] = {"steps": 40, "batch_size": 8, "eval_every": 20}
RATES = {fit_lora: 1e-2, fit_full: 1e-3}
SHORT = GenerationConfig(max_new_tokens=6)

both = pytest.mark.parametrize("method", [fit_lora, fit_full])


def fitted(
    method: Callable[..., FittedBaseline], base: FrozenLM, task: Task, seen: Recorder, **settings: Any
) -> FittedBaseline:
    chosen = {**FAST, "learning_rate": RATES[method], **settings}
    return method(base, task, FinetuningConfig.build(**chosen), seen, generation=SHORT)


def digest(base: FrozenLM) -> str:
    """Of every weight's name and bytes, of every module's kind, and of what requires gradient."""
    found = hashlib.sha256()
    for name, tensor in base.model.state_dict().items():
        found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    kinds = [(name, type(module).__name__) for name, module in base.model.named_modules()]
    learning = [name for name, weight in base.model.named_parameters() if weight.requires_grad]
    found.update(repr((kinds, learning, base.model.config.to_dict())).encode())
    return found.hexdigest()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_rows_that_get_no_gradient_may_be_left_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full fine-tuning with all rows of the tables in the optimiser, and with those that occur, is the same."""
    weights, sizes, original = [], [], torch.optim.AdamW

    def noted(values: Any, *given: Any, **options: Any) -> Any:
        sizes.append(sum(value.numel() for value in values))
        return original(values, *given, **options)

    monkeypatch.setattr(torch.optim, "AdamW", noted)
    for touched in (finetuning._find_touched_rows, lambda *_: {}):
        monkeypatch.setattr(finetuning, "_find_touched_rows", touched)
        found = fitted(fit_full, tiny_base(family), reviews_task(), Recorder(), steps=6)
        assert isinstance(found.answers, Predictor)
        weights.append(dict(found.answers.base.model.named_parameters()))
    assert sizes[0] < sizes[1]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt", "bart", "t5"])
@both
def test_it_learns_and_the_base_stays_as_it_is(method: Callable[..., FittedBaseline], family: str) -> None:
    base, task, seen = tiny_base(family), reviews_task(), Recorder()
    bare = Predictor(base, task.spec)
    before, expected = digest(base), bare.label_log_probabilities(task.test)
    found = fitted(method, base, task, seen, steps=60)
    assert sum(seen.losses[-5:]) < 0.7 * sum(seen.losses[:5])
    assert score(found.answers, task.test).metric.value > 0.9
    assert digest(base) == before
    assert torch.equal(Predictor(base, task.spec).label_log_probabilities(task.test), expected)
    assert [len(seen.evaluations), seen.ended, seen.first_step] == [3, 1, 0]
    assert seen.learned == found.trained_parameters
    assert not any(weight.requires_grad for weight in found.answers.base.model.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize(("family", "rate"), [("llama", 1e-2), ("bart", 1e-2), ("mpt", 1e-2)])
@both
def test_generation_learns(method: Callable[..., FittedBaseline], family: str, rate: float) -> None:
    base, task, seen = tiny_base(family), Task.generation(answers(), template=TEMPLATE), Recorder()
    before = digest(base)
    found = fitted(method, base, task, seen, steps=60, learning_rate=rate)
    assert sum(seen.losses[-5:]) < 0.5 * sum(seen.losses[:5])
    assert found.best_value == -found.best_loss
    exact = score(found.answers, task.test).metric
    assert exact.metric == "exact_match"
    assert exact.value > 0.3
    assert digest(base) == before


@both
def test_the_first_loss_is_that_of_the_bare_template_on_the_batch_that_prompts_learn_first(
    method: Callable[..., FittedBaseline],
) -> None:
    base, task, seen = tiny_base("llama"), reviews_task(), Recorder()
    fitted(method, base, task, seen, steps=1, seed=3)
    encoder = ExampleEncoder(base, task.spec, 0)
    items = encoder.training_items(task.train)
    order = BatchSampler([len(item.ids) for item in items], TrainConfig(batch_size=8, seed=3)).batch(0)
    with torch.no_grad():
        batch = collate([items[index] for index in order], base.device)
        expected = AnswerScorer(base, encoder.verbalizer).losses(make_prefix(base, None), batch).mean()
    assert seen.losses == [pytest.approx(float(expected), rel=1e-5)]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_every_weight_follows_the_gradient_of_the_transformers_model(family: str) -> None:
    base, task = tiny_base(family), reviews_task()
    found = fitted(fit_full, base, task, Recorder(), steps=1, learning_rate=1e-3)
    encoder = ExampleEncoder(base, task.spec, 0)
    items = encoder.training_items(task.train)
    model = tiny_model(family).eval()
    assert encoder.verbalizer is not None
    rows = list(encoder.verbalizer.rows)
    losses = []
    for index in BatchSampler([len(item.ids) for item in items], TrainConfig(batch_size=8)).batch(0):
        logits = model(torch.tensor([[*base.bos_ids, *items[index].ids]])).logits[0, -1, rows]
        losses.append(-logits.log_softmax(0)[rows.index(items[index].targets[0])])
    torch.stack(losses).mean().backward()
    tuned = dict(found.answers.base.model.named_parameters())  # type: ignore[attr-defined]
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        # Adam's first step has the gradient's sign, and no more of it
        clear = weight.grad.abs() > 1e-4 * weight.grad.abs().max()
        change = (tuned[name].detach() - weight.detach())[clear]
        assert torch.equal(change.sign(), -weight.grad[clear].sign()), name
        torch.testing.assert_close(change.abs(), torch.full_like(change, 1e-3), atol=1e-4, rtol=0)


@both
def test_a_seed_gives_the_same_bytes(method: Callable[..., FittedBaseline]) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        found = fitted(method, tiny_base("llama"), reviews_task(), Recorder(), steps=6, seed=seed)
        return list(found.answers.base.model.parameters())  # type: ignore[attr-defined]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@both
def test_batches_in_parts_learn_the_same(method: Callable[..., FittedBaseline]) -> None:
    whole, parts = Recorder(), Recorder()
    for seen, budget in ((whole, 8192), (parts, 20)):
        fitted(method, tiny_base("gemma3"), reviews_task(), seen, steps=4, token_budget=budget)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-3)


@both
def test_the_best_evaluation_is_kept(method: Callable[..., FittedBaseline]) -> None:
    # nothing to learn: what is best is chance
    task, rate = Task.classification(noise(), template=TEMPLATE), 3 * RATES[method]
    found = fitted(method, tiny_base("llama"), task, Recorder(), steps=12, eval_every=1, learning_rate=rate, patience=0)
    assert [point["step"] for point in found.curve] == list(range(1, 13))
    best = found.curve[found.settings["best_step"] - 1]
    assert (found.best_value, found.best_loss) == (best["value"], best["loss"])
    highest = max(point["value"] for point in found.curve)
    error = math.sqrt(highest * (1 - highest) / len(task.validation))
    assert best["loss"] == min(point["loss"] for point in found.curve if point["value"] >= highest - error)
    assert found.settings["best_step"] < 12
    scores = found.answers.label_log_probabilities(task.validation)
    assert score_labels(scores, task.validation, task.spec) == pytest.approx((found.best_value, found.best_loss))


@both
def test_it_stops_when_nothing_gets_better(method: Callable[..., FittedBaseline]) -> None:
    seen = Recorder()
    found = fitted(method, tiny_base("llama"), reviews_task(), seen, eval_every=1, learning_rate=1e-12, patience=2)
    assert found.settings["steps_made"] == len(found.curve) < 10
    assert any("no better since step" in note for note in seen.notes)


@both
def test_a_time_budget_ends_it_with_the_rate_come_down(method: Callable[..., FittedBaseline]) -> None:
    seen = Recorder()
    found = fitted(method, tiny_base("llama"), reviews_task(), seen, steps=10**6, seconds=1.5, eval_every=10**6)
    made = found.settings["steps_made"]
    assert 0 < made < 10**6
    assert 1.5 <= found.seconds < 30
    assert [point["step"] for point in found.curve] == [made]
    assert seen.rates[-1] < 0.3 * max(seen.rates)
    assert any(f"the time budget of 1.5 s ended the run at step {made}" in note for note in seen.notes)


class TestPrecision:
    def test_small_steps_add_up_in_sixteen_bits(self) -> None:
        base = FrozenLM(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer("llama"), "tiny")
        found = fitted(fit_full, base, reviews_task(), Recorder(), learning_rate=2e-4, steps=80)
        layer = "model.layers.0.mlp.up_proj.weight"
        before, after = (one.get_parameter(layer) for one in (base.model, found.answers.base.model))  # type: ignore[attr-defined]
        assert after.dtype == torch.bfloat16
        # a step of this size is lost in rounding where the weight is 100 times larger
        large = before.abs() > 0.1
        assert (before != after)[large].float().mean() > 0.5

    def test_sixteen_bits_without_range_are_left(self) -> None:
        base = FrozenLM(tiny_model("llama").to(torch.float16), tiny_tokenizer("llama"), "tiny")
        found = fitted(fit_full, base, reviews_task(), Recorder())
        assert {weight.dtype for weight in found.answers.base.model.parameters()} == {torch.float32}  # type: ignore[attr-defined]
        assert base.dtype == torch.float16

    def test_adapters_are_float32(self) -> None:
        base = FrozenLM(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer("llama"), "tiny")
        found = fitted(fit_lora, base, reviews_task(), Recorder())
        assert found.task_bytes == 4 * found.trained_parameters
        assert found.best_value > 0.9


class TestSaved:
    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bart", "t5"])
    def test_peft_gives_the_same_logits(self, family: str, tmp_path: Path) -> None:
        from peft import PeftModel

        base = tiny_base(family)
        found = fitted(fit_lora, base, reviews_task(), Recorder())
        found.save(tmp_path / "adapter")
        assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "task.json",
        ]
        ids = torch.arange(1, 9)[None]
        inputs = {"input_ids": ids}
        if base.architecture == "encoder-decoder":
            inputs["decoder_input_ids"] = ids
        model = found.answers.base.model  # type: ignore[attr-defined]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter").eval()(**inputs).logits
            torch.testing.assert_close(loaded, model(**inputs).logits, atol=1e-4, rtol=1e-4)
            assert (loaded - base.model(**inputs).logits).abs().max() > 1e-2

    @pytest.mark.parametrize("family", ["gemma3", "bart"])
    def test_a_whole_model_loads_as_any_other(self, family: str, tmp_path: Path) -> None:
        task = reviews_task()
        found = fitted(fit_full, tiny_base(family), task, Recorder())
        found.save(tmp_path / "model")
        assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors"}
        again = Predictor(load_model(tmp_path / "model", dtype="float32", device="cpu"), task.spec)
        expected = found.answers.label_log_probabilities(task.test)
        torch.testing.assert_close(again.label_log_probabilities(task.test), expected, atol=1e-4, rtol=1e-4)

    @both
    def test_the_task_is_beside_it(self, method: Callable[..., FittedBaseline], tmp_path: Path) -> None:
        base, task = tiny_base("llama"), reviews_task()
        found = fitted(method, base, task, Recorder(), steps=1)
        found.save(tmp_path / "saved")
        facts = unseal(json.loads((tmp_path / "saved" / "task.json").read_text()))
        assert facts == {"task": task.spec.to_dict(), "base": {"name": base.name, "fingerprint": base.fingerprint}}
        with pytest.raises(OutputError, match="exists already"):
            found.save(tmp_path / "saved")


class TestMemory:
    def test_adapters_share_the_base(self) -> None:
        base = tiny_base("llama")
        found = fitted(fit_lora, base, reviews_task(), Recorder(), steps=1)
        own = {weight.data_ptr() for weight in base.model.parameters()}
        model = found.answers.base.model  # type: ignore[attr-defined]
        added = [weight for weight in model.parameters() if weight.data_ptr() not in own]
        assert found.base_shared
        assert sum(weight.nbytes for weight in added) == found.task_bytes
        assert found.base_bytes >= 4 * base.parameter_count

    def test_whole_models_do_not(self) -> None:
        base = tiny_base("llama")
        found = fitted(fit_full, base, reviews_task(), Recorder(), steps=1)
        assert (found.base_shared, found.base_bytes) == (False, 0)
        assert found.task_bytes >= 4 * found.trained_parameters == 4 * base.parameter_count


class TestConfig:
    def test_what_prompts_have_too_has_their_defaults(self) -> None:
        shared = FinetuningConfig().model_dump(exclude={"learning_rate", "seconds", "max_length"})
        assert shared == {name: getattr(TrainConfig(), name) for name in shared}
        assert {"steps", "batch_size", "clip", "warmup", "patience"} < set(shared)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"step": 3}, "unknown setting 'step': did you mean 'steps'"),
            ({"steps": 0}, "'steps' .optimiser steps.: .* greater than or equal to 1, got 0"),
            ({"seconds": -1.0}, "'seconds' .time budget.*got -1.0"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            FinetuningConfig.build(**settings)

    @both
    def test_a_limit_of_length_holds_in_learning_and_answers(self, method: Callable[..., FittedBaseline]) -> None:
        seen = Recorder()
        found = fitted(method, tiny_base("llama"), reviews_task(), seen, steps=1, max_length=8)
        assert found.answers.spec.max_length == 8
        assert any("texts were cut to 8 tokens" in note for note in seen.notes)
        assert score(found.answers, reviews_task().test).truncated == 24


class TestMistakes:
    @pytest.mark.parametrize(
        ("train", "validation", "words"),
        [
            ([], "ab", "expected a train split, got no training examples"),
            ("ab", [], "expected validation examples, got none"),
            ("aa", "ab", "training examples of at least two labels, got only 'a'"),
        ],
    )
    def test_data_that_nothing_can_be_learned_from(
        self, tmp_path: Path, train: Sequence[str], validation: Sequence[str], words: str
    ) -> None:
        parts = [tuple(Example("the film", label) for label in labels) for labels in (train, validation)]
        splits = Splits(*parts, (Example("the film", "b"),), "made here", ())
        with pytest.raises(DataError, match=words):
            compare(tiny_base("llama"), Task.classification(splits, labels=["a", "b"]), "lora,full", tmp_path)

    @both
    @pytest.mark.parametrize("kind", ["classification", "generation"])
    def test_a_loss_that_is_no_number(self, method: Callable[..., FittedBaseline], kind: str) -> None:
        task = reviews_task() if kind == "classification" else Task.generation(answers(), template=TEMPLATE)
        base, seen = tiny_base("llama"), Recorder()
        before = digest(base)
        with pytest.raises(TrainingError, match=r"loss is not a number at step \d+ .* a lower peak rate \(1e\+28\)"):
            fitted(method, base, task, seen, learning_rate=1e29)
        assert digest(base) == before
        assert seen.ended == 1
        assert all(map(math.isfinite, seen.losses))

    def test_without_peft(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtraError, match=r"'peft', .*pip install 'softprompt\[peft\]'"):
            fitted(fit_lora, tiny_base("llama"), reviews_task(), Recorder())

    def test_a_family_that_peft_refuses(self) -> None:
        with pytest.raises(BaseModelError, match=r"peft has no LoRA .* 'tiny mamba' .*: .*; use a soft prompt or full"):
            fitted(fit_lora, tiny_base("mamba"), Task.classification(reviews()), Recorder())

    def test_full_fine_tuning_of_a_quantized_base(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FrozenLM, "quantization", "int8")
        with pytest.raises(BaseModelError, match=r"plain weights, 'tiny llama' is quantized \(int8\): .* or use LoRA"):
            fitted(fit_full, tiny_base("llama"), reviews_task(), Recorder())
