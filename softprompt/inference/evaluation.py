"""Score what answers on examples: every figure with its n and a 95% bootstrap interval."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples
from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, DataError
from softprompt.inference.generation import GenerationConfig, choose_max_new_tokens
from softprompt.inference.predictor import Prediction, Predictor, PredictorLike, Vote
from softprompt.metrics.registry import choose_metric, metrics_of_kind
from softprompt.metrics.scores import Score
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import summarize


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
    """

    metric: Score
    others: tuple[Score, ...]
    predictions: tuple[Prediction, ...]
    gold: tuple[Any, ...]
    truncated: int
    drawn: Subsample | None = None

    def __repr__(self) -> str:
        return summarize(self, str(self), truncated=self.truncated or None)

    def __str__(self) -> str:
        return ", ".join(map(str, (self.metric, *self.others)))

    def to_dict(self) -> dict[str, Any]:
        """The main metric's fields on top, the others by name below ``others``."""
        return {
            **self.metric.model_dump(),
            "others": {one.metric: one.model_dump() for one in self.others},
            "truncated": self.truncated,
            **({} if self.drawn is None else self.drawn.to_dict()),
            **({} if isinstance(self.gold[0], str) else {"cut": self.cut}),
        }

    @property
    def cut(self) -> int:
        """Completions that were cut at the limit of tokens."""
        return sum(one.at_limit for one in self.predictions)

    @property
    def truncation_notes(self) -> list[str]:
        """What there is to say of completions that were cut."""
        return truncation_notes(self.cut, len(self.predictions))


def evaluate(
    base: FrozenLM,
    examples: Sequence[Example],
    prompt: Prompt | PromptState | None = None,
    *,
    spec: TaskSpec | None = None,
    generation: GenerationConfig | None = None,
    vote: Vote = "mean",
) -> Evaluation:
    """Predict and score.

    Args:
        prompt: a learned prompt, a written one as a state (see ``written_prompt``), or none: the bare template.
        spec: the task, where ``prompt`` does not bring it.
        sampling: how completions are made (generation); greedily, with room for the longest reference, if not given.
        vote: how an ensemble comes to one answer (see ``Predictor``).

    Raises:
        ConfigError: no ``spec``, and no prompt that has one.
        DataError: no examples, or examples without label or references.
        PromptFileError: the prompt was learned on another base model.
    """
    known = prompt.spec if isinstance(prompt, Prompt) else spec
    if known is None:
        raise ConfigError("expected the task's spec beside a prompt that was not learned: give spec=task.spec")
    if generation is None:
        generation = GenerationConfig(max_new_tokens=choose_max_new_tokens(base, known, examples))
    if isinstance(prompt, Prompt):
        return score(Predictor.of_prompt(base, prompt, generation, vote), examples)
    return score(Predictor(base, known, prompt, generation), examples)


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
    predictions = tuple(sorted(answers.predict(examples), key=lambda prediction: prediction.index))
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


def _read_label(example: Example) -> str:
    if example.label is None:
        raise DataError("an example has no label: evaluation needs labelled rows")
    return example.label
