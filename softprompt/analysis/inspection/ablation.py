"""A prompt with some of its virtual tokens only, and the prompt as it was before it learned."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from softprompt.analysis.inspection.inspection_records import VirtualToken
from softprompt.analysis.inspection.score_records import PromptScores, score_states
from softprompt.config import TrainConfig
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import SoftpromptError
from softprompt.metrics import hypothesis_tests
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import METHODS, fold_method, make_method
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.references import is_reference
from softprompt.training.data_loader import BatchSampler
from softprompt.training.initialization import initialize
from softprompt.training.training_objective import make_encoders

_ELSEWHERE = "://"  # of a URL: a manifest of somebody else must not make this machine call another


def keep_tokens(state: PromptState, indices: Sequence[int]) -> PromptState | None:
    """The virtual tokens at ``indices``, in that order; ``None``, which is no prompt, if there are none."""
    if not indices:
        return None
    chosen = torch.tensor(list(indices), device=state.tensors[0].device)
    return replace(state, tensors=tuple(tensor.index_select(-2, chosen) for tensor in state.tensors))


def leave_out_token(state: PromptState, index: int) -> PromptState | None:
    """All virtual tokens but one."""
    return keep_tokens(state, [other for other in range(state.length) if other != index])


def rebuild_starts(prompt: Prompt, base: FrozenLM, train: Sequence[Example] | None) -> list[PromptState] | str:
    """What each of the prompt's states was before it learned, made again from its settings; or why that cannot be.

    Args:
        train: the training examples; ``None`` if those at hand are not the ones it learned from.
    """
    if prompt.method not in METHODS:
        return f"its method, '{prompt.method}', is none that softprompt can begin again"
    population = [one for one in prompt.training.get("population") or () if not one.get("failed")]
    settings: Sequence[Mapping[str, Any]] = [prompt.training]
    if len(prompt.states) > 1:
        settings = [{**prompt.training, **(one.get("settings") or {})} for one in population]
    if len(settings) != len(prompt.states):
        return "its manifest does not tell how each of its prompts was learned"
    starts = []
    for state, own in zip(prompt.states, settings, strict=True):
        start = _start(prompt, state, own, base, train)
        if isinstance(start, str):
            return start
        starts.append(start)
    return starts


def select_seen_rows(prompt: Prompt, base: FrozenLM, task: Task) -> list[Example] | None:
    """The training rows that a prompt has learned from up to its best step; ``None`` if its manifest cannot tell."""
    known = {name: value for name, value in prompt.training.items() if name in TrainConfig.model_fields}
    steps = prompt.training.get("best_step")
    if prompt.method not in METHODS or not isinstance(steps, int) or prompt.data.get("streamed"):
        return None
    try:
        config = TrainConfig.build(**known)
        if "distillation" in prompt.training:
            return list(sample_examples(task.train, config.steps * config.batch_size))
        soft = prompt.states[0].label_rows is not None
        (encoder,) = make_encoders(base, prompt.spec, [config.length], soft_verbalizer=soft).values()
        items = encoder.training_items(task.train)
    except SoftpromptError:
        return None
    order = BatchSampler([len(item.ids) for item in items], config)
    seen = {index for step in range(steps) for index in order.batch(step)}
    return [task.train[index] for index in sorted(seen)]


def _start(
    prompt: Prompt, state: PromptState, settings: Mapping[str, Any], base: FrozenLM, train: Sequence[Example] | None
) -> PromptState | str:
    known = {name: value for name, value in settings.items() if name in TrainConfig.model_fields}
    if "init" not in settings:
        return "its manifest does not say how it was initialised"
    try:
        config = TrainConfig.build(**known)
        name, _, place = config.init.partition(":")
        if name == "teacher":
            return "it began at a text of its teacher, which is not saved with it"
        if name == "examples" and train is None:
            return "it began at solved training examples: give the data that it was learned on (--data)"
        if name == "prompt" and (_ELSEWHERE in place or (is_reference(place) and "#" not in place)):
            return f"it began at another prompt, '{place}', which is not looked for: pull it and compare the two"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            first = initialize(config.init, base, prompt.spec, config.length, config.seed, train or ())
            unit = base.embedding_std if config.rate_unit == "embedding-std" else 1.0
            start = fold_method(make_method(config.method, config.method_options, base, first, unit, config.seed))
    except SoftpromptError as error:
        return f"its start cannot be made again: {error}"
    kept = _kept(prompt, start.length)
    whole = start if kept is None else keep_tokens(start, kept)
    if whole is None or [t.shape for t in whole.tensors] != [t.shape for t in state.tensors]:
        return "the start that its settings give has another size"
    return replace(whole, tensors=tuple(tensor.cpu() for tensor in whole.tensors))


def _kept(prompt: Prompt, length: int) -> list[int] | None:
    """Which virtual tokens of its start a pruned prompt still has."""
    pruned = prompt.training.get("pruned")
    kept = pruned.get("kept") if isinstance(pruned, Mapping) else None
    if not isinstance(kept, list) or not all(type(index) is int and 0 <= index < length for index in kept):
        return None
    return kept


def score_ablations(
    base: FrozenLM, spec: TaskSpec, state: PromptState, examples: Sequence[Example]
) -> tuple[PromptScores, list[int]]:
    """Scores of the whole prompt (row 0), then without each of its virtual tokens; and which these are."""
    indices = list(range(state.length))
    return score_states(base, spec, [state, *(leave_out_token(state, index) for index in indices)], examples), indices


def add_ablations(
    tokens: Sequence[VirtualToken],
    base: FrozenLM,
    spec: TaskSpec,
    states: Sequence[PromptState],
    examples: Sequence[Example],
) -> list[VirtualToken]:
    """``tokens`` with the effect of removing each; a member of an ensemble is looked at on its own."""
    effects = {}
    for member, state in enumerate(states):
        scored, indices = score_ablations(base, spec, state, examples)
        answers = scored.answers
        for row, index in enumerate(indices, start=1):
            difference, _ = hypothesis_tests.paired_mean_difference(scored.losses[row], scored.losses[0])
            changed = None if answers is None else float(np.mean(answers[row] != answers[0]))
            effects[member, index] = {"ablation": difference, "changed": changed}
    return [token.model_copy(update=effects[token.member, token.index]) for token in tokens]
