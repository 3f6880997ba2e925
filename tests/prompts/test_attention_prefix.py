"""Prefix tuning where layers differ: in the size of their heads, in how many keys and values they have."""

from typing import Any

import pytest
import torch
from helpers.small_tasks import FAST, Recorder, reviews_task
from helpers.tiny_models import plain_logits, random_prompt, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from softprompt.inference.evaluation import evaluate
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import compute_keys_and_values, make_cached_prefix
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit

LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
# keys and values [2, kv_heads, P, head_dim] of a sliding layer and of a full one
SHAPES: dict[str, tuple[dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    "head sizes": ({"global_head_dim": 16}, (2, 8), (2, 16)),
    "heads": (
        {"global_head_dim": 8, "num_global_key_value_heads": 4, "attention_k_eq_v": True},
        (2, 8),
        (4, 8),
    ),
    "both": (
        {"global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True},
        (2, 8),
        (1, 16),
    ),
}


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest) -> tuple[FrozenLM, list[tuple[int, ...]]]:
    """A tiny Gemma 4 with layers of two kinds, and the shape of keys and values of four tokens in each."""
    settings, sliding, full = SHAPES[request.param]
    config = AutoConfig.for_model(
        "gemma4_text",
        vocab_size=320,
        vocab_size_per_layer_input=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=160,
        sliding_window=8,
        layer_types=LAYERS,
        hidden_size_per_layer_input=0,
        **settings,
    )
    torch.manual_seed(0)
    base = FrozenLM(AutoModelForCausalLM.from_config(config), tiny_tokenizer("gemma3"), "tiny gemma4")
    return base, [(2, heads, 4, size) for heads, size in (sliding, full) * 2]


def test_keys_and_values_of_words_are_the_words(case: tuple[FrozenLM, list[tuple[int, ...]]]) -> None:
    base, shapes = case
    prompt, ids = random_prompt(base, 4).detach(), list(range(5, 20))
    state = compute_keys_and_values(base, prompt)
    assert [tuple(tensor.shape) for tensor in state.tensors] == shapes
    assert len(set(shapes)) == 2
    with torch.no_grad():
        hidden = make_cached_prefix(base, state).hidden(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[
            0
        ]
        torch.testing.assert_close(base.logits(hidden), plain_logits(base, prompt, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("reparameterization", "checkpointing"), [("none", False), ("mlp", True)])
def test_learns_every_layer(
    case: tuple[FrozenLM, list[tuple[int, ...]]], reparameterization: str, checkpointing: bool, tmp_path: Any
) -> None:
    base, shapes = case
    task, seen = reviews_task(), Recorder()
    options = {"reparameterization": reparameterization, **({"width": 128} if reparameterization == "mlp" else {})}
    # keys and values of every layer learn at a fifth of the rate
    rate = 1.5 if reparameterization == "none" else 0.3
    settings = {
        **FAST,
        "learning_rate": rate,
        "method": "prefix-tuning",
        "method_options": options,
        "gradient_checkpointing": checkpointing,
    }
    prompt = fit(base, task, out=tmp_path / "p", callback=seen, **{**settings, "steps": 80, "eval_every": 80})
    assert [tuple(tensor.shape) for tensor in prompt.state.tensors] == shapes
    assert sum(seen.losses[-5:]) < 0.75 * sum(seen.losses[:5])
    start = fit(base, task, **{**settings, "steps": 1, "eval_every": 1, "learning_rate": 1e-6})
    for before, after in zip(start.state.tensors, prompt.state.tensors, strict=True):
        assert float((before - after).abs().amax(dim=(1, 2, 3)).min()) > 1e-3
    loaded = load_prompt(tmp_path / "p")
    assert evaluate(base, task.test, loaded).metric.value == prompt.metrics["test"]["value"]
