"""The shared prefix is exact: every way to put a prompt in front of texts gives what plain concatenation gives."""

import hashlib
from collections.abc import Callable, Sequence

import pytest
import torch
from helpers.tiny_models import (
    FAMILIES,
    NOT_SHARING,
    SLIDING,
    WINDOW,
    WITHOUT_BOS,
    as_state,
    plain_logits,
    random_prompt,
    tiny_base,
    tiny_model,
    tiny_tokenizer,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import (
    ConcatenatedPrefix,
    Prefix,
    make_cached_prefix,
    make_concatenated_prefix,
    make_prefix,
    read_one_more,
    shares_prefix,
)
from softprompt.prompts.state import PromptState

ATOL = 1e-4  # of logits
RTOL = 1e-4  # of the gradient's norm

Maker = Callable[[FrozenLM, PromptState | None], Prefix]
WAYS: dict[str, tuple[Maker, str]] = {
    "right-padded": (make_concatenated_prefix, "right"),
    "left-padded": (make_concatenated_prefix, "left"),
    "shared": (make_cached_prefix, "right"),
    "chosen": (make_prefix, "right"),
}
# virtual tokens and text lengths; the window is 8 tokens
SIZES = {
    "within the window": (2, (4, 1, 3)),
    "texts beyond the window": (3, (21, 2, 13)),
    "prompt beyond the window": (12, (4, 17, 9)),
}
PAIRS = [(family, way) for family in FAMILIES for way in WAYS if way != "shared" or family not in NOT_SHARING]


def texts_of(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(5, 320, (length,), generator=generator) for length in lengths]


def one_by_one(base: FrozenLM, prompt: Tensor, texts: Sequence[Tensor]) -> list[Tensor]:
    return [plain_logits(base, prompt, text.tolist()) for text in texts]


def batched(base: FrozenLM, prefix: Prefix, texts: Sequence[Tensor], side: str) -> list[Tensor]:
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), 3), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if side == "left" else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    hidden = prefix.hidden(ids, mask)
    return [base.logits(hidden[row][mask[row].bool()]) for row in range(len(texts))]


def gradient_of(prompt: Tensor, logits: Sequence[Tensor], texts: Sequence[Tensor]) -> Tensor:
    """Of a loss that every position takes part in: each token is to repeat itself."""
    losses = [
        torch.nn.functional.cross_entropy(row, text, reduction="sum") for row, text in zip(logits, texts, strict=True)
    ]
    (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), prompt)
    return gradient


def bytes_of(base: FrozenLM) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("family", "way"), PAIRS)
def test_every_way_equals_plain_concatenation(family: str, way: str, size: str) -> None:
    base, (length, lengths) = tiny_base(family), SIZES[size]
    make, side = WAYS[way]
    prompt, texts = random_prompt(base, length), texts_of(lengths)
    before = bytes_of(base)
    expected = one_by_one(base, prompt, texts)
    actual = batched(base, make(base, as_state(prompt)), texts, side)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL, rtol=0)
    right, found = gradient_of(prompt, expected, texts), gradient_of(prompt, actual, texts)
    assert right.norm() > 1e-2
    assert (found - right).norm() < RTOL * right.norm()
    assert bytes_of(base) == before


@pytest.mark.parametrize("family", SLIDING)
def test_the_window_of_the_tiny_models_is_felt(family: str) -> None:
    """Without this, the tests above would not show that windows are kept to."""
    base = tiny_base(family)
    assert base.sliding_window == WINDOW
    text, prompt = texts_of((30,)), random_prompt(base, 2)
    one, other = (one_by_one(base, tokens, text)[0][-1] for tokens in (prompt, -prompt))
    # two layers that both slide reach back 14 tokens; a full one reaches the prompt
    assert ((one - other).abs().max() < 1e-5) == (family == "mistral")


@pytest.mark.parametrize("family", FAMILIES)
def test_which_families_share(family: str) -> None:
    base = tiny_base(family)
    assert shares_prefix(base) == (family not in NOT_SHARING)
    prefix = make_prefix(base, as_state(random_prompt(base, 3)))
    assert isinstance(prefix, ConcatenatedPrefix if family in NOT_SHARING else CachedPrefix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_hides_no_fault_and_is_none(family: str, dtype: torch.dtype) -> None:
    base = FrozenLM(tiny_model(family).to(dtype), tiny_tokenizer(family), family)
    assert shares_prefix(base) == (family not in NOT_SHARING)


def test_what_rounding_does_in_a_deep_model_is_no_fault() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=96, vocab_size=320, initializer_range=0.5, **sizes)
    base = FrozenLM(LlamaForCausalLM(config).to(torch.bfloat16), tiny_tokenizer("llama"), "deep")
    assert shares_prefix(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_without_prompt_is_the_plain_model(family: str) -> None:
    base, texts = tiny_base(family), texts_of((9, 4, 14))
    bos = base.tokenizer("").input_ids
    assert bool(bos) == (family not in WITHOUT_BOS)
    for text, logits in zip(texts, batched(base, make_prefix(base, None), texts, "right"), strict=True):
        expected = base.model(input_ids=torch.cat([torch.tensor(bos, dtype=torch.long), text])[None]).logits[0]
        torch.testing.assert_close(logits, expected[len(bos) :], atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_can_be_used_again(family: str) -> None:
    base, texts = tiny_base(family), texts_of((12, 5, 3))
    with torch.no_grad():
        prefix = make_prefix(base, as_state(random_prompt(base, 4)))
        first = batched(base, prefix, texts, "right")
        batched(base, prefix, texts_of((2, 40)), "right")
        again = batched(base, prefix, texts, "right")
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_SHARING])
def test_expanding_takes_no_memory_and_leaves_the_prefix_as_it_is(family: str) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), 4)
    prefix = make_cached_prefix(base, as_state(prompt))
    assert prefix.width == len(base.bos_ids) + 4
    kept = [(layer.keys.clone(), layer.values.clone(), layer.get_seq_length()) for layer in prefix.cache.layers]
    which = torch.zeros(5, dtype=torch.long)
    expanded = prefix.expand(which)
    for own, other in zip(prefix.cache.layers, expanded.layers, strict=True):
        assert other.keys.shape == (5, *own.keys.shape[1:])
        assert other.keys.data_ptr() == own.keys.data_ptr()
    prefix.hidden(torch.full((5, 20), 9), torch.ones(5, 20, dtype=torch.long), which, expanded)
    assert expanded.get_seq_length() == prefix.width + 20
    assert prefix.cache.get_seq_length() == prefix.width
    for layer, (keys, values, length) in zip(prefix.cache.layers, kept, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert layer.get_seq_length() == length


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_still_receives_gradient_after_an_evaluation(family: str) -> None:
    base, texts = tiny_base(family), texts_of((6, 3))

    def gradient() -> Tensor:
        prompt = random_prompt(base, 3)
        return gradient_of(prompt, batched(base, make_prefix(base, as_state(prompt)), texts, "right"), texts)

    before = gradient()
    with torch.no_grad():
        batched(base, make_prefix(base, as_state(random_prompt(base, 3))), texts, "right")
    assert torch.equal(gradient(), before)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_SHARING])
def test_extending_a_padded_batch_equals_the_whole_text(family: str) -> None:
    base = tiny_base(family)
    lengths = (3, 1) if family in SLIDING else (9, 4)
    whole = texts_of([length + 1 for length in lengths])
    with torch.no_grad():
        prefix = make_cached_prefix(base, as_state(random_prompt(base, 3)))
        expected = one_by_one(base, random_prompt(base, 3), whole)
        ids = torch.nn.utils.rnn.pad_sequence([text[:-1] for text in whole], batch_first=True)
        mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
        which = torch.zeros(2, dtype=torch.long)
        cache = prefix.expand(which)
        prefix.hidden(ids, mask, which, cache)
        seen = torch.cat([mask.new_ones(2, prefix.width), mask, mask.new_ones(2, 1)], dim=1)
        last = torch.stack([text[-1] for text in whole])
        hidden = read_one_more(base, last, seen, prefix.width + torch.tensor(lengths), cache)
    torch.testing.assert_close(base.logits(hidden), torch.stack([row[-1] for row in expected]), atol=ATOL, rtol=0)
