"""Log-probabilities of a text's tokens equal those of plain transformers."""

import pytest
import torch
from helpers.tiny_models import plain_logits, random_prompt, tiny_base
from torch import Tensor

from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.errors import DataError
from softprompt.inference.decoding_batch import start_decoding
from softprompt.inference.token_logprobs import ScoredToken, score_text, score_tokens
from softprompt.prompts.prefix import compute_keys_and_values, make_prefix
from softprompt.prompts.state import PromptState

SHARING = ("llama", "gemma3", "gpt2", "bloom", "mpt")


def reference(rows: Tensor, targets: list[int], top: int) -> list[ScoredToken]:
    found = []
    for row, target in zip(rows.float().log_softmax(-1), targets, strict=True):
        values, ids = row.topk(top)
        found.append(ScoredToken(target, float(row[target]), tuple(zip(ids.tolist(), values.tolist(), strict=True))))
    return found


def assert_close(found: list[ScoredToken], expected: list[ScoredToken]) -> None:
    assert [one.token for one in found] == [one.token for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        mine, theirs = [one.logprob, *dict(one.top).values()], [other.logprob, *dict(other.top).values()]
        assert mine == pytest.approx(theirs, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", SHARING)
def test_a_text_behind_virtual_tokens(family: str) -> None:
    base = tiny_base(family)
    prompt = random_prompt(base, 5).detach()
    state = PromptState.of_embeddings(prompt)
    ids = list(base.tokenizer("what is the film about? a great story", add_special_tokens=False).input_ids)
    other = EncodedSequence(1, tuple(ids[:3]), ())
    batch = start_decoding(make_prefix(base, state), [EncodedSequence(0, tuple(ids), ()), other])
    assert batch.texts is not None
    rows = plain_logits(base, prompt, ids)
    found = score_text(base, [state], (), ids, batch.texts[0], 3)
    assert found[0] == ScoredToken(ids[0], None)
    assert_close(found[1:], reference(rows[:-1], ids[1:], 3))
    short = score_text(base, [state], (), ids[:3], batch.texts[1], 3)
    assert_close(short[1:], reference(rows[:2], ids[1:3], 3))


@torch.no_grad()
@pytest.mark.parametrize("prompted", [True, False])
def test_the_first_token_behind_bos(prompted: bool) -> None:
    base = tiny_base("llama")
    prompt = random_prompt(base, 4).detach()
    states = [PromptState.of_embeddings(prompt)] if prompted else []
    ids = list(base.tokenizer("a good film", add_special_tokens=False).input_ids)
    batch = start_decoding(make_prefix(base, *(states or [None])), [EncodedSequence(0, tuple(ids), ())])
    assert batch.texts is not None
    embed = base.model.get_input_embeddings()
    parts = [embed(torch.tensor(base.bos_ids)), *([prompt] if prompted else []), embed(torch.tensor(ids))]
    rows = base.model(inputs_embeds=torch.cat(parts)[None], use_cache=False).logits[0]
    found = score_text(base, states, base.bos_ids, ids, batch.texts[0], 2)
    assert found[0] == ScoredToken(base.bos_ids[0], None)
    assert_close(found[1:], reference(rows[-len(ids) - 1 : -1], ids, 2))


@torch.no_grad()
def test_keys_and_values_tell_of_no_first_token() -> None:
    base = tiny_base("llama")
    state = compute_keys_and_values(base, random_prompt(base, 3).detach())
    with pytest.raises(DataError, match="leave BOS out"):
        score_text(base, [state], base.bos_ids, [5, 6], torch.zeros(2, base.embedding_size), 1)


def test_as_many_as_are_asked_for() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 8)
    found = score_tokens(logits, [1, 2, 3], [0, 2, 20])
    assert [len(one.top) for one in found] == [0, 2, 8]
    assert found[0].logprob == pytest.approx(float(logits.log_softmax(-1)[0, 1]))
