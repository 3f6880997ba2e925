"""One object of each kind that users come to hold, as large as they get; ``word`` is wherever a user's text stands."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from helpers.planted_inspections import about, accuracy, full_inspection
from helpers.planted_study import planted_study
from helpers.tiny_models import tiny_base

import softprompt as sp
from softprompt.analysis.inspection.inspection_records import Pruning
from softprompt.data.splits import Splits
from softprompt.data.task import Task, TaskSpec
from softprompt.experiments.sweep.sweep_folder import SweepSummary, SweepTrial
from softprompt.inference.evaluation import Evaluation, score
from softprompt.inference.predictions import AskedRow, Prediction, Predictions
from softprompt.inference.predictor import Predictor
from softprompt.metrics.scores import Score
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.metadata import FileDigest, Version
from softprompt.training.distillation.distill import Distillation
from softprompt.training.distillation.distillation_records import DistillationReport, Fidelity, RequestTokens

ROWS, LABELS, LENGTH = 2_000, 40, 4_096
LONG = 3_000  # characters of a text


def large_spec(word: str = "word", labels: int = LABELS) -> TaskSpec:
    names = tuple(f"{word} {number}" for number in range(labels))
    return TaskSpec.of(labels=names, template="{{ text }}\n" + "What is it? " * 50 + "Label:")


def large_task(word: str = "word", rows: int = ROWS, labels: int = LABELS) -> Task:
    spec = large_spec(word, labels)
    examples = tuple(
        sp.Example(f"{word} {number} ".ljust(LONG, "x"), spec.labels[number % labels], columns={word: [number] * 50})
        for number in range(rows)
    )
    splits = Splits(examples, examples[: rows // 2], examples[: rows // 4], word, (f"a note of {word}",) * 3)
    return Task(spec, splits, word)


def large_state(length: int = LENGTH) -> PromptState:
    return PromptState.of_embeddings(torch.zeros(length, 640))


def large_prompt(word: str = "word", members: int = 1) -> Prompt:
    told = {"metric": "accuracy", "value": 0.9, "low": 0.85, "high": 0.95, "n": 1000}
    others = {"macro_f1": {**told, "metric": "macro_f1", "value": 0.8}}
    history = "".join(
        f'{{"step": {step}, "train_loss": {2 / step}, "value": {1 - 1 / step}, "validation_loss": {3 / step}}}\n'
        for step in range(10, 1_010, 10)
    )
    return Prompt(
        states=(large_state(),) * members,
        spec=large_spec(word),
        base_name=word,
        base_fingerprint={"config": "c" * 64, "weights": "e" * 64},
        method="prompt-tuning",
        metrics={"validation": {**told, "others": others}, "test": {**told, "value": 0.875, "others": others}},
        training={"steps": 1000, "steps_made": 1000, "best_step": 700, "batch_size": 16, "init": word},
        data={"source": word, "examples": {"train": ROWS, "validation": ROWS, "test": ROWS}},
        parent=word,
        extra_files={"history.jsonl": history},
    )


def large_predictions(word: str = "word", rows: int = ROWS, labels: int = LABELS) -> tuple[Prediction, ...]:
    names = large_spec(word, labels).labels
    share = {name: 0.5 if name == names[0] else 0.5 / (labels - 1) for name in names}
    return tuple(Prediction(number, names[number % labels], share) for number in range(rows))


def large_answers(word: str = "word") -> Predictions:
    task = large_task(word)
    asked = [AskedRow(one, {"text": one.text, "label": one.label}, one.label) for one in task.train]
    return Predictions(large_predictions(word), asked)


class Answers:
    """Answers that are there already."""

    truncated = 0

    def __init__(self, spec: TaskSpec, predictions: tuple[Prediction, ...]) -> None:
        self.spec, self.predictions = spec, predictions

    def label_log_probabilities(self, examples: Any) -> Any:
        raise NotImplementedError

    def iterate_predictions(self, examples: Any) -> Any:
        return iter(self.predictions)


def large_evaluation(word: str = "word", rows: int = ROWS, labels: int = LABELS) -> Evaluation:
    task = large_task(word, rows, labels)
    return score(Answers(task.spec, large_predictions(word, rows, labels)), task.train)


def large_trials(word: str = "word", count: int = 200) -> list[SweepTrial]:
    settings = {"length": 20, "learning_rate": 0.1, "init": word}
    return [
        SweepTrial(
            number=number,
            status="failed" if number % 50 == 49 else "finished",
            error=word if number % 50 == 49 else None,
            settings={**settings, "length": 10 + number},
            metric="accuracy",
            value=None if number % 50 == 49 else number / count,
            loss=None if number % 50 == 49 else 1.0 - number / count,
            best_step=None if number % 50 == 49 else 100,
            steps_made=300,
            seconds=1.5,
        )
        for number in range(count)
    ]


def large_summary(word: str = "word") -> SweepSummary:
    return SweepSummary(
        model=word,
        winner=198,
        settings={"length": 208, "learning_rate": 0.1, "init": word},
        config={"length": 208, "init": word},
        validation=accuracy(0.99),
        test=accuracy(0.97),
        usual=None,
        trials={"finished": 196, "failed": 4},
        seconds=300.0,
        data="d" * 64,
        base={"weights": "e" * 64},
        versions={},
        created="2026-11-25T16:00:00Z",
    )


def large_distillation(word: str = "word") -> Distillation:
    near = Fidelity(n=200, agreement=accuracy(0.97), kl=Score(metric="kl", value=0.1, low=0.0, high=0.2, n=200))
    report = DistillationReport(
        teacher=word,
        method="prompt-tuning",
        length=20,
        metric="accuracy",
        held_out={"validation": near, "test": near},
        tokens=RequestTokens(teacher=900, student=20, text=20.5, before=920.5, after=40.5, times_fewer=22.7),
        teacher_seconds=10.0,
        training_seconds=100.0,
    )
    return Distillation(large_prompt(word), report)


def large_pruning() -> Pruning:
    return Pruning(
        metric="accuracy",
        tolerance=0.01,
        length=2_000,
        kept=tuple(range(0, 4_000, 2)),
        before=0.9,
        after=0.895,
        difference=about(-0.005),
        measured=10_000,
    )


def large_store(folder: Path, word: str = "word", versions: int = 12) -> sp.Store:
    store = sp.Store(folder)
    small = replace(large_prompt(word), states=(large_state(2),))
    for number in range(versions):
        store.put(replace(small, seed=number), "reviews", by=word)
    store.put(small, "tickets", by=word)
    store.promote("reviews@2", "prod", by=word)
    return store


def large_version(word: str = "word") -> Version:
    files = {f"file-{number}.txt": FileDigest(size=1, sha256="0" * 64) for number in range(60)}
    made = datetime(2026, 11, 25, 16, tzinfo=UTC)
    return Version(name="reviews", number=3, created=made, by=word, parent=word, files=files)


def large_results(folder: Path, word: str = "word") -> dict[str, Any]:
    """By the name under which a test tells of it."""
    base, store = tiny_base("llama"), large_store(folder, word)
    task = large_task(word)
    study = planted_study(labels=[f"{word} {number}" for number in range(LABELS)]).model_copy(update={"title": word})
    words = sp.Example(word * 1_000, references=(word * 1_000,) * 50, columns={f"{word} {n}": word for n in range(50)})
    return {
        "task": task,
        "spec": task.spec,
        "splits": task.splits,
        "example": task.train[0],
        "example of generation": words,
        "base": base,
        "prompt": large_prompt(word),
        "ensemble": large_prompt(word, members=5),
        "state": large_state(),
        "module": sp.SoftPrompt(base, length=20, init="random"),
        "keys and values": PromptState("key_values", (torch.zeros(2, 1, LENGTH, 64),) * 18),
        "evaluation": large_evaluation(word),
        "predictions": large_answers(word),
        "prediction": large_predictions(word)[0],
        "completion": Prediction(3, completion=word * 1_000, at_limit=True),
        "predictor": Predictor(base, task.spec),
        "comparison": study,
        "row": study.rows[0],
        "result": study.results[0],
        "sweep summary": large_summary(word),
        "trial": large_trials(word)[3],
        "inspection": full_inspection(word * 100),
        "soft prompt": sp.SoftPrompt(base, length=3),
        "distillation": large_distillation(word),
        "distillation report": large_distillation(word).report,
        "pruning": large_pruning(),
        "store": store,
        "store names": store.list()[0],
        "version": large_version(word),
        "move": store.history("reviews@prod")[0],
        "difference": store.diff("reviews@1", "reviews@2"),
        "settings": sp.TrainConfig.build(length=20, init=f"text:{word * 1_000}"),
        "defaults": sp.TrainConfig(),
        "generation": sp.GenerationConfig(temperature=0.5, stop=(word * 100,) * 50),
        "grammar": sp.Grammar.of_json_schema({"enum": [word * 10] * 5}),
    }
