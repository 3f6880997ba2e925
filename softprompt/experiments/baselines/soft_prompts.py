"""softprompt's own methods in a comparison: several runs in the same passes, resumable within the run."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import SoftpromptError, TrainingError
from softprompt.experiments.baselines.fitted_baseline import FittedBaseline, count_bytes, count_prefix_bytes, make_curve
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.written_prompt import count_written
from softprompt.training.callbacks.callback import Callback
from softprompt.training.callbacks.step_timer import CLOCK_FILE, StepTimer
from softprompt.training.checkpoint import Checkpoint
from softprompt.training.loop import TrainingResult, train_together
from softprompt.training.run_checks import check_prompts_base, check_settings
from softprompt.training.training_run import build_prompt, open_run

NO_NUMBER = "the loss is not a number: try a lower rate, or --dtype float32"


def learn_prompts(
    base: FrozenLM, task: Task, configs: Mapping[str, TrainConfig], callback: Callback, folder: Path
) -> list[FittedBaseline | SoftpromptError]:
    """Learn together, going on from where a process before left off; the seconds of each are its share of them all."""
    check_settings(configs)
    check_prompts_base(configs, (), base)
    with _open_checkpoint(folder / "prompts", base, task, configs, callback) as checkpoint:
        clock = StepTimer(callback, folder / CLOCK_FILE)
        try:
            outcomes = train_together(base, task, configs, clock, checkpoint)
        except TrainingError:
            return [TrainingError(NO_NUMBER)] * len(configs)
    return [
        TrainingError(NO_NUMBER) if outcome.failed else _make_baseline(base, task, config, outcome, clock, len(configs))
        for config, outcome in zip(configs.values(), outcomes, strict=True)
    ]


def _open_checkpoint(
    out: Path, base: FrozenLM, task: Task, configs: Mapping[str, TrainConfig], callback: Callback
) -> Checkpoint:
    """The checkpoint of this run; one that cannot be gone on with here (other versions, threads) is thrown away."""
    run = open_run(out, base, {"": task}, configs, resume=True, restart=False, callback=Callback())
    try:
        run.load()
    except TrainingError as error:
        callback.on_message(f"begins anew: {error}")
        shutil.rmtree(run.folder)
    return run


def _make_baseline(
    base: FrozenLM, task: Task, config: TrainConfig, outcome: TrainingResult, clock: StepTimer, together: int
) -> FittedBaseline:
    answers = Predictor(base, task.spec, outcome.state)

    def save(folder: Path) -> None:
        build_prompt(base, task, {"": config}, [outcome], ensemble=False).save(folder)

    return FittedBaseline(
        answers=answers,
        trained_parameters=outcome.learned,
        curve=make_curve(outcome.history, lambda step: clock.at(step) / together),
        seconds=clock.at(outcome.steps) / together,
        best_value=outcome.value,
        best_loss=outcome.loss,
        settings={
            **config.model_dump(exclude_unset=True),
            "learning_rate": config.learning_rate,
            "best_step": outcome.best_step,
            "steps_made": outcome.steps,
            "learned_together": together,
        },
        added_tokens=float(count_written(base, task.spec, outcome.state)),
        base_bytes=count_bytes(base.model),
        base_shared=True,
        task_bytes=count_prefix_bytes(answers.prefix),
        save=save,
    )
