"""What the model says behind the prompt alone, without any text: the greedy continuation.

It is often no sentence. A prompt is learned for what it does to texts behind it; what it makes the model say by itself
is a glimpse (a prompt that still reads as its instruction goes on like it), not a translation.
"""

import torch
from torch import Tensor

from softprompt.base import FrozenLM
from softprompt.generate import Sampling, complete
from softprompt.inspection import Continuation, NextToken
from softprompt.objective import EVALUATION_TOKENS
from softprompt.prefix import PromptState, concatenated_prefix, make_prefix
from softprompt.probe.tokens import token_text
from softprompt.tokens import tokens_of
from softprompt.verbalizer import end_of_answer, plain_ids

TOKENS = 24
LIKELIEST = 5


@torch.no_grad()
def continuation(base: FrozenLM, state: PromptState) -> tuple[Continuation, str | None]:
    """What follows the prompt, and what follows nothing; and a remark if it is not the prompt quite alone."""
    if base.architecture == "encoder-decoder":
        remark = "an encoder-decoder model goes on in its decoder, behind the prompt and what ends a text"
        texts = [_completed(base, one, base.frame.back or plain_ids(base.tokenizer, "\n")) for one in (state, None)]
        return Continuation(text=texts[0], next=(), without=texts[1], without_next=()), remark
    if state.kind == "key_values":
        # they hold no hidden state to go on from, so something has to stand behind them
        remark = "keys and values have no last position to go on from: this follows a new line behind them"
        texts = [_completed(base, one, plain_ids(base.tokenizer, "\n")) for one in (state, None)]
        return Continuation(text=texts[0], next=(), without=texts[1], without_next=()), remark
    text, likeliest = _alone(base, state)
    bare, bare_likeliest = _alone(base, None)
    return Continuation(text=text, next=likeliest, without=bare, without_next=bare_likeliest), None


def _completed(base: FrozenLM, state: PromptState | None, text: tuple[int, ...] | list[int]) -> str:
    sampling = Sampling(max_new_tokens=TOKENS)
    return next(said for _, said, _ in complete(base, make_prefix(base, state), [text], sampling, EVALUATION_TOKENS))


def _alone(base: FrozenLM, state: PromptState | None) -> tuple[str, tuple[NextToken, ...]]:
    """Token by token behind the virtual tokens themselves; nothing if there are none and the model has no BOS."""
    embeddings = concatenated_prefix(base, state).embeddings[0]
    if not len(embeddings):
        return "", ()
    said: list[int] = []
    first: tuple[NextToken, ...] = ()
    end = end_of_answer(base.tokenizer)
    while len(said) < TOKENS:
        logits = _next(base, embeddings)
        if not said and not first:
            values, ids = logits.softmax(-1).topk(LIKELIEST)
            first = tuple(
                NextToken(token=token_text(base, token), probability=value)
                for token, value in zip(ids.tolist(), values.tolist(), strict=True)
            )
        token = int(logits.argmax())
        if token == end or (base.context_length is not None and len(embeddings) + 1 >= base.context_length):
            break
        said.append(token)
        embeddings = torch.cat([embeddings, base.embed(torch.tensor([token], device=base.device))])
    return tokens_of(base.tokenizer).text(said), first


def _next(base: FrozenLM, embeddings: Tensor) -> Tensor:
    """Logits ``[V]`` behind ``embeddings [W, H]``."""
    positions = torch.arange(len(embeddings), device=base.device)[None]
    hidden = base.run_backbone(inputs_embeds=embeddings[None], position_ids=positions, use_cache=False)
    return base.logits(hidden.last_hidden_state[0, -1:])[0]
