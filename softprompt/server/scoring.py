"""Labels for examples of any mix of tasks in one forward pass: each scored with the label tokens of its own task."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.base import FrozenLM
from softprompt.batch import Item, budgeted, collate
from softprompt.errors import BaseModelError, PromptFileError, SoftpromptError
from softprompt.predict import Prediction, likeliest
from softprompt.server.prefixes import Prefixes
from softprompt.server.requests import Question
from softprompt.server.work import Served


def answers(
    base: FrozenLM, prefixes: Prefixes, questions: Sequence[Question], token_budget: int
) -> list[Prediction | Exception]:
    """What each question is answered; one that fails is answered with why, and changes nothing for the others."""
    failing = prefixes.failing(question.request.served for question in questions)
    sound = [question for question in questions if question.request.served.key not in failing]
    found = iter(_isolated(base, prefixes, sound, token_budget))
    return [failing.get(question.request.served.key) or next(found) for question in questions]


def _isolated(
    base: FrozenLM, prefixes: Prefixes, questions: Sequence[Question], token_budget: int
) -> list[Prediction | Exception]:
    """As ``answers``; what fails in a batch is asked again by itself."""
    found: Sequence[Prediction | Exception | None]
    try:
        found = _answered(base, prefixes, questions, token_budget) if questions else []
    except Exception as error:  # whatever it is, the others are not to suffer
        found = [None if len(questions) > 1 else error] * len(questions)
    if len(questions) == 1:
        return [found[0] or not_finite(questions[0].request.served)]
    return [
        answer or _isolated(base, prefixes, [question], token_budget)[0]
        for question, answer in zip(questions, found, strict=True)
    ]


def not_finite(served: Served) -> SoftpromptError:
    """What is said of a prompt that makes the model give no numbers."""
    if not served.states:
        return BaseModelError(f"the base model gives numbers that are not finite for a text of '{served.key}'")
    return PromptFileError(
        f"the prompt '{served.key}' makes the model give numbers that are not finite: it is damaged or did not "
        "converge, learn it again or go back to another version"
    )


def _answered(
    base: FrozenLM, prefixes: Prefixes, questions: Sequence[Question], token_budget: int
) -> list[Prediction | None]:
    """Predictions; ``None`` where numbers are not finite."""
    prefix, first = prefixes.together(question.request.served for question in questions)
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
    for chunk in budgeted(items, token_budget):
        # rows behind one prompt stand together
        chunk.sort(key=lambda item: item.prompt)
        _add_scores(base, questions, chunk, prefix.scored(collate(chunk, base.device)), first, scores)
    found: list[Prediction | None] = []
    for question, score in zip(questions, scores, strict=True):
        mean = score.logsumexp(dim=0, keepdim=True) - math.log(len(score))
        (prediction,) = likeliest(question.request.served.spec, mean)
        read = question.request.read[question.index]
        told = replace(prediction, index=question.index, prompt_tokens=read.tokens, cut=read.cut)
        found.append(told if score.isfinite().all() else None)
    return found


def _add_scores(
    base: FrozenLM,
    questions: Sequence[Question],
    chunk: Sequence[Item],
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
        objective = questions[asked[0][2]].request.objective
        rows, decisions = (torch.tensor([one[place] for one in asked], device=base.device) for place in (0, 1))
        added = objective.label_scores(hidden[rows], decisions).float().cpu()
        for (_, _, example, member), row in zip(asked, added, strict=True):
            scores[example][member] += row
