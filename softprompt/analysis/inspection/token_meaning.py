"""Where virtual tokens lie among those of the vocabulary, and how far they have come from their start.

How near is near? In hundreds of dimensions everything is far from everything, so a cosine means little by itself. Each
virtual token's nearest neighbour is put beside what ordinary tokens have: the distance of a sample of vocabulary tokens
to their own nearest other token (as Khashabi et al. 2022, "Prompt Waywardness", warn: a readable neighbour is no
explanation of what a prompt does).

Shapes: ``V`` vocabulary, ``H`` embedding size, ``P`` virtual tokens, ``S`` sampled tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from softprompt.analysis.inspection.inspection_records import (
    Continuation,
    Neighbor,
    NextToken,
    Quantiles,
    VirtualToken,
    Vocabulary,
)
from softprompt.data.encoding.tokenization import safe_tokenizer
from softprompt.data.encoding.verbalizer import encode_plain
from softprompt.inference.generation import GenerationConfig, complete, end_token_ids
from softprompt.inference.scoring import EVALUATION_TOKENS
from softprompt.metrics.bootstrap import Floats
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_concatenated_prefix, make_prefix
from softprompt.prompts.state import PromptState

TOKENS = 24


LIKELIEST = 5


NEAREST = 5  # neighbours that are told
SAMPLED = 512  # ordinary tokens that set the scale
_ROWS = 8192  # of the vocabulary at a time


def describe_tokens(
    base: FrozenLM, states: Sequence[PromptState], starts: Sequence[PromptState] | None
) -> tuple[Vocabulary | None, list[VirtualToken]]:
    """Every virtual token, and the vocabulary's own scale; of keys and values, which lie elsewhere, only movement."""
    found: list[VirtualToken] = []
    vocabulary = None
    if states[0].kind == "embeddings":
        cloud = _Cloud(base)
        vocabulary = cloud.scale()
        for member, state in enumerate(states):
            found += cloud.beside(state.tensor, member)
    else:
        for member, state in enumerate(states):
            sizes = _flat(state).norm(dim=1).tolist()
            found += [VirtualToken(index=index, member=member, norm=size) for index, size in enumerate(sizes)]
    if starts is None:
        return vocabulary, found
    names: list[str | None] = [None] * len(found)
    if vocabulary is not None:
        names = [name for start in starts for name in cloud.names_of(start.tensor)]
    moves = [move for state, start in zip(states, starts, strict=True) for move in _moves(base, state, start)]
    return vocabulary, [
        token.model_copy(update={"moved": far, "start_cosine": cosine, "start_token": name})
        for token, (far, cosine), name in zip(found, moves, names, strict=True)
    ]


def token_text(base: FrozenLM, token: int) -> str:
    """A token as people read it, with the blank before it."""
    text = str(base.tokenizer.decode([token], clean_up_tokenization_spaces=False))
    return text if text.strip() and "\ufffd" not in text else str(base.tokenizer.convert_ids_to_tokens(token))


class _Cloud:
    """The vocabulary's embeddings as the first layer sees them, special and added tokens left out."""

    def __init__(self, base: FrozenLM) -> None:
        self._base = base
        left_out = {*base.tokenizer.all_special_ids, *base.tokenizer.added_tokens_decoder}
        known = min(base.vocabulary_size, len(base.tokenizer))
        self._ids = torch.tensor([token for token in range(known) if token not in left_out], device=base.device)
        self._norms = np.sort(torch.cat([rows.norm(dim=1).cpu() for _, rows in self._rows()]).double().numpy())
        chosen = np.random.default_rng(0).permutation(len(self._ids))[:SAMPLED]
        ids = self._ids[torch.from_numpy(np.sort(chosen)).to(base.device)]
        cosines, distances, _, _ = self._nearest(self._embedded(ids), 1, ids)
        self._cosines, self._distances = (np.sort(found[:, 0].double().numpy()) for found in (cosines, distances))

    def scale(self) -> Vocabulary:
        return Vocabulary(
            sampled=len(self._cosines),
            cosine=_quantiles(self._cosines),
            distance=_quantiles(self._distances),
            norm=_quantiles(self._norms),
        )

    def beside(self, tokens: Tensor, member: int) -> Iterator[VirtualToken]:
        """``tokens``: ``[P, H]``."""
        tokens = tokens.to(self._base.device).float()
        cosines, distances, by_cosine, by_distance = self._nearest(tokens, NEAREST)
        norms = tokens.norm(dim=1).cpu().double().numpy()
        smaller = np.searchsorted(self._norms, norms) / len(self._norms)
        nearer = 1 - np.searchsorted(self._cosines, cosines[:, 0].double().numpy(), side="right") / len(self._cosines)
        closer = np.searchsorted(self._distances, distances[:, 0].double().numpy()) / len(self._distances)
        for index in range(len(tokens)):
            yield VirtualToken(
                index=index,
                member=member,
                norm=float(norms[index]),
                norm_share=float(smaller[index]),
                by_cosine=self._named(by_cosine[index], cosines[index]),
                by_distance=self._named(by_distance[index], distances[index]),
                nearer_by_cosine=float(nearer[index]),
                nearer_by_distance=float(closer[index]),
            )

    def names_of(self, tokens: Tensor) -> list[str | None]:
        """The vocabulary token that each of ``tokens [P, H]`` is, where it is one."""
        tokens = tokens.to(self._base.device).float()
        _, distances, _, nearest = self._nearest(tokens, 1)
        same = (distances[:, 0] <= 1e-3 * tokens.norm(dim=1).cpu()).tolist()
        return [
            token_text(self._base, int(token)) if equal else None
            for token, equal in zip(nearest[:, 0].tolist(), same, strict=True)
        ]

    def _named(self, ids: Tensor, values: Tensor) -> tuple[Neighbor, ...]:
        return tuple(
            Neighbor(token=token_text(self._base, token), token_id=token, value=value)
            for token, value in zip(ids.tolist(), values.tolist(), strict=True)
        )

    @torch.no_grad()
    def _nearest(self, queries: Tensor, most: int, own: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of ``queries [S, H]``: highest cosines and least distances ``[S, most]``, then the token ids of each.

        ``own``: the token that each query is, which is no neighbour of itself.
        """
        most = min(most, len(self._ids) - (own is not None))
        best: list[Tensor] = []
        for place, score in enumerate((_cosines, _negative_distances)):
            values = queries.new_full((len(queries), most), float("-inf"))
            ids = torch.zeros_like(values, dtype=torch.long)
            for chunk, rows in self._rows():
                scores = score(queries, rows)
                if own is not None:
                    scores = scores.masked_fill(own[:, None] == chunk[None], float("-inf"))
                joined = torch.cat([values, scores], dim=1)
                names = torch.cat([ids, chunk.expand(len(queries), -1)], dim=1)
                values, where = joined.topk(most, dim=1)
                ids = names.gather(1, where)
            if place:
                # differences of squares lose digits where tokens are close
                values = -(queries[:, None] - self._embedded(ids)).norm(dim=2)
            best += [values if not place else -values, ids]
        return best[0].cpu(), best[2].cpu(), best[1].cpu(), best[3].cpu()

    @torch.no_grad()
    def _rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and embeddings ``[rows, H]``, chunk by chunk."""
        for chunk in self._ids.split(_ROWS):
            yield chunk, self._embedded(chunk)

    @torch.no_grad()
    def _embedded(self, ids: Tensor) -> Tensor:
        return self._base.embed(ids).float()


def _cosines(queries: Tensor, rows: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    return unit(queries, dim=1) @ unit(rows, dim=1).T


def _negative_distances(queries: Tensor, rows: Tensor) -> Tensor:
    return 2 * queries @ rows.T - rows.square().sum(1)[None] - queries.square().sum(1)[:, None]


def _moves(base: FrozenLM, state: PromptState, start: PromptState) -> list[tuple[float, float]]:
    """How far each virtual token has come, and the cosine between its end and its start."""
    now, before = _flat(state), _flat(start)
    steps = (now - before).norm(dim=1)
    if state.kind == "embeddings":
        far = steps / (base.embedding_std * now.shape[1] ** 0.5)
    else:
        far = steps / before.norm(dim=1).clamp(min=1e-12)
    cosines = torch.nn.functional.cosine_similarity(now, before, dim=1)
    return list(zip(far.tolist(), cosines.tolist(), strict=True))


def _flat(state: PromptState) -> Tensor:
    """``[P, numbers of a virtual token]``, of all layers."""
    tensors = [tensor.detach().cpu().double() for tensor in state.tensors]
    if state.kind == "embeddings":
        return tensors[0]
    return torch.cat([tensor.permute(2, 0, 1, 3).flatten(1) for tensor in tensors], dim=1)


def _quantiles(ordered: Floats) -> Quantiles:
    least, p5, median, p95, most = np.quantile(ordered, (0, 0.05, 0.5, 0.95, 1)).tolist()
    return Quantiles(least=least, p5=p5, median=median, p95=p95, most=most)


@torch.no_grad()
def continue_prompt(base: FrozenLM, state: PromptState) -> tuple[Continuation, str | None]:
    """What follows the virtual tokens, and what follows nothing; and a remark if these are not quite alone.

    In chats both stand where the virtual tokens do, and nothing behind them.
    """
    state = replace(state, placement=replace(state.placement, behind=()))
    nothing = None
    if state.placement.before:
        nothing = PromptState("embeddings", (torch.zeros(0, base.embedding_size),), state.placement)
    if base.architecture == "encoder-decoder":
        remark = "an encoder-decoder model goes on in its decoder, behind the prompt and what ends a text"
        texts = [
            _completed(base, one, base.special_tokens.suffix or encode_plain(base.tokenizer, "\n"))
            for one in (state, nothing)
        ]
        return Continuation(text=texts[0], next=(), without=texts[1], without_next=()), remark
    if state.kind == "key_values":
        # they hold no hidden state to go on from, so something has to stand behind them
        remark = "keys and values have no last position to go on from: this follows a new line behind them"
        texts = [_completed(base, one, encode_plain(base.tokenizer, "\n")) for one in (state, nothing)]
        return Continuation(text=texts[0], next=(), without=texts[1], without_next=()), remark
    text, likeliest = _alone(base, state)
    bare, bare_likeliest = _alone(base, nothing)
    return Continuation(text=text, next=likeliest, without=bare, without_next=bare_likeliest), None


def _completed(base: FrozenLM, state: PromptState | None, text: tuple[int, ...] | list[int]) -> str:
    generation = GenerationConfig(max_new_tokens=TOKENS)
    return next(said for _, said, _ in complete(base, make_prefix(base, state), [text], generation, EVALUATION_TOKENS))


def _alone(base: FrozenLM, state: PromptState | None) -> tuple[str, tuple[NextToken, ...]]:
    """Token by token behind the virtual tokens themselves; nothing if there are none and the model has no BOS."""
    embeddings = make_concatenated_prefix(base, state).embeddings[0]
    if not len(embeddings):
        return "", ()
    said: list[int] = []
    first: tuple[NextToken, ...] = ()
    ends = end_token_ids(base)
    while len(said) < TOKENS:
        logits = _next(base, embeddings)
        if not said and not first:
            values, ids = logits.softmax(-1).topk(LIKELIEST)
            first = tuple(
                NextToken(token=token_text(base, token), probability=value)
                for token, value in zip(ids.tolist(), values.tolist(), strict=True)
            )
        token = int(logits.argmax())
        if token in ends or (base.context_length is not None and len(embeddings) + 1 >= base.context_length):
            break
        said.append(token)
        embeddings = torch.cat([embeddings, base.embed(torch.tensor([token], device=base.device))])
    return safe_tokenizer(base.tokenizer).decode(said), first


def _next(base: FrozenLM, embeddings: Tensor) -> Tensor:
    """Logits ``[V]`` behind ``embeddings [W, H]``."""
    positions = torch.arange(len(embeddings), device=base.device)[None]
    hidden = base.run_backbone(inputs_embeds=embeddings[None], position_ids=positions, use_cache=False)
    return base.logits(hidden.last_hidden_state[0, -1:])[0]
