"""``export_prompt`` and ``import_prompt`` as functions: what they take, give and refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.learned_prompts import SPEC, learned
from helpers.small_tasks import reviews_task
from helpers.tiny_models import tiny_base

from softprompt.data.task import TaskSpec
from softprompt.errors import ConfigError, OutputError, PromptFileError
from softprompt.export.prompt_exchange import export_prompt, import_prompt
from softprompt.models.deferred_base import DeferredBase
from softprompt.models.frozen_lm import FrozenLM


def refuse(check: Any) -> FrozenLM:
    raise AssertionError("the model is loaded")


NEVER = DeferredBase(refuse)


def test_a_prompt_goes_out_and_comes_back(tmp_path: Path) -> None:
    prompt, base = learned("llama"), tiny_base("llama")
    assert export_prompt(None, prompt, tmp_path / "p.npy", format="npy") == {}
    assert np.array_equal(np.load(tmp_path / "p.npy"), prompt.state.tensor.numpy())
    back = import_prompt(DeferredBase(lambda check: base), str(tmp_path / "p.npy"), task=SPEC)
    assert torch.equal(back.state.tensor, prompt.state.tensor)
    assert (back.spec, back.method, back.metrics) == (SPEC, "imported", {})
    assert import_prompt(base, tmp_path / "p.npy").spec == TaskSpec.of()


def test_an_adapter_tells_its_task(tmp_path: Path) -> None:
    prompt, base = learned("llama"), tiny_base("llama")
    assert export_prompt(base, {"mine": prompt}, tmp_path / "p", format="peft")["texts"].startswith("without BOS")
    back = import_prompt(base, tmp_path / "p", format="peft")
    assert torch.equal(back.state.tensor, prompt.state.tensor)
    assert back.spec == SPEC


def test_of_a_task_with_data_it_is_scored(tmp_path: Path) -> None:
    export_prompt(None, learned("llama"), tmp_path / "p.npy", format="npy")
    task = reviews_task()
    assert import_prompt(tiny_base("llama"), tmp_path / "p.npy", task=task).metrics["test"]["n"] == len(task.test)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "gif"}, "unknown format 'gif': expected one of peft, cartridge, vocab"),
        ({"format": "gguf"}, "give yours with --gguf"),
        ({"format": "vocab", "gguf": "m.gguf"}, "--gguf is for --format gguf"),
        ({"format": "peft", "tied": True}, "--tied is for --format vocab and gguf"),
        ({"format": "npy", "several": True}, "--format npy holds one prompt, got 2"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    prompts = {"a": learned("llama"), "b": learned("llama")} if options.pop("several", False) else learned("llama")
    with pytest.raises(ConfigError, match=words):
        export_prompt(NEVER, prompts, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_what_a_format_cannot_hold_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="keys and values of every layer"):
        export_prompt(NEVER, learned("llama", "key_values"), tmp_path / "out", format="vocab")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        export_prompt(NEVER, learned("llama"), tmp_path / "taken", format="peft")


def test_what_is_only_written_is_not_imported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'vocab' is only written: expected one of peft, npy"):
        import_prompt(NEVER, tmp_path, format="vocab")
    with pytest.raises(ConfigError, match="unknown format 'gif'"):
        import_prompt(NEVER, tmp_path, format="gif")
