"""Predictor: a frozen model, a task and a prompt (or none), ready to answer; the prefix is computed once."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias, overload

import torch
from torch import Tensor

from softprompt.data.examples import Columns, Example, unlabelled_example
from softprompt.data.readers.example_reader import BadRows
from softprompt.data.readers.file_rows import read_records
from softprompt.data.task import Task, TaskSpec
from softprompt.data.task_arguments import Data, resolve_task
from softprompt.data.templates.template import Template, check_fills
from softprompt.errors import ConfigError, DataError, NotFiniteError, SoftpromptError, printable
from softprompt.inference.chat_answers import check_placement, end_with_turns, find_beginning, make_bare_state
from softprompt.inference.generation import Completed, GenerationConfig, choose_max_new_tokens, complete
from softprompt.inference.predictions import Inputs, Prediction, Predictions, is_single, read_inputs
from softprompt.inference.scoring import EVALUATION_TOKENS, AnswerScorer
from softprompt.models.deferred_base import BaseSource, load_checked, resolve_base
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.quantization import SCHEMES
from softprompt.prompts.prefix import Prefix, make_prefix
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState, describe_state
from softprompt.prompts.text_encoder import make_text_encoder
from softprompt.store.prompt_loading import resolve_saved_prompt
from softprompt.utils.arguments import check_arguments, describe_kind, refuse_argument
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import describe_value, summarize

_SPEC_ADVICE = {"Prompt": "sp.Predictor.of_prompt(base, prompt) makes one of a prompt", "Task": "give task.spec"}
Vote: TypeAlias = Literal["mean", "majority"]


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

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
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
        if not isinstance(spec, TaskSpec):
            raise refuse_argument("spec", "the task's spec", spec, _SPEC_ADVICE)
        self.states = (states,) if isinstance(states, PromptState) else tuple(states or ())
        spec = spec if self.states else spec.without_prompt
        self.base, self.spec, self.vote = base, spec, vote
        if len(self.states) > 1 and spec.kind == "generation":
            raise ConfigError("an ensemble answers by vote, expected a classification task, got generation")
        generation = generation or GenerationConfig(max_new_tokens=choose_max_new_tokens(base, spec))
        self.generation = end_with_turns(base, spec, generation)
        self.encoder = make_text_encoder(base, spec, self.states, self.generation.max_new_tokens)
        self._objective = AnswerScorer(base, self.encoder.verbalizer, self.states)
        check_placement(self.states, self.encoder.placement)
        self._others: dict[str, Predictor] = {}

    def __repr__(self) -> str:
        states = " and ".join(describe_state(state) for state in self.states[:2]) or "the bare template"
        members = f"{len(self.states)} prompts, of " if len(self.states) > 1 else ""
        task = f"{self.spec.kind} on {describe_value(self.base.name)}"
        return summarize(self, task, members + states, labels=self.spec.labels)

    @classmethod
    @check_arguments
    def of_prompt(
        cls,
        base: BaseSource,
        prompt: Prompt | str | Path,
        generation: GenerationConfig | None = None,
        vote: Vote = "mean",
    ) -> "Predictor":
        """A predictor for a saved prompt.

        Args:
            base: the model that it was learned on, or its name.
            prompt: the prompt, its folder, or its reference in a store.
            generation, vote: as for ``Predictor``.

        Raises:
            PromptFileError: it was learned on another base model.
        """
        saved = resolve_saved_prompt(prompt)
        return cls(load_base_of(saved, base), saved.spec, saved.states, generation, vote)

    @classmethod
    @check_arguments
    def load(
        cls,
        prompt: str | Path,
        base: BaseSource | None = None,
        generation: GenerationConfig | None = None,
        vote: Vote = "mean",
        **options: Any,
    ) -> "Predictor":
        """A predictor for a prompt that is saved somewhere, with the base model that it was learned on.

        Args:
            prompt: its folder, or its reference in a store (``STORE#NAME@WHICH``).
            base: the base model, or its name where it is called otherwise here.
            generation, vote: as for ``Predictor``.
            options: of ``load_model`` (``device=``, ``dtype=``, ...).

        Raises:
            PromptFileError: no saved prompt is there, or it was learned on another base model.
            BaseModelError: its base model is not there.
        """
        saved = resolve_saved_prompt(prompt)
        model = load_base_of(saved, saved.base_name if base is None else base, **options)
        return cls(model, saved.spec, saved.states, generation, vote)

    @property
    def truncated(self) -> int:
        """Texts cut so far."""
        return self.encoder.truncated + sum(one.truncated for one in self._others.values())

    def truncation_notes(self) -> list[str]:
        """What there is to say of texts and turns that were cut so far."""
        return [note for one in (self, *self._others.values()) for note in one.encoder.truncation_notes()]

    @cached_property
    def prefix(self) -> Prefix:
        """BOS and prompt, or each of several prompts, computed once."""
        with torch.no_grad():
            return make_prefix(self.base, *(self.states or (make_bare_state(self.base, self.spec),)))

    def member_log_probabilities(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities ``[M, examples, C]`` of the labels by each of ``M`` prompts, all in the same batches."""
        scores = torch.zeros(max(1, len(self.states)), len(examples), len(self.spec.labels))
        for predictor, places in self._divide(examples):
            scores[:, places] = predictor._score_labels([examples[place] for place in places])
        return scores

    def _score_labels(self, examples: Sequence[Example]) -> Tensor:
        """``member_log_probabilities`` of examples that all begin as this one's."""
        members = max(1, len(self.states))
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

    @overload
    def predict(self, inputs: str | Example) -> Prediction: ...

    @overload
    def predict(self, inputs: list[Any] | tuple[Any, ...]) -> Predictions: ...

    @overload
    def predict(self, inputs: Inputs) -> Any: ...

    @check_arguments
    def predict(self, inputs: Inputs) -> Prediction | Predictions:
        """Answer a text or a row, or many of them.

        Args:
            inputs: a text, a row as a dict, an ``Example``, or a conversation as a list of messages
                (``{"role": "user", "content": "…"}``): one prediction. A list of these, a column of texts, a
                DataFrame, an Arrow table, a ``datasets.Dataset`` or a dict of columns: one for each, in order, with
                ``to_pandas()``.

        Raises:
            ConfigError: nothing that could be asked.
            DataError, TemplateError: a row that cannot be asked; its number is in the message.
        """
        asked = read_inputs(inputs, self.spec)
        found = self.iterate_predictions([one.example for one in asked])
        answered = sorted(found, key=lambda prediction: prediction.index)
        if is_single(inputs):
            return answered[0]
        return Predictions(answered, asked, inputs if describe_kind(inputs) == "a DataFrame" else None)

    __call__ = predict

    def iterate_predictions(self, examples: Sequence[Example]) -> Iterator[Prediction]:
        """Predictions in the order of the examples for classification, as they finish for generation."""
        if self.spec.kind == "generation":
            for predictor, places in self._divide(examples):
                own = [examples[place] for place in places]
                with name_failing_example(own):
                    for index, text, cut in predictor._completions(predictor.encoder.encode_inputs(own)):
                        yield Prediction(places[index], completion=text, at_limit=cut)
            return
        yield from predict_labels(self.spec, self.label_log_probabilities(examples))

    def _divide(self, examples: Sequence[Example]) -> list[tuple["Predictor", list[int]]]:
        """Who answers which of the examples: itself, but for conversations that begin otherwise than all others."""
        groups: dict[str, tuple[Predictor, list[int]]] = {}
        for place, example in enumerate(examples):
            try:
                found = find_beginning(self.base, self.spec, self.states, example.conversation)
            except DataError as error:
                raise DataError(example.locate_message(error)) from error
            if found.name and found.name not in self._others:
                other = Predictor(self.base, found.spec, found.states, self.generation, self.vote)
                self._others[found.name] = other
            predictor = self._others[found.name] if found.name else self
            groups.setdefault(found.name, (predictor, []))[1].append(place)
        return list(groups.values())

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


def load_base_of(prompt: Prompt, base: BaseSource, **options: Any) -> FrozenLM:
    """The base model of a prompt, which is checked; quantized as it was learned on, if it is loaded here."""
    learned = prompt.quantization if prompt.quantization in SCHEMES else None
    return load_checked(resolve_base(base, **{"quantize": learned, **options}), prompt.check_base)


def resolve_prompt_and_data(base: BaseSource, prompt: Prompt | str | Path, data: Data) -> tuple[FrozenLM, Prompt, Task]:
    """A saved prompt, its base model, which is checked, and data for its task."""
    saved, model = resolve_saved_prompt(prompt), resolve_base(base)
    task = data if isinstance(data, Task) else resolve_task(data, saved.spec)
    return load_base_of(saved, model), saved, task


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
                    check_fills(template, example)
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
