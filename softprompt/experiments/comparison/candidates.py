"""Who takes part in a comparison: the names that ``--methods`` takes, and how they learn.

A name may have options behind colons: ``few-shot:8``, ``prompt-tuning:length=50:init=labels``.
"""

import difflib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from softprompt.config import TrainConfig
from softprompt.data.task import Task
from softprompt.errors import ConfigError, MissingExtraError, SoftpromptError
from softprompt.experiments.baselines import full_finetuning, lora
from softprompt.experiments.baselines.few_shot_prompting import fit_few_shot
from softprompt.experiments.baselines.finetuning import FinetuningConfig
from softprompt.experiments.baselines.fitted_baseline import PACKAGES, FittedBaseline
from softprompt.experiments.baselines.label_calibration import calibrate
from softprompt.experiments.baselines.linear_probe import fit_linear_probe
from softprompt.experiments.baselines.soft_prompts import learn_prompts
from softprompt.experiments.baselines.tfidf import fit_tfidf
from softprompt.experiments.sweep.sweep_folder import read_sweep
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts.methods.method_registry import METHODS, check_method
from softprompt.training.callbacks.callback import Callback
from softprompt.utils.files import expand_user

Family: TypeAlias = Literal["written", "classical", "soft prompt", "adapter", "full"]
Outcome: TypeAlias = FittedBaseline | SoftpromptError
Fit: TypeAlias = Callable[[FrozenLM, Task, int, str], FittedBaseline]  # of a seed and an instruction
SHOTS = 8  # examples of few-shot where no number is given
EVALUATIONS = 3  # at least, in a run of few steps
COMMON = ("steps", "seconds", "batch_size", "eval_every", "seed", "max_length", "method")  # no method has its own


@dataclass(frozen=True)
class RunSettings:
    """What methods have in common.

    Attributes:
        steps, batch_size: of all that learn by steps.
        instruction: words that written prompts have in front of everything.
    """

    steps: int
    batch_size: int = 16
    instruction: str = ""

    @property
    def eval_every(self) -> int:
        """Steps between evaluations on validation: as ``train`` has it, or less in a short run."""
        usual: int = TrainConfig.model_fields["eval_every"].default
        return max(1, min(usual, -(-self.steps // EVALUATIONS)))


@dataclass(frozen=True)
class Run:
    """One learning run; ``learning_rate`` is ``None`` for the method's own."""

    seed: int
    learning_rate: float | None = None

    def settings(self, settings: RunSettings, default_rate: float) -> dict[str, Any]:
        """What a method's own settings are completed with."""
        return {
            "seed": self.seed,
            "learning_rate": self.learning_rate or default_rate,
            "steps": settings.steps,
            "batch_size": settings.batch_size,
            "eval_every": settings.eval_every,
        }


Learn: TypeAlias = Callable[[FrozenLM, Task, Sequence[Run], RunSettings, Callback, Path], list[Outcome]]
"""Learn each of the runs (one, unless ``together``); an error in place of one that failed beside others.

The folder is the runs' own, to keep what they need to go on after the process ended; it may not exist.
"""


@dataclass(frozen=True)
class Candidate:
    """A method that a comparison can run.

    Attributes:
        name: as given to ``--methods``.
        family: for grouping.
        seeded: whether another seed gives another result.
        uses_base: whether it needs the language model.
        learning_rate: its default, where it learns by gradient steps; else ``None``.
        together: whether several runs learn in the same forward passes, each to what it would reach alone.
        config: what was set behind its name, where it learns by gradient steps.
    """

    name: str
    family: Family
    learn: Learn
    seeded: bool = True
    uses_base: bool = True
    learning_rate: float | None = None
    together: bool = False
    config: TrainConfig | FinetuningConfig | None = None


@dataclass(frozen=True)
class CandidateKind:
    """What can be named.

    Attributes:
        make: the name as given and what stands behind its first colon, to a contestant.
        package: what has to be installed, as Python imports it.
    """

    make: Callable[[str, str], Candidate]
    package: str | None = None

    def check_installed(self) -> None:
        """Raise MissingExtraError unless its package is there."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise MissingExtraError(*PACKAGES[self.package])


def parse_methods(names: str | Sequence[str | Candidate]) -> list[Candidate]:
    """``few-shot:8,prompt-tuning,...``, or a list of such names, to who takes part, in this order.

    Raises:
        ConfigError: an unknown name or option, or the same name twice.
        MissingExtraError: a package that one of them needs is not installed.
    """
    found: list[Candidate] = []
    for name in names.split(",") if isinstance(names, str) else names:
        if not isinstance(name, str):
            found.append(name)
            continue
        if not (name := name.strip()):
            raise ConfigError(f"--methods '{names}': expected names with commas between them, as in zero-shot,tfidf")
        if any(other.name == name for other in found):
            raise ConfigError(f"--methods names '{name}' twice: expected each method once")
        kind, _, options = name.partition(":")
        if kind == "sweep":
            found.append(_make_swept(name, options))
            continue
        if kind not in CANDIDATE_KINDS:
            raise ConfigError(f"unknown method '{kind}': {suggest_names(kind, CANDIDATE_KINDS)}")
        CANDIDATE_KINDS[kind].check_installed()
        found.append(CANDIDATE_KINDS[kind].make(name, options))
    return found


def suggest_names(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    """What may have been meant by ``name``."""
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"expected one of {', '.join(known)}"


def parse_options(name: str, options: str) -> dict[str, Any]:
    """``NAME=VALUE:NAME=VALUE`` behind a method's name to settings; ``lr`` stands for ``learning_rate``.

    Raises:
        ConfigError: it is not of this form, or sets what all methods of a comparison have in common.
    """
    settings: dict[str, Any] = {}
    for part in filter(None, options.split(":")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = "learning_rate" if key == "lr" else key
        if not equals or not value or key in settings:
            raise ConfigError(f"method '{name}': expected options as NAME=VALUE, each once, got '{part}'")
        if key in COMMON:
            raise ConfigError(f"method '{name}' sets {key}, which all methods of a comparison share: leave it out")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"method '{name}': expected a plain value for {key}, got '{value}'") from error
    return settings


def _make_soft_prompt(name: str, options: str) -> Candidate:
    """A method of softprompt's own, with what was set behind its name."""
    method = name.partition(":")[0]
    settings = parse_options(name, options)
    own = {key: settings.pop(key) for key in tuple(settings) if key in METHODS[method].options.model_fields}
    check_method(method, own)
    try:
        return _make_learner(name, TrainConfig.build(method=method, method_options=own, **settings))
    except ConfigError as error:
        raise ConfigError(f"method '{name}': {error}") from error


def _make_learner(name: str, config: TrainConfig) -> Candidate:
    rate = config.learning_rate

    def learn(
        base: FrozenLM, task: Task, runs: Sequence[Run], settings: RunSettings, callback: Callback, folder: Path
    ) -> list[Outcome]:
        configs = {
            f"seed {run.seed} rate {run.learning_rate or rate:.3g}": config.model_copy(
                update={**run.settings(settings, rate), "max_length": task.spec.max_length}
            )
            for run in runs
        }
        return learn_prompts(base, task, configs, callback, folder)

    return Candidate(name, "soft prompt", learn, learning_rate=rate, together=True, config=config)


def _make_swept(name: str, place: str) -> Candidate:
    """The winning settings of a sweep, learned anew with the comparison's seeds and steps."""
    if not place:
        raise ConfigError(f"method '{name}': expected the folder of a sweep, as in sweep:runs/sweep")
    summary, trials = read_sweep(expand_user(place))
    if shared := sorted(set(summary.settings) & set(COMMON) - {"seed", "method"}):
        raise ConfigError(
            f"method '{name}' searched {shared[0]}, which all methods of a comparison share: leave it out"
        )
    settings = {key: value for key, value in summary.config.items() if key not in set(COMMON) - {"method"}}
    alone = _make_learner(name, TrainConfig.build(**settings))
    searched = tuple(
        {
            "learning_rate": trial.settings.get("learning_rate", alone.learning_rate),
            "settings": {key: value for key, value in trial.settings.items() if key != "learning_rate"},
            "value": trial.value,
            "loss": trial.loss,
            "chosen": trial.number == summary.winner,
        }
        for trial in trials
        if trial.value is not None and trial.status != "repeated"
    )

    def learn(base: FrozenLM, task: Task, *others: Any) -> list[Outcome]:
        # a sweep on another model or data may have seen what is held out here
        what = "model" if summary.base != base.fingerprint else "data"
        if summary.base != base.fingerprint or summary.data != task.splits.fingerprint:
            raise ConfigError(f"'{name}' was on another {what}: expected a sweep on those of the comparison")
        return [
            replace(one, searched=searched, search_seconds=summary.seconds) if isinstance(one, FittedBaseline) else one
            for one in alone.learn(base, task, *others)
        ]

    return replace(alone, learn=learn)


def _parse_shots(name: str, options: str) -> int:
    if not options:
        return SHOTS
    if not options.isdecimal() or int(options) < 1:
        kind = name.partition(":")[0]
        raise ConfigError(f"method '{name}': expected a number of examples, as in {kind}:{SHOTS}, got '{options}'")
    return int(options)


def _make_direct(name: str, family: Family, fit: Fit, *, seeded: bool = False, uses_base: bool = True) -> Candidate:
    """A method without gradient steps: written prompts, and classifiers whose optimum is found directly."""

    def learn(base: FrozenLM, task: Task, runs: Sequence[Run], settings: RunSettings, *_: object) -> list[Outcome]:
        return [fit(base, task, run.seed, settings.instruction) for run in runs]

    return Candidate(name, family, learn, seeded, uses_base)


def _make_fixed(family: Family, fit: Fit, *, uses_base: bool = True) -> Callable[[str, str], Candidate]:
    """A method without options whose result no seed changes."""

    def make(name: str, options: str) -> Candidate:
        if options or name.endswith(":"):
            raise ConfigError(f"method '{name}' has no options: expected '{name.partition(':')[0]}'")
        return _make_direct(name, family, fit, uses_base=uses_base)

    return make


def _make_few_shot(name: str, options: str, *, nearest: bool = False) -> Candidate:
    fit = partial(_fit_written, count=_parse_shots(name, options), nearest=nearest)
    return _make_direct(name, "written", fit, seeded=not nearest)


def _fit_written(
    base: FrozenLM, task: Task, seed: int, instruction: str, *, count: int = 0, nearest: bool = False
) -> FittedBaseline:
    return fit_few_shot(base, task, count, seed, nearest, instruction=instruction)


def _fit_calibrated(base: FrozenLM, task: Task, seed: int, instruction: str) -> FittedBaseline:
    """The written prompt without its bias; what it reaches on validation is measured anew by whoever compares."""
    fitted = _fit_written(base, task, seed, instruction)
    return replace(fitted, answers=calibrate(fitted.answers, like=next(iter(task.train), None)))


def _make_tuned(
    family: Family, rate: float, fit: Callable[..., FittedBaseline], own: Sequence[str], name: str, options: str
) -> Candidate:
    """A method that changes what the model computes.

    ``own``: what ``fit`` takes beside the settings of FinetuningConfig, positive whole numbers.
    """
    given = parse_options(name, options)
    more = {key: given.pop(key) for key in own if key in given}
    for key, value in more.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"method '{name}': expected a positive whole number for {key}, got {value!r}")
    try:
        config = FinetuningConfig.build(**given)
    except ConfigError as error:
        raise ConfigError(f"method '{name}': {error}") from error
    rate = config.learning_rate or rate

    def learn(
        base: FrozenLM, task: Task, runs: Sequence[Run], settings: RunSettings, callback: Callback, folder: Path
    ) -> list[Outcome]:
        configs = (config.model_copy(update=run.settings(settings, rate)) for run in runs)
        return [fit(base, task, one, callback, **more) for one in configs]

    return Candidate(name, family, learn, learning_rate=rate, config=config)


CANDIDATE_KINDS: dict[str, CandidateKind] = {
    "zero-shot": CandidateKind(_make_fixed("written", _fit_written)),
    "zero-shot-calibrated": CandidateKind(_make_fixed("written", _fit_calibrated)),
    "few-shot": CandidateKind(_make_few_shot),
    "few-shot-nearest": CandidateKind(partial(_make_few_shot, nearest=True), "sklearn"),
    "tfidf": CandidateKind(
        _make_fixed("classical", lambda base, task, seed, _: fit_tfidf(task, seed), uses_base=False), "sklearn"
    ),
    "linear-probe": CandidateKind(
        _make_fixed("classical", lambda base, task, seed, _: fit_linear_probe(base, task, seed)), "sklearn"
    ),
    **{name: CandidateKind(_make_soft_prompt) for name in METHODS},
    "lora": CandidateKind(partial(_make_tuned, "adapter", lora.RATE, lora.fit_lora, ("rank", "alpha")), "peft"),
    "full": CandidateKind(partial(_make_tuned, "full", full_finetuning.RATE, full_finetuning.fit_full, ())),
}
