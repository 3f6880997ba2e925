"""The connector that a stock vLLM loads: learned prompts as keys and values, of any length, mixed in one batch.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "SoftpromptConnector", "kv_role": "kv_consumer",
        "kv_connector_module_path": "softprompt.engines.vllm_connector",
        "kv_connector_extra_config": {"prompts": "/prompts"}}'

A request begins with token ids that hold the prompt's place (BOS, what stands before the virtual tokens, and one id for
each of these), and names the prompt in ``kv_transfer_params``, ``{"softprompt": KEY}``. Its keys and values are written
into the request's blocks by the layer's own writer, whatever the layout of the cache is; vLLM goes on behind them, and
its prefix cache keeps them under the prompt's salt. A request that is not one for its prompt is refused before it gets
here (vllm_requests.py), and failed here if it does: the ids that hold the place are never read as what they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.logger import init_logger

from softprompt.engines.cache_slots import find_slots, take_heads
from softprompt.engines.vllm_requests import install, make_lookup, name_of_prompt
from softprompt.errors import SoftpromptError

log = init_logger("vllm.softprompt")

install()


@dataclass
class PromptLoad:
    """A prompt to be written into the blocks of a request.

    Attributes:
        start, stop: the tokens of the request.
        blocks: of each group of layers, in the order of the tokens.
    """

    key: str
    start: int
    stop: int
    blocks: Sequence[Sequence[int]]


@dataclass
class PromptLoads(KVConnectorMetadata):
    """What is to be done before a forward pass; ``refused`` requests get nothing and fail."""

    loads: list[PromptLoad] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)


class SoftpromptConnector(KVConnectorBase_V1, SupportsHMA):
    """See above. Layers with windows of their own are right in groups of their own (``SupportsHMA``)."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        """Raises ValueError for a server whose cache cannot be written so."""
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        _check_server(vllm_config)
        self._lookup = make_lookup(vllm_config, log.warning)
        self._pending = PromptLoads()
        self._refusing: set[str] = set()
        self._failed: set[str] = set()
        self._sizes = [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
        self._groups = {
            name: index for index, group in enumerate(kv_cache_config.kv_cache_groups) for name in group.layer_names
        }
        self._dtype = vllm_config.model_config.dtype

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed on."""
        return False

    # scheduler: which tokens of a request are a prompt's

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """The tokens of the prompt that the prefix cache does not hold; they are there when the pass begins."""
        key = name_of_prompt(request.sampling_params)
        if key is None:
            return 0, False
        try:
            length = len(self._lookup.check(key, request.prompt_token_ids or (), request.cache_salt).ids)
            if request.skip_reading_prefix_cache:
                raise SoftpromptError("log-probabilities of the text itself cannot be told behind a prompt")
        except SoftpromptError as error:
            log.error("softprompt: request %s refused: %s", request.request_id, error)
            # what is loaded between two passes may fail, and takes its request along
            request.skip_reading_prefix_cache = False
            self._refusing.add(request.request_id)
            return 1, True
        return max(0, length - num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note where a prompt is to be written, or that a request is to fail."""
        if request.request_id in self._refusing:
            self._pending.refused.add(request.request_id)
        elif num_external_tokens:
            key = name_of_prompt(request.sampling_params)
            stop = len(self._lookup.find(key).ids)
            self._pending.loads.append(
                PromptLoad(key, stop - num_external_tokens, stop, [list(one) for one in blocks.get_block_ids()])
            )

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """What the workers have to do before the pass that was just planned."""
        told, self._pending = self._pending, PromptLoads()
        return told

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, dict[str, Any] | None]:
        """Its blocks are free."""
        self._refusing.discard(request.request_id)
        return False, None

    # worker: write keys and values

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:
        """Write the prompts of the requests that begin."""
        told = self._get_connector_metadata()
        assert isinstance(told, PromptLoads)
        self._failed |= told.refused
        if not told.loads:
            return
        from vllm.distributed.parallel_state import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
        from vllm.model_executor.models.utils import extract_layer_index

        rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
        for load in told.loads:
            layers = self._lookup.load(load.key)
            # layers of a group share their blocks
            slots_of_group = [
                find_slots(blocks, size, load.start, load.stop)
                for blocks, size in zip(load.blocks, self._sizes, strict=True)
            ]
            for name, layer in forward_context.no_compile_layers.items():
                if name not in self._groups or getattr(layer, "kv_sharing_target_layer_name", None) is not None:
                    continue
                (places, slots), index = slots_of_group[self._groups[name]], extract_layer_index(name)
                if not slots or index >= len(layers):  # of a model that drafts: what it proposes is looked at
                    continue
                cache = layer.kv_cache
                keys, values = (
                    take_heads(one, rank, ranks)[:, places].transpose(0, 1).to(cache.device, self._dtype).contiguous()
                    for one in layers[index]
                )
                layer.impl.do_kv_cache_update(layer, keys, values, cache, torch.tensor(slots, device=cache.device))

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Requests that were refused have received nothing."""
        failed, self._failed = self._failed, set()
        return KVConnectorTransferResults(finished_recving=set(failed), failed_recving=failed)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """All is there when the pass begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""


def _check_server(config: Any) -> None:
    """Raise ValueError for a server whose cache cannot take a prompt, or that would answer without it."""
    model, parallel = config.model_config, config.parallel_config
    of_layers = "this model keeps something else than keys and values of each token"
    reasons = {
        of_layers: model.use_mla or model.is_hybrid or model.is_attention_free or model.is_encoder_decoder,
        "the tokens of a request are spread over ranks (context parallelism)": any(
            getattr(parallel, name, 1) > 1 for name in ("decode_context_parallel_size", "prefill_context_parallel_size")
        ),
        'kv_load_failure_policy "recompute" reads the ids that only hold a prompt\'s place: leave it out': (
            config.kv_transfer_config.kv_load_failure_policy != "fail"
        ),
    }
    if found := next((reason for reason, holds in reasons.items() if holds), None):
        raise ValueError(f"softprompt: {found} ({model.model})")
