"""A shorter prompt that does as well: virtual tokens go one by one while validation stays within a tolerance.

Each round takes out the token without which the loss is the least, measured anew after every step, for tokens that do
the same work look dispensable until one of them is gone. To spare passes, a round first looks at the few that the last
full measurement ranked lowest, on a part of the validation examples; the metric that the tolerance is about is taken
on all of them. Where the best of the few breaks the tolerance, all are measured once more before the search ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from softprompt.analysis.inspection.ablation import keep_tokens
from softprompt.analysis.inspection.answers import ComparedReference, score_examples
from softprompt.analysis.inspection.inspection_records import Pruning
from softprompt.analysis.inspection.score_records import PromptScores, score_states
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task
from softprompt.errors import ConfigError, DataError
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.scores import Mean
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState

SEARCHED = 200  # validation examples that choose what to take out
JUDGED = 1000  # that the tolerance is about, at most
FEW = 4  # candidates of a round


@dataclass
class _Search:
    """What was measured so far, and on what."""

    base: FrozenLM
    spec: ComparedReference
    state: PromptState
    examples: Sequence[Example]
    measured: int = 0

    def scored(self, kept: Sequence[Sequence[int]], examples: Sequence[Example]) -> PromptScores:
        self.measured += len(kept) * len(examples)
        states = [keep_tokens(self.state, indices) for indices in kept]
        return score_states(self.base, self.spec.spec, states, examples)

    def ranked(self, kept: Sequence[int], candidates: Sequence[int]) -> list[int]:
        """``candidates``, the one whose absence costs least first."""
        shorter = [[index for index in kept if index != one] for one in candidates]
        losses = self.scored(shorter, self.examples).losses.mean(axis=1)
        return [candidates[place] for place in np.argsort(losses, kind="stable")]


def prune(
    base: FrozenLM,
    prompt: Prompt,
    task: Task,
    *,
    tolerance: float,
    parent: str,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Prompt, Pruning]:
    """The shorter prompt, not yet saved and without metrics of its own, and what was done.

    Args:
        tolerance: by how much the metric on validation may fall (accuracy, or nats a token of negative loss).
        parent: what the pruned prompt is recorded to come from.

    Raises:
        ConfigError: an ensemble, or a tolerance below 0.
        DataError: no validation examples.
        PromptFileError: the prompt was learned on another base model.
    """
    check_prunable(prompt)
    if tolerance < 0:
        raise ConfigError(f"expected a tolerance of 0 or more, got {tolerance}: it is a loss that is accepted")
    if not task.validation:
        raise DataError(f"{task.splits.source}: expected validation examples to judge by, got none: add some")
    prompt.check_base(base)
    judged = sample_examples(task.validation, JUDGED)
    few = sample_examples(judged, SEARCHED, seed=1)
    search = _Search(base, ComparedReference(parent, prompt.spec, prompt.states), prompt.state, few)
    everything = list(range(prompt.state.length))
    values = score_examples(prompt.spec, search.scored([everything], judged), judged)
    start = float(values.mean())

    def value(kept: Sequence[int]) -> float:
        return float(score_examples(prompt.spec, search.scored([kept], judged), judged).mean())

    kept, fresh = everything, True
    order = search.ranked(kept, kept) if len(kept) > 1 else []
    while len(kept) > 1:
        if not fresh:
            order = [*search.ranked(kept, order[:FEW]), *order[FEW:]]
        shorter = [index for index in kept if index != order[0]]
        # dust of rounding must not count against equality
        if (now := value(shorter)) >= start - tolerance - 1e-9:
            progress(f"{len(shorter)} virtual tokens: {now:.4f} (at first {start:.4f})")
            kept, order, fresh = shorter, order[1:], False
        elif fresh:
            break
        else:
            order, fresh = search.ranked(kept, kept), True
    after = score_examples(prompt.spec, search.scored([kept], judged), judged)
    difference, _ = hypothesis_tests.paired_mean_difference(after, values)
    test = _on_test(search, prompt, task, kept, everything)
    report = Pruning(
        metric="accuracy" if prompt.spec.kind == "classification" else "negative_loss",
        tolerance=tolerance,
        length=len(kept),
        kept=tuple(kept),
        before=start,
        after=float(after.mean()),
        difference=difference,
        **test,
        measured=search.measured,
    )
    return _shorter(prompt, kept, report, parent), report


def check_prunable(prompt: Prompt) -> None:
    """Raise ConfigError for an ensemble."""
    if len(prompt.states) > 1:
        raise ConfigError(
            f"prune shortens a single prompt, got an ensemble of {len(prompt.states)}: learn a single one (train "
            "without --ensemble), or a shorter ensemble (--length)"
        )


def _on_test(
    search: _Search, prompt: Prompt, task: Task, kept: Sequence[int], everything: Sequence[int]
) -> dict[str, float | Mean]:
    """Both on test, which had no part in the choice."""
    if not task.test:
        return {}
    examples = sample_examples(task.test, JUDGED)
    before, after = (
        score_examples(prompt.spec, search.scored([indices], examples), examples) for indices in (everything, kept)
    )
    difference, _ = hypothesis_tests.paired_mean_difference(after, before)
    return {
        "test_before": float(before.mean()),
        "test_after": float(after.mean()),
        "test_difference": difference,
    }


def _shorter(prompt: Prompt, kept: Sequence[int], report: Pruning, parent: str) -> Prompt:
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
        parent=parent,
        extra_files={},
    )
