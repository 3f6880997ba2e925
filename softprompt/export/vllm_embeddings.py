"""Prompt embeddings for a vLLM server that runs with ``--enable-prompt-embeds``: the model stays as it is.

vLLM takes a whole input as embeddings, so a client must embed the text too. The exported folder holds what that takes:
the model's token embeddings in the scale in which its first layer sees them, each prompt behind BOS, and the tokenizer.

Shapes: ``T`` tokens of BOS, prompt and text, ``H`` embedding size, ``V`` vocabulary.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.errors import BaseModelError, PromptFileError
from softprompt.export.engine_client import Asked, Tasks
from softprompt.export.export_formats import ExportRequest
from softprompt.export.export_readme import (
    USAGE_FILE,
    describe_task,
    describe_usage,
    embeds_readme,
    encode_json,
    list_front,
    read_usage,
)
from softprompt.export.folded_placement import fold_placement
from softprompt.export.virtual_tokens import check_expressible, check_labels
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import atomic_path, check_free

TENSOR_FILE = "embeddings.safetensors"
_ROWS_AT_ONCE = 16384


@torch.no_grad()
def write_embeds(base: FrozenLM, prompts: Mapping[str, Prompt], folder: Path) -> None:
    """Write all that a client needs to make requests for ``prompts``, by their names.

    Raises:
        PromptFileError: keys and values, an ensemble, or a prompt of another base model.
        BaseModelError: an encoder-decoder model.
        OutputError: the folder exists, or cannot be written.
    """
    from safetensors.torch import save_file

    check_free(folder)
    check_labels(prompts)
    check_expressible(base, prompts)
    if base.architecture != "decoder-only":
        raise BaseModelError(f"'{base.name}' is an encoder-decoder model, for which vLLM takes no embeddings")
    ids = torch.arange(base.vocabulary_size, device=base.device)
    tensors = {"tokens": torch.cat([base.embed(part).cpu() for part in ids.split(_ROWS_AT_ONCE)])}
    for name, prompt in prompts.items():
        tensors[f"prompt.{name}"] = fold_placement(base, prompt.state).tensor.to(base.dtype).contiguous()
    usage = describe_usage(base, {name: describe_task(prompt) for name, prompt in prompts.items()})
    with atomic_path(folder) as place:
        place.mkdir()
        save_file(tensors, place / TENSOR_FILE)
        base.tokenizer.save_pretrained(place)
        (place / USAGE_FILE).write_bytes(encode_json(usage))
        (place / "README.md").write_text(embeds_readme(base, prompts, folder.name), encoding="utf-8")


def write(request: ExportRequest) -> dict[str, Any]:
    """``write_embeds`` as an export format."""
    write_embeds(request.model, request.prompts, request.out)
    return {}


class EmbeddedTasks(Tasks):
    """The tasks of such a folder; requests carry embeddings in place of token ids."""

    def __init__(self, tokenizer: Any, usage: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tokenizer, usage)
        if missing := sorted({"tokens", *(f"prompt.{name}" for name in self.names)} - set(tensors)):
            raise PromptFileError(f"{TENSOR_FILE} lacks '{missing[0]}': export the prompts again")
        self._tensors = tensors

    @classmethod
    def load(cls, folder: str | Path) -> "EmbeddedTasks":
        """The tasks of an exported folder; raises PromptFileError if it is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoTokenizer

        usage = read_usage(Path(folder))
        try:
            tensors = load_file(Path(folder) / TENSOR_FILE)
        except (OSError, SafetensorError) as error:
            raise PromptFileError(f"'{Path(folder) / TENSOR_FILE}' is missing or damaged: {error}") from error
        return cls(AutoTokenizer.from_pretrained(folder), usage, tensors)

    def embeddings(self, task: str, text: Asked, **columns: Any) -> Tensor:
        """What the model's first layer sees of BOS, prompt and text: ``[T, H]``; arguments as for ``ids``."""
        place, ids = self._encode(task, text, columns)
        kept, bos = self._states[task], self._known.special_tokens.bos
        start = len(list_front(bos, replace(kept.placement, behind=()), ()))
        virtual = self._tensors[f"prompt.{task}"][start : start + kept.length]
        before = torch.tensor(list_front(bos, replace(place, behind=()), ()), dtype=torch.long)
        behind = torch.tensor([*place.behind, *ids])
        return torch.cat([self._tensors["tokens"][before], virtual, self._tensors["tokens"][behind]])

    def _make_input(self, task: str, text: Asked, columns: Mapping[str, Any]) -> dict[str, Any]:
        # an empty prompt would be a second input
        return {"prompt": None, "prompt_embeds": encode_embeddings(self.embeddings(task, text, **columns))}


def encode_embeddings(embeddings: Tensor) -> str:
    """A tensor as vLLM's API takes it: the bytes of ``torch.save`` in base64 (which are made here, never read)."""
    content = io.BytesIO()
    torch.save(embeddings.contiguous().clone(), content)
    return base64.b64encode(content.getvalue()).decode()
