"""Several prompts in one batch, and prompts as keys and values: each row gets what it gets alone."""

from collections.abc import Sequence

import pytest
import torch
from helpers.tiny_models import (
    CONTEXT,
    FAMILIES,
    NOT_SHARING,
    SLIDING,
    WINDOW,
    WITHOUT_BOS,
    as_state,
    plain_logits,
    random_prompt,
    tiny_base,
)
from torch import Tensor
from transformers import DynamicCache

from softprompt.errors import BaseModelError
from softprompt.inference.generation import GenerationConfig, complete
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import (
    ConcatenatedPrefix,
    Prefix,
    compute_keys_and_values,
    make_concatenated_prefix,
    make_prefix,
    read_one_more,
)
from softprompt.prompts.state import PromptState

ATOL = 1e-4  # of logits
RTOL = 1e-4  # of the gradient's norm

SHARING = [family for family in FAMILIES if family not in NOT_SHARING]
# virtual tokens of three prompts, and the texts' lengths; the window is 8 tokens
SIZES = {
    "within the window": ((2, 4), (3, 1, 2, 3, 2, 1, 3)),
    "texts beyond the window": ((4, 2), (2, 19, 13, 4, 21, 9, 1)),
    "prompts beyond the window": ((3, 12), (4, 2, 11, 1, 10, 17, 3)),
}
ROWS = (1, 0, 2, 3, 1, 4, 2)  # the prompt of each row: two virtual tokens, none, two as keys and values


def texts_of(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(5, 320, (length,), generator=generator) for length in lengths]


def prompts_of(base: FrozenLM, lengths: Sequence[int]) -> list[Tensor | None]:
    """Virtual tokens of each of the prompts that ``ROWS`` counts: the lengths, none, and the lengths again."""
    short, long = (random_prompt(base, length, seed) for seed, length in enumerate(lengths))
    return [short, long, None, *(random_prompt(base, length, 5 + seed) for seed, length in enumerate(lengths))]


def attention_state(base: FrozenLM, prompt: Tensor) -> PromptState:
    """Keys and values of a prompt, as transformers itself computes them, with gradient to the virtual tokens."""
    bos = base.model.get_input_embeddings()(torch.tensor(base.bos_ids, dtype=torch.long))
    cache = DynamicCache()
    base.model.base_model(inputs_embeds=torch.cat([bos, prompt])[None], past_key_values=cache, use_cache=True)
    return PromptState("key_values", tuple(torch.cat([one.keys, one.values])[:, :, len(bos) :] for one in cache.layers))


def padded(texts: Sequence[Tensor], side: str = "right") -> tuple[Tensor, Tensor]:
    longest = max(map(len, texts))
    ids, mask = torch.full((len(texts), longest), 3), torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(longest - len(text), None) if side == "left" else slice(len(text))
        ids[row, place], mask[row, place] = text, 1
    return ids, mask


def logits_of(
    base: FrozenLM, prefix: Prefix, texts: Sequence[Tensor], which: Sequence[int] | None, side: str = "right"
) -> list[Tensor]:
    ids, mask = padded(texts, side)
    hidden = prefix.hidden(ids, mask, None if which is None else torch.tensor(which))
    return [base.logits(hidden[row][mask[row].bool()]) for row in range(len(texts))]


def gradients_of(prompts: Sequence[Tensor | None], logits: Sequence[Tensor], texts: Sequence[Tensor]) -> list[Tensor]:
    """Of a loss that every position takes part in: each token is to repeat itself."""
    losses = [
        torch.nn.functional.cross_entropy(row, text, reduction="sum") for row, text in zip(logits, texts, strict=True)
    ]
    learned = [prompt for prompt in prompts if prompt is not None]
    return list(torch.autograd.grad(torch.stack(losses).sum(), learned, retain_graph=True))


def assert_same(
    prompts: Sequence[Tensor | None], actual: Sequence[Tensor], expected: Sequence[Tensor], texts: Sequence[Tensor]
) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL, rtol=0)
    found, right = (gradients_of(prompts, logits, texts) for logits in (actual, expected))
    for one, other in zip(found, right, strict=True):
        assert other.norm() > 1e-3
        assert (one - other).norm() < RTOL * other.norm()


@pytest.mark.parametrize(
    ("family", "size"),
    # one size is enough for the slowest
    [(family, size) for family in FAMILIES for size in SIZES if family != "falcon_h1" or "prompts" in size],
)
def test_each_row_gets_what_it_gets_alone(family: str, size: str) -> None:
    base, (lengths, text_lengths) = tiny_base(family), SIZES[size]
    prompts, texts = prompts_of(base, lengths), texts_of(text_lengths)
    expected = [plain_logits(base, prompts[one], text.tolist()) for one, text in zip(ROWS, texts, strict=True)]
    tokens = [as_state(prompt) for prompt in prompts]
    for side in ("right", "left"):
        prefix: Prefix = make_concatenated_prefix(base, *tokens)
        assert_same(prompts, logits_of(base, prefix, texts, ROWS, side), expected, texts)
    prefix = make_prefix(base, *tokens)
    assert isinstance(prefix, ConcatenatedPrefix if family in NOT_SHARING else CachedPrefix)
    assert_same(prompts, logits_of(base, prefix, texts, ROWS), expected, texts)
    if family not in NOT_SHARING:
        attended = [attention_state(base, prompt) for prompt in prompts[3:] if prompt is not None]
        mixed = make_prefix(base, *tokens[:3], *attended)
        assert_same(prompts, logits_of(base, mixed, texts, ROWS), expected, texts)


@pytest.mark.parametrize(
    "family",
    [
        *("gpt2", "opt", "llama", "mamba", "mpt"),
        *(
            pytest.param(
                family,
                marks=pytest.mark.xfail(
                    raises=RuntimeError, strict=True, reason="its mask or distances have no columns beyond the context"
                ),
            )
            for family in ("gpt_neo",)
        ),
    ],
)
def test_a_short_text_behind_a_long_prompt_may_stand_beside_a_long_text(family: str) -> None:
    """Padding behind the short one has columns beyond the model's context, and no positions there."""
    base = tiny_base(family)
    prompts, texts, which = [random_prompt(base, 150), random_prompt(base, 2, 3)], texts_of((9, 100)), (0, 1)
    assert len(base.bos_ids) + 150 + 9 <= CONTEXT < 150 + 100
    expected = [plain_logits(base, prompts[one], text.tolist()) for one, text in zip(which, texts, strict=True)]
    for make, side in ((make_prefix, "right"), (make_concatenated_prefix, "right"), (make_concatenated_prefix, "left")):
        prefix = make(base, *map(as_state, prompts))
        assert_same(prompts, logits_of(base, prefix, texts, which, side), expected, texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rows_differ_from_each_other(family: str) -> None:
    """Without this, the test above could pass with every row behind the same prompt."""
    base, (lengths, _) = tiny_base(family), SIZES["within the window"]
    text = texts_of((3,))[0]
    with torch.no_grad():
        found = torch.stack([plain_logits(base, prompt, text.tolist())[-1] for prompt in prompts_of(base, lengths)])
    assert torch.nn.functional.pdist(found, p=torch.inf).min() > 0.05


@pytest.mark.parametrize("make", [make_prefix, make_concatenated_prefix])
def test_a_prompt_that_no_row_stands_behind_gets_no_gradient(make: object) -> None:
    base, texts = tiny_base("gemma3"), texts_of((4, 9))
    prompts = prompts_of(base, (3, 12))[:2]
    prefix = make(base, *map(as_state, prompts))  # type: ignore[operator]
    used, unused = gradients_of(prompts, logits_of(base, prefix, texts, (0, 0)), texts)
    assert used.norm() > 0
    assert not unused.any()


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mamba"])
def test_rows_stand_behind_the_first_prompt_if_nothing_is_said(family: str) -> None:
    base, texts = tiny_base(family), texts_of((4, 9))
    with torch.no_grad():
        prefix = make_prefix(base, *map(as_state, prompts_of(base, (3, 12))))
        said, unsaid = (logits_of(base, prefix, texts, which) for which in ((0, 0), None))
    for one, other in zip(said, unsaid, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_only_rows_without_prompt(family: str) -> None:
    base, texts = tiny_base(family), texts_of((4, 9))
    assert bool(base.bos_ids) == (family not in WITHOUT_BOS)
    with torch.no_grad():
        found = logits_of(base, make_prefix(base, None, None), texts, (1, 0))
        for logits, text in zip(found, texts, strict=True):
            torch.testing.assert_close(logits, plain_logits(base, None, text.tolist()), atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_starts_and_mask_tell_the_prompts_apart(family: str) -> None:
    base = tiny_base(family)
    bos = len(base.bos_ids)
    prefix = make_prefix(base, *map(as_state, prompts_of(base, (3, 12))))
    assert isinstance(prefix, CachedPrefix)
    assert prefix.lengths == (bos + 3, bos + 12, bos, bos + 3, bos + 12)
    assert prefix.width == bos + 12
    which = torch.tensor((2, 0, 1))
    assert prefix.starts(which).tolist() == [bos, bos + 3, bos + 12]
    assert prefix.mask(which).tolist() == [[0] * (bos + 12 - one) + [1] * one for one in (bos, bos + 3, bos + 12)]


@pytest.mark.parametrize("family", SHARING)
def test_extending_mixed_rows_equals_the_whole_texts(family: str) -> None:
    base = tiny_base(family)
    # padding behind a text counts as distance in a sliding window, so there texts have one length
    lengths = (4, 4, 4, 4, 4) if family in SLIDING else (9, 4, 1, 3, 5)
    prompts, whole = prompts_of(base, (3, 12)), texts_of([length + 1 for length in lengths])
    order = (1, 2, 0, 4, 3)
    with torch.no_grad():
        expected = [plain_logits(base, prompts[one], text.tolist())[-1] for one, text in zip(order, whole, strict=True)]
        attended = [attention_state(base, prompt) for prompt in prompts[3:] if prompt is not None]
        prefix = make_prefix(base, *map(as_state, prompts[:3]), *attended)
        assert isinstance(prefix, CachedPrefix)
        kept = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.cache.layers]
        which = torch.tensor(order)
        ids, mask = padded([text[:-1] for text in whole])
        cache = prefix.expand(which)
        prefix.hidden(ids, mask, which, cache)
        seen = torch.cat([prefix.mask(which), mask, mask.new_ones(len(order), 1)], dim=1)
        last = torch.stack([text[-1] for text in whole])
        hidden = read_one_more(base, last, seen, prefix.starts(which) + torch.tensor(lengths), cache)
    torch.testing.assert_close(base.logits(hidden), torch.stack(expected), atol=ATOL, rtol=0)
    for layer, (keys, values) in zip(prefix.cache.layers, kept, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


@pytest.mark.parametrize("length", [1, 3, 12])
@pytest.mark.parametrize("family", SHARING)
def test_keys_and_values_are_what_the_virtual_tokens_are(family: str, length: int) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), length)
    assert (length > WINDOW) == (length == 12)
    state = compute_keys_and_values(base, prompt)
    config = base.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert (state.kind, state.length) == ("key_values", length)
    assert [tuple(tensor.shape) for tensor in state.tensors] == [(2, heads, length, size)] * config.num_hidden_layers
    assert all(tensor.dtype == torch.float32 and not tensor.requires_grad for tensor in state.tensors)
    with torch.no_grad():
        for one, other in zip(state.tensors, attention_state(base, prompt).tensors, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        texts = texts_of((4, 17, 1))
        for logits, text in zip(logits_of(base, make_prefix(base, state), texts, None), texts, strict=True):
            torch.testing.assert_close(logits, plain_logits(base, prompt, text.tolist()), atol=ATOL, rtol=0)


def test_some_families_have_fewer_key_heads_than_query_heads() -> None:
    state = compute_keys_and_values(tiny_base("gemma3"), random_prompt(tiny_base("gemma3"), 2))
    assert tiny_base("gemma3").config.num_attention_heads == 2 * state.tensors[0].shape[1]


@pytest.mark.parametrize("family", NOT_SHARING)
def test_a_family_without_such_a_cache_refuses_keys_and_values(family: str) -> None:
    base = tiny_base(family)
    state = PromptState("key_values", (torch.zeros(2, 2, 3, 8), torch.zeros(2, 2, 3, 8)))
    for refused in (
        lambda: make_prefix(base, state),
        lambda: make_prefix(base, as_state(random_prompt(base, 2)), state),
        lambda: make_concatenated_prefix(base, state),
        lambda: compute_keys_and_values(base, random_prompt(base, 2)),
    ):
        with pytest.raises(BaseModelError) as caught:
            refused()
        assert str(caught.value) == (
            f"a prompt of keys and values needs a shared prefix, which is not exact on 'tiny {family}' (softprompt "
            "doctor measures it): use a method that learns virtual tokens, such as prompt-tuning"
        )


@pytest.mark.parametrize("length", [3, 12])
@pytest.mark.parametrize("family", SHARING)
def test_completions_behind_keys_and_values_are_those_behind_the_virtual_tokens(family: str, length: int) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), length).detach()
    texts = [text.tolist() for text in texts_of((4, 11, 1))]

    def completions(state: PromptState | None, generation: GenerationConfig) -> dict[int, str]:
        with torch.no_grad():
            return {index: text for index, text, _ in complete(base, make_prefix(base, state), texts, generation, 2048)}

    generation = GenerationConfig(6)
    found = completions(compute_keys_and_values(base, prompt), generation)
    assert found == completions(as_state(prompt), generation)
    assert found != completions(None, generation)
