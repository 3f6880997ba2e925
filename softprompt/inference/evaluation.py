"""Score what answers on examples: every figure with its n and a 95% bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples, sample_indices
from softprompt.data.task import Task, TaskSpec
from softprompt.data.task_arguments import Data, check_option_names, resolve_task
from softprompt.errors import ConfigError, DataError
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import Predictor, PredictorLike, Vote, load_base_of
from softprompt.inference.written_baseline import MOST_ROWS, WrittenBaseline, compare_answers, write_baseline
from softprompt.metrics.baseline_gain import format_gain
from softprompt.metrics.registry import choose_metric, metrics_of_kind
from softprompt.metrics.scores import Score
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import AnyPrompt, resolve_prompt
from softprompt.utils.arguments import check_arguments
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.pandas_tables import make_table
from softprompt.utils.summaries import summarize

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Evaluation(Displayed):
    """Results on one set of examples.

    Attributes:
        metric: what the task is judged by first (see ``metrics.registry``).
        others: the further metrics of its kind.
        predictions: in the order of the examples.
        gold: labels, or references.
        truncated: texts that had to be cut.
        drawn: of how many rows the examples are a sample, if they are one.
        split: that the examples are of, where it is known.
        baseline: what the written prompt reaches on the same rows, where that was measured.
    """

    metric: Score
    others: tuple[Score, ...]
    predictions: tuple[Prediction, ...]
    gold: tuple[Any, ...]
    truncated: int
    drawn: Subsample | None = None
    split: str | None = None
    baseline: WrittenBaseline | None = None

    def __repr__(self) -> str:
        return summarize(self, str(self), truncated=self.truncated or None)

    def __str__(self) -> str:
        gain = "" if self.baseline is None else f", gain over the written prompt {format_gain(self.to_dict())}"
        where = "" if self.split is None else f" ({self.split} split)"
        return ", ".join(map(str, (self.metric, *self.others))) + where + gain

    def to_pandas(self) -> "DataFrame":
        """A row for each metric, the main one first: ``value``, ``low`` and ``high`` of its interval, ``n``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [one.model_dump(include={"metric", "value", "low", "high", "n"}) for one in (self.metric, *self.others)]
        types = {"metric": "str", "value": "float64", "low": "float64", "high": "float64", "n": "int64"}
        return make_table(rows, types, index="metric")

    def to_dict(self) -> dict[str, Any]:
        """The main metric's fields on top, the others by name below ``others``."""
        return {
            **self.metric.model_dump(),
            "others": {one.metric: one.model_dump() for one in self.others},
            "truncated": self.truncated,
            **({} if self.drawn is None else self.drawn.to_dict()),
            **({} if isinstance(self.gold[0], str) else {"cut": self.cut}),
            **({} if self.baseline is None else {"baseline": self.baseline.to_dict()}),
        }

    @property
    def answers(self) -> list[str]:
        """The label or completion of each prediction."""
        return [str(one.completion if one.label is None else one.label) for one in self.predictions]

    @property
    def cut(self) -> int:
        """Completions that were cut at the limit of tokens."""
        return sum(one.at_limit for one in self.predictions)

    @property
    def truncation_notes(self) -> list[str]:
        """What there is to say of completions that were cut."""
        return truncation_notes(self.cut, len(self.predictions))


@check_arguments
def evaluate(
    base: BaseSource,
    data: Data,
    prompt: AnyPrompt | None = None,
    *,
    split: str | None = None,
    spec: TaskSpec | None = None,
    generation: GenerationConfig | None = None,
    vote: Vote = "mean",
    baseline: bool = False,
    **options: Any,
) -> Evaluation:
    """Predict and score.

    Args:
        base: the frozen model, or its name.
        data: a task, or what it is made from (see ``Task.of``), for the task of ``prompt`` where it has one; or the
            examples themselves, all of which are scored.
        prompt: a learned prompt, its folder or its reference in a store; a written one as a state beside its ``spec``
            (see ``write_prompt``); or none: the bare template.
        split: of a task: ``train``, ``validation``, ``test`` or ``all``. Test, if not given, or validation where
            there is no test; the result says which.
        spec: the task of examples, where ``prompt`` does not bring it; of a written prompt its own.
        generation: how completions are made; greedily, with room for the longest reference, if not given.
        vote: how an ensemble comes to one answer (see ``Predictor``).
        baseline: score the written prompt that ``prompt`` started from too, and tell the gain over it.
        options: of rows that become a task here: ``template=``, ``labels=``, ``text_column=``, ... (see ``Task.of``).

    Raises:
        ConfigError: examples without ``spec``, and no prompt that has one.
        DataError: no examples, or examples without label or references.
        PromptFileError: the prompt was learned on another base model.
    """
    model, saved = resolve_base(base), resolve_prompt(prompt)
    if baseline and not isinstance(saved, Prompt):
        raise ConfigError("baseline=True tells what a saved prompt gains over the written one: give prompt= too")
    train: Sequence[Example] = ()
    task: Task | None = None
    known = saved.spec if isinstance(saved, Prompt) else spec
    if isinstance(data, list | tuple) and all(isinstance(one, Example) for one in data):
        examples: Sequence[Example] = data
        if known is None:
            raise ConfigError("expected the task's spec beside a prompt that was not learned: give spec=task.spec")
    else:
        check_option_names("evaluate", options)
        task = resolve_task(data, known, options=options)
        known, split = task.spec, split or choose_split(task)
        examples, train = task.splits[split], task.train
    model = load_base_of(saved, base) if isinstance(saved, Prompt) else load_checked(model)
    if task is not None:
        known = spec if spec is not None and not isinstance(saved, Prompt) else resolve_chat(model, task).spec
    if generation is None:
        generation = GenerationConfig(max_new_tokens=choose_max_new_tokens(model, known, examples))
    states = saved.states if isinstance(saved, Prompt) else saved
    found = score(Predictor(model, known, states, generation, vote), examples)
    if baseline and isinstance(saved, Prompt):
        found = add_baseline(model, saved, train, examples, found, generation)
    return replace(found, split=split)


def choose_split(task: Task) -> str:
    """Test, or validation where there is no test, or else all there is."""
    return "test" if task.test else "validation" if task.validation else "all"


def truncation_notes(cut: int, of: int) -> list[str]:
    """What there is to say where so many completions were cut at the limit of tokens."""
    told = f"{cut:,} of {of:,} completions were cut at the limit of tokens: --max-new-tokens gives more"
    return [told] if cut else []


def score(answers: PredictorLike, examples: Sequence[Example]) -> Evaluation:
    """``evaluate`` for a predictor, or whatever else answers, that is there already."""
    if not examples:
        raise DataError("no examples to evaluate on: the split is empty")
    spec = answers.spec
    gold = tuple(_read_label(one) if spec.kind == "classification" else one.references for one in examples)
    first = choose_metric(spec.kind, spec.metric, gold)
    before = answers.truncated
    predictions = tuple(sorted(answers.iterate_predictions(examples), key=lambda prediction: prediction.index))
    truncated = answers.truncated - before
    answered = [str(one.completion if one.label is None else one.label) for one in predictions]
    others = tuple(scorer(gold, answered) for scorer in metrics_of_kind(spec.kind) if scorer is not first)
    return Evaluation(first(gold, answered), others, predictions, gold, truncated)


def score_sample(
    answers: PredictorLike, examples: Sequence[Example], limit: int | None, seed: int = 0, of: int | None = None
) -> Evaluation:
    """``score`` on at most ``limit`` of ``examples``, drawn by ``seed``; the result says of how many.

    ``of``: how many there were, where ``examples`` were drawn of them already.
    """
    chosen = sample_examples(examples, limit, seed)
    return replace(score(answers, chosen), drawn=Subsample(len(chosen), len(examples) if of is None else of, seed))


def add_baseline(
    base: FrozenLM,
    prompt: Prompt,
    train: Sequence[Example],
    examples: Sequence[Example],
    learned: Evaluation,
    generation: GenerationConfig | None = None,
) -> Evaluation:
    """``learned``, with what the written prompt reaches on the same examples; on a sample of them where they are many.

    Args:
        prompt: whose start was the written one.
        train: solved examples to write.
        examples: that ``learned`` has the predictions of, in order.
        generation: as for the learned prompt.
    """
    metric, kind = learned.metric.metric, prompt.spec.kind
    written = write_baseline(base, prompt.spec, prompt.training, prompt.states[0].length, prompt.seed, train)
    indices = sample_indices(examples, MOST_ROWS[kind])
    answers = Predictor(base, replace(written.spec, metric=metric), written.state, generation)
    found = score(answers, [examples[index] for index in indices])
    told = learned.answers
    value, gain = compare_answers(metric, found.gold, [told[index] for index in indices], found.answers)
    drawn = Subsample(len(indices), len(examples) if learned.drawn is None else learned.drawn.of)
    return replace(learned, baseline=WrittenBaseline(written, found.metric, value, gain, drawn))


def _read_label(example: Example) -> str:
    if example.label is None:
        raise DataError("an example has no label: evaluation needs labelled rows")
    return example.label
