"""The gate before promotion: is a new version worse than the one in place, on the same examples?

The answers of both are compared by a paired bootstrap over the examples (Koehn, "Statistical Significance Tests for
Machine Translation Evaluation", 2004), in the metric that the new version is judged by. A difference that chance
explains does not close the gate, so few examples let much pass: the interval says how much.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from softprompt.config import GateConfig
from softprompt.data.examples import Example
from softprompt.data.split_assignment import Subsample, sample_examples
from softprompt.inference.evaluation import Evaluation, evaluate
from softprompt.inference.generation import GenerationConfig
from softprompt.metrics.bootstrap import paired_difference, resample_scores
from softprompt.metrics.registry import METRICS, score_runs
from softprompt.metrics.user_metrics import import_metric
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.verdict import LostExample, Verdict


class Gate:
    """Compares two prompts on examples.

    Attributes:
        examples: those that both answer.
    """

    def __init__(
        self,
        base: FrozenLM | Callable[[Prompt], FrozenLM],
        examples: Sequence[Example],
        config: GateConfig | None = None,
        *,
        limit: int | None = None,
        generation: GenerationConfig | None = None,
        metric: str | None = None,
    ) -> None:
        """Make ready.

        Args:
            base: the model that both were learned on; or what gives the model of a prompt, where they differ.
            examples: labelled ones, or with references.
            config: the thresholds.
            limit: so many of the examples at most, drawn with every label in its proportion.
            sampling: how completions are made (generation).
            metric: what to judge by; what the new version is judged by, if not given.
        """
        self._base, self._generation, self._metric = base, generation, import_metric(metric)
        self.examples = sample_examples(examples, limit)
        self._drawn = Subsample(len(self.examples), len(examples))
        self._config = config or GateConfig()

    def __call__(self, new: Prompt, in_place: Prompt) -> Verdict:
        """Whether ``new`` may take the place of the other.

        Raises:
            DataError: no examples, or examples without label or references.
            PromptFileError: a prompt was learned on another base model.
        """
        metric = self._metric or new.spec.metric
        alike = [replace(one, spec=replace(one.spec, metric=metric)) for one in (in_place, new)]
        before, now = (
            evaluate(self._load_base(prompt), self.examples, prompt, generation=self._generation) for prompt in alike
        )
        return replace(judge_answers(self.examples, before, now, self._config), drawn=self._drawn)

    def _load_base(self, prompt: Prompt) -> FrozenLM:
        return self._base if isinstance(self._base, FrozenLM) else self._base(prompt)


def judge_answers(examples: Sequence[Example], before: Evaluation, now: Evaluation, config: GateConfig) -> Verdict:
    """What the answers of two prompts to ``examples`` mean for the second of them."""
    metric = now.metric.metric
    indices = range(len(examples))
    old, new = ([_format_answer(one, index) for index in indices] for one in (before, now))
    scores = {name: score_runs(metric, now.gold, [words]) for name, words in (("now", new), ("before", old))}
    values = resample_scores(scores, config.resamples, config.seed)
    difference = paired_difference(scores["now"], scores["before"], values["now"], values["before"])
    # how surely it is worse by more than what is accepted
    p_value = paired_difference(
        scores["now"], scores["before"], values["now"] + config.tolerance, values["before"]
    ).p_value
    was, score = (METRICS[metric].score_each(now.gold, words) for words in (old, new))
    lost = [
        LostExample(
            index,
            examples[index].text,
            _format_expected(examples[index]),
            old[index],
            new[index],
            was[index] - score[index],
        )
        for index in indices
        if score[index] < was[index]
    ]
    return Verdict(
        passed=not (difference.difference + config.tolerance < 0 and p_value < config.significance),
        metric=metric,
        before=float(scores["before"].means[0]),
        now=float(scores["now"].means[0]),
        difference=difference,
        p_value=p_value,
        gained=sum(score[index] > was[index] for index in indices),
        lost=tuple(sorted(lost, key=lambda one: -one.loss)),
        config=config,
    )


def _format_expected(example: Example) -> str:
    return example.label if example.label is not None else " | ".join(example.references)


def _format_answer(evaluation: Evaluation, index: int) -> str:
    prediction = evaluation.predictions[index]
    return str(prediction.completion if prediction.label is None else prediction.label)
