"""What a distillation gave: how near the student is to its teacher, what it saves, when that has paid.

Labels and references, where inputs have them, are looked at here and nowhere else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softprompt.config import DistillConfig
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.placement import Placement
from softprompt.data.examples import Example, gold_answers, keep_answered
from softprompt.data.few_shot import BEHIND_WORDS, prepend_tokens
from softprompt.data.task import TaskSpec
from softprompt.inference.benchmark import measure_speed
from softprompt.inference.chat_answers import end_with_turns, make_bare_state
from softprompt.inference.evaluation import score
from softprompt.inference.generation import ANSWER_ROOM, GenerationConfig, complete
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor, name_failing_example, predict_labels
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer
from softprompt.inference.speed_drift import make_comparable
from softprompt.metrics.bootstrap import QUANTILES, mean_score, resample_scores
from softprompt.metrics.registry import score_runs
from softprompt.metrics.scores import Score, Speed
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.distillation.distillation_loss import FidelityValidation, targets_of
from softprompt.training.distillation.distillation_records import BreakEven, DistillationReport, Fidelity, RequestTokens
from softprompt.training.distillation.teacher import Teacher
from softprompt.training.distillation.teacher_answers import Answers, Completions, LabelAnswers

NOISE = 0.05  # of the time of a request: less than that is not saved, for all that timing can tell


class UncachedTeacher:
    """Answers behind a text that is read with every input, as by an engine without prefix caching."""

    def __init__(self, base: FrozenLM, spec: TaskSpec, ids: Sequence[int], generation: GenerationConfig) -> None:
        """``ids``: of the text.

        Raises:
            TemplateError: it leaves no room for inputs in the model's context.
        """
        self.base, self.spec, self.generation, self._ids = base, spec, generation, tuple(ids)
        # in a chat it counts what is read in front of texts by itself
        counted, behind = (len(ids), BEHIND_WORDS) if spec.chat is None else (0, "")
        self._encoder = ExampleEncoder(base, spec, counted, generation.max_new_tokens, behind)
        self._objective = AnswerScorer(base, self._encoder.verbalizer)

    @cached_property
    def prefix(self) -> Prefix:
        """BOS alone; in a chat whose template writes none, nothing."""
        state = make_bare_state(self.base, self.spec)
        if state is not None:
            state = replace(state, placement=Placement(state.behind_bos))
        with torch.no_grad():
            return make_prefix(self.base, state)

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[n, C]`` of the labels."""
        items = prepend_tokens(self._encoder.scoring_items(examples), [self._ids] * len(examples))
        with name_failing_example(examples):
            return self._objective.label_log_probabilities(self.prefix, items)

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """One prediction for each example, in any order."""
        if self.spec.kind == "classification":
            yield from predict_labels(self.spec, self.label_log_probabilities(examples))
            return
        texts = [(*self._ids, *text) for text in self._encoder.encode_inputs(examples)]
        with name_failing_example(examples):
            for index, text, cut in complete(self.base, self.prefix, texts, self.generation, EVALUATION_TOKENS):
                yield Prediction(index, completion=text, at_limit=cut)


@dataclass(frozen=True)
class RecordedAnswers:
    """Answers that are there already, one for each of the examples they were given to."""

    spec: TaskSpec
    predictions: Sequence[Prediction]
    truncated: int = 0

    def of(self, indices: Sequence[int]) -> "RecordedAnswers":
        """Those to some of the examples, counted anew."""
        chosen = [self.predictions[index] for index in indices]
        return RecordedAnswers(self.spec, [replace(one, index=i) for i, one in enumerate(chosen)])

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Of the probabilities, which sum to 1 within rounding."""
        rows = [list((one.probabilities or {}).values()) for one in self.predictions]
        return torch.tensor(rows).log()

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        yield from self.predictions

    @property
    def words(self) -> list[str]:
        """Label or completion of each."""
        return [str(one.completion if one.label is None else one.label) for one in self.predictions]


def record_answers(base: FrozenLM, spec: TaskSpec, answers: Answers) -> RecordedAnswers:
    """A teacher's answers as predictions."""
    if isinstance(answers, LabelAnswers):
        return RecordedAnswers(spec, list(predict_labels(spec, answers.log_probabilities)))
    mark = end_with_turns(base, spec, GenerationConfig()).answer_mark
    texts = answers.texts(base.tokenizer, mark)
    return RecordedAnswers(spec, [Prediction(index, completion=text) for index, text in enumerate(texts)])


def measure_fidelity(
    base: FrozenLM,
    spec: TaskSpec,
    examples: Sequence[Example],
    answers: Answers,
    own: Answers,
    state: PromptState,
    generation: GenerationConfig,
) -> tuple[Fidelity, dict[str, Any], Sequence[Prediction]]:
    """How a student does beside its teacher; also its evaluation as a manifest keeps it, and its answers.

    ``answers``: what the student was to learn, along which they are compared token by token; ``own``: what the teacher
    answers itself, which is the same but for conversations that bring answers.
    """
    teacher, predictor = record_answers(base, spec, own), Predictor(base, spec, state, generation)
    objective = AnswerScorer(base, predictor.encoder.verbalizer)
    targets = targets_of(objective, answers)
    near = FidelityValidation(base, targets, targets.items(predictor.encoder, examples))
    divergences, alike, places = near.of(predictor.prefix)
    if isinstance(answers, Completions) and answers.given.any():
        # turns that a conversation brings, and the answer that it lacks, are of one input
        divergences, alike = (
            torch.zeros(len(examples)).index_add_(0, answers.example, one * places)
            / torch.zeros(len(examples)).index_add_(0, answers.example, places)
            for one in (divergences, alike)
        )
    student = RecordedAnswers(spec, sorted(predictor.iterate_predictions(examples), key=lambda one: one.index))
    same = [float(one == other) for one, other in zip(student.words, teacher.words, strict=True)]
    # none is below zero but by rounding
    agreement, divergence = mean_score("agreement", same), mean_score("kl", divergences.clamp(min=0).tolist())
    further = [divergence]
    if spec.kind == "generation":
        further.append(mean_score("token_agreement", alike.tolist()))

    facts: dict[str, Any] = {}
    manifest: dict[str, Any] = {**agreement.model_dump(), "others": {}, "truncated": predictor.truncated}
    told = set(map(id, keep_answered(examples)))
    if indices := [index for index, one in enumerate(examples) if id(one) in told]:
        labelled = [examples[index] for index in indices]
        of_teacher, of_student = (score(one.of(indices), labelled) for one in (teacher, student))
        facts = {"teacher": of_teacher.metric, "student": of_student.metric}
        words = [one.of(indices).words for one in (teacher, student)]
        facts["kept"] = _kept(of_student.metric.metric, gold_answers(labelled), *words)
        manifest = {**of_student.to_dict(), "truncated": predictor.truncated}
        further = [agreement, *further]
    manifest["others"] |= {one.metric: one.model_dump() for one in further}
    if spec.kind == "generation":
        facts["token_agreement"] = further[-1]
    found = Fidelity(n=len(examples), agreement=agreement, kl=divergence, **facts)
    return found, manifest, student.predictions


def request_tokens(
    base: FrozenLM, spec: TaskSpec, examples: Sequence[Example], teacher: Teacher, state: PromptState
) -> RequestTokens:
    """What a request has before and after."""

    def mean_length(one: TaskSpec) -> float:
        return float(np.mean([len(ids) for ids in ExampleEncoder(base, one, state.length).encode_inputs(examples)]))

    text, front = mean_length(spec), state.length + state.placement.added
    read = text if teacher.spec is None else mean_length(teacher.spec)
    # each of several prompts reads the text
    before, after = teacher.tokens + len(teacher.states) * read, front + text
    return RequestTokens(
        teacher=round(before - len(teacher.states) * text),
        student=front,
        text=text,
        before=before,
        after=after,
        times_fewer=before / after,
    )


def measure_speeds(
    base: FrozenLM,
    spec: TaskSpec,
    examples: Sequence[Example],
    teacher: Teacher,
    states: Sequence[PromptState],
    settings: DistillConfig,
) -> tuple[list[Speed], Speed, Speed | None]:
    """Latency and throughput of each student, of the teacher, and of the teacher read with every request.

    All are timed in turn with the first student, on the same texts.
    """
    generation = GenerationConfig(max_new_tokens=settings.max_new_tokens or ANSWER_ROOM)
    students = [Predictor(base, spec, state, generation) for state in states]
    before = teacher.predictor(base, spec, settings)
    cached = measure_speed(before, students[0], examples, teacher.tokens)
    read = None
    if teacher.ids:
        anew = UncachedTeacher(base, teacher.spec or spec, teacher.ids, before.generation)
        read = measure_speed(anew, students[0], examples, teacher.tokens)
    after = [
        measure_speed(student, students[0], examples, state.length)
        for student, state in zip(students, states, strict=True)
    ]
    return after, cached, read


def add_speeds(report: DistillationReport, student: Speed, cached: Speed, read: Speed | None) -> DistillationReport:
    """The report with what was measured, and the break-even that follows."""
    spent = report.teacher_seconds + report.training_seconds
    # of times that were measured one after another, each beside the first student
    at_student, at_cached, at_read = make_comparable([student, cached, read])
    assert at_student is not None
    assert at_cached is not None
    return report.model_copy(
        update={
            "student_speed": student,
            "teacher_speed": cached,
            "read_speed": read,
            "against_cached": break_even(spent, at_cached, at_student),
            "against_read": None if at_read is None else break_even(spent, at_read, at_student),
        }
    )


def break_even(spent: float, before: Speed, after: Speed) -> BreakEven:
    """After how many requests ``spent`` seconds are saved."""

    def requests(was: float, now: float) -> int | None:
        return ceil(spent / (was - now)) if was - now > NOISE * was else None

    single = before.p50_ms / 1000, after.p50_ms / 1000
    batched = 1 / before.examples_per_second, 1 / after.examples_per_second
    return BreakEven(
        single=requests(*single),
        batched=requests(*batched),
        single_seconds=single[0] - single[1],
        batched_seconds=batched[0] - batched[1],
    )


def drop_timings(report: DistillationReport) -> Mapping[str, Any]:
    """What does not depend on how fast the machine was: the same run gives the same bytes."""
    timed = {"teacher_seconds", "training_seconds", "student_speed", "teacher_speed", "read_speed"}
    return report.model_dump(exclude={*timed, "against_read", "against_cached"})


def _kept(metric: str, gold: Sequence[Any], teacher: Sequence[str], student: Sequence[str]) -> Score | None:
    """The student's metric as a share of its teacher's."""
    answers = {"teacher": teacher, "student": student}
    scores = {name: score_runs(metric, gold, [words]) for name, words in answers.items()}
    whole = {name: float(one.means[0]) for name, one in scores.items()}
    if whole["teacher"] <= 0:
        return None
    values = resample_scores(scores)
    # a resample in which the teacher has nothing right says nothing
    some = values["teacher"] > 0
    low, high = np.quantile(values["student"][some] / values["teacher"][some], QUANTILES)
    value = whole["student"] / whole["teacher"]
    return Score(metric="kept", value=value, low=float(low), high=float(high), n=len(gold))
