"""Log-probabilities of tokens, by the model's own numbers: before temperature, limits of sampling and grammars.

Shapes: ``N`` positions, ``V`` vocabulary, ``K`` likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import DataError
from softprompt.inference.scoring import LOGITS_CHUNK, check_finite
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_concatenated_prefix
from softprompt.prompts.state import PromptState

MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of a text, and what the model gave it.

    Attributes:
        token: its id.
        logprob: in nats; ``None`` for a token that nothing was read before.
        top: the likeliest tokens in its place, the likeliest first, with theirs.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def score_tokens(logits: Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[ScoredToken]:
    """Tokens ``[N]`` by logits ``[N, V]`` of their places, each with as many of the likeliest as ``tops [N]`` says."""
    scores = logits.float().log_softmax(-1)
    own = scores.gather(1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    likeliest = scores.topk(min(max(tops), scores.shape[1]), dim=-1)
    rows = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return [
        ScoredToken(token, value, tuple(zip(ids[:most], values[:most], strict=True)))
        for token, value, most, (ids, values) in zip(tokens, own, tops, rows, strict=True)
    ]


def score_text(
    base: FrozenLM,
    states: Sequence[PromptState],
    before: Sequence[int],
    tokens: Sequence[int],
    hidden: Tensor,
    top: int,
) -> list[ScoredToken]:
    """The tokens of a text behind a prompt, by hidden states ``[T, H]`` of the text (padding may follow).

    Args:
        states: the prompt, none for the bare model.
        before: BOS, if the text began with it: what the prompt has in front anyway. Then the first token of the text
            has a log-probability too; else the first one has none.
        top: likeliest tokens to tell in each place.

    Raises:
        DataError: the prompt is one behind which nothing tells of a first token.
    """
    found = [ScoredToken(token, None) for token in before or tokens[:1]]
    targets = list(tokens if before else tokens[1:])
    places = hidden[: len(tokens) - 1]
    if before:
        places = torch.cat([_read_prefix_end(base, states)[None].to(hidden), places])
    for start in range(0, len(targets), LOGITS_CHUNK):
        part = slice(start, start + LOGITS_CHUNK)
        logits = check_finite(base.logits(places[part]))
        found += score_tokens(logits, targets[part], [top] * len(targets[part]))
    return found


def _read_prefix_end(base: FrozenLM, states: Sequence[PromptState]) -> Tensor:
    """The hidden state ``[H]`` behind BOS and a prompt, from which the first token of a text follows."""
    if any(state.kind != "embeddings" for state in states):
        raise DataError(
            "behind a prompt of keys and values the first token of a text has no probability: leave BOS out"
        )
    (rows,) = make_concatenated_prefix(base, *(states or (None,))).embeddings
    hidden: Tensor = base.run_backbone(inputs_embeds=rows[None], use_cache=False).last_hidden_state
    return hidden[0, -1]
