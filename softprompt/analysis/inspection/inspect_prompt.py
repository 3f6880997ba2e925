"""What a prompt has learned, what it changed, and what is wrong with it: one file a question, and this to ask them all.

A question that cannot be answered for a model, a prompt or data is left out, and ``Inspection.notes`` says why.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from softprompt.analysis.inspection.ablation import add_ablations, rebuild_starts, select_seen_rows
from softprompt.analysis.inspection.answers import (
    LEAST,
    ComparedReference,
    analyze_answers,
    score_examples,
    summarize_values,
)
from softprompt.analysis.inspection.attention_weights import measure_attention
from softprompt.analysis.inspection.duplicates import find_duplicates
from softprompt.analysis.inspection.inspection_findings import judge_inspection
from softprompt.analysis.inspection.inspection_records import Inspection, Reproduction, TrainingFit, VirtualToken
from softprompt.analysis.inspection.label_errors import find_label_errors
from softprompt.analysis.inspection.memorization import measure_memorization
from softprompt.analysis.inspection.score_records import PromptScores, score_ensemble
from softprompt.analysis.inspection.store_neighbors import compare_with_store
from softprompt.analysis.inspection.template_mismatch import check_served_template
from softprompt.analysis.inspection.token_meaning import continue_prompt, describe_tokens
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples, sample_indices
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import BaseModelError, ConfigError, DataError
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.scores import Score
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.initializers import default_instruction
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.written_prompt import written_prompt
from softprompt.store.learned_rows import LearnedRows

ABLATION_PASSES = 4000  # examples times virtual tokens: what 20 tokens on 200 examples take
FEWEST_EXAMPLES = 20


@dataclass(frozen=True)
class InspectionLimits:
    """How many examples each question is asked of, at most.

    Attributes:
        answers: of the split that is judged, and of validation.
        train: training rows that are scored, for label errors and overfitting.
        removal: for the effect of each virtual token; each costs as many passes as there are tokens.
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
        limits = cls() if most is None else cls(*(min(most, own) for own in (1000, 2000, 200, 32, 200)))
        return limits if train is None else replace(limits, train=train)


def make_written_reference(base: FrozenLM, spec: TaskSpec, instruction: str | None = None) -> ComparedReference:
    """The written prompt: the instruction given, or a plain one made of the labels, in front of the same template."""
    words = default_instruction(spec) if instruction is None else instruction
    return ComparedReference(f"written prompt '{words}'", spec, [written_prompt(base, spec, words)])


def make_reference(base: FrozenLM, spec: TaskSpec, place: str, other: Prompt) -> ComparedReference:
    """Another saved prompt; raises ConfigError if it answers another task, PromptFileError if on another base."""
    other.check_base(base)
    if (other.spec.kind, set(other.spec.labels)) != (spec.kind, set(spec.labels)):
        expected = f"{spec.kind} with the labels {', '.join(spec.labels)}" if spec.labels else spec.kind
        got = f"{other.spec.kind} with {', '.join(other.spec.labels)}" if other.spec.labels else other.spec.kind
        raise ConfigError(f"--against '{place}': expected a prompt for {expected}, got one for {got}")
    return ComparedReference(place, other.spec, other.states)


def inspect(
    base: FrozenLM,
    prompt: Prompt,
    task: Task,
    *,
    place: str = "prompt",
    split: str | None = None,
    reference: ComparedReference | None = None,
    template: str | None = None,
    store: Path | None = None,
    history: Sequence[Mapping[str, float]] = (),
    learned: LearnedRows | None = None,
    limits: InspectionLimits | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Inspection:
    """Ask every question.

    Args:
        task: data for the prompt's own spec (``Task.matching``).
        place: what the prompt is called.
        split: that the answers are judged on; test if there is one, else validation.
        reference: what it is compared with; the written prompt if not given.
        template: the one that is served, if it may differ.
        store: a folder of saved prompts to compare with.
        history: what ``history.jsonl`` holds.
        learned: what it kept of the rows it was learned from.

    Raises:
        DataError: no examples to judge on.
        PromptFileError: the prompt was learned on another base model.
    """
    prompt.check_base(base)
    asked = _Asked(base, prompt, task, limits or InspectionLimits(), progress)
    spec, notes = prompt.spec, asked.notes
    chosen = split or ("test" if task.test else "validation" if task.validation else "all")
    examples = asked.judged(chosen, task.splits[chosen], asked.limits.answers)
    if learned is not None and chosen in ("validation", "test") and (words := learned.among(examples).describe(chosen)):
        notes.append(words)
    progress(f"answers to {len(examples):,} examples ({chosen})")
    scored = score_ensemble(base, spec, prompt.states, examples)
    against = reference or make_written_reference(base, spec)
    answers = analyze_answers(base, spec, scored, examples, chosen, against)
    if answers.unsliced:
        notes.append(f"slices by {', '.join(answers.unsliced)}: no value has {LEAST} rows")
    few = sample_indices(examples, asked.limits.ablation, asked.limits.seed)
    serving = check_served_template(
        base,
        spec,
        prompt.states,
        [examples[index] for index in few],
        PromptScores(scored.losses[:, few], None, scored.truncated),
        task.train,
        template,
    )
    fit, prior, train_facts = asked.training()
    vocabulary, tokens = asked.tokens(examples)
    attention, tokens = asked.attention(tokens, examples)
    continued = None
    if len(prompt.states) == 1:
        continued, remark = continue_prompt(base, prompt.state)
        notes += [f"what it says: {remark}"] if remark else []
    else:
        notes.append("what it says: several prompts answer by vote, which goes on with no text")
    made = Inspection(
        place=place,
        base=base.name,
        kind=spec.kind,
        state_kind=prompt.states[0].kind,
        labels=spec.labels,
        length=prompt.length,
        embedding_size=base.embedding_size,
        members=len(prompt.states),
        data=task.splits.source,
        sizes={name: len(some) for name, some in _splits(task).items()},
        same_data=asked.same_data,
        training=_facts(prompt),
        vocabulary=vocabulary,
        tokens=tuple(tokens),
        attention=attention,
        continuation=continued,
        answers=answers,
        fit=fit,
        prior_loss=prior,
        **train_facts,
        memorization=asked.memorization(),
        serving=serving,
        reproduction=tuple(asked.reproduction(chosen, scored, examples)),
        history=tuple(map(dict, history)),
        neighbors=None
        if store is None
        else compare_with_store(base, prompt, place, store, [examples[index] for index in few]),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return made.model_copy(update={"findings": tuple(judge_inspection(made)), "notes": tuple(notes)})


class _Asked:
    """The questions that may have no answer; ``notes`` says why."""

    def __init__(
        self, base: FrozenLM, prompt: Prompt, task: Task, limits: InspectionLimits, progress: Callable[[str], None]
    ) -> None:
        self.base, self.prompt, self.task, self.limits, self.progress = base, prompt, task, limits, progress
        self.notes: list[str] = []
        self.same_data = prompt.data.get("fingerprint") == task.splits.fingerprint
        if not self.same_data:
            self.notes.append("the data given are not those that it was learned on (another fingerprint)")
        self._validation: tuple[list[Example], PromptScores] | None = None
        self._leaked: set[tuple[str, int]] = set()

    def drawn(self, examples: Sequence[Example], most: int) -> list[Example]:
        return list(sample_examples(examples, most, self.limits.seed))

    def judged(self, split: str, examples: Sequence[Example], most: int) -> list[Example]:
        """``drawn``, and it is said."""
        found = self.drawn(examples, most)
        if words := Subsample(len(found), len(examples), self.limits.seed).describe(split):
            self.notes.append(f"{split}: measured {words}")
        return found

    def validation(self) -> tuple[list[Example], PromptScores] | None:
        """Validation rows with their scores, made once."""
        if self._validation is None and self.task.validation:
            rows = self.judged("validation", self.task.validation, self.limits.answers)
            self._validation = rows, score_ensemble(self.base, self.prompt.spec, self.prompt.states, rows)
        return self._validation

    def training(self) -> tuple[TrainingFit | None, float | None, dict[str, Any]]:
        """Overfitting, the loss of the label prior, and what there is to say of the training rows."""
        task, spec = self.task, self.prompt.spec
        validation = self.validation()
        prior = None
        if validation is not None and spec.kind == "classification":
            counts = Counter(example.label for example in validation[0]).values()
            if len(counts) > 1:
                prior = -sum(count * math.log(count / len(validation[0])) for count in counts) / len(validation[0])
            else:
                self.notes.append("what label frequencies alone would give: validation has one label only")
        self.progress("near duplicates")
        twins, answers, self._leaked = find_duplicates(_splits(task), spec.compiled.names)
        if not task.train:
            self.notes.append("training rows (overfitting, suspects, memorisation): the data have no train split")
            return None, prior, {"duplicates": twins}
        indices = sample_indices(task.train, self.limits.train, self.limits.seed)
        rows = self.judged("train", task.train, self.limits.train)
        self.progress(f"{len(rows):,} training rows")
        scored = score_ensemble(self.base, spec, self.prompt.states, rows)
        found = {"duplicates": twins, "label_errors": find_label_errors(spec, scored, rows, indices, answers)}
        if validation is None:
            self.notes.append("overfitting: the data have no validation split")
            return None, prior, found
        held, of_held = validation
        fit = TrainingFit(
            train_loss=hypothesis_tests.bootstrap_mean(scored.losses[0]),
            validation_loss=hypothesis_tests.bootstrap_mean(of_held.losses[0]),
            gap=hypothesis_tests.mean_difference(of_held.losses[0], scored.losses[0]),
            train_metric=float(score_examples(spec, scored, rows).mean()),
            validation_metric=float(score_examples(spec, of_held, held).mean()),
        )
        return fit, prior, found

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

    def attention(self, tokens: list[VirtualToken], examples: Sequence[Example]) -> tuple[Any, list[VirtualToken]]:
        if len(self.prompt.states) > 1:
            self.notes.append("attention: told for a single prompt, this is an ensemble")
            return None, tokens
        try:
            rows = self.drawn(examples, self.limits.attention)
            found, shares = measure_attention(self.base, self.prompt.spec, self.prompt.state, rows)
        except BaseModelError as error:
            self.notes.append(f"attention: {error}")
            return None, tokens
        return found, [
            token.model_copy(update={"attention": tuple(row.tolist())})
            for token, row in zip(tokens, shares, strict=True)
        ]

    def memorization(self) -> Any:
        """The probe on rows that it has seen, and on held-out rows that are no near duplicates of training rows."""
        task = self.task
        held = [
            example
            for split, some in _splits(task).items()
            for index, example in enumerate(some)
            if split != "train" and (split, index) not in self._leaked
        ]
        if len(self.prompt.states) > 1:
            self.notes.append("memorisation: told for a single prompt, this is an ensemble")
            return None
        if not task.train or not (task.validation or task.test):
            return None
        self.progress("memorisation")
        seen: Sequence[Example] | None = None
        if self.same_data:
            seen = select_seen_rows(self.prompt, self.base, task)
            if seen is None:
                self.notes.append(
                    "memorisation: which training rows it has seen is not known, so they are drawn from all of them; "
                    "the fewer it saw, the more the difference understates"
                )
        most = self.limits.texts
        try:
            return measure_memorization(
                self.base,
                self.prompt.spec,
                self.prompt.state,
                self.drawn(task.train if seen is None else seen, most),
                self.drawn(held, most),
                same_data=self.same_data,
            )
        except DataError as error:
            left_out = f"; {len(self._leaked):,} near duplicates of training rows are left out" if self._leaked else ""
            self.notes.append(f"memorisation: {error}{left_out}")
            return None

    def reproduction(self, split: str, scored: PromptScores, examples: Sequence[Example]) -> list[Reproduction]:
        """Accuracies of the manifest beside those of now."""
        spec, found = self.prompt.spec, []
        now = {split: (scored, examples)}
        if (validation := self.validation()) is not None:
            now["validation"] = (validation[1], validation[0])
        for name, (scores, rows) in now.items():
            saved = _saved(self.prompt.metrics.get(name))
            if saved is not None and spec.kind == "classification":
                measured = summarize_values(spec, scores, rows)
                found.append(Reproduction(split=name, saved=saved, now=measured, same_data=self.same_data))
        return found


def _splits(task: Task) -> dict[str, tuple[Example, ...]]:
    named = {"train": task.train, "validation": task.validation, "test": task.test}
    return {name: some for name, some in named.items() if some}


def _saved(metric: Any) -> Score | None:
    """The accuracy that a manifest tells, as its main metric or among the others."""
    try:
        told = metric if metric["metric"] == "accuracy" else metric["others"]["accuracy"]
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
        **plain,
        "seed": prompt.seed,
        "parent": prompt.parent,
    }


def read_history(content: bytes, prompt: Prompt) -> list[dict[str, float]]:
    """The records of a ``history.jsonl`` that are of ``prompt``, where several learned together.

    What is no record is left out: anybody may have written into that file.
    """
    chosen = prompt.training.get("chosen")
    records = []
    for line in content.decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and (chosen is None or record.get("name") == chosen):
            numbers = {str(k): float(v) for k, v in record.items() if isinstance(v, int | float) and math.isfinite(v)}
            records.append(numbers)
    return records
