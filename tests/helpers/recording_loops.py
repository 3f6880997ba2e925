"""What the three training loops compute under their settings, beside ``recording.py``: ``python THIS.py OUT.json``.

Recorded by the code of before the rooms (commit 1269618). To record anew, which is right only where numbers are meant
to change, write over ``recorded_loops.json``.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers import recording as r
from helpers.small_tasks import Recorder, reviews
from helpers.tiny_models import tiny_base
from safetensors.torch import load_file

import softprompt as sp
from softprompt.config import make_population
from softprompt.training.distillation.teacher import Teacher

SHARED: dict[str, dict[str, Any]] = {
    "checkpointing": {"gradient_checkpointing": True},
    "micro batches": {"micro_batch_size": 3},
}
LOOP: dict[str, dict[str, Any]] = {
    "clipping": {"clip": 0.01},
    "constant rate": {"schedule": "constant", "warmup": 0.5},
    "patience": {"patience": 1, "eval_every": 1, "steps": 8, "learning_rate": 5.0},
    "seed": {"seed": 7},
    "token budget": {"token_budget": 64},
    "validation sample": {"validation_limit": 5},
    "weight decay": {"weight_decay": 0.1},
}
PROMPTS: dict[str, dict[str, Any]] = {
    **LOOP,
    **SHARED,
    "adafactor": {"optimizer": "adafactor"},
    "averaging": {"averaging": 0.9},
    "raw rate": {"rate_unit": "raw", "learning_rate": 0.01},
}
WIDE = {"eval_every": 3, "steps": 6}


def config_of(**settings: Any) -> Any:
    return sp.TrainConfig.build(**{**r.RUN, **settings})


def two_tasks(kind: str) -> dict[str, Any]:
    if kind == "generation":
        return {"one": r.generation(), "two": r.classification()}
    return {"one": r.classification(), "two": sp.Task.classification(reviews(seed=3), template="{{ text }};")}


def both(prompts: dict[str, Any]) -> dict[str, Any]:
    """Of prompts that learned together, a digest each."""
    return {name: r.saved(prompt) for name, prompt in sorted(prompts.items())}


def single() -> Iterator[tuple[str, dict[str, Any]]]:
    """One prompt: what ``recording.py`` leaves out of settings and methods."""
    for name in ("token budget", "validation sample"):
        yield f"fit {name}", r.fitted("llama", "classification", **LOOP[name])
    lester = {name: value for name, value in r.RUN.items() if name not in ("learning_rate", "batch_size")}
    yield (
        "fit recipe lester",
        r.saved(sp.fit(tiny_base("llama"), r.classification(), config=sp.TrainConfig.build("lester", **lester))),
    )
    # long enough that the starts differ: the first four tokens of recording.py's texts are the same
    for name, init in {"text": "text", "words": "text:What does the writer think of it?", "labels": "labels"}.items():
        yield f"fit long {name}", r.fitted("llama", "classification", init=init, length=32)
    for name in ("micro batches", "token budget"):
        yield f"fit generation {name}", r.fitted("llama", "generation", **{**LOOP, **SHARED}[name])
    for method in ("p-tuning", "residual", "prefix-tuning"):
        for family in ("t5", "gemma3"):
            yield f"fit {method} {family}", r.fitted(family, "classification", method=method)
    through = {"method": "prefix-tuning", "method_options": {"reparameterization": "mlp", "width": 16}}
    yield "fit prefix through mlp", r.fitted("llama", "classification", **through)
    narrow = {"method": "residual", "method_options": {"bottleneck": 8}}
    yield "fit residual narrow", r.fitted("llama", "classification", **narrow)
    with tempfile.TemporaryDirectory() as place:
        sp.fit(tiny_base("llama"), r.classification(), config=config_of(), evaluate_test=False).save(Path(place) / "p")
        yield "fit from a prompt", r.fitted("llama", "classification", init=f"prompt:{place}/p", seed=1)


def multitask() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in sorted(PROMPTS.keys() - {"averaging"}):
        settings = PROMPTS[name]
        found = sp.fit(tiny_base("llama"), two_tasks("classification"), config=config_of(**settings))
        yield f"multitask {name}", both(found)
    for family in ("gemma3", "mamba", "t5"):
        yield (
            f"multitask {family}",
            both(sp.fit(tiny_base(family), two_tasks("generation"), config=config_of())),
        )


def together() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, settings in PROMPTS.items():
        rates = {} if "learning_rate" in settings else {"grid": "learning_rate=0.1,0.5"}
        members = make_population(config_of(**settings), **(rates or {"seeds": 2}))
        yield f"population {name}", r.saved(sp.fit(tiny_base("llama"), r.classification(), config=members))
    mixed = {name: config_of(method=name) for name in r.METHODS}
    yield "population of methods", r.saved(sp.fit(tiny_base("llama"), r.classification(), config=mixed))
    members = make_population(config_of(), grid="length=2,4")
    for family in ("llama", "mamba", "t5"):
        yield f"population generation {family}", r.saved(sp.fit(tiny_base(family), r.generation(), config=members))


def tuned() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, learn, file in (("lora", r.fit_lora, "adapter_model"), ("full", r.fit_full, "model")):
        for option, settings in LOOP.items():
            yield f"{name} {option}", weights(learn, file, "llama", "classification", **settings)
        for family in ("gemma3", "gpt_neox"):
            yield f"{name} {family}", weights(learn, file, family, "generation")


def weights(learn: Callable[..., Any], file: str, family: str, task: str, **settings: Any) -> dict[str, Any]:
    rate = {"learning_rate": 1e-3}
    config = r.FinetuningConfig.build(**{"batch_size": 8, **WIDE, **settings, **rate})
    with tempfile.TemporaryDirectory() as place:
        found = learn(tiny_base(family), r.TASKS[task](), config, Recorder())
        found.save(Path(place) / "p")
        told = r.tensors_of(load_file(Path(place) / "p" / f"{file}.safetensors"))
    return {**told, "best": [repr(found.best_value), repr(found.best_loss)]}


def resumed() -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs that ended in their fifth step, and went on."""
    base, config = tiny_base("llama"), config_of(checkpoint_every=2)
    members = make_population(config, seeds=2)

    def members_of_task(**how: Any) -> Any:
        return sp.fit(base, r.classification(), config=members, **how)

    def tasks(**how: Any) -> Any:
        return sp.fit(base, two_tasks("classification"), config=config, **how)

    for name, learn in {"population": members_of_task, "multitask": tasks}.items():
        with tempfile.TemporaryDirectory() as place:
            out, stopped = Path(place) / "p", False
            try:
                learn(out=out, callback=r.Stopping())
            except r.Stopped:
                stopped = True
            again = learn(out=out, callback=Recorder(), resume=True)
        assert stopped
        told, whole = both_of(again), both_of(learn())
        assert told == whole, f"{name}: a resumed run ends elsewhere than an uninterrupted one"
        yield f"resumed {name}", told


def both_of(found: Any) -> dict[str, Any]:
    return both(found) if isinstance(found, dict) else r.saved(found)


def students() -> Iterator[tuple[str, dict[str, Any]]]:
    """Two students of one teacher."""
    base = tiny_base("llama")
    words = "Is it good or bad? great and fine are good, dull and poor are bad."
    for task in r.TASKS:
        inputs = r.TASKS[task]()
        teacher = Teacher.written(base, inputs.spec, words)
        configs = {str(length): config_of(length=length) for length in (2, 4)}
        found = sp.distill(base, inputs, teacher, config=configs, max_new_tokens=8, measure=False)
        yield f"students {task}", both({name: one.prompt for name, one in found.items()})


def main() -> None:
    torch.set_num_threads(1)
    parts = (single, multitask, together, tuned, resumed, students)
    cases = {name: value for part in parts for name, value in part()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(cases.items()))
    Path(sys.argv[1]).write_text(f'{{"probe": "{r.probe()}", "cases": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
