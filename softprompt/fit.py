"""fit: data and base model in, a learned and evaluated prompt out."""

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from softprompt.base import FrozenLM
from softprompt.batch import Encoder
from softprompt.checkpoint import Checkpoint
from softprompt.config import TrainConfig
from softprompt.data import Example
from softprompt.errors import OutputError
from softprompt.evaluate import score
from softprompt.generate import Sampling
from softprompt.predict import Predictor
from softprompt.progress import Silent
from softprompt.store import Prompt, check_free
from softprompt.task import Task
from softprompt.train import Observer, TrainingResult, train

# test examples scored at the end of a run: generation takes seconds where classification takes milliseconds
TEST_LIMIT = {"classification": 5000, "generation": 100}


def fit(
    base: FrozenLM,
    task: Task,
    *,
    out: str | Path | None = None,
    config: TrainConfig | None = None,
    observer: Observer | None = None,
    resume: bool = False,
    restart: bool = False,
    evaluate_test: bool = True,
    **settings: Any,
) -> Prompt:
    """Learn a prompt for ``task`` on ``base``; evaluate it on validation and test.

    Args:
        out: folder to save to. The unfinished run is kept beside it, in ``OUT.run``, so that it can be resumed.
        config: the settings; or give single ones by name (``length=20``, ``steps=300``, ``init="labels"``, ...).
        observer: watches the run (see ``progress.py``); silent by default.
        resume: go on with the unfinished run of ``out``, to the same bytes.
        restart: throw the unfinished run of ``out`` away.
        evaluate_test: score the test split once at the end, if there is one.

    Returns:
        The prompt, its metrics with intervals under ``metrics["validation"]`` and ``metrics["test"]``.

    Raises:
        ConfigError, DataError, TemplateError, OutputError, TrainingError: one line that says what to do.
    """
    chosen = config if config is not None else TrainConfig()
    if settings:
        chosen = TrainConfig.build(**{**chosen.model_dump(exclude_unset=True), **settings})
    if "max_length" in chosen.model_fields_set:
        task = replace(task, spec=replace(task.spec, max_length=chosen.max_length))
    else:
        chosen = chosen.model_copy(update={"max_length": task.spec.max_length})
    observer = observer or Silent()
    checkpoint = None if out is None else _open_run(Path(out), base, task, chosen, resume=resume, restart=restart)
    for note in task.splits.notes:
        observer.noted(note)
    if task.spec.kind == "generation":
        # what the evaluation at the end needs room for; better refused now than after the training
        Encoder(base, task.spec, chosen.length, Sampling().max_new_tokens)
    outcome = train(base, task, chosen, observer, checkpoint)
    prompt = _with_metrics(_prompt(base, task, chosen, outcome), base, task, evaluate_test=evaluate_test)
    if out is not None and checkpoint is not None:
        _finish(prompt, Path(out), outcome, checkpoint.folder)
        checkpoint.remove()
    return prompt


def run_folder(out: Path) -> Path:
    """Where the unfinished run of ``out`` is kept."""
    return out.with_name(f"{out.name}.run")


def check_out(out: Path, *, resume: bool = False, restart: bool = False) -> None:
    """Raise OutputError if ``out`` cannot be written, or has an unfinished run that nobody said what to do with."""
    check_free(out)
    run = run_folder(out)
    if run.exists() and not run.is_dir():
        raise OutputError(f"'{run}' is where the unfinished run is kept, but it is a file: give another --out")
    if Checkpoint(run, {}).exists() and not (resume or restart):
        raise OutputError(f"'{run}' holds an unfinished run for '{out}': --resume goes on with it, --restart drops it")


def data_facts(task: Task) -> dict[str, Any]:
    """Source, fingerprint and sizes of a task's data."""
    sizes = {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}
    return {"source": task.splits.source, "fingerprint": task.splits.fingerprint, "examples": sizes}


def library_versions() -> dict[str, str]:
    """Versions of what took part in learning."""
    versions = {"python": platform.python_version()}
    for package in ("softprompt", "torch", "transformers", "tokenizers", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _open_run(out: Path, base: FrozenLM, task: Task, config: TrainConfig, *, resume: bool, restart: bool) -> Checkpoint:
    check_out(out, resume=resume, restart=restart)
    identity = {
        "settings": config.model_dump(),
        "base": base.fingerprint,
        "device and dtype": [str(base.device), str(base.dtype)],
        "threads": torch.get_num_threads(),
        "task": task.spec.to_dict(),
        "data": task.splits.fingerprint,
        "versions": library_versions(),
    }
    return Checkpoint(run_folder(out), identity, restart=restart)


def _prompt(base: FrozenLM, task: Task, config: TrainConfig, outcome: TrainingResult) -> Prompt:
    history = "".join(json.dumps(dict(record)) + "\n" for record in outcome.history)
    return Prompt(
        state=outcome.state,
        spec=task.spec,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        method=config.method,
        training={
            **config.model_dump(),
            "steps_made": outcome.steps,
            "best_step": outcome.best_step,
            "learned_parameters": outcome.learned,
            "base_parameters": base.parameter_count,
            "truncated_texts": outcome.truncated,
            "alarmed": outcome.alarmed,
        },
        data=data_facts(task),
        seed=config.seed,
        versions=library_versions(),
        parent=config.init.removeprefix("prompt:") if config.init.startswith("prompt:") else None,
        extra_files={"history.jsonl": history},
    )


def _with_metrics(prompt: Prompt, base: FrozenLM, task: Task, *, evaluate_test: bool) -> Prompt:
    predictor = Predictor(base, prompt.spec, prompt.state, Sampling())
    limit = TEST_LIMIT[prompt.spec.kind]
    splits: Mapping[str, tuple[Example, ...]] = {"validation": task.validation, "test": task.test}
    scored = {
        name: score(predictor, examples[:limit]).to_dict()
        for name, examples in splits.items()
        if examples and (name == "validation" or evaluate_test)
    }
    return replace(prompt, metrics=scored)


def _finish(prompt: Prompt, out: Path, outcome: TrainingResult, run: Path) -> None:
    # kept apart from the manifest, whose bytes do not depend on the clock
    record = {
        "status": "finished",
        "seconds": round(outcome.seconds, 3),
        "examples_per_second": round(outcome.examples_per_second, 3),
        "command": sys.argv,
        "machine": f"{platform.machine()} {platform.system()}",
        "threads": torch.get_num_threads(),
    }
    facts = json.dumps({**record, **prompt.manifest()}, indent=2, ensure_ascii=False) + "\n"
    try:
        # written within the run's folder: should the process be killed now, nothing strange stays beside the prompt
        replace(prompt, extra_files={**prompt.extra_files, "run.json": facts}).save(out, workspace=run)
    except OutputError as error:
        raise OutputError(f"{error}; what was learned is kept in '{run}', --resume saves it") from error
