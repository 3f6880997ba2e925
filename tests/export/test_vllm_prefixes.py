"""``--format vllm-kv``: the keys and values that a stock vLLM is given, against plain ``transformers``."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.chat_models import chat_base
from helpers.chat_server import SYSTEM, chat_prompt, chat_spec
from helpers.learned_prompts import CLOSE, learned, text_ids
from helpers.served_prompts import with_labels
from helpers.tiny_models import WINDOW, tiny_base
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from softprompt.engines.prefix_folder import PrefixFolder, fill_folder
from softprompt.errors import BaseModelError, ConfigError, OutputError, PromptFileError
from softprompt.export.engine_client import Tasks
from softprompt.export.prefix_file import check_weights, read_facts
from softprompt.export.prompt_exchange import export_prompt
from softprompt.export.vllm_prefixes import key_of
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt


def read_cache(folder: Path, prompt: Prompt) -> DynamicCache:
    """The file of a prompt as a cache of ``transformers``, read without softprompt."""
    tensors = load_file(folder / f"{prompt.digest[:32]}.safetensors")
    cache = DynamicCache()
    for layer in range(len(tensors) // 2):
        cache.update(tensors[f"keys.{layer}"][None], tensors[f"values.{layer}"][None], layer)
    return cache


@torch.no_grad()
def logits_behind(base: FrozenLM, cache: DynamicCache, ids: Sequence[int]) -> Tensor:
    found: Tensor = base.model(input_ids=torch.tensor([list(ids)]), past_key_values=cache).logits[0]
    return found


@torch.no_grad()
def logits_of_rows(base: FrozenLM, prompt: Prompt, ids: Sequence[int]) -> Tensor:
    """Behind BOS and virtual tokens as embeddings, in one pass of ``transformers``."""
    embed, place = base.model.get_input_embeddings(), prompt.state.placement
    front = [*base.bos_ids, *place.before]
    rows = [embed(torch.tensor(front, dtype=torch.long)), prompt.state.tensor, embed(torch.tensor(ids))]
    logits: Tensor = base.model(inputs_embeds=torch.cat(rows)[None], use_cache=False).logits[0]
    return logits[-len(ids) :]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3", "gemma2", "phi", "granite"])
def test_virtual_tokens_are_what_the_model_makes_of_them(family: str, tmp_path: Path) -> None:
    base, prompt = tiny_base(family), learned(family)
    export_prompt(base, {"tone": prompt}, tmp_path / "out", format="vllm-kv")
    ids = text_ids(base)
    found = logits_behind(base, read_cache(tmp_path / "out", prompt), ids)
    torch.testing.assert_close(found, logits_of_rows(base, prompt, ids), **CLOSE)


def test_windows_leave_nothing_out(tmp_path: Path) -> None:
    base, prompt = tiny_base("gemma3"), learned("gemma3", length=WINDOW + 5)
    export_prompt(base, {"tone": prompt}, tmp_path / "out", format="vllm-kv")
    for layer in read_cache(tmp_path / "out", prompt).layers:
        assert layer.keys is not None
        assert layer.keys.shape[2] == len(base.bos_ids) + WINDOW + 5
    ids = text_ids(base)
    found = logits_behind(base, read_cache(tmp_path / "out", prompt), ids)
    # a cache without windows lets tokens see what windows hide: the keys and values are those of one that has them
    embed = base.model.get_input_embeddings()
    rows = torch.cat([embed(torch.tensor(base.bos_ids)), prompt.state.tensor])[None]
    whole = DynamicCache()
    with torch.no_grad():
        base.model(inputs_embeds=rows, past_key_values=whole, use_cache=True)
    for layer, own in zip(whole.layers, read_cache(tmp_path / "out", prompt).layers, strict=True):
        torch.testing.assert_close(own.keys, layer.keys, **CLOSE)
        torch.testing.assert_close(own.values, layer.values, **CLOSE)
    assert found.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_keys_and_values_stand_behind_those_of_bos(family: str, tmp_path: Path) -> None:
    base, prompt = tiny_base(family), learned(family, "key_values")
    export_prompt(base, {"tone": prompt}, tmp_path / "out", format="vllm-kv")
    expected = DynamicCache()
    with torch.no_grad():
        base.model(input_ids=torch.tensor([list(base.bos_ids)]), past_key_values=expected, use_cache=True)
    for layer, pair in enumerate(prompt.state.tensors):
        expected.update(*pair[:, None].clone(), layer)
    ids = text_ids(base)
    found = logits_behind(base, read_cache(tmp_path / "out", prompt), ids)
    torch.testing.assert_close(found, logits_behind(base, expected, ids), **CLOSE)


class TestRequests:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        prompts = {"one": learned("llama"), "two": learned("llama", "key_values", seed=2)}
        export_prompt(tiny_base("llama"), prompts, tmp_path / "out", format="vllm-kv")
        return tmp_path / "out"

    def test_name_the_prompt_and_keep_its_cache_apart(self, folder: Path) -> None:
        base, tasks, prompt = tiny_base("llama"), Tasks.load(folder), learned("llama")
        body = tasks.request("one", "a good film", model="m")
        key = prompt.digest[:32]
        assert (body["kv_transfer_params"], body["cache_salt"]) == ({"softprompt": key}, key)
        held = read_facts(folder / f"{key}.safetensors")[0].ids
        text = text_ids(base, "a good film; label:")
        assert body["prompt"] == [*held, *text]
        assert len(held) == len(base.bos_ids) + prompt.length
        assert tasks.request("two", "x", model="m")["cache_salt"] != key

    def test_what_a_user_writes_holds_no_place(self, folder: Path) -> None:
        base, tasks = tiny_base("llama"), Tasks.load(folder)
        (plain, hostile) = (tasks.ids("one", text) for text in ("a", "a <bos><bos>"))
        assert plain.count(base.bos_ids[0]) == hostile.count(base.bos_ids[0])

    def test_page_says_how_vllm_is_started(self, folder: Path) -> None:
        page = (folder / "README.md").read_text()
        config = page.split("--kv-transfer-config '")[1].split("'\n")[0]
        assert json.loads(config)["kv_connector_extra_config"] == {"prompts": "out"}
        assert "Tasks.load('out')" in page


def test_prompts_of_conversations_keep_their_place(tmp_path: Path) -> None:
    base = chat_base("qwen2_5")
    prompt = chat_prompt("qwen2_5", chat_spec("qwen2_5", system=SYSTEM))
    export_prompt(base, {"kept": prompt}, tmp_path / "out", format="vllm-kv")
    tasks = Tasks.load(tmp_path / "out")
    ids, held = tasks.ids("kept", "Hello"), len(base.bos_ids) + len(prompt.state.placement.before) + prompt.length
    behind = ids[held:]
    found = logits_behind(base, read_cache(tmp_path / "out", prompt), behind)
    torch.testing.assert_close(found, logits_of_rows(base, prompt, behind), **CLOSE)
    # the system message that was kept, in front of the turn
    assert SYSTEM in base.tokenizer.decode(behind)
    own: list[Any] = [{"role": "system", "content": "Else."}, {"role": "user", "content": "Hello"}]
    assert "Else." in base.tokenizer.decode(tasks.ids("kept", own)[held:])


def test_conversations_that_begin_in_another_way_are_refused(tmp_path: Path) -> None:
    spec = chat_spec("qwen2_5", system=SYSTEM, placement="system-end")
    export_prompt(chat_base("qwen2_5"), {"end": chat_prompt("qwen2_5", spec)}, tmp_path / "out", format="vllm-kv")
    tasks = Tasks.load(tmp_path / "out")
    own: list[Any] = [{"role": "system", "content": "Else."}, {"role": "user", "content": "Hello"}]
    assert tasks.ids("end", "Hello")
    with pytest.raises(ConfigError, match="do not begin as those that 'end' was learned with"):
        tasks.request("end", own, model="m")


class TestRefusals:
    def export(self, prompt: Prompt, tmp_path: Path, family: str = "llama") -> None:
        export_prompt(tiny_base(family), {"tone": prompt}, tmp_path / "out", format="vllm-kv")

    def test_an_ensemble(self, tmp_path: Path) -> None:
        one, two = learned("llama"), learned("llama", seed=2)
        with pytest.raises(PromptFileError, match=r"ensemble of 2 prompts .* export one of its members"):
            self.export(replace(one, states=(one.state, two.state)), tmp_path)

    def test_learned_labels(self, tmp_path: Path) -> None:
        prompt = learned("llama")
        soft = replace(prompt, states=(with_labels(tiny_base("llama"), prompt.state),))
        with pytest.raises(PromptFileError, match="soft verbalizer"):
            self.export(soft, tmp_path)

    def test_another_model(self, tmp_path: Path) -> None:
        with pytest.raises(PromptFileError, match="was learned on"):
            self.export(learned("qwen3"), tmp_path)

    def test_a_model_without_such_a_cache(self, tmp_path: Path) -> None:
        with pytest.raises(BaseModelError, match="needs a shared prefix, which is not exact on 'tiny mamba'"):
            self.export(learned("mamba"), tmp_path, "mamba")

    def test_a_folder_that_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with pytest.raises(OutputError):
            self.export(learned("llama"), tmp_path)


class TestFolderOfAServer:
    """Prompts that come while vLLM runs."""

    def open(self, folder: Path, family: str = "llama") -> tuple[PrefixFolder, list[str]]:
        loaded: list[str] = []

        def load(check: Any) -> FrozenLM:
            loaded.append(family)
            check(tiny_base(family))
            return tiny_base(family)

        return fill_folder(folder, load, lambda base: None), loaded

    def test_computes_each_prompt_once(self, tmp_path: Path) -> None:
        prompt = learned("llama")
        folder, loaded = self.open(tmp_path / "new" / "prompts")
        probe = folder.check(prompt)
        assert len(loaded) == 2  # the folder was made first
        folder.check(replace(prompt, metrics={"x": 1}))
        folder.check(learned("llama", seed=3))
        assert len(loaded) == 2
        again, loaded = self.open(tmp_path / "new" / "prompts")
        assert again.check(prompt) == probe
        assert loaded == []
        assert again.front(prompt.digest) == read_facts(again.folder / f"{key_of(prompt.digest)}.safetensors")[0].ids
        assert again.request_fields(prompt.digest)["cache_salt"] == key_of(prompt.digest)

    def test_probe_is_what_the_model_says_behind_the_prompt(self, tmp_path: Path) -> None:
        base, prompt = tiny_base("llama"), learned("llama")
        folder, _ = self.open(tmp_path / "prompts")
        probe = folder.check(prompt)
        text = probe.ids[len(base.bos_ids) + prompt.length :]
        expected = logits_of_rows(base, prompt, text)[-1].log_softmax(-1)
        found = torch.tensor(probe.log_probabilities)
        torch.testing.assert_close(found, expected[list(probe.tokens)], **CLOSE)

    def test_lets_the_model_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("softprompt.engines.prefix_folder.HELD_SECONDS", 0.01)
        folder, loaded = self.open(tmp_path / "prompts")
        folder.check(learned("llama"))
        assert folder._release is not None
        folder._release.join(10)
        folder.check(learned("llama", seed=2))
        assert len(loaded) == 3

    def test_of_another_model(self, tmp_path: Path) -> None:
        self.open(tmp_path / "prompts")
        other, _ = self.open(tmp_path / "prompts", "qwen3")
        with pytest.raises(PromptFileError, match="was made for another model"):
            other.check(learned("qwen3"))

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        folder, _ = self.open(tmp_path / "prompts")
        prompt = learned("llama")
        folder.check(prompt)
        path = folder.folder / f"{key_of(prompt.digest)}.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(PromptFileError, match="is damaged"):
            folder.check(prompt)


def test_weights_tell_a_model_from_another(tmp_path: Path) -> None:
    base, prompt = tiny_base("llama"), learned("llama")
    export_prompt(base, {"tone": prompt}, tmp_path / "out", format="vllm-kv")
    prefix, _ = read_facts(tmp_path / "out" / f"{key_of(prompt.digest)}.safetensors")
    base.model.save_pretrained(tmp_path / "same")
    assert check_weights(prefix, tmp_path / "same")
    half = type(base.model).from_pretrained(tmp_path / "same", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert check_weights(prefix, tmp_path / "half")
    changed = type(base.model).from_pretrained(tmp_path / "same")
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    changed.save_pretrained(tmp_path / "changed")
    with pytest.raises(BaseModelError, match=r"whose weights \('model.layers.1.mlp.up_proj.weight'\) are others"):
        check_weights(prefix, tmp_path / "changed")
    (tmp_path / "nothing").mkdir()
    assert not check_weights(prefix, tmp_path / "nothing")
