"""What the program computes with fixed seeds, as digests of saved tensors: ``python recording.py OUT.json``.

Started in a process of its own, whose environment (``ENVIRONMENT``) asks every library for the same arithmetic on all
x86-64 processors. To record anew, which is right only where numbers are meant to change, write over
``recorded_numbers.json``.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers.small_tasks import TEMPLATE, Recorder, answers, reviews
from helpers.tiny_models import tiny_base
from safetensors.torch import load_file
from torch import Tensor

import softprompt as sp
from softprompt.config import make_population
from softprompt.experiments.baselines.finetuning import FinetuningConfig
from softprompt.experiments.baselines.full_finetuning import fit_full
from softprompt.experiments.baselines.lora import fit_lora
from softprompt.inference.generation import GenerationConfig
from softprompt.inference.predictor import Predictor

ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
METHODS = ("prompt-tuning", "p-tuning", "residual", "prefix-tuning")
FAMILIES = (
    *("llama", "gemma3", "qwen3", "mistral", "gpt2", "gpt_neox", "opt", "gemma2", "cohere", "granite", "phi", "bloom"),
    *("gpt_neo", "mpt", "falcon_h1", "mamba", "t5", "bart"),
)
RUN = {"length": 4, "steps": 6, "batch_size": 8, "eval_every": 3, "learning_rate": 0.3, "compile": "never"}
OPTIONS: dict[str, dict[str, Any]] = {
    "adafactor": {"optimizer": "adafactor"},
    "constant rate": {"schedule": "constant"},
    "raw rate": {"rate_unit": "raw", "learning_rate": 0.01},
    "weight decay": {"weight_decay": 0.1},
    "averaging": {"averaging": 0.9},
    "micro batches": {"micro_batch_size": 3},
    "checkpointing": {"gradient_checkpointing": True},
    "clipping": {"clip": 0.01},
    "patience": {"patience": 1, "eval_every": 1, "steps": 8, "learning_rate": 5.0},
    "seed": {"seed": 7},
    "text": {"init": "text"},
    "words": {"init": "text:Classify the review."},
    "labels": {"init": "labels"},
    "vocab": {"init": "vocab"},
    "random": {"init": "random"},
    "examples": {"init": "examples", "length": 40},
    "lstm": {"method": "p-tuning", "method_options": {"encoder": "lstm"}},
}


class Stopped(Exception):
    """Raised in the middle of a run."""


class Stopping(Recorder):
    def on_step_end(self, step: int, loss: float, learning_rate: float, examples_per_second: float) -> None:
        super().on_step_end(step, loss, learning_rate, examples_per_second)
        if step == 4:
            raise Stopped


def tensors_of(named: dict[str, Tensor]) -> dict[str, Any]:
    """A digest of all, and some numbers of the first to see by how much they differ where they do."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    first = named[min(named)].flatten().double()
    return {"sha256": digest.hexdigest(), "seen": [round(value, 5) for value in first[:3].tolist()]}


def saved(prompt: Any) -> dict[str, Any]:
    """What stands in the files of a saved prompt, and its measured metrics."""
    with tempfile.TemporaryDirectory() as place:
        prompt.save(Path(place) / "p")
        told = tensors_of(load_file(Path(place) / "p" / "prompt.safetensors"))
    metrics = {
        split: {name: repr(value) for name, value in found.items() if name in ("metric", "value", "low", "high", "n")}
        for split, found in prompt.metrics.items()
    }
    return {**told, "metrics": metrics}


def probe() -> str:
    """A digest of arithmetic that is not ours: another one means another machine, not another program."""
    torch.manual_seed(0)
    x, y = torch.randn(33, 64, requires_grad=True), torch.randn(64, 65, requires_grad=True)
    optimizer = torch.optim.Adam([x, y], lr=0.1)
    for _ in range(5):
        hidden = torch.nn.functional.gelu(x @ y).softmax(-1)
        heads = hidden[:32, :64].reshape(1, 4, 32, 16)
        seen = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        loss = (torch.nn.functional.layer_norm(seen, (16,)) ** 2).exp().clamp(max=9).log1p().sum() + hidden.log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tensors_of({"x": x.detach(), "y": y.detach()})["sha256"]


def classification() -> Any:
    return sp.Task.classification(reviews(), template=TEMPLATE)


def generation() -> Any:
    return sp.Task.generation(answers(), template=TEMPLATE, metric="exact_match").with_room(8)


TASKS: dict[str, Callable[[], Any]] = {"classification": classification, "generation": generation}


def fitted(family: str, task: str, **settings: Any) -> dict[str, Any]:
    return saved(sp.fit(tiny_base(family), TASKS[task](), config=sp.TrainConfig.build(**{**RUN, **settings})))


def resumed() -> dict[str, Any]:
    """A run that ended in its fifth step, and went on."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "p"
        config = sp.TrainConfig.build(**RUN, checkpoint_every=2)
        for callback, resume in ((Stopping(), False), (Recorder(), True)):
            try:
                sp.fit(tiny_base("llama"), classification(), out=out, config=config, callback=callback, resume=resume)
            except Stopped:
                assert not resume
        return tensors_of(load_file(out / "prompt.safetensors"))


def taught(task: str, **settings: Any) -> dict[str, Any]:
    teacher = "Is it good or bad? great and fine are good, dull and poor are bad."
    config = sp.TrainConfig.build(**RUN)
    told = {"config": config, "measure": False, "max_new_tokens": 8, **settings}
    return saved(sp.distill(tiny_base("llama"), TASKS[task](), teacher, **told).prompt)


def several() -> Iterator[tuple[str, dict[str, Any]]]:
    """Prompts that learn together: tasks, a population, an ensemble."""
    base, config = tiny_base("llama"), sp.TrainConfig.build(**RUN)
    tasks = {"one": classification(), "two": sp.Task.classification(reviews(seed=3), template="{{ text }};")}
    teachers = {name: sp.fit(base, task, config=config) for name, task in tasks.items()}
    for name, prompt in sp.fit(base, tasks, config=config).items():
        yield f"multitask {name}", saved(prompt)
    for name, prompt in sp.fit(base, tasks, config=config, teachers=teachers).items():
        yield f"multitask taught {name}", saved(prompt)
    members = make_population(config, seeds=2, grid="learning_rate=0.1,0.5")
    yield "population", saved(sp.fit(base, classification(), config=members))
    yield "ensemble", saved(sp.fit(base, classification(), config=members, ensemble=True))


def tuned() -> Iterator[tuple[str, dict[str, Any]]]:
    """The baselines that learn by gradient."""
    config = FinetuningConfig.build(steps=6, batch_size=8, eval_every=3, learning_rate=1e-3)
    for task in TASKS:
        for name, learn, file in (("lora", fit_lora, "adapter_model"), ("full", fit_full, "model")):
            found = learn(tiny_base("llama"), TASKS[task](), config, Recorder())
            with tempfile.TemporaryDirectory() as place:
                found.save(Path(place) / "p")
                yield f"{name} {task}", tensors_of(load_file(Path(place) / "p" / f"{file}.safetensors"))


def answered() -> Iterator[tuple[str, dict[str, Any]]]:
    """What comes out of scoring and generation, without a prompt."""
    base = tiny_base("gemma3")
    for name, make in TASKS.items():
        found = sp.evaluate(base, make().test, spec=make().spec).metric.model_dump()
        yield f"evaluation {name}", {key: repr(value) for key, value in found.items() if key != "others"}
    scores = Predictor(base, classification().spec).label_log_probabilities(classification().test)
    yield "label scores", tensors_of({"scores": scores})
    for name, how in {"greedy": {}, "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 3}}.items():
        predictor = Predictor(base, generation().spec, None, GenerationConfig(max_new_tokens=8, **how))
        yield (
            f"{name} completions",
            {"texts": [one.completion for one in predictor.iterate_predictions(generation().test)]},
        )


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for task in TASKS:
        for method in METHODS:
            yield f"{method} {task}", fitted("llama", task, method=method)
        for family in FAMILIES:
            yield f"{family} {task}", fitted(family, task)
        yield f"distill {task}", taught(task)
    for name, settings in OPTIONS.items():
        yield f"option {name}", fitted("llama", "classification", **settings)
    yield "distill sampled", taught("generation", samples=1, distillation_temperature=2.0)
    yield "resumed", resumed()
    yield from several()
    yield from tuned()
    yield from answered()


def main() -> None:
    torch.set_num_threads(1)
    found = {"probe": probe(), "cases": dict(cases())}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(found["cases"].items()))
    Path(sys.argv[1]).write_text(f'{{"probe": "{found["probe"]}", "cases": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
