"""A method of one's own in the way that CONTRIBUTING tells: a module of it, and its line in ``METHODS``."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.small_tasks import FAST, TEMPLATE, command, reviews, reviews_task, write_data
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.inference.evaluation import evaluate
from softprompt.prompts.methods.method_registry import METHODS, define_method
from softprompt.prompts.saved_prompt import Prompt
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.fit import fit

MODULE = '''
"""Low-rank prompts: virtual tokens = init + unit * A B."""

from collections.abc import Mapping

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from softprompt.prompts.state import PromptState


class Options(BaseModel):
    rank: int = Field(2, ge=1, description="columns of A, rows of B")


class LowRankPrompt(nn.Module):
    init: Tensor

    def __init__(self, init: Tensor, unit: float, seed: int, rank: int) -> None:
        super().__init__()
        self.unit = unit
        self.register_buffer("init", init.detach().float().clone(), persistent=True)
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(init.shape[0], rank, generator=generator))
        self.b = nn.Parameter(torch.zeros(rank, init.shape[1]))

    def state(self) -> PromptState:
        return PromptState.of_embeddings(self.init + self.unit * self.a @ self.b)

    def rate_factors(self) -> Mapping[str, float]:
        return {"a": 0.5}


def build(start: PromptState, unit: float, seed: int, options: Options) -> LowRankPrompt:
    return LowRankPrompt(start.tensor, unit, seed, options.rank)
'''


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Adds the method; what had to be touched for it."""
    file = tmp_path / "low_rank.py"
    file.write_text(MODULE)
    low_rank = import_file(file)
    monkeypatch.setitem(METHODS, "low-rank", define_method(low_rank, "embeddings"))
    return [file.name, "METHODS", "description of TrainConfig.method"]


def import_file(path: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def rank_of_change(prompt: Prompt, start: torch.Tensor) -> int:
    return int(torch.linalg.matrix_rank(prompt.state.tensor - start, atol=1e-4))


def test_it_needs_no_more_than_three_places(places: list[str]) -> None:
    assert len(places) <= 3


def test_it_learns_is_saved_and_answers_the_same(tmp_path: Path) -> None:
    base, task = tiny_base("llama"), reviews_task()
    settings: dict[str, Any] = {**FAST, "method": "low-rank", "method_options": {"rank": 1}}
    start, learned = fit(base, task, **{**settings, "learning_rate": 1e-9}), fit(base, task, **settings)
    assert rank_of_change(learned, start.state.tensor) == 1
    learned.save(tmp_path / "prompt")
    loaded = load_prompt(tmp_path / "prompt")
    assert (loaded.method, loaded.state.kind) == ("low-rank", "embeddings")
    assert torch.equal(loaded.state.tensor, learned.state.tensor)
    assert evaluate(base, task.test, loaded).predictions == evaluate(base, task.test, learned).predictions


def test_the_command_line_takes_it_and_its_options(tmp_path: Path) -> None:
    save_tiny(tmp_path / "llama", "llama")
    write_data(tmp_path / "data", reviews())
    given = ["--model", tmp_path / "llama", "--data", tmp_path / "data", "--template", TEMPLATE, "--device", "cpu"]
    given += [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]
    done = command("train", *given, "--method", "low-rank", "--method-option", "rank=3", "--out", tmp_path / "prompt")
    assert done.code == 0, done.err
    assert load_prompt(tmp_path / "prompt").training["method_options"] == {"rank": "3"}
    done = command("train", *given, "--method", "low-rank", "--method-option", "width=3", "--out", tmp_path / "other")
    assert (done.code, "method 'low-rank' has no option 'width': expected one of rank" in done.err) == (2, True)
