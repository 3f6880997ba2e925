"""The folder of a run: opened before it, what it learned measured and saved behind it."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from softprompt.config import TrainConfig
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples
from softprompt.data.task import Task
from softprompt.errors import OutputError, SoftpromptError
from softprompt.inference.evaluation import add_baseline, score_sample
from softprompt.inference.generation import ANSWER_ROOM, choose_max_new_tokens
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor
from softprompt.inference.written_baseline import MOST_ROWS
from softprompt.models.distributed import SINGLE_PROCESS, ProcessGroup
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels.compilation import should_compile
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.input_profile import PROFILE_FILE
from softprompt.store.learned_rows import ROWS_FILE, LearnedRows, read_learned
from softprompt.training.callbacks.callback import Callback
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.input_profiling import profile_inputs
from softprompt.training.loop import TrainingResult
from softprompt.training.run_checks import run_folder
from softprompt.utils.version import read_versions

# examples of a split scored at the end of a run: generation takes seconds where classification takes milliseconds
TEST_LIMIT = {"classification": 5000, "generation": 100}


def limit_length(task: Task, config: TrainConfig) -> Task:
    """The task with the length limit that ``config`` sets, if it sets one."""
    if "max_length" not in config.model_fields_set:
        return task
    return replace(task, spec=replace(task.spec, max_length=config.max_length))


def reserve_answer_room(base: FrozenLM, task: Task) -> Task:
    """The task with room for the longest of its references, where that is more than completions have anyway."""
    if task.spec.kind == "classification" or task.spec.max_new_tokens is not None:
        return task
    room = choose_max_new_tokens(base, task.spec, (*task.train, *task.validation, *task.test))
    return task.with_room(room) if room > ANSWER_ROOM else task


def report_data_notes(
    base: FrozenLM, task: Task, length: int, callback: Callback, max_new_tokens: int | None = None
) -> None:
    """Pass on what there is to know of the data; raise TemplateError if ``length`` virtual tokens leave no room."""
    for note in task.splits.notes:
        callback.on_message(note)
    if task.spec.kind == "generation":
        # what the evaluation at the end needs room for; better refused now than after the training
        ExampleEncoder(base, task.spec, length, max_new_tokens or choose_max_new_tokens(base, task.spec))


def report_validation_sample(task: Task, config: TrainConfig, callback: Callback) -> None:
    """Pass on that the step is chosen on a sample of the validation rows, where it is."""
    whole = len(task.validation)
    if words := Subsample(min(whole, config.validation_limit), whole).describe("validation"):
        callback.on_message(f"while learning, validation is measured {words} (setting validation_limit)")


def describe_data(task: Task) -> dict[str, Any]:
    """Source, fingerprint and sizes of a task's data."""
    sizes = {"train": len(task.train), "validation": len(task.validation), "test": len(task.test)}
    streamed = task.splits.stream is not None
    if streamed:
        # how many rows there are, only their end would tell
        del sizes["train"]
    more = {"streamed": True} if streamed else {}
    return {"source": task.splits.source, "fingerprint": task.splits.fingerprint, "examples": sizes, **more}


def find_day(out: Path | None, *, restart: bool) -> date:
    """The day on which the run for ``out`` began that was left unfinished, or today."""
    return date.today() if out is None else Checkpoint(run_folder(out), {}, restart=restart).day()


def open_run(
    out: Path,
    base: FrozenLM,
    tasks: Mapping[str, Task],
    configs: Mapping[str, TrainConfig],
    *,
    resume: bool,
    restart: bool,
    callback: Callback,
    **more: Any,
) -> Checkpoint:
    """The checkpoint of the run for ``out``, which knows what the run is."""
    run = run_folder(out)
    identity = {
        "settings": _plain({name: config.model_dump() for name, config in configs.items()}),
        "base": base.fingerprint,
        "device and dtype": [str(base.device), str(base.dtype)],
        "threads": torch.get_num_threads(),
        "compiled": any(should_compile(base, config.compile, config.steps) for config in configs.values()),
        **({"processes": str(base.processes)} if base.processes.world_size > 1 else {}),
        "task": _plain({name: task.spec.to_dict() for name, task in tasks.items()}),
        "data": _plain({name: task.splits.fingerprint for name, task in tasks.items()}),
        "versions": read_versions(),
        **more,
    }
    checkpoint = Checkpoint(run, identity, restart=restart)
    if resume and not checkpoint.exists():
        callback.on_message(f"'{run}' holds no unfinished run: beginning at step 0")
    return checkpoint


def _plain(by_name: dict[str, Any]) -> Any:
    """What is there only once needs no name."""
    return by_name[""] if set(by_name) == {""} else by_name


def build_prompt(
    base: FrozenLM,
    task: Task,
    configs: Mapping[str, TrainConfig],
    outcomes: Sequence[TrainingResult],
    *,
    ensemble: bool,
) -> Prompt:
    """The best on validation, or all that did not fail."""
    ran = list(zip(configs, configs.values(), outcomes, strict=True))
    name, config, outcome = max(ran, key=lambda one: (not one[2].failed, one[2].value, -one[2].loss))
    history = "".join(
        json.dumps({**({"name": name} if name else {}), **record}, allow_nan=False) + "\n"
        for name, _, one in ran
        for record in one.history
    )
    population = [
        {
            "name": name,
            "settings": own.model_dump(exclude_unset=True),
            "learned_parameters": one.learned,
            "best_step": one.best_step,
            "steps_made": one.steps,
            "failed": one.failed,
            # nothing that JSON has no word for
            one.metric: one.value if one.history else None,
            "loss": one.loss if one.history else None,
        }
        for name, own, one in ran
    ]
    return Prompt(
        states=tuple(one.state for one in outcomes if not one.failed) if ensemble else (outcome.state,),
        spec=task.spec,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        base_dtype=base.precision,
        method=config.method,
        training={
            **config.model_dump(),
            "steps_made": outcome.steps,
            "best_step": outcome.best_step,
            "learned_parameters": outcome.learned,
            "base_parameters": base.parameter_count,
            "truncated_texts": outcome.truncated,
            "alarmed": outcome.alarmed,
            **({"chosen": name, "population": population} if len(ran) > 1 else {}),
        },
        data=describe_data(task),
        seed=config.seed,
        versions=read_versions(),
        parent=config.init.removeprefix("prompt:") if config.init.startswith("prompt:") else None,
        extra_files={"history.jsonl": history},
    )


def evaluate_prompt(
    prompt: Prompt,
    base: FrozenLM,
    task: Task,
    callback: Callback | None = None,
    *,
    evaluate_test: bool,
    baseline: bool = False,
) -> Prompt:
    """The prompt with what it reaches on validation, and on test if wanted, and with a profile of validation.

    ``baseline``: with what the written prompt reaches on the last of these, too.
    """
    predictor = Predictor(base, prompt.spec, prompt.states)
    limit = TEST_LIMIT[prompt.spec.kind]
    splits: Mapping[str, tuple[Example, ...]] = {"validation": task.validation, "test": task.test}
    scored = {
        name: score_sample(predictor, examples, limit, of=task.splits.sampled_from.get(name))
        for name, examples in splits.items()
        if examples and (name == "validation" or evaluate_test)
    }
    if baseline and scored:
        name = "test" if "test" in scored else "validation"
        examples = sample_examples(splits[name], limit)
        tell, rows = (callback or Callback()).on_message, min(len(examples), MOST_ROWS[prompt.spec.kind])
        tell(f"the written prompt answers {rows:,} {name} rows too, to tell the gain over it")
        try:
            scored[name] = add_baseline(base, prompt, task.train, examples, scored[name])
        except SoftpromptError as error:  # its words may leave no room for a text: no reason to lose what was learned
            tell(f"the gain over the written prompt cannot be told: {error}")
    answered = scored["validation"].predictions if "validation" in scored else ()
    metrics = {name: evaluation.to_dict() for name, evaluation in scored.items()}
    return attach_records(replace(prompt, metrics=metrics), base, task, answered)


def attach_records(prompt: Prompt, base: FrozenLM, task: Task, answered: Sequence[Prediction]) -> Prompt:
    """The prompt with a profile of the validation rows, some of which it ``answered``, and with what it learned from.

    An older profile goes. What it learned from stays as it is where ``task`` has other data.
    """
    profile = profile_inputs(base, prompt.spec, prompt.states, task, answered)
    files = {name: text for name, text in prompt.extra_files.items() if name != PROFILE_FILE}
    if profile is not None:
        files[PROFILE_FILE] = profile.to_bytes().decode()
    if prompt.data.get("fingerprint") == task.splits.fingerprint:
        rows = LearnedRows.of(task, _rows_read(prompt.training))
        with suppress(SoftpromptError):  # it may be gone meanwhile
            if prompt.parent is not None and (before := read_learned(prompt.parent)) is not None:
                rows = rows.behind(before)
        files[ROWS_FILE] = rows.to_text()
    return replace(prompt, extra_files=files)


def _rows_read(training: Mapping[str, Any]) -> int:
    """Rows of a stream that a run has read, block by block."""
    batch = training.get("batch_size", 1)
    block = max(1, training.get("shuffle_buffer", 1) // batch) * batch
    return int(-(-training.get("steps_made", 0) * batch // block) * block)


def save_run_result(
    prompt: Prompt, out: Path, outcome: TrainingResult, run: Path, processes: ProcessGroup = SINGLE_PROCESS
) -> None:
    """Save the prompt of a run, with a record of it; raises OutputError, the unfinished run being kept."""
    # kept apart from the manifest, whose bytes do not depend on the clock
    record = {
        "status": "finished",
        "seconds": round(outcome.seconds, 3),
        "examples_per_second": round(outcome.examples_per_second, 3),
        "command": sys.argv,
        "machine": f"{platform.machine()} {platform.system()}",
        "threads": torch.get_num_threads(),
        **({"processes": str(processes)} if processes.world_size > 1 else {}),
    }
    facts = json.dumps({**record, **prompt.manifest()}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        replace(prompt, extra_files={**prompt.extra_files, "run.json": facts}).save(out)
    except OutputError as error:
        raise OutputError(f"{error}; what was learned is kept in '{run}', --resume saves it") from error
