"""Completions: greedy equals transformers' own generation, and nobody's neighbours change what they get."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from helpers.tiny_models import FAMILIES, NOT_SHARING, as_state, plain_logits, random_prompt, tiny_base
from torch import Tensor

from softprompt.errors import ConfigError
from softprompt.inference.generation import GenerationConfig, complete, first_largest
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import make_prefix

BUDGET = 2048
TEXTS = ("what is the film about?", "a", "the mat sat on the great cat, " * 3, "a bad film", "it is dull: the story")


def token_ids(base: FrozenLM, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [list(base.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def completions(
    base: FrozenLM,
    texts: Sequence[Sequence[int]],
    generation: GenerationConfig,
    prompt: Tensor | None = None,
    budget: int = BUDGET,
) -> list[str]:
    with torch.no_grad():
        prefix = make_prefix(base, as_state(prompt))
    found = {index: text for index, text, _ in complete(base, prefix, texts, generation, budget)}
    return [found[index] for index in range(len(texts))]


@torch.no_grad()
def greedy(base: FrozenLM, prompt: Tensor | None, ids: Sequence[int], count: int) -> list[int]:
    """The reference where ``model.generate`` does not go: the likeliest token, each by a whole forward pass."""
    tokens: list[int] = []
    while len(tokens) < count and base.tokenizer.eos_token_id not in tokens:
        tokens.append(int(plain_logits(base, prompt, [*ids, *tokens])[-1].argmax()))
    return tokens


@torch.no_grad()
def generated(base: FrozenLM, prompt: Tensor | None, ids: Sequence[int], count: int) -> list[int]:
    """By transformers' own ``generate``."""
    start = torch.tensor([[*base.bos_ids, *ids]])
    settings = {"max_new_tokens": count, "do_sample": False, "pad_token_id": base.tokenizer.pad_token_id}
    if prompt is None:
        tokens = base.model.generate(input_ids=start, attention_mask=torch.ones_like(start), **settings)
        return list(tokens[0, start.shape[1] :].tolist())
    bos = len(base.bos_ids)
    embedded = base.model.get_input_embeddings()(start)[0]
    embeddings = torch.cat([embedded[:bos], prompt, embedded[bos:]])[None]
    mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
    return list(base.model.generate(inputs_embeds=embeddings, attention_mask=mask, **settings)[0].tolist())


def text_of(base: FrozenLM, tokens: Sequence[int]) -> str:
    return str(base.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


@pytest.mark.parametrize(
    ("family", "length"),
    # one length is enough for the slowest
    [(family, length) for family in FAMILIES for length in (0, 3, 12) if family != "falcon_h1" or length == 3],
)
def test_greedy_equals_transformers_one_at_a_time(family: str, length: int) -> None:
    base = tiny_base(family)
    prompt = random_prompt(base, length).detach() if length else None
    texts, generation = token_ids(base), GenerationConfig(max_new_tokens=12)
    reference = greedy if family in NOT_SHARING else generated
    expected = [text_of(base, reference(base, prompt, ids, 12)) for ids in texts]
    assert [completions(base, [ids], generation, prompt)[0] for ids in texts] == expected
    assert completions(base, texts, generation, prompt) == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("budget", [1, 60, 100_000])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "mamba"])
def test_the_token_budget_changes_nothing_but_the_order(family: str, budget: int) -> None:
    base = tiny_base(family)
    texts, generation = token_ids(base), GenerationConfig(max_new_tokens=9)
    assert completions(base, texts, generation, budget=budget) == completions(base, texts, generation)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mamba"])
def test_the_number_of_new_tokens_is_kept_to(family: str) -> None:
    base = tiny_base(family)
    for count in (1, 2, 7):
        for ids, text in zip(token_ids(base), completions(base, token_ids(base), GenerationConfig(count)), strict=True):
            assert text == text_of(base, greedy(base, None, ids, count))


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "mamba"])
def test_an_end_of_sequence_ends_a_completion_and_not_its_neighbours(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, texts = tiny_base(family), token_ids(tiny_base(family))
    whole = [greedy(base, None, ids, 12) for ids in texts]
    end = whole[0][5]
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", [end, base.tokenizer.eos_token_id])
    expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in whole]
    assert len({len(tokens) for tokens in expected}) > 1
    assert completions(base, texts, GenerationConfig(12)) == [text_of(base, tokens) for tokens in expected]


def test_the_tokenizers_end_of_sequence_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama")
    monkeypatch.setattr(base.model.generation_config, "eos_token_id", None)
    boost = 100 * (torch.arange(base.vocabulary_size) == base.tokenizer.eos_token_id)
    logits = base.logits
    monkeypatch.setattr(base, "logits", lambda states: logits(states) + boost)
    assert completions(base, token_ids(base), GenerationConfig(5)) == [""] * len(TEXTS)


@pytest.mark.parametrize("family", ["llama", "opt", "mamba"])
def test_a_stop_string_ends_a_completion_and_is_no_part_of_it(family: str) -> None:
    base, texts = tiny_base(family), token_ids(tiny_base(family))
    whole = [base.tokenizer.decode(greedy(base, None, ids, 16), skip_special_tokens=True) for ids in texts]
    early, late = {"llama": ("aL", "*"), "opt": ("he", "\t"), "mamba": ("e ", "(")}[family]
    assert 0 < whole[0].find(early) < whole[0].find(late)
    for stops in ((early,), (late, early), (early, "no such words")):
        expected = [min((text.partition(stop)[0] for stop in stops), key=len).strip() for text in whole]
        assert completions(base, texts, GenerationConfig(16, stop=stops)) == expected


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
def test_sampling_is_reproducible_and_does_not_depend_on_neighbours(family: str) -> None:
    base, texts = tiny_base(family), token_ids(tiny_base(family))
    generation = GenerationConfig(10, temperature=0.8, top_p=0.9, top_k=50, seed=3)
    first = completions(base, texts, generation)
    assert completions(base, texts, generation) == first
    # the same place among other texts
    others = [*texts[:2], *reversed(texts[2:])]
    assert completions(base, others, generation)[:2] == first[:2]
    assert completions(base, texts, generation, budget=1) == first
    assert completions(base, texts, GenerationConfig(10, temperature=0.8, top_p=0.9, top_k=50, seed=4)) != first
    assert first != completions(base, texts, GenerationConfig(10))


def test_equal_texts_get_samples_of_their_own() -> None:
    base = tiny_base("llama")
    assert len(set(completions(base, token_ids(base, ["a cat"] * 8), GenerationConfig(6, temperature=1.0)))) > 4


@pytest.mark.parametrize("seed", [0, 2**63 - 1, -5])
def test_any_seed_will_do(seed: int) -> None:
    base = tiny_base("llama")
    assert completions(base, token_ids(base)[:1], GenerationConfig(3, temperature=1.0, seed=seed))


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, lambda logits: logits.softmax(0)),
        ({"temperature": 0.5}, lambda logits: (2 * logits).softmax(0)),
        ({"top_k": 3}, lambda logits: torch.where(logits >= logits.topk(3).values[-1], logits, -torch.inf).softmax(0)),
        ({"top_k": 1}, lambda logits: (logits == logits.max()).float()),
        ({"top_p": 1e-6}, lambda logits: (logits == logits.max()).float()),
    ],
    ids=["plain", "colder", "top 3", "top 1", "top p"],
)
def test_samples_have_the_frequencies_they_should(settings: dict[str, float], shares: object) -> None:
    base, count = tiny_base("llama"), 1500
    ids = token_ids(base, ["the film is"])[0]
    generation = GenerationConfig(1, **{"temperature": 1.0, **settings})  # type: ignore[arg-type]
    found = Counter(completions(base, [ids] * count, generation, budget=8000))
    with torch.no_grad():
        of_token = shares(plain_logits(base, None, ids)[-1])  # type: ignore[operator]
    expected: Counter[str] = Counter()
    for token, share in enumerate(of_token.tolist()):
        expected[text_of(base, [token])] += share
    for text, share in expected.most_common(4):
        assert abs(found[text] / count - share) < 4 * (share * (1 - share) / count) ** 0.5 + 1e-9
    assert len(found) <= sum(share > 0 for share in expected.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 (greedy) or more, got -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"top_k": -1}, "top_k must be 0 (all) or more, got -1"),
        ({"stop": ("a", "")}, "a stop string must not be empty"),
    ],
)
def test_settings_out_of_range_are_an_error(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GenerationConfig(**settings)  # type: ignore[arg-type]
    assert str(caught.value) == words


def test_no_texts_give_no_completions() -> None:
    base = tiny_base("llama")
    assert completions(base, [], GenerationConfig()) == []


@pytest.mark.parametrize("size", [3, 512, 1024, 1025, 1536, 5000])
def test_the_largest_logit_is_found_in_blocks(size: int) -> None:
    draw = torch.Generator().manual_seed(size)
    rows = torch.randn(40, size, generator=draw)
    # few values, so that most rows have their largest several times: the first counts
    rows = torch.cat([rows, torch.randint(4, (40, size), generator=draw).float(), torch.full((2, size), -torch.inf)])
    rows[0, -1], rows[1, 0] = 99, 99
    expected = [row.tolist().index(max(row.tolist())) for row in rows]
    assert first_largest(rows).tolist() == expected
    assert first_largest(rows.bfloat16()).tolist() == [row.tolist().index(max(row.tolist())) for row in rows.bfloat16()]
