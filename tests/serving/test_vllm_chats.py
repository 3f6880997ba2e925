"""Conversations with ``--engine vllm``: vLLM is sent the ids that the model here would read, and answers the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from helpers.chat_models import chat_base
from helpers.chat_server import BASE, SYSTEM, ChatPlace, chat_prompt, chat_spec, chat_store
from helpers.fake_vllm import FakeVllm

from softprompt.engines.baked_checkpoint import BakedCheckpoint
from softprompt.engines.exported_model import ExportedModel
from softprompt.engines.prefix_folder import fill_folder
from softprompt.export.vocabulary import bake_vocabulary
from softprompt.serving.engine.inference_engine import EngineLimits
from softprompt.serving.engine.prompt_registry import PromptRegistry
from softprompt.serving.engine.vllm_client import VllmClient
from softprompt.serving.engine.vllm_engine import VllmEngine
from softprompt.store.prompt_sources import PromptSource, StoreSource

FAMILY = "qwen2_5"
SPECS = {
    "kept": chat_spec(FAMILY, system=SYSTEM),
    "end": chat_spec(FAMILY, system=SYSTEM, placement="system-end"),
    "none": chat_spec(FAMILY),
}
TURNS: list[Any] = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello, Ada."},
    {"role": "user", "content": "What is my name?"},
]
OWN: Any = {"role": "system", "content": "Answer at length, please."}
TOOL: Any = {
    "type": "function",
    "function": {"name": "find", "description": "", "parameters": {"type": "object", "properties": {}}},
}


class OnVllm(ChatPlace):
    def __init__(self, source: PromptSource, exported: ExportedModel, url: str) -> None:
        self.exported, self.url = exported, url
        super().__init__(FAMILY, source)

    def make_engine(self) -> Any:
        return VllmEngine(self.exported, VllmClient(self.url), EngineLimits())

    def make_registry(self, source: PromptSource) -> PromptRegistry:
        return PromptRegistry(self.exported, source, base_name=BASE, check=self.make_engine().check_prompt)


def export(how: str, folder: Path) -> tuple[FakeVllm, ExportedModel]:
    """vLLM on a checkpoint that has the prompts as words, or on the model itself with the connector."""
    base = chat_base(FAMILY)
    if how == "connector":
        base.model.save_pretrained(folder / "model")
        base.tokenizer.save_pretrained(folder / "model")
        filled = fill_folder(folder / "prompts", lambda check: base, lambda base: None)
        return FakeVllm(folder / "model", 4096, folder / "prompts"), filled
    prompts = {name: chat_prompt(FAMILY, spec, number) for number, (name, spec) in enumerate(SPECS.items(), start=1)}
    bake_vocabulary(base, prompts, folder / "baked")
    return FakeVllm(folder / "baked", 4096), BakedCheckpoint(folder / "baked")


@pytest.fixture(scope="module", params=["baked", "connector"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clients(how: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[openai.OpenAI, openai.OpenAI]]:
    """Of the model in vLLM's place, and of our own engine."""
    store = chat_store(FAMILY, tmp_path_factory.mktemp("store"), **SPECS)
    source = StoreSource(str(store.url))
    fake, exported = export(how, tmp_path_factory.mktemp(how))
    with (
        fake.running() as url,
        OnVllm(source, exported, url).running() as theirs,
        ChatPlace(FAMILY, source).running() as ours,
        openai.OpenAI(base_url=f"{theirs}/v1", api_key="none", max_retries=0) as one,
        openai.OpenAI(base_url=f"{ours}/v1", api_key="none", max_retries=0) as other,
    ):
        yield one, other


@pytest.mark.parametrize("own", [False, True], ids=["kept", "own"])
@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("model", [*SPECS, BASE])
def test_the_same_answers(
    how: str, clients: tuple[openai.OpenAI, openai.OpenAI], model: str, own: bool, tools: list[Any]
) -> None:
    turns = [OWN, *TURNS] if own else TURNS
    options: Any = {"model": model, "messages": turns, "max_tokens": 6, **({"tools": tools} if tools else {})}
    if own and model == "none":
        for client in clients:
            with pytest.raises(openai.BadRequestError, match="learned without one"):
                client.chat.completions.create(**options)
        return
    if own and model == "end" and how == "connector":
        # keys and values stand behind the system text that was kept
        with pytest.raises(openai.UnprocessableEntityError, match="leave the system message out"):
            clients[0].chat.completions.create(**options)
        return
    theirs, ours = (client.chat.completions.create(**options) for client in clients)
    assert theirs.choices[0].message.content == ours.choices[0].message.content
    assert theirs.usage is not None
    assert ours.usage is not None
    assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens
    stream = clients[0].chat.completions.create(**options, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in stream) == theirs.choices[0].message.content
