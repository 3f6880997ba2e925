"""What is learned and what is scored: hidden states at the scored positions to losses and label probabilities.

The output layer of a small model holds most of its parameters, so it is used at the scored positions only, and for
classification only in the rows of label tokens. Shapes: ``N`` positions, ``H`` hidden, ``V`` vocabulary, ``R`` rows,
``D`` decisions, ``C`` labels.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from softprompt.data.encoding.batching import batch_by_token_budget, collate
from softprompt.data.encoding.encoder import Batch, EncodedSequence
from softprompt.data.encoding.verbalizer import Verbalizer
from softprompt.errors import NotFiniteError
from softprompt.inference.reading_progress import track
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.inline_prefix import ScoringPrefix
from softprompt.prompts.prefix import Prefix
from softprompt.prompts.state import PromptState

# padded tokens of a forward pass without gradient: more of them fall out of the processor's cache
EVALUATION_TOKENS = 2048

LOGITS_CHUNK = 64  # positions whose logits over the whole vocabulary are held at once

LEARNED_CHUNK = 256  # positions whose logits over the whole vocabulary are held at once where the output layer learns


def count_tokens(items: Sequence[EncodedSequence]) -> int:
    """Of all items, those of prompts left out."""
    return sum(len(item.ids) for item in items)


def learning_tokens(budget: int, *, on_cpu: bool) -> int:
    """Padded tokens of a forward pass with gradient, at most: on a CPU, more fall out of its cache too, and a second
    pass costs the prompt's few rows."""
    return min(budget, EVALUATION_TOKENS) if on_cpu else budget


class AnswerScorer:
    """Losses and scores of one task on one base model."""

    def __init__(
        self, base: FrozenLM, verbalizer: Verbalizer | None, states: Sequence[PromptState | None] = ()
    ) -> None:
        """``verbalizer`` is ``None`` for generation; ``states``: as for ``behind``."""
        self.base, self.verbalizer = base, verbalizer
        self._label_rows = list_label_rows(states)
        if verbalizer is not None:
            self._rows = torch.tensor(verbalizer.rows, device=base.device)
            column = {token: index for index, token in enumerate(verbalizer.rows)}
            # [D, R]: which rows a decision chooses among; [D, C]: the one that each label takes, or -1
            allowed = torch.zeros(len(verbalizer.decisions), len(verbalizer.rows), dtype=torch.bool)
            taken = torch.full((len(verbalizer.decisions), len(verbalizer.sequences)), -1)
            for d, decision in enumerate(verbalizer.decisions):
                allowed[d, [column[token] for token in decision.choices]] = True
                labels, choices = [*decision.choice_of_label], decision.choice_of_label.values()
                taken[d, labels] = torch.tensor([column[decision.choices[choice]] for choice in choices])
            self._allowed, self._taken = allowed.to(base.device), taken.to(base.device)

    def behind(self, states: Sequence[PromptState | None]) -> Self:
        """The same task behind these prompts, whose labels are learned if they say so: of a batch, in their order."""
        rows = list_label_rows(states)
        if not rows and not self._label_rows:
            return self
        other = copy.copy(self)
        other._label_rows = rows
        return other

    def count(self, items: Sequence[EncodedSequence]) -> int:
        """What a mean loss of ``items`` is over: examples for classification, target tokens for generation."""
        return sum(len(item.targets) for item in items) if self.verbalizer is None else len(items)

    def losses(self, prefix: ScoringPrefix, batch: Batch) -> Tensor:
        """Negative log-likelihood (nats) of each of the batch's targets ``[N]`` behind ``prefix``."""
        return self.losses_of(prefix.scored(batch), batch.targets, batch.decisions, batch.which[batch.row])

    def losses_of(self, hidden: Tensor, targets: Tensor, decisions: Tensor, which: Tensor | None = None) -> Tensor:
        """Negative log-likelihood (nats) of ``targets [N]`` at hidden states ``[N, H]`` that ask ``decisions [N]``.

        ``which [N]``: the prompt that each stands behind; the first one if not given.
        """
        if self.verbalizer is None:
            if any(weight.requires_grad for weight in self.base.model.get_output_embeddings().parameters()):
                return self._recomputed_losses(hidden, targets)

            def cross_entropy(logits: Tensor, positions: slice) -> Tensor:
                return torch.nn.functional.cross_entropy(logits, targets[positions], reduction="none")

            return vocabulary_losses(hidden, self.base, cross_entropy)
        columns = torch.searchsorted(self._rows, targets)
        return -self.decision_log_probabilities(hidden, decisions, which).gather(1, columns[:, None])[:, 0]

    def _recomputed_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy over the whole vocabulary, for an output layer that learns: its logits are computed twice."""
        from torch.utils.checkpoint import checkpoint

        def losses_of_chunk(chunk: Tensor, target: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(self.base.logits(chunk), target, reduction="none")

        # each chunk leaves a gradient as large as the layer: few of them
        chunks = zip(hidden.split(LEARNED_CHUNK), targets.split(LEARNED_CHUNK), strict=True)
        return torch.cat([checkpoint(losses_of_chunk, *chunk, use_reentrant=False) for chunk in chunks])

    @torch.no_grad()
    def label_log_probabilities(
        self, prefix: Prefix, items: Sequence[EncodedSequence], *, learning: bool = False
    ) -> Tensor:
        """Log-probabilities of the labels ``[examples, C]`` (float32, CPU) from ``Encoder.scoring_items``.

        Args:
            learning: give numbers that are not finite too: a run that learns ends with its own words.

        Raises:
            NotFiniteError: a row has no numbers; the first label would be its likeliest, whatever it is.
        """
        assert self.verbalizer is not None
        examples = max(item.example for item in items) + 1
        scores = torch.zeros(examples, len(self.verbalizer.sequences))
        turns = self.base.processes.take_turns(list(batch_by_token_budget(items, EVALUATION_TOKENS)))
        for chunk in track(turns, count_tokens):
            batch = collate(chunk, self.base.device)
            hidden = prefix.scored(batch)
            example = torch.tensor([item.example for item in chunk])[batch.row.cpu()]
            scores.index_add_(0, example, self.label_scores(hidden, batch.decisions, batch.which[batch.row]).cpu())
        scores = self.base.processes.sum(scores)
        return scores if learning else check_finite(scores)

    def condition_on_decisions(self, labels: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
        """What log-probabilities of labels ``[N, C]`` say of ``decisions [N]``.

        Returns:
            Log-probabilities ``[N, R]`` of the choices (-inf: not a choice), and the probability ``[N]`` of coming by.
        """
        taken = self._taken[decisions].to(labels.device)
        columns, coming = taken.clamp(min=0), labels.masked_fill(taken < 0, -math.inf)
        # sums relative to the likeliest label of each choice: where all are unlikely, their ratios still count
        none = labels.new_full((len(labels), len(self._rows)), -math.inf)
        most = none.scatter_reduce(1, columns, coming, "amax")
        parts = (coming - most.gather(1, columns)).exp().masked_fill(taken < 0, 0.0)
        choices = most + torch.zeros_like(none).scatter_add(1, columns, parts).log()
        reached = choices.logsumexp(dim=1)
        return choices - reached[:, None], reached.exp()

    def apply_temperature(self, labels: Tensor, temperature: float) -> Tensor:
        """Log-probabilities of labels ``[n, C]`` with the logits of every decision divided by ``temperature``."""
        if temperature == 1:
            return labels
        assert self.verbalizer is not None
        changed = torch.zeros_like(labels)
        for index in range(len(self.verbalizer.decisions)):
            decision = torch.full((len(labels),), index, device=self._taken.device)
            choices = (self.condition_on_decisions(labels, decision)[0] / temperature).log_softmax(-1)
            taken = self._taken[index].to(labels.device).expand_as(labels)
            changed += choices.gather(1, taken.clamp(min=0)).masked_fill(taken < 0, 0.0)
        return changed

    def label_scores(self, hidden: Tensor, decisions: Tensor, which: Tensor | None = None) -> Tensor:
        """What hidden states ``[N, H]`` that ask ``decisions [N]`` add to each label's log-probability: ``[N, C]``."""
        taken = self._taken[decisions]
        passed = self.decision_log_probabilities(hidden, decisions, which).gather(1, taken.clamp(min=0))
        return passed.masked_fill(taken < 0, 0.0)

    def decision_log_probabilities(self, hidden: Tensor, decisions: Tensor, which: Tensor | None = None) -> Tensor:
        """Hidden states ``[N, H]`` that ask ``decisions [N]`` to log-probabilities ``[N, R]`` (-inf: not a choice)."""
        if self._label_rows:
            return self._learned_label_logits(hidden, which).log_softmax(-1)
        logits = self.base.logits(hidden, self._rows)
        return logits.masked_fill(~self._allowed[decisions], float("-inf")).log_softmax(-1)

    def _learned_label_logits(self, hidden: Tensor, which: Tensor | None) -> Tensor:
        """``[N, C]``, by the labels of the prompt that each hidden state stands behind."""
        if which is None or len(self._label_rows) == 1:
            return self.base.row_logits(hidden, self._label_rows[0])
        logits = hidden.new_zeros(len(hidden), len(self._label_rows[0]), dtype=torch.float32)
        for index in which.unique().tolist():
            own = (which == index).nonzero()[:, 0]
            logits = logits.index_copy(0, own, self.base.row_logits(hidden[own], self._label_rows[index]))
        return logits


def list_label_rows(states: Sequence[PromptState | None]) -> tuple[Tensor, ...]:
    """The learned labels ``[C, H]`` of each prompt; none where labels are words. All are of one kind."""
    return tuple(state.label_rows for state in states if state is not None and state.label_rows is not None)


def check_finite(scores: Tensor) -> Tensor:
    """``scores [n, ...]``; raises NotFiniteError with the first row that has one that is not finite."""
    good = scores.isfinite().flatten(1).all(dim=1)
    if not good.all():
        raise NotFiniteError(int(good.logical_not().nonzero()[0]))
    return scores


def kl_divergence(target: Tensor, student: Tensor) -> Tensor:
    """Kullback-Leibler divergence (nats) ``[N]`` of distributions ``student`` from ``target``.

    Both are log-probabilities ``[N, R]``. What has no probability in ``target`` (-inf) adds nothing.
    """
    choices = target > -math.inf
    change = torch.where(choices, target - student.masked_fill(~choices, 0.0), 0.0)
    return (target.exp() * change).sum(dim=1)


def vocabulary_losses(hidden: Tensor, base: FrozenLM, losses_of: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Losses ``[N]`` over the whole vocabulary at hidden states ``[N, H]``, in little memory.

    Args:
        losses_of: from logits ``[n, V]`` and the slice of positions that they are of to losses ``[n]``.
    """
    losses: Tensor = _VocabularyLosses.apply(hidden, base, losses_of)  # type: ignore[no-untyped-call]
    return losses


class _VocabularyLosses(torch.autograd.Function):
    """Losses over the whole vocabulary of each position, in chunks of positions.

    The gradient with respect to the hidden states is taken chunk by chunk in the forward pass (the output layer is
    frozen, so nothing else needs one): memory holds ``chunk x V`` logits instead of ``N x V``.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, base: FrozenLM, losses_of: Callable[[Tensor, slice], Tensor]) -> Tensor:
        losses, gradients = [], []
        # one chunk at least, of a pass that asks for nothing
        for start in range(0, max(1, len(hidden)), LOGITS_CHUNK):
            positions = slice(start, min(start + LOGITS_CHUNK, len(hidden)))
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = hidden[positions].detach().requires_grad_(ctx.needs_input_grad[0])
                loss = losses_of(base.logits(leaf), positions)
                total = loss.sum()
            losses.append(loss.detach())
            if ctx.needs_input_grad[0]:
                gradients.append(torch.autograd.grad(total, leaf)[0])
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0][:, None].to(gradient.dtype), None, None
