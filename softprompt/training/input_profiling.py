"""Measures what a profile holds: tokens of texts, and hidden states where the answer begins."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.examples import Example
from softprompt.data.split_assignment import sample_examples
from softprompt.data.task import Task, TaskSpec
from softprompt.inference.predictions import Prediction
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.metrics.bootstrap import Floats
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.prompts.text_encoder import make_text_encoder
from softprompt.store.input_profile import (
    FREQUENT,
    Distribution,
    HiddenProfile,
    InputProfile,
    TokenShare,
    choose_coordinates,
    encode_ids,
)

TEXTS = 2000  # rows whose tokens are counted, at most
STATES = 400  # rows that are read for their hidden states, at most: a forward pass each


def count_rare_tokens(ids: Sequence[int], known: frozenset[int]) -> int:
    """How many of a text's tokens are not among those known."""
    return sum(one not in known for one in ids)


def profile_inputs(
    base: FrozenLM,
    spec: TaskSpec,
    states: Sequence[PromptState],
    task: Task,
    predictions: Sequence[Prediction] = (),
) -> InputProfile | None:
    """What the prompt ``states`` sees of a task's validation rows; ``None`` where there are none.

    Args:
        predictions: its answers to validation rows, for labels and confidence (classification).
    """
    rows = sample_examples(task.validation, TEXTS)
    if not rows:
        return None
    encoder = make_text_encoder(base, spec, states)
    learned = encoder.encode_texts(sample_examples(task.train, TEXTS))
    counts = Counter(token for ids in learned for token in ids)
    # the order decides between tokens that are as frequent
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[:FREQUENT]
    known, texts = frozenset(frequent), encoder.encode_texts(rows)
    answered = [one for one in predictions if one.probabilities]
    hidden, size = compute_hidden_states(base, spec, states, sample_examples(rows, STATES))
    return InputProfile(
        examples=len(rows),
        frequent=encode_ids(frequent),
        lengths=Distribution.of([len(ids) for ids in texts]),
        rare=TokenShare.of([count_rare_tokens(ids, known) for ids in texts], [len(ids) for ids in texts]),
        labels=_label_counts(spec, answered),
        confidence=Distribution.of([max((one.probabilities or {}).values()) for one in answered]) if answered else None,
        hidden=HiddenProfile.of(hidden, size) if len(hidden) >= 3 and np.isfinite(hidden).all() else None,
    )


@torch.no_grad()
def compute_hidden_states(
    base: FrozenLM, spec: TaskSpec, states: Sequence[PromptState], examples: Sequence[Example]
) -> tuple[Floats, int]:
    """Chosen coordinates ``[n, K]`` of the last hidden state where the answer to each example begins, and its size.

    Of several prompts that answer together, behind the first.
    """
    encoder = make_text_encoder(base, spec, states)
    prefix = make_prefix(base, states[0])
    found: dict[int, Floats] = {}
    size = 0
    for chunk in batch_by_token_budget(encoder.question_items(examples), EVALUATION_TOKENS):
        hidden = prefix.scored(collate(chunk, base.device))
        size = hidden.shape[1]
        chosen = hidden.float().cpu()[:, list(choose_coordinates(size))].double().numpy()
        found |= {item.example: row for item, row in zip(chunk, chosen, strict=True)}
    return np.stack([found[index] for index in range(len(examples))]), size


def _label_counts(spec: TaskSpec, answered: Sequence[Prediction]) -> dict[str, int]:
    counts = Counter(str(one.label) for one in answered)
    return {label: counts[label] for label in spec.labels} if answered else {}
