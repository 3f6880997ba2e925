"""Prompts as keys and values for a stock vLLM with our connector (softprompt.engines.vllm_connector): the model stays.

The folder holds a file for each prompt (prefix_file.py), and what a client or a server in front of vLLM must know of
the model. Token ids of the model hold a prompt's place in requests, one for each virtual token; which one is no matter,
for it is never read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from softprompt.data.encoding.verbalizer import encode_plain
from softprompt.errors import BaseModelError
from softprompt.export.export_formats import ExportRequest
from softprompt.export.export_readme import (
    USAGE_FILE,
    describe_task,
    describe_usage,
    encode_json,
    list_front,
    note_probe,
    prefixes_readme,
)
from softprompt.export.prefix_file import (
    KEY_DIGITS,
    PrefixFacts,
    prefix_path,
    sample_weights,
    save_prefix,
)
from softprompt.export.virtual_tokens import check_labels, check_single
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.quantization import silence_logging
from softprompt.prompts.cached_prefix import CachedPrefix
from softprompt.prompts.prefix import (
    ConcatenatedPrefix,
    check_keys_and_values,
    compute_whole_prefix,
    make_cached_prefix,
    make_concatenated_prefix,
)
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import atomic_path, check_free

PROBE = "The list goes: 1, 2, 3,"


def key_of(digest: str) -> str:
    """What a prompt is called in requests, by its digest."""
    return digest[:KEY_DIGITS]


def write_prefixes(base: FrozenLM, prompts: Mapping[str, Prompt], folder: Path) -> None:
    """Write all that vLLM and its clients need for ``prompts``, by their names.

    Raises:
        PromptFileError: an ensemble, learned labels, or a prompt of another base model.
        BaseModelError: a model that keeps no keys and values, or an encoder-decoder model.
        OutputError: the folder exists, or cannot be written.
    """
    check_free(folder)
    check_holdable(base, prompts)
    tasks = {}
    with atomic_path(folder) as place:
        place.mkdir()
        for name, prompt in prompts.items():
            key = key_of(prompt.digest)
            facts = write_prefix(base, prompt, prefix_path(place, key))
            tasks[name] = {
                **describe_task(prompt),
                "ids": list(facts.ids[-prompt.state.length :]),
                "key": key,
                "digest": prompt.digest,
            }
        write_model(base, place, tasks)
        (place / "README.md").write_text(prefixes_readme(base, prompts, folder.name), encoding="utf-8")


def write(request: ExportRequest) -> dict[str, Any]:
    """``write_prefixes`` as an export format."""
    write_prefixes(request.model, request.prompts, request.out)
    return {"keys": {name: key_of(prompt.digest) for name, prompt in request.prompts.items()}}


def check_holdable(base: FrozenLM, prompts: Mapping[str, Prompt]) -> None:
    """Raise PromptFileError or BaseModelError unless these prompts of ``base`` are keys and values, and nothing else.

    That they are of ``base`` is looked at too.
    """
    check_single(prompts)
    check_labels(prompts)
    if base.architecture != "decoder-only":
        raise BaseModelError(f"'{base.name}' is an encoder-decoder model, for which vLLM takes no keys and values")
    check_keys_and_values(base)
    for prompt in prompts.values():
        prompt.check_base(base)


@torch.no_grad()
def write_prefix(base: FrozenLM, prompt: Prompt, path: Path) -> PrefixFacts:
    """Write keys and values of BOS, what stands before the virtual tokens, and these, as ``base`` computes them."""
    place = replace(prompt.state.placement, behind=())
    ids = list_front(base.bos_ids, place, [choose_holder(base)] * prompt.state.length)
    prefix = make_cached_prefix(base, replace(prompt.state, placement=place))
    weights = sample_weights(base.model.named_parameters())
    facts = PrefixFacts(ids, base.name, weights, _probe(base, prefix, ids))
    save_prefix(facts, compute_whole_prefix(base, prompt.state), path)
    return facts


def _probe(base: FrozenLM, prefix: CachedPrefix | ConcatenatedPrefix, front: Sequence[int]) -> dict[str, Any]:
    """What the model says to a few words behind a prefix, which stands in requests as ``front``."""
    text = encode_plain(base.tokenizer, PROBE)
    ids = torch.tensor([text], device=base.device)
    hidden = prefix.hidden(ids, torch.ones_like(ids))[0, -1:]
    return note_probe([*front, *text], base.logits(hidden)[0].cpu())


def choose_holder(base: FrozenLM) -> int:
    """The token that holds the place of virtual tokens: one that no answer has, where there is one."""
    known = base.tokenizer
    ids = (*base.bos_ids, known.bos_token_id, known.pad_token_id, known.eos_token_id, 0)
    return next(int(one) for one in ids if one is not None)


@torch.no_grad()
def write_model(base: FrozenLM, folder: Path, tasks: Mapping[str, Any]) -> None:
    """What is to be known of a model, and its tokenizer, into a folder."""
    probe = _probe(base, make_concatenated_prefix(base, None), base.bos_ids)
    usage = {**describe_usage(base, tasks), "probes": {"the base model": probe}}
    with silence_logging():
        base.tokenizer.save_pretrained(folder)
        base.model.generation_config.save_pretrained(folder)
    (folder / USAGE_FILE).write_bytes(encode_json(usage))
