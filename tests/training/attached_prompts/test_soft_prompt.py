"""A prompt learned by the trainers of ``transformers`` and TRL, as they are, and what becomes of it."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_tasks import answers
from helpers.tiny_models import save_tiny, tiny_base, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments, pipeline

from softprompt.data.task import Task
from softprompt.errors import BaseModelError, ConfigError, PromptFileError
from softprompt.export.prompt_exchange import export_prompt
from softprompt.inference.evaluation import evaluate
from softprompt.models.loading import load_model
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.attached_prompts.soft_prompt import SoftPrompt

TASK = Task.generation(answers(), template="{{ text }}:")


PLAIN: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "learning_rate": 0.3,
    "max_steps": 12,
    "save_steps": 6,
    "logging_steps": 3,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


def make_trainer(soft: SoftPrompt, folder: Path, **options: Any) -> Trainer:
    tokenizer = soft.base.tokenizer
    return Trainer(
        soft.attach(),
        TrainingArguments(str(folder), **PLAIN | options),
        train_dataset=soft.encode_split(TASK),
        eval_dataset=soft.encode_split(TASK, "validation"),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def losses(trainer: Trainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


class TestTrainer:
    def test_learns_keeps_the_prompt_alone_and_goes_on(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model", "llama")
        model = AutoModelForCausalLM.from_pretrained(folder)
        before = {name: one.clone() for name, one in model.state_dict().items()}
        soft = SoftPrompt(model, TASK, length=4)
        best = {"eval_strategy": "steps", "eval_steps": 6, "load_best_model_at_end": True}
        trainer = make_trainer(soft, tmp_path / "run", activation_checkpointing=True, **best)
        trainer.train()
        assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
        kept = tmp_path / "run" / "checkpoint-6" / "model.safetensors"
        assert kept.stat().st_size < 4_000
        assert not (kept.parent / "config.json").exists()

        # from a checkpoint it goes on to the same numbers
        other = SoftPrompt(AutoModelForCausalLM.from_pretrained(folder), TASK, length=4)
        make_trainer(other, tmp_path / "run", **best).train(resume_from_checkpoint=str(kept.parent))
        torch.testing.assert_close(other.method.theta, soft.method.theta, atol=1e-6, rtol=1e-6)
        of_checkpoint = SoftPrompt.load(AutoModelForCausalLM.from_pretrained(folder), kept.parent)
        assert (of_checkpoint.state().tensor - soft.state().tensor).abs().max() > 0

        # and the frozen model is untouched
        assert all(torch.equal(one, before[name]) for name, one in soft.detach().state_dict().items())

        # a prompt like any other, on the base as any other command loads it
        prompt = soft.to_prompt(TASK)
        assert prompt.metrics["test"]["n"] == len(TASK.test)
        place, base = prompt.save(tmp_path / "prompt"), load_model(str(folder), dtype="float32")
        saved = load_prompt(place)
        saved.check_base(base)
        assert evaluate(base, TASK.test, saved).to_dict()["value"] == prompt.metrics["test"]["value"]
        export_prompt(base, saved, tmp_path / "exported", format="vocab")
        attached = SoftPrompt.of(AutoModelForCausalLM.from_pretrained(folder), place).attach()
        pipe = pipeline("text-generation", model=attached, tokenizer=soft.base.tokenizer)
        texts = ["great film 3:", "poor film 5 and a dull story:"]
        one_by_one = [pipe(text, max_new_tokens=4, do_sample=False)[0]["generated_text"] for text in texts]
        soft.base.tokenizer.padding_side = "left"
        together = pipe(texts, max_new_tokens=4, do_sample=False, batch_size=2)
        assert [answer["generated_text"] for (answer,) in together] == one_by_one

    @pytest.mark.parametrize("method", ["p-tuning", "residual", "prefix-tuning"])
    def test_every_method_learns(self, tmp_path: Path, method: str) -> None:
        soft = SoftPrompt(tiny_model("llama"), TASK, tokenizer=tiny_tokenizer("llama"), length=4, method=method)
        start = soft.state().detached()
        trainer = make_trainer(soft, tmp_path, save_strategy="no")
        trainer.optimizer = torch.optim.AdamW(soft.parameter_groups(0.3))
        trainer.train()
        assert losses(trainer)[-1] < losses(trainer)[0]
        assert not torch.equal(soft.state().tensors[0], start.tensors[0])
        soft.attach().save_pretrained(tmp_path / "kept")
        again = SoftPrompt.load(tiny_model("llama"), tmp_path / "kept", tokenizer=tiny_tokenizer("llama"))
        for one, other in zip(again.state().tensors, soft.state().tensors, strict=True):
            torch.testing.assert_close(one, other)


class TestSFTTrainer:
    def test_learns_prompt_and_completion(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TRL's own imports
            datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
            from trl import SFTConfig, SFTTrainer
        assert trl.__name__
        soft = SoftPrompt(tiny_model("llama"), TASK, tokenizer=tiny_tokenizer("llama"), length=4, init="text:Answer.")
        rows = [{"prompt": f"{one.text}:", "completion": f" {one.references[0]}"} for one in TASK.train]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of versions that TRL works with
            trainer = SFTTrainer(
                soft.attach(),
                SFTConfig(str(tmp_path), **PLAIN),
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tiny_tokenizer("llama"),
            )
            assert trainer.args.gradient_checkpointing or trainer.args.activation_checkpointing
            # the loss that it takes from the backbone is the one that the model gives
            batch = next(iter(trainer.get_train_dataloader()))
            own = soft.base.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
            torch.testing.assert_close(trainer.compute_loss(soft.base.model, dict(batch)), own, atol=1e-5, rtol=1e-5)
            trainer.train()
        assert losses(trainer)[-1] < losses(trainer)[0] - 0.5
        assert (tmp_path / "checkpoint-6" / "model.safetensors").stat().st_size < 4_000


class TestSettings:
    def test_starts_from_a_saved_prompt(self, tmp_path: Path) -> None:
        base = tiny_base("llama")
        first = SoftPrompt(base, TASK, length=3)
        place = first.to_prompt(TASK.spec).save(tmp_path / "prompt")
        second = SoftPrompt(base, init=f"prompt:{place}")
        assert second.length == 3
        torch.testing.assert_close(second.state().tensor, first.state().tensor)
        assert second.to_prompt(TASK.spec).parent == str(place)

    def test_unit_is_the_deviation_of_the_embeddings(self) -> None:
        base = tiny_base("llama")
        assert SoftPrompt(base, length=3).method.unit == base.embedding_std
        assert SoftPrompt(base, length=3, rate_unit="raw").method.unit == 1.0

    @pytest.mark.parametrize(
        ("make", "error", "match"),
        [
            (
                lambda: SoftPrompt(tiny_base("llama"), learning_rate=0.1),
                ConfigError,
                r"unknown setting 'learning_rate'",
            ),
            (lambda: SoftPrompt(tiny_base("llama"), method="lora"), ConfigError, r"unknown method 'lora'"),
            (lambda: SoftPrompt(torch.nn.Linear(2, 2)), ConfigError, r"expected a model of transformers.*got Linear"),
            (lambda: SoftPrompt(tiny_base("t5")), BaseModelError, r"has an encoder and a decoder.*use fit"),
            (lambda: SoftPrompt.load(tiny_base("llama"), "/nowhere"), PromptFileError, r"'/nowhere' holds no prompt"),
            (
                lambda: SoftPrompt(tiny_base("llama"), length=3, method="prefix-tuning")(torch.ones(1, 3).long()),
                ConfigError,
                r"prefix-tuning learns keys and values, not inputs: attach it",
            ),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, make: Any, error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            make()
