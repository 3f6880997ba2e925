"""Baked vocabulary: prompts as new tokens of a plain ``transformers`` checkpoint, which any engine serves.

    embedding of <|sp:NAME:i|>  =  row ``i`` of the prompt, divided by what the model multiplies its embeddings by

So BOS, these tokens and a text give the logits of the soft prompt in front of the text, and one model serves many
tasks, mixed in one batch. What the output layer says of the new tokens means nothing: where it has weights of its own,
those of a new token are the mean of all, whose logit is the mean logit and thus never the largest (and its bias, if it
has one, forbids them). Where it is the embedding itself, it gets weights of its own: else the new tokens' logits follow
from the prompts, are the largest nearly everywhere, and whoever generates must forbid them.

Labels that were learned with a prompt are tokens too: their rows of the output layer are the learned ones, and answers
are held to them.

Shapes: ``P`` virtual tokens, ``C`` labels, ``H`` embedding size, ``V`` rows of the embedding.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.data.encoding.verbalizer import end_of_turn
from softprompt.errors import BaseModelError
from softprompt.export.export_formats import ExportRequest
from softprompt.export.export_readme import (
    USAGE_FILE,
    describe_task,
    describe_usage,
    encode_json,
    list_front,
    note_probe,
    vocabulary_readme,
)
from softprompt.export.exported_chat_template import (
    PROBES,
    choose_gaps,
    encode_learned,
    find_other_tokens,
    list_first_messages,
    make_chat_template,
    split_template,
)
from softprompt.export.virtual_tokens import BakedVocabulary, check_expressible, check_labels, name_virtual_tokens
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.gguf_conversion import no_progress_bars
from softprompt.models.quantization import silence_logging
from softprompt.prompts.prefix import make_concatenated_prefix
from softprompt.prompts.saved_prompt import Prompt
from softprompt.utils.files import atomic_path, check_free


def bake_vocabulary(
    base: FrozenLM, prompts: Mapping[str, Prompt], folder: Path, *, tied: bool = False
) -> BakedVocabulary:
    """Write a checkpoint of ``base`` with ``prompts``, by their names, as words of its vocabulary.

    ``base`` stays as it is. The checkpoint is loaded back and its logits compared before it gets its name.

    Args:
        tied: leave an output layer that is the embedding as it is: ``V*H`` fewer numbers, for clients that forbid the
            new tokens in every request.

    Raises:
        PromptFileError, ConfigError: prompts that cannot be words of a vocabulary.
        BaseModelError: a family that is more than an embedding at its input.
        OutputError: the folder exists, or cannot be written.
    """
    check_free(folder)
    check_expressible(base, prompts)
    if tied:
        check_labels(prompts)
    scale = embedding_factor(base)
    tokenizer = copy.deepcopy(base.tokenizer)
    baked = BakedVocabulary.behind(prompts, len(tokenizer))
    _add_words(tokenizer, baked)
    gaps = _choose_gaps(base, tokenizer, prompts)
    tokenizer.chat_template = make_chat_template(base, prompts, gaps)
    rows = max(base.vocabulary_size, baked.size)

    config = copy.deepcopy(base.model.config)
    config.get_text_config().vocab_size = rows
    tied = tied and _is_tied(base)
    config.tie_word_embeddings = tied
    generation: Any = copy.deepcopy(base.model.generation_config)
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), *baked.all_ids})
    generation.eos_token_id = _list_ends(base, prompts)
    with atomic_path(folder) as place, silence_logging(), no_progress_bars():
        base.model.save_pretrained(place, state_dict=_extend_tensors(base, baked, scale, rows, tied))
        config.dtype, config.architectures = base.model.config.dtype, base.model.config.architectures
        for part in (config, generation, tokenizer):
            part.save_pretrained(place)
        checked = _check_checkpoint(base, baked, place, tied)
        baked = replace(baked, inexact=tuple(checked["inexact_as_text"]))
        usage = {**describe_baked(base, baked), **checked}
        (place / USAGE_FILE).write_bytes(encode_json(usage))
        readme = vocabulary_readme(folder.name, prompts, _list_limits(tied), baked.inexact)
        (place / "README.md").write_text(readme, encoding="utf-8")
    return baked


def write(request: ExportRequest) -> dict[str, Any]:
    """``bake_vocabulary`` as an export format."""
    baked = bake_vocabulary(request.model, request.prompts, request.out, tied=request.tied)
    told = {"not_exact_as_text": f"{', '.join(baked.inexact)}: feed token ids (softprompt.export.engine_client)"}
    return {"first_ids": dict(baked.first), **(told if baked.inexact else {})}


def describe_baked(base: FrozenLM, baked: BakedVocabulary) -> dict[str, Any]:
    """What clients must know of baked prompts, as ``softprompt.json`` has it."""
    tasks = {
        name: {
            **describe_task(prompt),
            "prompt": "".join(name_virtual_tokens(name, prompt.state.length)),
            "ids": baked.ids(name),
            **({"label_ids": ids} if (ids := baked.label_ids(name)) else {}),
            "around": split_template(prompt.spec) if prompt.spec.chat is None else None,
            "messages": list_first_messages(base, name, prompt),
            "method": prompt.method,
            # by which a server finds the version of a store that this is
            "digest": prompt.digest,
        }
        for name, prompt in baked.prompts.items()
    }
    return describe_usage(base, tasks, baked.all_ids)


def embedding_factor(base: FrozenLM) -> float:
    """What stands between the rows of the embedding and what the first layer sees (Gemma: the root of ``H``).

    Raises:
        BaseModelError: it is no factor, or the model is none that has one embedding at its input.
    """
    if base.architecture != "decoder-only":
        raise BaseModelError(
            f"'{base.name}' is an encoder-decoder model, for which engines take no tokens of one's own: use --format "
            "peft, or serve the prompt with softprompt"
        )
    if base.quantization is not None:
        raise BaseModelError(
            f"'{base.name}' is quantized ({base.quantization}), and a checkpoint of it cannot be written with other "
            "tokens: learn the prompt on the model that is not quantized"
        )
    ids = torch.arange(0, base.vocabulary_size, max(1, base.vocabulary_size // 256), device=base.device)
    with torch.no_grad():
        stored, seen = base.embedding_weight[ids].double(), base.embed(ids).double()
    factor = float((stored * seen).sum() / (stored * stored).sum())
    if (seen - factor * stored).norm() > 1e-2 * seen.norm():
        raise BaseModelError(f"'{base.name}' changes its embeddings by more than a factor: use --format peft")
    return 1.0 if abs(factor - 1) < 1e-4 else factor


def make_rows(baked: BakedVocabulary, scale: float) -> Tensor:
    """The rows ``[P + C of all, H]`` of the new tokens, as an embedding stores them, in float32; of labels zeros."""
    parts = []
    for name, prompt in baked.prompts.items():
        tokens = prompt.state.tensor.float().cpu()
        # nothing follows a label
        parts += [tokens, tokens.new_zeros(len(baked.label_ids(name)), tokens.shape[1])]
    return torch.cat(parts) / scale


def _add_words(tokenizer: Any, baked: BakedVocabulary) -> None:
    from tokenizers import AddedToken

    if clash := [word for word in baked.words if word in tokenizer.get_vocab()]:
        raise BaseModelError(f"the vocabulary has '{clash[0]}' already: bake into the model that has no prompts yet")
    tokenizer.add_tokens(
        [AddedToken(word, special=True, normalized=False) for word in baked.words], special_tokens=True
    )
    if tokenizer.convert_tokens_to_ids(baked.words) != baked.all_ids:
        raise BaseModelError("this tokenizer numbers new tokens in a way of its own, which softprompt does not know")


def _extend_tensors(base: FrozenLM, baked: BakedVocabulary, scale: float, rows: int, tied: bool) -> dict[str, Tensor]:
    """The model's tensors by name, those with a row a token having ``rows`` of them."""
    model = base.model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    ids = torch.tensor(baked.all_ids)

    def longer(old: Tensor, new: Tensor | float) -> Tensor:
        tensor = old.new_zeros(rows, *old.shape[1:])
        tensor[: len(old)] = old
        tensor[ids] = new.to(old.device, old.dtype) if isinstance(new, Tensor) else new
        return tensor

    def of_labels(old: Tensor) -> Tensor:
        for name, prompt in baked.prompts.items():
            if prompt.state.label_rows is not None:
                old[baked.label_ids(name)] = prompt.state.label_rows.to(old.device, old.dtype)
        return old

    own = {id(embedding.weight): longer(embedding.weight, make_rows(baked, scale))}
    of_head = {id(head.weight): own[id(embedding.weight)]}
    if not tied:
        of_head = {id(head.weight): of_labels(longer(head.weight, _average_rows(head.weight)))}
    if getattr(head, "bias", None) is not None:
        # far below any logit, and finite in half precision too
        of_head[id(head.bias)] = longer(head.bias, -1e4)
        of_head[id(head.bias)][[one for name in baked.prompts for one in baked.label_ids(name)]] = 0.0
    at_head = {id(module): name for name, module in model.named_modules()}[id(head)]
    named: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {
        name: {**own, **(of_head if name.rpartition(".")[0] == at_head else {})}.get(id(tensor), tensor.detach())
        for name, tensor in named.items()
    }


def _choose_gaps(base: FrozenLM, tokenizer: Any, prompts: Mapping[str, Prompt]) -> dict[str, str]:
    def is_exact(name: str, gap: str) -> bool:
        tokenizer.chat_template = make_chat_template(base, {name: prompts[name]}, {name: gap})
        return not _find_other_tokens(base, tokenizer, name, prompts[name])

    return choose_gaps(prompts, is_exact)


def _find_other_tokens(base: FrozenLM, tokenizer: Any, name: str, prompt: Prompt) -> list[str]:
    def render(said: list[dict[str, Any]]) -> Any:
        return tokenizer.apply_chat_template(
            said, task=name, tokenize=True, return_dict=True, add_generation_prompt=True
        )["input_ids"]

    words = tokenizer.convert_tokens_to_ids(name_virtual_tokens(name, prompt.state.length))
    return find_other_tokens(base, prompt, words, render)


def _list_ends(base: FrozenLM, prompts: Mapping[str, Prompt]) -> Any:
    """What ends an answer: what does for the model, and the ends of the assistant's turns."""
    known = base.model.generation_config.eos_token_id
    ends = [] if known is None else [known] if isinstance(known, int) else list(known)
    turns = [end_of_turn(base.tokenizer, prompt.spec) for prompt in prompts.values()]
    added = [one for one in dict.fromkeys(turns) if one is not None and one not in ends]
    return [*ends, *added] if added else known


def _average_rows(weight: Tensor) -> Tensor:
    return weight.mean(dim=0, dtype=torch.float32)


@torch.no_grad()
def _check_checkpoint(base: FrozenLM, baked: BakedVocabulary, place: Path, tied: bool) -> dict[str, Any]:
    """Load what was written and compare it with the soft prompt.

    Raises:
        BaseModelError: the checkpoint's logits are not the prompt's, or prefer a new token where they must not.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=base.dtype)
    model.to(base.device).eval()
    inexact, worst, new = [], 0.0, set(baked.all_ids)
    probes: dict[str, Any] = {}
    for name, prompt in baked.prompts.items():
        text = encode_learned(base, prompt, PROBES[0])
        front = list_front(base.bos_ids, prompt.state.placement, baked.ids(name))
        ids = [*front, *text]
        if _find_other_tokens(base, tokenizer, name, prompt):
            inexact.append(name)
        given = torch.tensor([text], device=base.device)
        hidden = make_concatenated_prefix(base, prompt.state).hidden(given, torch.ones_like(given))[0, -1:]
        expected = base.logits(hidden)
        logits = model(input_ids=torch.tensor([ids], device=base.device)).logits[0, -1:].float()
        probes[name] = note_probe(ids, logits[0])
        known = torch.tensor([one for one in range(base.vocabulary_size) if one not in new], device=base.device)
        found, expected = logits[:, known], expected[:, known]
        worst = max(worst, float((found - expected).norm() / expected.norm()))
        if prompt.state.label_rows is not None:
            of_labels = base.row_logits(hidden, prompt.state.label_rows)
            off = (logits[:, baked.label_ids(name)] - of_labels).norm() / of_labels.norm()
            worst = max(worst, float(off))
        if not tied and logits[:, baked.virtual_ids].max() > found.max():
            raise BaseModelError(
                f"'{base.name}' keeps its output layer tied to its embedding, whatever its configuration says, so the "
                "new tokens would be generated: give --tied, and let clients forbid them"
            )
    if worst > (1e-3 if base.dtype == torch.float32 else 5e-2):
        raise BaseModelError(
            f"'{base.name}' reads more than embeddings from its tokens: the checkpoint's logits are {worst:.1%} off "
            "those of the prompt; use --format peft, or serve it with softprompt"
        )
    return {"inexact_as_text": inexact, "logits_moved": worst, "probes": probes}


def _is_tied(base: FrozenLM) -> bool:
    weight: Tensor = base.model.get_output_embeddings().weight
    return weight is base.embedding_weight


def _list_limits(tied: bool) -> list[str]:
    by_weights = (
        "the output layer of this model is its embedding, so their logits follow from the prompt and mean nothing"
        if tied
        else "their rows of the output layer are the mean of all, so their logits are never the largest"
    )
    return [
        f"{by_weights};",
        "`transformers`' `generate` never gives them: `generation_config.json` names them in `suppress_tokens`;",
        "vLLM does not read that: where it matters send `logit_bias`, or hold answers to the labels with "
        "`allowed_token_ids` or `structured_outputs`. `Tasks.request` does both.",
    ]
