"""Labels for examples of any mix of tasks in one forward pass: each scored with the label tokens of its own task."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.errors import BaseModelError, PromptFileError, SoftpromptError
from softprompt.inference.predictions import Prediction
from softprompt.inference.predictor import predict_labels
from softprompt.models.frozen_lm import FrozenLM
from softprompt.serving.engine.engine_requests import ScheduledExample, ServedPrompt
from softprompt.serving.engine.prefix_cache import PrefixCache


def score_labels(
    base: FrozenLM, prefixes: PrefixCache, questions: Sequence[ScheduledExample], token_budget: int
) -> list[Prediction | Exception | None]:
    """What each question is answered, ``None`` if more is to be asked of its example; one that fails is answered with
    why, and changes nothing for the others."""
    failing = prefixes.prepare(question.request.served for question in questions)
    sound = [question for question in questions if question.request.served.key not in failing]
    found = iter(_score_isolated(base, prefixes, sound, token_budget))
    return [
        error if (error := failing.get(question.request.served.key)) is not None else _predict(question, next(found))
        for question in questions
    ]


def _predict(question: ScheduledExample, scores: Tensor | Exception) -> Prediction | Exception | None:
    if isinstance(scores, Exception) or (whole := question.request.add_scores(question, scores)) is None:
        return scores if isinstance(scores, Exception) else None
    mean = whole.logsumexp(dim=0, keepdim=True) - math.log(len(whole))
    (prediction,) = predict_labels(question.request.served.spec, mean)
    read = question.request.read[question.index]
    return replace(prediction, index=question.index, prompt_tokens=read.tokens, cut=read.cut)


def _score_isolated(
    base: FrozenLM, prefixes: PrefixCache, questions: Sequence[ScheduledExample], token_budget: int
) -> list[Tensor | Exception]:
    """Scores as ``_score_batch``; what fails in a batch is asked again by itself."""
    found: Sequence[Tensor | Exception | None]
    try:
        found = _score_batch(base, prefixes, questions, token_budget) if questions else []
    except Exception as error:  # whatever it is, the others are not to suffer
        found = [None if len(questions) > 1 else error] * len(questions)
    if len(questions) == 1:
        return [make_not_finite_error(questions[0].request.served) if found[0] is None else found[0]]
    return [
        _score_isolated(base, prefixes, [question], token_budget)[0] if scores is None else scores
        for question, scores in zip(questions, found, strict=True)
    ]


def make_not_finite_error(served: ServedPrompt) -> SoftpromptError:
    """What is said of a prompt that makes the model give no numbers."""
    if not served.states:
        return BaseModelError(f"the base model gives numbers that are not finite for a text of '{served.key}'")
    return PromptFileError(
        f"the prompt '{served.key}' makes the model give numbers that are not finite: it is damaged or did not "
        "converge, learn it again or go back to another version"
    )


def _score_batch(
    base: FrozenLM, prefixes: PrefixCache, questions: Sequence[ScheduledExample], token_budget: int
) -> list[Tensor | None]:
    """What each question adds to the log-probabilities of its labels, behind each of the prompts that answer together;
    ``None`` where numbers are not finite."""
    prefix, first = prefixes.join(question.request.served for question in questions)
    members = [max(1, len(question.request.served.states)) for question in questions]
    items = [
        replace(item, example=number, prompt=first[question.request.served.key] + item.prompt)
        for number, question in enumerate(questions)
        for item in question.items
    ]
    scores = [
        torch.zeros(count, len(question.request.served.spec.labels))
        for count, question in zip(members, questions, strict=True)
    ]
    for chunk in batch_by_token_budget(items, token_budget):
        # rows behind one prompt stand together
        chunk.sort(key=lambda item: item.prompt)
        _add_scores(base, questions, chunk, prefix.scored(collate(chunk, base.device)), first, scores)
    return [score if score.isfinite().all() else None for score in scores]


def _add_scores(
    base: FrozenLM,
    questions: Sequence[ScheduledExample],
    chunk: Sequence[EncodedSequence],
    hidden: Tensor,
    first: dict[str, int],
    scores: Sequence[Tensor],
) -> None:
    """Add what the hidden states ``[N, H]`` of a chunk say of the labels, task by task."""
    positions: dict[str, list[tuple[int, int, int, int]]] = {}
    number = 0
    for item in chunk:
        key = questions[item.example].request.served.key
        for decision in item.decisions:
            positions.setdefault(key, []).append((number, decision, item.example, item.prompt - first[key]))
            number += 1
    for asked in positions.values():
        objective = questions[asked[0][2]].request.asking.objective
        rows, decisions, _, members = (torch.tensor(column, device=base.device) for column in zip(*asked, strict=True))
        added = objective.label_scores(hidden[rows], decisions, members).float().cpu()
        for (_, _, example, member), row in zip(asked, added, strict=True):
            scores[example][member] += row
