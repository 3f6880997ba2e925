"""Predictor: a frozen model, a task and a prompt (or none), ready to answer; the prefix is computed once."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.examples import Columns, Example, unlabelled_example
from softprompt.data.readers.example_reader import BadRows
from softprompt.data.readers.file_rows import read_records
from softprompt.data.task import TaskSpec
from softprompt.data.templates.template import Template
from softprompt.errors import ConfigError, DataError, NotFiniteError, SoftpromptError, TemplateError, printable
from softprompt.inference.generation import Completed, GenerationConfig, choose_max_new_tokens, complete
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState, describe_state, words_before
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize

Vote: TypeAlias = Literal["mean", "majority"]


@dataclass(frozen=True)
class Prediction(Displayed):
    """One answer.

    Attributes:
        index: of the example.
        label: the likeliest label (classification).
        probabilities: of every label, summing to 1 (classification).
        completion: the text generated (generation).
        at_limit: whether the completion was cut at the limit of tokens, before it ended.
        prompt_tokens: virtual tokens, template and text that were read for it, where whoever answered counts them.
        cut: only the beginning of the text was read, where whoever answered tells.
    """

    index: int
    label: str | None = None
    probabilities: dict[str, float] | None = None
    completion: str | None = None
    at_limit: bool = False
    prompt_tokens: int | None = None
    cut: bool = False

    def __repr__(self) -> str:
        probability = None if self.probabilities is None or self.label is None else self.probabilities[self.label]
        answer = describe_value(self.completion if self.label is None else self.label)
        return summarize(self, answer, probability=probability, at_limit=self.at_limit or None, index=self.index)

    def to_dict(self) -> dict[str, Any]:
        """The fields that this kind of task has."""
        fields = {"label": self.label, "probabilities": self.probabilities, "completion": self.completion}
        told = {name: value for name, value in fields.items() if value is not None}
        return {"index": self.index, **told, **({"cut": True} if self.at_limit else {})}


class PredictorLike(Protocol):
    """Whatever answers the examples of one task: a prompt, a baseline, another model."""

    @property
    def spec(self) -> TaskSpec: ...

    @property
    def truncated(self) -> int:
        """Texts cut so far, because they were longer than what is read of them."""
        ...

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[examples, C]`` of the labels (classification)."""
        ...

    def predict(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """One prediction for each example, in any order."""
        ...


class Predictor(Displayed):
    """Answers for examples of one task."""

    def __init__(
        self,
        base: FrozenLM,
        spec: TaskSpec,
        states: PromptState | Sequence[PromptState] | None = None,
        generation: GenerationConfig | None = None,
        vote: Vote = "mean",
    ) -> None:
        """Make ready.

        Args:
            states: the prompt, or several that answer together, or ``None`` for the bare template.
            sampling: how completions are made (generation).
            vote: how several prompts come to one answer: ``mean`` of their probabilities, or ``majority`` of their
                likeliest labels, the mean probability deciding between labels with as many votes.

        Raises:
            TemplateError: the prompt leaves no room for text in the model's context.
            ConfigError: several prompts for generation.
        """
        self.base, self.spec, self.vote = base, spec, vote
        self.states = (states,) if isinstance(states, PromptState) else tuple(states or ())
        if len(self.states) > 1 and spec.kind == "generation":
            raise ConfigError("an ensemble answers by vote, expected a classification task, got generation")
        self.generation = generation or GenerationConfig(max_new_tokens=choose_max_new_tokens(base, spec))
        length = max((state.length for state in self.states), default=0)
        self.encoder = ExampleEncoder(base, spec, length, self.generation.max_new_tokens, words_before(self.states))
        self._objective = AnswerScorer(base, self.encoder.verbalizer)

    def __repr__(self) -> str:
        states = " and ".join(describe_state(state) for state in self.states[:2]) or "the bare template"
        members = f"{len(self.states)} prompts, of " if len(self.states) > 1 else ""
        task = f"{self.spec.kind} on {describe_value(self.base.name)}"
        return summarize(self, task, members + states, labels=self.spec.labels)

    @classmethod
    def of_prompt(
        cls, base: FrozenLM, prompt: Prompt, generation: GenerationConfig | None = None, vote: Vote = "mean"
    ) -> "Predictor":
        """A predictor for a saved prompt.

        Raises:
            PromptFileError: it was learned on another base model.
        """
        prompt.check_base(base)
        return cls(base, prompt.spec, prompt.states, generation, vote)

    @property
    def truncated(self) -> int:
        """Texts cut so far."""
        return self.encoder.truncated

    @cached_property
    def prefix(self) -> Prefix:
        """BOS and prompt, or each of several prompts, computed once."""
        with torch.no_grad():
            return make_prefix(self.base, *(self.states or (None,)))

    def member_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[M, examples, C]`` of the labels by each of ``M`` prompts, all in the same batches."""
        members = max(1, len(self.states))
        if not examples:
            return torch.zeros(members, 0, len(self.spec.labels))
        items = self.encoder.scoring_items(examples)
        asked = [
            replace(item, example=member * len(examples) + item.example, prompt=member)
            for item in items
            for member in range(members)
        ]
        with name_failing_example(examples):
            scores = self._objective.label_log_probabilities(self.prefix, asked)
        return scores.view(members, len(examples), -1)

    def label_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[examples, C]`` of the labels, float32 on the CPU, normalised over the labels.

        Of several prompts: of the mean probability, or of the shares of votes.
        """
        scores = self.member_log_probabilities(examples)
        mean = scores.logsumexp(dim=0) - math.log(len(scores))
        if self.vote == "mean" or len(scores) == 1:
            return mean
        votes = torch.nn.functional.one_hot(scores.argmax(dim=2), scores.shape[2]).sum(dim=0) / len(scores)
        # less than any difference of votes, it decides only between equals
        shares = votes + mean.exp() / (2 * len(scores))
        return (shares / shares.sum(dim=1, keepdim=True)).log()

    def predict(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Predictions in the order of the examples for classification, as they finish for generation."""
        if self.spec.kind == "generation":
            with name_failing_example(examples):
                for index, text, cut in self._completions(self.encoder.encode_inputs(examples)):
                    yield Prediction(index, completion=text, at_limit=cut)
            return
        yield from predict_labels(self.spec, self.label_log_probabilities(examples))

    def _completions(self, texts: Sequence[tuple[int, ...]]) -> Iterator[Completed]:
        processes = self.base.processes
        # in step all make every token together; a sample is drawn by the place of its text
        if processes.world_size == 1 or processes.in_lockstep or self.generation.warpers:
            yield from complete(self.base, self.prefix, texts, self.generation, EVALUATION_TOKENS)
            return
        places = range(processes.rank, len(texts), processes.world_size)
        own = complete(self.base, self.prefix, [texts[i] for i in places], self.generation, EVALUATION_TOKENS)
        for part in processes.all_gather([(places[index], text, cut) for index, text, cut in own]):
            yield from ((index, text, cut) for index, text, cut in part)


@contextmanager
def name_failing_example(examples: Sequence[Example]) -> Iterator[None]:
    """What goes wrong within with one of ``examples`` names it: its row, or the beginning of its text."""
    try:
        yield
    except NotFiniteError as error:
        row = error.row % len(examples)
        one = examples[row]
        raise NotFiniteError(row, one.place or f"text {printable(repr(one.text), 60)}") from error


def predict_labels(spec: TaskSpec, log_probabilities: Tensor) -> Iterator[Prediction]:
    """Predictions from log-probabilities ``[examples, C]`` of the labels."""
    for index, row in enumerate(log_probabilities.exp()):
        probabilities = dict(zip(spec.labels, row.tolist(), strict=True))
        yield Prediction(index, max(probabilities, key=probabilities.__getitem__), probabilities)


class _ArrivingLines:
    """Lines of a stream as they arrive; ``waiting`` counts those that are here already, blank ones left out."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: Any = stream
        self.waiting = 0

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        # read1 waits for some bytes, then gives what is there, where iterating over the stream may wait for more
        while chunk := self._stream.read1(1 << 16):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from self._yield_lines(whole)
        yield from self._yield_lines([rest] if rest else [])

    def _yield_lines(self, lines: list[bytes]) -> Iterator[bytes]:
        self.waiting = sum(bool(line.strip()) for line in lines)
        for line in lines:
            self.waiting -= bool(line.strip())
            yield line


def arriving_examples(
    stream: BinaryIO,
    most: int,
    template: Template | None = None,
    columns: Columns | None = None,
    bad_rows: BadRows = "refuse",
) -> Iterator[list[Example | DataError]]:
    """Rows of JSONL as examples, in lists of at most ``most``; none waits for rows that are not there yet.

    Args:
        template: that each row must be able to fill in.
        columns: what the prompt calls them.
        bad_rows: ``skip`` gives an error in place of a row that cannot be used.

    Raises:
        DataError: a row that cannot be used, with its number; the rows before it are yielded first.
    """
    lines = _ArrivingLines(stream)
    ready: list[Example | DataError] = []
    try:
        for row in read_records(lines, "standard input"):
            try:
                if row.reason:
                    raise DataError(f"{row.place}: {row.reason}")
                example = unlabelled_example(row.values, row.place, columns)
                if template is not None:
                    _check_fills(template, example)
                ready.append(example)
            except DataError as error:
                if bad_rows != "skip":
                    raise
                ready.append(error)
            if len(ready) == most or not lines.waiting:
                yield ready
                ready = []
    except SoftpromptError:
        if ready:
            yield ready
        raise
    if ready:
        yield ready


def _check_fills(template: Template, example: Example) -> None:
    try:
        template.fill(example)
    except TemplateError as error:
        raise DataError(str(error)) from error
