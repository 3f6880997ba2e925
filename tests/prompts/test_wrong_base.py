"""A prompt on another base model than its own is refused before that model's weights are read."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.learned_prompts import learned
from helpers.small_tasks import command
from helpers.tiny_models import FAMILIES, save_tiny, tiny_base

from softprompt.errors import PromptFileError
from softprompt.models.fingerprint import UnloadedModel
from softprompt.models.loading import load_model

CPU = ["--device", "cpu", "--dtype", "float32"]


def without_weights(folder: Path, family: str) -> Path:
    """The family's model, configuration and tokenizer only: reading its weights would fail."""
    save_tiny(folder, family)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return folder


@pytest.mark.parametrize("family", [*FAMILIES, "t5", "bart"])
def test_what_is_known_before_is_what_is_known_after(tmp_path: Path, family: str) -> None:
    seen: list[UnloadedModel] = []
    base = load_model(save_tiny(tmp_path / family, family), device="cpu", dtype="float32", check=seen.append)
    (outline,) = seen
    assert outline.fingerprint == {part: base.fingerprint[part] for part in ("config", "tokenizer")}
    assert (outline.name, outline.quantization) == (base.name, base.quantization)
    learned(family).check_base(outline)


@pytest.mark.parametrize(("other", "parts"), [("mistral", "config"), ("gpt2", "config, tokenizer")])
def test_another_model_is_refused_without_its_weights(tmp_path: Path, other: str, parts: str) -> None:
    folder = without_weights(tmp_path / "other", other)
    with pytest.raises(PromptFileError, match=rf"was learned on 'tiny llama', but .* \(differing: {parts}\)"):
        load_model(folder, check=learned("llama").check_base)


def test_one_quantized_otherwise_is_refused_without_its_weights(tmp_path: Path) -> None:
    folder = without_weights(tmp_path / "model", "llama")
    with pytest.raises(PromptFileError, match=r"learned on 'tiny llama', not quantized, but .* quantized as int8"):
        load_model(folder, quantize="int8", check=learned("llama").check_base)


def test_other_weights_of_the_same_shape_are_refused_once_they_are_there(tmp_path: Path) -> None:
    prompt = learned("llama")
    other = replace(prompt, base_fingerprint={**prompt.base_fingerprint, "weights": "0" * 64})
    base = load_model(save_tiny(tmp_path / "llama", "llama"), device="cpu", dtype="float32", check=other.check_base)
    with pytest.raises(PromptFileError, match=r"differing: weights"):
        other.check_base(base)


def test_commands_refuse_it(tmp_path: Path) -> None:
    learned("llama").save(tmp_path / "p")
    model = without_weights(tmp_path / "other", "gpt2")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "film {n}", "label": "{"bad" if n % 2 else "good"}"}}\n' for n in range(40)))
    on = ["--model", model, *CPU]
    for arguments in (
        ["predict", tmp_path / "p", "a film", *on],
        ["eval", tmp_path / "p", "--data", rows, *on],
        ["export", tmp_path / "p", "--format", "vocab", "--out", tmp_path / "out", *on],
        ["inspect", tmp_path / "p", "--data", rows, *on],
        ["serve", "--prompt", tmp_path / "p", *on],
        ["train", "--data", rows, "--init", f"prompt:{tmp_path / 'p'}", "--out", tmp_path / "out", *on],
        ["distill", "--teacher", tmp_path / "p", "--data", rows, "--out", tmp_path / "out", *on],
    ):
        done = command(*arguments)
        assert done.code == 2, (arguments[0], done.err)
        assert "was learned on 'tiny llama', but the base model given is" in done.error, arguments[0]
    assert tiny_base("llama").name == "tiny llama"
