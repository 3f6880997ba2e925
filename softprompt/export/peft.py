"""Adapter folders of Hugging Face PEFT: prompt tuning, prefix tuning (Li and Liang 2021), CARTRIDGE (Eyuboglu 2025).

PEFT puts virtual tokens in front of all that the tokenizer gives, BOS included; here they stand behind BOS. So what is
exported has BOS's own embedding (or keys and values) as its first virtual token, and texts are fed without BOS: the
same computation. So it is with what stands around a prompt in a conversation: its tokens are rows of the adapter, and
what is fed begins behind them. What is imported from others keeps its place in front of BOS, whose row is appended.

Shapes: ``P`` virtual tokens, ``H`` embedding size, ``L`` layers; keys and values are flattened to ``[P, L*2*heads*D]``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from softprompt.data.encoding.placement import Placement
from softprompt.data.task import TaskSpec
from softprompt.errors import BaseModelError, PromptFileError
from softprompt.export.export_formats import ExportRequest, ImportedState
from softprompt.export.export_readme import (
    USAGE_FILE,
    describe_task,
    encode_json,
    peft_readme,
    read_object,
    tokenizer_files,
)
from softprompt.export.folded_placement import append_bos, check_bos_precision, fold_placement, unfold_placement
from softprompt.export.virtual_tokens import check_labels
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.prefix import compute_keys_and_values
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.utils.files import check_free, write_folder
from softprompt.utils.messages import map_read_errors
from softprompt.utils.safe_io import check_header, read_file

CONFIG_FILE, TENSOR_FILE, PICKLE_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
SCHEMA_VERSION = 1

_FLAT_KINDS: Mapping[str, str] = {
    "PROMPT_TUNING": "embeddings",
    "P_TUNING": "embeddings",  # saved as the virtual tokens that its encoder made
    "PREFIX_TUNING": "key_values",
    "CARTRIDGE": "key_values",
}


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds.

    Attributes:
        state: its virtual tokens, or keys and values of every layer.
        bos_rows: how many of its first rows are BOS's own; ``None`` if PEFT made it, which feeds BOS behind the prompt.
        placement: what stands around the prompt as rows of it, BOS among them.
        usage: what softprompt wrote beside it, if softprompt did.
    """

    state: PromptState
    bos_rows: int | None
    placement: Placement
    usage: Mapping[str, Any]

    def on(self, base: FrozenLM) -> PromptState:
        """The prompt for ``base``: ours back to the bit, or another's with BOS where PEFT puts it.

        Raises:
            PromptFileError: it is of another size than ``base``.
            BaseModelError: ``base`` is not in float32, in which BOS's row is computed.
        """
        self._check_size(base)
        if self.bos_rows is None:
            if base.bos_ids:
                check_bos_precision(base)
            return append_bos(base, self.state)
        place = replace(self.placement, behind_bos=self.bos_rows > 0 or not base.bos_ids)
        return unfold_placement(self.state, self.bos_rows + len(place.before), place)

    def _check_size(self, base: FrozenLM) -> None:
        one: PromptState | None = None
        if self.state.kind == "key_values":
            one = compute_keys_and_values(base, base.embed(torch.zeros(1, dtype=torch.long, device=base.device)))
        expected = f"{base.embedding_size} values" if one is None else _describe_sizes(one)
        if (found := _describe_sizes(self.state)) != expected:
            raise PromptFileError(
                f"the adapter holds {'virtual tokens' if one is None else 'keys and values'} of {found}, expected "
                f"{expected} as '{base.name}' has: give --model the model that it was learned on"
            )


def write_peft(base: FrozenLM, prompt: Prompt, folder: Path, *, cartridge: bool = False) -> None:
    """Write a folder that ``PeftModel.from_pretrained`` reads, with a README that tells how to feed it.

    ``cartridge``: keys and values as PEFT's CARTRIDGE has them, instead of as prefix tuning.

    Raises:
        PromptFileError: an ensemble, a prompt of another base model, or one that has learned its labels.
        BaseModelError: PEFT would compute something else on this family, or ``base`` is not in float32, in which
            BOS's row is computed.
        OutputError: the folder exists, or cannot be written.
    """
    check_labels({prompt.method: prompt})
    from safetensors.torch import save

    check_free(folder)
    prompt.check_base(base)
    apart = base.architecture == "encoder-decoder"
    if apart and prompt.state.kind == "key_values":
        raise BaseModelError(
            "PEFT gives the keys and values of prefix tuning to the decoder only, and this prompt has some for the "
            "encoder too: serve it with softprompt, or learn one with prompt-tuning"
        )
    if base.embedding_scale != 1:
        raise BaseModelError(
            f"'{base.name}' scales its token embeddings where PEFT does not see it, so its texts would not be read "
            "as they were learned: serve it with softprompt"
        )
    place = prompt.state.placement
    bos_rows = len(base.bos_ids) if place.behind_bos else 0
    if bos_rows or place.added:
        check_bos_precision(base)
    state = fold_placement(base, prompt.state)
    rows, sizes = _flatten(state)
    if cartridge:
        sizes = {**sizes, "num_frozen_tokens": bos_rows}
        del sizes["prefix_projection"]
    config = {
        "peft_type": "CARTRIDGE" if cartridge else "PROMPT_TUNING" if state.kind == "embeddings" else "PREFIX_TUNING",
        "task_type": "SEQ_2_SEQ_LM" if apart else "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "inference_mode": True,
        "num_virtual_tokens": state.length,
        "num_transformer_submodules": 1,
        **sizes,
    }
    usage = {
        "schema_version": SCHEMA_VERSION,
        "format": "peft",
        "bos_rows": bos_rows,
        "add_special_tokens": not base.special_tokens.bos,
        "base": {"name": base.name, "fingerprint": dict(prompt.base_fingerprint)},
        "task": prompt.spec.to_dict(),
        **({} if prompt.spec.chat is None else _describe_conversations(base, prompt, folder.name)),
    }
    write_folder(
        folder,
        {
            CONFIG_FILE: encode_json(config),
            TENSOR_FILE: save({"prompt_embeddings": rows}),
            USAGE_FILE: encode_json(usage),
            "README.md": peft_readme(base, prompt, folder.name).encode(),
            **tokenizer_files(base, always=prompt.spec.chat is not None),
        },
    )


def _describe_conversations(base: FrozenLM, prompt: Prompt, name: str) -> dict[str, Any]:
    """What ``engine_client.Tasks`` takes, for the texts that are fed."""
    task = describe_task(prompt)
    return {
        "placement": prompt.state.placement.to_dict(),
        "bos_ids": list(base.bos_ids),
        "context_length": base.context_length,
        "tasks": {name: task},
    }


def write(request: ExportRequest) -> dict[str, Any]:
    """``write_peft`` as an export format."""
    write_peft(request.model, request.prompt, request.out)
    return describe_feeding(request)


def write_cartridge(request: ExportRequest) -> dict[str, Any]:
    """``write_peft`` for CARTRIDGE: virtual tokens become what every layer keeps of them.

    As what prefix tuning writes, BOS among the rows, which are those that PEFT would not learn, as the paper has the
    first token's.
    """
    base, prompt = request.model, request.prompt
    if prompt.state.kind == "embeddings":
        prompt.check_base(base)
        state = compute_keys_and_values(base, prompt.state.tensor, prompt.state.placement)
        prompt = replace(prompt, states=(replace(state, label_rows=prompt.state.label_rows),))
    write_peft(base, prompt, request.out, cartridge=True)
    return describe_feeding(request)


def describe_feeding(request: ExportRequest) -> dict[str, Any]:
    """How texts are fed to an adapter, in words."""
    around = request.model.special_tokens.bos or request.prompt.state.placement.added
    what = "what stands around the prompt" if request.prompt.state.placement.added else "BOS"
    return {"texts": f"without {what}, as README.md there says" if around else "as the tokenizer gives them"}


def read(place: Path) -> ImportedState:
    """``read_peft`` as an export format."""
    adapter = read_peft(place)
    task = adapter.usage.get("task")
    return ImportedState(place / TENSOR_FILE, adapter.on, None if task is None else TaskSpec.from_dict(task))


def read_peft(folder: Path) -> Adapter:
    """What an adapter folder holds; nothing in it is believed unchecked, and nothing is unpickled.

    Raises:
        PromptFileError: no such folder, a method that is no single prompt, a damaged file, or pickled weights only.
        DataError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not (folder / CONFIG_FILE).is_file():
        what = f"holds no {CONFIG_FILE}" if folder.is_dir() else "is no folder"
        raise PromptFileError(f"'{folder}' is no PEFT adapter, it {what}: give the folder that save_pretrained wrote")
    config = read_object(folder / CONFIG_FILE)
    kind = _FLAT_KINDS.get(str(config.get("peft_type")))
    if kind is None:
        raise PromptFileError(
            f"'{folder}' is an adapter of the type {config.get('peft_type')!r}: expected one that is a prompt, "
            f"{', '.join(_FLAT_KINDS)}; one that changes weights, as LoRA, is merged into its model (merge_and_unload "
            "of PEFT), whose folder is then given with --model"
        )
    path = folder / TENSOR_FILE
    if not path.is_file():
        if (folder / PICKLE_FILE).exists():
            raise PromptFileError(
                f"'{folder}' holds its weights as a pickle ({PICKLE_FILE}), which can run code and is never loaded: "
                f"save it again with PEFT as {TENSOR_FILE} (save_pretrained does so by default)"
            )
        raise PromptFileError(f"'{folder}' is no whole PEFT adapter: it holds no {TENSOR_FILE}")
    with map_read_errors(path):
        try:
            content = read_file(path)
            check_header(content)
        except ValueError as error:
            raise PromptFileError(f"'{path}' is damaged: {error}") from error
    try:
        rows = load(content).get("prompt_embeddings")
    except (SafetensorError, ValueError) as error:
        raise PromptFileError(f"'{path}' is damaged: {error}") from error
    count = config.get("num_virtual_tokens")
    if rows is None or rows.ndim != 2 or not rows.is_floating_point() or not rows.numel():
        raise PromptFileError(f"'{path}' holds no prompt: expected a matrix 'prompt_embeddings'")
    if type(count) is not int or not 1 <= count <= len(rows):
        raise PromptFileError(f"'{folder}' is damaged: {len(rows)} virtual tokens, its configuration says {count!r}")
    # an encoder-decoder's adapter may hold as many again, which PEFT's prompt tuning does not use
    rows = rows[:count].float()
    if not torch.isfinite(rows).all():
        raise PromptFileError(f"'{path}' is damaged: it has values that are not numbers")
    state = PromptState.of_embeddings(rows) if kind == "embeddings" else _unflatten(folder, rows, config)
    usage = read_object(folder / USAGE_FILE) if (folder / USAGE_FILE).is_file() else {}
    bos_rows = usage.get("bos_rows") if usage.get("format") == "peft" else None
    if bos_rows is not None and (type(bos_rows) is not int or not 0 <= bos_rows < count):
        raise PromptFileError(f"'{folder / USAGE_FILE}' is damaged: {bos_rows!r} of {count} rows cannot be BOS")
    return Adapter(state, bos_rows, _read_placement(folder, usage, count - (bos_rows or 0)), usage)


def _read_placement(folder: Path, usage: Mapping[str, Any], rows: int) -> Placement:
    """What ``rows`` beside BOS's hold around the prompt.

    Raises:
        PromptFileError: they are fewer, or it is no placement.
    """
    try:
        place = Placement.from_dict(usage.get("placement", {}) if usage.get("format") == "peft" else {})
        if place.added >= rows:
            raise ValueError(f"{place.added} of {rows} rows cannot stand around the prompt")
    except (ValueError, AttributeError) as error:
        raise PromptFileError(f"'{folder / USAGE_FILE}' is damaged: {error}") from error
    return place


def _flatten(state: PromptState) -> tuple[torch.Tensor, dict[str, Any]]:
    """The matrix that PEFT saves, and the sizes in its configuration.

    Raises:
        BaseModelError: layers differ in size, for which PEFT has no words.
    """
    if state.kind == "embeddings":
        # heads and layers mean nothing here, but PEFT looks for them in the model where they are not given
        sizes = {"token_dim": state.tensor.shape[1], "num_attention_heads": 1, "num_layers": 1}
        return state.tensor.contiguous(), {**sizes, "prompt_tuning_init": "RANDOM"}
    if len({tensor.shape for tensor in state.tensors}) > 1:
        raise BaseModelError(
            "the layers of this model keep keys and values of different sizes, and PEFT knows one: serve the prompt "
            "with softprompt, or learn one with prompt-tuning"
        )
    heads, head_size = state.tensors[0].shape[1], state.tensors[0].shape[3]
    # [L, 2, heads, P, D] -> [P, L, 2, heads, D]
    rows = torch.stack(state.tensors).permute(3, 0, 1, 2, 4).flatten(1).contiguous()
    return rows, {
        "token_dim": heads * head_size,
        "num_attention_heads": heads,
        "num_layers": len(state.tensors),
        "prefix_projection": False,
    }


def _unflatten(folder: Path, rows: torch.Tensor, config: Mapping[str, Any]) -> PromptState:
    """``_flatten`` undone for keys and values.

    Raises:
        PromptFileError: the matrix is not of the configuration's sizes, or of an encoder-decoder model.
    """
    if config.get("num_transformer_submodules") == 2 or config.get("task_type") == "SEQ_2_SEQ_LM":
        raise PromptFileError(
            f"'{folder}' is prefix tuning of an encoder-decoder model, which PEFT places otherwise than softprompt "
            "does: import one of prompt tuning"
        )
    sizes = [config.get(key) for key in ("num_layers", "num_attention_heads", "token_dim")]
    layers, heads, size = (value if type(value) is int and value > 0 else 0 for value in sizes)
    if not layers * heads * size or size % heads or rows.shape[1] != layers * 2 * size:
        raise PromptFileError(
            f"'{folder}' is damaged: keys and values of {rows.shape[1]:,} numbers a token, its configuration says "
            f"{sizes[0]!r} layers of 2 x {sizes[2]!r} in {sizes[1]!r} heads"
        )
    # [P, L, 2, heads, D] -> [L, 2, heads, P, D]
    whole = rows.view(len(rows), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    return PromptState("key_values", tuple(tensor.contiguous() for tensor in whole))


def _describe_sizes(state: PromptState) -> str:
    if state.kind == "embeddings":
        return f"{state.tensor.shape[1]} values"
    kinds = dict.fromkeys((tensor.shape[1], tensor.shape[3]) for tensor in state.tensors)
    return f"{len(state.tensors)} layers with " + " and ".join(f"{heads} heads of {size}" for heads, size in kinds)
