"""Settings of a training run, and of the gate of a store: each default written once, each number with its unit."""

import difflib
import itertools
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import lazy_loader
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from softprompt.errors import ConfigError, map_write_errors
from softprompt.utils.safe_io import TEXT_LIMIT, read_file
from softprompt.utils.summaries import summarize_fields

yaml = lazy_loader.load("yaml")  # a tenth of the time that help takes

MAX_POPULATION = 1000  # prompts that learn together
MOST = 10**9  # of any number that has no narrower bound of its own

TaskKind: TypeAlias = Literal["classification", "generation"]
# of the learning rate behind the warm-up; all but cosine are those of transformers (training/optimization.py)
Schedule: TypeAlias = Literal["cosine", "constant", "linear", "polynomial", "inverse_sqrt", "warmup_stable_decay"]


class Settings(BaseModel):
    """Settings that a user gives. Immutable; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # type checkers know the fields

        def __init__(self, **settings: Any) -> None:
            """Settings over the defaults; raises ConfigError as ``build``."""
            try:
                super().__init__(**settings)
            except ValidationError as error:
                raise ConfigError(_describe_error(error, type(self))) from error

    def __repr__(self) -> str:
        return summarize_fields(self, only_changed=True)

    def __str__(self) -> str:
        return repr(self)

    @model_validator(mode="after")
    def _numbers_are_possible(self) -> Self:
        """Whatever a field says of itself: what would be counted up to has a bound."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            bounded = any(hasattr(rule, "le") or hasattr(rule, "lt") for rule in field.metadata)
            if isinstance(value, int | float) and not bounded and abs(value) > MOST:
                raise ValueError(f"{name}: expected at most {MOST:,}, got {value!r}")
        return self

    @classmethod
    def build(cls, **settings: Any) -> Self:
        """Settings over the defaults; ``None`` values count as not given.

        Raises:
            ConfigError: an unknown setting, a wrong type, a value out of range.
        """
        return cls(**{name: value for name, value in settings.items() if value is not None})

    @classmethod
    def load(cls, path: str | Path | None, **overrides: Any) -> Self:
        """Read a ``.toml``, ``.yaml`` or ``.json`` file, settings given here over those in it; raises ConfigError."""
        return cls.build(**cls.override({} if path is None else read_settings_file(Path(path)), overrides))

    @classmethod
    def override(cls, settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """``settings`` with those given in their place; ``None`` values count as not given."""
        return {**settings, **{name: value for name, value in given.items() if value is not None}}


_INSTEAD = ({"steps", "epochs"}, {"lr", "learning_rate"})  # settings that stand in each other's place


class TrainConfig(Settings):
    """How one soft prompt is learned.

    The defaults are the recipe of docs/concepts/recipe.md: they are meant to be right for every model family and task,
    because the learning rate is counted in standard deviations of the base model's token embeddings.
    """

    method: str = Field("prompt-tuning", description="prompt-tuning, p-tuning, residual or prefix-tuning")
    method_options: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="what only this method has, by name (docs/concepts/methods.md)"
    )
    length: int = Field(100, ge=1, le=4096, description="virtual tokens")
    init: str = Field("examples", description="examples, text, text:WORDS, labels, vocab, random, or prompt:FOLDER")
    soft_verbalizer: Literal["auto", "always", "never"] = Field(
        "auto", description="learn rows of the output layer for the labels too; auto: of 20 labels and more"
    )
    steps: int = Field(300, ge=1, description="optimiser steps")
    epochs: float | None = Field(
        None,
        gt=0,
        le=MOST,
        exclude_if=lambda epochs: epochs is None,  # a run has steps, however they were counted
        description="passes over the training rows, in place of steps",
    )
    batch_size: int = Field(16, ge=1, description="examples per optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, description="examples per forward pass; gradients accumulate up to batch_size (default: batch_size)"
    )
    gradient_checkpointing: bool = Field(False, description="compute layers twice to save the memory between")
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compile parts of the model's work on a CPU; auto: where it pays and there is a C++ compiler",
    )
    token_budget: int = Field(
        8192, ge=1, description="padded tokens per forward pass, at most (2,048 on a CPU); longer batches are cut"
    )
    max_length: int = Field(512, ge=8, description="tokens of template and text, at most; the text is cut to fit")
    optimizer: Literal["adam", "adafactor"] = Field("adam", description="adam, or adafactor as in Lester et al. 2021")
    learning_rate: float = Field(0.1, gt=0, le=1e30, description="peak rate (lr), in the units that rate_unit names")
    rate_unit: Literal["embedding-std", "raw"] = Field(
        "embedding-std", description="learn in standard deviations of the token embeddings, or in raw values"
    )
    schedule: Schedule = Field("cosine", description="of the rate after warm-up")
    warmup: float = Field(0.05, ge=0, lt=1, description="linear warm-up, fraction of steps")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay of the learned values per unit of rate")
    shuffle_buffer: int = Field(4096, ge=1, description="streamed examples in memory, shuffled among each other")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    averaging: float = Field(0.0, ge=0, lt=1, description="decay per step of the averaged prompt (0: no averaging)")
    eval_every: int = Field(100, ge=1, description="steps between evaluations on validation")
    patience: int = Field(4, ge=0, description="evaluations without improvement before stopping (0: never stop)")
    validation_limit: int = Field(500, ge=1, description="validation examples used while training, at most")
    alarm_after: int = Field(150, ge=1, description="steps without beating the label prior before the alarm")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints")
    seed: int = Field(0, ge=0, lt=2**63, description="of initialisation and data order")

    @model_validator(mode="before")
    @classmethod
    def _rename_aliases(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("lr") is None:
            return given
        if given.get("learning_rate") is not None:
            raise ValueError("lr and learning_rate are the same: give one of them")
        return {**{name: value for name, value in given.items() if name != "lr"}, "learning_rate": given["lr"]}

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError(f"steps ({self.steps}) and epochs ({self.epochs:g}) exclude each other: give one of them")
        return self

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> Self:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size ({self.micro_batch_size}) must be at most batch_size ({self.batch_size})"
            )
        return self

    @classmethod
    def build(cls, recipe: str | None = None, **settings: Any) -> Self:
        """Settings over a named recipe (in a file too) over the defaults; ``None`` values count as not given.

        Raises:
            ConfigError: an unknown recipe or setting, a wrong type, a value out of range.
        """
        if recipe is not None and (not isinstance(recipe, str) or recipe not in RECIPES):
            raise ConfigError(f"unknown recipe {recipe!r}: expected one of {', '.join(sorted(RECIPES))}")
        return super().build(**cls.override(RECIPES[recipe] if recipe else {}, settings))

    @classmethod
    def override(cls, settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """As for all settings; steps are in place of epochs and the other way round, ``lr`` of ``learning_rate``."""
        named = {name for name, value in given.items() if value is not None}
        taken = {one for some in _INSTEAD if some & named for one in some - named}
        return super().override({name: value for name, value in settings.items() if name not in taken}, given)

    def with_steps_for(self, rows: int) -> Self:
        """With ``steps`` in place of ``epochs``, if these are set, for so many training rows; a last batch that is not
        full is left out of an epoch."""
        if self.epochs is None:
            return self
        given = self.model_dump(exclude_unset=True, exclude={"epochs"})
        return type(self).build(**given, steps=max(1, round(self.epochs * max(1, rows // self.batch_size))))

    def save(self, path: str | Path) -> None:
        """Write every setting to a YAML file that ``load`` reads back to an equal object.

        Raises:
            OutputError: the file cannot be written.
        """
        with map_write_errors(Path(path), "give another path"):
            settings = self.model_dump(exclude=None if self.epochs is None else {"steps"})
            Path(path).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


class DistillConfig(Settings):
    """What a student learns of its teacher; how it learns is said by ``TrainConfig``."""

    distillation_temperature: float = Field(
        1.0, ge=0.1, le=100, description="what both distributions' logits are divided by (Hinton et al. 2015)"
    )
    teacher_top_k: int = Field(
        64, ge=1, le=4096, description="likeliest tokens kept of the teacher at each place (generation)"
    )
    greedy: bool = Field(True, description="learn the teacher's greedy completion of each input (generation)")
    samples: int = Field(0, ge=0, le=1000, description="sampled completions of each input beside it (generation)")
    sample_temperature: float = Field(1.0, gt=0, le=100, description="of sampling")
    sample_seed: int = Field(0, ge=0, lt=2**63, description="of sampling")
    max_new_tokens: int | None = Field(
        None, ge=1, description="tokens of a completion, at most; room for the longest reference, if not given"
    )
    stop: tuple[str, ...] = Field((), description="strings that end the teacher's completions")

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.greedy and not self.samples:
            raise ValueError("expected completions to learn, greedy or samples, got neither")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")
        return self


class DataOptions(Settings):
    """How the rows of a data set are read."""

    text_column: str | None = Field(None, description="column of the text.  [default: text]")
    label_column: str | None = Field(None, description="column of the label.  [default: label]")
    target_column: str | None = Field(None, description="column of the text to generate.  [default: target]")
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="refuse, or skip: leave out rows that cannot be used, and say so"
    )


class ChatOptions(Settings):
    """How conversations are written for a model with a chat template; rows of text are turns of a user there."""

    system: str | None = Field(None, description="the written system prompt, or a file of it")
    chat_template: str | None = Field(
        None, description="file of a chat template, or none: a plain text.  [default: the model's own]"
    )
    learn: Literal["all", "last"] = Field("all", description="which of the assistant's turns are learned")
    placement: Literal["system-start", "system-end", "first"] = Field(
        "system-start",
        description="where virtual tokens stand: in the system turn, at its start or end, or before the first turn",
    )


class GateConfig(Settings):
    """When a version is too much worse than the one in place to be promoted."""

    significance: float = Field(0.05, gt=0, lt=1, description="largest two-sided p-value that counts as worse")
    tolerance: float = Field(0.0, ge=0, description="loss that is accepted, in units of the metric")
    resamples: int = Field(10000, ge=100, le=1_000_000, description="of the paired bootstrap")
    seed: int = Field(0, ge=0, lt=2**63, description="of the resamples")


# Lester et al. 2021, section 3.1 and appendix A: Adafactor, constant 0.3, batch 32, weight decay 1e-5.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "lester": {
        "optimizer": "adafactor",
        "learning_rate": 0.3,
        "rate_unit": "raw",
        "schedule": "constant",
        "warmup": 0.0,
        "batch_size": 32,
        "weight_decay": 1e-5,
        "averaging": 0.0,
    },
}


def make_population(config: TrainConfig, seeds: int = 1, grid: str = "") -> dict[str, TrainConfig]:
    """The settings of several prompts that learn together, by what tells them apart.

    Args:
        config: what they have in common; the first seed is its.
        seeds: how many seeds, counted up.
        grid: values to combine, ``NAME=VALUE,VALUE;NAME=VALUE,...``; ``lr`` stands for ``learning_rate``.

    Raises:
        ConfigError: the grid cannot be read, or a setting or value is wrong.
    """
    axes: dict[str, list[Any]] = {}
    for part in filter(None, map(str.strip, grid.split(";"))):
        name, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not all(value.strip() for value in values.split(",")):
            raise ConfigError(f"grid '{part}': expected NAME=VALUE,VALUE, as in lr=0.03,0.1;length=10,20")
        name = "learning_rate" if name == "lr" else name
        choices = [parse_value(value, f"grid '{part}'") for value in values.split(",")]
        if name in axes or any(one in choices[:place] for place, one in enumerate(choices)):
            raise ConfigError(f"grid '{part}': expected each setting once, and each of its values once")
        axes[name] = choices
    if grid.strip() and not axes:
        raise ConfigError(f"grid '{grid}': expected NAME=VALUE,VALUE, as in lr=0.03,0.1;length=10,20")
    if "seed" in axes and seeds > 1:
        raise ConfigError("seeds are given twice: leave --seeds out, or seed out of --grid")
    if (count := seeds * math.prod(map(len, axes.values()))) > MAX_POPULATION:
        raise ConfigError(f"expected at most {MAX_POPULATION:,} prompts that learn together, got {count:,}")
    if seeds > 1:
        axes["seed"] = [config.seed + index for index in range(seeds)]
    given = config.model_dump(exclude_unset=True)
    members = {}
    for values_of_one in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values_of_one, strict=True))
        members[" ".join(f"{name}={value}" for name, value in chosen.items())] = TrainConfig.build(
            **{**given, **chosen}
        )
    return members


def parse_value(text: str, where: str) -> Any:
    """A value as it stands on the command line, as a number, a boolean or a word; ConfigError names ``where``."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: expected plain values with commas between them") from error


# what transformers and PEFT call a setting of ours
_ELSEWHERE = {
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "num_virtual_tokens": "length",
    "prompt_length": "length",
    "max_seq_length": "max_length",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "max_grad_norm": "clip",
    "optim": "optimizer",
    "gradient_accumulation_steps": "micro_batch_size",
    "eval_steps": "eval_every",
    "save_steps": "checkpoint_every",
    "early_stopping_patience": "patience",
    "output_dir": "out",
    "eval_dataset": "data={'train': ..., 'validation': ...}",
    "verbose": "callback",
}


def describe_unknown_setting(name: str, model: type[BaseModel]) -> str:
    """What to say of a setting that ``model`` does not have, with what may have been meant."""
    ours = _ELSEWHERE.get(name)
    if ours is not None and (model is TrainConfig or ours in model.model_fields):
        return f"unknown setting '{name}': it is called '{ours}' here"
    fields = model.model_fields
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.8) or difflib.get_close_matches(name, fields, n=2)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known settings: {', '.join(model.model_fields)}"
    )
    return f"unknown setting '{name}': {hint}"


def _describe_error(error: ValidationError, model: type[BaseModel]) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return describe_unknown_setting(name, model)
    what = problem["msg"].removeprefix("Value error, ")
    if not name:
        return what
    field = model.model_fields[name.split(".")[0]]
    return f"setting '{name}' ({field.description}): {what[0].lower() + what[1:]}, got {problem['input']!r}"


def read_settings_file(path: Path) -> dict[str, Any]:
    """What a ``.toml``, ``.yaml`` or ``.json`` file holds, by name; ConfigError if it cannot be read."""
    try:
        text = read_file(path, TEXT_LIMIT).decode()
    except FileNotFoundError as error:
        raise ConfigError(f"configuration file '{path}' does not exist") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"configuration file '{path}' cannot be read: {error}") from error
    try:
        ending = path.suffix.lower()
        if ending == ".toml":
            loaded: Any = tomllib.loads(text)
        elif ending in {".yaml", ".yml", ".json"}:
            loaded = yaml.safe_load(text)
        else:
            raise ConfigError(f"configuration file '{path}': expected .toml, .yaml or .json, got '{path.suffix}'")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"configuration file '{path}' does not parse: {error}") from error
    if not isinstance(loaded, dict):
        got = "an empty file" if loaded is None else type(loaded).__name__
        raise ConfigError(f"configuration file '{path}': expected settings by name, got {got}")
    if wrong := [name for name in loaded if not isinstance(name, str)]:
        raise ConfigError(f"configuration file '{path}': expected names of settings, got {wrong[0]!r}")
    return loaded
