"""A shorter prompt that does as well: virtual tokens go one by one while validation stays within a tolerance.

Each round takes out the token without which the loss is the least, measured anew after every step, for tokens that do
the same work look dispensable until one of them is gone. To spare passes, a round first looks at the few that the last
full measurement ranked lowest, on a part of the validation examples; the metric that the tolerance is about is taken
on all of them. Where the best of the few breaks the tolerance, all are measured once more before the search ends.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softprompt.analysis.inspection.ablation import keep_tokens
from softprompt.analysis.inspection.inspection_records import Pruning
from softprompt.analysis.inspection.score_records import (
    PromptScores,
    compare_metric,
    compute_metric,
    judging_metric,
    score_states,
)
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task, TaskSpec
from softprompt.data.task_arguments import Data
from softprompt.errors import ConfigError, DataError
from softprompt.inference.predictor import resolve_prompt_and_data
from softprompt.metrics.registry import NEGATIVE_LOSS, choose_metric
from softprompt.metrics.scores import Mean
from softprompt.models.deferred_base import BaseSource
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.learned_rows import ROWS_FILE
from softprompt.store.prompt_loading import pin_reference, resolve_saved_prompt
from softprompt.store.version_store import read_saved_files
from softprompt.training.callbacks.progress import ProgressChoice, choose_progress
from softprompt.training.training_run import evaluate_prompt
from softprompt.utils.arguments import check_arguments
from softprompt.utils.notebook_display import Displayed
from softprompt.utils.summaries import summarize

SEARCHED = 200  # validation examples that choose what to take out
TOLERANCE = 0.01
JUDGED = 1000  # that the tolerance is about, at most
FEW = 4  # candidates of a round


@dataclass
class _Search:
    """What was measured so far, and on what."""

    base: FrozenLM
    spec: TaskSpec
    state: PromptState
    examples: Sequence[Example]
    measured: int = 0

    def scored(self, kept: Sequence[Sequence[int]], examples: Sequence[Example]) -> PromptScores:
        self.measured += len(kept) * len(examples)
        states = [keep_tokens(self.state, indices) for indices in kept]
        return score_states(self.base, self.spec, states, examples)

    def ranked(self, kept: Sequence[int], candidates: Sequence[int]) -> list[int]:
        """``candidates``, the one whose absence costs least first."""
        shorter = [[index for index in kept if index != one] for one in candidates]
        losses = self.scored(shorter, self.examples).losses.mean(axis=1)
        return [candidates[place] for place in np.argsort(losses, kind="stable")]


class PrunedPrompt(Displayed, NamedTuple("_PrunedPrompt", [("prompt", Prompt), ("report", Pruning)])):
    """What ``prune`` gives: the shorter prompt, and what was done."""

    __slots__ = ()

    def __repr__(self) -> str:
        return summarize(self, repr(self.report).partition("(")[2].removesuffix(")"))


@check_arguments
def prune(
    base: BaseSource,
    prompt: Prompt | str | Path,
    data: Data,
    *,
    tolerance: float = TOLERANCE,
    place: str | None = None,
    progress: Callable[[str], None] | ProgressChoice = None,
) -> PrunedPrompt:
    """The shorter prompt with metrics of its own, not yet saved, and what was done.

    Args:
        base: the model that the prompt was learned on, or its name.
        prompt: the prompt, its folder, or its reference in a store.
        data: a task, or rows for the prompt's own (see ``Task.matching``).
        tolerance: by how much the task's metric on validation may fall; nats a token of negative loss in generation.
        place: where the prompt was loaded from, if it is not given as one: what the shorter one is recorded to come
            from.
        progress: what is given each line; or as for ``fit``.

    Raises:
        ConfigError: an ensemble, a tolerance below 0, or a metric that is not imported here.
        DataError: no validation examples.
        PromptFileError: the prompt was learned on another base model.
    """
    if tolerance < 0:
        raise ConfigError(f"expected a tolerance of 0 or more, got {tolerance}: it is a loss that is accepted")
    place = str(prompt) if place is None and isinstance(prompt, str | Path) else place
    check_prunable(prompt := resolve_saved_prompt(prompt))
    say = progress if callable(progress) else choose_progress(progress).on_message
    base, prompt, task = resolve_prompt_and_data(base, prompt, data)
    if not task.validation:
        raise DataError(f"{task.splits.source}: expected validation examples to judge by, got none: add some")
    spec = prompt.spec
    judged = sample_examples(task.validation, JUDGED)
    few = sample_examples(judged, SEARCHED, seed=1)
    search = _Search(base, spec, prompt.state, few)
    everything = list(range(prompt.state.length))
    before = search.scored([everything], judged)
    start = compute_metric(spec, before, judged)
    kept, fresh = everything, True
    order = search.ranked(kept, kept) if len(kept) > 1 else []
    while len(kept) > 1:
        if not fresh:
            order = [*search.ranked(kept, order[:FEW]), *order[FEW:]]
        shorter = [index for index in kept if index != order[0]]
        # dust of rounding must not count against equality
        if (now := compute_metric(spec, search.scored([shorter], judged), judged)) >= start - tolerance - 1e-9:
            say(f"{len(shorter)} virtual tokens: {now:.4f} (at first {start:.4f})")
            kept, order, fresh = shorter, order[1:], False
        elif fresh:
            break
        else:
            order, fresh = search.ranked(kept, kept), True
    after = search.scored([kept], judged)
    metric = judging_metric(spec)
    report = Pruning(
        metric=NEGATIVE_LOSS if metric is None else metric.name,
        tolerance=tolerance,
        length=len(kept),
        kept=tuple(kept),
        before=start,
        after=compute_metric(spec, after, judged),
        difference=compare_metric(spec, after, before, judged)[0],
        **_measure_test(search, task, kept, everything),
        measured=search.measured,
    )
    short = evaluate_prompt(_shorten(prompt, kept, report, place), base, task, evaluate_test=True)
    return PrunedPrompt(short, report)


def check_prunable(prompt: Prompt) -> None:
    """Raise ConfigError for an ensemble, and for a metric that is not imported here."""
    choose_metric(prompt.spec.kind, prompt.spec.metric)
    if len(prompt.states) > 1:
        raise ConfigError(
            f"prune shortens a single prompt, got an ensemble of {len(prompt.states)}: learn a single one (train "
            "without --ensemble), or a shorter ensemble (--length)"
        )


def _measure_test(
    search: _Search, task: Task, kept: Sequence[int], everything: Sequence[int]
) -> dict[str, float | Mean]:
    """Both on test, which had no part in the choice."""
    if not task.test:
        return {}
    examples = sample_examples(task.test, JUDGED)
    before, after = (search.scored([indices], examples) for indices in (everything, kept))
    return {
        "test_before": compute_metric(search.spec, before, examples),
        "test_after": compute_metric(search.spec, after, examples),
        "test_difference": compare_metric(search.spec, after, before, examples)[0],
    }


def _shorten(prompt: Prompt, kept: Sequence[int], report: Pruning, place: str | None) -> Prompt:
    state = keep_tokens(prompt.state, kept)
    assert state is not None
    before = prompt.training.get("pruned")
    # of a prompt that was pruned before: which of the first one's tokens these are
    origin = before["kept"] if isinstance(before, dict) and isinstance(before.get("kept"), list) else None
    pruned = {
        "kept": [origin[index] for index in kept] if origin else list(kept),
        "tolerance": report.tolerance,
        "metric": report.metric,
        "before": report.before,
        "after": report.after,
    }
    return replace(
        prompt,
        states=(state,),
        training={**prompt.training, "pruned": pruned},
        metrics={},
        parent=None if place is None else pin_reference(place),
        extra_files={name: read for name, read in _files_of(prompt, place).items() if name == ROWS_FILE},
    )


def _files_of(prompt: Prompt, place: str | None) -> Mapping[str, str]:
    """What lies beside the prompt: what it was learned from is what the shorter one was."""
    return (
        prompt.extra_files
        if place is None
        else {name: read.decode(errors="replace") for name, read in read_saved_files(place).items()}
    )
