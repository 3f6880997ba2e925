"""What a vLLM server with the connector takes for a request, and what it refuses."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny_models import save_tiny, tiny_base

from softprompt.engines import vllm_requests
from softprompt.engines.cache_slots import find_slots, take_heads
from softprompt.engines.prefix_lookup import CacheShape, PrefixLookup
from softprompt.errors import BaseModelError, DataError, PromptFileError
from softprompt.export.prefix_file import PrefixFacts, sample_weights, save_prefix

KEY, OTHER = "0" * 31 + "a", "0" * 31 + "b"
IDS = (1, 5, 5, 5)
SHAPE = CacheShape(2, 2, 8)


def write(folder: Path, key: str = KEY, shape: CacheShape = SHAPE, ids: Sequence[int] = IDS) -> None:
    made = torch.randn(shape.layers, 2, shape.heads, len(ids), shape.size)
    layers = tuple((keys.clone(), values.clone()) for keys, values in made)
    weights = sample_weights(tiny_base("llama").model.named_parameters())
    save_prefix(PrefixFacts(tuple(ids), "tiny", weights, {}), layers, folder / f"{key}.safetensors")


class TestLookup:
    def test_finds_what_comes_later(self, tmp_path: Path) -> None:
        lookup = PrefixLookup(tmp_path, SHAPE)
        with pytest.raises(PromptFileError, match=f"there is no prompt '{KEY}' on this server"):
            lookup.find(KEY)
        write(tmp_path)
        assert lookup.check(KEY, [*IDS, 7], KEY).ids == IDS
        layers = lookup.load(KEY)
        (tmp_path / f"{KEY}.safetensors").unlink()
        with pytest.raises(PromptFileError, match="there is no prompt"):
            lookup.check(KEY, [*IDS, 7], KEY)
        # for a request that was let in before
        assert lookup.load(KEY) is layers

    def test_keeps_no_more_than_it_may(self, tmp_path: Path) -> None:
        write(tmp_path)
        write(tmp_path, OTHER)
        lookup = PrefixLookup(tmp_path, SHAPE, kept=1)
        first = lookup.load(KEY)
        assert lookup.load(KEY) is first
        lookup.load(OTHER)
        assert lookup.load(KEY) is not first

    @pytest.mark.parametrize("key", ["../../etc/passwd", "", "A" * 32, "0" * 33, 7, None, ["0" * 32]])
    def test_a_key_is_no_path(self, tmp_path: Path, key: Any) -> None:
        with pytest.raises(PromptFileError, match="expected a prompt by 32 hexadecimal digits"):
            PrefixLookup(tmp_path, SHAPE).find(key)

    @pytest.mark.parametrize(
        ("ids", "salt", "message"),
        [
            ((*IDS, 7), None, "has its key as cache_salt too"),
            ((*IDS, 7), OTHER, "has its key as cache_salt too"),
            ((1, 5, 5, 7, 7), KEY, "begins with the 4 token ids that hold its place"),
            ((1, 5), KEY, "begins with the 4 token ids that hold its place"),
            (IDS, KEY, "expected a text behind the prompt"),
        ],
    )
    def test_requests_that_are_none_for_it(
        self, tmp_path: Path, ids: Sequence[int], salt: str | None, message: str
    ) -> None:
        write(tmp_path)
        with pytest.raises(DataError, match=message):
            PrefixLookup(tmp_path, SHAPE).check(KEY, ids, salt)

    @pytest.mark.parametrize("shape", [CacheShape(3, 2, 8), CacheShape(2, 1, 8), CacheShape(2, 2, 16)])
    def test_a_model_of_another_shape(self, tmp_path: Path, shape: CacheShape) -> None:
        write(tmp_path)
        with pytest.raises(BaseModelError, match=r"learned on 'tiny' \(2 layers with 2 heads of 8\)"):
            PrefixLookup(tmp_path, shape).find(KEY)

    def test_another_model_of_its_shape(self, tmp_path: Path) -> None:
        write(tmp_path)
        save_tiny(tmp_path / "own", "llama")
        assert PrefixLookup(tmp_path, SHAPE, tmp_path / "own").find(KEY).ids == IDS
        # of the same names and sizes, and other numbers
        save_tiny(tmp_path / "other", "mistral")
        with pytest.raises(BaseModelError, match=r"whose weights .* are others than those of"):
            PrefixLookup(tmp_path, SHAPE, tmp_path / "other").find(KEY)

    def test_says_what_could_not_be_compared(self, tmp_path: Path) -> None:
        write(tmp_path)
        notes: list[str] = []
        PrefixLookup(tmp_path, SHAPE, note=notes.append).find(KEY)
        assert len(notes) == 1
        assert "no weights of this server's model can be compared" in notes[0]

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        (tmp_path / f"{KEY}.safetensors").write_bytes(b"x" * 100)
        with pytest.raises(PromptFileError, match="is damaged"):
            PrefixLookup(tmp_path, SHAPE).find(KEY)


class TestRequestsOfVllm:
    """``check_request``, with requests and settings that have the names of vLLM's."""

    class Server:
        def __init__(self, config: Any) -> None:
            self.vllm_config = config

    def server(self, folder: Path | None, connector: str | None = vllm_requests.CONNECTOR) -> Any:
        extra = {} if folder is None else {"prompts": str(folder)}
        transfer = SimpleNamespace(kv_connector=connector, get_from_extra_config=extra.get)
        model = SimpleNamespace(
            model=str(folder),
            revision=None,
            get_total_num_hidden_layers=lambda: SHAPE.layers,
            get_total_num_kv_heads=lambda: SHAPE.heads,
            get_head_size=lambda: SHAPE.size,
        )
        config = SimpleNamespace(kv_transfer_config=transfer if connector else None, model_config=model)
        return self.Server(config)

    def request(self, key: Any = KEY, **changes: Any) -> Any:
        params = SimpleNamespace(
            extra_args=None if key is None else {"kv_transfer_params": {"softprompt": key}}, prompt_logprobs=None
        )
        facts = {"prompt_token_ids": [*IDS, 7], "prompt_embeds": None, "cache_salt": None, "sampling_params": params}
        return SimpleNamespace(**{**facts, **changes})

    def test_it_gets_its_salt(self, tmp_path: Path) -> None:
        write(tmp_path)
        request = self.request()
        vllm_requests.check_request(request, self.server(tmp_path), lambda _: None)
        assert request.cache_salt == KEY

    def test_others_are_left_alone(self, tmp_path: Path) -> None:
        request = self.request(None)
        vllm_requests.check_request(request, self.server(None, None), lambda _: None)
        assert request.cache_salt is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"cache_salt": "mine"}, "has its key as cache_salt too: expected '0+a', got 'mine'"),
            ({"prompt_embeds": torch.zeros(1)}, "holds token ids, got embeddings"),
            ({"prompt_token_ids": [9, 9]}, "hold its place"),
        ],
    )
    def test_refused(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        write(tmp_path)
        with pytest.raises(ValueError, match=message):
            vllm_requests.check_request(self.request(**changes), self.server(tmp_path), lambda _: None)

    def test_log_probabilities_of_the_text(self, tmp_path: Path) -> None:
        write(tmp_path)
        request = self.request()
        request.sampling_params.prompt_logprobs = 0
        with pytest.raises(ValueError, match="cannot be told behind a prompt"):
            vllm_requests.check_request(request, self.server(tmp_path), lambda _: None)

    def test_a_server_without_the_connector(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="has no SoftpromptConnector"):
            vllm_requests.check_request(self.request(), self.server(tmp_path, "Another"), lambda _: None)

    def test_a_server_without_a_folder(self) -> None:
        with pytest.raises(ValueError, match="expected the folder of prompts in kv_connector_extra_config"):
            vllm_requests.check_request(self.request(), self.server(None), lambda _: None)


def test_slots_are_where_the_tokens_stand() -> None:
    assert find_slots([7, 3], 4, 0, 6) == ([0, 1, 2, 3, 4, 5], [28, 29, 30, 31, 12, 13])
    assert find_slots([7, 3], 4, 4, 6) == ([4, 5], [12, 13])
    # what a window has left behind has no slot
    assert find_slots([0, 3], 4, 0, 6) == ([4, 5], [12, 13])


def test_each_rank_takes_its_heads() -> None:
    heads = torch.arange(4)[:, None, None]
    assert [take_heads(heads, rank, 2)[:, 0, 0].tolist() for rank in range(2)] == [[0, 1], [2, 3]]
    assert [take_heads(heads, rank, 1)[:, 0, 0].tolist() for rank in range(1)] == [[0, 1, 2, 3]]
    # of fewer heads than ranks, neighbours share one
    assert [take_heads(heads[:2], rank, 4)[:, 0, 0].tolist() for rank in range(4)] == [[0], [0], [1], [1]]
