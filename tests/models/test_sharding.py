"""Where weights live changes no result, on devices by a map, in memory and on disk; some things cannot be placed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed_runs import assert_close
from helpers.small_tasks import FAST, TEMPLATE, command, reviews, reviews_task, write_data
from helpers.tiny_models import random_prompt, save_tiny

from softprompt.data.encoding.batching import collate
from softprompt.data.encoding.encoder import EncodedSequence
from softprompt.errors import BaseModelError, ConfigError, MissingExtraError
from softprompt.models.distributed import ProcessGroup
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.models.sharding import find_layer_devices, iterate_weights
from softprompt.prompts.prefix import compute_keys_and_values, make_prefix
from softprompt.prompts.state import PromptState
from softprompt.training.fit import fit
from softprompt.training.gradient_checkpointing import checkpoint_gradients

ITEMS = [EncodedSequence(0, (5, 6, 7), (2,), (3,)), EncodedSequence(1, (5, 6, 7, 9, 10), (1, 4), (3, 8))]


def dealt(**elsewhere: str) -> dict[str, str]:
    """A map with everything in memory, but for what is named by its last part."""
    parts = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")
    return {part: elsewhere.get(part.replace(".", "_"), "cpu") for part in parts}


MAPS = {
    "a layer on disk": dealt(model_layers_1="disk"),
    "layers and output layer on disk": dealt(model_layers_0="disk", model_layers_1="disk", lm_head="disk"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and data."""
    place = tmp_path_factory.mktemp("placement")
    for family in ("llama", "t5"):
        save_tiny(place / family, family)
    write_data(place / "data", reviews())
    return place


@pytest.fixture(scope="module")
def whole(folder: Path) -> FrozenLM:
    return load_model(folder / "llama", device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=MAPS)
def mapped(request: pytest.FixtureRequest, folder: Path) -> FrozenLM:
    return load_model(folder / "llama", dtype="float32", device_map=MAPS[request.param])


class TestOnDisk:
    def test_weights_that_wait_there_are_known(self, whole: FrozenLM, mapped: FrozenLM) -> None:
        assert any(parameter.is_meta for parameter in mapped.model.parameters())
        assert not mapped.embedding_weight.is_meta
        assert (mapped.device, mapped.dtype) == (whole.device, whole.dtype)
        assert mapped.fingerprint == whole.fingerprint
        assert mapped.parameter_count == whole.parameter_count
        expected = dict(whole.model.named_parameters())
        for name, weight in iterate_weights(mapped.model):
            assert torch.equal(weight, expected[name])
        assert find_layer_devices(mapped.backbone, torch.device("meta")) == [torch.device("cpu")] * 2

    @pytest.mark.parametrize("enabled", [False, True], ids=["remembered", "recomputed"])
    @pytest.mark.parametrize("kind", ["embeddings", "key_values"])
    def test_gradients_are_those_of_the_whole_model(
        self, whole: FrozenLM, mapped: FrozenLM, kind: str, enabled: bool
    ) -> None:
        found = []
        for base in (whole, mapped):
            prompt = random_prompt(base, 4)
            state = PromptState.of_embeddings(prompt)
            learned: list[torch.Tensor] = [prompt]
            if kind == "key_values":
                learned = [
                    pair.clone().requires_grad_() for pair in compute_keys_and_values(base, prompt.detach()).tensors
                ]
                state = PromptState("key_values", tuple(learned))
            with checkpoint_gradients(base, enabled):
                hidden = make_prefix(base, state).scored(collate(ITEMS, base.device))
                some = base.logits(hidden, torch.tensor([4, 9]))
                (some.square().sum() + base.logits(hidden).logsumexp(-1).sum()).backward()
            found.append((hidden.detach(), some.detach(), *(one.grad for one in learned)))
        for expected, actual in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)

    def test_it_learns_the_same(self, whole: FrozenLM, mapped: FrozenLM, tmp_path: Path) -> None:
        for name, base in (("whole", whole), ("mapped", mapped)):
            fit(base, reviews_task(), out=tmp_path / name, **FAST)
        assert_close(tmp_path / "whole", tmp_path / "mapped", processes=None)

    def test_embeddings_must_be_on_a_device(self, folder: Path) -> None:
        with pytest.raises(BaseModelError, match=r"the token embeddings of '.*' fit on no device: free some of its"):
            load_model(folder / "llama", dtype="float32", device_map=dealt(model_embed_tokens="disk"))


def test_auto_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in FAST.items()]
    given = ["train", "--model", folder / "llama", "--data", folder / "data", "--template", TEMPLATE, *settings]
    for name, where in (("whole", ["--device", "cpu"]), ("auto", ["--device-map", "auto"])):
        done = command(*given, "--dtype", "float32", *where, "--out", tmp_path / name)
        assert done.code == 0, done.err
    assert_close(tmp_path / "whole", tmp_path / "auto", processes=None)
    evaluated = ["eval", tmp_path / "auto", "--data", folder / "data", "--dtype", "float32"]
    assert command(*evaluated, "--device-map", "auto").out == command(*evaluated, "--device", "cpu").out
    done = command("predict", tmp_path / "auto", "a fine film", "--dtype", "float32", "--device-map", "auto")
    assert done.code == 0, done.err


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sharding": "zero"}, "unknown sharding 'zero': expected fsdp, or none"),
    ({"sharding": "fsdp"}, "sharding fsdp is for several processes: start them as in torchrun"),
    ({"device_map": "balanced"}, "unknown device map 'balanced': expected auto"),
    ({"device_map": "auto", "device": "cpu"}, "a device map says where everything goes: leave the device cpu out"),
    ({"device_map": "auto", "processes": ProcessGroup(0, 2)}, "a device map is for one process: give --sharding fsdp"),
    (
        {"sharding": "fsdp", "quantize": "int8", "processes": ProcessGroup(0, 2)},
        "sharding fsdp shares plain weights: leave the quantization int8 out",
    ),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_cannot_be_placed_so(folder: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_model(folder / "llama", **given)


def test_a_map_needs_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"'accelerate', .*pip install 'softprompt\[device-map\]'"):
        load_model(folder / "llama", device_map="auto")


def test_layers_that_are_no_plain_row_are_not_shared(folder: Path) -> None:
    with pytest.raises(BaseModelError, match="has no plain row of layers: use --device-map auto, or a model that fits"):
        load_model(folder / "t5", device="cpu", sharding="fsdp", processes=ProcessGroup(0, 2))
