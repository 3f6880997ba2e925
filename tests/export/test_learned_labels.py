"""Labels that were learned with a prompt, as tokens of a baked checkpoint: their logits are the learned rows'."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.learned_prompts import SPEC, learned, text_ids
from helpers.tiny_models import plain_logits, tiny_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.errors import PromptFileError
from softprompt.export.engine_client import Tasks
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.inference.predictor import Predictor
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt


def soft(family: str, count: int = 3) -> Prompt:
    generator = torch.Generator().manual_seed(4)
    prompt = learned(family, length=4)
    rows = torch.randn(count, prompt.state.tensor.shape[1], generator=generator)
    names = tuple(f"kind {number}" for number in range(count))
    spec = replace(SPEC, labels=names, verbalizers=names)
    return replace(prompt, states=(replace(prompt.state, label_rows=rows),), spec=spec)


def three(family: str) -> dict[str, Prompt]:
    """One that has learned its labels between two whose labels are words."""
    return {"one": learned(family), "soft": soft(family), "two": learned(family, length=3, seed=2)}


@torch.no_grad()
def check_logits(base: FrozenLM, folder: Path) -> None:
    """Behind every task: what the base model says of its own tokens, and of labels the learned rows."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tasks, text = json.loads((folder / "softprompt.json").read_text())["tasks"], text_ids(base)
    for name, prompt in three(base.name.removeprefix("tiny ")).items():
        ids = [*base.bos_ids, *tasks[name]["ids"], *text]
        told = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        found, expected = told.logits[0, -1], plain_logits(base, prompt.state.tensor, text)[-1]
        torch.testing.assert_close(found[: len(expected)], expected, atol=1e-4, rtol=1e-4)
        if prompt.state.label_rows is None:
            assert "label_ids" not in tasks[name]
        else:
            logits = told.hidden_states[-1][0, -1] @ prompt.state.label_rows.T
            torch.testing.assert_close(found[tasks[name]["label_ids"]], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_logits_are_those_of_the_learned_rows(family: str, tmp_path: Path) -> None:
    base = tiny_base(family)
    bake_vocabulary(base, three(family), tmp_path / "baked")
    check_logits(base, tmp_path / "baked")


def test_answers_are_held_to_them_and_read_by_their_names(tmp_path: Path) -> None:
    base, prompts = tiny_base("gemma3"), three("gemma3")
    bake_vocabulary(base, prompts, tmp_path / "baked")
    tasks = Tasks.load(tmp_path / "baked")
    known = json.loads((tmp_path / "baked" / "softprompt.json").read_text())["tasks"]["soft"]["label_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "baked")
    predictor = Predictor(base, prompts["soft"].spec, prompts["soft"].states)
    for text in ("a good film", "the cat <|sp:soft:label:1|> sat", "dull"):
        request = tasks.request("soft", text, model="served")
        assert request["allowed_token_ids"] == known
        assert request["max_tokens"] == 1
        assert request["skip_special_tokens"] is False
        assert not set(request["prompt"]) & set(known)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([request["prompt"]])).logits[0, -1]
        chosen = known[int(logits[known].argmax())]
        # as an engine says it that was asked so
        assert tasks.answer("soft", tokenizer.decode([chosen])) == predictor.predict(text).label
    assert set(known) <= set(tasks.never)
    assert "skip_special_tokens" not in tasks.request("one", "a film", model="served")


def test_tied_weights_have_no_rows_for_them(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"'soft' has learned rows of the output layer for its labels"):
        bake_vocabulary(tiny_base("gemma3"), three("gemma3"), tmp_path / "baked", tied=True)
    assert not (tmp_path / "baked").exists()


def test_a_checkpoint_that_lost_them_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    from softprompt.errors import BaseModelError

    whole = PreTrainedModel.save_pretrained

    def losing(model: Any, place: Path, **options: Any) -> None:
        whole(model, place, **options)
        tensors = load_file(Path(place) / "model.safetensors")
        tensors["lm_head.weight"][-8:] = 0.0
        save_file(tensors, Path(place) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", losing)
    with pytest.raises(BaseModelError, match="off those of the prompt"):
        bake_vocabulary(tiny_base("llama"), {"soft": soft("llama", 8)}, tmp_path / "baked")


def test_labels_that_softprompt_json_lacks(tmp_path: Path) -> None:
    bake_vocabulary(tiny_base("llama"), {"soft": soft("llama")}, tmp_path / "baked")
    place = tmp_path / "baked" / "softprompt.json"
    usage = json.loads(place.read_text())
    usage["tasks"]["soft"]["label_ids"].pop()
    place.write_text(json.dumps(usage))
    with pytest.raises(PromptFileError, match="2 tokens for 3 labels"):
        Tasks.load(tmp_path / "baked")
