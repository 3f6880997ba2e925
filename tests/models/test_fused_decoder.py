"""Our layers give the model's own hidden states and gradient, or are not used."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from helpers.fused_inputs import FUSED, ids_of, learned, ragged
from helpers.tiny_models import WINDOW, tiny_base, tiny_model, tiny_tokenizer
from torch import Tensor

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.kernels import compilation as compiling
from softprompt.models.kernels import decoder_blocks, elementwise, fused_layer, length_bucketing
from softprompt.models.kernels.fused_decoder import find_fused_decoder
from softprompt.prompts.prefix import compute_keys_and_values, make_cached_prefix, make_concatenated_prefix, make_prefix
from softprompt.prompts.shared_prefix_attention import SharedPrefixes
from softprompt.prompts.state import PromptState
from softprompt.training.gradient_checkpointing import checkpoint_gradients

COMPILER = pytest.mark.skipif(compiling.shutil.which("g++") is None, reason="no C++ compiler is installed")
OTHERS = ("gpt2", "gemma2", "cohere", "phi", "bloom", "mamba", "opt")


@pytest.fixture(params=FUSED)
def base(request: pytest.FixtureRequest) -> FrozenLM:
    return tiny_base(request.param)


def test_families_built_like_llama(base: FrozenLM) -> None:
    assert find_fused_decoder(base) is not None


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_keep_their_own_layers(family: str) -> None:
    assert find_fused_decoder(tiny_base(family)) is None


def test_weights_that_may_change_keep_their_own_layers() -> None:
    assert find_fused_decoder(FrozenLM(tiny_model("llama"), tiny_tokenizer("llama"), "tiny", lasting=False)) is None


def test_queries_that_grow_with_their_place_keep_their_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ministral's, beyond the length that it was first trained on: a few tokens do not show it."""
    model = tiny_model("llama")
    assert find_fused_decoder(FrozenLM(model, tiny_tokenizer("llama"), "tiny")) is not None
    monkeypatch.setitem(model.config.rope_parameters, "llama_4_scaling_beta", 0.1)
    assert find_fused_decoder(FrozenLM(model, tiny_tokenizer("llama"), "tiny")) is None


def test_a_layer_of_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(elementwise.ACTIVATIONS, "silu", (1.1, 0.0))
    assert find_fused_decoder(FrozenLM(tiny_model("llama"), tiny_tokenizer("llama"), "tiny")) is None


@pytest.mark.parametrize("lengths", [(3,), (3, 3), (2, 5, 1)])
@pytest.mark.parametrize("call", [length_bucketing.CALL, 1])
def test_mixed_prompts_and_ragged_texts(
    base: FrozenLM, lengths: tuple[int, ...], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states and gradient, against BOS, prompt and text concatenated."""
    monkeypatch.setattr(length_bucketing, "CALL", call)
    sizes = [4, 1, 6, 3, 6, 2, 1, 2]
    ids, mask = ids_of(len(sizes), max(sizes)), ragged(sizes)
    which = torch.tensor([2, 0, 1, 0, 2, 1, 0, 0]) % len(lengths)
    results = []
    for make in (make_prefix, make_concatenated_prefix):
        prompts = [learned(base, length, seed) for seed, length in enumerate(lengths)]
        prefix = make(base, *map(PromptState.of_embeddings, prompts))
        hidden = prefix.hidden(ids, mask, which)[mask.bool()]
        weight = torch.linspace(-1, 1, hidden.numel()).view_as(hidden)
        results.append([hidden.detach(), *torch.autograd.grad((hidden * weight).sum(), prompts)])
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [(3, 3), (4, 2, 4)])
def test_several_prompts_in_one_call(base: FrozenLM, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is learned, texts behind prompts of one length: hidden states against BOS, prompt and text."""
    monkeypatch.setattr(length_bucketing, "COPIED", 1e9)
    calls: list[tuple[int, int]] = []
    attend = decoder_blocks.attend

    def counted(own: Any, prefix: Any, texts: Any) -> Any:
        calls.append((len(texts.attention_mask), 0 if prefix is None else len(prefix[0])))
        return attend(own, prefix, texts)

    monkeypatch.setattr(decoder_blocks, "attend", counted)
    sizes = [3, 1, 3, 2, 3, 2, 1, 2]
    ids, mask = ids_of(len(sizes), max(sizes)), ragged(sizes)
    which = torch.tensor([1, 0, 1, 0, 0, 1, 0, 0]) if len(lengths) == 2 else torch.tensor([2, 0, 1, 0, 2, 1, 0, 0])
    prompts = [PromptState.of_embeddings(learned(base, size, seed).detach()) for seed, size in enumerate(lengths)]
    right = make_concatenated_prefix(base, *prompts).hidden(ids, mask, which)[mask.bool()]
    with torch.no_grad():
        prefix = make_prefix(base, *prompts)
        calls.clear()
        found = prefix.hidden(ids, mask, which)[mask.bool()]
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    kv_heads = base.config.num_key_value_heads
    # each layer once for those of one length, and once more for the other
    several = [(8, 8 * kv_heads)] if len(lengths) == 2 else [(6, 6 * kv_heads), (2, kv_heads)]
    assert calls == several * base.config.num_hidden_layers


def test_keys_and_values_learn(base: FrozenLM) -> None:
    """The gradient of a prompt of keys and values, against ``transformers``' cache."""
    ids, mask = ids_of(3, 5), ragged([5, 2, 4])
    state = compute_keys_and_values(base, learned(base, 4, 0).detach())
    results = []
    for own in (True, False):
        tensors = [tensor.clone().requires_grad_() for tensor in state.tensors]
        prefix = make_cached_prefix(base, PromptState("key_values", tuple(tensors)))
        # with a cache of its own to fill, the model's layers run
        cache = None if own else prefix.expand(torch.zeros(3, dtype=torch.long))
        hidden = prefix.hidden(ids, mask, cache=cache)[mask.bool()]
        results.append([hidden.detach(), *torch.autograd.grad(hidden.square().sum(), tensors)])
    for found, right in zip(*results, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_the_same_place_may_be_read_twice(base: FrozenLM) -> None:
    decoder = find_fused_decoder(base)
    assert decoder is not None
    ids, mask = ids_of(2, 4), ragged([4, 3])
    row, column = torch.tensor([1, 0, 1, 0]), torch.tensor([2, 3, 2, 0])
    texts = base.embed(ids).requires_grad_()
    twice = decoder.read(texts, mask, row, column)
    torch.testing.assert_close(twice[0], twice[2])
    (gradient,) = torch.autograd.grad(twice.sum(), texts)
    once = decoder.read(texts, mask, row[:2], column[:2])
    (single,) = torch.autograd.grad(once.sum(), texts)
    torch.testing.assert_close(gradient[1], 2 * single[1])


@pytest.mark.parametrize("family", ["gemma3", "mistral"])
def test_an_outgrown_window_is_left_to_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(family)
    prefix = make_prefix(base, PromptState.of_embeddings(learned(base, 3, 0)))
    assert find_fused_decoder(base) is not None
    calls: list[int] = []
    original = fused_layer.LayerPass.apply
    monkeypatch.setattr(fused_layer.LayerPass, "apply", lambda *given: calls.append(1) or original(*given))
    for length, own in ((WINDOW - 4, True), (WINDOW, False)):
        calls.clear()
        prefix.hidden(ids_of(1, length), torch.ones(1, length, dtype=torch.long))
        assert bool(calls) == own


def test_recomputing_runs_each_layer_twice_with_the_same_gradient(
    base: FrozenLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    class Counted(fused_layer.LayerRun):
        def __init__(self, *given: Any) -> None:
            runs.append(1)
            super().__init__(*given)

    make_prefix(base, None)  # what is measured once a model is not counted
    monkeypatch.setattr(fused_layer, "LayerRun", Counted)
    counts, gradients = [], []
    for enabled in (False, True):
        runs.clear()
        prompt = learned(base, 3, 0)
        with checkpoint_gradients(base, enabled):
            prefix = make_prefix(base, PromptState.of_embeddings(prompt))
            loss = prefix.hidden(ids_of(2, 4), ragged([4, 2])).square().sum()
        gradients.append(torch.autograd.grad(loss, prompt)[0])
        counts.append(len(runs))
    assert counts[1] == 2 * counts[0]
    assert torch.equal(*gradients)


class TestPasses:
    """The gradients that are written out, against those that PyTorch derives."""

    def check(self, forward: Any, backward: Any, inputs: list[Tensor]) -> None:
        inputs = [each.requires_grad_() for each in inputs]
        output = forward(*inputs)
        coming = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
        expected = torch.autograd.grad(output, inputs, coming)
        with torch.no_grad():
            found = backward(coming, *inputs)
        for mine, theirs in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)

    def drawn(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def test_norm(self) -> None:
        by = elementwise.Norm(self.drawn(8, seed=1), 1e-6, False)
        self.check(
            lambda x: elementwise.norm(x, by)[0],
            lambda g, x: elementwise.norm_backward(g, x, elementwise.norm(x, by)[1], by),
            [self.drawn(5, 8)],
        )

    @pytest.mark.parametrize("normed", [True, False])
    def test_heads(self, normed: bool) -> None:
        by = elementwise.Norm(self.drawn(8, seed=1), 1e-6, False) if normed else None
        angle = self.drawn(5, 1, 4, seed=2)
        rotation = (torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1))
        self.check(
            lambda x: elementwise.rotate_heads(x, by, *rotation)[0],
            lambda g, x: elementwise.rotate_heads_backward(
                g, x, elementwise.rotate_heads(x, by, *rotation)[1], by, *rotation
            ),
            [self.drawn(5, 3, 8)],
        )

    @pytest.mark.parametrize("curve", sorted(elementwise.ACTIVATIONS))
    def test_gated(self, curve: str) -> None:
        from transformers.activations import ACT2FN

        numbers, own = elementwise.ACTIVATIONS[curve], ACT2FN[curve]
        gate, up = self.drawn(5, 8), self.drawn(5, 8, seed=1)
        torch.testing.assert_close(elementwise.activate_gate(gate, up, *numbers), own(gate) * up)
        self.check(
            lambda gate, up: elementwise.activate_gate(gate, up, *numbers),
            lambda g, gate, up: elementwise.activate_gate_backward(g, gate, up, *numbers),
            [gate, up],
        )

    def test_weights(self) -> None:
        hidden = torch.zeros(2, 3, 4).masked_fill(torch.ones(3, 4).triu(1).bool(), -torch.inf)

        def forward(prefix: Tensor, text: Tensor) -> Tensor:
            return torch.cat(elementwise.attention_weights(prefix, text, hidden, 0.5, torch.float32), dim=-1)

        prefix, text = self.drawn(2, 3, 6), self.drawn(2, 3, 4, seed=1)
        whole = torch.cat([prefix * 0.5, text * 0.5 + hidden], dim=-1).softmax(-1)
        torch.testing.assert_close(forward(prefix, text), whole)
        self.check(
            forward,
            lambda g, *given: elementwise.attention_weights_backward(
                *elementwise.attention_weights(*given, hidden, 0.5, torch.float32), g[..., :6], g[..., 6:], 0.5
            ),
            [prefix, text],
        )


class TestCompiled:
    def test_long_runs_of_large_models_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = tiny_base("llama")
        monkeypatch.setattr(compiling.shutil, "which", lambda name: "/usr/bin/g++")
        assert not compiling.should_compile(base, "auto", 300)
        monkeypatch.setattr(compiling, "ENOUGH", 300 * base.parameter_count)
        assert compiling.should_compile(base, "auto", 300)
        assert not compiling.should_compile(base, "auto", 299)
        assert not compiling.should_compile(base, "never", 300)
        assert not compiling.should_compile(tiny_base("gpt2"), "always", 300)
        monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
        assert not compiling.should_compile(base, "always", 300)

    def test_a_compiler_that_fails_only_costs_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*given: Any, **options: Any) -> Any:
            raise RuntimeError("no space left on device\nand what to do about it")

        monkeypatch.setattr(compiling, "_read", failing)
        notes: list[str] = []
        with compiling.compiled(tiny_base("llama"), True, notes.append):
            assert not decoder_blocks.is_compiled()
        assert notes == ["not compiled, which makes the run slower: no space left on device"]

    @pytest.mark.parametrize(
        ("wish", "first", "compiled_before"),
        [("auto", 0, 1), ("auto", 7, 7), ("always", 0, 0), ("never", 0, None)],
    )
    def test_a_run_shows_that_it_works_before_it_is_compiled(
        self, wish: Any, first: int, compiled_before: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where that is depends on the step alone, so a run that goes on computes the same."""
        base, step, notes = tiny_base("llama"), -1, []
        monkeypatch.setattr(compiling, "ENOUGH", 1)
        monkeypatch.setattr(compiling.shutil, "which", lambda _: "g++")
        entered: list[int] = []

        @contextmanager
        def compiled(base: FrozenLM, enabled: bool, note: Any) -> Iterator[None]:
            entered.append(step)
            yield
            entered.append(-1)

        monkeypatch.setattr(compiling, "compiled", compiled)
        with ExitStack() as stack:
            run = compiling.CompiledRun(stack, base, wish, 300, notes.append)
            for step in range(first, first + 4):
                run.before(step)
        assert entered == ([] if compiled_before is None else [compiled_before, -1])
        assert len(notes) == len(entered) // 2

    # what the compiler says when it is first imported
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, COMPILER])])
    def test_scores_of_bfloat16_lose_nothing(self, backend: str) -> None:
        draw = torch.Generator().manual_seed(0)
        query, keys = (torch.randn(2, count, 64, generator=draw).bfloat16() for count in (96, 21))
        right = query.double() @ keys.double().transpose(1, 2)
        found = torch.compile(decoder_blocks._multiply_in_float32, backend=backend)(query, query.float(), keys)
        assert found.dtype == torch.float32
        assert (found - right).abs().max() < 2**-16 * right.abs().max()
        assert (right.bfloat16() - right).abs().max() > 2**-10 * right.abs().max()

    @pytest.mark.slow
    @COMPILER
    def test_answers_are_the_same_and_nothing_is_compiled_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = tiny_base("gemma3")
        prompts = (learned(base, length, seed).detach() for seed, length in enumerate((6, 3, 6)))
        states = [PromptState.of_embeddings(prompt) for prompt in prompts]
        monkeypatch.setattr(length_bucketing, "COPIED", 1e9)
        with torch.no_grad():
            prefixes = tuple(make_cached_prefix(base, state) for state in (*states, None))
        results: list[list[Tensor]] = []
        for enabled in (False, True):
            results.append([])
            how = compiling.compiled(base, enabled, pytest.fail, learning=False)
            with torch.no_grad(), how, torch.compiler.set_stance("fail_on_recompile"):
                assert decoder_blocks.is_compiled() == enabled
                # behind each prompt several texts, or one; and behind two of one length together
                for which in ([0, 0, 1, 3, 3], [0, 1, 1, 1, 3], [1], [3, 3], [0, 2, 1, 2, 3], [2, 0, 2, 0, 2]):
                    items = [
                        EncodedSequence(row, tuple(ids_of(1, 3 + row % 3, row)[0].tolist()), (2,), prompt=prompt)
                        for row, prompt in enumerate(which)
                    ]
                    results[-1].append(SharedPrefixes(base, prefixes).scored(collate(items, base.device)))
        for found, right in zip(*results, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)

    @pytest.mark.slow
    @COMPILER
    def test_gives_the_same_and_nothing_is_compiled_later(self) -> None:
        base = tiny_base("gemma3")
        results: list[list[Tensor]] = []
        for enabled in (False, True):
            results.append([])
            with compiling.compiled(base, enabled, pytest.fail), torch.compiler.set_stance("fail_on_recompile"):
                assert decoder_blocks.is_compiled() == enabled
                for lengths, sizes in (((6,), [7, 3, 7, 1, 5]), ((4,), [9, 9]), ((5, 8, 5), [4, 4, 2, 6, 3, 3])):
                    prompts = [learned(base, length, seed) for seed, length in enumerate(lengths)]
                    prefix = make_prefix(base, *map(PromptState.of_embeddings, prompts))
                    which = torch.arange(len(sizes)) % len(lengths)
                    mask = ragged(sizes)
                    hidden = prefix.hidden(ids_of(*mask.shape), mask, which)[mask.bool()]
                    results[-1] += [hidden.detach(), *torch.autograd.grad(hidden.square().sum(), prompts)]
        for found, right in zip(*results, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_no_size_in_what_is_compiled_is_a_quotient() -> None:
    """A kernel would divide anew at every number: 4 to 20 times the time, of several key heads."""
    heads, group, size, count, length, prompt = 3, 5, 8, 4, 6, 7
    told: list[str] = []

    def tell(graph: Any, inputs: Any) -> Any:
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            told.extend(str((one.shape, one.stride())) for one in [value] if isinstance(one, torch.Tensor))
        return graph.forward

    own = (
        torch.randn(count, length, heads, group, size),
        *(torch.randn(count, length, heads, 1, size) for _ in range(2)),
    )
    mask = torch.zeros(count, length, 1, length)
    prefixes = (None, (heads, prompt, size), (heads, count, prompt, size))
    for prefix in (shape and (torch.randn(shape), torch.randn(shape)) for shape in prefixes):
        torch._dynamo.reset()
        forward = torch.compile(decoder_blocks._attend.__wrapped__, dynamic=True, backend=tell)
        found, cache = forward(*own, prefix, mask, 0.1)
        if prefix is None or prefix[0].dim() == 3:
            backward = torch.compile(decoder_blocks._attend_backward.__wrapped__, dynamic=True, backend=tell)
            backward(torch.ones_like(found), cache, prefix, 0.1)
    assert len(told) > 60
    assert [shape for shape in told if "//" in shape or "/" in shape] == []
