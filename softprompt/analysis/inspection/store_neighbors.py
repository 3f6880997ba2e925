"""A prompt among the others of a store: who is like whom, and which would be a start for its task."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from softprompt.analysis.inspection.inspection_records import StartCandidate, StoreNeighbors
from softprompt.analysis.inspection.score_records import score_states
from softprompt.data.examples import Example
from softprompt.metrics import hypothesis_tests
from softprompt.metrics.scores import Mean
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import load_prompt
from softprompt.store.similarity import measure_similarity, rank_similar

MOST = 24  # prompts in the matrix: the most similar ones
TRIED = 8  # whose loss on the task is measured


def compare_with_store(
    base: FrozenLM, prompt: Prompt, place: str, store: Path, examples: Sequence[Example]
) -> StoreNeighbors:
    """The matrix of similarities, and the loss on ``examples`` under other prompts, as they are, in the same batches.

    Raises:
        ConfigError: no such folder, or no saved prompts in it but ``prompt``.
        PromptFileError: one cannot be read.
    """
    ranked = rank_similar(prompt, store)
    comparable = [one for one in ranked if one.reason is None]
    shown = comparable[:MOST]
    prompts = [prompt, *(load_prompt(one.folder) for one in shown)]
    matrix = [[1.0] * len(prompts) for _ in prompts]
    for i, j in combinations(range(len(prompts)), 2):
        found = measure_similarity(prompts[i], prompts[j])
        assert not isinstance(found, str), "all are of one base and kind"
        matrix[i][j] = matrix[j][i] = found[0]
    losses: dict[Path, Mean] = {}
    own = None
    tried = [one for one in shown if one.start][:TRIED]
    if examples and len(prompt.states) == 1:
        others = [load_prompt(one.folder).state for one in tried]
        if prompt.spec.chat is not None:
            others = [replace(one, placement=prompt.state.placement) for one in others]
        states = [prompt.state, *others]
        scored = score_states(base, prompt.spec, states, examples)
        own, *means = (hypothesis_tests.bootstrap_mean(row) for row in scored.losses)
        losses = {one.folder: mean for one, mean in zip(tried, means, strict=True)}
    starts = [
        StartCandidate(
            place=str(one.folder),
            average_tokens=one.average_tokens or 0.0,
            same_start=one.same_start,
            loss=losses.get(one.folder),
            options=one.start,
        )
        for one in shown
        if one.start
    ]
    starts.sort(key=lambda one: (one.loss is None, one.loss.value if one.loss else -one.average_tokens))
    return StoreNeighbors(
        names=(place, *(str(one.folder) for one in shown)),
        matrix=tuple(map(tuple, matrix)),
        starts=tuple(starts),
        own_loss=own,
        left_out=len(ranked) - len(shown),
    )
