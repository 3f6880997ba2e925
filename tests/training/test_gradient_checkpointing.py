"""Gradient checkpointing behind a shared prefix: the same numbers from less memory."""

from typing import Any

import pytest
import torch
from helpers.runs import train
from helpers.small_tasks import Recorder, reviews_task
from helpers.tiny_models import NOT_SHARING, tiny_base
from torch import Tensor

from softprompt.config import TrainConfig
from softprompt.errors import ConfigError
from softprompt.prompts.prefix import make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.gradient_checkpointing import checkpoint_gradients

METHODS = ("prompt-tuning", "prefix-tuning")


def learned(family: str, method: str, *, recompute: bool) -> tuple[Tensor, ...]:
    config = TrainConfig(
        steps=4, batch_size=8, length=12, eval_every=4, method=method, gradient_checkpointing=recompute
    )
    return train(tiny_base(family), reviews_task(), config, Recorder()).state.tensors


# windows of 8 tokens, rotary and learned positions, a family that does not share its prefix, and encoder-decoders
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mpt", "t5", "bart"])
def test_learns_the_same(family: str, method: str) -> None:
    if family in NOT_SHARING and method == "prefix-tuning":
        pytest.skip("keeps no keys and values")
    for mine, theirs in zip(
        learned(family, method, recompute=True), learned(family, method, recompute=False), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_every_layer_runs_twice_and_keeps_little(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("gemma2")
    calls: list[int] = []
    attention = base.backbone.layers[0].self_attn
    original = attention.forward

    def counted(*inputs: Any, **options: Any) -> Any:
        calls.append(options["hidden_states"].shape[0])
        return original(*inputs, **options)

    # what is measured of a model once is measured before
    make_prefix(base, PromptState.of_embeddings(torch.zeros(3, 32)))
    monkeypatch.setattr(attention, "forward", counted)
    ids = torch.randint(5, 320, (6, 20), generator=torch.Generator().manual_seed(0))
    kept: dict[bool, int] = {}
    for enabled in (False, True):
        calls.clear()
        prompt = torch.zeros(3, 32, requires_grad=True)
        saved: list[int] = []

        def note(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with checkpoint_gradients(base, enabled):
            prefix = make_prefix(base, PromptState.of_embeddings(prompt))
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                loss = prefix.hidden(ids, torch.ones_like(ids)).sum()
            kept[enabled] = sum(saved)
            loss.backward()
        assert prompt.grad is not None
        # the prefix's own pass, with batch 1, is not repeated: it fills a cache
        assert calls.count(1) == 1
        assert calls.count(6) == (2 if enabled else 1)
    assert kept[True] < kept[False] / 3


@pytest.mark.parametrize("method", METHODS)
def test_every_layer_of_encoder_and_decoder_runs_twice(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    base = tiny_base("bart")
    calls: list[tuple[bool, str]] = []
    recompute = False
    for name, stack in (("encoder", base.model.get_encoder()), ("decoder", base.model.get_decoder())):
        original = stack.layers[1].fc1.forward

        def counted(inputs: Tensor, original: Any = original, name: str = name) -> Any:
            calls.append((recompute, name))
            return original(inputs)

        monkeypatch.setattr(stack.layers[1].fc1, "forward", counted)
    for recompute in (False, True):
        config = TrainConfig(steps=1, batch_size=4, length=3, method=method, gradient_checkpointing=recompute)
        train(base, reviews_task(train=8, validation=1), config, Recorder())
    for name in ("encoder", "decoder"):
        assert calls.count((True, name)) == calls.count((False, name)) + 1


def test_layers_are_as_before_afterwards() -> None:
    base = tiny_base("llama")
    before = [layer.forward for layer in base.backbone.layers]
    with checkpoint_gradients(base):
        assert all("forward" in vars(layer) for layer in base.backbone.layers)
    assert [layer.forward for layer in base.backbone.layers] == before
    with pytest.raises(RuntimeError, match="inside"), checkpoint_gradients(base):
        raise RuntimeError("inside")
    assert not any("forward" in vars(layer) for layer in base.backbone.layers)


def test_unknown_layers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.modeling_layers.GradientCheckpointingLayer", int)
    with pytest.raises(ConfigError, match=r"layers of 'tiny llama' .* are not known; save memory by a smaller"):
        train(tiny_base("llama"), reviews_task(), TrainConfig(steps=1, gradient_checkpointing=True), Recorder())
