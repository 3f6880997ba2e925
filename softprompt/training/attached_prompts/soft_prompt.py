"""A prompt as an ``nn.Module``, for loops and trainers of others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.config import TrainConfig
from softprompt.data.chats.chat_resolution import resolve_chat
from softprompt.data.encoding.encoder import ExampleEncoder
from softprompt.data.encoding.placement import Placement
from softprompt.data.task import Task, TaskSpec
from softprompt.errors import BaseModelError, ConfigError, DataError, PromptFileError, printable
from softprompt.models.frozen_lm import FrozenLM
from softprompt.models.loading import load_model
from softprompt.prompts.methods.method_registry import fold_method, make_method, read_state
from softprompt.prompts.prefix import make_concatenated_prefix
from softprompt.prompts.saved_prompt import Prompt
from softprompt.prompts.state import PromptState
from softprompt.store.prompt_loading import load_prompt
from softprompt.training.attached_prompts.prompted_model import attach_prompt, detach_prompt
from softprompt.training.attached_prompts.prompted_rows import begins_with, check_room, count_positions, place_prefix
from softprompt.training.initialization import initialize
from softprompt.training.optimization import learning_unit
from softprompt.training.training_run import describe_data, evaluate_prompt
from softprompt.utils.summaries import summarize
from softprompt.utils.version import read_versions

SETTINGS = ("method", "method_options", "length", "init", "seed", "rate_unit")  # of TrainConfig, that make a prompt
WEIGHTS_FILE = "model.safetensors"  # where the Trainer of transformers looks for what it resumes
LONGEST_SHOWN = 200  # characters of a beginning in a message
IGNORED = -100  # a label that no loss counts


class SoftPrompt(nn.Module):
    """A prompt that learns on a frozen model: ``attach`` it, and train the model with the tools of others.

    A learning rate means what it means in ``fit``: virtual tokens are ``init + unit * theta``, ``unit`` the standard
    deviation of the model's embeddings, so rates are near 0.1, for every family.

    Attributes:
        base: the frozen model.
        config: the settings that made it.
        method: the module that holds its parameters.
    """

    def __init__(
        self, base: Any, task: Task | TaskSpec | None = None, *, tokenizer: Any = None, **settings: Any
    ) -> None:
        """Begin at the start that the settings name.

        Args:
            base: a ``FrozenLM``, the name or folder of a model, or a causal model of ``transformers``, which is
                frozen in its place.
            task: what ``init`` is made of: its labels, and its training examples; of conversations also where in them
                the prompt stands, so that rows of ids must begin as ``apply_chat_template`` begins them.
            tokenizer: of a model of ``transformers``; the one it was published with, if not given.
            settings: ``method``, ``method_options``, ``length``, ``init``, ``seed``, ``rate_unit``, as in ``fit``.

        Raises:
            ConfigError, PromptFileError, BaseModelError: the settings or the model cannot be used.
        """
        super().__init__()
        self.base = _freeze(base, tokenizer)
        self.config = _make_config(settings)
        task = self._resolve(task or TaskSpec.of())
        spec = task.spec if isinstance(task, Task) else task
        examples = task.train if isinstance(task, Task) else ()
        config = self.config
        start = initialize(config.init, self.base, spec, config.length, config.seed, examples)
        self._make_method(start)

    def _resolve(self, task: Task | TaskSpec) -> Task | TaskSpec:
        """The task as it is for this model, whose rows may be conversations."""
        return resolve_chat(self.base, task) if isinstance(task, Task) else task

    def _make_method(self, start: PromptState) -> None:
        config = self.config
        torch_state = torch.random.get_rng_state()
        torch.manual_seed(config.seed)
        self.method: Any = make_method(
            config.method, config.method_options, self.base, start, learning_unit(self.base, config), config.seed
        )
        torch.random.set_rng_state(torch_state)

    @classmethod
    def of(cls, base: Any, prompt: Prompt | PromptState | str | Path, *, tokenizer: Any = None) -> "SoftPrompt":
        """A learned prompt, or the one saved at a place, to attach to ``base``, or to learn on from.

        Raises:
            PromptFileError: it was learned on another model, or cannot be read.
        """
        found = load_prompt(prompt) if isinstance(prompt, str | Path) else prompt
        soft = cls.__new__(cls)
        nn.Module.__init__(soft)
        soft.base = _freeze(base, tokenizer)
        if isinstance(found, Prompt):
            found.check_base(soft.base)
        state = found.state if isinstance(found, Prompt) else found
        method = "prompt-tuning" if state.kind == "embeddings" else "prefix-tuning"
        soft.config = TrainConfig.build(method=method, length=state.length)
        soft._make_method(state)
        return soft

    @classmethod
    def load(cls, base: Any, folder: str | Path, *, tokenizer: Any = None) -> "SoftPrompt":
        """What ``save_pretrained``, hence a checkpoint of a trainer, has kept, to learn on from.

        Raises:
            PromptFileError: ``folder`` holds no such file, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        file = Path(folder) / WEIGHTS_FILE
        try:
            with safe_open(file, "pt") as opened:
                facts = json.loads((opened.metadata() or {})["softprompt"])
            soft = cls(base, tokenizer=tokenizer, **{**facts["settings"], "init": "random"})
            soft.method.placement = Placement.from_dict(facts["placement"])
            soft.load_state_dict({name.removeprefix("soft_prompt."): one for name, one in load_file(file).items()})
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise PromptFileError(
                f"'{folder}' holds no prompt that a trainer saved ({reason}): give a checkpoint's folder"
            ) from error
        return soft

    @property
    def length(self) -> int:
        """Virtual tokens ``P``."""
        return self.config.length

    def __repr__(self) -> str:
        learned = sum(one.numel() for one in self.method.parameters())
        return summarize(self, self.config.method, length=self.length, parameters=learned, base=self.base.name)

    def state(self) -> PromptState:
        """The prompt as it stands, float32, with gradient to the parameters."""
        return read_state(self.method)

    def prefix(self) -> Tensor:
        """All that stands before a text ``[Q, H]``, with gradient; raises ConfigError for keys and values."""
        state = self.state()
        if state.kind != "embeddings":
            raise ConfigError(f"{self.config.method} learns keys and values, not inputs: attach it to the model")
        return make_concatenated_prefix(self.base, state).embeddings[0]

    @property
    def lead(self) -> tuple[int, ...]:
        """What a text begins with that stands in the prefix already: BOS, and all that is the same in conversations."""
        placement = self.method.placement
        bos = self.base.bos_ids if placement.behind_bos or not placement.added else ()
        return (*bos, *placement.before, *placement.behind)

    def check_rows(self, input_ids: Tensor, mask: Tensor) -> None:
        """Raise DataError for rows ``[B, T]`` that do not begin with ``lead`` though the prompt stands within it."""
        if not self.method.placement.added:
            return
        found = begins_with(input_ids, mask.long().argmax(dim=1, keepdim=True), self.lead)
        if not bool(found.all()):
            row = int(found.long().argmin())
            words = printable(self.base.tokenizer.decode(self.lead), LONGEST_SHOWN)
            raise DataError(
                f"row {row} of the batch does not begin as the conversations that this prompt stands in, with {words!r}"
                ": expected the ids of apply_chat_template, with the same chat template, system message and tools"
            )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the model is called with: ``inputs_embeds [B, W, H]`` with BOS and prompt in front of each text.

        Args:
            input_ids: ``[B, T]``, with BOS or without it, padded on either side.
            attention_mask: ``[B, T]``, 0 on padding.
            labels: ``[B, T]``, as ``transformers`` takes them, not shifted; -100 is no target.

        Returns:
            ``inputs_embeds``, ``attention_mask``, ``position_ids``, and ``labels`` if given, -100 over the prompt.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prefix = self.prefix()
        self.check_rows(input_ids, mask)
        rows = place_prefix(input_ids, mask, self.lead, len(prefix))
        check_room(rows.mask.shape[1], self.base.context_length, self.length)
        texts = self.base.embed(input_ids)
        inputs = {
            "inputs_embeds": rows.pick(torch.cat([prefix.expand(len(texts), -1, -1), texts], dim=1)),
            "attention_mask": rows.mask,
            "position_ids": count_positions(rows.mask),
        }
        if labels is not None:
            moved = rows.pick(torch.cat([labels.new_full((len(labels), len(prefix)), IGNORED), labels], dim=1))
            inputs["labels"] = moved.masked_fill(rows.mask == 0, IGNORED)
        return inputs

    def attach(self) -> Any:
        """The frozen model, which from now on reads every text behind this prompt: forward, loss and ``generate``.

        It stays the ``transformers`` model it was, with one module more, the only one that requires gradient; its
        ``save_pretrained``, hence a checkpoint of a trainer, keeps this prompt alone. Inputs given as
        ``inputs_embeds`` are read as they are. ``detach`` undoes it.

        Raises:
            ConfigError: another prompt is attached already.
        """
        return attach_prompt(self)

    def detach(self) -> Any:
        """The model as it was before ``attach``."""
        return detach_prompt(self.base.model)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Groups for an optimiser of ``torch`` in which each parameter has the share of the rate that suits it."""
        factors = self.method.rate_factors()
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.method.named_parameters():
            factor = next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)
            groups.setdefault(factor, []).append(parameter)
        return [{"params": group, "lr": learning_rate * factor} for factor, group in groups.items()]

    def encode_split(self, task: Task, split: str = "train") -> list[dict[str, list[int]]]:
        """The examples of a split as ``fit`` reads them: rows of ``input_ids`` and ``labels``, for a data collator.

        Of a classification task the label's tokens are the targets, among all of the vocabulary.
        """
        task = resolve_chat(self.base, task)
        encoder = ExampleEncoder(self.base, task.spec, self.length)
        rows, lead = [], list(self.lead)
        for item in encoder.training_items(getattr(task, split)):
            ids = [*lead, *item.ids, item.targets[-1]]
            labels = [IGNORED] * len(ids)
            for position, target in zip(item.positions, item.targets, strict=True):
                labels[len(lead) + position + 1] = target
            rows.append({"input_ids": ids, "labels": labels})
        return rows

    def to_prompt(self, task: Task | TaskSpec, *, evaluate: bool = True) -> Prompt:
        """The prompt as it stands, for ``task``, as ``fit`` gives one: to save, evaluate, serve and export.

        Args:
            task: what it was learned for; of a ``Task`` the validation and test splits are scored.
            evaluate: whether they are.
        """
        task = self._resolve(task)
        spec = task.spec if isinstance(task, Task) else task
        config, init = self.config, self.config.init
        prompt = Prompt(
            states=(fold_method(self.method),),
            spec=spec,
            base_name=self.base.name,
            base_fingerprint=self.base.fingerprint,
            base_dtype=self.base.precision,
            method=config.method,
            training={
                **{name: getattr(config, name) for name in SETTINGS},
                "learned_parameters": sum(one.numel() for one in self.method.parameters()),
                "base_parameters": self.base.parameter_count,
            },
            data=describe_data(task) if isinstance(task, Task) else {},
            seed=config.seed,
            versions=read_versions(),
            parent=init.removeprefix("prompt:") if init.startswith("prompt:") else None,
        )
        if not (evaluate and isinstance(task, Task)):
            return prompt
        return evaluate_prompt(prompt, self.base, task, evaluate_test=True)

    def save_pretrained(self, folder: str | Path, *_: Any, is_main_process: bool = True, **__: Any) -> None:
        """Write the parameters, some kilobytes, to ``folder``, from where ``load`` reads them."""
        from safetensors.torch import save_file

        if not is_main_process:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        facts = {
            "settings": {name: getattr(self.config, name) for name in SETTINGS if name != "init"},
            "placement": self.method.placement.to_dict(),
            "base": self.base.name,
        }
        tensors = {f"soft_prompt.{name}": one.detach().cpu().contiguous() for name, one in self.state_dict().items()}
        save_file(tensors, Path(folder) / WEIGHTS_FILE, {"format": "pt", "softprompt": json.dumps(facts)})


def _freeze(base: Any, tokenizer: Any) -> FrozenLM:
    """``base`` as one of ours, with nothing attached."""
    if isinstance(base, str | Path):
        base = load_model(str(base))
    if not isinstance(base, FrozenLM):
        from transformers import AutoTokenizer, PreTrainedModel

        if not isinstance(base, PreTrainedModel):
            raise ConfigError(f"expected a model of transformers, its name or a FrozenLM, got {type(base).__name__}")
        _check_free(base)
        name = base.config.name_or_path or type(base).__name__
        tokenizer = AutoTokenizer.from_pretrained(name) if tokenizer is None else tokenizer
        base = FrozenLM(base, tokenizer, name, lasting=False)
    frozen: FrozenLM = base
    _check_free(frozen.model)
    if frozen.architecture != "decoder-only":
        raise BaseModelError(f"'{frozen.name}' has an encoder and a decoder; SoftPrompt takes causal models: use fit")
    return frozen


def _check_free(model: nn.Module) -> None:
    if hasattr(model, "soft_prompt"):
        raise ConfigError("a prompt is attached to this model already: take it away first (model.soft_prompt.detach())")


def _make_config(settings: Mapping[str, Any]) -> TrainConfig:
    others: Sequence[str] = sorted(set(settings) - set(SETTINGS))
    if others:
        raise ConfigError(
            f"unknown setting '{others[0]}': expected one of {', '.join(SETTINGS)}; rate, steps and batches are the "
            "trainer's"
        )
    given = dict(settings)
    name, _, place = str(given.get("init", "")).partition(":")
    if name == "prompt" and "length" not in given:
        given["length"] = load_prompt(place).length
    return TrainConfig.build(**given)
