"""What each virtual token is good for: the loss without it, on the same examples, in the same batches."""

from collections.abc import Sequence

import numpy as np

from softprompt.base import FrozenLM
from softprompt.data import Example
from softprompt.inspection import VirtualToken
from softprompt.prefix import PromptState
from softprompt.probe import statistics
from softprompt.probe.scores import Scored, score_states
from softprompt.probe.states import without
from softprompt.task import TaskSpec


def score_removals(
    base: FrozenLM, spec: TaskSpec, state: PromptState, examples: Sequence[Example]
) -> tuple[Scored, list[int]]:
    """Scores of the whole prompt (row 0), then without each of its virtual tokens; and which these are."""
    indices = list(range(state.length))
    return score_states(base, spec, [state, *(without(state, index) for index in indices)], examples), indices


def with_removals(
    tokens: Sequence[VirtualToken],
    base: FrozenLM,
    spec: TaskSpec,
    states: Sequence[PromptState],
    examples: Sequence[Example],
) -> list[VirtualToken]:
    """``tokens`` with the effect of removing each; a member of an ensemble is looked at on its own."""
    effects = {}
    for member, state in enumerate(states):
        scored, indices = score_removals(base, spec, state, examples)
        answers = scored.answers
        for row, index in enumerate(indices, start=1):
            difference, _ = statistics.paired(scored.losses[row], scored.losses[0])
            changed = None if answers is None else float(np.mean(answers[row] != answers[0]))
            effects[member, index] = {"removal": difference, "changed": changed}
    return [token.model_copy(update=effects[token.member, token.index]) for token in tokens]
