"""Prompts and a store that were saved before the package was put into rooms are read as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recording import tensors_of
from helpers.tiny_models import tiny_base
from safetensors.torch import load_file

import softprompt as sp
from softprompt.inference.predictor import Predictor

SAVED = Path(__file__).parents[1] / "fixtures" / "saved_before"
EXPECTED: dict[str, Any] = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_prompt_is_read_and_saved_again_as_it_was(name: str, tmp_path: Path) -> None:
    prompt = sp.load_prompt(SAVED / name)
    prompt.save(tmp_path / "again")
    again = tensors_of(load_file(tmp_path / "again" / "prompt.safetensors"))
    assert again["sha256"] == EXPECTED[name]["sha256"]


@pytest.mark.parametrize("name", [name for name, told in EXPECTED.items() if "log_probabilities" in told])
def test_it_answers_as_it_did(name: str) -> None:
    told = EXPECTED[name]
    predictor = Predictor.of_prompt(tiny_base(told["family"]), sp.load_prompt(SAVED / name))
    found = predictor.label_log_probabilities([sp.Example(text) for text in told["texts"]])
    torch.testing.assert_close(found, torch.tensor(told["log_probabilities"]), atol=1e-3, rtol=1e-3)


def test_a_prompt_for_completions_completes() -> None:
    told = EXPECTED["completions"]
    predictor = Predictor.of_prompt(tiny_base(told["family"]), sp.load_prompt(SAVED / "completions"))
    assert all(one.completion is not None for one in predictor.predict([sp.Example(text) for text in told["texts"]]))


def test_a_store_knows_its_versions_and_alias() -> None:
    store = sp.Store(SAVED / "store")
    assert [version.number for version in store.versions("reviews")] == [1, 2]
    assert store.aliases("reviews") == {"production": 1}
    assert sp.load_prompt(f"{SAVED / 'store'}#reviews@production").state.kind == "embeddings"
    assert sp.load_prompt(f"{SAVED / 'store'}#reviews@2").state.kind == "key_values"
