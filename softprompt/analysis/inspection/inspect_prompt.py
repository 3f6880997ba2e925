"""What a prompt has learned, what it changed, and what is wrong with it: one file a question, and this to ask them all.

A question that cannot be answered for a model, a prompt or data is left out, and ``Inspection.notes`` says why.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from softprompt.analysis.inspection.ablation import add_ablations, rebuild_starts, select_seen_rows
from softprompt.analysis.inspection.answers import (
    LEAST,
    ComparedReference,
    analyze_answers,
    make_reference,
    make_written_reference,
)
from softprompt.analysis.inspection.attention_weights import measure_attention
from softprompt.analysis.inspection.duplicates import find_duplicates
from softprompt.analysis.inspection.inspection_findings import judge_inspection
from softprompt.analysis.inspection.inspection_records import (
    Answers,
    Continuation,
    Inspection,
    Memorization,
    Reproduction,
    TrainingFit,
    VirtualToken,
)
from softprompt.analysis.inspection.label_errors import find_label_errors
from softprompt.analysis.inspection.memorization import measure_memorization
from softprompt.analysis.inspection.score_records import (
    PromptScores,
    compute_metric,
    judging_metric,
    measure_metric,
    score_ensemble,
)
from softprompt.analysis.inspection.store_neighbors import compare_with_store
from softprompt.analysis.inspection.template_mismatch import check_served_template
from softprompt.analysis.inspection.token_meaning import continue_prompt, describe_tokens
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples, sample_indices
from softprompt.data.task import Task
from softprompt.data.task_arguments import Data
from softprompt.errors import BaseModelError, DataError
from softprompt.inference.predictor import resolve_prompt_and_data
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.scores import Score
from softprompt.models.deferred_base import BaseSource
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import HISTORY_FILE, Prompt, parse_prompt
from softprompt.prompts.training_history import parse_history
from softprompt.store.learned_rows import LearnedRows, read_learned
from softprompt.store.version_store import read_saved_files
from softprompt.training.callbacks.progress import ProgressChoice, choose_progress
from softprompt.utils.arguments import check_arguments

ABLATION_PASSES = 4000  # examples times virtual tokens: what 20 tokens on 200 examples take
FEWEST_EXAMPLES = 20


@dataclass(frozen=True)
class InspectionLimits:
    """How many examples each question is asked of, at most.

    Attributes:
        answers: of the split that is judged, and of validation.
        train: training rows that are scored, for label errors and overfitting.
        ablation: for the effect of each virtual token; each costs as many passes as there are tokens.
        attention: whose attention is averaged.
        texts: on each side of the memorization probe, where every token is scored.
        seed: of the draw, where there are more.
    """

    answers: int = 1000
    train: int = 2000
    ablation: int = 200
    attention: int = 32
    texts: int = 200
    seed: int = 0

    @classmethod
    def of(cls, most: int | None, train: int | None = None) -> "InspectionLimits":
        """Each at most ``most``; ``train`` training rows, if given."""
        limits = asdict(cls())
        if most is not None:
            limits |= {name: min(most, usual) for name, usual in limits.items() if name != "seed"}
        return cls(**limits if train is None else limits | {"train": train})


@check_arguments
def inspect(
    base: BaseSource,
    prompt: Prompt | str | Path,
    data: Data,
    *,
    place: str | None = None,
    split: str | None = None,
    against: Prompt | str | Path | tuple[str, Prompt] | None = None,
    instruction: str | None = None,
    served_template: str | None = None,
    among: str | Path | None = None,
    limits: InspectionLimits | None = None,
    progress: Callable[[str], None] | ProgressChoice = None,
) -> Inspection:
    """Ask every question.

    Args:
        base, prompt, data: as for ``prune``.
        place: where it was loaded from, if it is not given as one. split: that is judged; test, or else validation.
        against: another prompt to compare with, with its name if it has one; the written prompt if not given.
        instruction: words of the written prompt; made of the labels, if not given.
        served_template: the one that is served, if it may differ.
        among: a folder of saved prompts to compare with.

    Raises:
        ConfigError: ``against`` answers another task, or a metric that is not imported here.
        DataError: no examples to judge on.
        PromptFileError: the prompt was learned on another base model.
    """
    place = str(prompt) if place is None and isinstance(prompt, str | Path) else place
    base, prompt, task = resolve_prompt_and_data(base, prompt, data)
    say = progress if callable(progress) else choose_progress(progress).on_message
    asked = _Questions(base, prompt, task, limits or InspectionLimits(), say)
    spec, name = prompt.spec, place or "prompt"
    chosen = split or ("test" if task.test else "validation" if task.validation else "all")
    history, learned = _read_beside(prompt, place)
    examples = asked.judged(chosen, task.splits[chosen], asked.limits.answers)
    if learned is not None and chosen in ("validation", "test") and (words := learned.among(examples).describe(chosen)):
        asked.notes.append(words)
    if against is None:
        reference = make_written_reference(base, spec, instruction, examples)
    else:
        reference = make_reference(base, spec, against)
    say(f"answers to {len(examples):,} examples ({chosen})")
    scored = score_ensemble(base, spec, prompt.states, examples)
    answers = asked.answers(scored, examples, chosen, reference)
    indices = sample_indices(examples, asked.limits.ablation, asked.limits.seed)
    few, of_few = [examples[index] for index in indices], replace(scored, losses=scored.losses[:, indices])
    serving = check_served_template(base, spec, prompt.states, few, of_few, task.train, served_template)
    training = asked.training()
    vocabulary, tokens = asked.tokens(examples)
    attention, tokens = asked.attention(tokens, examples)
    made = Inspection(
        place=name,
        base=base.name,
        kind=spec.kind,
        state_kind=prompt.states[0].kind,
        labels=spec.labels,
        length=prompt.length,
        embedding_size=base.embedding_size,
        members=len(prompt.states),
        data=task.splits.source,
        sizes={split: len(some) for split, some in _splits(task).items()},
        same_data=asked.same_data,
        training=_facts(prompt),
        vocabulary=vocabulary,
        tokens=tuple(tokens),
        attention=attention,
        continuation=asked.continuation(),
        answers=answers,
        serving=serving,
        **training,
        memorization=asked.memorization(),
        reproduction=tuple(asked.reproduction(chosen, scored, examples)),
        history=tuple(history),
        neighbors=None if among is None else compare_with_store(base, prompt, name, Path(among), few),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return made.model_copy(update={"findings": tuple(judge_inspection(made)), "notes": tuple(asked.notes)})


class _Questions:
    """The questions that may have no answer; ``notes`` says why."""

    def __init__(
        self, base: FrozenLM, prompt: Prompt, task: Task, limits: InspectionLimits, progress: Callable[[str], None]
    ) -> None:
        self.base, self.prompt, self.task, self.limits, self.progress = base, prompt, task, limits, progress
        self.notes: list[str] = []
        self.same_data = prompt.data.get("fingerprint") == task.splits.fingerprint
        if not self.same_data:
            self.notes.append("the data given are not those that it was learned on (another fingerprint)")
        self._leaked: set[tuple[str, int]] = set()

    def drawn(self, examples: Sequence[Example], most: int) -> list[Example]:
        return list(sample_examples(examples, most, self.limits.seed))

    def judged(self, split: str, examples: Sequence[Example], most: int) -> list[Example]:
        """``drawn``, and it is said."""
        found = self.drawn(examples, most)
        if words := Subsample(len(found), len(examples), self.limits.seed).describe(split):
            self.notes.append(f"{split}: measured {words}")
        return found

    def answers(
        self, scored: PromptScores, examples: Sequence[Example], split: str, reference: ComparedReference
    ) -> Answers:
        answers = analyze_answers(self.base, self.prompt.spec, scored, examples, split, reference)
        if answers.unsliced:
            self.notes.append(f"slices by {', '.join(answers.unsliced)}: no value has {LEAST} rows")
        return answers

    @cached_property
    def validation(self) -> tuple[list[Example], PromptScores] | None:
        """Validation rows with their scores."""
        if not self.task.validation:
            return None
        rows = self.judged("validation", self.task.validation, self.limits.answers)
        return rows, score_ensemble(self.base, self.prompt.spec, self.prompt.states, rows)

    def training(self) -> dict[str, Any]:
        """Overfitting, the loss of the label prior, and what there is to say of the training rows."""
        task, spec = self.task, self.prompt.spec
        prior = self._prior_loss()
        self.progress("near duplicates")
        twins, answers, self._leaked = find_duplicates(_splits(task), spec.compiled.names)
        if not task.train:
            self.notes.append("training rows (overfitting, suspects, memorisation): the data have no train split")
            return {"prior_loss": prior, "duplicates": twins}
        indices = sample_indices(task.train, self.limits.train, self.limits.seed)
        rows = self.judged("train", task.train, self.limits.train)
        self.progress(f"{len(rows):,} training rows")
        scored = score_ensemble(self.base, spec, self.prompt.states, rows)
        label_errors = find_label_errors(spec, scored, rows, indices, answers)
        found = {"prior_loss": prior, "duplicates": twins, "label_errors": label_errors}
        if self.validation is None:
            self.notes.append("overfitting: the data have no validation split")
            return found
        held, of_held = self.validation
        fit = TrainingFit(
            train_loss=hypothesis_tests.bootstrap_mean(scored.losses[0]),
            validation_loss=hypothesis_tests.bootstrap_mean(of_held.losses[0]),
            gap=hypothesis_tests.mean_difference(of_held.losses[0], scored.losses[0]),
            train_metric=compute_metric(spec, scored, rows),
            validation_metric=compute_metric(spec, of_held, held),
        )
        return {**found, "fit": fit}

    def _prior_loss(self) -> float | None:
        """The loss of knowing nothing but how frequent each label is in validation."""
        if self.validation is None or self.prompt.spec.kind != "classification":
            return None
        rows, _ = self.validation
        counts = Counter(example.label for example in rows).values()
        if len(counts) < 2:
            self.notes.append("what label frequencies alone would give: validation has one label only")
            return None
        return -sum(count * math.log(count / len(rows)) for count in counts) / len(rows)

    def tokens(self, examples: Sequence[Example]) -> tuple[Any, list[VirtualToken]]:
        """Neighbours, norms, movement and the effect of removal."""
        prompt, base = self.prompt, self.base
        self.progress(f"{sum(state.length for state in prompt.states)} virtual tokens")
        starts = rebuild_starts(prompt, base, self.task.train if self.same_data else None)
        if isinstance(starts, str):
            self.notes.append(f"movement: {starts}")
        if prompt.states[0].kind == "key_values":
            self.notes.append("neighbours and norms: keys and values do not lie among the token embeddings")
        vocabulary, found = describe_tokens(base, prompt.states, None if isinstance(starts, str) else starts)
        count = min(self.limits.ablation, len(examples))
        most = max(FEWEST_EXAMPLES, ABLATION_PASSES // max(1, len(found)))
        if most < count:
            self.notes.append(
                f"removal: measured on {most} examples, for each of {len(found)} virtual tokens reads all"
            )
        rows = self.drawn(examples, min(most, count))
        return vocabulary, add_ablations(found, base, prompt.spec, prompt.states, rows)

    def single(self, what: str) -> bool:
        """Whether there is one prompt; if not, it is said of ``what`` is told of one only."""
        if len(self.prompt.states) > 1:
            self.notes.append(f"{what}: told for a single prompt, this is an ensemble")
        return len(self.prompt.states) == 1

    def attention(self, tokens: list[VirtualToken], examples: Sequence[Example]) -> tuple[Any, list[VirtualToken]]:
        if not self.single("attention"):
            return None, tokens
        try:
            rows = self.drawn(examples, self.limits.attention)
            found, shares = measure_attention(self.base, self.prompt.spec, self.prompt.state, rows)
        except BaseModelError as error:
            self.notes.append(f"attention: {error}")
            return None, tokens
        pairs = zip(tokens, shares, strict=True)
        return found, [token.model_copy(update={"attention": tuple(row.tolist())}) for token, row in pairs]

    def continuation(self) -> Continuation | None:
        if len(self.prompt.states) > 1:
            self.notes.append("what it says: several prompts answer by vote, which goes on with no text")
            return None
        continued, remark = continue_prompt(self.base, self.prompt.state)
        self.notes += [f"what it says: {remark}"] if remark else []
        return continued

    def memorization(self) -> Memorization | None:
        """The probe on rows that it has seen, and on held-out rows that are no near duplicates of training rows."""
        task = self.task
        if not self.single("memorisation") or not task.train or not (task.validation or task.test):
            return None
        held = [
            example
            for split, some in _splits(task).items()
            for index, example in enumerate(some)
            if split != "train" and (split, index) not in self._leaked
        ]
        self.progress("memorisation")
        seen = select_seen_rows(self.prompt, self.base, task) if self.same_data else None
        if self.same_data and seen is None:
            self.notes.append(
                "memorisation: which training rows it has seen is not known, so they are drawn from all of them; "
                "the fewer it saw, the more the difference understates"
            )
        pair = (self.drawn(some, self.limits.texts) for some in (task.train if seen is None else seen, held))
        try:
            return measure_memorization(self.base, self.prompt.spec, self.prompt.state, *pair, same_data=self.same_data)
        except DataError as error:
            left_out = f"; {len(self._leaked):,} near duplicates of training rows are left out" if self._leaked else ""
            self.notes.append(f"memorisation: {error}{left_out}")
            return None

    def reproduction(self, split: str, scored: PromptScores, examples: Sequence[Example]) -> list[Reproduction]:
        """The metric in the manifest beside that of now."""
        spec, found = self.prompt.spec, []
        if (metric := judging_metric(spec)) is None:
            return []
        now = {split: (examples, scored)}
        if self.validation is not None:
            now["validation"] = self.validation
        for name, (rows, scores) in now.items():
            if (saved := _saved(self.prompt.metrics.get(name), metric.name)) is not None:
                measured = measure_metric(spec, scores, rows)
                found.append(Reproduction(split=name, saved=saved, now=measured, same_data=self.same_data))
        return found


def _read_beside(prompt: Prompt, place: str | None) -> tuple[list[dict[str, float]], LearnedRows | None]:
    """How it learned, and the rows that it learned from, where these are kept with it."""
    if place is None:
        return read_history(prompt.extra_files.get(HISTORY_FILE, "").encode(), prompt), None
    files = read_saved_files(place)
    parse_prompt(files, place)  # its digest is in the manifest
    return read_history(files.get(HISTORY_FILE, b""), prompt), read_learned(place)


def _splits(task: Task) -> dict[str, tuple[Example, ...]]:
    named = {"train": task.train, "validation": task.validation, "test": task.test}
    return {name: some for name, some in named.items() if some}


def _saved(metric: Any, name: str) -> Score | None:
    """The metric called ``name`` that a manifest tells, as its main one or among the others."""
    try:
        told = metric if metric["metric"] == name else metric["others"][name]
        return Score(**{name: told[name] for name in ("metric", "value", "low", "high", "n")})
    except (KeyError, TypeError, ValueError):
        return None


def _facts(prompt: Prompt) -> dict[str, Any]:
    """What a page tells of how the prompt was learned; plain values only."""
    names = ("init", "learning_rate", "rate_unit", "steps", "steps_made", "best_step", "batch_size", "truncated_texts")
    found = {
        name: prompt.training[name] for name in (*names, "alarmed", "learned_parameters") if name in prompt.training
    }
    plain = {
        name: value for name, value in found.items() if value is None or isinstance(value, str | int | float | bool)
    }
    distilled = prompt.training.get("distillation")
    if isinstance(distilled, Mapping):
        plain["teacher"] = str(distilled.get("teacher"))
    return {
        "method": prompt.method,
        "template": prompt.spec.template,
        **({} if prompt.spec.chat is None else {"conversations": str(prompt.spec.chat)}),
        **plain,
        "seed": prompt.seed,
        "parent": prompt.parent,
    }


def read_history(content: bytes, prompt: Prompt) -> list[dict[str, float]]:
    """The records of a ``history.jsonl`` that are of ``prompt``, where several learned together."""
    return parse_history(content, prompt.training.get("chosen"))
