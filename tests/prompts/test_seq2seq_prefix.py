"""Encoder-decoder models: every way to put a prompt in gives what transformers' own forward pass gives."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from helpers.tiny_models import PAD, as_state, random_prompt, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor, nn

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.errors import BaseModelError
from softprompt.inference.generation import GenerationConfig, complete
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.attention_prefix import LayerPrefixes, find_prompted_layers
from softprompt.prompts.prefix import compute_keys_and_values, make_prefix
from softprompt.prompts.seq2seq_prefix import EncodedPrefix, Seq2SeqDecodingBatch
from softprompt.prompts.state import PromptState

ATOL = 1e-4  # of logits
RTOL = 1e-4  # of the gradient's norm

FAMILIES = (
    *("t5", "t5_v1_1", "mt5", "umt5", "bart", "mbart", "plbart", "pegasus", "marian", "m2m_100", "blenderbot"),
    *("switch_transformers", "mvp", "bigbird_pegasus"),
)
WITHOUT_LAYERS = ("switch_transformers", "mvp", "bigbird_pegasus")  # attention that nothing can be put in front of
IN_LAYERS = tuple(family for family in FAMILIES if family not in WITHOUT_LAYERS)
ROWS = (1, 0, 2, 3, 1, 4, 2)  # the prompt of each item
TEXTS = (3, 17, 1, 30, 4, 9, 3)
ANSWERS = (2, 1, 4, 3, 1, 6, 2)


def items_of(base: FrozenLM, prompts: Sequence[int] = ROWS) -> list[EncodedSequence]:
    """Random texts and answers of several lengths; each position of an answer asks for a random token."""
    generator = torch.Generator().manual_seed(11)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 320, (count,), generator=generator).tolist())

    frame = base.special_tokens
    items = []
    for index, (prompt, text, answer) in enumerate(zip(prompts, TEXTS, ANSWERS, strict=False)):
        given = (*frame.decoder_start, *ids(answer - 1))
        positions = tuple(range(len(given)))
        items.append(
            EncodedSequence(
                index, (*ids(text), *frame.suffix), positions, ids(len(given)), prompt=prompt, decoder_ids=given
            )
        )
    return items


def embedded(base: FrozenLM, ids: Sequence[int]) -> Tensor:
    """``[T, H]`` as the model's own encoder makes them of token ids."""
    encoder = base.model.get_encoder()
    rows: Tensor = base.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
    # only some of the embeddings are scaled by themselves
    return rows * encoder.embed_scale if hasattr(encoder, "embed_scale") else rows


def for_decoder(base: FrozenLM, rows: Tensor) -> Tensor:
    """``rows`` as the decoder is given them: those of two families scale what they are given."""
    scales = base.config.model_type in ("pegasus", "marian")
    return rows / base.model.get_decoder().embed_scale if scales else rows


def plain_logits(base: FrozenLM, prompt: Tensor | None, item: EncodedSequence) -> Tensor:
    """The reference: BOS, prompt and one text concatenated, through the transformers model: ``[U, V]``."""
    parts = [embedded(base, base.special_tokens.bos), embedded(base, item.ids)]
    embeddings = torch.cat(parts if prompt is None else [parts[0], prompt, parts[1]])
    answer = torch.tensor([item.decoder_ids])
    logits: Tensor = base.model(inputs_embeds=embeddings[None], decoder_input_ids=answer, use_cache=False).logits[0]
    return logits


def self_attention(stack: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """What makes keys and values in the self-attention of each layer, by T5's names or by BART's."""
    named = dict(stack.named_modules())
    ends = ((".SelfAttention.k", ".SelfAttention.v"), (".self_attn.k_proj", ".self_attn.v_proj"))
    return [
        (named[name], named[name.removesuffix(key) + value])
        for name in named
        for key, value in ends
        if name.endswith(key)
    ]


@contextmanager
def overwritten(stack: nn.Module, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within it, the first ``P`` tokens have the keys and values ``[2, heads, P, D]`` of ``tensors`` in each layer."""
    attentions = self_attention(stack)
    assert len(attentions) == len(tensors)
    with ExitStack() as hooks:
        for modules, pair in zip(attentions, tensors, strict=True):
            for module, part in zip(modules, pair, strict=True):
                given = part.transpose(0, 1).flatten(1)[None]  # [1, P, heads * D]

                def put(_: Any, __: Any, output: Tensor, given: Tensor = given) -> Tensor:
                    return torch.cat([given, output[:, given.shape[1] :]], dim=1)

                hooks.enter_context(module.register_forward_hook(put))
        yield


def unmoved(stack: Any, rows: Tensor, prompt: int) -> Tensor:
    """``rows [T, H]`` behind ``prompt`` others, as they would stand at the positions from 0 on."""
    if not hasattr(stack, "embed_positions"):
        return rows
    one = torch.zeros(1, prompt + len(rows), rows.shape[1])
    if hasattr(stack.embed_positions, "offset") and not hasattr(stack.embed_positions, "weights"):
        table = stack.embed_positions(one[..., 0])
    elif hasattr(stack.embed_positions, "weights"):
        table = stack.embed_positions(inputs_embeds=one)
    else:
        table = stack.embed_positions(one.shape[:2])
    table = table.view(-1, rows.shape[1])
    return rows + table[: len(rows)] - table[prompt:]


def layer_logits(base: FrozenLM, state: PromptState, item: EncodedSequence) -> Tensor:
    """The reference for keys and values: through the transformers model, with tokens in front that are overwritten."""
    length, model = state.length, base.model
    encoder, decoder = model.get_encoder(), model.get_decoder()
    split = len(self_attention(encoder))
    nothing = torch.zeros(length, base.embedding_size)
    with overwritten(encoder, state.tensors[:split]), overwritten(decoder, state.tensors[split:]):
        rows = torch.cat([nothing, unmoved(encoder, embedded(base, (*base.special_tokens.bos, *item.ids)), length)])
        states = encoder(inputs_embeds=rows[None]).last_hidden_state[:, length:]
        answer = torch.cat([nothing, unmoved(decoder, embedded(base, item.decoder_ids), length)])
        options = {"decoder_inputs_embeds": for_decoder(base, answer)[None], "use_cache": False}
        logits: Tensor = model(encoder_outputs=(states,), **options).logits[0, length:]
    return logits


def batched(base: FrozenLM, prefix: Any, items: Sequence[EncodedSequence]) -> list[Tensor]:
    logits = base.logits(prefix.scored(collate(items, base.device)))
    return list(logits.split([len(item.positions) for item in items]))


def loss(logits: Sequence[Tensor], items: Sequence[EncodedSequence]) -> Tensor:
    targets = torch.tensor([target for item in items for target in item.targets])
    return nn.functional.cross_entropy(torch.cat(list(logits)), targets, reduction="sum")


def assert_same(
    leaves: Sequence[Tensor], actual: Sequence[Tensor], expected: Sequence[Tensor], items: Sequence[EncodedSequence]
) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=ATOL, rtol=0)
    found, right = (
        torch.autograd.grad(loss(logits, items), leaves, retain_graph=True) for logits in (actual, expected)
    )
    for one, other in zip(found, right, strict=True):
        assert other.norm() > 1e-3
        assert (one - other).norm() < RTOL * other.norm()


def random_layers(base: FrozenLM, length: int, seed: int = 3) -> PromptState:
    """Keys and values as large as the model's own, requiring gradient."""
    generator = torch.Generator().manual_seed(seed)
    own = compute_keys_and_values(base, random_prompt(base, length).detach())
    tensors = [tensor.std() * torch.randn(tensor.shape, generator=generator) for tensor in own.tensors]
    return PromptState("key_values", tuple(tensor.requires_grad_() for tensor in tensors))


def bytes_of(base: FrozenLM) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(base.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_virtual_tokens_equal_plain_concatenation_whatever_stands_beside(family: str) -> None:
    base = tiny_base(family)
    prompts = [random_prompt(base, 2, 0), random_prompt(base, 5, 1), None, random_prompt(base, 1, 2)]
    items, before = items_of(base, [row % 4 for row in ROWS]), bytes_of(base)
    expected = [plain_logits(base, prompts[item.prompt], item) for item in items]
    prefix = make_prefix(base, *map(as_state, prompts))
    leaves = [prompt for prompt in prompts if prompt is not None]
    assert_same(leaves, batched(base, prefix, items), expected, items)
    with torch.no_grad():
        batched(base, make_prefix(base, *map(as_state, prompts)), items)
    again = batched(base, make_prefix(base, *map(as_state, prompts)), items)
    assert_same(leaves, again, expected, items)
    assert bytes_of(base) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_differ(family: str) -> None:
    """Without this, the test above could pass with every row behind the same prompt."""
    base = tiny_base(family)
    item = items_of(base)[0]
    with torch.no_grad():
        prompts = (None, random_prompt(base, 2, 0), random_prompt(base, 5, 1))
        found = torch.stack([plain_logits(base, prompt, item)[-1] for prompt in prompts])
    assert nn.functional.pdist(found, p=torch.inf).min() > 0.05


@pytest.mark.parametrize("family", IN_LAYERS)
def test_keys_and_values_equal_tokens_that_have_them(family: str) -> None:
    base = tiny_base(family)
    states = [random_layers(base, 3, 1), random_layers(base, 1, 2)]
    items = items_of(base, [row % 2 for row in ROWS])
    expected = [layer_logits(base, states[item.prompt], item) for item in items]
    leaves = [tensor for state in states for tensor in state.tensors]
    assert_same(leaves, batched(base, make_prefix(base, *states), items), expected, items)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_keys_and_values_with_the_attention_of_a_gpu(family: str) -> None:
    base = FrozenLM(tiny_model(family), tiny_tokenizer(family), "x")
    base.model.set_attn_implementation("sdpa")
    state, items = random_layers(base, 3), items_of(base, [0] * len(ROWS))
    expected = [layer_logits(base, state, item) for item in items]
    assert_same(state.tensors, batched(base, make_prefix(base, state), items), expected, items)
    # alone, without padding, there is no mask
    assert_same(state.tensors, batched(base, make_prefix(base, state), items[3:4]), expected[3:4], items[3:4])


@pytest.mark.parametrize("family", IN_LAYERS)
def test_both_kinds_in_one_batch(family: str) -> None:
    base = tiny_base(family)
    tokens = [random_prompt(base, 2, 0), None, random_prompt(base, 6, 1)]
    layers = [random_layers(base, 4, 1), random_layers(base, 1, 2)]
    items = items_of(base)
    expected = [
        plain_logits(base, tokens[item.prompt], item)
        if item.prompt < 3
        else layer_logits(base, layers[item.prompt - 3], item)
        for item in items
    ]
    leaves = [*(one for one in tokens if one is not None), *(tensor for state in layers for tensor in state.tensors)]
    prefix = make_prefix(base, *map(as_state, tokens), *layers)
    assert_same(leaves, batched(base, prefix, items), expected, items)


@pytest.mark.parametrize("family", IN_LAYERS)
def test_the_start_is_what_the_layers_see_of_the_words(family: str) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), 3).detach()
    state = compute_keys_and_values(base, prompt)
    encoder, decoder = base.model.get_encoder(), base.model.get_decoder()
    frame = base.special_tokens
    outputs: dict[nn.Module, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for stack in (encoder, decoder):
            for module in (module for pair in self_attention(stack) for module in pair):
                hooks.enter_context(
                    module.register_forward_hook(lambda module, _, output: outputs.__setitem__(module, output[0]))
                )
        empty = torch.cat([embedded(base, frame.bos), prompt, embedded(base, frame.suffix)])
        states = encoder(inputs_embeds=empty[None]).last_hidden_state
        answer = torch.cat([embedded(base, frame.decoder_start), prompt])
        base.model(encoder_outputs=(states,), decoder_inputs_embeds=for_decoder(base, answer)[None])
    first = len(frame.bos)
    expected = [[outputs[module][first : first + 3] for module in pair] for pair in self_attention(encoder)]
    expected += [[outputs[module][len(frame.decoder_start) :] for module in pair] for pair in self_attention(decoder)]
    assert len(expected) == len(state.tensors)
    for own, pair in zip(state.tensors, expected, strict=True):
        assert own.dtype == torch.float32
        assert not own.requires_grad
        for part, rows in zip(own, pair, strict=True):
            torch.testing.assert_close(part.transpose(0, 1).flatten(1), rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", WITHOUT_LAYERS)
def test_a_family_whose_attention_takes_nothing_refuses_keys_and_values(family: str) -> None:
    base = tiny_base(family)
    words = r"has layers that take no keys and values of a prompt: use a method that learns virtual tokens"
    with pytest.raises(BaseModelError, match=words):
        compute_keys_and_values(base, random_prompt(base, 2))
    with pytest.raises(BaseModelError, match=words):
        make_prefix(base, PromptState("key_values", (torch.zeros(2, 4, 3, 8),) * 4))


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_that_takes_prompts_in_its_layers_is_the_same_without(family: str) -> None:
    base = FrozenLM(tiny_model(family), tiny_tokenizer(family), "x")
    items = items_of(base, [0] * len(ROWS))
    with torch.no_grad():
        before = batched(base, make_prefix(base, None), items)
        find_prompted_layers(base)
        after = batched(base, make_prefix(base, None), items)
        expected = [plain_logits(base, None, item) for item in items]
    for one, other, plain in zip(before, after, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, plain, atol=ATOL, rtol=0)


def test_a_text_is_encoded_once_behind_each_prompt() -> None:
    base = tiny_base("t5")
    one, other = items_of(base, [0, 0])
    items = [
        one,
        EncodedSequence(0, one.ids, (0,), (7,), decoder_ids=(*one.decoder_ids, 9)),
        other,
        EncodedSequence(0, one.ids, (0,), (7,), prompt=1, decoder_ids=one.decoder_ids),
    ]
    batch = collate(items, base.device)
    assert batch.reads.tolist() == [0, 0, 1, 2]
    assert batch.which.tolist() == [0, 0, 0, 1]
    assert len(batch.input_ids) == 3
    prompts = [random_prompt(base, 2, 0), random_prompt(base, 3, 1)]
    rows: list[int] = []
    encoder = base.model.get_encoder()
    with encoder.register_forward_pre_hook(
        lambda _, __, options: rows.append(len(options["inputs_embeds"])), with_kwargs=True
    ):
        found = batched(base, make_prefix(base, *map(as_state, prompts)), items)
    assert rows == [3]
    for logits, item in zip(found, items, strict=True):
        expected = plain_logits(base, prompts[item.prompt], item)[list(item.positions)]
        torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)


GREEDY = GenerationConfig(8)
StateMaker = Callable[[FrozenLM], PromptState | None]
STATES: dict[str, StateMaker] = {
    "nothing": lambda base: None,
    "virtual tokens": lambda base: as_state(random_prompt(base, 3).detach()),
    "keys and values": lambda base: random_layers(base, 3).detached(),
}


def logits_behind(base: FrozenLM, state: PromptState | None, item: EncodedSequence) -> Tensor:
    if state is not None and state.kind == "key_values":
        return layer_logits(base, state, item)
    return plain_logits(base, None if state is None else state.tensor, item)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_grow_see_what_whole_ones_see(family: str) -> None:
    base = tiny_base(family)
    states = [make(base) for kind, make in STATES.items() if kind != "keys and values" or family in IN_LAYERS]
    items = items_of(base, [row % len(states) for row in ROWS])
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(5, 320, (3, len(items)), generator=generator)
    with torch.no_grad():
        prefix = make_prefix(base, *states)
        assert isinstance(prefix, EncodedPrefix)
        decoding_batch = Seq2SeqDecodingBatch(prefix, collate(items, base.device))
        rows = list(range(len(items)))
        for step in range(4):
            for row, logits in zip(rows, base.logits(decoding_batch.last), strict=True):
                item = items[row]
                given = (*base.special_tokens.decoder_start, *tokens[:step, row].tolist())
                whole = EncodedSequence(0, item.ids, (), decoder_ids=given)
                expected = logits_behind(base, states[item.prompt], whole)[-1]
                torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)
            if step == 1:
                decoding_batch.keep(torch.tensor([0, 2, 3, 6]))
                rows = [0, 2, 3, 6]
            if step < 3:
                decoding_batch.extend(tokens[step, rows])


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("family", ["t5", "t5_v1_1", "bart"])
def test_completions_are_those_of_whole_forward_passes(family: str, kind: str) -> None:
    base = tiny_base(family)
    state, items = STATES[kind](base), items_of(base)
    expected = {}
    with torch.no_grad():
        for item in items:
            tokens: list[int] = []
            while len(tokens) < GREEDY.max_new_tokens:
                whole = EncodedSequence(0, item.ids, (), decoder_ids=(*base.special_tokens.decoder_start, *tokens))
                token = int(logits_behind(base, state, whole)[-1].argmax())
                if token == base.tokenizer.eos_token_id:
                    break
                tokens.append(token)
            expected[item.example] = base.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    texts = [item.ids for item in items]
    assert len(set(expected.values())) > 1
    for budget in (2048, 40):
        found = complete(base, make_prefix(base, state), texts, GREEDY, budget)
        assert {index: text for index, text, _ in found} == expected


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_completions_are_those_of_generate(family: str) -> None:
    base, prompt = tiny_base(family), random_prompt(tiny_base(family), 3).detach()
    texts = [item.ids for item in items_of(base)]
    done = complete(base, make_prefix(base, as_state(prompt)), texts, GREEDY, 2048)
    found = {index: text for index, text, _ in done}
    for index, ids in enumerate(texts):
        tokens = base.model.generate(
            inputs_embeds=torch.cat([embedded(base, base.special_tokens.bos), prompt, embedded(base, ids)])[None],
            decoder_input_ids=torch.tensor([base.special_tokens.decoder_start]),
            max_new_tokens=GREEDY.max_new_tokens,
            do_sample=False,
            forced_eos_token_id=None,
        )[0, len(base.special_tokens.decoder_start) :]
        assert found[index] == base.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def peft_model(family: str, config: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(tiny_model(family), config).eval()


peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@peft_warns
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_prompt_tuning_is_that_of_peft(family: str) -> None:
    from peft import PromptTuningConfig, TaskType

    base, prompt = tiny_base(family), random_prompt(tiny_base(family), 4)
    # PEFT has its prompt before BOS: there BOS is one more virtual token
    whole = torch.cat([embedded(base, base.special_tokens.bos), prompt])
    peft = peft_model(family, PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=len(whole)))
    with torch.no_grad():
        # a second half, for the decoder, is not used
        peft.prompt_encoder.default.embedding.weight[: len(whole)] = whole
    items = items_of(base, [0] * len(ROWS))
    found = batched(base, make_prefix(base, as_state(prompt)), items)
    for logits, item in zip(found, items, strict=True):
        ids, answer = torch.tensor([item.ids]), torch.tensor([item.decoder_ids])
        expected = peft(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=answer).logits[0]
        torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)


@peft_warns
def test_prefix_tuning_of_the_decoder_is_that_of_peft() -> None:
    """T5 only, the decoder only, and both layers alike.

    PEFT's cache moves BART's positions; it has no prefix in the encoder; and it cuts its ``2 * L`` rows for self- and
    cross-attention, of which it drops the latter, so that the second half of the layers repeats the first.
    """
    from peft import PrefixTuningConfig, TaskType

    base = tiny_base("t5")
    peft = peft_model("t5", PrefixTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=4))
    pair = random_layers(base, 4).tensors[-1].detach()
    modules = find_prompted_layers(base).decoder
    assert len(modules) == 2
    decoder = LayerPrefixes.of(modules, [(pair, pair)], torch.zeros(0, dtype=torch.long))
    prefix = EncodedPrefix(base, (torch.zeros(0, base.embedding_size),), None, decoder)
    with torch.no_grad():
        # [layers, 2, heads, P, D] to [P, layers * 2 * heads * D]
        flat = torch.stack([pair, torch.full_like(pair, torch.nan)]).permute(3, 0, 1, 2, 4).flatten(1)
        peft.prompt_encoder.default.embedding.weight.copy_(flat)
    items = items_of(base, [0] * len(ROWS))
    for logits, item in zip(batched(base, prefix, items), items, strict=True):
        ids, answer = torch.tensor([item.ids]), torch.tensor([item.decoder_ids])
        expected = peft(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=answer).logits[0]
        torch.testing.assert_close(logits, expected, atol=ATOL, rtol=0)


def test_frames_of_the_two_families() -> None:
    t5, bart = tiny_base("t5").special_tokens, tiny_base("bart").special_tokens
    tokenizer = tiny_tokenizer("t5")
    pad = tokenizer.convert_tokens_to_ids(PAD)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert (t5.bos, t5.suffix, t5.decoder_start) == ((), (eos,), (pad,))
    assert (bart.bos, bart.suffix, bart.decoder_start) == ((bos,), (eos,), (eos, bos))
