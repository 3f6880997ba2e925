"""Few-shot: solved examples in front of each text, the same ones for all or the nearest to each (nearest_examples.py).

The same ones are a prefix like a learned prompt, which is computed once (written_prompt.py). Brown et al. 2020. In
chats they are turns, and the instruction is the system message.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softprompt.data.examples import Example
from softprompt.data.few_shot import GAP
from softprompt.data.task import Task
from softprompt.experiments.baselines.fitted_baseline import (
    VALIDATION_LIMIT,
    FittedBaseline,
    count_bytes,
    count_prefix_bytes,
    describe_baseline,
)
from softprompt.experiments.baselines.nearest_examples import NearestShots
from softprompt.experiments.baselines.nearest_turns import NearestTurns
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens
from softprompt.inference.predictor import Predictor
from softprompt.inference.scoring import AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.written_prompt import choose_shots, count_written, write_prompt
from softprompt.training.validation import mean_loss, score_labels, validation_examples
from softprompt.utils.files import check_free, write_folder

_FACTS = "few_shot.json"


def fit_few_shot(
    base: FrozenLM,
    task: Task,
    count: int,
    seed: int = 0,
    nearest: bool = False,
    *,
    instruction: str = "",
    generation: GenerationConfig | None = None,
) -> FittedBaseline:
    """Choose solved examples from the training split, and see on validation what they are worth.

    Args:
        count: solved examples in front of each text; 0 is the written prompt alone.
        seed: of the choice, which is balanced over the labels; the nearest do not depend on it.
        nearest: those nearest to each text by TF-IDF, in place of the same ones for all.
        instruction: words in front of everything.
        sampling: how completions are made (generation); by default they also end where the next example would begin.

    Raises:
        DataError: fewer than ``count`` training examples, no validation examples, or examples of one label only.
        TemplateError: the examples leave no room for text in the model's context.
        MissingExtraError: scikit-learn is not installed (nearest).
    """
    began = time.perf_counter()
    nearest = nearest and count > 0
    shots = task.train if nearest else tuple(choose_shots(task.train, count, seed))
    if generation is None and task.spec.chat is None:
        generation = _stop_at_next_example(shots, choose_max_new_tokens(base, task.spec))
    validation = validation_examples(task, VALIDATION_LIMIT)
    settings: dict[str, Any] = {"count": count, "nearest": nearest, "seed": seed, "instruction": instruction}

    answers: Predictor | NearestShots | NearestTurns
    if nearest:
        near = (NearestShots if task.spec.chat is None else NearestTurns)(base, task, count, instruction, generation)
        answers = near
        value, loss = _score_validation(answers, validation)
        settings["left_out"] = near.left_out
        added = near.instruction_tokens + near.added / len(validation)
        memory = count_prefix_bytes(near.prefix) + near.pool.memory + sum(len(shot.text.encode()) for shot in shots)
    else:
        spec, state = write_prompt(base, task.spec, instruction, shots)
        answers = same = Predictor(base, spec, state, generation)
        value, loss = _score_validation(answers, validation)
        added = float(count_written(base, spec, state))
        memory = count_prefix_bytes(same.prefix)

    def save(folder: Path) -> None:
        check_free(folder)
        examples = [_describe_shot(shot) for shot in shots]
        facts = describe_baseline(
            base, answers.spec, count=count, nearest=nearest, instruction=instruction, examples=examples
        )
        write_folder(folder, {_FACTS: facts})

    return FittedBaseline(
        answers=answers,
        trained_parameters=0,
        best_value=value,
        best_loss=loss,
        seconds=time.perf_counter() - began,
        added_tokens=added,
        base_bytes=count_bytes(base.model),
        base_shared=True,
        task_bytes=memory,
        save=save,
        settings=settings,
    )


def _describe_shot(shot: Example) -> dict[str, Any]:
    if shot.conversation is not None:
        return {**shot.conversation.to_row(), "label": shot.label, "columns": dict(shot.columns)}
    return {"text": shot.text, "label": shot.label, "references": shot.references, "columns": dict(shot.columns)}


def _score_validation(
    answers: Predictor | NearestShots | NearestTurns, examples: Sequence[Example]
) -> tuple[float, float]:
    """The metric, or minus the loss, and the loss."""
    if answers.spec.kind == "classification":
        return score_labels(answers.label_log_probabilities(examples), examples, answers.spec)
    items = answers.encoder.training_items(examples) if isinstance(answers, Predictor) else answers.items(examples)
    loss = mean_loss(AnswerScorer(answers.base, None), answers.prefix, items)
    return -loss, loss


def _stop_at_next_example(shots: Sequence[Example], room: int) -> GenerationConfig:
    """Completions end at the gap that the model has seen behind each example, unless an output has one within."""
    gap_within = any(GAP in output for shot in shots for output in shot.references)
    return GenerationConfig(max_new_tokens=room, stop=() if gap_within or not shots else (GAP,))
