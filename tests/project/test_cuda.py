"""On a GPU as on a CPU: what the other tests show of tiny models there holds here. Without a GPU all are skipped."""

import asyncio
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.served_prompts import alone, assert_same, collected, completed, examples, prompts, said
from helpers.small_tasks import FAST, TEMPLATE, Recorder, answers, command, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base, tiny_model, tiny_tokenizer

import softprompt.training.loop as training
from softprompt.analysis.diagnostics.doctor import diagnose, diagnose_family
from softprompt.analysis.diagnostics.tiny_models import FAMILIES, make_family_model
from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.experiments.baselines.finetuning import FinetuningConfig
from softprompt.experiments.baselines.full_finetuning import fit_full
from softprompt.experiments.baselines.linear_probe import fit_linear_probe
from softprompt.experiments.baselines.lora import fit_lora
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.methods.method_registry import METHODS
from softprompt.prompts.state import PromptState
from softprompt.serving.engine.inference_engine import EngineLimits, InferenceEngine
from softprompt.training.fit import fit
from softprompt.training.multitask import train_multitask

GPU = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CLOSE: dict[str, float] = {"rtol": 5e-3, "atol": 5e-4}  # of losses after some float32 steps
some_families = pytest.mark.parametrize("family", ["gemma3", "gpt2", "t5"])


@cache
def gpu_base(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    return FrozenLM(tiny_model(family).to(GPU, dtype), tiny_tokenizer(family), f"tiny {family}")


def assert_close(found: Sequence[float], expected: Sequence[float]) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_verdicts_that_they_have_on_a_cpu(family: str) -> None:
    model, tokenizer = make_family_model(family)
    expected = diagnose_family(family, model, tokenizer)
    other, _ = make_family_model(family)  # not the one that was wrapped: its norms hold their scales where it was
    found = diagnose_family(family, other.to(GPU), tokenizer)
    assert (found.way, found.reason) == (expected.way, expected.reason)
    if found.diagnosis is not None and expected.diagnosis is not None:
        assert found.diagnosis.device == "cuda"
        assert [(one.name, one.verdict, one.reason) for one in found.diagnosis.checks] == [
            (one.name, one.verdict, one.reason) for one in expected.diagnosis.checks
        ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@some_families
def test_half_precision_is_exact_but_for_rounding(family: str, dtype: torch.dtype) -> None:
    diagnosis = diagnose(gpu_base(family, dtype))
    assert diagnosis.way == ("encoder input" if family == "t5" else "shared prefix")
    assert {one.verdict for one in diagnosis.checks} <= {"exact", "fallback"}


class TestLearning:
    @staticmethod
    def both(family: str, task: Task, **settings: Any) -> PromptState:
        """What is learned on the GPU, its losses like those on the CPU."""
        expected, seen = Recorder(), Recorder()
        fit(tiny_base(family), task, callback=expected, **settings)
        state = fit(gpu_base(family), task, callback=seen, **settings).state
        assert_close(seen.losses, expected.losses)
        return state

    @pytest.mark.parametrize("method", METHODS)
    @some_families
    def test_every_method(self, family: str, method: str) -> None:
        state = self.both(family, reviews_task(), **{**FAST, "method": method})
        assert {tensor.device.type for tensor in state.tensors} == {"cuda"}

    @some_families
    def test_generation(self, family: str) -> None:
        self.both(family, Task.generation(answers(), template=TEMPLATE), **{**FAST, "init": "text"})

    def test_recomputed_activations(self) -> None:
        self.both("gemma3", reviews_task(), **FAST, gradient_checkpointing=True, micro_batch_size=3)

    def test_a_population(self) -> None:
        configs = {
            "short": TrainConfig.build(**{**FAST, "length": 3}),
            "another method": TrainConfig.build(**FAST, method="residual"),
            "another seed": TrainConfig.build(**FAST, seed=5),
        }
        kept = fit(gpu_base("gemma3"), reviews_task(), config=configs, ensemble=True)
        for state, config in zip(kept.states, configs.values(), strict=True):
            one = fit(gpu_base("gemma3"), reviews_task(), config=config).state
            for found, expected in zip(state.tensors, one.tensors, strict=True):
                torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-3)

    def test_several_tasks(self) -> None:
        tasks = {"reviews": reviews_task(), "answers": Task.generation(answers(), template=TEMPLATE)}
        losses = []
        for base in (tiny_base("gemma3"), gpu_base("gemma3")):
            teacher, seen = fit(base, tasks["reviews"], **FAST).state, Recorder()
            config = TrainConfig.build(**{**FAST, "init": "text"})
            found = train_multitask(base, tasks, config, seen, teachers={"reviews": teacher})
            assert set(found) == set(tasks)
            losses.append(seen.losses)
        assert_close(*losses)

    @pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_interrupted_runs_go_on_to_the_same_bytes(
        self, dtype: torch.dtype, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, settings = gpu_base("gemma3", dtype), {**FAST, "method": method, "checkpoint_every": 2}
        whole, calls = training._accumulate_gradients, []

        def interrupted(*arguments: Any) -> list[float]:
            calls.append(1)
            if len(calls) == 7:
                raise KeyboardInterrupt
            return whole(*arguments)

        fit(base, reviews_task(), out=tmp_path / "unbroken", **settings)
        with monkeypatch.context() as patch:
            patch.setattr(training, "_accumulate_gradients", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fit(base, reviews_task(), out=tmp_path / "p", **settings)
        fit(base, reviews_task(), out=tmp_path / "p", resume=True, **settings)
        for name in ("prompt.safetensors", "history.jsonl"):
            assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()

    @pytest.mark.parametrize("method", [fit_lora, fit_full])
    def test_baselines(self, method: Any) -> None:
        config = FinetuningConfig.build(steps=12, batch_size=8, eval_every=6, learning_rate=1e-3)
        losses = []
        for base in (tiny_base("llama"), gpu_base("llama")):
            seen = Recorder()
            method(base, reviews_task(), config, seen, generation=GenerationConfig(6))
            losses.append(seen.losses)
        assert_close(*losses)

    def test_linear_probe(self) -> None:
        predictions = fit_linear_probe(gpu_base("llama"), reviews_task()).answers.iterate_predictions(reviews().test)
        assert {one.label for one in predictions} == {"good", "bad"}


@some_families
def test_predictions_are_those_of_a_cpu(family: str) -> None:
    texts = examples(random.Random(3), 20)
    for served, own in zip(prompts(tiny_base(family)), prompts(gpu_base(family)), strict=True):
        found = sorted(Predictor(gpu_base(family), own.spec, own.states).predict(texts), key=lambda one: one.index)
        expected = alone(tiny_base(family), served, texts)
        if served.spec.kind == "classification":
            assert_same(found, expected)
        else:
            assert [one.completion for one in found] == [one.completion for one in expected]


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "t5", "mamba"])
def test_served_requests_get_what_they_get_alone(family: str) -> None:
    base, generator = gpu_base(family), random.Random(1)
    kinds = prompts(base, in_layers=family != "mamba")

    async def main() -> None:
        async with InferenceEngine(base, EngineLimits(rows=24, batch_tokens=900)) as engine:
            asked = [(served, examples(generator, 3), GenerationConfig(8)) for served in kinds * 2]
            waiting = [
                engine.classify(served, texts)
                if served.spec.kind == "classification"
                else collected(engine.generate(served, texts[0], generation))
                for served, texts, generation in asked
            ]
            for (served, texts, generation), answer in zip(asked, await asyncio.gather(*waiting), strict=True):
                if served.spec.kind == "classification":
                    assert_same(answer, alone(base, served, texts))
                else:
                    assert said(answer) == completed(base, served, texts[0], generation)

    asyncio.run(main())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    save_tiny(folder / "model", "gemma3")
    write_data(folder / "reviews", reviews())
    (folder / "inputs.jsonl").write_text("".join(json.dumps({"text": one.text}) + "\n" for one in reviews().train))
    where = ["--model", folder / "model", "--data", folder / "reviews", "--out", folder / "p"]
    short = [
        "--length",
        4,
        "--steps",
        8,
        "--batch-size",
        8,
        "--eval-every",
        4,
        "--template",
        TEMPLATE,
        "--init",
        "labels",
    ]
    done = command("train", *where, *short)
    assert done.code == 0, done.err
    return folder


class TestCommandLine:
    """A GPU is taken where there is one, without being named."""

    def test_the_gpu_and_bfloat16_are_chosen(self, place: Path) -> None:
        base = load_model(place / "model")
        assert (base.device.type, base.dtype) == ("cuda", torch.bfloat16)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("eval", "p", "--data", "reviews"),
            ("predict", "p", "the film is great 3"),
            ("inspect", "p", "--data", "reviews"),
            ("prune", "p", "--data", "reviews", "--out", "pruned"),
            ("doctor", "--model", "model"),
            (
                "distill",
                "--model",
                "model",
                "--teacher",
                "p",
                "--data",
                "inputs.jsonl",
                "--length",
                "2",
                "--steps",
                "4",
                "--out",
                "short",
            ),
        ],
        ids=lambda arguments: arguments[0],
    )
    def test_verbs(self, place: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
        monkeypatch.chdir(place)
        done = command(*arguments, "--json")
        assert done.code == 0, done.err

    def test_compare(self, place: Path) -> None:
        where = ["--model", place / "model", "--data", place / "reviews", "--out", place / "compared"]
        short = ["--steps", 4, "--seeds", 1, "--template", TEMPLATE]
        methods = "zero-shot,few-shot:2,linear-probe,prompt-tuning,prefix-tuning,lora,full"
        done = command("compare", *where, *short, "--methods", methods)
        assert done.code == 0, done.err
        results = [json.loads(path.read_text()) for path in (place / "compared" / "results").glob("*.json")]
        assert len(results) == 7
        assert [one["error"] for one in results if one.get("error")] == []
