"""A ``transformers`` model that reads every text behind a prompt.

The model's own backbone puts BOS and prompt in front of the rows it is given, and gives the hidden states of the rows
as they were. All that is made of them (logits, losses shifted by one, trainers that call backbone and output layer
themselves) then needs to know of no prompt. Classes are exchanged in place, as ``fully_shard`` of ``torch`` does it.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.errors import BaseModelError, ConfigError
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.last_layer import find_layers
from softprompt.prompts.kv_cache import read_only
from softprompt.prompts.prefix import front_ids, make_cached_prefix
from softprompt.training.attached_prompts.prompted_rows import (
    begins_with,
    check_room,
    check_unpacked,
    count_positions,
    extend_mask,
    place_prefix,
)
from softprompt.training.gradient_checkpointing import checkpoint_gradients


class PromptedBackbone(nn.Module):
    """What a backbone does with a prompt; mixed into its own class."""

    attached_prompt: Any
    base: FrozenLM

    def run_prompted(self, run: Any, inputs: dict[str, Any]) -> Any:
        """The outputs of ``run``, the backbone's own forward pass, for rows of token ids behind the prompt."""
        ids, cache = inputs.get("input_ids"), inputs.get("past_key_values")
        if ids is None or inputs.get("inputs_embeds") is not None:
            return run(**inputs)
        mask = inputs.get("attention_mask")
        if (mask is not None and getattr(mask, "ndim", None) != 2) or getattr(cache, "is_compileable", False):
            raise BaseModelError(
                "a prompt needs a cache that grows and a mask of rows and columns: leave out cache_implementation"
            )
        inputs = {**inputs, "input_ids": None}
        if cache is not None and cache.get_seq_length():
            return run(**self._continue(inputs, ids, mask, cache))
        mask = torch.ones_like(ids) if mask is None else mask
        check_unpacked(inputs.get("position_ids"), mask)
        self.attached_prompt.check_rows(ids, mask)
        checkpointed = torch.is_grad_enabled() and cache is None and self._is_checkpointed()
        if checkpointed:
            inputs["use_cache"] = False
        with checkpoint_gradients(self.base, checkpointed):
            if self.attached_prompt.state().kind == "embeddings":
                return self._run_behind_tokens(run, inputs, ids, mask)
            return self._run_behind_keys(run, inputs, ids, mask)

    def _run_behind_tokens(self, run: Any, inputs: dict[str, Any], ids: Tensor, mask: Tensor) -> Any:
        prefix, base, cache = self.attached_prompt.prefix(), self.base, inputs.get("past_key_values")
        rows = place_prefix(ids, mask, self.attached_prompt.lead, len(prefix))
        shift = rows.mask.shape[1] - ids.shape[1]
        check_room(rows.mask.shape[1], base.context_length, shift)
        if cache is not None and not rows.alike:
            raise ConfigError("some texts begin with BOS and some do not: expected all or none, to generate from them")
        texts = base.embed(ids)
        inputs["inputs_embeds"] = rows.pick(torch.cat([prefix.expand(len(texts), -1, -1), texts], dim=1))
        outputs = run(**self._add_places(inputs, rows.mask, rows.mask.shape[1]))
        if cache is not None:
            cache.prompt_columns = shift
        elif not rows.alike:
            outputs.past_key_values = None
        return _crop_outputs(outputs, shift, mask)

    def _run_behind_keys(self, run: Any, inputs: dict[str, Any], ids: Tensor, mask: Tensor) -> Any:
        base, cache = self.base, inputs.get("past_key_values")
        prefix = make_cached_prefix(base, self.attached_prompt.state())
        first = mask.long().argmax(dim=1, keepdim=True)
        lead = self.attached_prompt.lead
        found = begins_with(ids, first, lead)
        if bool(found.any()) and not bool(found.all()):
            raise ConfigError("some texts begin with BOS and some do not: expected all or none, behind keys and values")
        removed = len(lead) if bool(found.any()) else 0
        place = torch.arange(ids.shape[1] - removed, device=ids.device).expand(len(ids), -1)
        source = torch.where(place < first, place, place + removed)
        whole = self._mask_behind_keys(mask, prefix.width, removed)
        check_room(whole.shape[1], base.context_length, prefix.width - removed)
        filled = prefix.expand(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
        if cache is None:
            filled = read_only(filled)
        else:
            cache.layers, cache.prompt_columns = filled.layers, prefix.width - removed
            filled = cache
        inputs |= {"inputs_embeds": base.embed(ids.gather(1, source)), "past_key_values": filled, "use_cache": True}
        outputs = run(**self._add_places(inputs, whole, source.shape[1]))
        if cache is None:
            outputs.past_key_values = None
        return _crop_outputs(outputs, -removed, mask)

    def _continue(self, inputs: dict[str, Any], ids: Tensor, mask: Tensor | None, cache: Any) -> dict[str, Any]:
        """What the backbone is given of tokens behind what ``cache`` holds."""
        total = cache.get_seq_length() + ids.shape[1]
        if mask is None:
            whole = torch.ones(len(ids), total, dtype=torch.long, device=ids.device)
        elif self.attached_prompt.state().kind == "embeddings":
            whole = extend_mask(mask, total - mask.shape[1])
        else:
            placement = self.attached_prompt.method.placement
            width = self.attached_prompt.length + len(front_ids(self.base, placement)) + len(placement.behind)
            whole = self._mask_behind_keys(mask, width, width - (total - mask.shape[1]))
        return self._add_places({**inputs, "inputs_embeds": self.base.embed(ids)}, whole, ids.shape[1])

    def _mask_behind_keys(self, mask: Tensor, width: int, removed: int) -> Tensor:
        """The mask of a prefix of ``width`` columns and of rows that have lost ``removed`` at their beginning."""
        first = mask.long().argmax(dim=1, keepdim=True)
        place = torch.arange(mask.shape[1] - removed, device=mask.device).expand(len(mask), -1)
        rows = mask.gather(1, torch.where(place < first, place, place + removed))
        window = self.base.sliding_window
        if window is not None and width + rows.shape[1] > window and bool((rows[:, :1] == 0).any()):
            raise BaseModelError(
                f"'{self.base.name}' counts padding in its windows of {window} tokens, so keys and values cannot stand "
                "in front of texts padded on the left: pad on the right, generate one text at a time, or use "
                "prompt-tuning"
            )
        return torch.cat([rows.new_ones(len(rows), width), rows], dim=1).long()

    def _add_places(self, inputs: dict[str, Any], mask: Tensor, columns: int) -> dict[str, Any]:
        """With mask, and positions of the last ``columns``, as far as this family takes them."""
        known = inspect.signature(type(self).forward).parameters
        places = {"attention_mask": mask, "position_ids": count_positions(mask)[:, -columns:]}
        others = {name: value for name, value in inputs.items() if name not in places}
        return others | {name: value for name, value in places.items() if name in known}

    def _is_checkpointed(self) -> bool:
        return any(getattr(layer, "gradient_checkpointing", False) for layer in find_layers(self))


class PromptedModel:
    """What a model with a prompt does otherwise; mixed into its own class."""

    soft_prompt: Any

    def train(self, mode: bool = True) -> Any:
        """The prompt learns, the frozen model stays in evaluation mode: its dropout off."""
        super().train(False)  # type: ignore[misc]
        self.soft_prompt.train(mode)
        self.training = mode
        return self

    def save_pretrained(self, save_directory: Any, *_: Any, **options: Any) -> None:
        """Keep the prompt alone."""
        self.soft_prompt.save_pretrained(save_directory, is_main_process=options.get("is_main_process", True))


def attach_prompt(soft_prompt: Any) -> Any:
    """The model of ``soft_prompt``, with it in front of every text."""
    base: FrozenLM = soft_prompt.base
    model = base.model
    if getattr(model, "soft_prompt", soft_prompt) is not soft_prompt:
        raise ConfigError("a prompt is attached to this model already: take it away first (model.soft_prompt.detach())")
    if hasattr(model, "soft_prompt"):
        return model
    # what they tell is told of the frozen model alone
    _ = base.fingerprint, base.parameter_count, base.embedding_std
    backbone: Any = _find_backbone(base)
    model._keys_to_ignore_on_save = set(model.state_dict())
    # not as submodules of the backbone: the parameters are the model's
    vars(backbone).update(attached_prompt=soft_prompt, base=base)
    own_backbone, own_model = (_class_of(one) for one in (backbone, model))
    backbone.__class__, model.__class__ = _make_backbone_class(own_backbone), _make_model_class(own_model)
    model.soft_prompt = soft_prompt
    return model


def detach_prompt(model: Any) -> Any:
    """The model without the prompt; with none attached, as it is."""
    if not hasattr(model, "soft_prompt"):
        return model
    backbone: Any
    (backbone,) = (module for module in model.modules() if isinstance(module, PromptedBackbone))
    model.__class__, backbone.__class__ = type(model).__mro__[2], type(backbone).__mro__[2]
    del model.soft_prompt, model._keys_to_ignore_on_save, backbone.attached_prompt
    del vars(backbone)["base"]
    return model.eval()


def _class_of(module: Any) -> Any:
    return type(module)


def _find_backbone(base: FrozenLM) -> nn.Module:
    """The part that the model hands its token ids to."""
    embedding, called = base.model.get_input_embeddings(), []
    holding = [module for name, module in base.model.named_modules() if name and embedding in list(module.modules())]
    hooks = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in holding
        if module is not embedding
    ]
    try:
        with torch.no_grad():
            base.model(input_ids=torch.ones(1, 1, dtype=torch.long, device=base.device))
    finally:
        for hook in hooks:
            hook.remove()
    if not called or "input_ids" not in inspect.signature(called[0].forward).parameters:
        raise BaseModelError(
            f"'{base.name}' ({type(base.model).__name__}) hands its token ids to no part of its own: a prompt cannot "
            "be attached to it; use fit, or SoftPrompt's inputs in a loop of your own"
        )
    backbone: nn.Module = called[0]
    return backbone


@functools.cache
def _make_backbone_class(own: Any) -> type:
    signature = inspect.signature(own.forward)

    @functools.wraps(own.forward)
    def forward(self: Any, *inputs: Any, **options: Any) -> Any:
        bound = signature.bind(self, *inputs, **options)
        (itself, *names), given = signature.parameters, dict(bound.arguments)
        given.pop(itself)
        for name in names:
            if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return self.run_prompted(functools.partial(own.forward, self), given)

    return type(own.__name__, (PromptedBackbone, own), {"forward": forward, "__module__": own.__module__})


@functools.cache
def _make_model_class(own: Any) -> type:
    # with the signature of the model's own, by which generate checks what it is given
    @functools.wraps(own.prepare_inputs_for_generation)
    def prepare(self: Any, input_ids: Tensor, next_sequence_length: int | None = None, **inputs: Any) -> Any:
        # the cache of an earlier text holds the prompt beside what its rows tell
        if inputs.get("is_first_iteration") and next_sequence_length is not None:
            next_sequence_length += getattr(inputs.get("past_key_values"), "prompt_columns", 0)
        return own.prepare_inputs_for_generation(self, input_ids, next_sequence_length=next_sequence_length, **inputs)

    parts = {"prepare_inputs_for_generation": prepare, "__module__": own.__module__}
    return type(own.__name__, (PromptedModel, own), parts)


def _crop_outputs(outputs: Any, shift: int, mask: Tensor) -> Any:
    """Hidden states of the rows as they were: ``shift`` columns less, or as many as were taken out more."""
    text = mask.bool()[..., None]

    def crop(hidden: Tensor) -> Tensor:
        first = hidden[:, :1].expand(-1, max(-shift, 0), -1)
        rows = torch.cat([first, hidden], dim=1) if shift < 0 else hidden[:, shift:]
        # where the text was padding, parts of the prompt are: nothing is to be learned there
        return torch.where(text, rows, rows.detach())

    outputs.last_hidden_state = crop(outputs.last_hidden_state)
    if (states := getattr(outputs, "hidden_states", None)) is not None:
        outputs.hidden_states = tuple(map(crop, states))
    # of experts, a row for each token of all texts
    if (chosen := getattr(outputs, "router_logits", None)) is not None:
        outputs.router_logits = tuple(
            crop(one.view(len(mask), -1, one.shape[-1])).flatten(0, 1) if one.ndim == 2 else one for one in chosen
        )
    return outputs
